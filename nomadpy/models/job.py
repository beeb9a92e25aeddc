"""Jobs, task groups and the policies that steer them."""

from __future__ import annotations

import msgspec

from nomadpy.models.base import Duration, Wire, always
from nomadpy.models.constraint import Affinity, Constraint, Spread
from nomadpy.models.resources import NetworkResource
from nomadpy.models.scaling import ScalingEvent, ScalingPolicy
from nomadpy.models.service import Service
from nomadpy.models.task import Task
from nomadpy.models.task_blocks import Consul, RestartPolicy


class CSIMountOptions(Wire, frozen=True, kw_only=True):
    fs_type: str = msgspec.field(default="", name="FSType")
    mount_flags: list[str] | None = None


class VolumeRequest(Wire, frozen=True, kw_only=True):
    name: str = ""
    type: str = ""
    source: str = ""
    read_only: bool = False
    sticky: bool = False
    access_mode: str = ""
    attachment_mode: str = ""
    mount_options: CSIMountOptions | None = None
    per_alloc: bool = False


class DisconnectStrategy(Wire, frozen=True, kw_only=True):
    lost_after: Duration | None = None
    stop_on_client_after: Duration | None = None
    replace: bool | None = None
    reconcile: str = ""


class ReschedulePolicy(Wire, frozen=True, kw_only=True):
    attempts: int = 0
    interval: Duration = 0
    delay: Duration = 0
    delay_function: str = ""
    max_delay: Duration = 0
    unlimited: bool = False


class EphemeralDisk(Wire, frozen=True, kw_only=True):
    sticky: bool = False
    migrate: bool = False
    size_mb: int = 0


class UpdateStrategy(Wire, frozen=True, kw_only=True):
    stagger: Duration = 0
    max_parallel: int = 0
    health_check: str = ""
    min_healthy_time: Duration = 0
    healthy_deadline: Duration = 0
    progress_deadline: Duration = 0
    canary: int = 0
    auto_revert: bool = False
    auto_promote: bool = False


class MigrateStrategy(Wire, frozen=True, kw_only=True):
    max_parallel: int = 0
    health_check: str = ""
    min_healthy_time: Duration = 0
    healthy_deadline: Duration = 0


class TaskGroup(Wire, frozen=True, kw_only=True):
    name: str = ""
    count: int = 0
    constraints: list[Constraint] | None = None
    affinities: list[Affinity] | None = None
    tasks: list[Task] | None = None
    spreads: list[Spread] | None = None
    volumes: dict[str, VolumeRequest] | None = None
    restart_policy: RestartPolicy | None = None
    disconnect: DisconnectStrategy | None = None
    reschedule_policy: ReschedulePolicy | None = None
    ephemeral_disk: EphemeralDisk | None = None
    update: UpdateStrategy | None = None
    migrate: MigrateStrategy | None = None
    networks: list[NetworkResource] | None = None
    meta: dict[str, str] | None = None
    services: list[Service] | None = None
    shutdown_delay: Duration | None = None
    max_run_duration: Duration | None = None
    stop_after_client_disconnect: Duration | None = None
    max_client_disconnect: Duration | None = None
    scaling: ScalingPolicy | None = None
    consul: Consul | None = None
    prevent_reschedule_on_lost: bool = False


class MultiregionStrategy(Wire, frozen=True, kw_only=True):
    max_parallel: int | None = None
    on_failure: str | None = None


class MultiregionRegion(Wire, frozen=True, kw_only=True):
    name: str = ""
    count: int | None = None
    datacenters: list[str] | None = None
    node_pool: str = ""
    meta: dict[str, str] | None = None


class Multiregion(Wire, frozen=True, kw_only=True):
    strategy: MultiregionStrategy | None = None
    regions: list[MultiregionRegion] | None = None


class PeriodicConfig(Wire, frozen=True, kw_only=True):
    enabled: bool = False
    spec: str = ""
    specs: list[str] | None = None
    spec_type: str = ""
    prohibit_overlap: bool = False
    time_zone: str = ""


class ParameterizedJobConfig(Wire, frozen=True, kw_only=True):
    payload: str = ""
    meta_required: list[str] | None = None
    meta_optional: list[str] | None = None


class JobUILink(Wire, frozen=True, kw_only=True):
    label: str = ""
    url: str = ""


class JobUIConfig(Wire, frozen=True, kw_only=True):
    description: str = ""
    links: list[JobUILink] | None = None


class JobVersionTag(Wire, frozen=True, kw_only=True):
    name: str = ""
    description: str = ""
    tagged_time: int = 0


class Job(Wire, frozen=True, kw_only=True, omit_defaults=True):
    region: str = always(lambda: "")
    namespace: str = always(lambda: "")
    id: str = always(lambda: "")
    name: str = always(lambda: "")
    type: str = always(lambda: "")
    priority: int = always(lambda: 0)
    all_at_once: bool = always(lambda: False)
    datacenters: list[str] | None = always(lambda: None)
    node_pool: str = always(lambda: "")
    constraints: list[Constraint] | None = always(lambda: None)
    affinities: list[Affinity] | None = always(lambda: None)
    task_groups: list[TaskGroup] | None = always(lambda: None)
    update: UpdateStrategy | None = always(lambda: None)
    multiregion: Multiregion | None = always(lambda: None)
    spreads: list[Spread] | None = always(lambda: None)
    periodic: PeriodicConfig | None = always(lambda: None)
    parameterized_job: ParameterizedJobConfig | None = always(lambda: None)
    reschedule: ReschedulePolicy | None = None
    migrate: MigrateStrategy | None = None
    meta: dict[str, str] | None = always(lambda: None)
    ui: JobUIConfig | None = always(lambda: None)
    stop: bool = always(lambda: False)
    parent_id: str = always(lambda: "")
    dispatched: bool = always(lambda: False)
    dispatch_idempotency_token: str = always(lambda: "")
    payload: bytes | None = always(lambda: None)
    consul_namespace: str = always(lambda: "")
    vault_namespace: str = always(lambda: "")
    nomad_token_id: str = always(lambda: "")
    status: str = always(lambda: "")
    status_description: str = always(lambda: "")
    stable: bool = always(lambda: False)
    version: int = always(lambda: 0)
    submit_time: int = always(lambda: 0)
    create_index: int = always(lambda: 0)
    modify_index: int = always(lambda: 0)
    job_modify_index: int = always(lambda: 0)
    version_tag: JobVersionTag | None = always(lambda: None)


class TaskGroupSummary(Wire, frozen=True, kw_only=True):
    queued: int = 0
    complete: int = 0
    failed: int = 0
    running: int = 0
    starting: int = 0
    lost: int = 0
    unknown: int = 0


class JobChildrenSummary(Wire, frozen=True, kw_only=True):
    pending: int = 0
    running: int = 0
    dead: int = 0


class JobSummary(Wire, frozen=True, kw_only=True):
    job_id: str = ""
    namespace: str = ""
    summary: dict[str, TaskGroupSummary] | None = None
    children: JobChildrenSummary | None = None
    create_index: int = 0
    modify_index: int = 0


class JobListStub(Wire, frozen=True, kw_only=True, omit_defaults=True):
    id: str = always(lambda: "")
    parent_id: str = always(lambda: "")
    name: str = always(lambda: "")
    namespace: str = always(lambda: "")
    datacenters: list[str] | None = always(lambda: None)
    type: str = always(lambda: "")
    priority: int = always(lambda: 0)
    periodic: bool = always(lambda: False)
    parameterized_job: bool = always(lambda: False)
    stop: bool = always(lambda: False)
    status: str = always(lambda: "")
    status_description: str = always(lambda: "")
    job_summary: JobSummary | None = always(lambda: None)
    create_index: int = always(lambda: 0)
    modify_index: int = always(lambda: 0)
    job_modify_index: int = always(lambda: 0)
    submit_time: int = always(lambda: 0)
    meta: dict[str, str] | None = None
    multiregion: Multiregion | None = always(lambda: None)
    node_pool: str = always(lambda: "")


class JobSubmission(Wire, frozen=True, kw_only=True):
    source: str = ""
    format: str = ""
    variable_flags: dict[str, str] | None = None
    variables: str = ""


class TaskGroupScaleStatus(Wire, frozen=True, kw_only=True):
    desired: int = 0
    placed: int = 0
    running: int = 0
    healthy: int = 0
    unhealthy: int = 0
    events: list[ScalingEvent] | None = None
