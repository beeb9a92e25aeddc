"""Emptying nodes: how many at a time, what waits, what goes last, and whole drains on a live cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_world import SECOND, FakeNode, World, job, rolling, running

from nomadpy.errors import ProposalTimeoutError
from nomadpy.fsm.commands import AllocTransition
from nomadpy.models.allocation import Allocation, AllocDeploymentStatus, DesiredTransition
from nomadpy.models.calls import NodeDrainWrite
from nomadpy.models.gotime import from_ns
from nomadpy.models.job import Job, MigrateStrategy, TaskGroup
from nomadpy.models.node import DrainSpec, DrainStrategy, Node
from nomadpy.server.leader.drainer import decide
from nomadpy.state import schema
from nomadpy.state.store import Snapshot, StateStore

NOW = 1_795_000_000 * SECOND


class State:
    """A state made row by row."""

    def __init__(self) -> None:
        self.store = StateStore()
        self.rows: list[tuple[Any, Any, Any]] = []
        self.number = 0

    def job(self, name: str, *, kind: str = "service", count: int = 1, parallel: int = 1) -> Job:
        group = TaskGroup(name="group", count=count, migrate=MigrateStrategy(max_parallel=parallel))
        made = Job(id=name, namespace="default", type=kind, task_groups=[group])
        self.rows.append((schema.JOBS, ("default", name), made))
        return made

    def alloc(self, job: Job, node: str, *, status: str = "running", **fields: Any) -> Allocation:
        self.number += 1
        made = Allocation(
            id=f"alloc-{self.number}",
            namespace="default",
            job_id=job.id,
            job=job,
            task_group="group",
            node_id=node,
            desired_status="run",
            client_status=status,
            **fields,
        )
        self.rows.append((schema.ALLOCS, made.id, made))
        return made

    def snapshot(self) -> Snapshot:
        with self.store.transaction(self.store.index + 1, NOW) as tx:
            for spec, key, row in self.rows:
                tx.put(spec, key, row)
        return self.store.snapshot()


def draining(**strategy: Any) -> Node:
    fields = {"deadline": 3600 * SECOND, "force_deadline": from_ns(NOW + 3600 * SECOND), **strategy}
    return Node(id="n", drain_strategy=DrainStrategy(**fields))


def ids(allocs: list[Allocation]) -> list[str]:
    return [a.id for a in allocs]


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_of_a_group_as_many_move_at_once_as_it_allows(parallel: int) -> None:
    state = State()
    web = state.job("web", count=4, parallel=parallel)
    for _ in range(4):
        state.alloc(web, "n")
    step = decide(state.snapshot(), draining(), now_ns=NOW)
    assert len(step.migrate) == min(parallel, 4)
    assert not step.done
    assert step.deadline_ns == NOW + 3600 * SECOND


def test_what_is_missing_elsewhere_counts_against_the_group() -> None:
    state = State()
    web = state.job("web", count=3, parallel=2)
    state.alloc(web, "n")
    state.alloc(web, "n")
    state.alloc(web, "other", status="pending")
    step = decide(state.snapshot(), draining(), now_ns=NOW)
    assert len(step.migrate) == 1


def test_a_replacement_counts_once_it_is_healthy() -> None:
    state = State()
    web = state.job("web", count=2)
    state.alloc(web, "n")
    state.alloc(web, "other", deployment_id="d")
    assert decide(state.snapshot(), draining(), now_ns=NOW).migrate == []
    healthy = AllocDeploymentStatus(healthy=True)
    state.rows[-1] = (
        *state.rows[-1][:2],
        msgspec.structs.replace(state.rows[-1][2], deployment_status=healthy),
    )
    assert ids(decide(state.snapshot(), draining(), now_ns=NOW).migrate) == ["alloc-1"]


def test_what_is_moving_already_is_not_asked_again_and_keeps_its_place() -> None:
    state = State()
    web = state.job("web", count=2)
    state.alloc(web, "n", desired_transition=DesiredTransition(migrate=True))
    state.alloc(web, "n")
    step = decide(state.snapshot(), draining(), now_ns=NOW)
    assert step.migrate == []
    assert not step.done


def test_the_count_is_that_of_the_job_as_it_is_now() -> None:
    state = State()
    old = state.job("web", count=1)
    state.alloc(old, "n")
    state.job("web", count=3)
    # The two that are to come are missing, so this one must stay until they are there.
    assert decide(state.snapshot(), draining(), now_ns=NOW).migrate == []


def test_batch_work_stays_until_the_deadline() -> None:
    state = State()
    state.alloc(state.job("work", kind="batch"), "n")
    early = decide(state.snapshot(), draining(), now_ns=NOW)
    assert (early.migrate, early.done) == ([], False)
    late = decide(state.snapshot(), draining(), now_ns=NOW + 3600 * SECOND)
    assert ids(late.migrate) == ["alloc-1"]
    assert late.deadline_ns == 0


def test_a_drain_without_a_deadline_waits_for_batch_work_for_ever() -> None:
    state = State()
    state.alloc(state.job("work", kind="batch"), "n")
    node = draining(deadline=0, force_deadline=from_ns(0))
    step = decide(state.snapshot(), node, now_ns=NOW + 10**18)
    assert (step.migrate, step.done, step.deadline_ns) == ([], False, 0)


def test_a_forced_drain_moves_everything_at_once() -> None:
    state = State()
    web = state.job("web", count=3)
    for _ in range(3):
        state.alloc(web, "n")
    state.alloc(state.job("work", kind="batch"), "n")
    state.alloc(state.job("log", kind="system"), "n")
    node = draining(deadline=-1, force_deadline=from_ns(0))
    assert len(decide(state.snapshot(), node, now_ns=NOW).migrate) == 5


@pytest.mark.parametrize("kind", ["system", "sysbatch"])
def test_system_jobs_go_when_the_others_are_gone(kind: str) -> None:
    state = State()
    web = state.job("web")
    state.alloc(state.job("log", kind=kind), "n")
    state.alloc(web, "n")
    assert ids(decide(state.snapshot(), draining(), now_ns=NOW).migrate) == ["alloc-2"]
    state.rows[-1] = (
        *state.rows[-1][:2],
        msgspec.structs.replace(state.rows[-1][2], desired_status="stop", client_status="running"),
    )
    # Its task has not ended yet.
    assert decide(state.snapshot(), draining(), now_ns=NOW).migrate == []
    state.rows[-1] = (
        *state.rows[-1][:2],
        msgspec.structs.replace(state.rows[-1][2], client_status="complete"),
    )
    assert ids(decide(state.snapshot(), draining(), now_ns=NOW).migrate) == ["alloc-1"]


def test_system_jobs_that_are_to_be_ignored_do_not_hold_up_the_drain() -> None:
    state = State()
    state.alloc(state.job("log", kind="system"), "n")
    node = draining(ignore_system_jobs=True)
    assert decide(state.snapshot(), node, now_ns=NOW).done
    forced = draining(ignore_system_jobs=True, deadline=-1)
    assert decide(state.snapshot(), forced, now_ns=NOW).done


def test_a_node_with_nothing_left_is_done_and_one_that_does_not_drain_needs_nothing() -> None:
    state = State()
    state.alloc(state.job("web"), "n", status="failed")
    snapshot = state.snapshot()
    assert decide(snapshot, draining(), now_ns=NOW).done
    step = decide(snapshot, Node(id="n"), now_ns=NOW)
    assert (step.done, step.migrate) == (False, [])


@given(
    running_here=st.integers(0, 6),
    running_elsewhere=st.integers(0, 6),
    pending=st.integers(0, 4),
    count=st.integers(1, 12),
    parallel=st.integers(1, 6),
)
def test_a_drain_never_takes_a_group_further_down_than_it_allows(
    running_here: int, running_elsewhere: int, pending: int, count: int, parallel: int
) -> None:
    state = State()
    web = state.job("web", count=count, parallel=parallel)
    for _ in range(running_here):
        state.alloc(web, "n")
    for _ in range(running_elsewhere):
        state.alloc(web, "other")
    for _ in range(pending):
        state.alloc(web, "other", status="pending")
    step = decide(state.snapshot(), draining(), now_ns=NOW)
    left = running_here + running_elsewhere - len(step.migrate)
    assert not step.migrate or left >= count - parallel


# -- on a cluster -----------------------------------------------------------------------------------------


async def drain(world: World, node: FakeNode, **spec: Any) -> None:
    spec = {"deadline": 3600 * SECOND, **spec}
    await world.call("Node.Drain", NodeDrainWrite(node_id=node.id, spec=DrainSpec(**spec)))


def done(world: World, node: FakeNode) -> bool:
    found = world.state.node(node.id)
    return found is not None and found.drain_strategy is None


async def full_cluster(world: World, count: int) -> list[FakeNode]:
    nodes = [await world.node(f"n{number}") for number in range(3)]
    await world.register(job(count=count, cpu=300, group={"Migrate": {"MaxParallel": 1}}))
    await world.settled()
    for node in nodes:
        await node.obey()
    return nodes


async def test_a_drain_moves_work_one_by_one_and_never_lets_the_group_sink() -> None:
    async with running() as world:
        nodes = await full_cluster(world, 6)
        drained = max(nodes, key=lambda n: len(n.wanted()))
        await drain(world, drained)
        node = world.state.node(drained.id)
        assert node is not None
        assert (node.drain, node.scheduling_eligibility) == (True, "ineligible")
        lowest = 6
        for _ in range(400):
            if done(world, drained):
                break
            alive = [
                a
                for a in world.state.allocs()
                if a.client_status == "running" and a.desired_status == "run"
            ]
            lowest = min(lowest, len(alive))
            for one in nodes:
                await one.obey()
            await asyncio.sleep(0.1)
        assert done(world, drained)
        assert lowest >= 5
        assert drained.wanted() == []
        assert sum(len(n.wanted()) for n in nodes) == 6
        node = world.state.node(drained.id)
        assert node is not None
        assert node.last_drain is not None
        assert (node.last_drain.status, node.scheduling_eligibility) == ("complete", "ineligible")
        assert node.events is not None
        assert node.events[-1].message == "Node drain complete"


async def test_at_the_deadline_everything_goes() -> None:
    async with running() as world:
        node = await world.node("n0")
        await world.register(job("work", Type="batch", Update=None))
        await world.settled()
        await node.obey()
        await drain(world, node, deadline=30 * SECOND)
        await asyncio.sleep(25)
        assert len(node.wanted()) == 1
        await asyncio.sleep(6)
        await world.settled()
        assert node.wanted() == []
        await node.obey()
        await world.until(lambda: done(world, node), "the end of the drain")


async def test_a_drain_of_an_empty_node_is_done_at_once() -> None:
    async with running() as world:
        node = await world.node()
        await drain(world, node)
        await world.until(lambda: done(world, node), "the end of the drain", seconds=2)


async def test_a_canceled_drain_leaves_the_rest_where_it_is() -> None:
    async with running() as world:
        nodes = await full_cluster(world, 6)
        drained = max(nodes, key=lambda n: len(n.wanted()))
        before = len(drained.wanted())
        await drain(world, drained)
        await asyncio.sleep(2)
        await world.call("Node.Drain", NodeDrainWrite(node_id=drained.id, mark_eligible=True))
        for _ in range(20):
            for one in nodes:
                await one.obey()
            await asyncio.sleep(0.25)
        assert len(drained.wanted()) >= before - 1
        node = world.state.node(drained.id)
        assert node is not None
        assert node.scheduling_eligibility == "eligible"
        assert node.last_drain is not None
        assert node.last_drain.status == "canceled"


async def test_during_a_deployment_a_drain_waits_for_health() -> None:
    async with running() as world:
        nodes = [await world.node(f"n{number}") for number in range(3)]
        await world.register(job(count=2, cpu=900, Update=rolling()))
        await world.settled()
        drained = next(n for n in nodes if n.wanted())
        await drain(world, drained)
        for node in nodes:
            for alloc in node.wanted():
                await node.report(alloc, status="running")
        await asyncio.sleep(5)
        # Both run, but nobody has said that they are healthy.
        assert len(drained.wanted()) >= 1
        await world.obeyed(nodes, lambda: done(world, drained), "the drain to end")
        assert sum(len(n.wanted()) for n in nodes) == 2


async def test_a_step_that_failed_is_taken_again() -> None:
    async with running() as world:
        nodes = await full_cluster(world, 3)
        core = world.leader.server.core
        propose = core.propose
        failures = 0

        async def fails_twice(command: Any, **named: Any) -> Any:
            nonlocal failures
            if isinstance(command, AllocTransition) and failures < 2:
                failures += 1
                raise ProposalTimeoutError("no answer in time")
            return await propose(command, **named)

        core.propose = fails_twice  # type: ignore[method-assign]
        drained = next(n for n in nodes if n.wanted())
        await drain(world, drained)
        await world.obeyed(nodes, lambda: done(world, drained), "the drain to end")
        assert failures == 2
