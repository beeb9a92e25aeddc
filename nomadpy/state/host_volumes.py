"""Writes of dynamic host volumes, and of the claims that sticky ones leave.

A volume's state follows its node: ready once the node says that it has it, unavailable while the node is down or gone.
Claims are made where placements are applied; a group holds a volume once, and who comes after an allocation takes its claim over.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence

import msgspec

from nomadpy.errors import ConflictError, InvalidRequestError, NotFoundError
from nomadpy.models.allocation import Allocation
from nomadpy.models.host_volume import (
    READY,
    UNAVAILABLE,
    HostVolume,
    TaskGroupHostVolumeClaim,
    group_of,
    host_requests,
    index_of,
    source_of,
)
from nomadpy.models.job import Job, VolumeRequest
from nomadpy.models.node import Node
from nomadpy.state import schema
from nomadpy.state.reads import Reads
from nomadpy.state.store import Transaction

CLAIMS_SINCE = 3
"""The log format from which placements make claims."""

_GONE = ("down", "disconnected")


def upsert(tx: Transaction, volumes: Iterable[HostVolume]) -> list[str]:
    """Store volumes, and return their ids. One with a create_index must be there still.

    Raises InvalidRequestError (no such namespace), NotFoundError, ConflictError (the node has another volume of that name).
    """
    ids: list[str] = []
    for volume in volumes:
        key = (volume.namespace, volume.id)
        existing = tx.host_volume(*key)
        if tx.namespace(volume.namespace) is None:
            raise InvalidRequestError(
                f'volume "{volume.name}" is in nonexistent namespace "{volume.namespace}"'
            )
        if existing is None and volume.create_index:
            raise NotFoundError("volume not found")
        for other in tx.host_volumes_by_node(volume.node_id):
            if other.id != volume.id and same_name(other, volume):
                raise taken(other)
        stored = msgspec.structs.replace(
            volume,
            allocations=None,
            create_index=tx.index if existing is None else existing.create_index,
            create_time=tx.now_ns if existing is None else existing.create_time,
            modify_index=tx.index,
            modify_time=tx.now_ns,
        )
        tx.put(schema.HOST_VOLUMES, key, stored)
        ids.append(volume.id)
    return ids


def delete(tx: Transaction, namespace: str, ids: Sequence[str]) -> None:
    """Remove volumes with the claims on them, all or none. Raises NotFoundError, ConflictError (allocations use one)."""
    for volume_id in ids:
        volume = tx.host_volume(namespace, volume_id)
        if volume is None:
            raise NotFoundError("volume not found")
        users = users_of(tx, volume)
        if users:
            raise in_use(volume, users)
        for claim in tx.volume_claims_by_volume(volume_id):
            tx.delete(schema.VOLUME_CLAIMS, claim.id)
        tx.delete(schema.HOST_VOLUMES, (namespace, volume_id))


def delete_claim(tx: Transaction, claim_id: str) -> None:
    """Forget a claim. Raises NotFoundError."""
    if tx.delete(schema.VOLUME_CLAIMS, claim_id) is None:
        raise NotFoundError("volume claim not found")


def forget_job(tx: Transaction, namespace: str, job_id: str) -> None:
    """The job was purged, and its claims go with it."""
    for claim in tx.volume_claims_by_job(namespace, job_id):
        tx.delete(schema.VOLUME_CLAIMS, claim.id)


def follow(tx: Transaction, node_id: str) -> None:
    """Bring the volumes of a node to the state that the node is in."""
    node = tx.node(node_id)
    for volume in tx.host_volumes_by_node(node_id):
        state, path = volume.state, volume.host_path
        there = (node.host_volumes or {}).get(volume.name) if node is not None else None
        has = there is not None and there.id == volume.id
        if node is None or node.status in _GONE or not has:
            state = UNAVAILABLE if state == READY else state
        elif not volume.deleting:
            assert there is not None
            state, path = READY, path or there.path
        if state != volume.state:
            volume = msgspec.structs.replace(
                volume,
                state=state,
                host_path=path,
                modify_index=tx.index,
                modify_time=tx.now_ns,
            )
            tx.put(schema.HOST_VOLUMES, (volume.namespace, volume.id), volume)


def users_of(state: Reads, volume: HostVolume) -> list[str]:
    """Ids of the allocations that use a volume and have not ended."""
    return [
        alloc.id
        for alloc in state.allocs_by_node(volume.node_id)
        if alloc.namespace == volume.namespace
        and alloc.client_status not in schema.CLIENT_TERMINAL
        and uses(alloc, volume)
    ]


def uses(alloc: Allocation, volume: HostVolume) -> bool:
    """Whether an allocation of the volume's node asks for it."""
    index = index_of(alloc.name)
    return any(
        source_of(request, index) == volume.name
        for request in host_requests(group_of(alloc.job, alloc.task_group))
    )


def same_name(one: HostVolume, other: HostVolume) -> bool:
    """Whether two volumes cannot be on one node."""
    return one.name == other.name and one.namespace == other.namespace


def taken(other: HostVolume) -> ConflictError:
    """A node has a volume of that name in the namespace."""
    return ConflictError(
        f'node {other.node_id} has a volume "{other.name}" in namespace "{other.namespace}" already: {other.id}. '
        "Choose another name or node, or give that ID to change it",
        status=400,
    )


def in_use(volume: HostVolume, users: Sequence[str]) -> ConflictError:
    """Allocations use a volume."""
    return ConflictError(
        f"volume {volume.id} is in use by allocations: {', '.join(sorted(users))}. Stop their job first",
        status=400,
    )


# -- claims -------------------------------------------------------------------------------------------------


def claim(tx: Transaction, placements: Iterable[Allocation], planned: Job | None) -> None:
    """Claim the sticky volumes of what a plan has just placed. Nothing in a log that older servers read.

    planned: the job of the placements that bring none of their own.
    """
    if tx.log_format() < CLAIMS_SINCE:
        return
    groups = (planned.task_groups if planned is not None else None) or ()
    sticky = {group.name for group in groups if any(one.sticky for one in host_requests(group))}
    for placed in placements:
        if placed.job is None and placed.task_group not in sticky:
            continue
        alloc = tx.alloc(placed.id)
        if alloc is not None and alloc.create_index == tx.index:
            _claim(tx, alloc)


def _claim(tx: Transaction, alloc: Allocation) -> None:
    group = group_of(alloc.job, alloc.task_group)
    wanted = [request for request in host_requests(group) if request.sticky]
    node = tx.node(alloc.node_id) if wanted else None
    if node is None:
        return
    held = {
        one.volume_id: one
        for one in tx.volume_claims_by_job(alloc.namespace, alloc.job_id)
        if one.task_group_name == alloc.task_group
    }
    for request in wanted:
        volume_id = _volume_at(node, request, alloc)
        if not volume_id:
            continue
        before = held.get(volume_id)
        if before is None:
            after = TaskGroupHostVolumeClaim(
                id=_claim_id(alloc.id, volume_id),
                namespace=alloc.namespace,
                job_id=alloc.job_id,
                task_group_name=alloc.task_group,
                alloc_id=alloc.id,
                volume_id=volume_id,
                volume_name=source_of(request, index_of(alloc.name)),
                create_index=tx.index,
                modify_index=tx.index,
            )
        elif before.alloc_id == alloc.previous_allocation or _is_over(tx, before.alloc_id):
            after = msgspec.structs.replace(before, alloc_id=alloc.id, modify_index=tx.index)
        else:
            # Two allocations of the group share it; the claim stays with the first.
            continue
        held[volume_id] = after
        tx.put(schema.VOLUME_CLAIMS, after.id, after)


def _volume_at(node: Node, request: VolumeRequest, alloc: Allocation) -> str:
    there = (node.host_volumes or {}).get(source_of(request, index_of(alloc.name)))
    return "" if there is None else there.id


def _is_over(tx: Transaction, alloc_id: str) -> bool:
    holder = tx.alloc(alloc_id)
    return holder is None or schema.alloc_is_terminal(holder)


def _claim_id(alloc_id: str, volume_id: str) -> str:
    """The same on every server: of what is claimed by whom."""
    digest = hashlib.blake2b(f"{alloc_id}/{volume_id}".encode(), digest_size=16).digest()
    return str(uuid.UUID(bytes=digest))
