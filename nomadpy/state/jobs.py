"""Writes of jobs: register, stop, purge, stability, tags, scaling, and the versions, texts and events that are kept.

Statuses and summaries follow by themselves (derive.py). Rules matched: JobModifyIndex moves when the job's own content
changes, ModifyIndex at every write, Version counts content changes; registering the same content keeps Version.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nomadpy.errors import ConflictError, InvalidRequestError, NotFoundError, ValidationError
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, JobSubmission, JobVersionTag
from nomadpy.models.scaling import ScalingEvent, ScalingPolicy
from nomadpy.state import evals, host_volumes, schema
from nomadpy.state.derive import recount
from nomadpy.state.store import Transaction

TRACKED_VERSIONS = 6
"""Untagged versions that are kept of each job, and the most texts."""

SCALING_EVENTS_KEPT = 20
"""Of each group."""


def register(
    tx: Transaction,
    job: Job,
    *,
    submission: JobSubmission | None = None,
    evaluation: Evaluation | None = None,
    enforce_index: int | None = None,
    keep_submission: bool = False,
) -> Job:
    """Store a job as its next version, or find that its content is the current one; return what is stored.

    enforce_index: the JobModifyIndex that must be current, 0 that there must be none.
    keep_submission: without a text of its own, the new version takes the text of the one before.
    Raises ConflictError (enforce_index), ValidationError (namespace or node pool do not exist).
    """
    key = (job.namespace, job.id)
    existing = tx.job(*key)
    _enforce(existing, enforce_index)
    _check_places(tx, job)
    if existing is not None and same_spec(existing, job):
        stored = msgspec.structs.replace(existing, modify_index=tx.index)
        tx.put(schema.JOBS, key, stored)
    else:
        stored = msgspec.structs.replace(
            job,
            version=0 if existing is None else existing.version + 1,
            create_index=tx.index if existing is None else existing.create_index,
            modify_index=tx.index,
            job_modify_index=tx.index,
            submit_time=tx.now_ns,
            status="pending",
            status_description="",
            stable=False,
            version_tag=None,
        )
        if existing is not None and keep_submission and submission is None:
            submission = tx.job_submission(*key, existing.version)
        tx.put(schema.JOBS, key, stored)
        tx.put(schema.JOB_VERSIONS, (*key, stored.version), stored)
    if submission is not None:
        tx.put(schema.JOB_SUBMISSIONS, (*key, stored.version), submission)
    _forget_old_versions(tx, *key)
    _evaluate(tx, stored, evaluation)
    return stored


def same_spec(stored: Job, proposed: Job) -> bool:
    """Whether two jobs differ only in what the server keeps of them."""
    return _bare(stored) == _bare(proposed)


def _bare(job: Job) -> Job:
    return msgspec.structs.replace(
        job,
        status="",
        status_description="",
        stable=False,
        version=0,
        submit_time=0,
        create_index=0,
        modify_index=0,
        job_modify_index=0,
        version_tag=None,
        task_groups=[
            msgspec.structs.replace(group, scaling=_bare_policy(group.scaling))
            if group.scaling is not None
            else group
            for group in job.task_groups or []
        ],
    )


def _bare_policy(policy: ScalingPolicy) -> ScalingPolicy:
    return msgspec.structs.replace(policy, id="", create_index=0, modify_index=0)


def deregister(
    tx: Transaction,
    namespace: str,
    job_id: str,
    *,
    purge: bool,
    evaluation: Evaluation | None = None,
) -> Job:
    """Stop a job, which is a new version of it, or purge all that is known of it; return the job as it was left.

    Raises NotFoundError.
    """
    job = _existing(tx, namespace, job_id)
    if purge:
        remove(tx, namespace, job_id)
        job = msgspec.structs.replace(job, job_modify_index=tx.index, modify_index=tx.index)
        _evaluate(tx, job, evaluation)
        return job
    return register(
        tx,
        msgspec.structs.replace(job, stop=True),
        evaluation=evaluation,
        keep_submission=True,
    )


def remove(tx: Transaction, namespace: str, job_id: str) -> None:
    """Remove a job with its versions, texts, summary, scaling events and claims; its allocations stay. Harmless when unknown."""
    for version in tx.job_versions(namespace, job_id):
        tx.delete(schema.JOB_VERSIONS, (namespace, job_id, version.version))
        tx.delete(schema.JOB_SUBMISSIONS, (namespace, job_id, version.version))
    tx.delete(schema.SCALING_EVENTS, (namespace, job_id))
    host_volumes.forget_job(tx, namespace, job_id)
    tx.delete(schema.JOBS, (namespace, job_id))


def purge_all(tx: Transaction, jobs: Iterable[tuple[str, str]], *, only_dead: bool) -> None:
    """Remove collected jobs. only_dead: one that was registered again since stays."""
    for namespace, job_id in jobs:
        job = tx.job(namespace, job_id)
        if not only_dead or job is None or job.status == "dead":
            remove(tx, namespace, job_id)


def set_stability(
    tx: Transaction, namespace: str, job_id: str, version: int, *, stable: bool
) -> None:
    """Mark a version stable or not. Raises NotFoundError for a job or version that is not kept."""
    job = tx.job_version(namespace, job_id, version)
    if job is None:
        raise _no_version(namespace, job_id, version)
    if job.stable != stable:
        _update_version(tx, msgspec.structs.replace(job, stable=stable))


def set_tag(
    tx: Transaction, namespace: str, job_id: str, version: int | None, name: str, description: str
) -> JobVersionTag:
    """Name a version, the newest when `version` is None; tagged versions are kept.

    Raises NotFoundError (job, version), InvalidRequestError (another version has the name).
    """
    job = _existing(tx, namespace, job_id)
    number = job.version if version is None else version
    target = tx.job_version(namespace, job_id, number)
    if target is None:
        raise NotFoundError(f'job "{job_id}" version {number} not found')
    for other in tx.job_versions(namespace, job_id):
        taken = other.version_tag is not None and other.version_tag.name == name
        if taken and other.version != number:
            raise InvalidRequestError(
                f'tag "{name}" already exists on a different version of job "{job_id}"'
            )
    tag = JobVersionTag(name=name, description=description, tagged_time=tx.now_ns)
    _update_version(tx, msgspec.structs.replace(target, version_tag=tag))
    return tag


def unset_tag(tx: Transaction, namespace: str, job_id: str, name: str) -> None:
    """Remove a tag. Raises NotFoundError when no version has it."""
    for job in tx.job_versions(namespace, job_id):
        if job.version_tag is not None and job.version_tag.name == name:
            _update_version(tx, msgspec.structs.replace(job, version_tag=None))
            _forget_old_versions(tx, namespace, job_id)
            return
    raise NotFoundError(f'tag "{name}" not found on job "{job_id}"')


def scale(
    tx: Transaction,
    namespace: str,
    job_id: str,
    *,
    group: str,
    job: Job | None,
    event: ScalingEvent,
    evaluation: Evaluation | None = None,
    enforce_index: int | None = None,
) -> Job:
    """Record a scaling event of a group, and store the scaled job when there is one; return the job as stored.

    Raises NotFoundError, ConflictError (enforce_index), InvalidRequestError (no such group).
    """
    existing = _existing(tx, namespace, job_id)
    if group and all(known.name != group for known in existing.task_groups or []):
        raise InvalidRequestError(
            f'task group "{group}" specified for scaling does not exist in job'
        )
    _enforce(existing, enforce_index)
    if job is None:
        _evaluate(tx, existing, evaluation)
    else:
        existing = register(tx, job, evaluation=evaluation, keep_submission=True)
    event = msgspec.structs.replace(
        event,
        create_index=tx.index,
        time=event.time or tx.now_ns,
        eval_id=event.eval_id if evaluation is None else evaluation.id,
    )
    events = dict(tx.scaling_events(namespace, job_id))
    events[group] = [event, *events.get(group, [])][:SCALING_EVENTS_KEPT]
    tx.put(schema.SCALING_EVENTS, (namespace, job_id), events)
    return existing


def reconcile_summaries(tx: Transaction) -> None:
    """Count every summary anew; what is queued is kept, for only evaluations know it."""
    for job in list(tx.jobs()):
        key = (job.namespace, job.id)
        old = tx.job_summary(*key)
        known = {} if old is None else old.summary or {}
        fresh = recount(tx, job, {name: group.queued for name, group in known.items()})
        if old is None or (old.summary, old.children) != (fresh.summary, fresh.children):
            tx.put(schema.JOB_SUMMARIES, key, fresh)


def _existing(tx: Transaction, namespace: str, job_id: str) -> Job:
    job = tx.job(namespace, job_id)
    if job is None:
        raise NotFoundError("job not found")
    return job


def _no_version(namespace: str, job_id: str, version: int) -> NotFoundError:
    return NotFoundError(
        f'job "{job_id}" in namespace "{namespace}" at version {version} not found', status=500
    )


def _enforce(existing: Job | None, index: int | None) -> None:
    if index is None:
        return
    prefix = f"Enforcing job modify index {index}"
    if existing is None:
        if index:
            raise ConflictError(f"{prefix}: job does not exist", status=500)
    elif index == 0:
        raise ConflictError(f"{prefix}: job already exists", status=500)
    elif index != existing.job_modify_index:
        raise ConflictError(
            f"{prefix}: job exists with conflicting job modify index: {existing.job_modify_index}",
            status=500,
        )


def _check_places(tx: Transaction, job: Job) -> None:
    if tx.namespace(job.namespace) is None:
        raise ValidationError(f'job "{job.id}" is in nonexistent namespace "{job.namespace}"')
    if tx.node_pool(job.node_pool) is None:
        raise ValidationError(f'job "{job.id}" is in nonexistent node pool "{job.node_pool}"')


def _evaluate(tx: Transaction, job: Job, evaluation: Evaluation | None) -> None:
    if evaluation is not None:
        # Whoever proposed it could not know the index that the job was to get.
        evaluation = msgspec.structs.replace(evaluation, job_modify_index=job.job_modify_index)
        evals.upsert(tx, [evaluation])


def _update_version(tx: Transaction, version: Job) -> None:
    """Write bookkeeping of one version; the current version is also the job."""
    key = (version.namespace, version.id)
    version = msgspec.structs.replace(version, modify_index=tx.index)
    current = tx.job(*key)
    if current is not None and current.version == version.version:
        # The job's status moves without its version's row.
        version = msgspec.structs.replace(version, status=current.status)
        tx.put(schema.JOBS, key, version)
    tx.put(schema.JOB_VERSIONS, (*key, version.version), version)


def _forget_old_versions(tx: Transaction, namespace: str, job_id: str) -> None:
    versions = tx.job_versions(namespace, job_id)
    untagged = [job for job in versions if job.version_tag is None]
    kept = untagged[:TRACKED_VERSIONS]
    old = untagged[TRACKED_VERSIONS:]
    stable = next((job for job in untagged if job.stable), None)
    if old and stable is not None and stable in old:
        # What a failed deployment reverts to outlives newer versions that never became stable.
        old.remove(stable)
        old.append(kept.pop())
    for job in old:
        tx.delete(schema.JOB_VERSIONS, (namespace, job_id, job.version))
        tx.delete(schema.JOB_SUBMISSIONS, (namespace, job_id, job.version))
    texts = [
        job.version
        for job in versions
        if tx.job_submission(namespace, job_id, job.version) is not None
    ]
    for number in texts[TRACKED_VERSIONS:]:
        tx.delete(schema.JOB_SUBMISSIONS, (namespace, job_id, number))
