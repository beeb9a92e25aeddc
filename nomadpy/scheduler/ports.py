"""Which host ports of a node are taken, and the assignment of static and dynamic ports.

A port belongs to one address of the node. A network ask names a host network (an alias of an address; "default" when
empty). Ports that the node reserves for itself count as taken on every address.
"""

from __future__ import annotations

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models.allocation import Allocation
from nomadpy.models.node import Node
from nomadpy.models.resources import NetworkResource, Port, PortMapping
from nomadpy.scheduler.refusals import GrantError

DEFAULT_HOST_NETWORK = "default"
DEFAULT_MIN_DYNAMIC_PORT = 20000
DEFAULT_MAX_DYNAMIC_PORT = 32000
_RANDOM_ATTEMPTS = 20
_MAX_PORT = 65535


class HostAddress(msgspec.Struct, frozen=True):
    """An address of a node that ports can be bound on."""

    address: str
    device: str
    alias: str
    reserved: frozenset[int]


class PortOffer(msgspec.Struct, frozen=True):
    """Ports assigned for a group's network: the mappings, and the network as the allocation carries it."""

    network: NetworkResource
    ports: list[PortMapping]


class NoPortError(GrantError):
    """The ports asked for cannot be had on this node."""


def parse_ports(text: str) -> frozenset[int]:
    """Return the ports of a list such as `22,80,8500-8600`; malformed parts are ignored."""
    ports: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            continue
        first, last = int(low), int(high) if dash else int(low)
        ports.update(range(first, min(last, _MAX_PORT) + 1))
    return frozenset(ports)


def host_addresses(node: Node) -> list[HostAddress]:
    """Return the addresses of a node that ports can be bound on, in the node's order.

    A node that tells no aliases offers the addresses of its plain networks as the default host network.
    """
    resources = node.node_resources
    if resources is None:
        return []
    found = [
        HostAddress(
            one.address,
            network.device,
            one.alias or DEFAULT_HOST_NETWORK,
            _address_reserved(one.reserved_ports),
        )
        for network in resources.node_networks or ()
        if network.mode in ("", "host")
        for one in network.addresses or ()
    ]
    if found:
        return found
    return [
        HostAddress(network.ip, network.device, DEFAULT_HOST_NETWORK, frozenset())
        for network in resources.networks or ()
        if network.ip
    ]


class NodePorts:
    """The taken ports of one node, for one scheduling pass. Not shared."""

    def __init__(self, node: Node) -> None:
        resources = node.node_resources
        self.addresses = host_addresses(node)
        self._low = (resources.min_dynamic_port if resources else 0) or DEFAULT_MIN_DYNAMIC_PORT
        self._high = (resources.max_dynamic_port if resources else 0) or DEFAULT_MAX_DYNAMIC_PORT
        reserved = node.reserved_resources
        self._reserved = (
            parse_ports(reserved.networks.reserved_host_ports) if reserved else frozenset()
        )
        self._taken: dict[str, set[int]] = {}
        # Ports of allocations that are stopping: free to ask for by number, but a poor pick as a dynamic port.
        self._avoid: set[int] = set()

    def add(self, alloc: Allocation) -> str:
        """Take the ports of a live allocation; returns the collision found, or ""."""
        collision = ""
        for address, port, label, shared in _ports_of(alloc):
            taken = self._taken.setdefault(address, set())
            if not shared and (port in taken or port in self._reserved):
                collision = collision or f"network: reserved port collision {label}={port}"
            taken.add(port)
        return collision

    def add_stopping(self, alloc: Allocation) -> None:
        """Keep dynamic choices away from the ports of an allocation that has yet to exit."""
        self._avoid.update(port for _, port, _, _ in _ports_of(alloc))

    def assign_group(self, ask: NetworkResource, entropy: Entropy) -> PortOffer:
        """Take ports for a group's network. Raises NoPortError, and then nothing is taken."""
        chosen: list[tuple[HostAddress, int]] = []
        mappings: list[PortMapping] = []
        reserved: list[Port] = []
        dynamic: list[Port] = []
        for port in ask.reserved_ports or ():
            host = self._host(port.host_network)
            self._check_static(host, port, chosen)
            chosen.append((host, port.value))
            to = port.value if port.to == -1 else port.to
            mappings.append(
                PortMapping(label=port.label, value=port.value, to=to, host_ip=host.address)
            )
            reserved.append(msgspec.structs.replace(port, to=to))
        for port in ask.dynamic_ports or ():
            host = self._host(port.host_network)
            value = self._pick_dynamic(host, chosen, entropy)
            chosen.append((host, value))
            to = value if port.to == -1 else port.to
            mappings.append(PortMapping(label=port.label, value=value, to=to, host_ip=host.address))
            dynamic.append(msgspec.structs.replace(port, value=value, to=to))
        self._take(chosen)
        network = msgspec.structs.replace(
            ask,
            ip=self.addresses[0].address if self.addresses else "",
            reserved_ports=reserved or None,
            dynamic_ports=dynamic or None,
        )
        return PortOffer(network, mappings)

    def assign_task(self, ask: NetworkResource, entropy: Entropy) -> NetworkResource:
        """Take ports for a task's own network, all on one address. Raises NoPortError."""
        host = self._host("")
        chosen: list[tuple[HostAddress, int]] = []
        for port in ask.reserved_ports or ():
            self._check_static(host, port, chosen)
            chosen.append((host, port.value))
        dynamic: list[Port] = []
        for port in ask.dynamic_ports or ():
            value = self._pick_dynamic(host, chosen, entropy)
            chosen.append((host, value))
            to = value if port.to == -1 else port.to
            dynamic.append(msgspec.structs.replace(port, value=value, to=to))
        self._take(chosen)
        return msgspec.structs.replace(
            ask,
            device=host.device,
            ip=host.address,
            reserved_ports=ask.reserved_ports or None,
            dynamic_ports=dynamic or None,
        )

    def _host(self, alias: str) -> HostAddress:
        wanted = alias or DEFAULT_HOST_NETWORK
        for one in self.addresses:
            if one.alias == wanted:
                return one
        raise NoPortError(f'network: no addresses available for "{wanted}" network')

    def _check_static(
        self, host: HostAddress, port: Port, chosen: list[tuple[HostAddress, int]]
    ) -> None:
        if not 0 < port.value <= _MAX_PORT:
            raise NoPortError(f"network: invalid port {port.value} (out of range)")
        if port.ignore_collision:
            return
        if self._is_taken(host, port.value) or (host, port.value) in chosen:
            raise NoPortError(f"network: reserved port collision {port.label}={port.value}")

    def _is_taken(self, host: HostAddress, port: int) -> bool:
        return (
            port in self._taken.get(host.address, ())
            or port in self._taken.get("", ())
            or port in self._reserved
            or port in host.reserved
        )

    def _pick_dynamic(
        self, host: HostAddress, chosen: list[tuple[HostAddress, int]], entropy: Entropy
    ) -> int:
        """A free port of the dynamic range: a few random tries, then a scan that misses none.

        Random, because a port whose task has just ended may still linger on the host.
        """
        width = self._high - self._low + 1
        start = self._low
        for _ in range(_RANDOM_ATTEMPTS):
            start = self._low + int(entropy.uniform(0, width)) % width
            if (
                not self._is_taken(host, start)
                and start not in self._avoid
                and (host, start) not in chosen
            ):
                return start
        for avoid in (self._avoid, frozenset[int]()):
            for step in range(width):
                port = self._low + (start - self._low + step) % width
                if (
                    not self._is_taken(host, port)
                    and port not in avoid
                    and (host, port) not in chosen
                ):
                    return port
        raise NoPortError("network: dynamic port selection failed")

    def _take(self, chosen: list[tuple[HostAddress, int]]) -> None:
        for host, port in chosen:
            self._taken.setdefault(host.address, set()).add(port)


def _address_reserved(text: str) -> frozenset[int]:
    return parse_ports(text) if text else frozenset()


def _ports_of(alloc: Allocation) -> list[tuple[str, int, str, bool]]:
    """The (address, port, label, may collide) of everything an allocation has bound."""
    resources = alloc.allocated_resources
    if resources is None:
        return []
    found: list[tuple[str, int, str, bool]] = []
    shared = resources.shared
    if shared.ports or shared.networks:
        lenient = {
            port.label
            for network in shared.networks or ()
            for port in network.reserved_ports or ()
            if port.ignore_collision
        }
        found.extend(
            (one.host_ip, one.value, one.label, one.label in lenient) for one in shared.ports or ()
        )
    for task in (resources.tasks or {}).values():
        for network in task.networks or ():
            for ports in (network.reserved_ports, network.dynamic_ports):
                found.extend(
                    (network.ip, one.value, one.label, one.ignore_collision) for one in ports or ()
                )
    return found
