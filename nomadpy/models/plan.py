"""What a scheduling pass means to do: the plan, and what the applier answers."""

from __future__ import annotations

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import Deployment
from nomadpy.models.evaluation import Evaluation


class JobRef(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a job, which state keeps; resolved when the plan is applied."""

    namespace: str
    job_id: str
    version: int


class AllocStop(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a plan does to an allocation that exists: stop or evict it, or mark it lost or unknown.

    desired_status: stop | evict | run (run with client_status unknown: a disconnected node).
    client_status: "" leaves it. followup_eval_id: "" leaves it.
    """

    alloc_id: str
    node_id: str
    desired_status: str = "stop"
    description: str = ""
    client_status: str = ""
    followup_eval_id: str = ""


class DeploymentStatusUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A new status for a deployment that exists."""

    deployment_id: str
    status: str
    description: str


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one evaluation wants changed, decided on a snapshot; nothing of it is true yet.

    job: the version that placements belong to; None when nothing is placed.
    placements: new allocations, and existing ones (same id) updated in place; `job` is None in each, unless it
    belongs to another version than `job`. indexes and times are filled in when applied.
    stops: allocations to stop. deployment: created or updated with the plan.
    evaluations: written in the same transaction, and only when the whole plan holds: the evaluation itself
    (complete), blocked and follow-up evaluations.
    """

    eval_id: str
    eval_token: str = ""
    priority: int = 50
    snapshot_index: int = 0
    all_at_once: bool = False
    job: JobRef | None = None
    placements: list[Allocation] = []
    stops: list[AllocStop] = []
    deployment: Deployment | None = None
    deployment_updates: list[DeploymentStatusUpdate] = []
    evaluations: list[Evaluation] = []


class PlanOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the applier answers. complete: all of the plan was committed, with its evaluations.

    Otherwise what held was committed, rejected_nodes were not, and the worker schedules again on a snapshot of at
    least refresh_index.
    """

    complete: bool
    index: int
    refresh_index: int = 0
    rejected_nodes: list[str] = []
