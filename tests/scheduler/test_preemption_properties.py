"""What holds of every eviction: it was needed, it was allowed, and nothing that suffices does less harm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from preemption_world import a_world, sized
from scheduling_world import static_port

from nomadpy.models.allocation import Allocation
from nomadpy.scheduler.fit import Amount, allocs_fit, terminal
from nomadpy.scheduler.preemption import PRIORITY_GAP, Candidate, harm, least_harm, net_priority

amounts = st.builds(
    Amount,
    cpu=st.integers(1, 20).map(lambda n: n * 100),
    memory_mb=st.integers(1, 20).map(lambda n: n * 64),
    disk_mb=st.integers(0, 3).map(lambda n: n * 100),
)
needs = st.builds(
    Amount,
    cpu=st.integers(0, 40).map(lambda n: n * 100),
    memory_mb=st.integers(0, 40).map(lambda n: n * 64),
    disk_mb=st.integers(0, 6).map(lambda n: n * 100),
)


@st.composite
def pools(draw: st.DrawFn, largest: int = 10) -> list[Candidate]:
    drawn = draw(
        st.lists(
            st.tuples(st.integers(1, 6).map(lambda n: n * 10), amounts, st.integers(0, 3)),
            max_size=largest,
        )
    )
    made = [
        Candidate(
            Allocation(id=f"alloc-{number:02}"), priority, amount, ("default", f"j{job}", "g"), 2
        )
        for number, (priority, amount, job) in enumerate(drawn)
    ]
    return sorted(made, key=lambda one: one.priority)


def suffices(taken: Sequence[Candidate], need: Amount) -> bool:
    return (
        sum(one.amount.cpu for one in taken) >= need.cpu
        and sum(one.amount.memory_mb for one in taken) >= need.memory_mb
        and sum(one.amount.disk_mb for one in taken) >= need.disk_mb
    )


def reference(pool: list[Candidate], need: Amount) -> list[Candidate] | None:
    """The published way: by priority, the nearest in size to what is still missing; then drop what is superfluous."""
    rest, taken = list(pool), []
    missing = need
    for priority in sorted({one.priority for one in pool}):
        tier = [one for one in rest if one.priority == priority]
        while tier and not suffices(taken, need):
            nearest = min(tier, key=lambda one: distance(one.amount, missing))
            tier.remove(nearest)
            taken.append(nearest)
            missing = Amount(
                max(0, missing.cpu - nearest.amount.cpu),
                max(0, missing.memory_mb - nearest.amount.memory_mb),
                max(0, missing.disk_mb - nearest.amount.disk_mb),
            )
    if not suffices(taken, need):
        return None
    kept: list[Candidate] = []
    for one in sorted(taken, key=lambda one: -distance(one.amount, need)):
        kept.append(one)
        if suffices(kept, need):
            break
    return kept


def distance(amount: Amount, need: Amount) -> float:
    parts = (
        (amount.cpu, need.cpu),
        (amount.memory_mb, need.memory_mb),
        (amount.disk_mb, need.disk_mb),
    )
    return math.sqrt(sum(((wanted - has) / wanted) ** 2 for has, wanted in parts if wanted))


@given(pool=pools(), need=needs)
def test_a_set_is_found_exactly_when_there_is_one_and_none_of_it_can_be_left_out(
    pool: list[Candidate], need: Amount
) -> None:
    found = least_harm(pool, need, lambda taken: bool(taken) and suffices(taken, need), {})
    assert (found is None) == (not pool or not suffices(pool, need))
    for one in found or ():
        rest = [other for other in found if other is not one]
        assert not rest or not suffices(rest, need)


@given(pool=pools(), need=needs)
def test_no_more_harm_is_done_than_by_the_published_way(
    pool: list[Candidate], need: Amount
) -> None:
    found = least_harm(pool, need, lambda taken: bool(taken) and suffices(taken, need), {})
    other = reference(pool, need)
    if found is not None and other:
        assert net_priority(found) <= net_priority(other) + 1e-9


@given(pool=pools(largest=6), need=needs)
@settings(max_examples=60)
def test_of_a_few_the_best_set_of_at_most_two_is_never_beaten(
    pool: list[Candidate], need: Amount
) -> None:
    found = least_harm(pool, need, lambda taken: bool(taken) and suffices(taken, need), {})
    small = [
        list(taken)
        for size in (1, 2)
        for taken in combinations(pool, size)
        if suffices(taken, need)
    ]
    if small:
        least = min(harm(taken, need, {}) for taken in small)
        assert found is not None
        assert harm(found, need, {}).net_priority <= least.net_priority + 1e-9


jobs = st.lists(
    st.tuples(
        st.sampled_from(["service", "batch", "system", "sysbatch"]),
        st.integers(1, 9).map(lambda n: n * 10),
        st.integers(2, 16).map(lambda n: n * 200),
        st.integers(2, 16).map(lambda n: n * 400),
        st.integers(1, 4),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


# The last of four evicts a large one, after which three small ones went for nothing.
_NEEDLESS = [
    *[("service", 10, 400, 800, 1, False)] * 3,
    ("service", 20, 400, 5200, 1, False),
    ("service", 30, 400, 800, 4, False),
]


@given(asked=jobs, nodes=st.integers(1, 4))
@example(asked=_NEEDLESS, nodes=1)
@settings(max_examples=80, deadline=None)
def test_whoever_is_evicted_was_in_the_way_and_much_less_important(
    asked: list[tuple[str, int, int, int, int, bool]], nodes: int
) -> None:
    world = a_world(*(f"n{number}" for number in range(nodes)))
    for number, (kind, priority, cpu, memory, count, port) in enumerate(asked):
        job = sized(
            f"j{number}",
            priority,
            cpu,
            memory,
            count=1 if kind in ("system", "sysbatch") else count,
            type=kind,
            networks=[static_port("p", 9000)] if port else None,
        )
        before = world.snapshot
        world.register(job)
        decision = world.run(job)
        world.check()
        placements = decision.plan.placements if decision.plan else []
        for alloc in placements:
            for victim_id in alloc.preempted_allocations or ():
                victim = before.alloc(victim_id)
                assert victim is not None
                assert not terminal(victim)
                assert victim.job_id != job.id
                assert victim.job.priority + PRIORITY_GAP <= priority
                # With this one still there, what is now on the node would not have fitted when it was placed.
                after = [
                    one for one in world.snapshot.allocs_by_node(alloc.node_id) if not terminal(one)
                ]
                node = world.snapshot.node(alloc.node_id)
                assert node is not None
                assert not allocs_fit(node, [*after, victim]).ok
        # Evictions and the allocations that they make room for are the same, told from both sides.
        named = {one for alloc in placements for one in alloc.preempted_allocations or ()}
        stops = decision.plan.stops if decision.plan else []
        assert named == {stop.alloc_id for stop in stops if stop.desired_status == "evict"}
