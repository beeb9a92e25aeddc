"""Where a node listens, and what it tells others to dial."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from nomadpy.config.model import Config
from nomadpy.errors import ConfigError

Service = Literal["http", "rpc"]

Interfaces = Mapping[str, Sequence[str]]
"""Addresses by interface, in the system's order."""

_TEMPLATE = re.compile(r'\{\{\s*(\w+)(?:\s+"([^"]*)")?\s*\}\}')


def listen_addresses(
    config: Config, service: Service, interfaces: Interfaces | None = None
) -> list[str]:
    """Return what to listen on: `host:port`, `[v6]:port` or, for http, `unix://path`.

    interfaces: needed only where a setting is a `{{ GetInterfaceIP "eth0" }}` template.
    Raises ConfigError for what is no address.
    """
    said = getattr(config.addresses, service) or config.bind_addr
    port = getattr(config.ports, service)
    path = f"addresses.{service}" if getattr(config.addresses, service) else "bind_addr"
    out: list[str] = []
    for one in _resolve(said, path, config, interfaces or {}).split():
        if service == "http" and one.startswith("unix://"):
            out.append(one)
        else:
            out.append(join_host_port(_host(one, path, config), port))
    if not out:
        raise ConfigError(f"{config.origin(path)}{path} names no address")
    return out


def advertise_address(
    config: Config, service: Service, interfaces: Interfaces | None = None
) -> str:
    """Return the `host:port` that others are told to dial.

    It is what `advertise` says, else the address listened on when it is a certain one, else the first private address
    of the machine. Raises ConfigError when only loopback is left and this is not a dev agent.
    """
    known = interfaces or {}
    port = int(getattr(config.ports, service))
    path = f"advertise.{service}"
    said = getattr(config.advertise, service)
    if said:
        host, own_port = split_host_port(_resolve(said, path, config, known))
        return join_host_port(_host(host, path, config), own_port or port)
    for address in listen_addresses(config, service, known):
        if address.startswith("unix://"):
            continue
        host, _ = split_host_port(address)
        if not is_any(host):
            return address
    private = _private(known)
    if private:
        return join_host_port(private, port)
    if config.dev_mode:
        return join_host_port("127.0.0.1", port)
    raise ConfigError(
        f'no private address was found on this machine to advertise for {service}: set advertise {{ {service} = "ADDRESS" }}'
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_any(host: str) -> bool:
    """Whether the host stands for every address of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def split_host_port(address: str) -> tuple[str, int]:
    """Return host and port of `host`, `host:port`, `[v6]:port` or a bare IPv6 address; port 0 when none is given."""
    text = address.strip()
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, _port(rest[1:], address) if rest.startswith(":") else 0
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, _port(port, address)
    return text, 0


def join_host_port(host: str, port: int) -> str:
    """Return `host:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _port(text: str, address: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 65536:
        raise ConfigError(f"{address!r} has no port between 1 and 65535 after its colon")
    return int(text)


_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def _host(text: str, path: str, config: Config) -> str:
    host = text.strip("[]")
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # A name must not look like an address that was mistyped.
        if not _HOST.fullmatch(host) or host.rpartition(".")[2].isdigit():
            raise ConfigError(
                f"{config.origin(path)}{path}: {text!r} is no address or host name"
            ) from None
    return host


def _resolve(said: str, path: str, config: Config, interfaces: Interfaces) -> str:
    """Replace address templates."""

    def value(found: re.Match[str]) -> str:
        function, argument = found[1], found[2]
        if function == "GetPrivateIP":
            address = _private(interfaces)
        elif function == "GetInterfaceIP" and argument is not None:
            address = next(iter(interfaces.get(argument, ())), "")
        else:
            raise ConfigError(
                f'{config.origin(path)}{path}: {found[0]} is not known; GetPrivateIP and GetInterfaceIP "NAME" are'
            )
        if not address:
            raise ConfigError(
                f"{config.origin(path)}{path}: {found[0]} found no address on this machine"
            )
        return address

    return _TEMPLATE.sub(value, said)


def _private(interfaces: Interfaces) -> str:
    """The first private IPv4 address that is not loopback or link-local, or "" """
    for addresses in interfaces.values():
        for text in addresses:
            try:
                address = ipaddress.ip_address(text.partition("%")[0])
            except ValueError:
                continue
            if (
                address.version == 4
                and address.is_private
                and not address.is_loopback
                and not address.is_link_local
            ):
                return text
    return ""
