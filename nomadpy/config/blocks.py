"""The blocks of the daemon's configuration, with their names, kinds and defaults as Nomad's agent has them.

Durations are nanoseconds here and Go text ("30s") in files. A block that a file leaves out has its defaults.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.config.devices import Device, DevicePlugin
from nomadpy.models.base import Duration

_S = 1_000_000_000
_M = 60 * _S
_H = 60 * _M


class ConfigBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the configuration. Field names are the names in files."""


class Ports(ConfigBlock, frozen=True, kw_only=True):
    http: int = 4646
    rpc: int = 4647
    serf: int = 4648


class Addresses(ConfigBlock, frozen=True, kw_only=True):
    """Where to listen; "" is bind_addr. http may name several, with spaces between, and unix://path."""

    http: str = ""
    rpc: str = ""
    serf: str = ""


class Advertise(ConfigBlock, frozen=True, kw_only=True):
    """What others are told to dial, host[:port]; "" is worked out."""

    http: str = ""
    rpc: str = ""
    serf: str = ""


class Join(ConfigBlock, frozen=True, kw_only=True):
    """retry_max 0 is for ever."""

    start_join: list[str] = []
    retry_join: list[str] = []
    retry_max: int = 0
    retry_interval: Duration = 30 * _S


class Search(ConfigBlock, frozen=True, kw_only=True):
    fuzzy_enabled: bool = True
    limit_query: int = 20
    limit_results: int = 100
    min_term_length: int = 2


class PlanRejectionTracker(ConfigBlock, frozen=True, kw_only=True):
    enabled: bool = False
    node_threshold: int = 100
    node_window: Duration = 5 * _M


class Boltdb(ConfigBlock, frozen=True, kw_only=True):
    no_freelist_sync: bool = False


class Wal(ConfigBlock, frozen=True, kw_only=True):
    segment_size_mb: int = 64


class LogVerification(ConfigBlock, frozen=True, kw_only=True):
    enabled: bool = False
    interval: str = ""


class RaftLogStore(ConfigBlock, frozen=True, kw_only=True):
    backend: str = ""
    boltdb: Boltdb = Boltdb()
    wal: Wal = Wal()
    disable_log_cache: bool = False
    verification: LogVerification = LogVerification()


class ClientIntroduction(ConfigBlock, frozen=True, kw_only=True):
    enforcement: str = "warn"
    default_identity_ttl: Duration = 5 * _M
    max_identity_ttl: Duration = 30 * _M


class Preemption(ConfigBlock, frozen=True, kw_only=True):
    system_scheduler_enabled: bool = True
    sysbatch_scheduler_enabled: bool = False
    batch_scheduler_enabled: bool = False
    service_scheduler_enabled: bool = False


class NamespaceShare(ConfigBlock, frozen=True, kw_only=True):
    weight: float = 1.0


class FairShare(ConfigBlock, frozen=True, kw_only=True):
    """Ours: how the evaluations of several namespaces take turns."""

    mode: str = "weighted"
    namespace: dict[str, NamespaceShare] = {}


class DefaultScheduler(ConfigBlock, frozen=True, kw_only=True):
    """Used once, when a cluster is formed."""

    scheduler_algorithm: str = "binpack"
    memory_oversubscription_enabled: bool = False
    reject_job_registration: bool = False
    pause_eval_broker: bool = False
    node_limit_for_feasibility_checks: int = 0
    preemption_config: Preemption = Preemption()


class Server(ConfigBlock, frozen=True, kw_only=True):
    """num_schedulers 0 is one for each processor; enabled_schedulers [] is all.

    task_certificate_ttl is ours: how long a task's certificate lives; agents renew it at two thirds. So is
    state_check_interval: how often the servers compare what their states add up to, 0 for never.
    """

    enabled: bool = False
    authoritative_region: str = ""
    bootstrap_expect: int = 0
    client_introduction: ClientIntroduction = ClientIntroduction()
    data_dir: str = ""
    protocol_version: int = 0
    raft_protocol: int = 3
    raft_multiplier: int = 1
    num_schedulers: int = 0
    enabled_schedulers: list[str] = []
    node_gc_threshold: Duration = 24 * _H
    job_gc_interval: Duration = 5 * _M
    job_gc_threshold: Duration = 4 * _H
    eval_gc_threshold: Duration = _H
    batch_eval_gc_threshold: Duration = 24 * _H
    deployment_gc_threshold: Duration = _H
    csi_volume_claim_gc_interval: Duration = 5 * _M
    csi_volume_claim_gc_threshold: Duration = 5 * _M
    csi_plugin_gc_threshold: Duration = _H
    acl_token_gc_threshold: Duration = _H
    root_key_gc_interval: Duration = 10 * _M
    root_key_gc_threshold: Duration = _H
    root_key_rotation_threshold: Duration = 720 * _H
    task_certificate_ttl: Duration = 24 * _H
    state_check_interval: Duration = 5 * _M
    heartbeat_grace: Duration = 10 * _S
    min_heartbeat_ttl: Duration = 10 * _S
    max_heartbeats_per_second: float = 50.0
    failover_heartbeat_ttl: Duration = 5 * _M
    start_join: list[str] = []
    retry_join: list[str] = []
    retry_max: int = 0
    retry_interval: Duration = 30 * _S
    rejoin_after_leave: bool = False
    non_voting_server: bool = False
    redundancy_zone: str = ""
    upgrade_version: str = ""
    encrypt: str = ""
    server_join: Join = Join()
    default_scheduler_config: DefaultScheduler = DefaultScheduler()
    plan_rejection_tracker: PlanRejectionTracker = PlanRejectionTracker()
    fair_share: FairShare = FairShare()
    plan_apply_pipeline: int = 1
    enable_event_broker: bool = True
    event_buffer_size: int = 100
    license_path: str = ""
    search: Search = Search()
    deploy_query_rate_limit: float = 0.0
    raft_logstore: RaftLogStore = RaftLogStore()
    raft_boltdb: Boltdb = Boltdb()
    raft_snapshot_threshold: int = 0
    raft_snapshot_interval: Duration = 0
    raft_trailing_logs: int = 0
    job_default_priority: int = 50
    job_max_priority: int = 100
    job_max_count: int = 0
    job_max_source_size: str = "1M"
    job_tracked_versions: int = 6
    oidc_issuer: str = ""
    start_timeout: Duration = 30 * _S
    log_file: str = ""
    non_production: bool = False


class Reserved(ConfigBlock, frozen=True, kw_only=True):
    """What the machine keeps for itself: MHz, MiB, MiB, "22,80,8000-8010", "0-1"."""

    cpu: int = 0
    memory: int = 0
    disk: int = 0
    reserved_ports: str = ""
    cores: str = ""


class DrainOnShutdown(ConfigBlock, frozen=True, kw_only=True):
    deadline: Duration = _H
    ignore_system_jobs: bool = False
    force: bool = False


class Artifact(ConfigBlock, frozen=True, kw_only=True):
    http_read_timeout: Duration = 30 * _M
    http_max_size: str = "100GB"
    gcs_timeout: Duration = 30 * _M
    git_timeout: Duration = 30 * _M
    hg_timeout: Duration = 30 * _M
    s3_timeout: Duration = 30 * _M
    decompression_file_count_limit: int = 4096
    decompression_size_limit: str = "100GB"
    disable_artifact_inspection: bool = False
    disable_filesystem_isolation: bool = False
    filesystem_isolation_extra_paths: list[str] = []
    set_environment_variables: str = ""


class Users(ConfigBlock, frozen=True, kw_only=True):
    dynamic_user_min: int = 80_000
    dynamic_user_max: int = 89_999


class HostVolume(ConfigBlock, frozen=True, kw_only=True):
    path: str = ""
    read_only: bool = False


class HostNetwork(ConfigBlock, frozen=True, kw_only=True):
    cidr: str = ""
    interface: str = ""
    reserved_ports: str = ""


class Fingerprint(ConfigBlock, frozen=True, kw_only=True):
    retry_interval: Duration = 0
    retry_attempts: int = 0
    exit_on_failure: bool = False


class Retry(ConfigBlock, frozen=True, kw_only=True):
    attempts: int = 12
    backoff: Duration = 250_000_000
    max_backoff: Duration = _M


class Wait(ConfigBlock, frozen=True, kw_only=True):
    min: Duration = 5 * _S
    max: Duration = 4 * _M


class ClientTemplate(ConfigBlock, frozen=True, kw_only=True):
    function_denylist: list[str] = msgspec.field(
        default_factory=lambda: ["executeTemplate", "plugin", "writeToFile"]
    )
    function_blacklist: list[str] = []
    disable_file_sandbox: bool = False
    max_stale: Duration = 87_600 * _H
    block_query_wait: Duration = 5 * _M
    wait: Wait = Wait()
    wait_bounds: Wait | None = None
    consul_retry: Retry = Retry()
    vault_retry: Retry = Retry()
    nomad_retry: Retry = Retry()
    vault_default_lease_duration: Duration = 5 * _M


class Client(ConfigBlock, frozen=True, kw_only=True):
    """Directories left "" lie below data_dir (load.py fills them in)."""

    enabled: bool = False
    state_dir: str = ""
    alloc_dir: str = ""
    alloc_mounts_dir: str = ""
    host_volumes_dir: str = ""
    host_volume_plugin_dir: str = ""
    common_plugin_dir: str = ""
    servers: list[str] = []
    node_class: str = ""
    node_pool: str = "default"
    options: dict[str, str] = {}
    meta: dict[str, str] = {}
    chroot_env: dict[str, str] = {}
    network_interface: str = ""
    preferred_address_family: str = ""
    network_speed: int = 0
    cpu_disable_dmidecode: bool = False
    cpu_total_compute: int = 0
    memory_total_mb: int = 0
    disk_total_mb: int = 0
    disk_free_mb: int = 0
    reservable_cores: str = ""
    max_kill_timeout: Duration = 30 * _S
    client_max_port: int = 14_512
    client_min_port: int = 14_000
    max_dynamic_port: int = 32_000
    min_dynamic_port: int = 20_000
    reserved: Reserved = Reserved()
    gc_interval: Duration = _M
    gc_parallel_destroys: int = 2
    gc_disk_usage_threshold: float = 80.0
    gc_inode_usage_threshold: float = 70.0
    gc_max_allocs: int = 50
    gc_volumes_on_node_gc: bool = False
    no_host_uuid: bool = True
    disable_remote_exec: bool = False
    template: ClientTemplate = ClientTemplate()
    server_join: Join = Join()
    host_volume: dict[str, HostVolume] = {}
    cni_path: str = "/opt/cni/bin:/usr/libexec/cni"
    cni_config_dir: str = "/opt/cni/config"
    bridge_network_name: str = "nomad"
    bridge_network_subnet: str = "172.26.64.0/20"
    bridge_network_subnet_ipv6: str = ""
    bridge_network_hairpin_mode: bool = False
    host_network: dict[str, HostNetwork] = {}
    bind_wildcard_default_host_network: bool = True
    cgroup_parent: str = ""
    nomad_service_discovery: bool = True
    artifact: Artifact = Artifact()
    drain_on_shutdown: DrainOnShutdown | None = None
    users: Users = Users()
    node_max_allocs: int = 0
    log_file: str = ""
    fingerprint: dict[str, Fingerprint] = {}
    device: dict[str, Device] = {}
    device_plugin: dict[str, DevicePlugin] = {}
    default_ineligible: bool = False


class Acl(ConfigBlock, frozen=True, kw_only=True):
    enabled: bool = False
    token_ttl: Duration = 30 * _S
    policy_ttl: Duration = 30 * _S
    role_ttl: Duration = 30 * _S
    replication_token: str = ""
    token_min_expiration_ttl: Duration = _M
    token_max_expiration_ttl: Duration = 24 * _H


class Tls(ConfigBlock, frozen=True, kw_only=True):
    http: bool = False
    rpc: bool = False
    verify_server_hostname: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    rpc_upgrade_mode: bool = False
    verify_https_client: bool = False
    tls_cipher_suites: str = ""
    tls_min_version: str = "tls12"
    tls_prefer_server_cipher_suites: bool = False


class Telemetry(ConfigBlock, frozen=True, kw_only=True):
    in_memory_collection_interval: Duration = 10 * _S
    in_memory_retention_period: Duration = _M
    statsite_address: str = ""
    statsd_address: str = ""
    datadog_address: str = ""
    datadog_tags: list[str] = []
    prometheus_metrics: bool = False
    disable_hostname: bool = False
    use_node_name: bool = False
    collection_interval: Duration = _S
    publish_allocation_metrics: bool = False
    publish_node_metrics: bool = False
    include_alloc_metadata_in_metrics: bool = False
    allowed_metadata_keys_in_metrics: list[str] = []
    prefix_filter: list[str] = []
    filter_default: bool = True
    disable_dispatched_job_summary_metrics: bool = False
    disable_quota_utilization_metrics: bool = False
    disable_rpc_rate_metrics_labels: bool = False
    disable_allocation_hook_metrics: bool = False
    circonus_api_token: str = ""
    circonus_api_app: str = ""
    circonus_api_url: str = ""
    circonus_submission_interval: str = ""
    circonus_submission_url: str = ""
    circonus_check_id: str = ""
    circonus_check_force_metric_activation: str = ""
    circonus_check_instance_id: str = ""
    circonus_check_search_tag: str = ""
    circonus_check_tags: str = ""
    circonus_check_display_name: str = ""
    circonus_broker_id: str = ""
    circonus_broker_select_tag: str = ""


class Limits(ConfigBlock, frozen=True, kw_only=True):
    https_handshake_timeout: Duration = 5 * _S
    http_max_conns_per_client: int = 100
    rpc_handshake_timeout: Duration = 5 * _S
    rpc_max_conns_per_client: int = 100


class LocalStorage(ConfigBlock, frozen=True, kw_only=True):
    path: str = ""


class SnapshotAgent(ConfigBlock, frozen=True, kw_only=True):
    """Snapshots on a schedule, with the names of Nomad Enterprise's `operator snapshot agent`. On where a path is given."""

    interval: Duration = _H
    retain: int = 30
    prefix: str = "nomad"
    local_storage: LocalStorage = LocalStorage()


class Autopilot(ConfigBlock, frozen=True, kw_only=True):
    cleanup_dead_servers: bool = True
    server_stabilization_time: Duration = 10 * _S
    last_contact_threshold: Duration = 200_000_000
    max_trailing_logs: int = 250
    min_quorum: int = 0
    enable_redundancy_zones: bool = False
    disable_upgrade_migration: bool = False
    enable_custom_upgrades: bool = False


class Rpc(ConfigBlock, frozen=True, kw_only=True):
    accept_backlog: int = 256
    keep_alive_interval: Duration = 30 * _S
    connection_write_timeout: Duration = 10 * _S
    stream_open_timeout: Duration = 75 * _S
    stream_close_timeout: Duration = 5 * _M
    dial_timeout: Duration = 10 * _S


class UiLink(ConfigBlock, frozen=True, kw_only=True):
    ui_url: str = ""


class UiLabel(ConfigBlock, frozen=True, kw_only=True):
    text: str = ""
    background_color: str = ""
    text_color: str = ""


class UiSecurityPolicy(ConfigBlock, frozen=True, kw_only=True):
    connect_src: list[str] = msgspec.field(default_factory=lambda: ["*"])
    default_src: list[str] = msgspec.field(default_factory=lambda: ["'none'"])
    form_action: list[str] = msgspec.field(default_factory=lambda: ["'none'"])
    frame_ancestors: list[str] = msgspec.field(default_factory=lambda: ["'none'"])
    img_src: list[str] = msgspec.field(default_factory=lambda: ["'self'", "data:"])
    script_src: list[str] = msgspec.field(default_factory=lambda: ["'self'"])
    style_src: list[str] = msgspec.field(default_factory=lambda: ["'self'", "'unsafe-inline'"])


class Ui(ConfigBlock, frozen=True, kw_only=True):
    enabled: bool = True
    content_security_policy: UiSecurityPolicy = UiSecurityPolicy()
    consul: UiLink = UiLink()
    vault: UiLink = UiLink()
    label: UiLabel = UiLabel()
    show_cli_hints: bool = True


class Eventlog(ConfigBlock, frozen=True, kw_only=True):
    enabled: bool = False
    level: str = "error"


class Plugin(ConfigBlock, frozen=True, kw_only=True):
    """One driver's settings as written; the driver knows what they mean."""

    args: list[str] = []
    config: dict[str, Any] = {}
