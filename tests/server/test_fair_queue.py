"""Whose turn it is: nobody starves, weights hold, and within one namespace priority and age decide."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nomadpy.models.evaluation import Evaluation
from nomadpy.server.leader.eval_broker import EvalBroker
from nomadpy.server.leader.fair_queue import FairQueue, weighted

KINDS = ["service", "batch"]


def evaluation(
    number: int,
    *,
    namespace: str = "default",
    job: str = "",
    priority: int = 50,
    kind: str = "service",
) -> Evaluation:
    return Evaluation(
        id=f"{namespace}-{number:05}",
        namespace=namespace,
        job_id=job or f"job-{number}",
        type=kind,
        priority=priority,
        status="pending",
        create_index=number,
    )


def a_broker(weights: dict[str, float] | None = None, **shares: float) -> EvalBroker:
    share = (lambda namespace: shares.get(namespace, 0.0)) if shares else None
    broker = EvalBroker(cost=weighted(weights or {}, share))
    broker.set_enabled(True)
    return broker


def served(broker: EvalBroker, count: int) -> list[str]:
    """The namespaces of the next evaluations, each acknowledged at once."""
    found = []
    for number in range(count):
        taken = broker.dequeue(KINDS, f"t{number}", now=0.0)
        if taken is None:
            break
        found.append(taken.namespace)
        broker.ack(taken.id, f"t{number}", now=0.0, now_ns=0)
    return found


def enqueue(broker: EvalBroker, *evaluations: Evaluation) -> None:
    for one in evaluations:
        broker.enqueue(one, now=0.0, now_ns=0)


def test_one_evaluation_is_not_kept_back_by_a_thousand_of_another_namespace() -> None:
    broker = a_broker()
    enqueue(broker, *(evaluation(n, namespace="busy") for n in range(1000)))
    served(broker, 300)
    enqueue(broker, evaluation(5000, namespace="quiet"))
    assert "quiet" in served(broker, 2)


def test_a_higher_priority_means_more_turns_and_not_all_of_them() -> None:
    broker = a_broker()
    enqueue(broker, *(evaluation(n, namespace="high", priority=100) for n in range(300)))
    enqueue(broker, *(evaluation(n, namespace="low", priority=25) for n in range(300)))
    first = served(broker, 100)
    assert 75 <= first.count("high") <= 85


def test_weights_share_out_the_turns() -> None:
    broker = a_broker({"prod": 4.0})
    for name in ("prod", "test"):
        enqueue(broker, *(evaluation(n, namespace=name) for n in range(300)))
    first = served(broker, 100)
    assert 78 <= first.count("prod") <= 82


def test_who_has_less_of_the_cluster_is_served_first() -> None:
    broker = a_broker(rich=0.60, poor=0.05)
    for name in ("rich", "poor"):
        enqueue(broker, *(evaluation(n, namespace=name) for n in range(300)))
    first = served(broker, 100)
    assert first.count("poor") > 85
    assert "rich" in first


def test_without_fairness_priority_and_age_decide_over_all() -> None:
    broker = EvalBroker()
    broker.set_enabled(True)
    enqueue(broker, *(evaluation(n, namespace="busy") for n in range(50)))
    enqueue(broker, evaluation(60, namespace="quiet"))
    assert served(broker, 51)[-1] == "quiet"


def test_a_job_with_many_evaluations_does_not_keep_back_another_job() -> None:
    broker = a_broker()
    enqueue(broker, *(evaluation(n, job="busy") for n in range(100)))
    enqueue(broker, evaluation(200, job="quiet"))
    jobs = []
    for number in range(3):
        taken = broker.dequeue(KINDS, f"t{number}", now=0.0)
        assert taken is not None
        jobs.append(taken.job_id)
        broker.ack(taken.id, f"t{number}", now=0.0, now_ns=0)
    assert jobs == ["busy", "quiet", "busy"]


namespaces = st.sampled_from(["a", "b", "c", "d"])
arrivals = st.lists(
    st.tuples(namespaces, st.integers(1, 100), st.sampled_from(KINDS)), min_size=1, max_size=80
)


@given(arrived=arrivals, weights=st.dictionaries(namespaces, st.floats(0.1, 10)))
def test_everything_comes_out_once_and_each_namespace_in_its_own_order(
    arrived: list[tuple[str, int, str]], weights: dict[str, float]
) -> None:
    queue = FairQueue(weighted(weights))
    for age, (namespace, priority, kind) in enumerate(arrived):
        queue.push(kind, namespace, (-priority, age, f"{namespace}-{age}"))
    out = []
    while (found := queue.pop(KINDS)) is not None:
        out.append(found)
    assert len(queue) == 0
    assert sorted(out) == sorted(f"{n}-{age}" for age, (n, _, _) in enumerate(arrived))
    for name in "abcd":
        mine = [int(one.partition("-")[2]) for one in out if one.startswith(name)]
        assert mine == sorted(mine, key=lambda age: (-arrived[age][1], age))


@given(
    backlog=st.integers(1, 400),
    before=st.integers(0, 400),
    others=st.integers(1, 6),
)
def test_a_newcomer_waits_for_no_more_than_one_turn_of_each_other(
    backlog: int, before: int, others: int
) -> None:
    queue = FairQueue(weighted({}))
    for name in range(others):
        for age in range(backlog):
            queue.push("service", f"busy-{name}", (-50, age, f"busy-{name}-{age}"))
    for _ in range(min(before, others * backlog - 1)):
        queue.pop(KINDS)
    queue.push("service", "new", (-50, 10**6, "new"))
    turns = 0
    while queue.pop(KINDS) != "new":
        turns += 1
    assert turns <= 2 * others


@given(arrived=arrivals, gone=st.sets(st.integers(0, 79)))
def test_what_is_taken_out_never_comes_up(
    arrived: list[tuple[str, int, str]], gone: set[int]
) -> None:
    queue = FairQueue(weighted({}))
    for age, (namespace, priority, kind) in enumerate(arrived):
        queue.push(kind, namespace, (-priority, age, str(age)))
    for age in gone:
        if age < len(arrived):
            queue.discard(arrived[age][2], arrived[age][0], str(age))
    out = set()
    while (found := queue.pop(KINDS)) is not None:
        out.add(int(found))
    assert out == set(range(len(arrived))) - gone
