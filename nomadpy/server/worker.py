"""Takes evaluations from the broker, schedules on a snapshot, submits the plan, writes the outcome.

Deciding is `scheduler.schedule`, which is pure and runs beside the event loop; this shell moves its inputs and outputs.
A plan that held only in part sends the evaluation round again on a newer snapshot; a limited number of times when
nothing of it held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from nomadpy import logs
from nomadpy.errors import DeadlineError, NomadError
from nomadpy.fsm.commands import EvalUpsert
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.plan import Plan, PlanOutcome
from nomadpy.scheduler.cluster import UsageCache
from nomadpy.scheduler.decision import Decision, failed
from nomadpy.scheduler.schedule import schedule
from nomadpy.server.core import Core
from nomadpy.server.leader.eval_broker import EvalBroker
from nomadpy.server.leader.plan_applier import EVALUATION_ENDED, PlanApplier

log = logs.get(__name__)

ATTEMPTS = {"service": 5, "system": 5, "batch": 2, "sysbatch": 2}
SNAPSHOT_WAIT_S = 10.0

RunBlocking = Callable[..., Awaitable[Any]]


class Worker:
    """One loop of dequeue, schedule, submit, acknowledge."""

    def __init__(
        self,
        core: Core,
        broker: EvalBroker,
        applier: PlanApplier,
        ready: asyncio.Condition,
        *,
        run_blocking: RunBlocking,
        changed: Callable[[], None],
    ) -> None:
        """ready: notified when there may be work. changed: called when the broker's deadlines may have moved."""
        self._core = core
        self._broker = broker
        self._applier = applier
        self._ready = ready
        self._run_blocking = run_blocking
        self._changed = changed
        self._cache = UsageCache()

    async def run(self) -> None:
        """Work until cancelled. An evaluation that fails here is given back to the broker."""
        types = list(self._core.settings.scheduler_types)
        while True:
            token = self._core.entropy.uuid()
            evaluation = None
            if not self._paused():
                evaluation = self._broker.dequeue(types, token, now=self._core.clock.monotonic())
            if evaluation is None:
                async with self._ready:
                    if self._paused() or not self._broker.has_ready(types):
                        await self._ready.wait()
                continue
            self._changed()
            await self._work(evaluation, token)
            self._changed()
            async with self._ready:
                # Acknowledging may have made the job's next evaluation ready.
                self._ready.notify_all()

    def _paused(self) -> bool:
        return self._core.snapshot().scheduler_config().pause_eval_broker

    async def _work(self, evaluation: Evaluation, token: str) -> None:
        now = self._core.clock.monotonic
        try:
            await self._process(evaluation, token)
        except NomadError as error:
            log.warning("evaluation not finished", eval_id=evaluation.id, error=error.message)
            self._broker.nack(evaluation.id, token, now=now())
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # A bug in deciding must not end the worker; the delivery limit ends the evaluation.
            log.exception("scheduling failed", eval_id=evaluation.id, job_id=evaluation.job_id)
            self._broker.nack(evaluation.id, token, now=now())
        else:
            self._broker.ack(evaluation.id, token, now=now(), now_ns=self._core.clock.now_ns())

    async def _process(self, evaluation: Evaluation, token: str) -> None:
        metrics = self._core.metrics
        at_least = evaluation.modify_index
        attempts = ATTEMPTS.get(evaluation.type, 2)
        while attempts > 0:
            await self._core.raft.wait_applied(at_least, timeout_s=SNAPSHOT_WAIT_S)
            snapshot = self._core.snapshot()
            present = snapshot.eval(evaluation.id)
            if present is None or present.status in EVALUATION_ENDED:
                # Canceled or collected while it waited, or done by a plan whose answer was lost.
                return
            with metrics.timed(f"nomad.nomad.worker.invoke_scheduler_{evaluation.type}"):
                decision: Decision = await self._run_blocking(
                    schedule,
                    evaluation,
                    snapshot,
                    now_ns=self._core.clock.now_ns(),
                    entropy=self._core.entropy,
                    cache=self._cache,
                )
            if decision.plan is None:
                await self._core.propose(EvalUpsert(evals=decision.evaluations))
                return
            if not self._broker.extend(evaluation.id, token, now=self._core.clock.monotonic()):
                raise DeadlineError("the evaluation was given to another worker")
            plan = msgspec.structs.replace(decision.plan, eval_token=token)
            with metrics.timed("nomad.nomad.worker.submit_plan"):
                outcome = await self._applier.submit(plan)
            if outcome.complete:
                return
            at_least = max(outcome.refresh_index, at_least)
            if not made_progress(plan, outcome):
                attempts -= 1
        snapshot = self._core.snapshot()
        evaluations = failed(
            evaluation,
            "maximum attempts reached",
            snapshot_index=snapshot.index,
            now_ns=self._core.clock.now_ns(),
            entropy=self._core.entropy,
        )
        await self._core.propose(EvalUpsert(evals=evaluations))


def made_progress(plan: Plan, outcome: PlanOutcome) -> bool:
    """Whether something was placed of a plan that did not hold as a whole: then the next one wants less."""
    if plan.all_at_once or not outcome.rejected_nodes:
        return False
    rejected = set(outcome.rejected_nodes)
    return any(alloc.node_id not in rejected for alloc in plan.placements)
