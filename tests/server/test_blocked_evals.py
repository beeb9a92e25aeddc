from __future__ import annotations

from nomadpy.models.evaluation import Evaluation
from nomadpy.server.leader.blocked_evals import BlockedEvals


def blocked(job: str, classes: dict[str, bool] | None = None, **more: object) -> Evaluation:
    return Evaluation(
        id=f"eval-{job}",
        namespace="default",
        job_id=job,
        type="service",
        status="blocked",
        class_eligibility=classes,
        snapshot_index=10,
        **more,  # type: ignore[arg-type]
    )


def parked(*evaluations: Evaluation) -> BlockedEvals:
    made = BlockedEvals()
    made.set_enabled(True)
    for one in evaluations:
        assert made.block(one) is None
    return made


def jobs(evaluations: list[Evaluation]) -> list[str]:
    return [e.job_id for e in evaluations]


def test_room_on_an_eligible_class_wakes_and_on_an_ineligible_one_does_not() -> None:
    waiting = parked(blocked("a", {"big": True}), blocked("b", {"big": False}))
    assert jobs(waiting.unblock("big", 11)) == ["a"]
    assert len(waiting) == 1


def test_a_class_never_seen_wakes() -> None:
    assert jobs(parked(blocked("a", {"big": False})).unblock("new", 11)) == ["a"]


def test_constraints_that_escape_classes_wake_on_any_room() -> None:
    waiting = parked(blocked("a", {"big": False}, escaped_computed_class=True))
    assert jobs(waiting.unblock("big", 11)) == ["a"]


def test_room_that_came_between_snapshot_and_blocking_is_not_missed() -> None:
    waiting = parked()
    waiting.unblock("big", 12)
    late = blocked("a", {"big": True})
    assert waiting.block(late) is late


def test_room_older_than_the_snapshot_does_not_wake() -> None:
    waiting = parked()
    waiting.unblock("big", 9)
    assert waiting.block(blocked("a", {"big": True})) is None


def test_a_job_has_one_blocked_evaluation_and_an_untracked_one_is_forgotten() -> None:
    waiting = parked(blocked("a"), blocked("a"))
    assert len(waiting) == 1
    waiting.untrack("default", "a")
    assert waiting.unblock("any", 20) == []


def test_losers_of_plan_races_are_woken_apart() -> None:
    waiting = parked(blocked("a", triggered_by="max-plan-attempts"), blocked("b"))
    assert jobs(waiting.unblock_failed()) == ["a"]
