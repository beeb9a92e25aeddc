"""What a scheduling pass decides, and the evaluations it writes about it."""

from __future__ import annotations

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models.allocation import AllocationMetric
from nomadpy.models.annotations import PlanAnnotations
from nomadpy.models.base import ZERO_TIME
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.plan import Plan

BLOCKED_PLACEMENTS = "created to place remaining allocations"
BLOCKED_ATTEMPTS = "created due to placement conflicts"
MAX_ATTEMPTS_REACHED = "maximum attempts reached ({})"
DELAYED_RESCHEDULING = "created for delayed rescheduling"
DISCONNECT_TIMEOUT = "created for delayed disconnect timeout"

MAX_PLAN_ATTEMPTS = {"service": 5, "batch": 2, "system": 5, "sysbatch": 2}


class Decision(msgspec.Struct):
    """What one evaluation leads to.

    plan: None when no allocation and no deployment changes; then the worker writes `evaluations` itself, else they
    are in the plan. evaluations: the evaluation itself as it ends, and those made by it. queued: per group, how many
    allocations found no node.
    """

    plan: Plan | None
    evaluations: list[Evaluation]
    annotations: PlanAnnotations
    failed_tg_allocs: dict[str, AllocationMetric]
    queued: dict[str, int]

    @property
    def created(self) -> list[Evaluation]:
        """The evaluations made by the pass: blocked and follow-up ones."""
        return self.evaluations[1:]


class ClassEligibility(msgspec.Struct, frozen=True):
    """Which computed classes of nodes could take what found no node; escaped: classes cannot tell."""

    classes: dict[str, bool]
    escaped: bool


def blocked(
    evaluation: Evaluation,
    eligibility: ClassEligibility,
    failed: dict[str, AllocationMetric],
    *,
    snapshot_index: int,
    now_ns: int,
    entropy: Entropy,
) -> Evaluation:
    """Return a new evaluation that waits for capacity for what `evaluation` could not place."""
    return Evaluation(
        id=entropy.uuid(),
        priority=evaluation.priority,
        type=evaluation.type,
        triggered_by="queued-allocs",
        namespace=evaluation.namespace,
        job_id=evaluation.job_id,
        job_modify_index=evaluation.job_modify_index,
        status="blocked",
        status_description=BLOCKED_PLACEMENTS,
        previous_eval=evaluation.id,
        failed_tg_allocs=failed or None,
        class_eligibility=None if eligibility.escaped else eligibility.classes or None,
        escaped_computed_class=eligibility.escaped,
        snapshot_index=snapshot_index,
        create_time=now_ns,
        modify_time=now_ns,
    )


def reblocked(
    evaluation: Evaluation,
    eligibility: ClassEligibility,
    failed: dict[str, AllocationMetric],
    *,
    snapshot_index: int,
    now_ns: int,
) -> Evaluation:
    """Return an evaluation that was blocked, woken, and must go on waiting."""
    return msgspec.structs.replace(
        evaluation,
        status="blocked",
        status_description=BLOCKED_PLACEMENTS,
        failed_tg_allocs=failed or None,
        class_eligibility=None if eligibility.escaped else eligibility.classes or None,
        escaped_computed_class=eligibility.escaped,
        snapshot_index=snapshot_index,
        modify_time=now_ns,
    )


def follow_up(
    evaluation: Evaluation,
    *,
    trigger: str,
    description: str,
    wait_until: str,
    job_modify_index: int,
    snapshot_index: int,
    now_ns: int,
    entropy: Entropy,
) -> Evaluation:
    """Return a pending evaluation of the same job that is due at `wait_until` (RFC 3339; the zero time is at once)."""
    return Evaluation(
        id=entropy.uuid(),
        priority=evaluation.priority,
        type=evaluation.type,
        triggered_by=trigger,
        namespace=evaluation.namespace,
        job_id=evaluation.job_id,
        job_modify_index=job_modify_index,
        status="pending",
        status_description=description,
        wait_until=wait_until or ZERO_TIME,
        previous_eval=evaluation.id,
        snapshot_index=snapshot_index,
        create_time=now_ns,
        modify_time=now_ns,
    )


def failed(
    evaluation: Evaluation, description: str, *, now_ns: int, next_eval: str = ""
) -> Evaluation:
    """Return the evaluation as failed, for `description`; next_eval: what goes on in its place."""
    return msgspec.structs.replace(
        evaluation,
        status="failed",
        status_description=description,
        next_eval=next_eval or evaluation.next_eval,
        modify_time=now_ns,
    )


def attempts_exhausted(
    evaluation: Evaluation, *, snapshot_index: int, now_ns: int, entropy: Entropy
) -> list[Evaluation]:
    """Return the evaluation as failed because its plans kept being refused, and the blocked one that tries later.

    The blocked one has no class eligibility, so any change of capacity wakes it.
    """
    attempts = MAX_PLAN_ATTEMPTS.get(evaluation.type, 5)
    again = msgspec.structs.replace(
        blocked(
            evaluation,
            ClassEligibility({}, escaped=True),
            {},
            snapshot_index=snapshot_index,
            now_ns=now_ns,
            entropy=entropy,
        ),
        triggered_by="max-plan-attempts",
        status_description=BLOCKED_ATTEMPTS,
    )
    ended = failed(evaluation, MAX_ATTEMPTS_REACHED.format(attempts), now_ns=now_ns)
    return [msgspec.structs.replace(ended, blocked_eval=again.id), again]
