"""What would move: the same as what then moves, and the state stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preemption_world import a_world, sized
from scheduling_world import World, make_group, make_job, make_node, make_task, rolling

from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.models.job import Job
from nomadpy.models.what_if import AddedNodes, WhatIfRequest, WhatIfResponse
from nomadpy.scheduler.what_if import what_if


def a_cluster(*names: str, **fields) -> World:
    world = World()
    world.add_nodes(*(make_node(name, **fields) for name in names))
    return world


def running(world: World, *deployed: Job) -> None:
    for job in deployed:
        world.deploy(job)
        world.healthy(*world.live(job))


def ask(world: World, *jobs: Job, **fields) -> WhatIfResponse:
    before = world.store.checksum()
    found = what_if(
        world.snapshot, WhatIfRequest(**fields), jobs, now_ns=world.now, entropy=world.entropy
    )
    assert world.store.checksum() == before
    assert found.settled
    return found


def test_a_node_that_fails_sends_its_allocations_elsewhere() -> None:
    world = a_cluster("n1", "n2")
    job = make_job("web", make_group(count=2))
    running(world, job)
    (there,) = [a.name for a in world.live(job) if a.node_id == "n1"]
    found = ask(world, nodes_down=["n1"])
    assert [(m.name, m.from_node, m.to_node) for m in found.moved] == [(there, "n1", "n2")]
    assert (found.placed, found.stopped, found.unplaced) == ([], [], [])
    assert {load.node: load.allocs_after for load in found.nodes} == {"n1": 0, "n2": 2}


def test_what_would_find_no_place_is_told_with_the_reason() -> None:
    world = a_cluster("n1", "n2")
    job = make_job("web", make_group(count=2, tasks=[make_task(cpu=3000)]))
    running(world, job)
    found = ask(world, nodes_down=["n1"])
    (one,) = found.unplaced
    assert (one.job_id, one.count) == ("web", 1)
    assert one.metrics.dimension_exhausted == {"cpu": 1}


def test_nodes_that_join_take_what_waits_and_system_jobs() -> None:
    world = a_cluster("n1")
    system = make_job("agent", make_group(tasks=[make_task(cpu=100)]), type="system")
    job = make_job("web", make_group(count=2, tasks=[make_task(cpu=3000)]))
    running(world, system, job)
    found = ask(world, nodes_added=[AddedNodes(count=2, like="n1")])
    assert [(m.name, m.to_node) for m in found.placed] == [
        ("agent.group[0]", "n1-added-1"),
        ("agent.group[0]", "n1-added-2"),
        ("web.group[1]", found.placed[2].to_node),
    ]
    assert found.unplaced == []


def test_a_drained_node_is_emptied() -> None:
    world = a_cluster("n1", "n2")
    job = make_job("web", make_group(count=3))
    running(world, job)
    there = sorted(a.name for a in world.live(job) if a.node_id == "n1")
    found = ask(world, nodes_drained=["n1"])
    assert [(m.name, m.from_node, m.to_node) for m in found.moved] == [
        (name, "n1", "n2") for name in there
    ]


def test_a_rolling_update_is_followed_to_its_end() -> None:
    world = a_cluster("n1", "n2")
    job = make_job("web", make_group(count=4, update=rolling(1)))
    running(world, job)
    changed = make_job("web", make_group(count=4, update=rolling(1), tasks=[make_task(cpu=600)]))
    found = ask(world, changed)
    assert len(found.moved) == 4


def test_more_important_work_shows_whom_it_evicts() -> None:
    world = a_world("n1")
    running(world, sized("low", 20, 3000))
    found = ask(world, sized("high", 80, 3000))
    assert [m.name for m in found.evicted] == ["low.group[0]"]
    assert [u.job_id for u in found.unplaced] == ["low"]


def test_a_stopped_job_makes_room_for_what_waits() -> None:
    world = a_cluster("n1")
    first, second = (make_job(name, make_group(tasks=[make_task(cpu=3000)])) for name in "ab")
    running(world, first, second)
    found = ask(world, jobs_stopped=["a"])
    assert [m.name for m in found.stopped] == ["a.group[0]"]
    assert [m.name for m in found.placed] == ["b.group[0]"]


def test_what_there_is_not_is_refused() -> None:
    world = a_cluster("n1")
    with pytest.raises(NotFoundError, match='no node is called "nn"'):
        ask(world, nodes_down=["nn"])
    with pytest.raises(NotFoundError, match='no job "x"'):
        ask(world, jobs_stopped=["x"])
    with pytest.raises(InvalidRequestError, match="nodes to add must be"):
        ask(world, nodes_added=[AddedNodes(count=0, like="n1")])


@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 3)), min_size=1, max_size=4),
    down=st.sets(st.sampled_from(["n0", "n1", "n2"]), max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_what_is_foretold_of_failing_nodes_comes_true(
    sizes: list[tuple[int, int]], down: set[str]
) -> None:
    world = a_cluster("n0", "n1", "n2", "n3")
    deployed = [
        make_job(f"j{number}", make_group(count=count, tasks=[make_task(cpu=cpu * 100)]))
        for number, (cpu, count) in enumerate(sizes)
    ]
    running(world, *deployed)
    found = ask(world, nodes_down=sorted(down))
    for name in sorted(down):
        world.change_node(name, status="down")
    for job in sorted(deployed, key=lambda job: (-job.priority, job.id)):
        if any(a.node_id in down for a in world.live(job)):
            world.run(job, "node-update")
    foretold = sorted((m.name, m.to_node) for m in found.moved)
    came = sorted(
        (a.name, a.node_name) for job in deployed for a in world.live(job) if a.previous_allocation
    )
    assert foretold == came
    world.check()
