"""Removes what is over and old: evaluations with their allocations, dead jobs, deployments, nodes that are gone.

`collect` decides, purely; `Garbage` runs it on its interval and when an operator asks. Ages are judged by the
objects' own times, so every leader judges alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import msgspec

from nomadpy import logs
from nomadpy.errors import NomadError
from nomadpy.fsm.commands import DeploymentDelete, EvalDelete, JobBatchPurge, NodeDeregister
from nomadpy.models.allocation import Allocation
from nomadpy.models.base import ZERO_TIME
from nomadpy.models.evaluation import Evaluation
from nomadpy.server.core import Core
from nomadpy.server.settings import ServerSettings
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

IN_ONE_ENTRY = 500
PURGE_LOOK_S = 0.5


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of what may go; jobs as (namespace, id)."""

    evals: list[str] = []
    allocs: list[str] = []
    jobs: list[tuple[str, str]] = []
    deployments: list[str] = []
    nodes: list[str] = []


def collect(
    snapshot: Snapshot, settings: ServerSettings, *, now_ns: int, force: bool = False
) -> Collected:
    """Return what is over for longer than its threshold; with force, all that is over."""

    def old(moment_ns: int, threshold_s: float) -> bool:
        return force or moment_ns <= now_ns - int(threshold_s * 1e9)

    jobs = [
        (job.namespace, job.id)
        for job in snapshot.jobs(None)
        if job.status == "dead"
        and (job.stop or job.type in ("batch", "sysbatch"))
        and old(job.submit_time, settings.job_gc_s)
        and all(
            _is_over(a) and old(a.modify_time, settings.job_gc_s)
            for a in snapshot.allocs_by_job(job.namespace, job.id)
        )
        and all(
            _is_done(e) and old(e.modify_time, settings.eval_gc_s)
            for e in snapshot.evals_by_job(job.namespace, job.id)
        )
    ]
    gone = set(jobs)
    evals: list[str] = []
    allocs: list[str] = []
    for evaluation in snapshot.evals():
        if not _is_done(evaluation):
            continue
        key = (evaluation.namespace, evaluation.job_id)
        job = snapshot.job(*key)
        batch = evaluation.type in ("batch", "sysbatch")
        threshold = settings.batch_eval_gc_s if batch else settings.eval_gc_s
        if key not in gone and not old(evaluation.modify_time, threshold):
            continue
        mine = snapshot.allocs_by_eval(evaluation.id)
        # A batch job's finished allocations say that its work is done: they stay while the job does.
        keep = batch and job is not None and key not in gone and not job.stop
        removable = [a for a in mine if _is_over(a) and not keep and _unneeded(snapshot, a)]
        if len(removable) == len(mine):
            evals.append(evaluation.id)
        allocs.extend(a.id for a in removable)
    taken = set(evals)
    orphans = [
        a.id
        for a in snapshot.allocs()
        if _is_over(a)
        and snapshot.job(a.namespace, a.job_id) is None
        and (snapshot.eval(a.eval_id) is None or a.eval_id in taken)
        and old(a.modify_time, settings.job_gc_s)
    ]
    deployments = [
        d.id
        for d in snapshot.deployments()
        if d.status in ("successful", "failed", "cancelled")
        and old(d.modify_time, settings.deployment_gc_s)
        and all(_is_over(a) for a in snapshot.allocs_by_deployment(d.id))
    ]
    nodes = [
        n.id
        for n in snapshot.nodes()
        if n.status in ("down", "disconnected")
        and old(n.status_updated_at * 1_000_000_000, settings.node_gc_s)
        and all(_is_over(a) for a in snapshot.allocs_by_node(n.id))
    ]
    return Collected(
        evals=evals,
        allocs=sorted({*allocs, *orphans}),
        jobs=jobs,
        deployments=deployments,
        nodes=nodes,
    )


def _is_done(evaluation: Evaluation) -> bool:
    return evaluation.status in ("complete", "failed", "canceled")


def _is_over(alloc: Allocation) -> bool:
    if alloc.client_status in ("complete", "failed", "lost"):
        return True
    return alloc.desired_status in ("stop", "evict") and alloc.client_status == "pending"


def _unneeded(snapshot: Snapshot, alloc: Allocation) -> bool:
    """True unless the allocation still speaks for its job: a failed one that is yet to be rescheduled."""
    job = snapshot.job(alloc.namespace, alloc.job_id)
    if job is None or job.stop or alloc.desired_status != "run":
        return True
    return alloc.client_status != "failed" or bool(alloc.next_allocation)


class Garbage:
    """The leader's sweep, and the removal of what purged jobs leave."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._purged: dict[tuple[str, str], None] = {}
        self._wake = asyncio.Event()

    def restore(self, snapshot: Snapshot) -> None:
        """Take up purges that an earlier leader did not finish."""
        rows: list[Allocation | Evaluation] = [*snapshot.allocs(), *snapshot.evals()]
        for row in rows:
            if snapshot.job(row.namespace, row.job_id) is None:
                self.purged(row.namespace, row.job_id)

    def purged(self, namespace: str, job_id: str) -> None:
        """A job is gone: once its tasks have ended, its allocations and evaluations go too."""
        self._purged[(namespace, job_id)] = None
        self._wake.set()

    async def run(self) -> None:
        """Sweep on the interval, and after purges, until cancelled."""
        loop = asyncio.get_running_loop()
        next_sweep = loop.time() + self._core.settings.gc_interval_s
        while True:
            try:
                async with asyncio.timeout_at(next_sweep):
                    if not self._purged:
                        self._wake.clear()
                        await self._wake.wait()
                    await asyncio.sleep(PURGE_LOOK_S)
            except TimeoutError:
                next_sweep = loop.time() + self._core.settings.gc_interval_s
                await self._attempt(self.sweep(force=False))
            if self._purged:
                await self._attempt(self._finish_purges())

    async def _attempt(self, work: Coroutine[None, None, object]) -> None:
        try:
            await work
        except NomadError as error:
            log.warning("garbage collection failed", error=error.message)

    async def _finish_purges(self) -> None:
        snapshot = self._core.snapshot()
        for key in list(self._purged):
            if snapshot.job(*key) is not None:
                # Registered again: what is left of the old one is the new one's history.
                del self._purged[key]
                continue
            allocs = list(snapshot.allocs_by_job(*key))
            evals = list(snapshot.evals_by_job(*key))
            if not all(_is_over(a) for a in allocs):
                continue
            # What waits for its time waits for a job that is gone.
            if not all(_is_done(e) or e.wait_until != ZERO_TIME for e in evals):
                continue
            deployments = [d.id for d in snapshot.deployments_by_job(*key)]
            await self._delete([e.id for e in evals], [a.id for a in allocs])
            if deployments:
                await self._core.propose(DeploymentDelete(ids=deployments))
            del self._purged[key]

    async def _delete(self, evals: list[str], allocs: list[str]) -> None:
        while evals or allocs:
            await self._core.propose(
                EvalDelete(eval_ids=evals[:IN_ONE_ENTRY], alloc_ids=allocs[:IN_ONE_ENTRY])
            )
            evals, allocs = evals[IN_ONE_ENTRY:], allocs[IN_ONE_ENTRY:]

    async def sweep(self, *, force: bool) -> Collected:
        """Collect once; with force, whatever is over."""
        core = self._core
        found = collect(core.snapshot(), core.settings, now_ns=core.clock.now_ns(), force=force)
        await self._delete(found.evals, found.allocs)
        if found.jobs:
            await core.propose(JobBatchPurge(jobs=found.jobs, only_dead=True))
        if found.deployments:
            await core.propose(DeploymentDelete(ids=found.deployments))
        if found.nodes:
            await core.propose(NodeDeregister(node_ids=found.nodes, evaluations=[]))
        if found != Collected():
            log.info(
                "garbage collected",
                evals=len(found.evals),
                allocs=len(found.allocs),
                jobs=len(found.jobs),
                deployments=len(found.deployments),
                nodes=len(found.nodes),
            )
        return found
