"""What is removed when it is over and old, and what must stay."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from server_world import FakeNode, World, job, running

from nomadpy.errors import ProposalTimeoutError
from nomadpy.fsm.commands import JobBatchPurge, NodeStatus
from nomadpy.models.calls import JobDeregister
from nomadpy.server.leader.garbage import Collected, collect

HOUR_NS = 3_600 * 10**9


def collected(world: World, *, hours: float = 0.0, force: bool = False) -> Collected:
    """What a sweep would take in so many hours."""
    core = world.leader.server.core
    now_ns = core.clock.now_ns() + int(hours * HOUR_NS)
    return collect(world.state, core.settings, now_ns=now_ns, force=force)


async def sweep(world: World) -> None:
    await world.write("System.GarbageCollect")


async def ran(world: World, spec: dict[str, Any], *, status: str = "running") -> FakeNode:
    """A node on which the job's allocations have come to this status."""
    node = await world.node()
    await world.register(spec)
    await world.settled()
    await node.report(*node.wanted(), status="running")
    if status != "running":
        await node.report(*node.wanted(), status=status)
    await world.settled()
    return node


async def stop(world: World, job_id: str = "web", *, purge: bool = False) -> None:
    await world.call("Job.Deregister", JobDeregister(job_id=job_id, purge=purge))
    await world.settled()


async def test_what_lives_stays_whatever_its_age() -> None:
    async with running() as world:
        await ran(world, job(count=2))
        found = collected(world, hours=10_000, force=True)
        assert (found.jobs, found.allocs, found.deployments, found.nodes) == ([], [], [], [])
        await sweep(world)
        assert world.state.job("default", "web") is not None
        assert len(world.state.allocs_by_job("default", "web")) == 2


async def test_a_stopped_job_goes_with_all_that_was_of_it_once_it_is_old() -> None:
    async with running() as world:
        node = await ran(world, job())
        await stop(world)
        assert collected(world, hours=10).jobs == [], "its task still runs"
        await node.obey()
        await world.settled()
        assert collected(world).jobs == []
        late = collected(world, hours=10)
        assert late.jobs == [("default", "web")]
        assert late.allocs == [node.allocs()[0].id]
        await sweep(world)
        await world.until(lambda: world.state.job("default", "web") is None, "the job's end")
        await world.until(lambda: not list(world.state.allocs()), "its allocations' end")
        assert world.state.evals_by_job("default", "web") == []
        assert world.state.job_summary("default", "web") is None


async def test_the_sweep_comes_by_itself() -> None:
    async with running(
        gc_interval_s=60.0, job_gc_s=30.0, eval_gc_s=30.0, batch_eval_gc_s=30.0
    ) as world:
        node = await ran(world, job())
        await stop(world)
        await node.obey()
        await world.until(
            lambda: world.state.job("default", "web") is None, "the sweep", seconds=130
        )


async def test_finished_batch_work_keeps_its_allocations_while_its_job_stays() -> None:
    async with running() as world:
        node = await ran(world, job("work", Type="batch", Update=None), status="complete")
        assert world.state.job("default", "work").status == "dead"  # type: ignore[union-attr]
        soon = collected(world, hours=3)
        assert (soon.jobs, soon.allocs) == ([], [])
        late = collected(world, hours=48)
        assert late.jobs == [("default", "work")]
        assert late.allocs == [node.allocs()[0].id]


async def test_old_evaluations_of_a_living_job_go_without_its_allocations() -> None:
    async with running() as world:
        node = await ran(world, job(count=1))
        await world.register(job(count=1, Priority=60))
        await world.settled()
        late = collected(world, hours=2)
        assert late.allocs == []
        placed_by = {a.eval_id for a in node.wanted()}
        assert placed_by.isdisjoint(late.evals)


async def test_a_failed_allocation_that_is_yet_to_be_replaced_stays() -> None:
    policy = {"Attempts": 0, "Unlimited": True, "Delay": 5 * 10**9, "DelayFunction": "constant"}
    async with running() as world:
        node = await world.node()
        await world.register(job(group={"ReschedulePolicy": policy}))
        await world.settled()
        (alloc,) = node.wanted()
        await node.report(alloc, status="running")
        await node.report(alloc, status="failed")
        assert alloc.id not in collected(world, hours=100).allocs
        await world.until(lambda: world.state.alloc(alloc.id).next_allocation, "its replacement")  # type: ignore[union-attr]
        await world.settled()
        assert alloc.id in collected(world, hours=100).allocs


async def test_a_node_that_is_gone_for_long_goes_unless_it_may_still_run_something() -> None:
    async with running() as world:
        node = await ran(world, job())
        core = world.leader.server.core
        await core.propose(NodeStatus(node_id=node.id, status="down"))
        assert collected(world, hours=1).nodes == []
        assert collected(world, hours=25).nodes == [], "its allocation was not given up"
        await world.write("Node.Evaluate", node.id)
        await world.settled()
        assert collected(world, hours=1).nodes == []
        assert collected(world, hours=25).nodes == [node.id]
        await sweep(world)
        assert world.state.node(node.id) is None


async def test_a_deployment_that_ended_goes_after_its_allocations() -> None:
    async with running() as world:
        node = await ran(world, job(Update={"MaxParallel": 1}))
        await node.report(*node.wanted(), healthy=True)
        await world.until(
            lambda: world.state.latest_deployment("default", "web").status == "successful"  # type: ignore[union-attr]
        )
        assert collected(world, hours=10).deployments == []
        await stop(world)
        await node.obey()
        assert len(collected(world, hours=10).deployments) == 1


async def test_a_job_that_was_registered_again_meanwhile_is_not_collected() -> None:
    async with running() as world:
        node = await ran(world, job())
        await stop(world)
        await node.obey()
        await world.settled()
        found = collected(world, force=True)
        assert found.jobs == [("default", "web")]
        core = world.leader.server.core
        propose = core.propose
        proposed: list[str] = []

        async def late(command: Any, **named: Any) -> Any:
            if isinstance(command, JobBatchPurge) and not proposed:
                # Its owner wants it back, between the decision and its log entry.
                proposed.append("purge")
                await world.register(job())
            return await propose(command, **named)

        core.propose = late  # type: ignore[method-assign]
        await sweep(world)
        assert proposed
        assert world.state.job("default", "web") is not None
        await world.settled()
        assert len(node.wanted()) == 1


async def test_a_purged_job_leaves_nothing_once_its_tasks_have_ended() -> None:
    async with running() as world:
        node = await ran(world, job(count=3, Update={"MaxParallel": 1}))
        await stop(world, purge=True)
        await asyncio.sleep(3)
        assert len(node.allocs()) == 3
        await node.obey()
        await world.until(lambda: not node.allocs(), "the allocations' end")
        assert world.state.evals_by_job("default", "web") == []
        assert world.state.deployments_by_job("default", "web") == []


async def test_a_job_purged_while_it_waits_for_room_leaves_nothing() -> None:
    async with running() as world:
        await world.register(job())
        await world.settled()
        await stop(world, purge=True)
        await world.until(lambda: not world.state.evals_by_job("default", "web"), "the end")
        node = await world.node()
        await asyncio.sleep(5)
        assert node.allocs() == []


async def test_a_purged_job_that_comes_back_keeps_the_record_of_the_old_one() -> None:
    async with running() as world:
        node = await ran(world, job())
        (old,) = node.allocs()
        await stop(world, purge=True)
        await world.register(job(Meta={"again": "1"}))
        await world.settled()
        await node.obey()
        await asyncio.sleep(5)
        assert world.state.alloc(old.id) is not None
        assert len(node.wanted()) == 1


@pytest.mark.parametrize("purge", [False, True])
async def test_force_collects_what_is_over_and_only_that(purge: bool) -> None:
    async with running() as world:
        node = await ran(world, job("gone"))
        await world.register(job("stays"))
        await world.settled()
        await stop(world, "gone", purge=purge)
        await node.obey()
        await node.report(*node.wanted(), status="running")
        await sweep(world)
        await world.until(lambda: [a.job_id for a in world.state.allocs()] == ["stays"])
        assert [j.id for j in world.state.jobs(None)] == ["stays"]


async def test_a_sweep_that_fails_does_not_end_sweeping() -> None:
    async with running(gc_interval_s=10.0, job_gc_s=1.0, eval_gc_s=1.0) as world:
        node = await ran(world, job())
        core = world.leader.server.core
        propose = core.propose
        failures = 0

        async def fails(command: Any, **named: Any) -> Any:
            nonlocal failures
            if type(command).__name__ in ("EvalDelete", "JobBatchPurge") and failures < 3:
                failures += 1
                raise ProposalTimeoutError("no answer in time")
            return await propose(command, **named)

        core.propose = fails  # type: ignore[method-assign]
        await stop(world)
        await node.obey()
        await world.until(
            lambda: world.state.job("default", "web") is None, "the sweep", seconds=90
        )
        assert failures == 3


def test_what_is_collected_says_so_only_when_there_is_something() -> None:
    assert Collected() == msgspec.structs.replace(Collected(evals=["x"]), evals=[])
