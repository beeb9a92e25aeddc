"""The interface and addresses that tasks are reached at, its speed, and the operator's named host networks."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

import psutil

from agent.fingerprint.parts import FingerprintConfig, Part
from nomadpy import logs
from nomadpy.models.node import NodeNetworkAddress, NodeNetworkResource
from nomadpy.models.resources import NetworkResource

if TYPE_CHECKING:
    from psutil._ntuples import snicaddr

log = logs.get(__name__)

DEFAULT_SPEED_MBITS = 1000
DEFAULT_ALIAS = "default"
_UP = 0x1
_FAMILIES = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def fingerprint(config: FingerprintConfig) -> Part:
    """The chosen interface, or loopback on a host without another."""
    addresses = psutil.net_if_addrs()
    device = config.network_interface or default_interface() or "lo"
    if device not in addresses:
        raise OSError(f"network interface {device!r} does not exist")
    speed = config.network_speed or _speed(device)
    mine = _usable(addresses[device])
    networks = [NetworkResource(mode="bridge")] if config.bridge else []
    networks += [
        NetworkResource(
            mode="host",
            device=device,
            cidr=f"{address}/{address.max_prefixlen}",
            ip=str(address),
            mbits=speed,
        )
        for address in mine
    ]
    node_networks = [NodeNetworkResource(mode="bridge")] if config.bridge else []
    for name, entries in addresses.items():
        aliased = _aliased(config, name, device, _usable(entries))
        if aliased:
            node_networks.append(
                NodeNetworkResource(
                    mode="host",
                    device=name,
                    mac_address=_mac(entries),
                    speed=config.network_speed or _speed(name),
                    addresses=aliased,
                )
            )
    attributes = {}
    if mine:
        attributes["unique.network.ip-address"] = str(mine[0])
    return Part(attributes=attributes, networks=networks, node_networks=node_networks)


def default_interface(path: str = "/proc/net/route") -> str:
    """The interface of the default route with the lowest metric, "" without any."""
    try:
        with open(path, encoding="ascii") as file:
            lines = file.read().splitlines()[1:]
    except OSError:
        return ""
    best: tuple[int, str] | None = None
    for line in lines:
        fields = line.split()
        if len(fields) < 8:
            continue
        name, destination, flags, metric, mask = (fields[i] for i in (0, 1, 3, 6, 7))
        is_default = destination == "00000000" and mask == "00000000"
        if is_default and int(flags, 16) & _UP:
            candidate = (int(metric), name)
            best = candidate if best is None else min(best, candidate)
    return best[1] if best else ""


def _usable(entries: list[snicaddr]) -> list[_Address]:
    """Addresses that others can use, IPv4 first; link-local ones need a zone and are left out."""
    found: list[_Address] = []
    for entry in entries:
        if entry.family in _FAMILIES:
            address = ipaddress.ip_address(entry.address.partition("%")[0])
            if not address.is_link_local:
                found.append(address)
    return sorted(found, key=lambda address: address.version)


def _aliased(
    config: FingerprintConfig, name: str, default_device: str, addresses: list[_Address]
) -> list[NodeNetworkAddress]:
    result = []
    for address in addresses:
        aliases = [(DEFAULT_ALIAS, config.reserved_ports)] if name == default_device else []
        for alias, network in config.host_networks.items():
            if network.interface and network.interface != name:
                continue
            if network.cidr and address not in ipaddress.ip_network(network.cidr, strict=False):
                continue
            if network.interface or network.cidr:
                aliases.append((alias, network.reserved_ports))
        result += [
            NodeNetworkAddress(
                family=f"ipv{address.version}",
                alias=alias,
                address=str(address),
                reserved_ports=ports if alias != DEFAULT_ALIAS else "",
            )
            for alias, ports in aliases
        ]
    return result


def _mac(entries: list[snicaddr]) -> str:
    found = next((e.address for e in entries if e.family == psutil.AF_LINK), "")
    return "" if found == "00:00:00:00:00:00" else found


def _speed(device: str) -> int:
    """Mbit/s as the driver says; most virtual ones say nothing."""
    try:
        with open(f"/sys/class/net/{device}/speed", encoding="ascii") as file:
            speed = int(file.read())
    except (OSError, ValueError):
        return DEFAULT_SPEED_MBITS
    return speed if speed > 0 else DEFAULT_SPEED_MBITS
