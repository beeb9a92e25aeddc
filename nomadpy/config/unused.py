"""Settings that are accepted, so that existing files work, and that change nothing here; each with the reason."""

from __future__ import annotations

from nomadpy.config.model import Config

_ENTERPRISE = "it belongs to Nomad Enterprise"
_GOSSIP = "servers find each other over rpc, without a gossip port"
_LOGS = "logs go to standard error; redirect or rotate them there"
_CSI = "CSI volumes are not part of this version"
_ACL = "access control lists are not part of this version: certificates decide who may call"
_CONSUL = "Consul and Vault are not part of this version"
_SINKS = "metrics are read from /v1/metrics"
_RAFT_STORE = "the log has one store"

REASONS: dict[str, str] = {
    "acl": _ACL,
    "addresses.serf": _GOSSIP,
    "advertise.serf": _GOSSIP,
    "audit": _ENTERPRISE,
    "autopilot.disable_upgrade_migration": _ENTERPRISE,
    "autopilot.enable_custom_upgrades": _ENTERPRISE,
    "autopilot.enable_redundancy_zones": _ENTERPRISE,
    "client.client_max_port": "drivers are part of the daemon and need no ports",
    "client.client_min_port": "drivers are part of the daemon and need no ports",
    "client.common_plugin_dir": "plugins as separate programs are not part of this version",
    "client.cpu_disable_dmidecode": "dmidecode is not used",
    "client.log_file": _LOGS,
    "client.no_host_uuid": "a node's id is always its own",
    "consul": _CONSUL,
    "disable_anonymous_signature": "nothing is ever reported",
    "disable_update_check": "nothing is ever looked up",
    "enable_syslog": _LOGS,
    "eventlog": "it belongs to Windows",
    "log_file": _LOGS,
    "log_include_location": _LOGS,
    "log_rotate_bytes": _LOGS,
    "log_rotate_duration": _LOGS,
    "log_rotate_max_files": _LOGS,
    "plugin_dir": "plugins as separate programs are not part of this version",
    "ports.serf": _GOSSIP,
    "reporting": _ENTERPRISE,
    "sentinel": _ENTERPRISE,
    "server.acl_token_gc_threshold": _ACL,
    "server.authoritative_region": "one region is all there is in this version",
    "server.csi_plugin_gc_threshold": _CSI,
    "server.csi_volume_claim_gc_interval": _CSI,
    "server.csi_volume_claim_gc_threshold": _CSI,
    "server.encrypt": "traffic between servers is encrypted by TLS",
    "server.license_path": _ENTERPRISE,
    "server.log_file": _LOGS,
    "server.non_production": _ENTERPRISE,
    "server.non_voting_server": _ENTERPRISE,
    "server.protocol_version": "there is one protocol",
    "server.raft_boltdb": _RAFT_STORE,
    "server.raft_logstore": _RAFT_STORE,
    "server.raft_protocol": "there is one protocol",
    "server.redundancy_zone": _ENTERPRISE,
    "server.upgrade_version": _ENTERPRISE,
    "syslog_facility": _LOGS,
    "telemetry.circonus_api_token": _SINKS,
    "telemetry.datadog_address": _SINKS,
    "telemetry.datadog_tags": _SINKS,
    "telemetry.statsd_address": _SINKS,
    "telemetry.statsite_address": _SINKS,
    "tls.tls_prefer_server_cipher_suites": "TLS 1.2 and later decide it themselves",
    "vault": _CONSUL,
}
"""Dotted path (or the start of one) to why it has no effect."""


def unused_settings(config: Config) -> list[str]:
    """Return one line for each setting that was made and has no effect: where it stands, and why."""
    lines: list[str] = []
    for path, origin in sorted(config.origins.items()):
        reason = _reason(path)
        if reason is not None and origin != "-dev" and not _is_outer(path, config):
            lines.append(f"{origin}: {path} has no effect: {reason}")
    return lines


def _reason(path: str) -> str | None:
    names = path.split(".")
    for count in range(len(names), 0, -1):
        reason = REASONS.get(".".join(names[:count]))
        if reason is not None:
            return reason
    return None


def _is_outer(path: str, config: Config) -> bool:
    """Whether a part of it is listed anyway."""
    return any(other.startswith(path + ".") for other in config.origins)
