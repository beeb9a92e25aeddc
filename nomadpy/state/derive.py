"""What follows from the changes of a transaction, written before it commits: job statuses, summaries, deployment counts.

Nothing else writes these, so they cannot drift from what they are derived of: each is moved by the difference of the
rows before and after. What an allocation that is collected had ended as stays counted, as Nomad does it.

Source: updateSummaryWithAlloc, updateDeploymentWithAlloc, getJobStatus in nomad/state/state_store.go of Nomad.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nomadpy.models import gotime
from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import DeploymentState
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, JobChildrenSummary, JobSummary, TaskGroupSummary
from nomadpy.state import schema
from nomadpy.state.changes import Change
from nomadpy.state.schema import JobKey

if TYPE_CHECKING:
    from nomadpy.state.store import Transaction

_BINS = {
    "pending": "starting",
    "running": "running",
    "complete": "complete",
    "failed": "failed",
    "lost": "lost",
    "unknown": "unknown",
}
"""Client status to the count of the summary it is in."""

_STAYS_COUNTED = frozenset({"complete", "failed", "lost"})


def settle(tx: Transaction) -> None:
    """Write everything derived; called once, when all else of the transaction is written."""
    changes = tx.changes()
    if not changes:
        return
    allocs = [c for c in changes if c.table == "allocs"]
    _count_deployments(tx, allocs)
    _set_statuses(tx, changes)
    _count_summaries(tx, changes, allocs)


# -- job status -------------------------------------------------------------------------------------


def job_status(tx: Transaction, job: Job, *, collected: bool = False) -> str:
    """Return pending, running or dead. collected: evaluations or allocations of the job were deleted just now."""
    parameterized = job.parameterized_job is not None and not job.dispatched
    if job.type == "system" or job.periodic is not None or parameterized:
        return "dead" if job.stop else "running"
    key = (job.namespace, job.id)
    if tx.rows(schema.DEPLOYMENTS).count("live_job", key):
        return "running"
    if tx.rows(schema.ALLOCS).count("live_job", key):
        return "running"
    evals = tx.rows(schema.EVALS)
    if evals.count("live_job", key):
        return "pending"
    # A dead job whose last evaluation was collected stays dead; registering anew makes it pending.
    if job.stop or collected or evals.count("job", key) or job.status == "dead":
        return "dead"
    return "pending"


def _set_statuses(tx: Transaction, changes: list[Change]) -> None:
    collected: dict[JobKey, bool] = {}
    for change in changes:
        if change.table == "jobs":
            collected.setdefault(change.key, False)
        elif change.table in ("allocs", "evals", "deployments"):
            gone = change.after is None and change.table != "deployments"
            # A row that went over to another job concerns both.
            for row in (change.before, change.after):
                if row is not None:
                    key = (row.namespace, row.job_id)
                    collected[key] = collected.get(key, False) or gone
    for key, gone in collected.items():
        job = tx.job(*key)
        if job is None:
            continue
        status = job_status(tx, job, collected=gone)
        if status != job.status:
            job = msgspec.structs.replace(job, status=status, modify_index=tx.index)
            tx.put(schema.JOBS, key, job)


# -- summaries --------------------------------------------------------------------------------------


def recount(tx: Transaction, job: Job, queued: dict[str, int] | None = None) -> JobSummary:
    """Return the summary that the state's rows add up to, at the transaction's index; queued: by group."""
    counts = {group.name: _Counts() for group in job.task_groups or []}
    for alloc in tx.allocs_by_job(job.namespace, job.id):
        if alloc.job is None or alloc.job.create_index == job.create_index:
            counts.setdefault(alloc.task_group, _Counts()).add(alloc.client_status, 1)
    for group, number in (queued or {}).items():
        counts.setdefault(group, _Counts()).queued = number
    children = dict.fromkeys(("pending", "running", "dead"), 0)
    for child in tx.jobs_by_parent(job.namespace, job.id):
        children[child.status] += 1
    return JobSummary(
        job_id=job.id,
        namespace=job.namespace,
        summary={group: found.frozen() for group, found in counts.items()},
        children=JobChildrenSummary(**children),
        create_index=job.create_index,
        modify_index=tx.index,
    )


class _Counts:
    """The counts of one group while they change."""

    __slots__ = ("complete", "failed", "lost", "queued", "running", "starting", "unknown")

    def __init__(self, counts: TaskGroupSummary | None = None) -> None:
        for name in self.__slots__:
            setattr(self, name, 0 if counts is None else getattr(counts, name))

    queued: int
    starting: int

    def add(self, client_status: str, number: int) -> None:
        """Move one count; what falls below zero was never counted here."""
        name = _BINS.get(client_status)
        if name is not None:
            setattr(self, name, max(0, getattr(self, name) + number))

    def frozen(self) -> TaskGroupSummary:
        return TaskGroupSummary(**{name: getattr(self, name) for name in self.__slots__})


def _count_summaries(tx: Transaction, changes: list[Change], allocs: list[Change]) -> None:
    fresh: dict[JobKey, None] = {}
    groups: dict[JobKey, dict[str, _Counts]] = {}
    # Jobs of the transaction as it began, and as the statuses have left them.
    for change in [c for c in tx.changes() if c.table == "jobs"]:
        job: Job | None = change.after
        if job is None:
            tx.delete(schema.JOB_SUMMARIES, change.key)
        elif change.before is None:
            fresh[change.key] = None
        else:
            counts = _open(tx, groups, change.key)
            for group in job.task_groups or []:
                if counts is not None:
                    counts.setdefault(group.name, _Counts())
    _count_allocs(tx, groups, allocs)
    for change in changes:
        if change.table == "evals" and change.after is not None:
            _count_queued(tx, groups, change.after)
    for key, counts in groups.items():
        _close(tx, key, counts)
    for key in fresh:
        _begin(tx, key, changes)
    _count_children(tx, fresh)


def _begin(tx: Transaction, key: JobKey, changes: list[Change]) -> None:
    job = tx.job(*key)
    assert job is not None
    queued: dict[str, int] = {}
    for change in changes:
        evaluation: Evaluation | None = change.after if change.table == "evals" else None
        if evaluation is not None and (evaluation.namespace, evaluation.job_id) == key:
            queued.update(evaluation.queued_allocations or {})
    tx.put(schema.JOB_SUMMARIES, key, recount(tx, job, queued))


def _open(
    tx: Transaction, groups: dict[JobKey, dict[str, _Counts]], key: JobKey
) -> dict[str, _Counts] | None:
    counts = groups.get(key)
    if counts is None:
        summary = tx.job_summary(*key)
        if summary is None:
            return None
        counts = {name: _Counts(group) for name, group in (summary.summary or {}).items()}
        groups[key] = counts
    return counts


def _close(tx: Transaction, key: JobKey, counts: dict[str, _Counts]) -> None:
    summary = tx.job_summary(*key)
    if summary is None:
        return
    frozen = {name: group.frozen() for name, group in counts.items()}
    if frozen != summary.summary:
        summary = msgspec.structs.replace(summary, summary=frozen, modify_index=tx.index)
        tx.put(schema.JOB_SUMMARIES, key, summary)


def _count_allocs(
    tx: Transaction, groups: dict[JobKey, dict[str, _Counts]], allocs: list[Change]
) -> None:
    """Count each change in order; arrivals of one kind in a row, as plans bring them, are counted together."""
    key: JobKey | None = None
    summary: JobSummary | None = None
    arrived: tuple[str, str] | None = None
    number = 0
    for change in allocs:
        before: Allocation | None = change.before
        after: Allocation | None = change.after
        row = before if after is None else after
        assert row is not None
        if key is None or row.job_id != key[1] or row.namespace != key[0]:
            _count_arrivals(tx, groups, key, arrived, number)
            arrived, number = None, 0
            key = (row.namespace, row.job_id)
            summary = tx.job_summary(*key)
        if summary is None:
            continue
        old, new = _place(before, summary), _place(after, summary)
        if before is None and new == arrived:
            number += 1
            continue
        _count_arrivals(tx, groups, key, arrived, number)
        arrived, number = None, 0
        if before is None:
            arrived, number = new, 1
        elif old != new:
            counts = _open(tx, groups, key)
            assert counts is not None
            if old is not None and (after is not None or old[1] not in _STAYS_COUNTED):
                counts.setdefault(old[0], _Counts()).add(old[1], -1)
            if new is not None:
                counts.setdefault(new[0], _Counts()).add(new[1], 1)
    _count_arrivals(tx, groups, key, arrived, number)


def _count_arrivals(
    tx: Transaction,
    groups: dict[JobKey, dict[str, _Counts]],
    key: JobKey | None,
    place: tuple[str, str] | None,
    number: int,
) -> None:
    """New allocations of one job, all in one place of its summary; those that wait to be placed are as many fewer."""
    if key is None or place is None:
        return
    counts = _open(tx, groups, key)
    assert counts is not None
    group = counts.setdefault(place[0], _Counts())
    group.add(place[1], number)
    if place[1] == "pending":
        group.queued = max(0, group.queued - number)


def _place(alloc: Allocation | None, summary: JobSummary) -> tuple[str, str] | None:
    """The group and client status that an allocation is counted under; None when this summary does not count it."""
    # A job that was purged and registered again does not count the allocations of its former life.
    if alloc is None or (alloc.job is not None and alloc.job.create_index != summary.create_index):
        return None
    return alloc.task_group, alloc.client_status


def _count_queued(
    tx: Transaction, groups: dict[JobKey, dict[str, _Counts]], evaluation: Evaluation
) -> None:
    if not evaluation.queued_allocations:
        return
    counts = _open(tx, groups, (evaluation.namespace, evaluation.job_id))
    if counts is None:
        return
    for name, number in evaluation.queued_allocations.items():
        if name in counts:
            counts[name].queued = number


def _count_children(tx: Transaction, fresh: dict[JobKey, None]) -> None:
    """Move the parents' counts; a parent that is new was counted whole."""
    for change in [c for c in tx.changes() if c.table == "jobs"]:
        before: Job | None = change.before
        after: Job | None = change.after
        row = before if after is None else after
        assert row is not None
        parent = (row.namespace, row.parent_id)
        summary = tx.job_summary(*parent) if row.parent_id and parent not in fresh else None
        if summary is None:
            continue
        old = "" if before is None else before.status
        # A child that is removed stays counted as dead.
        new = "dead" if after is None else after.status
        if old == new:
            continue
        counts = msgspec.structs.asdict(summary.children or JobChildrenSummary())
        if old:
            counts[old] = max(0, counts[old] - 1)
        counts[new] += 1
        summary = msgspec.structs.replace(
            summary, children=JobChildrenSummary(**counts), modify_index=tx.index
        )
        tx.put(schema.JOB_SUMMARIES, parent, summary)


# -- deployments ------------------------------------------------------------------------------------


class _Progress:
    """What happened to one group of one deployment."""

    __slots__ = ("canaries", "healthy", "placed", "unhealthy")

    def __init__(self) -> None:
        self.placed = 0
        self.healthy = 0
        self.unhealthy = 0
        self.canaries: list[str] = []


def _count_deployments(tx: Transaction, allocs: list[Change]) -> None:
    found: dict[str, dict[str, _Progress]] = {}
    for change in allocs:
        after: Allocation | None = change.after
        if after is not None and after.deployment_id:
            by_group = found.setdefault(after.deployment_id, {})
            _progress_of(change.before, after, by_group.setdefault(after.task_group, _Progress()))
    for deployment_id, by_group in found.items():
        deployment = tx.deployment(deployment_id)
        if deployment is None:
            continue
        groups = dict(deployment.task_groups or {})
        for name, progress in by_group.items():
            if name in groups:
                groups[name] = _advance(groups[name], progress, tx.now_ns)
        if groups != deployment.task_groups:
            deployment = msgspec.structs.replace(
                deployment, task_groups=groups, modify_index=tx.index, modify_time=tx.now_ns
            )
            tx.put(schema.DEPLOYMENTS, deployment_id, deployment)


def _health(alloc: Allocation | None) -> bool | None:
    if alloc is None or alloc.deployment_status is None:
        return None
    return alloc.deployment_status.healthy


def _progress_of(before: Allocation | None, after: Allocation, progress: _Progress) -> None:
    if after.deployment_status is not None and after.deployment_status.canary:
        progress.canaries.append(after.id)
    if before is None or before.deployment_id != after.deployment_id:
        progress.placed += 1
        before = None
    old, new = _health(before), _health(after)
    if old == new:
        return
    progress.healthy += (new is True) - (old is True)
    progress.unhealthy += (new is False) - (old is False)


def _advance(state: DeploymentState, progress: _Progress, now_ns: int) -> DeploymentState:
    known = state.placed_canaries or []
    canaries = known + [one for one in progress.canaries if one not in known]
    deadline = state.require_progress_by
    if state.progress_deadline:
        started = progress.placed > 0 and gotime.to_ns(deadline) == 0
        moved_ns = now_ns + state.progress_deadline
        if started or (progress.healthy > 0 and moved_ns > gotime.to_ns(deadline)):
            deadline = gotime.from_ns(moved_ns)
    return msgspec.structs.replace(
        state,
        placed_canaries=canaries or state.placed_canaries,
        placed_allocs=state.placed_allocs + progress.placed,
        healthy_allocs=max(0, state.healthy_allocs + progress.healthy),
        unhealthy_allocs=max(0, state.unhealthy_allocs + progress.unhealthy),
        require_progress_by=deadline,
    )
