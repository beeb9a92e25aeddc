"""What a scheduling pass decides, and the evaluations it writes about it."""

from __future__ import annotations

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models import gotime
from nomadpy.models.allocation import AllocationMetric
from nomadpy.models.annotations import PlanAnnotations
from nomadpy.models.base import ZERO_TIME
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.plan import Plan

BLOCKED_PLACEMENTS = "created to place remaining allocations"
BLOCKED_ATTEMPTS = "created due to placement conflicts"
DELAYED_RESCHEDULING = "created for delayed rescheduling"
DISCONNECT_TIMEOUT = "created for delayed disconnect timeout"


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
    evaluation: Evaluation,
    description: str,
    *,
    snapshot_index: int,
    now_ns: int,
    entropy: Entropy,
    follow_up_wait_ns: int = 0,
) -> list[Evaluation]:
    """Return the evaluation as failed, for `description`, and the one that tries again.

    With follow_up_wait_ns the latter is pending and due after that time (`failed-follow-up`): the evaluation itself was
    at fault. Without, its plans kept being refused, and the latter is blocked (`max-plan-attempts`) without class
    eligibility, so that any change of capacity wakes it.
    """
    if follow_up_wait_ns:
        again = msgspec.structs.replace(
            follow_up(
                evaluation,
                trigger="failed-follow-up",
                description="",
                wait_until=gotime.from_ns(now_ns + follow_up_wait_ns),
                job_modify_index=evaluation.job_modify_index,
                snapshot_index=snapshot_index,
                now_ns=now_ns,
                entropy=entropy,
            ),
            wait=follow_up_wait_ns,
        )
        link = {"next_eval": again.id}
    else:
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
        link = {"blocked_eval": again.id}
    ended = msgspec.structs.replace(
        evaluation,
        status="failed",
        status_description=description,
        modify_time=now_ns,
        **link,
    )
    return [ended, again]
