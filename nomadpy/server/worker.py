"""Takes evaluations from the broker, schedules on a snapshot, submits the plan, writes the outcome.

Deciding is `scheduler.schedule_batch`, which is pure and runs beside the event loop; this shell moves its inputs and
outputs. Evaluations that are ready together are decided together, each as if the plans before it held, so that one trip
to the other thread and one log entry serve many small jobs. A plan that held only in part sends its evaluation round
again on a newer snapshot, a limited number of times.
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
from nomadpy.scheduler.decision import Decision, failed
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.scheduler.schedule import UNDECIDABLE, schedule_batch
from nomadpy.server.core import Core
from nomadpy.server.leader.eval_broker import EvalBroker
from nomadpy.server.leader.plan_applier import EVALUATION_ENDED, PlanApplier
from nomadpy.state.changes import ChangeSet
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

ATTEMPTS = {"service": 5, "system": 5, "batch": 2, "sysbatch": 2}
SNAPSHOT_WAIT_S = 10.0
EVALUATIONS_AT_ONCE = 16
"""Few enough that deciding them holds up nobody else for long."""

RunBlocking = Callable[..., Awaitable[Any]]


class Held(msgspec.Struct):
    """An evaluation that the broker has given us. newest: the least index to look at it on; attempts: that came to naught."""

    evaluation: Evaluation
    newest: int
    attempts: int = 0


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
        self._table = NodeTable()
        self._deciding = False

    def note(self, changes: ChangeSet) -> None:
        """Take the changes of each entry as it is applied; from the worker's first moment on, none left out."""
        self._table.note(changes)
        if not self._deciding:
            # A little at a time, rather than all of it when the next evaluation is there.
            self._table.catch_up(self._core.snapshot())

    async def run(self) -> None:
        """Work until cancelled. An evaluation that fails here is given back to the broker."""
        types = list(self._core.settings.scheduler_types)
        while True:
            token = self._core.entropy.uuid()
            taken = [] if self._paused() else self._take(types, token)
            if not taken:
                async with self._ready:
                    if self._paused() or not self._broker.has_ready(types):
                        await self._ready.wait()
                continue
            self._changed()
            while taken:
                taken = await self._round(taken, token)
            self._changed()
            async with self._ready:
                # Acknowledging may have made the job's next evaluation ready.
                self._ready.notify_all()

    def _paused(self) -> bool:
        return self._core.snapshot().scheduler_config().pause_eval_broker

    def _take(self, types: list[str], token: str) -> list[Held]:
        """What is ready, as far as one batch goes; of different jobs, since the broker gives out one of a job."""
        taken: list[Held] = []
        while len(taken) < EVALUATIONS_AT_ONCE:
            found = self._broker.dequeue(types, token, now=self._core.clock.monotonic())
            if found is None:
                break
            taken.append(Held(found, found.modify_index))
        return taken

    async def _round(self, held: list[Held], token: str) -> list[Held]:
        """Decide and submit once; returns the evaluations that need another round."""
        core = self._core
        try:
            await core.raft.wait_applied(max(one.newest for one in held), timeout_s=SNAPSHOT_WAIT_S)
        except NomadError as error:
            for one in held:
                self._give_back(one.evaluation, token, error)
            return []
        snapshot = core.snapshot()
        for one in [one for one in held if _over(snapshot, one.evaluation)]:
            held.remove(one)
            self._acknowledge(one.evaluation, token)
        decisions = await self._decide([one.evaluation for one in held], snapshot) if held else []
        again: list[Held] = []
        written: list[tuple[Evaluation, list[Evaluation]]] = []
        async with asyncio.TaskGroup() as submissions:
            for one, decision in zip(held, decisions, strict=True):
                if isinstance(decision, Exception):
                    self._give_back(one.evaluation, token, decision)
                elif decision.plan is None:
                    written.append((one.evaluation, decision.evaluations))
                else:
                    submissions.create_task(self._submit(one, decision, token, again))
        for one in [one for one in again if one.attempts >= _attempts(one.evaluation)]:
            again.remove(one)
            written.append((one.evaluation, self._given_up(one.evaluation)))
        await self._write(written, token)
        return again

    async def _decide(
        self, evaluations: list[Evaluation], snapshot: Snapshot
    ) -> list[Decision | Exception]:
        core, metrics = self._core, self._core.metrics
        started_s = metrics.monotonic()
        # Stays set when we are cancelled: the other thread may still be at it.
        self._deciding = True
        decisions: list[Decision | Exception] = await self._run_blocking(
            schedule_batch,
            evaluations,
            snapshot,
            now_ns=core.clock.now_ns(),
            entropy=core.entropy,
            table=self._table,
        )
        self._deciding = False
        each_ms = (metrics.monotonic() - started_s) * 1000 / len(evaluations)
        for evaluation in evaluations:
            metrics.observe(f"nomad.nomad.worker.invoke_scheduler_{evaluation.type}", each_ms)
        return decisions

    async def _submit(self, one: Held, decision: Decision, token: str, again: list[Held]) -> None:
        """Hand in one plan; what held only in part is added to `again`."""
        evaluation = one.evaluation
        assert decision.plan is not None
        try:
            if not self._broker.extend(evaluation.id, token, now=self._core.clock.monotonic()):
                raise DeadlineError("the evaluation was given to another worker")
            plan = msgspec.structs.replace(decision.plan, eval_token=token)
            with self._core.metrics.timed("nomad.nomad.worker.submit_plan"):
                outcome = await self._applier.submit(plan)
        except NomadError as error:
            self._give_back(evaluation, token, error)
            return
        if outcome.complete:
            self._acknowledge(evaluation, token)
            return
        if not made_progress(plan, outcome):
            one.attempts += 1
        one.newest = max(outcome.refresh_index, one.newest)
        again.append(one)

    async def _write(self, written: list[tuple[Evaluation, list[Evaluation]]], token: str) -> None:
        """Write evaluations that end without a plan, all in one entry."""
        if not written:
            return
        try:
            await self._core.propose(
                EvalUpsert(evals=[made for _, evaluations in written for made in evaluations])
            )
        except NomadError as error:
            for evaluation, _ in written:
                self._give_back(evaluation, token, error)
        else:
            for evaluation, _ in written:
                self._acknowledge(evaluation, token)

    def _given_up(self, evaluation: Evaluation) -> list[Evaluation]:
        return failed(
            evaluation,
            "maximum attempts reached",
            snapshot_index=self._core.snapshot().index,
            now_ns=self._core.clock.now_ns(),
            entropy=self._core.entropy,
        )

    def _acknowledge(self, evaluation: Evaluation, token: str) -> None:
        clock = self._core.clock
        self._broker.ack(evaluation.id, token, now=clock.monotonic(), now_ns=clock.now_ns())

    def _give_back(self, evaluation: Evaluation, token: str, error: Exception) -> None:
        """The broker delivers it again, up to a limit."""
        try:
            raise error
        except NomadError as known:
            log.warning("evaluation not finished", eval_id=evaluation.id, error=known.message)
        except UNDECIDABLE:
            log.exception("scheduling failed", eval_id=evaluation.id, job_id=evaluation.job_id)
        self._broker.nack(evaluation.id, token, now=self._core.clock.monotonic())


def _attempts(evaluation: Evaluation) -> int:
    return ATTEMPTS.get(evaluation.type, 2)


def _over(snapshot: Snapshot, evaluation: Evaluation) -> bool:
    """Canceled or collected while it waited, or done by a plan whose answer was lost."""
    present = snapshot.eval(evaluation.id)
    return present is None or present.status in EVALUATION_ENDED


def made_progress(plan: Plan, outcome: PlanOutcome) -> bool:
    """Whether something was placed of a plan that did not hold as a whole: then the next one wants less."""
    if plan.all_at_once or not outcome.rejected_nodes:
        return False
    rejected = set(outcome.rejected_nodes)
    return any(alloc.node_id not in rejected for alloc in plan.placements)
