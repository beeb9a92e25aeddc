"""What a system or sysbatch job should have on each node against what it has there.

A node that is merely ineligible keeps what runs on it and gets nothing new. A node that the job no longer fits (its
datacenter, pool, constraints) loses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.job import Job
from nomadpy.models.node import Node
from nomadpy.models.plan import AllocStop
from nomadpy.scheduler.alloc_sets import disconnect_rules
from nomadpy.scheduler.feasibility import ALL_POOL
from nomadpy.scheduler.fit import server_terminal, terminal
from nomadpy.scheduler.reconcile_groups import LOST, NOT_NEEDED
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.scheduler.updates import find_group, needs_replacement, same_version

TAINTED = "alloc not needed as node is tainted"


class NodePlace(msgspec.Struct, frozen=True):
    """A group to start on a node. previous: the id of the ended allocation that it follows, or ""."""

    group: str
    node_id: str
    previous: str


class NodeWork(msgspec.Struct):
    """What is to be done, in the order of nodes and groups. The dicts count by group, for annotations."""

    stops: list[AllocStop] = []
    places: list[NodePlace] = []
    in_place: list[Allocation] = []
    destructive: list[Allocation] = []
    ignored: dict[str, int] = {}
    stopped: dict[str, int] = {}
    migrated: dict[str, int] = {}


def reconcile_nodes(
    job: Job | None,
    targets: Mapping[str, Node],
    allocs: Iterable[Allocation],
    snapshot: Snapshot,
    feasible: Callable[[Node, str], bool],
) -> NodeWork:
    """Return the work. targets: the ready nodes of the job; feasible: whether a node may run a group, room aside."""
    work = NodeWork()
    live: dict[tuple[str, str], list[Allocation]] = {}
    ended: dict[tuple[str, str], Allocation] = {}
    for alloc in sorted(allocs, key=lambda one: (one.create_index, one.id)):
        key = (alloc.node_id, alloc.task_group)
        if terminal(alloc):
            ended[key] = alloc
        else:
            live.setdefault(key, []).append(alloc)
    for (node_id, group), present in sorted(live.items()):
        # More than one is a leftover of a fault: the newest stays.
        for extra in present[:-1]:
            _stop(work, extra, NOT_NEEDED)
        _judge(work, job, snapshot.node(node_id), group, present[-1], feasible)
    if job is None or job.stop:
        return work
    for node_id, node in targets.items():
        for task_group in job.task_groups or ():
            key = (node_id, task_group.name)
            if task_group.count <= 0 or key in live or not feasible(node, task_group.name):
                continue
            before = ended.get(key)
            if before is not None and _done(before, job):
                _add(work.ignored, task_group.name)
                continue
            followed = before.id if before is not None and not server_terminal(before) else ""
            work.places.append(NodePlace(group=task_group.name, node_id=node_id, previous=followed))
    return work


def _judge(
    work: NodeWork,
    job: Job | None,
    node: Node | None,
    group: str,
    alloc: Allocation,
    feasible: Callable[[Node, str], bool],
) -> None:
    """Decide about one live allocation."""
    wanted = find_group(job, group) if job is not None and not job.stop else None
    if (
        node is None
        or node.status == "down"
        or (node.status == "disconnected" and disconnect_rules(wanted).lost_after_ns is None)
    ):
        _stop(work, alloc, LOST, client_status="lost")
    elif job is None or wanted is None or wanted.count <= 0:
        _stop(work, alloc, NOT_NEEDED)
    elif alloc.desired_transition is not None and alloc.desired_transition.migrate:
        _add(work.migrated, group)
        _stop(work, alloc, TAINTED, counted=False)
    elif node.status == "disconnected":
        _add(work.ignored, group)
    elif not _in_pool(job, node) or not feasible(node, group):
        _stop(work, alloc, NOT_NEEDED)
    elif alloc.job is None or same_version(alloc.job, job):
        _add(work.ignored, group)
    elif node.scheduling_eligibility == "ineligible":
        # Nothing new may go there, so an update has to wait.
        _add(work.ignored, group)
    elif needs_replacement(alloc.job, job, group):
        work.destructive.append(alloc)
    else:
        work.in_place.append(alloc)


def _done(alloc: Allocation, job: Job) -> bool:
    """Whether a sysbatch job has done its work on the node, as far as this version is concerned."""
    if job.type != "sysbatch" or alloc.client_status != "complete" or server_terminal(alloc):
        return False
    if alloc.job is None or same_version(alloc.job, job):
        return True
    return not needs_replacement(alloc.job, job, alloc.task_group)


def _in_pool(job: Job, node: Node) -> bool:
    return job.node_pool in (ALL_POOL, node.node_pool or "default", "")


def _stop(
    work: NodeWork,
    alloc: Allocation,
    description: str,
    *,
    client_status: str = "",
    counted: bool = True,
) -> None:
    if counted:
        _add(work.stopped, alloc.task_group)
    work.stops.append(
        AllocStop(
            alloc_id=alloc.id,
            node_id=alloc.node_id,
            description=description,
            client_status=client_status,
        )
    )


def _add(counts: dict[str, int], group: str) -> None:
    counts[group] = counts.get(group, 0) + 1
