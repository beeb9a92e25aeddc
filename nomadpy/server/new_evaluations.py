"""Evaluations made by the servers themselves: for a job, for all that a node touches, for a deployment.

Pure, but for the ids, which an Entropy gives.
"""

from __future__ import annotations

import fnmatch

from nomadpy.entropy import Entropy
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job
from nomadpy.models.node import Node
from nomadpy.state.store import Snapshot

SYSTEM_TYPES = ("system", "sysbatch")
# The state machine fills in the index of a registration; the wire has none for the others.
_WITHOUT_JOB_INDEX = ("job-register", "deployment-watcher", "alloc-failure")


def for_job(
    job: Job,
    triggered_by: str,
    *,
    entropy: Entropy,
    now_ns: int,
    priority: int = 0,
    deployment_id: str = "",
    node_id: str = "",
) -> Evaluation:
    """A pending evaluation of `job`; priority 0 takes the job's."""
    return Evaluation(
        id=entropy.uuid(),
        namespace=job.namespace,
        priority=priority or job.priority,
        type=job.type,
        triggered_by=triggered_by,
        job_id=job.id,
        job_modify_index=0 if triggered_by in _WITHOUT_JOB_INDEX else job.modify_index,
        deployment_id=deployment_id,
        node_id=node_id,
        status="pending",
        create_time=now_ns,
        modify_time=now_ns,
    )


def is_schedulable(job: Job) -> bool:
    """False for parents that only launch children: periodic and parameterized jobs."""
    if job.periodic is not None and job.periodic.enabled:
        return False
    return job.parameterized_job is None or job.dispatched


def for_node(
    snapshot: Snapshot, node: Node, *, entropy: Entropy, now_ns: int, new_capacity: bool = False
) -> list[Evaluation]:
    """Evaluations `node-update` of every job that has an allocation on the node, and of every system job that could run
    on it. new_capacity: the node became usable, so system jobs matter even when they have nothing there yet."""
    made: list[Evaluation] = []
    seen: set[tuple[str, str]] = set()
    for alloc in snapshot.allocs_by_node(node.id):
        key = (alloc.namespace, alloc.job_id)
        if key in seen:
            continue
        job = snapshot.job(*key) or alloc.job
        if job is None or (alloc.desired_status != "run" and _is_over(alloc.client_status)):
            continue
        seen.add(key)
        made.append(for_job(job, "node-update", entropy=entropy, now_ns=now_ns, node_id=node.id))
    if new_capacity or node.status == "ready":
        for job in snapshot.jobs(None):
            key = (job.namespace, job.id)
            if job.type not in SYSTEM_TYPES or key in seen or job.stop or not is_schedulable(job):
                continue
            if in_pool(job, node) and in_datacenter(job, node):
                made.append(
                    for_job(job, "node-update", entropy=entropy, now_ns=now_ns, node_id=node.id)
                )
    return made


def in_pool(job: Job, node: Node) -> bool:
    """True when the job's pool takes the node; the pool `all` takes every node."""
    return job.node_pool in ("all", node.node_pool)


def in_datacenter(job: Job, node: Node) -> bool:
    """True when one of the job's datacenter patterns matches the node's."""
    return any(fnmatch.fnmatchcase(node.datacenter, p) for p in job.datacenters or ["*"])


def _is_over(client_status: str) -> bool:
    return client_status in ("complete", "failed", "lost")
