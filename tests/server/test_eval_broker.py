"""The broker as a value: time is a number that the tests choose."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nomadpy.models.evaluation import Evaluation
from nomadpy.models.gotime import from_ns
from nomadpy.server.leader.eval_broker import EvalBroker

TYPES = ["service", "batch"]


def evaluation(number: int, job: str = "", *, priority: int = 50, **more: object) -> Evaluation:
    return Evaluation(
        id=f"eval-{number}",
        namespace="default",
        job_id=job or f"job-{number}",
        type="service",
        status="pending",
        priority=priority,
        create_index=number,
        **more,  # type: ignore[arg-type]
    )


def broker(**options: object) -> EvalBroker:
    made = EvalBroker(**options)  # type: ignore[arg-type]
    made.set_enabled(True)
    return made


def put(target: EvalBroker, *evaluations: Evaluation, now: float = 0.0) -> None:
    for one in evaluations:
        target.enqueue(one, now=now, now_ns=int(now * 1e9))


def test_higher_priority_comes_first_and_equals_come_in_order() -> None:
    queue = broker()
    put(queue, evaluation(2), evaluation(1), evaluation(3, priority=90))
    order = [queue.dequeue(TYPES, "t", now=0.0) for _ in range(3)]
    assert [e.create_index for e in order if e] == [3, 1, 2]


def test_one_job_has_one_evaluation_at_work_at_a_time() -> None:
    queue = broker()
    put(queue, evaluation(1, "web"), evaluation(2, "web"))
    first = queue.dequeue(TYPES, "a", now=0.0)
    assert first is not None
    assert queue.dequeue(TYPES, "b", now=0.0) is None
    assert queue.ack(first.id, "a", now=1.0, now_ns=0)
    second = queue.dequeue(TYPES, "b", now=1.0)
    assert second is not None
    assert second.create_index == 2


def test_an_acknowledgement_with_an_old_token_is_refused() -> None:
    queue = broker()
    put(queue, evaluation(1))
    taken = queue.dequeue(TYPES, "mine", now=0.0)
    assert taken is not None
    assert not queue.ack(taken.id, "theirs", now=0.0, now_ns=0)
    assert queue.is_outstanding(taken.id, "mine")


def test_a_silent_worker_loses_its_evaluation_after_the_timeout() -> None:
    queue = broker(nack_timeout_s=60.0)
    put(queue, evaluation(1))
    assert queue.dequeue(TYPES, "a", now=0.0) is not None
    queue.tick(now=59.0)
    assert queue.stats().unacked == 1
    queue.tick(now=60.0)
    queue.tick(now=61.0)
    assert not queue.is_outstanding("eval-1", "a")
    again = queue.dequeue(TYPES, "b", now=61.0)
    assert again is not None
    assert again.id == "eval-1"


def test_after_the_delivery_limit_an_evaluation_fails_and_frees_its_job() -> None:
    queue = broker(delivery_limit=2)
    put(queue, evaluation(1, "web"), evaluation(2, "web"))
    now = 0.0
    for _ in range(2):
        taken = queue.dequeue(TYPES, "t", now=now)
        assert taken is not None
        assert taken.id == "eval-1"
        assert queue.nack(taken.id, "t", now=now)
        now += 30.0
        queue.tick(now=now)
    assert [e.id for e in queue.take_failed()] == ["eval-1"]
    following = queue.dequeue(TYPES, "t", now=now)
    assert following is not None
    assert following.id == "eval-2"


def test_a_delayed_evaluation_waits_for_its_moment() -> None:
    queue = broker()
    put(queue, evaluation(1, wait_until=from_ns(10_000_000_000)), now=4.0)
    assert queue.dequeue(TYPES, "t", now=4.0) is None
    assert queue.next_deadline() == 10.0
    queue.tick(now=10.0)
    assert queue.dequeue(TYPES, "t", now=10.0) is not None


def test_an_evaluation_offered_again_while_at_work_runs_again_after() -> None:
    queue = broker()
    put(queue, evaluation(1))
    taken = queue.dequeue(TYPES, "t", now=0.0)
    assert taken is not None
    put(queue, evaluation(1))
    assert queue.ack(taken.id, "t", now=0.0, now_ns=0)
    assert queue.dequeue(TYPES, "t", now=0.0) is not None


def test_a_forgotten_evaluation_is_never_handed_out_and_frees_its_job() -> None:
    queue = broker()
    put(
        queue, evaluation(1, "web"), evaluation(2, "web"), evaluation(3, wait_until=from_ns(10**10))
    )
    queue.forget("eval-3")
    queue.forget("eval-1")
    queue.forget("unknown")
    assert queue.next_deadline() is None
    following = queue.dequeue(TYPES, "t", now=0.0)
    assert following is not None
    assert following.id == "eval-2"
    queue.forget("eval-2")
    assert queue.is_outstanding("eval-2", "t")


def test_a_moment_to_wait_for_counts_more_than_a_length_of_time() -> None:
    queue = broker()
    # Offered again by the next leader, when most of the time is over.
    put(queue, evaluation(1, wait=60 * 10**9, wait_until=from_ns(100 * 10**9)), now=90.0)
    assert queue.next_deadline() == 100.0


def test_a_full_broker_turns_away_and_says_once_that_there_is_room_again() -> None:
    queue = broker(max_pending=4)
    put(queue, *(evaluation(number) for number in range(6)))
    assert not queue.knows("eval-5")
    assert not queue.take_overflow()
    for number in range(3):
        taken = queue.dequeue(TYPES, "t", now=0.0)
        assert taken is not None
        assert taken.create_index == number
        queue.ack(taken.id, "t", now=0.0, now_ns=0)
    assert queue.take_overflow()
    assert not queue.take_overflow()
    put(queue, evaluation(5))
    assert queue.knows("eval-5")


def test_a_disabled_broker_takes_and_gives_nothing() -> None:
    queue = broker()
    put(queue, evaluation(1))
    queue.set_enabled(False)
    put(queue, evaluation(2))
    assert queue.dequeue(TYPES, "t", now=0.0) is None
    assert queue.stats().ready == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("dan")), max_size=60))
def test_no_job_is_worked_on_twice_and_nothing_is_lost(steps: list[tuple[int, str]]) -> None:
    """d: dequeue, a: acknowledge the oldest, n: give the oldest back; each step first offers an evaluation."""
    queue = broker(delivery_limit=1000)
    held: list[tuple[Evaluation, str]] = []
    offered: set[str] = set()
    done: set[str] = set()
    now = 0.0
    for number, (job, action) in enumerate(steps):
        put(queue, evaluation(number, f"job-{job}"), now=now)
        offered.add(f"eval-{number}")
        now += 1.0
        queue.tick(now=now)
        if action == "d":
            taken = queue.dequeue(TYPES, f"t{number}", now=now)
            if taken is not None:
                assert taken.job_id not in {e.job_id for e, _ in held}
                held.append((taken, f"t{number}"))
        elif held:
            one, token = held.pop(0)
            if action == "a":
                if queue.ack(one.id, token, now=now, now_ns=0):
                    done.add(one.id)
            else:
                queue.nack(one.id, token, now=now)
    while len(done) < len(offered):
        now += 61.0
        queue.tick(now=now)
        taken = queue.dequeue(TYPES, "end", now=now)
        if taken is not None and queue.ack(taken.id, "end", now=now, now_ns=0):
            done.add(taken.id)
        for one, token in held:
            if queue.ack(one.id, token, now=now, now_ns=0):
                done.add(one.id)
        held.clear()
        assert now < 61.0 * 500, "an evaluation was lost"
    assert done == offered
