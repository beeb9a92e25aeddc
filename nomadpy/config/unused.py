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
_TEMPLATES = "template and artifact blocks are not part of this version"
_BRIDGE = "bridge networks are not part of this version: tasks use the host's network"
_VOLUMES = "a volume's data outlives its node's record; delete the volume first"
_PLUGINS = "drivers are part of the daemon, and a device plugin is named by its path: client { device_plugin }"
_TUNING = "it has one fixed value in this version"
_JOIN = "servers are tried again until they answer, without a pause to set"
_SEARCH = "searches have fixed limits in this version"
_EVENTS = "the event stream is not part of this version"
_UI = "there is no user interface in this version"
_HOSTNET = "named host networks are not part of this version"
_SCHED = "it is set through the API: operator scheduler set-config"
_METRICS = "all metrics are offered, under one set of names and labels"


REASONS: dict[str, str] = {
    "acl": _ACL,
    "addresses.serf": _GOSSIP,
    "advertise.serf": _GOSSIP,
    "audit": _ENTERPRISE,
    "autopilot": "autopilot's settings are taken from the API",
    "autopilot.disable_upgrade_migration": _ENTERPRISE,
    "autopilot.enable_custom_upgrades": _ENTERPRISE,
    "autopilot.enable_redundancy_zones": _ENTERPRISE,
    "client.alloc_mounts_dir": "tasks without root are not part of this version",
    "client.artifact": _TEMPLATES,
    "client.bind_wildcard_default_host_network": _BRIDGE,
    "client.bridge_network_hairpin_mode": _BRIDGE,
    "client.bridge_network_name": _BRIDGE,
    "client.bridge_network_subnet": _BRIDGE,
    "client.bridge_network_subnet_ipv6": _BRIDGE,
    "client.cgroup_parent": "control groups are made beside the agent's own",
    "client.chroot_env": "the exec driver is not part of this version",
    "client.client_max_port": "drivers are part of the daemon and need no ports",
    "client.client_min_port": "drivers are part of the daemon and need no ports",
    "client.cni_config_dir": _BRIDGE,
    "client.cni_path": _BRIDGE,
    "client.common_plugin_dir": _PLUGINS,
    "client.cpu_disable_dmidecode": "dmidecode is not used",
    "client.default_ineligible": "a node is eligible when it first registers; use node eligibility",
    "client.disk_free_mb": "the free space is measured",
    "client.drain_on_shutdown": "an agent that stops leaves its tasks alone; drain the node first",
    "client.fingerprint": "fingerprints look at this machine only, and a failed one is logged",
    "client.gc_inode_usage_threshold": "allocations are collected by number and by use of the disk",
    "client.gc_parallel_destroys": _TUNING,
    "client.gc_volumes_on_node_gc": _VOLUMES,
    "client.host_network": _HOSTNET,
    "client.log_file": _LOGS,
    "client.no_host_uuid": "a node's id is always its own",
    "client.nomad_service_discovery": "service registrations are not part of this version",
    "client.preferred_address_family": _TUNING,
    "client.server_join.retry_interval": _JOIN,
    "client.server_join.retry_max": _JOIN,
    "client.template": _TEMPLATES,
    "client.users": "dynamic users are not part of this version",
    "consul": _CONSUL,
    "disable_anonymous_signature": "nothing is ever reported",
    "disable_update_check": "nothing is ever looked up",
    "enable_syslog": _LOGS,
    "eventlog": "it belongs to Windows",
    "limits.https_handshake_timeout": _TUNING,
    "limits.rpc_handshake_timeout": _TUNING,
    "limits.rpc_max_conns_per_client": _TUNING,
    "log_file": _LOGS,
    "log_include_location": _LOGS,
    "log_rotate_bytes": _LOGS,
    "log_rotate_duration": _LOGS,
    "log_rotate_max_files": _LOGS,
    "plugin_dir": _PLUGINS,
    "ports.serf": _GOSSIP,
    "reporting": _ENTERPRISE,
    "rpc": _TUNING,
    "sentinel": _ENTERPRISE,
    "server.acl_token_gc_threshold": _ACL,
    "server.authoritative_region": "one region is all there is in this version",
    "server.client_introduction": "certificates say who may join",
    "server.csi_plugin_gc_threshold": _CSI,
    "server.csi_volume_claim_gc_interval": _CSI,
    "server.csi_volume_claim_gc_threshold": _CSI,
    "server.default_scheduler_config.memory_oversubscription_enabled": _SCHED,
    "server.default_scheduler_config.node_limit_for_feasibility_checks": "every node is considered, always",
    "server.default_scheduler_config.pause_eval_broker": _SCHED,
    "server.default_scheduler_config.reject_job_registration": _SCHED,
    "server.deploy_query_rate_limit": _TUNING,
    "server.enable_event_broker": _EVENTS,
    "server.encrypt": "traffic between servers is encrypted by TLS",
    "server.event_buffer_size": _EVENTS,
    "server.job_default_priority": _TUNING,
    "server.job_max_count": _TUNING,
    "server.job_max_source_size": _TUNING,
    "server.job_tracked_versions": _TUNING,
    "server.license_path": _ENTERPRISE,
    "server.log_file": _LOGS,
    "server.non_production": _ENTERPRISE,
    "server.non_voting_server": _ENTERPRISE,
    "server.num_schedulers": "one worker schedules, on the leader, in this version",
    "server.oidc_issuer": "OIDC discovery is not part of this version",
    "server.plan_apply_pipeline": _TUNING,
    "server.protocol_version": "there is one protocol",
    "server.raft_boltdb": _RAFT_STORE,
    "server.raft_logstore": _RAFT_STORE,
    "server.raft_protocol": "there is one protocol",
    "server.raft_snapshot_interval": "snapshots follow the number of entries: raft_snapshot_threshold",
    "server.redundancy_zone": _ENTERPRISE,
    "server.rejoin_after_leave": "a server that comes back is the same member",
    "server.retry_interval": _JOIN,
    "server.retry_max": _JOIN,
    "server.search": _SEARCH,
    "server.server_join.retry_interval": _JOIN,
    "server.server_join.retry_max": _JOIN,
    "server.start_timeout": _TUNING,
    "server.upgrade_version": _ENTERPRISE,
    "syslog_facility": _LOGS,
    "telemetry.allowed_metadata_keys_in_metrics": _METRICS,
    "telemetry.circonus_api_app": _SINKS,
    "telemetry.circonus_api_token": _SINKS,
    "telemetry.circonus_api_url": _SINKS,
    "telemetry.circonus_broker_id": _SINKS,
    "telemetry.circonus_broker_select_tag": _SINKS,
    "telemetry.circonus_check_display_name": _SINKS,
    "telemetry.circonus_check_force_metric_activation": _SINKS,
    "telemetry.circonus_check_id": _SINKS,
    "telemetry.circonus_check_instance_id": _SINKS,
    "telemetry.circonus_check_search_tag": _SINKS,
    "telemetry.circonus_check_tags": _SINKS,
    "telemetry.circonus_submission_interval": _SINKS,
    "telemetry.circonus_submission_url": _SINKS,
    "telemetry.collection_interval": _METRICS,
    "telemetry.datadog_address": _SINKS,
    "telemetry.datadog_tags": _SINKS,
    "telemetry.disable_allocation_hook_metrics": _METRICS,
    "telemetry.disable_dispatched_job_summary_metrics": _METRICS,
    "telemetry.disable_hostname": _METRICS,
    "telemetry.disable_quota_utilization_metrics": _METRICS,
    "telemetry.disable_rpc_rate_metrics_labels": _METRICS,
    "telemetry.filter_default": _METRICS,
    "telemetry.in_memory_collection_interval": _METRICS,
    "telemetry.in_memory_retention_period": _METRICS,
    "telemetry.include_alloc_metadata_in_metrics": _METRICS,
    "telemetry.prefix_filter": _METRICS,
    "telemetry.publish_allocation_metrics": _METRICS,
    "telemetry.statsd_address": _SINKS,
    "telemetry.statsite_address": _SINKS,
    "telemetry.use_node_name": _METRICS,
    "tls.tls_cipher_suites": "only suites with forward secrecy and authenticated encryption are offered",
    "tls.tls_prefer_server_cipher_suites": "TLS 1.2 and later decide it themselves",
    "tls.verify_server_hostname": "the role and region of a server are always verified",
    "ui": _UI,
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
