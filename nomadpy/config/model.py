"""The daemon's whole configuration as one value.

Not here: reading files (load.py), whether it makes sense (check.py).
"""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.config.blocks import (
    Acl,
    Addresses,
    Advertise,
    Autopilot,
    Client,
    Eventlog,
    Limits,
    Plugin,
    Ports,
    Rpc,
    Server,
    SnapshotAgent,
    Telemetry,
    Tls,
    Ui,
)
from nomadpy.models.base import Duration

_DAY = 24 * 3600 * 1_000_000_000


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What files may say; field names are the names in files."""

    region: str = "global"
    datacenter: str = "dc1"
    name: str = ""
    data_dir: str = ""
    plugin_dir: str = ""
    log_level: str = "INFO"
    log_json: bool = False
    log_file: str = ""
    log_include_location: bool = False
    log_rotate_duration: Duration = _DAY
    log_rotate_bytes: int = 0
    log_rotate_max_files: int = 0
    bind_addr: str = "0.0.0.0"  # noqa: S104 - Nomad's default; check_tls() refuses it without certificates
    enable_debug: bool = False
    ports: Ports = Ports()
    addresses: Addresses = Addresses()
    advertise: Advertise = Advertise()
    client: Client = Client()
    server: Server = Server()
    rpc: Rpc = Rpc()
    acl: Acl = Acl()
    telemetry: Telemetry = Telemetry()
    leave_on_interrupt: bool = False
    leave_on_terminate: bool = False
    enable_syslog: bool = False
    syslog_facility: str = "LOCAL0"
    disable_update_check: bool = False
    disable_anonymous_signature: bool = False
    ui: Ui = Ui()
    tls: Tls = Tls()
    http_api_response_headers: dict[str, str] = {}
    sentinel: dict[str, Any] = {}
    autopilot: Autopilot = Autopilot()
    snapshot_agent: SnapshotAgent = SnapshotAgent()
    plugin: dict[str, Plugin] = {}
    limits: Limits = Limits()
    audit: dict[str, Any] = {}
    reporting: dict[str, Any] = {}
    keyring: dict[str, dict[str, Any]] = {}
    consul: dict[str, dict[str, Any]] = {}
    vault: dict[str, dict[str, Any]] = {}
    eventlog: Eventlog = Eventlog()


class Config(Settings, frozen=True, kw_only=True):
    """The settings in force, and where each came from.

    dev_mode: state and directories are temporary. origins: dotted path to "file:line", "-flag" or "-dev", for what was said.
    """

    dev_mode: bool = False
    origins: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def plugins(self) -> dict[str, dict[str, Any]]:
        """Each driver's `config` as written."""
        return {name: plugin.config for name, plugin in self.plugin.items()}

    def origin(self, path: str) -> str:
        """Where a setting was made, as the start of an error text: "server.hcl:3: " or ""."""
        place = self.origins.get(path, "")
        return f"{place}: " if place else ""
