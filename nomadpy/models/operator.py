"""Cluster-wide settings and the health of the servers."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.models.base import ZERO_TIME, Time, Wire, always

BINPACK = "binpack"
SPREAD = "spread"
BALANCED = "balanced"
GPU_AWARE = "gpu-aware"
SCHEDULER_ALGORITHMS = (BINPACK, SPREAD, BALANCED, GPU_AWARE)
"""How nodes are ranked. The first two are Nomad's, the others this product's own."""


class PreemptionConfig(Wire, frozen=True, kw_only=True):
    system_scheduler_enabled: bool = False
    sys_batch_scheduler_enabled: bool = False
    batch_scheduler_enabled: bool = False
    service_scheduler_enabled: bool = False


class SchedulerConfiguration(Wire, frozen=True, kw_only=True):
    scheduler_algorithm: str = ""
    preemption_config: PreemptionConfig = msgspec.field(default_factory=PreemptionConfig)
    memory_oversubscription_enabled: bool = False
    reject_job_registration: bool = False
    pause_eval_broker: bool = False
    node_limit_for_feasibility_checks: int = 0
    create_index: int = 0
    modify_index: int = 0


class SchedulerConfigurationResponse(Wire, frozen=True, kw_only=True):
    scheduler_config: SchedulerConfiguration | None = None
    index: int = 0
    last_contact: int = 0
    known_leader: bool = False
    next_token: str = ""


class SchedulerSetConfigurationResponse(Wire, frozen=True, kw_only=True):
    updated: bool = False
    index: int = 0


class RaftServer(Wire, frozen=True, kw_only=True):
    id: str = ""
    node: str = ""
    address: str = ""
    leader: bool = False
    voter: bool = False
    raft_protocol: str = ""


class RaftConfiguration(Wire, frozen=True, kw_only=True):
    servers: list[RaftServer] | None = None
    index: int = 0


class AutopilotConfiguration(Wire, frozen=True, kw_only=True):
    cleanup_dead_servers: bool = False
    last_contact_threshold: str = ""
    max_trailing_logs: int = 0
    min_quorum: int = 0
    server_stabilization_time: str = ""
    enable_redundancy_zones: bool = False
    disable_upgrade_migration: bool = False
    enable_custom_upgrades: bool = False
    create_index: int = 0
    modify_index: int = 0


class ServerHealth(Wire, frozen=True, kw_only=True):
    id: str = ""
    name: str = ""
    address: str = ""
    serf_status: str = ""
    version: str = ""
    leader: bool = False
    last_contact: str = ""
    last_term: int = 0
    last_index: int = 0
    healthy: bool = False
    voter: bool = False
    stable_since: Time = ZERO_TIME


class OperatorHealthReply(Wire, frozen=True, kw_only=True):
    healthy: bool = False
    failure_tolerance: int = 0
    servers: list[ServerHealth] | None = None
    leader: str = ""
    voters: list[str] | None = None


class RootKeyMeta(Wire, frozen=True, kw_only=True):
    key_id: str = ""
    algorithm: str = ""
    create_time: int = 0
    create_index: int = 0
    modify_index: int = 0
    state: str = ""
    publish_time: int = 0


class AgentMember(Wire, frozen=True, kw_only=True):
    name: str = ""
    addr: str = ""
    port: int = 0
    tags: dict[str, str] | None = None
    status: str = ""
    protocol_min: int = 0
    protocol_max: int = 0
    protocol_cur: int = 0
    delegate_min: int = 0
    delegate_max: int = 0
    delegate_cur: int = 0


class ServerMembers(Wire, frozen=True, kw_only=True):
    server_name: str = ""
    server_region: str = ""
    server_dc: str = msgspec.field(default="", name="ServerDC")
    members: list[AgentMember] | None = None


class AgentSelf(Wire, frozen=True, kw_only=True):
    config: dict[str, Any] | None = msgspec.field(default=None, name="config")
    member: AgentMember = msgspec.field(default_factory=AgentMember, name="member")
    stats: dict[str, dict[str, str] | None] | None = msgspec.field(default=None, name="stats")


class AgentHealth(Wire, frozen=True, kw_only=True):
    ok: bool = msgspec.field(default=False, name="ok")
    message: str = msgspec.field(default="", name="message")


class AgentHealthResponse(Wire, frozen=True, kw_only=True, omit_defaults=True):
    client: AgentHealth | None = msgspec.field(default=None, name="client")
    server: AgentHealth | None = always(lambda: None, name="server")
