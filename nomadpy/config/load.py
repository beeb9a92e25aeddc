"""Files and flags to the configuration in force; the only part of the configuration that touches the machine.

Order: built-in values, -dev, files in the order given (a folder's by name), flags.
"""

from __future__ import annotations

import os
import posixpath
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from nomadpy.config.addresses import Interfaces
from nomadpy.config.check import check, check_tls
from nomadpy.config.flags import read_flags
from nomadpy.config.model import Config
from nomadpy.config.read import Said, read_document
from nomadpy.config.unused import unused_settings
from nomadpy.errors import ConfigError
from nomadpy.hcl.parser import parse, parse_json
from nomadpy.hcl.source import HclError

__all__ = ["check_tls", "load", "load_text", "network_interfaces", "unused_settings"]

MAX_FILE_BYTES = 4 << 20

DEV: dict[str, Any] = {
    "bind_addr": "127.0.0.1",
    "log_level": "DEBUG",
    "enable_debug": True,
    "disable_update_check": True,
    "disable_anonymous_signature": True,
    "server": {"enabled": True, "bootstrap_expect": 1},
    "client": {
        "enabled": True,
        "gc_interval": 10 * 60 * 1_000_000_000,
        "gc_disk_usage_threshold": 99.0,
        "gc_inode_usage_threshold": 99.0,
    },
    "telemetry": {
        "prometheus_metrics": True,
        "publish_allocation_metrics": True,
        "publish_node_metrics": True,
    },
    "plugin": {
        "docker": {"config": {"volumes": {"enabled": True}}},
        "raw_exec": {"config": {"enabled": True}},
    },
}
"""What -dev sets before any file."""


def load(paths: Sequence[str], flags: Mapping[str, Any], dev: bool = False) -> Config:
    """Return the checked configuration.

    paths: files (`.json`, else HCL) and folders. flags: by name, see flags.py.
    Raises ConfigError with file, line and what to do.
    """
    said = _base(dev)
    for path in paths:
        for file in _files(path):
            said.merge(_read(file))
    said.merge(read_flags(flags))
    return _finish(said, dev=dev)


def load_text(
    text: str,
    *,
    name: str = "config.hcl",
    flags: Mapping[str, Any] | None = None,
    dev: bool = False,
) -> Config:
    """Return the checked configuration that one text makes; for tests and `config validate` of standard input."""
    said = _base(dev)
    said.merge(_parse(text, name))
    said.merge(read_flags(flags or {}))
    return _finish(said, dev=dev)


def network_interfaces() -> Interfaces:
    """The machine's addresses by interface, for config.addresses."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [one.address for family in families for one in addresses if one.family == family]
        for name, addresses in psutil.net_if_addrs().items()
    }


def _base(dev: bool) -> Said:
    said = Said()
    if dev:
        said.merge(Said(msgspec.convert(DEV, dict[str, Any]), {}))
        said.settings["client"]["network_interface"] = _loopback()
        said.origins = dict.fromkeys(
            ("bind_addr", "server.enabled", "client.enabled", "server.bootstrap_expect"), "-dev"
        )
    return said


def _loopback() -> str:
    for name, addresses in network_interfaces().items():
        if "127.0.0.1" in addresses:
            return name
    return ""


def _files(path: str) -> list[Path]:
    """The files that a path stands for: itself, or what a folder holds (not its folders), by name."""
    place = Path(path)
    if not place.exists():
        raise ConfigError(f"there is no file or folder {path!r} to read the configuration from")
    if not place.is_dir():
        return [place]
    return [
        one
        for one in sorted(place.iterdir(), key=lambda one: one.name)
        if one.suffix in (".hcl", ".json") and one.is_file() and not _temporary(one.name)
    ]


def _temporary(name: str) -> bool:
    """Whether an editor left it there."""
    return (
        name.startswith((".", "#"))
        or name.endswith("~")
        or (name.startswith("#") and name.endswith("#"))
    )


def _read(file: Path) -> Said:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{file}: larger than {MAX_FILE_BYTES >> 20} MiB; this is no configuration"
            )
        text = file.read_text(encoding="utf-8")
    except OSError as cause:
        raise ConfigError(f"{file}: cannot be read: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise ConfigError(f"{file}: is not UTF-8 text (byte {cause.start})") from cause
    return _parse(text, str(file))


def _parse(text: str, name: str) -> Said:
    as_json = name.endswith(".json") or text.lstrip().startswith("{")
    try:
        document = parse_json(text, name=name) if as_json else parse(text, name=name)
    except HclError as fault:
        raise ConfigError(fault.message, **fault.details) from fault
    return read_document(document)


def _finish(said: Said, *, dev: bool) -> Config:
    try:
        config = msgspec.convert(said.settings, Config)
    except msgspec.ValidationError as fault:
        raise ConfigError(f"the configuration does not hold together: {fault}") from fault
    config = msgspec.structs.replace(config, dev_mode=dev, origins=said.origins)
    check(config)
    return _complete(config)


def _complete(config: Config) -> Config:
    """Fill in what depends on the machine and on other settings."""
    data_dir = config.data_dir
    if config.dev_mode and not data_dir:
        data_dir = tempfile.mkdtemp(prefix="nomadpy-dev-")
    data_dir = posixpath.normpath(data_dir) if data_dir else ""
    client = config.client
    below = {
        "state_dir": "client",
        "alloc_dir": "alloc",
        "alloc_mounts_dir": "alloc_mounts",
        "host_volumes_dir": "host_volumes",
        "host_volume_plugin_dir": "host_volume_plugins",
    }
    directories = {
        name: getattr(client, name) or posixpath.join(data_dir, folder)
        for name, folder in below.items()
    }
    server = msgspec.structs.replace(
        config.server,
        authoritative_region=config.server.authoritative_region or config.region,
        num_schedulers=config.server.num_schedulers or os.cpu_count() or 1,
        data_dir=config.server.data_dir or posixpath.join(data_dir, "server"),
        server_join=_join(
            config.server.server_join, config.server.start_join, config.server.retry_join
        ),
    )
    return msgspec.structs.replace(
        config,
        name=config.name or socket.gethostname(),
        data_dir=data_dir,
        plugin_dir=config.plugin_dir or posixpath.join(data_dir, "plugins"),
        client=msgspec.structs.replace(client, **directories),
        server=server,
    )


def _join(join: Any, start: list[str], retry: list[str]) -> Any:
    """One place for the addresses to join: server_join also holds the older spellings."""
    return msgspec.structs.replace(
        join,
        start_join=[*join.start_join, *(one for one in start if one not in join.start_join)],
        retry_join=[*join.retry_join, *(one for one in retry if one not in join.retry_join)],
    )
