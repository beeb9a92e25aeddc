"""The agent command's flags, and the settings each of them makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nomadpy.config.read import Said, read_flag
from nomadpy.errors import ConfigError
from nomadpy.hcl.source import did_you_mean

SETTINGS: dict[str, str] = {
    "acl-enabled": "acl.enabled",
    "acl-replication-token": "acl.replication_token",
    "alloc-dir": "client.alloc_dir",
    "bind": "bind_addr",
    "bootstrap-expect": "server.bootstrap_expect",
    "client": "client.enabled",
    "data-dir": "data_dir",
    "dc": "datacenter",
    "encrypt": "server.encrypt",
    "log-json": "log_json",
    "log-level": "log_level",
    "meta": "client.meta",
    "network-interface": "client.network_interface",
    "network-speed": "client.network_speed",
    "node": "name",
    "node-class": "client.node_class",
    "node-pool": "client.node_pool",
    "plugin-dir": "plugin_dir",
    "preferred-address-family": "client.preferred_address_family",
    "region": "region",
    "rejoin": "server.rejoin_after_leave",
    "retry-join": "server.server_join.retry_join",
    "server": "server.enabled",
    "servers": "client.servers",
    "state-dir": "client.state_dir",
}
"""Flag to the dotted path of its setting."""

WITHOUT_EFFECT = frozenset(
    (
        "client-intro-token",
        "config",
        "dev",
        "dev-connect",
        "dev-consul",
        "dev-vault",
        "join",
        "retry-interval",
        "retry-max",
    )
)
"""Flags that make no setting here: handled by the caller, or for products that are not part of this."""


def read_flags(flags: Mapping[str, Any]) -> Said:
    """Return the settings that flags make. None, False and empty values are flags that were not given.

    flags: by name, with "-" or "_" between words; a dotted name is the path of a setting itself.
    Raises ConfigError for an unknown flag or a value that its setting cannot have.
    """
    said = Said()
    for name, value in flags.items():
        flag = name.replace("_", "-") if "." not in name else name
        if value is None or value is False or value in ("", (), [], {}):
            continue
        path = SETTINGS.get(flag, name if "." in name else "")
        if path:
            said.put(path, _read(path, value, flag), f"-{flag}")
        elif flag not in WITHOUT_EFFECT and not flag.startswith(("consul-", "vault-")):
            raise ConfigError(f"unknown flag -{flag}. {did_you_mean(flag, SETTINGS)}".rstrip())
    return said


def _read(path: str, value: Any, flag: str) -> Any:
    try:
        return read_flag(path, value, flag)
    except KeyError:
        raise ConfigError(f"-{flag}: there is no such setting") from None
