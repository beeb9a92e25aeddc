"""The request bodies of the API: what Nomad's Go structs of the same names take from JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.models.base import Duration, Wire
from nomadpy.models.host_volume import HostVolume
from nomadpy.models.job import Job, JobSubmission
from nomadpy.models.node import DrainSpec
from nomadpy.models.what_if import AddedNodes


class JobRegisterRequest(Wire, frozen=True, kw_only=True):
    """PUT /v1/jobs. The job is passed on raw; the server fills and checks it."""

    job: Job | None = None
    enforce_index: bool = False
    job_modify_index: int = 0
    policy_override: bool = False
    preserve_counts: bool = False
    preserve_resources: bool = False
    eval_priority: int = 0
    submission: JobSubmission | None = None
    namespace: str = ""
    region: str = ""


class JobPlanRequest(Wire, frozen=True, kw_only=True):
    job: Job | None = None
    diff: bool = False
    policy_override: bool = False
    namespace: str = ""
    region: str = ""


class JobValidateRequest(Wire, frozen=True, kw_only=True):
    job: Job | None = None
    namespace: str = ""
    region: str = ""


class EvalOptions(Wire, frozen=True, kw_only=True):
    force_reschedule: bool = False


class JobEvaluateRequest(Wire, frozen=True, kw_only=True):
    job_id: str = ""
    eval_options: EvalOptions = msgspec.field(default_factory=EvalOptions)
    namespace: str = ""


class JobRevertRequest(Wire, frozen=True, kw_only=True):
    job_id: str = ""
    job_version: int = 0
    tagged_version: str = ""
    enforce_prior_version: int | None = None
    namespace: str = ""


class JobStabilityRequest(Wire, frozen=True, kw_only=True):
    job_id: str = ""
    job_version: int = 0
    stable: bool = False
    namespace: str = ""


class TagVersionRequest(Wire, frozen=True, kw_only=True):
    version: int | None = None
    description: str = ""


class ScalingRequest(Wire, frozen=True, kw_only=True):
    """count None records an event only."""

    count: int | None = None
    target: dict[str, str] | None = None
    message: str = ""
    error: bool = False
    meta: dict[str, Any] | None = None
    policy_override: bool = False
    job_modify_index: int = 0
    namespace: str = ""


class JobStatusesJob(Wire, frozen=True, kw_only=True):
    namespace: str = ""
    id: str = ""


class JobStatusesRequest(Wire, frozen=True, kw_only=True):
    jobs: list[JobStatusesJob] | None = None
    include_children: bool = False


class NodeUpdateDrainRequest(Wire, frozen=True, kw_only=True):
    """drain_spec None ends a drain."""

    node_id: str = ""
    drain_spec: DrainSpec | None = None
    mark_eligible: bool = False
    meta: dict[str, str] | None = None


class NodeUpdateEligibilityRequest(Wire, frozen=True, kw_only=True):
    node_id: str = ""
    eligibility: str = ""


class NodeMetaApplyRequest(Wire, frozen=True, kw_only=True):
    """A null value removes the key, so the map is decoded as it is and checked by the handler."""

    node_id: str = ""
    meta: dict[str, Any] | None = None


class AllocationRestartRequest(Wire, frozen=True, kw_only=True):
    task_name: str = ""
    all_tasks: bool = False


class AllocSignalRequest(Wire, frozen=True, kw_only=True):
    task: str = ""
    signal: str = ""


class DeploymentFailRequest(Wire, frozen=True, kw_only=True):
    deployment_id: str = ""


class DeploymentPauseRequest(Wire, frozen=True, kw_only=True):
    deployment_id: str = ""
    pause: bool = False


class DeploymentPromoteRequest(Wire, frozen=True, kw_only=True):
    deployment_id: str = ""
    all: bool = False
    groups: list[str] | None = None


class HostVolumeRequest(Wire, frozen=True, kw_only=True):
    """PUT /v1/volume/host/create and /register."""

    volume: HostVolume | None = None
    policy_override: bool = False
    namespace: str = ""
    region: str = ""


class SimulateRequest(Wire, frozen=True, kw_only=True):
    nodes_down: list[str] | None = None
    nodes_drained: list[str] | None = None
    nodes_added: list[AddedNodes] | None = None
    jobs: list[Job] | None = None
    jobs_stopped: list[str] | None = None


class VariableLockRequest(Wire, frozen=True, kw_only=True):
    id: str = ""
    ttl: Duration | None = None
    lock_delay: Duration | None = None


class VariableRequest(Wire, frozen=True, kw_only=True):
    """PUT /v1/var/:path; the path is the URL's, whatever the body says."""

    namespace: str = ""
    items: dict[str, str] | None = None
    lock: VariableLockRequest | None = None

    def __repr__(self) -> str:
        """What may be logged: no items."""
        return f"VariableRequest({self.namespace!r})"


class SearchRequest(Wire, frozen=True, kw_only=True):
    prefix: str = ""
    context: str = ""
