"""The one place where plans become true: checks each on the newest state, and commits what still holds.

Workers decide on snapshots, optimistically; here, in one line, a plan meets everything that was committed since. A node
that no longer fits is left out, and the worker is told to look again. Plans that wait together share a log entry, each
checked as if those before it had been applied.
"""

from __future__ import annotations

import asyncio
import collections

import msgspec

from nomadpy import logs
from nomadpy.entropy import Entropy
from nomadpy.errors import DefiniteError, IndefiniteError, NomadError, NotLeaderError
from nomadpy.fsm.commands import NodeEligibility, Noop, PlanResults
from nomadpy.models import gotime
from nomadpy.models.allocation import Allocation
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.node import NodeEvent
from nomadpy.models.plan import AllocStop, Plan, PlanOutcome
from nomadpy.scheduler.fit import NodePlan, not_ready, plan_by_node, server_terminal, terminal
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.scheduler.preemption import may_evict
from nomadpy.scheduler.volumes import PlanVolumes
from nomadpy.server import new_evaluations
from nomadpy.server.core import Core
from nomadpy.server.leader.rejections import REASON, SUBSYSTEM, Rejections
from nomadpy.state.changes import ChangeSet
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

PLANS_IN_ONE_ENTRY = 32
CHANGES_IN_ONE_ENTRY = 2_000
"""Placements, and stops besides."""
MAX_QUEUE = 1_024
SETTLE_RETRY_S = 0.5
EVALUATION_ENDED = ("complete", "failed", "canceled")


class _Queued(msgspec.Struct):
    plan: Plan
    answer: asyncio.Future[PlanOutcome]


class PlanApplier:
    """The leader's plan queue and the task that empties it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.table = NodeTable()
        self.rejections = Rejections(
            threshold=core.settings.plan_rejection_threshold,
            window_s=core.settings.plan_rejection_window_s,
        )
        self._bad: list[str] = []
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
        batch = self._take_batch()
        if not batch:
            return
        try:
            index, refused = await self._commit([parts for _, parts, _ in batch])
        except NomadError as error:
            for queued, _, _ in batch:
                if not queued.answer.done():
                    queued.answer.set_exception(error)
            return
        except asyncio.CancelledError:
            for queued, _, _ in batch:
                queued.answer.cancel()
            raise
        await self._take_out_bad_nodes()
        for (queued, parts, rejected), reason in zip(batch, refused, strict=True):
            if rejected or reason:
                log.info(
                    "plan held only in part",
                    eval_id=parts[0].eval_id,
                    nodes_rejected=len(rejected),
                    reason=reason,
                    index=index,
                )
            if not queued.answer.done():
                held = not rejected and not reason
                queued.answer.set_result(
                    PlanOutcome(
                        complete=held,
                        index=index,
                        refresh_index=0 if held else index,
                        rejected_nodes=rejected,
                    )
                )

    async def _settle(self) -> None:
        """Return when it is certain whether entries written so far are true: what comes after them in the log is.

        Whoever plans again before that would plan for what may yet come.
        """
        while True:
            try:
                await self._core.propose(Noop())
            except NotLeaderError:
                return
            except NomadError:
                await asyncio.sleep(SETTLE_RETRY_S)
            else:
                return

    def _take_batch(self) -> list[tuple[_Queued, list[Plan], list[str]]]:
        """Check queued plans on the newest state; each comes with its parts and the nodes that were left out.

        A plan of several parts goes alone. One that needs room which another of the batch gives back waits for the next
        entry: should the other be refused, the room would not be there.
        """
        metrics = self._core.metrics
        snapshot = self._catch_up()
        batch: list[tuple[_Queued, list[Plan], list[str]]] = []
        freed: set[str] = set()
        changes = 0
        try:
            while self._queue and len(batch) < PLANS_IN_ONE_ENTRY:
                queued = self._queue[0]
                plan = queued.plan
                if queued.answer.done():
                    self._queue.popleft()
                    continue
                changes += max(len(plan.placements), len(plan.stops))
                if batch and (
                    changes > CHANGES_IN_ONE_ENTRY
                    or any(alloc.node_id in freed for alloc in plan.placements)
                ):
                    break
                self._queue.popleft()
                with metrics.timed("nomad.nomad.plan.evaluate"):
                    committed, rejected = check_plan(snapshot, plan, self.table)
                    if self._queue:
                        freed.update(_frees(self.table, committed))
                        self.table.assume(committed)
                if rejected:
                    metrics.count("nomad.nomad.plan.node_rejected", len(rejected))
                    if not _is_outdated(snapshot, plan):
                        self._count_rejections(snapshot, rejected)
                parts = [self._with_evaluations(snapshot, one) for one in split_plan(committed)]
                batch.append((queued, parts, rejected))
        finally:
            self.table.forget_assumed()
        return batch

    def _count_rejections(self, snapshot: Snapshot, node_ids: list[str]) -> None:
        """A node that should have had room and did not; one that is not ready was refused with reason."""
        core = self._core
        for node_id in node_ids:
            node = snapshot.node(node_id)
            if node is None or not_ready(node):
                continue
            now = core.clock.monotonic()
            if self.rejections.add(node_id, now=now):
                self._bad.append(node_id)
            core.metrics.gauge(
                "nomad.nomad.plan.rejection_tracker.node_score",
                self.rejections.score(node_id, now=now),
                node_id=node_id,
            )

    async def _take_out_bad_nodes(self) -> None:
        core = self._core
        while self._bad:
            node_id = self._bad.pop()
            log.warning("node has its plans rejected again and again", node_id=node_id)
            core.metrics.count("nomad.nomad.plan.rejection_tracker.node_marked_ineligible")
            event = NodeEvent(
                message=REASON,
                subsystem=SUBSYSTEM,
                timestamp=gotime.from_ns(core.clock.now_ns()),
            )
            try:
                await core.propose(
                    NodeEligibility(node_id=node_id, eligibility="ineligible", event=event)
                )
            except NomadError as error:
                log.warning("node stays eligible", node_id=node_id, error=error.message)

    def _with_evaluations(self, snapshot: Snapshot, plan: Plan) -> Plan:
        """The plan with an evaluation of every job that loses an allocation to it."""
        made = evaluations_of_evicted(
            snapshot, plan, entropy=self._core.entropy, now_ns=self._core.clock.now_ns()
        )
        if not made:
            return plan
        return msgspec.structs.replace(plan, evaluations=[*plan.evaluations, *made])

    def note(self, changes: ChangeSet) -> None:
        """Take the changes of each entry as it is applied, so that no plan waits until the table has seen many."""
        self.table.note(changes)
        self._catch_up()

    def _catch_up(self) -> Snapshot:
        """Bring the table to the newest state; one that is past it saw another history, and begins anew."""
        snapshot = self._core.snapshot()
        if not self.table.catch_up(snapshot):
            self.table.clear()
            self.table.catch_up(snapshot)
        return snapshot

    async def _commit(self, plans: list[list[Plan]]) -> tuple[int, list[str]]:
        """Write the plans' parts, the first ones in one entry; returns the last index and why each was refused, "" not."""
        refused = [""] * len(plans)
        index = 0
        for number in range(max(map(len, plans))):
            present = [k for k, parts in enumerate(plans) if number < len(parts)]
            entry = PlanResults(plans=[plans[k][number] for k in present])
            try:
                with self._core.metrics.timed("nomad.nomad.plan.apply"):
                    applied = await self._core.propose(entry)
            except IndefiniteError:
                await self._settle()
                raise
            index = applied.index
            for k, reason in zip(present, applied.value or [""] * len(present), strict=True):
                refused[k] = refused[k] or reason
            if any(refused):
                # The rest of a plan that is refused would be refused as well.
                break
        return index, refused


def split_plan(plan: Plan, limit: int = CHANGES_IN_ONE_ENTRY) -> list[Plan]:
    """Cut a plan into parts of at most `limit` placements and as many stops besides, so that no log entry grows without bound.

    A stop stays with the placement that replaces it, an eviction with the one that it makes room for, and the other stops come first, since
    they make room too. The deployment comes first, the evaluations last: only a plan whose parts are all there has ended
    its evaluation. What a gang (all_at_once) places is never cut.
    """
    if max(len(plan.placements), len(plan.stops)) <= limit or (
        plan.all_at_once and plan.placements
    ):
        return [plan]
    part_of = {
        alloc.previous_allocation: number // limit
        for number, alloc in enumerate(plan.placements)
        if alloc.previous_allocation
    }
    for number, alloc in enumerate(plan.placements):
        for evicted in alloc.preempted_allocations or ():
            part_of[evicted] = number // limit
    placing = [
        (plan.placements[at : at + limit], [s for s in plan.stops if part_of.get(s.alloc_id) == n])
        for n, at in enumerate(range(0, len(plan.placements), limit))
    ]
    loose = [stop for stop in plan.stops if stop.alloc_id not in part_of]
    stopping: list[tuple[list[Allocation], list[AllocStop]]] = [
        ([], loose[at : at + limit]) for at in range(0, len(loose), limit)
    ]
    parts = [*stopping, *placing]
    return [
        msgspec.structs.replace(
            plan,
            placements=placements,
            stops=stops,
            deployment=plan.deployment if number == 0 else None,
            deployment_updates=plan.deployment_updates if number == 0 else [],
            evaluations=plan.evaluations if number == len(parts) - 1 else [],
        )
        for number, (placements, stops) in enumerate(parts)
    ]


def _frees(table: NodeTable, plan: Plan) -> set[str]:
    """The nodes on which a plan takes something away or changes what is there."""
    nodes = {stop.node_id for stop in plan.stops}
    nodes.update(a.node_id for a in plan.placements if table.alloc(a.node_id, a.id) is not None)
    return nodes


def check_plan(
    snapshot: Snapshot, plan: Plan, table: NodeTable | None = None
) -> tuple[Plan, list[str]]:
    """Return the part of the plan that holds on `snapshot`, and the nodes that had to be left out.

    table: the nodes of that very snapshot, with what other plans are assumed to bring.
    Stops always hold: giving room back cannot break anything. With all_at_once nothing is placed unless everything is.
    Nothing holds of a plan for a job that was purged and registered anew since, or whose evaluation has ended.
    """
    if _is_outdated(snapshot, plan):
        nodes = dict.fromkeys(
            [a.node_id for a in plan.placements] + [s.node_id for s in plan.stops]
        )
        return Plan(eval_id=plan.eval_id, priority=plan.priority), list(nodes)
    if table is None:
        table = NodeTable()
        table.catch_up(snapshot)
    plan = _without_needless_evictions(plan, table)
    volumes = PlanVolumes(snapshot, plan)
    rejected: list[str] = []
    # Who is new to its node, and that is nearly all, cannot have been evicted meanwhile.
    known = {one.id for one in plan.placements if table.alloc(one.node_id, one.id) is not None}
    for node_id, wanted in plan_by_node(plan).items():
        fits, reason = table.plan_fits(node_id, wanted, known)
        if not reason and (known or wanted.stops):
            reason = _stale(snapshot, plan, table, node_id, wanted)
        reason = reason or volumes.problem(node_id, table.allocs, wanted)
        if not fits or reason:
            rejected.append(node_id)
            log.debug("plan rejected for a node", node_id=node_id, reason=reason)
    if not rejected:
        return plan, []
    left_out = set(rejected)
    kept = [a for a in plan.placements if a.node_id not in left_out]
    if plan.all_at_once:
        kept = []
    # A stop that makes room for a placement must not happen without that placement.
    needless: set[str] = set()
    for alloc in plan.placements:
        if plan.all_at_once or alloc.node_id in left_out:
            needless.update((alloc.previous_allocation, *(alloc.preempted_allocations or ())))
    part = msgspec.structs.replace(
        plan,
        placements=kept,
        # Marks for a follow-up evaluation wait with it: the next pass makes both.
        stops=[s for s in plan.stops if s.alloc_id not in needless and not s.followup_eval_id],
        deployment=None if plan.all_at_once else plan.deployment,
        evaluations=[],
    )
    return part, rejected


def evaluations_of_evicted(
    snapshot: Snapshot, plan: Plan, *, entropy: Entropy, now_ns: int
) -> list[Evaluation]:
    """Return one evaluation `preemption` for each job that loses allocations to the plan."""
    made: dict[tuple[str, str], Evaluation] = {}
    for stop in plan.stops:
        alloc = snapshot.alloc(stop.alloc_id) if stop.desired_status == "evict" else None
        if alloc is None or (alloc.namespace, alloc.job_id) in made:
            continue
        job = snapshot.job(alloc.namespace, alloc.job_id)
        if job is not None:
            made[(alloc.namespace, alloc.job_id)] = new_evaluations.for_job(
                job, "preemption", entropy=entropy, now_ns=now_ns
            )
    return list(made.values())


def _without_needless_evictions(plan: Plan, table: NodeTable) -> Plan:
    """The plan without evictions of what has ended since."""
    over: set[str] = set()
    for stop in plan.stops:
        if stop.desired_status == "evict":
            alloc = table.alloc(stop.node_id, stop.alloc_id)
            if alloc is None or terminal(alloc):
                over.add(stop.alloc_id)
    if not over:
        return plan

    def cleaned(alloc: Allocation) -> Allocation:
        named = alloc.preempted_allocations or []
        if over.isdisjoint(named):
            return alloc
        return msgspec.structs.replace(
            alloc, preempted_allocations=[one for one in named if one not in over] or None
        )

    return msgspec.structs.replace(
        plan,
        stops=[stop for stop in plan.stops if stop.alloc_id not in over],
        placements=[cleaned(alloc) for alloc in plan.placements],
    )


def _stale(snapshot: Snapshot, plan: Plan, table: NodeTable, node_id: str, wanted: NodePlan) -> str:
    """Why a plan may not do on a node what it was made for, or "": somebody else has had a say since."""
    for alloc in wanted.placements:
        present = table.alloc(node_id, alloc.id)
        if present is not None and server_terminal(present) and not server_terminal(alloc):
            return "allocation was evicted since"
    for stop in wanted.stops:
        if stop.desired_status == "evict" and not _may_evict(snapshot, plan, table, stop):
            return "allocation may not be evicted any more"
    return ""


def _may_evict(snapshot: Snapshot, plan: Plan, table: NodeTable, stop: AllocStop) -> bool:
    alloc = table.alloc(stop.node_id, stop.alloc_id)
    job = None
    if plan.job is not None:
        job = snapshot.job_version(plan.job.namespace, plan.job.job_id, plan.job.version)
    return alloc is not None and job is not None and may_evict(job, alloc)


def _is_outdated(snapshot: Snapshot, plan: Plan) -> bool:
    evaluation = snapshot.eval(plan.eval_id)
    if evaluation is not None and evaluation.status in EVALUATION_ENDED:
        return True
    if plan.job is None:
        return False
    job = snapshot.job(plan.job.namespace, plan.job.job_id)
    return job is not None and job.create_index > plan.snapshot_index
