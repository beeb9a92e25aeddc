from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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


classes = st.sampled_from(["c1", "c2", "c3", "c4"])
asleep_ones = st.lists(
    st.tuples(
        st.dictionaries(classes, st.booleans()),
        st.booleans(),
        st.sampled_from(["", "", "", "q1", "q2"]),
    ),
    max_size=20,
)


@given(waiting=asleep_ones, news=st.lists(st.tuples(st.booleans(), classes), max_size=6))
def test_exactly_those_are_woken_whom_the_news_may_help(
    waiting: list[tuple[dict[str, bool], bool, str]], news: list[tuple[bool, str]]
) -> None:
    blocked = BlockedEvals()
    blocked.set_enabled(True)
    asleep = {}
    for number, (eligible, escaped, quota) in enumerate(waiting):
        one = Evaluation(
            id=f"e{number}",
            job_id=f"job-{number}",
            status="blocked",
            snapshot_index=10,
            class_eligibility=eligible,
            escaped_computed_class=escaped,
            quota_limit_reached=quota,
        )
        assert blocked.block(one) is None
        asleep[one.id] = (eligible, escaped, quota)
    for index, (is_quota, name) in enumerate(news, 11):
        if is_quota:
            woken = blocked.unblock_quota("q1", index)
            helped = {one for one, (_, _, quota) in asleep.items() if quota == "q1"}
        else:
            woken = blocked.unblock(name, index)
            helped = {
                one
                for one, (eligible, escaped, quota) in asleep.items()
                if not quota and (escaped or eligible.get(name, True))
            }
        assert {one.id for one in woken} == helped
        for one in helped:
            del asleep[one]
    assert len(blocked) == len(asleep)


@given(waiting=asleep_ones, name=classes)
def test_news_that_came_before_the_blocking_are_not_missed(
    waiting: list[tuple[dict[str, bool], bool, str]], name: str
) -> None:
    blocked = BlockedEvals()
    blocked.set_enabled(True)
    blocked.unblock(name, 20)
    blocked.unblock_quota("q1", 20)
    for number, (eligible, escaped, quota) in enumerate(waiting):
        one = Evaluation(
            id=f"e{number}",
            job_id=f"job-{number}",
            snapshot_index=10,
            class_eligibility=eligible,
            escaped_computed_class=escaped,
            quota_limit_reached=quota,
        )
        helped = quota == "q1" if quota else escaped or eligible.get(name, True)
        assert (blocked.block(one) is one) == helped


def test_everybody_is_woken_when_the_rules_change() -> None:
    blocked = BlockedEvals()
    blocked.set_enabled(True)
    blocked.block(
        Evaluation(id="e", job_id="j", snapshot_index=10, class_eligibility={"c1": False})
    )
    assert [e.id for e in blocked.unblock_all(12)] == ["e"]
    late = Evaluation(id="f", job_id="j", snapshot_index=11, class_eligibility={"c1": False})
    assert blocked.block(late) is late
