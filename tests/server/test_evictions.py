"""What the plan applier makes of plans that evict, on a state that has moved on."""

from __future__ import annotations

import msgspec
from preemption_world import a_world, evicted, sized
from scheduling_world import World
from server_world import body, job, running

from nomadpy.models.calls import JobWrite, SchedulerConfigWrite
from nomadpy.models.job import Job
from nomadpy.models.operator import PreemptionConfig, SchedulerConfiguration
from nomadpy.models.plan import Plan
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.server.leader.plan_applier import check_plan, evaluations_of_evicted, split_plan


def test_an_older_plan_does_not_bring_back_what_was_evicted_since() -> None:
    world = a_world("n1", "n2")
    low = sized("low", 20, 3000)
    world.deploy(low)
    changed = world.register(msgspec.structs.replace(low, priority=25))
    stale = world.decide(world.evaluation(changed))
    assert [a.name for a in stale.plan.placements] == ["low.group[0]"]
    world.deploy(sized("other", 70, 3000))
    world.deploy(sized("high", 70, 3000))
    assert evicted(world) == ["low.group[0]"]
    part, rejected = check_plan(world.snapshot, stale.plan)
    assert (part.placements, rejected) == ([], ["n1"])


class TestApplier:
    """What the applier makes of a plan that evicts."""

    def plan(self, world: World, count: int = 1) -> tuple[Job, Job, Plan]:
        low = sized("low", 20, 3000, count=count)
        world.deploy(low)
        high = world.register(sized("high", 70, 3000, count=count))
        return low, high, world.decide(world.evaluation(high)).plan

    def test_each_job_that_loses_gets_one_evaluation(self) -> None:
        world = a_world("n1", "n2")
        low, _, plan = self.plan(world, count=2)
        made = evaluations_of_evicted(world.snapshot, plan, entropy=world.entropy, now_ns=world.now)
        assert [(e.job_id, e.triggered_by, e.status) for e in made] == [
            (low.id, "preemption", "pending")
        ]

    def test_a_node_that_is_left_out_keeps_what_would_have_been_evicted(self) -> None:
        world = a_world("n1", "n2")
        _, _, plan = self.plan(world, count=2)
        world.change_node("n1", scheduling_eligibility="ineligible")
        part, rejected = check_plan(world.snapshot, plan)
        assert rejected == ["n1"]
        assert [s.node_id for s in part.stops] == ["n2"]

    def test_what_has_ended_is_not_evicted(self) -> None:
        world = a_world("n1")
        low, _, plan = self.plan(world)
        world.report(*world.live(low), status="complete")
        part, rejected = check_plan(world.snapshot, plan)
        assert rejected == []
        assert part.stops == []
        assert part.placements[0].preempted_allocations is None

    def test_what_has_become_important_is_not_evicted(self) -> None:
        world = a_world("n1")
        low, _, plan = self.plan(world)
        world.deploy(msgspec.structs.replace(low, priority=65))
        part, rejected = check_plan(world.snapshot, plan)
        assert (part.placements, part.stops, rejected) == ([], [], ["n1"])

    def test_an_eviction_stays_with_its_placement_when_a_plan_is_cut(self) -> None:
        world = a_world("n1", "n2", "n3")
        _, _, plan = self.plan(world, count=3)
        parts = split_plan(plan, limit=1)
        for part in parts:
            named = [one for alloc in part.placements for one in alloc.preempted_allocations]
            assert [stop.alloc_id for stop in part.stops] == named

    def test_the_table_agrees(self) -> None:
        world = a_world("n1")
        _, _, plan = self.plan(world)
        table = NodeTable()
        table.catch_up(world.snapshot)
        assert check_plan(world.snapshot, plan, table) == (plan, [])


async def test_the_evicted_job_is_looked_at_and_comes_back_when_there_is_room() -> None:
    async with running() as world:
        await world.call(
            "Operator.SetSchedulerConfiguration",
            SchedulerConfigWrite(
                config=SchedulerConfiguration(
                    scheduler_algorithm="binpack",
                    preemption_config=PreemptionConfig(service_scheduler_enabled=True),
                )
            ),
        )
        node = await world.node("n0")
        await world.register(job("low", cpu=1500, Priority=20))
        await world.obeyed([node], lambda: len(node.wanted()) == 1)
        answer = await world.register(job("high", cpu=1500, Priority=80))
        await world.evaluated(answer["EvalID"])
        await world.settled()
        (victim,) = world.state.allocs_by_job("default", "low")
        (winner,) = world.state.allocs_by_job("default", "high")
        assert (victim.desired_status, victim.preempted_by_allocation) == ("evict", winner.id)
        triggers = [e.triggered_by for e in world.state.evals_by_job("default", "low")]
        assert "preemption" in triggers
        blocked = [e for e in world.state.evals_by_job("default", "low") if e.status == "blocked"]
        assert len(blocked) == 1
        other = await world.node("n1")
        await world.obeyed([node, other], lambda: len(other.wanted()) == 1)
        assert other.wanted()[0].job_id == "low"


async def test_a_plan_shows_who_would_be_evicted_and_evicts_nobody() -> None:
    async with running() as world:
        node = await world.node("n0")
        await world.register(job("low", cpu=1500, Priority=20))
        await world.obeyed([node], lambda: len(node.wanted()) == 1)
        spec = job("everywhere", cpu=1500, Priority=80, Type="system", Update=None)
        answer = await world.call("Job.Plan", JobWrite(job=spec, diff=True))
        annotations = body(answer)["Annotations"]
        assert [stub["Name"] for stub in annotations["PreemptedAllocs"]] == ["low.group[0]"]
        assert annotations["DesiredTGUpdates"]["group"]["Preemptions"] == 1
        assert [alloc.desired_status for alloc in node.allocs()] == ["run"]
