"""Moves within a budget that better the cluster, and come out as they were said."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_world import (
    World,
    make_group,
    make_job,
    make_node,
    make_task,
    rolling,
)

from nomadpy.models.job import EphemeralDisk, Job
from nomadpy.models.what_if import RebalanceRequest, RebalanceResponse
from nomadpy.scheduler.rebalance import rebalance


def service(name: str, cpu: int, count: int = 1, **fields) -> Job:
    group = make_group(count=count, tasks=[make_task(cpu=cpu, memory=cpu)], **fields)
    return make_job(name, group)


def scattered(*sizes: int) -> tuple[World, list[Job]]:
    """One job on each node, as it was when the others were full, and a node that has just joined."""
    world = World()
    jobs = []
    for number, cpu in enumerate(sizes):
        for other in range(number):
            world.change_node(f"n{other}", scheduling_eligibility="ineligible")
        world.add_nodes(make_node(f"n{number}"))
        job = service(f"j{number}", cpu)
        world.deploy(job)
        world.report(*world.live(job))
        jobs.append(job)
    for number in range(len(sizes)):
        world.change_node(f"n{number}", scheduling_eligibility="eligible")
    return world, jobs


def ask(world: World, **fields) -> RebalanceResponse:
    before = world.store.checksum()
    found = rebalance(world.snapshot, RebalanceRequest(**fields), entropy=world.entropy)
    assert world.store.checksum() == before
    return found


def carry_out(world: World, found: RebalanceResponse) -> None:
    ids = {move.alloc_id for move in found.moves}
    chosen = [alloc for alloc in world.snapshot.allocs() if alloc.id in ids]
    world.transition(chosen, migrate=True)
    for name in dict.fromkeys(move.job_id for move in found.moves):
        world.run(world.snapshot.job("default", name), "alloc-stop")


def test_packing_empties_nodes_and_comes_out_as_it_was_said() -> None:
    world, jobs = scattered(500, 500, 500, 500)
    found = ask(world)
    assert found.goal == "pack"
    assert found.nodes_used_after < found.nodes_used_before == 4
    assert found.score_after > found.score_before
    carry_out(world, found)
    for move in found.moves:
        (alloc,) = [a for job in jobs for a in world.live(job) if a.name == move.name]
        assert alloc.node_name == move.to_node
    used = {a.node_id for job in jobs for a in world.live(job)}
    assert len(used) == found.nodes_used_after


def test_spreading_uses_a_node_that_has_joined() -> None:
    world = World()
    world.configure(scheduler_algorithm="spread")
    world.add_nodes(make_node("n0"))
    jobs = [service(f"j{number}", 800) for number in range(4)]
    for job in jobs:
        world.deploy(job)
        world.report(*world.live(job))
    world.add_nodes(make_node("n1"))
    found = ask(world)
    assert found.goal == "spread"
    assert {move.to_node for move in found.moves} == {"n1"}
    assert len(found.moves) == 2
    assert found.score_after > found.score_before


def test_no_more_moves_than_the_budget() -> None:
    world, _ = scattered(300, 300, 300, 300, 300)
    assert len(ask(world, max_moves=2).moves) == 2


def test_no_more_moves_of_one_job_than_its_share() -> None:
    world = World()
    world.configure(scheduler_algorithm="spread")
    world.add_nodes(make_node("n0"))
    job = service("web", 500, count=6)
    world.deploy(job)
    world.report(*world.live(job))
    world.add_nodes(make_node("n1"))
    assert len(ask(world, max_per_job=1).moves) == 1
    assert len(ask(world, max_per_job=2).moves) == 2


def test_a_cluster_in_good_order_is_left_alone() -> None:
    world, _ = scattered(500, 500)
    carry_out(world, ask(world))
    for alloc in world.snapshot.allocs():
        if alloc.client_status == "pending":
            world.report(alloc)
    assert ask(world).moves == []


@pytest.mark.parametrize("why", ["batch", "sticky", "deploying", "other job"])
def test_what_is_not_at_rest_or_not_meant_stays(why: str) -> None:
    world, _ = scattered(500, 500)
    fields = {}
    if why == "batch":
        fields = {"type": "batch"}
    group = make_group(
        tasks=[make_task(cpu=200)],
        ephemeral_disk=EphemeralDisk(size_mb=300, sticky=why == "sticky"),
        update=rolling() if why == "deploying" else None,
    )
    job = make_job("kept", group, **fields)
    world.add_nodes(make_node("n9"))
    for name in ("n0", "n1"):
        world.change_node(name, scheduling_eligibility="ineligible")
    world.deploy(job)
    world.report(*world.live(job))
    for name in ("n0", "n1"):
        world.change_node(name, scheduling_eligibility="eligible")
    asked = {"job_id": "j0"} if why == "other job" else {}
    assert all(move.job_id != "kept" for move in ask(world, **asked).moves)


@given(
    sizes=st.lists(st.integers(1, 35), min_size=2, max_size=8),
    goal=st.sampled_from(["", "pack", "spread"]),
    algorithm=st.sampled_from(["binpack", "spread"]),
    moves=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_every_move_fits_stays_within_the_budget_and_betters_the_goal(
    sizes: list[int], goal: str, algorithm: str, moves: int
) -> None:
    world, _ = scattered(*(size * 100 for size in sizes))
    world.configure(scheduler_algorithm=algorithm)
    found = ask(world, goal=goal, max_moves=moves)
    assert len(found.moves) <= moves
    assert all(move.gain > 0 and move.from_node != move.to_node for move in found.moves)
    assert len({move.alloc_id for move in found.moves}) == len(found.moves)
    carry_out(world, found)
    world.check()
