"""Bodies that answer writes and compound reads."""

from __future__ import annotations

from nomadpy.models.allocation import AllocationMetric
from nomadpy.models.annotations import PlanAnnotations
from nomadpy.models.base import Time, Wire
from nomadpy.models.diff import JobDiff
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, TaskGroupScaleStatus


class JobRegisterResponse(Wire, frozen=True, kw_only=True):
    eval_id: str = ""
    eval_create_index: int = 0
    job_modify_index: int = 0
    warnings: str = ""
    index: int = 0
    last_contact: int = 0
    known_leader: bool = False
    next_token: str = ""


class JobDeregisterResponse(Wire, frozen=True, kw_only=True):
    eval_id: str = ""
    eval_create_index: int = 0
    job_modify_index: int = 0
    volume_eval_id: str = ""
    volume_eval_index: int = 0
    index: int = 0
    last_contact: int = 0
    known_leader: bool = False
    next_token: str = ""


class JobPlanResponse(Wire, frozen=True, kw_only=True):
    job_modify_index: int = 0
    created_evals: list[Evaluation] | None = None
    diff: JobDiff | None = None
    annotations: PlanAnnotations | None = None
    failed_tg_allocs: dict[str, AllocationMetric] | None = None
    next_periodic_launch: Time | None = None
    warnings: str = ""
    index: int = 0


class JobValidateResponse(Wire, frozen=True, kw_only=True):
    driver_config_validated: bool = False
    validation_errors: list[str] | None = None
    error: str = ""
    warnings: str = ""


class JobVersionsResponse(Wire, frozen=True, kw_only=True):
    versions: list[Job] | None = None
    diffs: list[JobDiff] | None = None
    index: int = 0
    last_contact: int = 0
    known_leader: bool = False
    next_token: str = ""


class JobStabilityResponse(Wire, frozen=True, kw_only=True):
    index: int = 0


class JobDispatchResponse(Wire, frozen=True, kw_only=True):
    dispatched_job_id: str = ""
    eval_id: str = ""
    eval_create_index: int = 0
    job_create_index: int = 0
    index: int = 0


class JobScaleStatusResponse(Wire, frozen=True, kw_only=True):
    job_id: str = ""
    namespace: str = ""
    job_create_index: int = 0
    job_modify_index: int = 0
    job_stopped: bool = False
    task_groups: dict[str, TaskGroupScaleStatus] | None = None


class AllocStopResponse(Wire, frozen=True, kw_only=True):
    eval_id: str = ""
    index: int = 0


class DeploymentUpdateResponse(Wire, frozen=True, kw_only=True):
    eval_id: str = ""
    eval_create_index: int = 0
    deployment_modify_index: int = 0
    reverted_job_version: int | None = None
    index: int = 0


class EvalCountResponse(Wire, frozen=True, kw_only=True):
    count: int = 0
    index: int = 0
    last_contact: int = 0
    known_leader: bool = False
    next_token: str = ""


class NodeDrainUpdateResponse(Wire, frozen=True, kw_only=True):
    node_modify_index: int = 0
    eval_ids: list[str] | None = None
    eval_create_index: int = 0
    index: int = 0


class NodeEligibilityUpdateResponse(Wire, frozen=True, kw_only=True):
    node_modify_index: int = 0
    eval_ids: list[str] | None = None
    eval_create_index: int = 0
    index: int = 0


class SearchResponse(Wire, frozen=True, kw_only=True):
    matches: dict[str, list[str] | None] | None = None
    truncations: dict[str, bool] | None = None
    index: int = 0
    last_contact: int = 0
    known_leader: bool = False
    next_token: str = ""
