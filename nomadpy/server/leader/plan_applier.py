"""The one place where plans become true: checks each on the newest state, and commits what still holds.

Workers decide on snapshots, optimistically; here, in one line, a plan meets everything that was committed since. A node
that no longer fits is left out, and the worker is told to look again. Plans that touch different nodes share a log entry.
"""

from __future__ import annotations

import asyncio
import collections

import msgspec

from nomadpy import logs
from nomadpy.errors import DefiniteError, NomadError
from nomadpy.fsm.commands import PlanResults
from nomadpy.models.plan import Plan, PlanOutcome
from nomadpy.scheduler.fit import node_plan_fits, plan_by_node
from nomadpy.server.core import Core
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

PLANS_IN_ONE_ENTRY = 32
PLACEMENTS_IN_ONE_ENTRY = 2_000
MAX_QUEUE = 1_024


class _Queued(msgspec.Struct):
    plan: Plan
    answer: asyncio.Future[PlanOutcome]


class PlanApplier:
    """The leader's plan queue and the task that empties it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._queue: collections.deque[_Queued] = collections.deque()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Plans that wait."""
        return len(self._queue)

    async def submit(self, plan: Plan) -> PlanOutcome:
        """Queue a plan and wait for its outcome. Raises DefiniteError when the queue is full."""
        if len(self._queue) >= MAX_QUEUE:
            raise DefiniteError(f"the plan queue is full ({MAX_QUEUE} plans); try again later")
        answer: asyncio.Future[PlanOutcome] = asyncio.get_running_loop().create_future()
        queued = _Queued(plan, answer)
        # Higher priority first; among equals in order of arrival.
        position = len(self._queue)
        while position and self._queue[position - 1].plan.priority < plan.priority:
            position -= 1
        self._queue.insert(position, queued)
        self._wake.set()
        return await answer

    async def run(self) -> None:
        """Apply plans until cancelled; plans still queued then fail definitely."""
        try:
            while True:
                while not self._queue:
                    self._wake.clear()
                    await self._wake.wait()
                await self._apply_some()
        finally:
            while self._queue:
                answer = self._queue.popleft().answer
                if not answer.done():
                    answer.set_exception(DefiniteError("leadership was lost before the plan"))

    async def _apply_some(self) -> None:
        metrics = self._core.metrics
        snapshot = self._core.snapshot()
        batch: list[tuple[_Queued, Plan, list[str]]] = []
        later: list[_Queued] = []
        touched: set[str] = set()
        placements = 0
        while self._queue and len(batch) < PLANS_IN_ONE_ENTRY:
            queued = self._queue.popleft()
            if queued.answer.done():
                continue
            nodes = {a.node_id for a in queued.plan.placements}
            crowded = placements + len(queued.plan.placements) > PLACEMENTS_IN_ONE_ENTRY
            # Two plans on one node cannot both be checked against one snapshot.
            if batch and (crowded or nodes & touched):
                later.append(queued)
                break
            with metrics.timed("nomad.nomad.plan.evaluate"):
                committed, rejected = check_plan(snapshot, queued.plan)
            if rejected:
                metrics.count("nomad.nomad.plan.node_rejected", len(rejected))
            batch.append((queued, committed, rejected))
            touched |= nodes
            placements += len(nodes)
        self._queue.extendleft(reversed(later))
        if not batch:
            return
        plans = [committed for _, committed, _ in batch]
        try:
            with metrics.timed("nomad.nomad.plan.apply"):
                applied = await self._core.propose(PlanResults(plans=plans))
        except NomadError as error:
            for queued, _, _ in batch:
                if not queued.answer.done():
                    queued.answer.set_exception(error)
            return
        except asyncio.CancelledError:
            for queued, _, _ in batch:
                queued.answer.cancel()
            raise
        for queued, committed, rejected in batch:
            if rejected:
                log.info(
                    "plan held only in part",
                    eval_id=committed.eval_id,
                    nodes_rejected=len(rejected),
                    index=applied.index,
                )
            if not queued.answer.done():
                queued.answer.set_result(
                    PlanOutcome(
                        complete=not rejected,
                        index=applied.index,
                        refresh_index=applied.index if rejected else 0,
                        rejected_nodes=rejected,
                    )
                )


def check_plan(snapshot: Snapshot, plan: Plan) -> tuple[Plan, list[str]]:
    """Return the part of the plan that holds on `snapshot`, and the nodes that had to be left out.

    Stops always hold: giving room back cannot break anything. With all_at_once nothing is placed unless everything is.
    """
    rejected: list[str] = []
    for node_id, wanted in plan_by_node(plan).items():
        fits, reason = node_plan_fits(snapshot, wanted, node_id)
        if not fits:
            rejected.append(node_id)
            log.debug("plan rejected for a node", node_id=node_id, reason=reason)
    if not rejected:
        return plan, []
    left_out = set(rejected)
    kept = [a for a in plan.placements if a.node_id not in left_out]
    if plan.all_at_once:
        kept = []
    # A stop that makes room for a placement elsewhere must not happen without that placement.
    replaced = {
        a.previous_allocation
        for a in plan.placements
        if a.previous_allocation and (plan.all_at_once or a.node_id in left_out)
    }
    part = msgspec.structs.replace(
        plan,
        placements=kept,
        # Marks for a follow-up evaluation wait with it: the next pass makes both.
        stops=[s for s in plan.stops if s.alloc_id not in replaced and not s.followup_eval_id],
        deployment=None if plan.all_at_once else plan.deployment,
        evaluations=[],
    )
    return part, rejected
