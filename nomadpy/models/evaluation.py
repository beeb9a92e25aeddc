"""Evaluations: requests to the scheduler to look at a job."""

from __future__ import annotations

from nomadpy.models.allocation import AllocationMetric
from nomadpy.models.annotations import PlanAnnotations
from nomadpy.models.base import ZERO_TIME, Duration, Time, Wire, always


class EvaluationStub(Wire, frozen=True, kw_only=True):
    id: str = ""
    priority: int = 0
    type: str = ""
    triggered_by: str = ""
    namespace: str = ""
    job_id: str = ""
    node_id: str = ""
    deployment_id: str = ""
    status: str = ""
    status_description: str = ""
    wait_until: Time = ZERO_TIME
    next_eval: str = ""
    previous_eval: str = ""
    blocked_eval: str = ""
    create_index: int = 0
    modify_index: int = 0
    create_time: int = 0
    modify_time: int = 0


class Evaluation(Wire, frozen=True, kw_only=True, omit_defaults=True):
    id: str = always(lambda: "")
    priority: int = always(lambda: 0)
    type: str = always(lambda: "")
    triggered_by: str = always(lambda: "")
    namespace: str = always(lambda: "")
    job_id: str = always(lambda: "")
    job_modify_index: int = 0
    node_id: str = ""
    node_modify_index: int = 0
    deployment_id: str = ""
    status: str = always(lambda: "")
    status_description: str = ""
    wait: Duration = 0
    wait_until: Time = ZERO_TIME
    next_eval: str = ""
    previous_eval: str = ""
    blocked_eval: str = ""
    related_evals: list[EvaluationStub] | None = None
    failed_tg_allocs: dict[str, AllocationMetric] | None = None
    plan_annotations: PlanAnnotations | None = None
    class_eligibility: dict[str, bool] | None = None
    escaped_computed_class: bool = False
    quota_limit_reached: str = ""
    missing_non_node_resources: list[str] | None = None
    annotate_plan: bool = False
    queued_allocations: dict[str, int] | None = None
    snapshot_index: int = 0
    create_index: int = 0
    modify_index: int = 0
    create_time: int = always(lambda: 0)
    modify_time: int = always(lambda: 0)
