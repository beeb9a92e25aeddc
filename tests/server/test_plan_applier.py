"""Plans meet the newest state: what still holds becomes true, the rest is looked at again."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from server_world import FakeNode, World, job, running

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import DefiniteError
from nomadpy.fsm.commands import NodeEligibility, NodeStatus
from nomadpy.models.calls import JobDeregister
from nomadpy.models.deployment import Deployment
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.plan import AllocStop, Plan, PlanOutcome
from nomadpy.scheduler.schedule import schedule
from nomadpy.server.leader.plan_applier import PlanApplier, check_plan, split_plan

ENTROPY = SeededEntropy("plans")


async def planned(world: World, spec: dict[str, Any]) -> Plan:
    """The plan that a worker would make for the job now; with no workers, nobody submits it."""
    answer = await world.register(spec)
    return plan_of(world, answer["EvalID"])


def plan_of(world: World, eval_id: str) -> Plan:
    evaluation = world.state.eval(eval_id)
    assert evaluation is not None
    decision = schedule(evaluation, world.state, now_ns=1, entropy=ENTROPY)
    assert decision.plan is not None
    return decision.plan


async def submit(world: World, *plans: Plan) -> list[PlanOutcome]:
    applier = world.leader.server.duties.applier
    return list(await asyncio.gather(*(applier.submit(plan) for plan in plans)))


def live(node: FakeNode) -> list[str]:
    return sorted(a.name for a in node.wanted())


async def test_a_plan_that_holds_is_committed_with_its_evaluations() -> None:
    async with running(schedulers=0) as world:
        node = await world.node()
        plan = await planned(world, job(count=2))
        (outcome,) = await submit(world, plan)
        assert (outcome.complete, outcome.rejected_nodes, outcome.refresh_index) == (True, [], 0)
        assert live(node) == ["web.group[0]", "web.group[1]"]
        evaluation = world.state.eval(plan.eval_id)
        assert evaluation is not None
        assert (evaluation.status, evaluation.modify_index) == ("complete", outcome.index)


async def test_of_two_plans_for_the_same_room_one_holds_and_the_other_must_look_again() -> None:
    async with running(schedulers=0) as world:
        node = await world.node()
        plans = [await planned(world, job(f"big-{n}", cpu=1500)) for n in range(2)]
        first, second = await submit(world, *plans)
        assert first.complete
        assert not second.complete
        assert second.rejected_nodes == [node.id]
        assert second.refresh_index >= first.index
        assert live(node) == ["big-0.group[0]"]
        # The evaluation is not over, so that the worker looks again.
        assert world.state.eval(plans[1].eval_id).status == "pending"  # type: ignore[union-attr]


async def test_plans_that_touch_different_nodes_share_one_entry() -> None:
    async with running(schedulers=0) as world:
        nodes = [await world.node(f"n{number}") for number in range(3)]
        plans = [
            await planned(world, pinned(f"on-{number}", node)) for number, node in enumerate(nodes)
        ]
        outcomes = await submit(world, *plans)
        assert all(o.complete for o in outcomes)
        assert len({o.index for o in outcomes}) == 1


async def test_small_plans_on_one_node_hold_in_one_entry() -> None:
    async with running(schedulers=0) as world:
        node = await world.node()
        plans = [await planned(world, job(f"small-{n}")) for n in range(3)]
        outcomes = await submit(world, *plans)
        assert all(o.complete for o in outcomes)
        assert len({o.index for o in outcomes}) == 1
        assert len(live(node)) == 3


async def test_the_part_on_nodes_that_still_fit_is_kept() -> None:
    async with running(schedulers=0) as world:
        one, two = await world.node("n0"), await world.node("n1")
        plan = await planned(world, job(count=2, cpu=1500))
        assert {a.node_id for a in plan.placements} == {one.id, two.id}
        rival = await planned(world, pinned("rival", two, cpu=1500))
        first, second = await submit(world, rival, plan)
        assert first.complete
        assert (second.complete, second.rejected_nodes) == (False, [two.id])
        assert len(live(one)) == 1
        assert live(two) == ["rival.group[0]"]


async def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    async with running(schedulers=0) as world:
        one, two = await world.node("n0"), await world.node("n1")
        plan = await planned(world, job(count=2, cpu=1500, AllAtOnce=True))
        assert plan.all_at_once
        rival = await planned(world, pinned("rival", two, cpu=1500))
        _, outcome = await submit(world, rival, plan)
        assert not outcome.complete
        assert live(one) == []


@pytest.mark.parametrize("change", ["down", "ineligible", "gone"])
async def test_nothing_is_placed_on_a_node_that_left_meanwhile(change: str) -> None:
    async with running(schedulers=0) as world:
        node = await world.node()
        plan = await planned(world, job())
        core = world.leader.server.core
        if change == "down":
            await core.propose(NodeStatus(node_id=node.id, status="down"))
        elif change == "ineligible":
            await core.propose(NodeEligibility(node_id=node.id, eligibility="ineligible"))
        else:
            await world.write("Node.Purge", node.id)
        (outcome,) = await submit(world, plan)
        assert (outcome.complete, outcome.rejected_nodes) == (False, [node.id])
        assert world.state.allocs_by_job("default", "web") == []


async def test_an_update_in_place_holds_on_a_node_that_takes_nothing_new() -> None:
    async with running(schedulers=0) as world:
        node = await world.node()
        await submit(world, await planned(world, job(Meta={"v": "1"})))
        # The priority can be changed without a new task.
        plan = await planned(world, job(Meta={"v": "1"}, Priority=70))
        assert [a.id for a in plan.placements] == [a.id for a in node.allocs()]
        await world.leader.server.core.propose(
            NodeEligibility(node_id=node.id, eligibility="ineligible")
        )
        (outcome,) = await submit(world, plan)
        assert outcome.complete
        assert node.allocs()[0].job.priority == 70  # type: ignore[union-attr]


async def test_a_stop_waits_for_the_placement_that_replaces_it() -> None:
    async with running(schedulers=0) as world:
        one, two = await world.node("n0"), await world.node("n1")
        await submit(world, await planned(world, job(count=2, cpu=1500)))
        (old,) = one.wanted()
        (other,) = two.wanted()
        replacement = msgspec.structs.replace(
            other, id=ENTROPY.uuid(), previous_allocation=old.id, name=old.name
        )
        plan = Plan(
            eval_id=ENTROPY.uuid(),
            snapshot_index=world.state.index,
            placements=[replacement],
            stops=[
                AllocStop(alloc_id=old.id, node_id=one.id),
                AllocStop(alloc_id="unrelated", node_id=one.id),
            ],
        )
        part, rejected = check_plan(world.state, plan)
        assert rejected == [two.id]
        assert [s.alloc_id for s in part.stops] == ["unrelated"]
        assert part.placements == []


async def test_a_stop_makes_room_for_what_the_same_plan_places() -> None:
    async with running(schedulers=0) as world:
        node = await world.node()
        await submit(world, await planned(world, job(cpu=1500, Meta={"v": "1"})))
        plan = await planned(world, job(cpu=1600, Meta={"v": "2"}))
        assert plan.stops
        (outcome,) = await submit(world, plan)
        assert outcome.complete
        assert len(node.wanted()) == 1


async def test_the_plan_of_a_job_that_was_purged_is_refused_and_told_so() -> None:
    async with running(schedulers=0) as world:
        node = await world.node()
        plan = await planned(world, job())
        await world.call("Job.Deregister", JobDeregister(job_id="web", purge=True))
        (outcome,) = await submit(world, plan)
        assert not outcome.complete
        assert outcome.refresh_index > plan.snapshot_index
        assert live(node) == []


async def test_the_plan_of_a_former_job_is_not_applied_to_a_new_one_of_its_name() -> None:
    async with running(schedulers=0) as world:
        node = await world.node()
        plan = await planned(world, job(count=2))
        await world.call("Job.Deregister", JobDeregister(job_id="web", purge=True))
        await world.register(job(count=1, cpu=200))
        (outcome,) = await submit(world, plan)
        assert not outcome.complete
        assert live(node) == []


async def test_the_plan_of_the_higher_priority_is_applied_first() -> None:
    async with running(schedulers=0) as world:
        node = await world.node()
        low = await planned(world, job("low", cpu=1500, Priority=10))
        high = await planned(world, job("high", cpu=1500, Priority=90))
        first, second = await submit(world, low, high)
        assert (first.complete, second.complete) == (False, True)
        assert live(node) == ["high.group[0]"]


async def test_a_plan_without_quorum_fails_and_those_behind_it_fail_with_the_leadership() -> None:
    async with running(3, schedulers=0) as world:
        await world.node()
        plans = [await planned(world, job(f"small-{n}")) for n in range(2)]
        old = world.leading
        world.cluster.network.partition([old.name], [s.name for s in world.servers if s is not old])
        assert old.process is not None
        applier = old.process.server.duties.applier
        results = await asyncio.gather(
            *(applier.submit(plan) for plan in plans), return_exceptions=True
        )
        assert all(isinstance(r, (Exception, asyncio.CancelledError)) for r in results)
        assert len(applier) == 0


async def test_after_its_end_the_applier_holds_nothing_back() -> None:
    async with running(schedulers=0) as world:
        await world.node()
        plan = await planned(world, job())
        applier = PlanApplier(world.leader.server.core)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(_failure(applier.submit(plan)))
            await asyncio.sleep(0)
            task = group.create_task(applier.run())
            await asyncio.sleep(0)
            task.cancel()
        assert waiting.result() is not None
        assert len(applier) == 0


async def test_a_full_queue_refuses_definitely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nomadpy.server.leader.plan_applier.MAX_QUEUE", 1)
    async with running(schedulers=0) as world:
        applier = PlanApplier(world.leader.server.core)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(applier.submit(Plan(eval_id="a")))
            await asyncio.sleep(0)
            with pytest.raises(DefiniteError, match="plan queue is full"):
                await applier.submit(Plan(eval_id="b"))
            task.cancel()


async def test_parts_of_a_large_plan_add_up_to_it() -> None:
    async with running(schedulers=0) as world:
        for number in range(3):
            await world.node(f"n{number}")
        plan = await planned(world, job(count=10, cpu=50))
        parts = split_plan(plan, 4)
        assert [len(p.placements) for p in parts] == [4, 4, 2]
        assert [a.id for p in parts for a in p.placements] == [a.id for a in plan.placements]
        assert [bool(p.evaluations) for p in parts] == [False, False, True]
        assert split_plan(plan, 10) == [plan]


async def test_stops_are_cut_as_well_and_stay_with_what_replaces_them() -> None:
    async with running(schedulers=0) as world:
        for number in range(3):
            await world.node(f"n{number}")
        plan = await planned(world, job(count=10, cpu=50))
        old = [AllocStop(alloc_id=f"old{n}", node_id="n0", description="moved") for n in range(9)]
        placements = [
            msgspec.structs.replace(alloc, previous_allocation=f"old{number}")
            if number < 2
            else msgspec.structs.replace(alloc, preempted_allocations=["old2"])
            if number == 9
            else alloc
            for number, alloc in enumerate(plan.placements)
        ]
        plan = msgspec.structs.replace(
            plan, placements=placements, stops=old, deployment=Deployment(id="d")
        )
        parts = split_plan(plan, 4)
        assert [(len(p.placements), [s.alloc_id for s in p.stops]) for p in parts] == [
            (0, ["old3", "old4", "old5", "old6"]),
            (0, ["old7", "old8"]),
            (4, ["old0", "old1"]),
            (4, []),
            (2, ["old2"]),
        ]
        assert [bool(p.deployment) for p in parts] == [True, False, False, False, False]
        assert [bool(p.evaluations) for p in parts] == [False, False, False, False, True]
        gang = msgspec.structs.replace(plan, all_at_once=True)
        assert split_plan(gang, 4) == [gang]
        ended = msgspec.structs.replace(gang, placements=[])
        assert [len(p.stops) for p in split_plan(ended, 4)] == [4, 4, 1]


async def test_a_large_job_is_stopped_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_plan, "__defaults__", (4,))
    async with running(schedulers=0) as world:
        node = await world.node()
        await submit(world, await planned(world, job(count=10, cpu=50)))
        assert len(node.wanted()) == 10
        plan = await planned(world, job(count=0, cpu=50))
        before = world.state.index
        (outcome,) = await submit(world, plan)
        assert outcome.complete
        assert outcome.index == before + 3
        assert node.wanted() == []


async def test_a_large_plan_is_true_after_its_last_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_plan, "__defaults__", (4,))
    async with running(schedulers=0) as world:
        node = await world.node()
        plan = await planned(world, job(count=10, cpu=50))
        before = world.state.index
        (outcome,) = await submit(world, plan)
        assert outcome.complete
        assert outcome.index == before + 3
        assert len(node.wanted()) == 10
        found = world.state.eval(plan.eval_id)
        assert isinstance(found, Evaluation)
        assert (found.status, found.modify_index) == ("complete", outcome.index)


def pinned(name: str, node: FakeNode, **fields: Any) -> dict[str, Any]:
    """A job that may run on one node only."""
    constraint = {"LTarget": "${node.unique.id}", "RTarget": node.id, "Operand": "="}
    return job(name, Constraints=[constraint], **fields)


async def _failure(work: Any) -> BaseException | None:
    try:
        await work
    except (Exception, asyncio.CancelledError) as error:
        return error
    return None
