"""all_at_once: a job that is placed as a whole or not at all."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from preemption_world import a_world, evicted, sized
from scheduling_world import World, make_group, make_job, make_node, make_task, rolling

from nomadpy.models.job import Job


def gang(*groups, **fields) -> Job:
    return make_job("gang", *groups, all_at_once=True, **fields)


def group(name: str, cpu: int, count: int = 1, **fields):
    return make_group(name, count, tasks=[make_task(cpu=cpu)], **fields)


def a_cluster(*nodes: str) -> World:
    world = World()
    world.add_nodes(*(make_node(name) for name in nodes))
    return world


def test_a_gang_that_fits_is_placed_whole() -> None:
    world = a_cluster("n1", "n2")
    job = gang(group("a", 3000), group("b", 3000))
    decision = world.deploy(job)
    assert len(world.live(job)) == 2
    assert decision.plan.all_at_once
    assert not decision.failed_tg_allocs


def test_a_gang_that_lacks_room_for_one_group_places_none_and_waits() -> None:
    world = a_cluster("n1", "n2")
    job = gang(group("a", 3000, 1), group("b", 3000, 2), group("c", 100, 1))
    decision = world.deploy(job)
    assert world.live(job) == []
    assert decision.queued == {"a": 1, "b": 2, "c": 1}
    assert decision.failed_tg_allocs["b"].dimension_exhausted == {"cpu": 2}
    assert decision.failed_tg_allocs["b"].coalesced_failures == 1
    for name in ("a", "c"):
        assert decision.failed_tg_allocs[name].constraint_filtered == {
            'all_at_once: no room for group "b"': 2
        }
    (waiting,) = decision.created
    assert waiting.status == "blocked"


def test_a_gang_is_placed_once_there_is_room_for_all() -> None:
    world = a_cluster("n1")
    job = gang(group("a", 3000), group("b", 3000))
    world.deploy(job)
    world.add_nodes(make_node("n2"))
    world.run(job, "queued-allocs")
    assert len(world.live(job)) == 2


def test_a_job_that_is_no_gang_is_placed_in_part() -> None:
    world = a_cluster("n1")
    job = make_job("parts", group("a", 3000), group("b", 3000))
    world.deploy(job)
    assert len(world.live(job)) == 1


def test_a_gang_evicts_nobody_unless_all_of_it_fits() -> None:
    world = a_world("n1")
    world.deploy(sized("low", 10, 3000))
    world.deploy(sized("peer", 90, 900))
    job = gang(group("a", 3000), group("b", 3000), priority=90)
    decision = world.deploy(job)
    assert evicted(world) == []
    assert decision.annotations.desired_tg_updates["a"].preemptions == 0


def test_an_update_of_a_gang_replaces_nothing_when_not_all_replacements_fit() -> None:
    world = a_cluster("n1", "n2")
    job = gang(group("a", 2000), group("b", 2000))
    world.deploy(job)
    changed = gang(group("a", 2100), group("b", 9000))
    world.register(changed)
    decision = world.run(changed)
    assert [a.desired_status for a in world.allocs(job)] == ["run", "run"]
    assert decision.queued == {"a": 1, "b": 1}


def test_what_is_updated_in_place_does_not_wait_for_the_gang() -> None:
    world = a_cluster("n1")
    job = gang(group("a", 1000))
    world.deploy(job)
    changed = msgspec.structs.replace(
        world.snapshot.job("default", "gang"), task_groups=[group("a", 1000, count=9)]
    )
    world.register(changed)
    world.run(changed)
    (alloc,) = world.live(job)
    assert alloc.job.version == 1


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 4)), min_size=1, max_size=4),
    nodes=st.integers(1, 4),
    update=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_a_gang_is_there_as_a_whole_or_not_at_all(
    sizes: list[tuple[int, int]], nodes: int, update: bool
) -> None:
    world = a_cluster(*(f"n{number}" for number in range(nodes)))
    job = gang(
        *(
            group(f"g{number}", cpu * 100, count, update=rolling() if update else None)
            for number, (cpu, count) in enumerate(sizes)
        )
    )
    decision = world.deploy(job)
    wanted = sum(count for _, count in sizes)
    assert len(world.live(job)) in (0, wanted)
    assert bool(decision.failed_tg_allocs) == (not world.live(job))
    if not world.live(job):
        assert sum(decision.queued.values()) == wanted
        assert set(decision.failed_tg_allocs) == {f"g{number}" for number in range(len(sizes))}
    world.check()
