"""Failed allocations: whether, when and where they are replaced."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling_world import SECOND, START, World, make_group, make_job, make_node

from nomadpy.models.allocation import Allocation, RescheduleEvent, RescheduleTracker
from nomadpy.models.annotations import DesiredUpdates
from nomadpy.models.gotime import from_ns, to_ns
from nomadpy.models.job import Job, ReschedulePolicy
from nomadpy.scheduler.reschedule import next_reschedule

DAY = 86_400 * SECOND


def cluster() -> World:
    world = World()
    world.add_nodes(*[make_node(name) for name in "abc"])
    return world


def batch(attempts: int = 1, interval: int = DAY, delay: int = 5 * SECOND) -> Job:
    policy = ReschedulePolicy(
        attempts=attempts, interval=interval, delay=delay, delay_function="constant"
    )
    return make_job("once", make_group(reschedule_policy=policy), type="batch")


def fail(world: World, job: Job) -> Allocation:
    (alloc,) = world.live(job)
    world.report(alloc, status="failed")
    now = world.snapshot.alloc(alloc.id)
    assert now is not None
    return now


def test_a_failure_is_replaced_after_its_delay_by_a_follow_up() -> None:
    """The words and links are the recorded ones (batch, failed-evaluations)."""
    world = cluster()
    job = batch()
    world.deploy(job)
    broken = fail(world, job)
    decision = world.run(job, "alloc-failure")
    ended, later = decision.evaluations
    assert decision.annotations.desired_tg_updates == {
        "group": DesiredUpdates(ignore=1, reschedule_later=1)
    }
    assert (later.triggered_by, later.status) == ("alloc-reschedule", "pending")
    assert later.status_description == "created for delayed rescheduling"
    assert later.wait_until == from_ns(world.now + 5 * SECOND)
    assert (ended.next_eval, later.previous_eval) == (later.id, ended.id)
    waiting = world.snapshot.alloc(broken.id)
    assert waiting is not None
    assert (waiting.followup_eval_id, waiting.desired_status) == (later.id, "run")
    assert world.run(job, "node-update").plan is None

    world.now += 5 * SECOND
    decision = world.decide(later)
    world.apply(decision)
    assert decision.annotations.desired_tg_updates == {
        "group": DesiredUpdates(place=1, stop=1, reschedule_now=1)
    }
    (replacement,) = world.live(job)
    assert (replacement.previous_allocation, replacement.name) == (broken.id, broken.name)
    assert replacement.reschedule_tracker is not None
    assert replacement.reschedule_tracker.events == [
        RescheduleEvent(
            reschedule_time=world.now, prev_alloc_id=broken.id, prev_node_id=broken.node_id
        )
    ]
    over = world.snapshot.alloc(broken.id)
    assert over is not None
    assert over.desired_description == "alloc was rescheduled because it failed"


def test_the_replacement_avoids_the_node_where_it_failed() -> None:
    world = cluster()
    job = batch(attempts=2, delay=0)
    world.deploy(job)
    seen = []
    for _ in range(2):
        seen.append(fail(world, job).node_id)
        world.run(job, "alloc-failure")
    seen.append(world.live(job)[0].node_id)
    assert len(set(seen)) == 3


def test_the_only_node_is_used_again() -> None:
    world = World()
    world.add_nodes(make_node("a"))
    job = batch(delay=0)
    world.deploy(job)
    fail(world, job)
    world.run(job, "alloc-failure")
    (replacement,) = world.live(job)
    assert replacement.metrics is not None
    (score,) = replacement.metrics.score_meta_data or []
    assert (score.scores or {})["node-reschedule-penalty"] == -1.0


def test_when_the_attempts_are_used_up_a_failure_stays() -> None:
    world = cluster()
    job = batch(delay=0)
    world.deploy(job)
    fail(world, job)
    world.run(job, "alloc-failure")
    fail(world, job)
    assert world.run(job, "alloc-failure").plan is None
    assert world.live(job) == []


def test_attempts_outside_the_interval_are_forgotten() -> None:
    world = cluster()
    job = batch(attempts=1, interval=100 * SECOND, delay=0)
    world.deploy(job)
    for _ in range(4):
        world.now += 101 * SECOND
        fail(world, job)
        world.run(job, "alloc-failure")
        assert len(world.live(job)) == 1


def test_without_a_policy_nothing_is_replaced() -> None:
    world = cluster()
    job = make_job("web", make_group(reschedule_policy=None))
    world.deploy(job)
    fail(world, job)
    world.now += DAY
    assert world.run(job, "alloc-failure").plan is None


def test_forced_rescheduling_does_not_wait_or_count() -> None:
    world = cluster()
    job = batch(attempts=0)
    world.deploy(job)
    broken = fail(world, job)
    world.transition([broken], force_reschedule=True)
    world.run(job, "job-register")
    assert len(world.live(job)) == 1
    assert world.run(job).plan is None


def test_failures_of_one_moment_share_a_follow_up() -> None:
    world = cluster()
    job = make_job("web", make_group(count=3))
    world.deploy(job)
    first, second, third = world.live(job)
    world.report(first, status="failed")
    world.now += 2 * SECOND
    world.report(second, status="failed")
    world.now += 10 * SECOND
    world.report(third, status="failed")
    made = world.run(job, "alloc-failure").evaluations[1:]
    assert len(made) == 2
    follows = [world.snapshot.alloc(a.id).followup_eval_id for a in (first, second, third)]  # type: ignore[union-attr]
    assert follows == [made[0].id, made[0].id, made[1].id]


def failing(times: list[int], failed_at: int) -> Allocation:
    events = [RescheduleEvent(reschedule_time=START + at * SECOND) for at in times]
    return Allocation(
        id="x",
        client_status="failed",
        modify_time=START + failed_at * SECOND,
        reschedule_tracker=RescheduleTracker(events=events),
    )


@pytest.mark.parametrize(
    ("function", "times", "failed_at", "delay"),
    [
        ("constant", [], 0, 10),
        ("constant", [1, 2, 3], 4, 10),
        ("exponential", [], 0, 10),
        ("exponential", [10], 12, 20),
        ("exponential", [10, 40], 45, 40),
        ("exponential", [10, 40, 90, 180], 190, 100),
        ("fibonacci", [], 0, 10),
        ("fibonacci", [10], 12, 10),
        ("fibonacci", [10, 22], 25, 20),
        ("fibonacci", [10, 22, 45], 50, 30),
        # It ran for longer than max_delay, so it begins anew.
        ("exponential", [10, 40], 200, 10),
        ("exponential", [10, 40, 500], 510, 20),
    ],
)
def test_delays_grow_and_start_anew(
    function: str, times: list[int], failed_at: int, delay: int
) -> None:
    policy = ReschedulePolicy(
        delay=10 * SECOND, delay_function=function, max_delay=100 * SECOND, unlimited=True
    )
    found = next_reschedule(failing(times, failed_at), policy)
    assert found.eligible
    assert found.when_ns == START + (failed_at + delay) * SECOND


@given(
    st.lists(st.integers(0, 10**7), max_size=60),
    st.integers(0, 10**7),
    st.sampled_from(["constant", "exponential", "fibonacci", "other"]),
)
def test_a_delay_lies_between_the_first_and_the_longest(
    times: list[int], failed_at: int, function: str
) -> None:
    policy = ReschedulePolicy(
        delay=5 * SECOND, delay_function=function, max_delay=3600 * SECOND, unlimited=True
    )
    found = next_reschedule(failing(sorted(times), failed_at), policy)
    delay = found.when_ns - START - failed_at * SECOND
    assert 5 * SECOND <= delay <= 3600 * SECOND


def test_a_malformed_time_from_a_client_counts_as_none() -> None:
    alloc = failing([], 5)
    raw = json.loads(msgspec.json.encode(alloc))
    raw["TaskStates"] = {"task": {"State": "dead", "FinishedAt": "yesterday"}}
    spoilt = msgspec.convert(raw, Allocation)
    policy = ReschedulePolicy(delay=SECOND, delay_function="constant", unlimited=True)
    assert next_reschedule(spoilt, policy).when_ns == START + 6 * SECOND
    assert to_ns(from_ns(START)) == START
