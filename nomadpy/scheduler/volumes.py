"""Which nodes have the host volumes that a group's next allocation needs, beyond having volumes of those names.

A static volume is there or not, which feasibility.py says. A dynamic one is in the state: it must be ready, offer what is
asked, not be written by who must write alone; and a sticky one must be the one that the group holds (state/host_volumes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.host_volume import (
    READER_ONLY,
    READY,
    SINGLE_WRITER,
    HostVolume,
    access_of,
    attachment_of,
    group_of,
    host_requests,
    index_of,
    source_of,
)
from nomadpy.models.job import Job, TaskGroup, VolumeRequest
from nomadpy.models.node import Node
from nomadpy.models.plan import Plan
from nomadpy.scheduler.cluster import NodeState
from nomadpy.scheduler.fit import NodePlan, terminal
from nomadpy.scheduler.snapshot import Snapshot

MISSING = "missing compatible host volumes"
"""What metrics say of a node that lacks a volume, whatever the reason."""


def per_alloc(group: TaskGroup) -> bool:
    """Whether each allocation of the group asks for a volume of its own, so that nodes differ by allocation."""
    return any(request.per_alloc for request in host_requests(group))


def sticky(group: TaskGroup) -> bool:
    """Whether allocations of the group hold volumes."""
    return any(request.sticky for request in host_requests(group))


def keeps_data(group: TaskGroup) -> bool:
    """Whether allocations of the group write what would stay behind if they moved."""
    return any(not request.read_only for request in host_requests(group))


class Aim(msgspec.Struct, frozen=True):
    """For each source of a sticky request, the ids of the volumes that will do; no entry is any. unclaimed: held by nobody."""

    allowed: dict[str, frozenset[str]] = {}
    unclaimed: bool = False


class GroupClaims:
    """What one group of a job holds, as a pass goes on."""

    def __init__(
        self, snapshot: Snapshot, job: Job, group: str, leaving: Collection[str] = ()
    ) -> None:
        """leaving: ids of allocations that the pass replaces, whose claims are their successors'."""
        self._snapshot = snapshot
        self._leaving = frozenset(leaving)
        # Volume id to who holds it, and to the volume's name.
        self._holder: dict[str, str] = {}
        self._name: dict[str, str] = {}
        self._namespace = job.namespace
        self._placed: set[str] = set()
        for claim in snapshot.volume_claims_by_job(job.namespace, job.id):
            if claim.task_group_name == group:
                self._holder[claim.volume_id] = claim.alloc_id
                self._name[claim.volume_id] = claim.volume_name

    def aims(self, group: TaskGroup, previous: Allocation | None) -> list[Aim]:
        """What the next allocation may have, the best first. previous: whom it comes after."""
        allowed: dict[str, frozenset[str]] = {}
        for request in host_requests(group):
            if request.sticky:
                ids = self._allowed(request.source, previous)
                if ids:
                    allowed[request.source] = ids
        if allowed:
            return [Aim(allowed)]
        return [Aim(unclaimed=True), Aim()]

    def take(self, alloc: Allocation, group: TaskGroup, node: Node) -> None:
        """The allocation was placed."""
        self._placed.add(alloc.id)
        for request in host_requests(group):
            there = (node.host_volumes or {}).get(request.source) if request.sticky else None
            if there is not None and there.id:
                self._name[there.id] = request.source
                if self._is_free(self._holder.get(there.id, "")) or (
                    self._holder.get(there.id) == alloc.previous_allocation
                ):
                    self._holder[there.id] = alloc.id

    def is_claimed(self, volume_id: str) -> bool:
        """Whether any group holds the volume."""
        return volume_id in self._holder or bool(self._snapshot.volume_claims_by_volume(volume_id))

    def _allowed(self, source: str, previous: Allocation | None) -> frozenset[str]:
        mine = [volume_id for volume_id, name in self._name.items() if name == source]
        if previous is not None:
            held = [one for one in mine if self._holder[one] == previous.id]
            # Where two of the group shared a volume, only one is named by the claim.
            held = held or [one for one in mine if self._node_of(one) == previous.node_id]
            if held:
                return frozenset(held)
        return frozenset(one for one in mine if self._is_free(self._holder[one]))

    def _node_of(self, volume_id: str) -> str:
        volume = self._snapshot.host_volume(self._namespace, volume_id)
        return "" if volume is None else volume.node_id

    def _is_free(self, alloc_id: str) -> bool:
        """Whether nobody comes after the holder any more, and whoever is new may have the volume."""
        if alloc_id in self._leaving or alloc_id in self._placed:
            return False
        holder = self._snapshot.alloc(alloc_id)
        if holder is None:
            return True
        if not terminal(holder):
            return False
        # One that failed and waits to be rescheduled has a successor.
        return not (holder.desired_status == "run" and holder.followup_eval_id)


class VolumeRules:
    """What a group's next allocation asks of a node's volumes."""

    def __init__(
        self, snapshot: Snapshot, job: Job, group: TaskGroup, index: int, claims: GroupClaims
    ) -> None:
        """index: of the allocation, for per_alloc."""
        self._snapshot = snapshot
        self._job = job
        self._claims = claims
        self._requests = [(source_of(one, index), one) for one in host_requests(group)]
        self.aim = Aim()

    def __bool__(self) -> bool:
        return bool(self._requests)

    def problem(self, state: NodeState) -> str:
        """Why no allocation may go to the node as it is now, or ""."""
        return MISSING if self.why(state) else ""

    def why(self, state: NodeState) -> str:
        """The same in a sentence about the node."""
        for source, request in self._requests:
            found = lacks(
                self._snapshot, self._job, state.node, source, request, state.wanted
            ) or self._off_aim(state.node, source, request)
            if found:
                return found
        return ""

    def _off_aim(self, node: Node, source: str, request: VolumeRequest) -> str:
        there = (node.host_volumes or {}).get(source)
        if not request.sticky or there is None or not there.id:
            return ""
        allowed = self.aim.allowed.get(source)
        if allowed is not None and there.id not in allowed:
            held = ", ".join(sorted(allowed))
            return (
                f'its volume "{source}" ({there.id}) is not the one that the group holds ({held})'
            )
        if self.aim.unclaimed and self._claims.is_claimed(there.id):
            return f'its volume "{source}" ({there.id}) is held by another group'
        return ""


def lacks(
    snapshot: Snapshot,
    job: Job,
    node: Node,
    source: str,
    request: VolumeRequest,
    others: Callable[[], Iterable[Allocation]],
) -> str:
    """Why a node cannot give a volume, as a sentence about the node, or "". others: what else shall run there."""
    there = (node.host_volumes or {}).get(source)
    if there is None:
        return f'it has no host volume "{source}"'
    if there.read_only and not request.read_only:
        return f'its host volume "{source}" is read only'
    if not there.id:
        return ""
    volume = snapshot.host_volume(job.namespace, there.id)
    if volume is None:
        return f'its volume "{source}" is not one of namespace "{job.namespace}"'
    if volume.state != READY:
        return f'its volume "{source}" is {volume.state}'
    access, attachment = access_of(request), attachment_of(request)
    if not _offers(volume, access, attachment):
        offered = ", ".join(
            f"{one.access_mode} {one.attachment_mode}"
            for one in volume.requested_capabilities or ()
        )
        return f'its volume "{source}" does not offer {access} {attachment}, only {offered or "nothing"}'
    if request.read_only:
        return ""
    if access == READER_ONLY:
        return f'its volume "{source}" would be written, and {READER_ONLY} is asked for'
    for other in others():
        if _writes(snapshot, other, job.namespace, source, alone=access != SINGLE_WRITER):
            return (
                f'its volume "{source}" is written by allocation {other.id} of job "{other.job_id}"'
            )
    return ""


def _offers(volume: HostVolume, access: str, attachment: str) -> bool:
    return any(
        one.access_mode == access and one.attachment_mode == attachment
        for one in volume.requested_capabilities or ()
    )


def _writes(
    snapshot: Snapshot, alloc: Allocation, namespace: str, source: str, *, alone: bool
) -> bool:
    """Whether an allocation of the volume's node writes to it. alone: only if it must be the only one."""
    if alloc.namespace != namespace:
        return False
    job = alloc.job or snapshot.job(alloc.namespace, alloc.job_id)
    index = index_of(alloc.name)
    return any(
        source_of(one, index) == source
        and not one.read_only
        and (not alone or access_of(one) == SINGLE_WRITER)
        for one in host_requests(group_of(job, alloc.task_group))
    )


class PlanVolumes:
    """Whether the volumes of what a plan places are still to be had; for the re-check on the newest state."""

    def __init__(self, snapshot: Snapshot, plan: Plan) -> None:
        self._snapshot = snapshot
        ref = plan.job
        self._job = (
            None if ref is None else snapshot.job_version(ref.namespace, ref.job_id, ref.version)
        )
        jobs = [
            self._job,
            *{id(a.job): a.job for a in plan.placements if a.job is not None}.values(),
        ]
        self._concerned = any(
            any(host_requests(group))
            for job in jobs
            if job is not None
            for group in job.task_groups or ()
        )

    def problem(
        self, node_id: str, present: Callable[[str], Iterable[Allocation]], wanted: NodePlan
    ) -> str:
        """Why the plan's part on one node may not be, or "". present: the allocations of a node."""
        if not self._concerned or not wanted.placements:
            return ""
        node = self._snapshot.node(node_id)
        gone = {stop.alloc_id for stop in wanted.stops if stop.desired_status != "run"}
        there = {one.id: one for one in present(node_id) if not terminal(one)}
        others = [one for one in there.values() if one.id not in gone]
        for alloc in wanted.placements:
            if alloc.id in there:
                continue
            job = alloc.job or self._job
            index = index_of(alloc.name)
            for request in host_requests(group_of(job, alloc.task_group)):
                if node is None or job is None:
                    return MISSING
                source = source_of(request, index)
                found = lacks(self._snapshot, job, node, source, request, lambda: others)
                if found:
                    return f"{MISSING}: {found}"
            others.append(alloc)
        return ""
