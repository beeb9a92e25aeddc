"""The loop from an evaluation to its outcome: conflicts, exhausted attempts, faults of the scheduler, waiting for room."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from server_world import World, job, running

from nomadpy.errors import ProposalTimeoutError
from nomadpy.fsm.commands import EvalUpsert, PlanResults
from nomadpy.models.calls import JobDeregister, SchedulerConfigWrite
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.plan import Plan, PlanOutcome
from nomadpy.scheduler import schedule as scheduling


def by_trigger(world: World, job_id: str, trigger: str) -> list[Evaluation]:
    return [e for e in world.state.evals_by_job("default", job_id) if e.triggered_by == trigger]


async def test_plans_that_collide_are_made_again_until_all_is_placed() -> None:
    async with running(schedulers=4) as world:
        nodes = [await world.node(f"n{number}") for number in range(6)]
        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(world.register(job(f"big-{number}", cpu=1500)))
        # Who lost every race gets another chance after a minute.
        await world.until(lambda: all(node.wanted() for node in nodes), "all", seconds=130)
        placed = sorted(a.job_id for node in nodes for a in node.wanted())
        assert placed == [f"big-{number}" for number in range(6)]


async def test_after_the_last_attempt_an_evaluation_fails_and_another_waits_for_better_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running() as world:
        node = await world.node()
        applier = world.leader.server.duties.applier
        refused: list[Plan] = []

        async def refuse(plan: Plan) -> PlanOutcome:
            refused.append(plan)
            nodes = sorted({a.node_id for a in plan.placements})
            return PlanOutcome(complete=False, index=1, refresh_index=1, rejected_nodes=nodes)

        monkeypatch.setattr(applier, "submit", refuse)
        answer = await world.register(job())
        ended = await world.evaluated(answer["EvalID"])
        assert len(refused) == 5
        assert (ended.status, ended.status_description) == ("failed", "maximum attempts reached")
        (waiting,) = by_trigger(world, "web", "max-plan-attempts")
        assert (waiting.id, waiting.status) == (ended.blocked_eval, "blocked")
        assert waiting.previous_eval == ended.id
        # Nothing changed its capacity, so it is time that wakes it.
        monkeypatch.undo()
        await world.until(lambda: node.wanted(), "the second chance", seconds=70)
        assert world.state.eval(waiting.id).status == "complete"  # type: ignore[union-attr]


async def test_attempts_are_counted_anew_when_a_part_of_the_plan_held() -> None:
    async with running() as world:
        nodes = [await world.node(f"n{number}") for number in range(9)]
        applier = world.leader.server.duties.applier
        submit = applier.submit
        made: list[int] = []

        async def one_at_a_time(plan: Plan) -> PlanOutcome:
            # Others take all nodes but one from under each plan.
            made.append(len(plan.placements))
            if len(plan.placements) == 1:
                return await submit(plan)
            kept = msgspec.structs.replace(plan, placements=plan.placements[:1], evaluations=[])
            outcome = await submit(kept)
            left_out = [a.node_id for a in plan.placements[1:]]
            return PlanOutcome(
                complete=False,
                index=outcome.index,
                refresh_index=outcome.index,
                rejected_nodes=left_out,
            )

        applier.submit = one_at_a_time  # type: ignore[method-assign]
        answer = await world.register(job(count=9, cpu=1500))
        ended = await world.evaluated(answer["EvalID"])
        assert made == [9, 8, 7, 6, 5, 4, 3, 2, 1]
        assert ended.status == "complete"
        assert all(len(node.wanted()) == 1 for node in nodes)


async def test_a_fault_of_the_scheduler_fails_the_evaluation_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[float] = []

    def faulty(evaluation: Evaluation, *arguments: Any, **named: Any) -> Any:
        if evaluation.job_id == "bad" and evaluation.triggered_by == "job-register":
            tries.append(asyncio.get_running_loop().time())
            raise ValueError("a bug")
        return sound(evaluation, *arguments, **named)

    sound = scheduling.schedule
    monkeypatch.setattr(scheduling, "schedule", faulty)
    async with running() as world:
        node = await world.node()
        bad = await world.register(job("bad"))
        good = await world.register(job("good"))
        assert (await world.evaluated(good["EvalID"])).status == "complete"
        ended = await world.until(
            lambda: (e := world.state.eval(bad["EvalID"])) and e.status == "failed" and e,
            "the delivery limit",
            seconds=60,
        )
        assert len(tries) == 3
        assert 1.0 <= tries[1] - tries[0] < 3.0
        assert 20.0 <= tries[2] - tries[1] < 22.0
        assert ended.status_description == "evaluation reached delivery limit (3)"
        (again,) = by_trigger(world, "bad", "failed-follow-up")
        assert again.id == ended.next_eval
        assert 60e9 <= again.wait <= 360e9
        await world.until(lambda: len(node.wanted()) == 2, "the follow-up", seconds=400)
        assert world.state.eval(again.id).status == "complete"  # type: ignore[union-attr]


async def test_a_plan_whose_answer_was_lost_is_not_made_twice() -> None:
    async with running() as world:
        node = await world.node()
        core = world.leader.server.core
        propose = core.propose
        lost: list[str] = []

        async def loses_one(command: Any, **named: Any) -> Any:
            applied = await propose(command, **named)
            if isinstance(command, PlanResults) and not lost:
                lost.append(command.plans[0].eval_id)
                raise ProposalTimeoutError("no answer in time")
            return applied

        core.propose = loses_one  # type: ignore[method-assign]
        answer = await world.register(job(count=3))
        await world.evaluated(answer["EvalID"])
        await asyncio.sleep(10)
        assert lost == [answer["EvalID"]]
        assert len(node.allocs()) == 3
        assert world.leader.server.duties.broker.stats().unacked == 0
        assert world.leader.server.duties.broker.stats().delayed == 0


async def test_a_paused_broker_hands_out_nothing_until_it_is_let_go_on() -> None:
    async with running() as world:
        node = await world.node()
        config = world.state.scheduler_config()
        paused = msgspec.structs.replace(config, pause_eval_broker=True)
        await world.call("Operator.SetSchedulerConfiguration", SchedulerConfigWrite(config=paused))
        answer = await world.register(job())
        await asyncio.sleep(10)
        assert world.state.eval(answer["EvalID"]).status == "pending"  # type: ignore[union-attr]
        await world.call("Operator.SetSchedulerConfiguration", SchedulerConfigWrite(config=config))
        assert (await world.evaluated(answer["EvalID"])).status == "complete"
        assert len(node.wanted()) == 1


async def test_evaluations_that_the_broker_had_no_room_for_are_offered_again() -> None:
    async with running(schedulers=0) as world:
        duties = world.leader.server.duties
        duties.broker._max_pending = 2
        await world.node()
        made = [(await world.register(job(f"j{number}", cpu=10)))["EvalID"] for number in range(4)]
        assert [duties.broker.knows(identity) for identity in made] == [True, True, False, False]
        for _ in range(2):
            taken = duties.broker.dequeue(["service"], "t", now=0.0)
            assert taken is not None
            duties.broker.ack(taken.id, "t", now=0.0, now_ns=0)
        await asyncio.sleep(61)
        assert [duties.broker.knows(identity) for identity in made[2:]] == [True, True]


async def test_an_evaluation_of_an_unknown_type_stays_out_of_the_workers_way() -> None:
    async with running() as world:
        await world.node()
        odd = Evaluation(
            id=world.entropy.uuid(), type="odd", status="pending", namespace="default", job_id="x"
        )
        await world.leader.server.core.propose(EvalUpsert(evals=[odd]))
        answer = await world.register(job())
        assert (await world.evaluated(answer["EvalID"])).status == "complete"


async def test_what_finds_no_room_is_placed_when_a_node_comes() -> None:
    async with running() as world:
        answer = await world.register(job())
        ended = await world.evaluated(answer["EvalID"])
        assert ended.status == "complete"
        assert ended.queued_allocations == {"group": 1}
        (waiting,) = by_trigger(world, "web", "queued-allocs")
        assert (waiting.status, waiting.id) == ("blocked", ended.blocked_eval)
        node = await world.node()
        await world.until(lambda: node.wanted(), "the placement")
        assert world.state.eval(waiting.id).status == "complete"  # type: ignore[union-attr]


async def test_what_finds_no_room_is_placed_when_another_job_leaves() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job("first", cpu=1500))
        await world.settled()
        second = await world.register(job("second", cpu=1500))
        assert (await world.evaluated(second["EvalID"])).failed_tg_allocs
        await world.call("Job.Deregister", JobDeregister(job_id="first"))
        await world.settled()
        await node.obey()
        await world.until(lambda: [a.job_id for a in node.wanted()] == ["second"], "its turn")


async def test_a_blocked_evaluation_that_was_canceled_is_not_worked_on_again() -> None:
    async with running() as world:
        first = await world.register(job(cpu=1500))
        blocked_id = (await world.evaluated(first["EvalID"])).blocked_eval
        # Smaller, but there is still no node: a new evaluation waits instead.
        second = await world.register(job(cpu=100))
        newer_id = (await world.evaluated(second["EvalID"])).blocked_eval
        assert world.state.eval(blocked_id).status == "canceled"  # type: ignore[union-attr]
        await world.register(job(cpu=100, count=0))
        await world.settled()
        assert world.state.eval(newer_id).status == "canceled"  # type: ignore[union-attr]
        await world.node()
        await asyncio.sleep(5)
        await world.settled()
        for identity in (blocked_id, newer_id):
            found = world.state.eval(identity)
            assert found is not None
            assert found.status == "canceled"


async def test_a_job_that_stops_leaves_nothing_waiting_for_room() -> None:
    async with running() as world:
        answer = await world.register(job())
        waiting = (await world.evaluated(answer["EvalID"])).blocked_eval
        await world.call("Job.Deregister", JobDeregister(job_id="web"))
        await world.settled()
        node = await world.node()
        await asyncio.sleep(5)
        assert node.allocs() == []
        assert world.state.eval(waiting).status == "canceled"  # type: ignore[union-attr]
