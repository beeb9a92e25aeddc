"""What a server needs to know to run; daemon.py fills it from the configuration."""

from __future__ import annotations

import msgspec

from nomadpy import __version__
from nomadpy.fsm.formats import OWN, Formats
from nomadpy.models.operator import PreemptionConfig

SCHEDULER_TYPES = ("service", "batch", "system", "sysbatch")


class SnapshotSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshots on a schedule: every so many seconds one into the folder `path`, of which the newest `retain` are kept."""

    path: str
    interval_s: float = 3600.0
    retain: int = 30
    prefix: str = "nomad"


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds. rpc_address and http_address are the advertised host:port.

    bootstrap_expect: how many servers form the first cluster. retry_join: rpc addresses to say hello to.
    heartbeat_*: see heartbeats.py. *_gc_*: how long dead things stay readable, and how often the sweep runs.
    root_key_*: see leader/key_rotation.py; root_key_rotation_s 0 never rotates a key by its age.
    task_certificate_ttl_s: life of a task's X.509 certificate. identity_ttl_s: 0 lets default identities live as
    long as their allocation. state_check_interval_s: see state_check.py; 0 never checks. version: Nomad's, whose wire this
    is; build: this software's own, with the formats of the log that it reads. scheduler_algorithm, preemption: used once,
    when the cluster is formed. plan_rejection_*: see leader/rejections.py; threshold 0 is off. fair_share: how namespaces
    take turns at the workers: weighted, dominant (by what each has of the cluster) or priority (fair to none).
    """

    id: str
    name: str
    region: str = "global"
    datacenter: str = "dc1"
    version: str = "0.1.0"
    build: str = __version__
    log_formats: Formats = OWN
    rpc_address: str
    http_address: str = ""
    bootstrap_expect: int = 1
    retry_join: list[str] = []
    retry_interval_s: float = 1.0
    schedulers: int = 1
    scheduler_types: tuple[str, ...] = SCHEDULER_TYPES
    heartbeat_grace_s: float = 10.0
    heartbeat_min_ttl_s: float = 10.0
    heartbeat_failover_ttl_s: float = 300.0
    heartbeats_per_second: float = 50.0
    gc_interval_s: float = 300.0
    eval_gc_s: float = 3600.0
    batch_eval_gc_s: float = 86_400.0
    job_gc_s: float = 14_400.0
    node_gc_s: float = 86_400.0
    deployment_gc_s: float = 3600.0
    root_key_gc_interval_s: float = 600.0
    root_key_gc_s: float = 3600.0
    root_key_rotation_s: float = 720 * 3600.0
    job_max_priority: int = 100
    job_max_source_bytes: int = 1_000_000
    task_certificate_ttl_s: float = 86_400.0
    leader_wait_s: float = 8.0
    scheduler_algorithm: str = "binpack"
    preemption: PreemptionConfig = PreemptionConfig(system_scheduler_enabled=True)
    plan_rejection_threshold: int = 0
    plan_rejection_window_s: float = 300.0
    fair_share: str = "weighted"
    namespace_weights: dict[str, float] = {}
    state_check_interval_s: float = 300.0
    snapshots: SnapshotSettings | None = None

    @property
    def member_name(self) -> str:
        """The name members show: node and region."""
        return f"{self.name}.{self.region}"
