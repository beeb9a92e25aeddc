"""Allocations: one task group on one node, wanted and observed."""

from __future__ import annotations

import msgspec

from nomadpy.models.base import ZERO_TIME, Duration, Time, Wire, always
from nomadpy.models.job import Job
from nomadpy.models.resources import AllocatedResources, DNSConfig, Resources


class NodeScoreMeta(Wire, frozen=True, kw_only=True):
    node_id: str = ""
    scores: dict[str, float] | None = None
    norm_score: float = 0.0


class AllocationMetric(Wire, frozen=True, kw_only=True):
    nodes_evaluated: int = 0
    nodes_filtered: int = 0
    nodes_in_pool: int = 0
    node_pool: str = ""
    nodes_available: dict[str, int] | None = None
    class_filtered: dict[str, int] | None = None
    constraint_filtered: dict[str, int] | None = None
    nodes_exhausted: int = 0
    class_exhausted: dict[str, int] | None = None
    dimension_exhausted: dict[str, int] | None = None
    quota_exhausted: list[str] | None = None
    resources_exhausted: dict[str, Resources] | None = None
    scores: dict[str, float] | None = None
    allocation_time: Duration = 0
    coalesced_failures: int = 0
    score_meta_data: list[NodeScoreMeta] | None = None


class DesiredTransition(Wire, frozen=True, kw_only=True):
    migrate: bool | None = None
    reschedule: bool | None = None
    force_reschedule: bool | None = None
    no_shutdown_delay: bool | None = None
    migrate_disable_placement: bool | None = None


class TaskEvent(Wire, frozen=True, kw_only=True, omit_defaults=True):
    type: str = always(lambda: "")
    time: int = always(lambda: 0)
    display_message: str = always(lambda: "")
    details: dict[str, str] | None = always(lambda: None)
    message: str = always(lambda: "")
    fails_task: bool = always(lambda: False)
    restart_reason: str = always(lambda: "")
    setup_error: str = always(lambda: "")
    driver_error: str = always(lambda: "")
    driver_message: str = always(lambda: "")
    exit_code: int = always(lambda: 0)
    signal: int = always(lambda: 0)
    kill_reason: str = always(lambda: "")
    kill_timeout: Duration = always(lambda: 0)
    kill_error: str = always(lambda: "")
    start_delay: int = always(lambda: 0)
    download_error: str = always(lambda: "")
    validation_error: str = always(lambda: "")
    disk_limit: int = always(lambda: 0)
    disk_size: int = 0
    failed_sibling: str = always(lambda: "")
    vault_error: str = always(lambda: "")
    task_signal_reason: str = always(lambda: "")
    task_signal: str = always(lambda: "")
    generic_source: str = always(lambda: "")


class TaskState(Wire, frozen=True, kw_only=True):
    state: str = ""
    failed: bool = False
    restarts: int = 0
    last_restart: Time | None = None
    started_at: Time = ZERO_TIME
    finished_at: Time | None = None
    events: list[TaskEvent] | None = None
    paused: str = ""


class AllocDeploymentStatus(Wire, frozen=True, kw_only=True):
    """healthy: None while it is undecided."""

    healthy: bool | None = None
    timestamp: Time = ZERO_TIME
    canary: bool = False
    modify_index: int = 0


class RescheduleEvent(Wire, frozen=True, kw_only=True):
    reschedule_time: int = 0
    prev_alloc_id: str = ""
    prev_node_id: str = ""


class RescheduleTracker(Wire, frozen=True, kw_only=True):
    events: list[RescheduleEvent] | None = None
    last_reschedule: str = ""


class AllocNetworkStatus(Wire, frozen=True, kw_only=True):
    interface_name: str = ""
    address: str = ""
    address_ipv6: str = msgspec.field(default="", name="AddressIPv6")
    dns: DNSConfig | None = None


class Allocation(Wire, frozen=True, kw_only=True, omit_defaults=True):
    id: str = always(lambda: "")
    namespace: str = always(lambda: "")
    eval_id: str = always(lambda: "")
    name: str = always(lambda: "")
    node_id: str = always(lambda: "")
    node_name: str = always(lambda: "")
    job_id: str = always(lambda: "")
    job: Job | None = always(lambda: None)
    task_group: str = always(lambda: "")
    resources: Resources | None = always(lambda: None)
    task_resources: dict[str, Resources] | None = always(lambda: None)
    allocated_resources: AllocatedResources | None = always(lambda: None)
    metrics: AllocationMetric | None = always(lambda: None)
    desired_status: str = always(lambda: "")
    desired_description: str = ""
    desired_transition: DesiredTransition | None = None
    client_status: str = always(lambda: "")
    client_description: str = always(lambda: "")
    task_states: dict[str, TaskState] | None = always(lambda: None)
    deployment_id: str = ""
    deployment_status: AllocDeploymentStatus | None = None
    followup_eval_id: str = ""
    previous_allocation: str = ""
    next_allocation: str = ""
    reschedule_tracker: RescheduleTracker | None = None
    network_status: AllocNetworkStatus | None = always(lambda: None)
    preempted_allocations: list[str] | None = None
    preempted_by_allocation: str = ""
    create_index: int = always(lambda: 0)
    modify_index: int = always(lambda: 0)
    alloc_modify_index: int = always(lambda: 0)
    create_time: int = always(lambda: 0)
    modify_time: int = always(lambda: 0)
    shared_resources: Resources | None = always(lambda: None)
    signing_key_id: str = always(lambda: "")


class AllocationListStub(Wire, frozen=True, kw_only=True, omit_defaults=True):
    id: str = always(lambda: "")
    eval_id: str = always(lambda: "")
    name: str = always(lambda: "")
    namespace: str = always(lambda: "")
    node_id: str = always(lambda: "")
    node_name: str = always(lambda: "")
    job_id: str = always(lambda: "")
    job_type: str = always(lambda: "")
    job_version: int = always(lambda: 0)
    task_group: str = always(lambda: "")
    allocated_resources: AllocatedResources | None = None
    desired_status: str = always(lambda: "")
    desired_description: str = always(lambda: "")
    client_status: str = always(lambda: "")
    client_description: str = always(lambda: "")
    task_states: dict[str, TaskState] | None = always(lambda: None)
    deployment_status: AllocDeploymentStatus | None = always(lambda: None)
    followup_eval_id: str = always(lambda: "")
    next_allocation: str = always(lambda: "")
    reschedule_tracker: RescheduleTracker | None = always(lambda: None)
    preempted_allocations: list[str] | None = always(lambda: None)
    preempted_by_allocation: str = always(lambda: "")
    create_index: int = always(lambda: 0)
    modify_index: int = always(lambda: 0)
    create_time: int = always(lambda: 0)
    modify_time: int = always(lambda: 0)
    desired_transition: DesiredTransition = always(DesiredTransition)
