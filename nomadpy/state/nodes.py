"""Writes of nodes and node pools.

Source: upsertNodeTxn, UpdateNodeStatus, UpdateNodeDrain, UpdateNodeEligibility in nomad/state/state_store.go of Nomad.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable

import msgspec

from nomadpy.errors import ConflictError, InvalidRequestError, NotFoundError, ValidationError
from nomadpy.models import gotime
from nomadpy.models.node import DrainMetadata, DrainStrategy, Node, NodeEvent, NodePool
from nomadpy.state import host_volumes, schema
from nomadpy.state.store import Transaction

EVENTS_KEPT = 10
SECOND_NS = 1_000_000_000

ELIGIBLE = "eligible"
INELIGIBLE = "ineligible"
_UNRESPONSIVE = frozenset({"down", "disconnected"})
_STATUSES = frozenset({"initializing", "ready", "down", "disconnected"})


def register(tx: Transaction, node: Node) -> None:
    """Store what an agent says of its node; what servers decide about it stays as it was.

    The first registration binds the node's secret to its id. A node that is down takes the status it registers with;
    any other keeps its own. An unknown node pool is made. Raises ConflictError for another secret.
    """
    existing = tx.node(node.id)
    pool = node.node_pool or schema.DEFAULT_POOL
    node = msgspec.structs.replace(
        node,
        node_pool=pool,
        modify_index=tx.index,
        computed_class=computed_class(msgspec.structs.replace(node, node_pool=pool)),
    )
    if existing is None:
        node = msgspec.structs.replace(
            node,
            create_index=tx.index,
            status=node.status or "initializing",
            status_updated_at=tx.now_ns // SECOND_NS,
            scheduling_eligibility=node.scheduling_eligibility or ELIGIBLE,
            drain=False,
            drain_strategy=None,
            last_drain=None,
            events=[_cluster_event(tx, "Node registered")],
        )
    else:
        if not hmac.compare_digest(existing.secret_id.encode(), node.secret_id.encode()):
            raise ConflictError("node secret ID does not match. Not registering node.", status=500)
        node = _registered_again(tx, existing, node)
    if tx.node_pool(pool) is None:
        upsert_pools(tx, [NodePool(name=pool, node_identity_ttl=86_400 * SECOND_NS)])
    tx.put(schema.NODES, node.id, node)
    host_volumes.follow(tx, node.id)


def _registered_again(tx: Transaction, existing: Node, node: Node) -> Node:
    returns = existing.status == "down" and node.status != "down"
    status = existing.status
    events = existing.events
    if returns:
        status = node.status or "initializing"
        event = _cluster_event(tx, "Node re-registered")
        events = _with_event(tx, existing, event)
    return msgspec.structs.replace(
        node,
        create_index=existing.create_index,
        status=status,
        status_description=existing.status_description,
        status_updated_at=tx.now_ns // SECOND_NS if returns else existing.status_updated_at,
        scheduling_eligibility=existing.scheduling_eligibility,
        drain=existing.drain,
        drain_strategy=existing.drain_strategy,
        last_drain=existing.last_drain,
        events=events,
        last_missed_heartbeat_index=existing.last_missed_heartbeat_index,
        last_alloc_update_index=existing.last_alloc_update_index,
    )


def set_status(tx: Transaction, node_id: str, status: str, event: NodeEvent | None) -> None:
    """Change a node's status. Raises NotFoundError, InvalidRequestError."""
    if status not in _STATUSES:
        raise InvalidRequestError(f'invalid status "{status}"', status=500)
    node = _existing(tx, node_id)
    missed = node.last_missed_heartbeat_index
    if status in _UNRESPONSIVE and node.status not in _UNRESPONSIVE:
        missed = tx.index
    elif status == "ready":
        missed = 0
    tx.put(
        schema.NODES,
        node_id,
        msgspec.structs.replace(
            node,
            status=status,
            status_updated_at=tx.now_ns // SECOND_NS,
            events=_with_event(tx, node, event),
            last_missed_heartbeat_index=missed,
            modify_index=tx.index,
        ),
    )
    host_volumes.follow(tx, node_id)


def set_drain(
    tx: Transaction,
    node_id: str,
    drain: DrainStrategy | None,
    *,
    mark_eligible: bool,
    meta: dict[str, str] | None,
    event: NodeEvent | None,
    last_status: str,
    accessor_id: str,
) -> None:
    """Begin, change or end a drain. last_status: draining | complete | canceled, told by LastDrain.

    A draining node is ineligible; ending the drain makes it eligible only when asked. Raises NotFoundError.
    """
    node = _existing(tx, node_id)
    eligibility = node.scheduling_eligibility
    if drain is not None:
        eligibility = INELIGIBLE
    elif mark_eligible:
        eligibility = ELIGIBLE
    tx.put(
        schema.NODES,
        node_id,
        msgspec.structs.replace(
            node,
            drain=drain is not None,
            drain_strategy=drain,
            scheduling_eligibility=eligibility,
            last_drain=_last_drain(tx, node, drain, meta, last_status, accessor_id),
            events=_with_event(tx, node, event),
            status_updated_at=tx.now_ns // SECOND_NS,
            modify_index=tx.index,
        ),
    )


def _last_drain(
    tx: Transaction,
    node: Node,
    drain: DrainStrategy | None,
    meta: dict[str, str] | None,
    status: str,
    accessor_id: str,
) -> DrainMetadata | None:
    now = gotime.from_ns(tx.now_ns // SECOND_NS * SECOND_NS)
    last = node.last_drain
    if node.drain_strategy is None:
        if drain is None:
            # There was no drain to end.
            return last
        last = None
    if not status:
        status = "draining" if drain is not None else "canceled"
    return DrainMetadata(
        started_at=now if last is None else last.started_at,
        updated_at=now,
        status=status,
        # The drainer, which ends a drain, is nobody; who began it stays.
        accessor_id=accessor_id or ("" if last is None else last.accessor_id),
        meta=meta if meta is not None or last is None else last.meta,
    )


def set_eligibility(
    tx: Transaction, node_id: str, eligibility: str, event: NodeEvent | None
) -> None:
    """Let a node take new allocations, or not. Raises NotFoundError, InvalidRequestError (also while it drains)."""
    if eligibility not in (ELIGIBLE, INELIGIBLE):
        raise InvalidRequestError(f'invalid scheduling eligibility "{eligibility}"', status=500)
    node = _existing(tx, node_id)
    if node.drain_strategy is not None and eligibility == ELIGIBLE:
        raise InvalidRequestError(
            "can not set node's scheduling eligibility to eligible while it is draining", status=500
        )
    tx.put(
        schema.NODES,
        node_id,
        msgspec.structs.replace(
            node,
            scheduling_eligibility=eligibility,
            events=_with_event(tx, node, event),
            status_updated_at=tx.now_ns // SECOND_NS,
            modify_index=tx.index,
        ),
    )


def deregister(tx: Transaction, node_ids: Iterable[str]) -> None:
    """Remove nodes. Raises NotFoundError when none of them is known."""
    gone = []
    for node_id in node_ids:
        gone.append(tx.delete(schema.NODES, node_id))
        host_volumes.follow(tx, node_id)
    if all(node is None for node in gone):
        raise NotFoundError("node not found")


def note_alloc_updates(tx: Transaction, node_ids: Iterable[str]) -> None:
    """Remember that agents told of their allocations, for those whose heartbeats had been missed.

    For the others nobody asks, and writing it would wake every reader of nodes at each update.
    """
    for node_id in dict.fromkeys(node_ids):
        node = tx.node(node_id)
        if node is not None and node.last_missed_heartbeat_index > node.last_alloc_update_index:
            node = msgspec.structs.replace(node, last_alloc_update_index=tx.index)
            tx.put(schema.NODES, node_id, node)


# -- node pools ---------------------------------------------------------------------------------------


def upsert_pools(tx: Transaction, pools: Iterable[NodePool]) -> None:
    """Make or change node pools. Raises InvalidRequestError for a built-in one."""
    for pool in pools:
        if pool.name in schema.BUILT_IN_POOLS:
            raise InvalidRequestError(f'modifying node pool "{pool.name}" is not allowed')
        existing = tx.node_pool(pool.name)
        if not pool.node_identity_ttl:
            pool = msgspec.structs.replace(pool, node_identity_ttl=86_400 * SECOND_NS)
        stored = msgspec.structs.replace(
            pool,
            create_index=tx.index if existing is None else existing.create_index,
            modify_index=tx.index,
            hash=_pool_hash(pool),
        )
        tx.put(schema.NODE_POOLS, pool.name, stored)


def delete_pools(tx: Transaction, names: Iterable[str], *, region: str) -> None:
    """Remove node pools, all of them or none. Raises ValidationError, NotFoundError. region: named in the error."""
    for name in names:
        if tx.node_pool(name) is None:
            raise NotFoundError("node pool not found")
        if tx.nodes_by_pool(name):
            raise _pool_in_use(f'node pool "{name}" has nodes in regions: [{region}]')
        if any(job.status != "dead" for job in tx.jobs_by_pool(name)):
            raise _pool_in_use(f'node pool "{name}" has non-terminal jobs in regions: [{region}]')
        if name in schema.BUILT_IN_POOLS:
            raise InvalidRequestError(f'deleting node pool "{name}" is not allowed')
        tx.delete(schema.NODE_POOLS, name)


def _pool_in_use(reason: str) -> ValidationError:
    return ValidationError(f"1 error occurred:\n\t* {reason}\n\n")


def _pool_hash(pool: NodePool) -> str:
    parts = [pool.name, pool.description, _go_duration(pool.node_identity_ttl)]
    for key, value in sorted((pool.meta or {}).items()):
        parts += [key, value]
    if pool.scheduler_configuration is not None:
        parts.append(msgspec.json.encode(pool.scheduler_configuration).decode())
    digest = hashlib.blake2b("".join(parts).encode(), digest_size=32).digest()
    return base64.b64encode(digest).decode()


def _go_duration(duration_ns: int) -> str:
    seconds, nanos = divmod(duration_ns, SECOND_NS)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{nanos:09d}".rstrip("0").rstrip(".")
    if hours:
        return f"{hours}h{minutes}m{seconds}{fraction}s"
    return f"{minutes}m{seconds}{fraction}s" if minutes else f"{seconds}{fraction}s"


# -- the computed class -------------------------------------------------------------------------------


def computed_class(node: Node) -> str:
    """Return `v1:` and a number that nodes share when the same groups are feasible on them.

    Of it are datacenter, class, pool, attributes and meta without those named `unique.`, and the devices.
    """
    devices = [
        (d.vendor, d.type, d.name, d.attributes)
        for d in (node.node_resources.devices if node.node_resources is not None else None) or []
    ]
    content = (
        node.datacenter,
        node.node_class,
        node.node_pool,
        _shared(node.attributes),
        _shared(node.meta),
        devices,
    )
    encoded = msgspec.msgpack.Encoder(order="deterministic").encode(content)
    number = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")
    return f"v1:{number}"


def _shared(facts: dict[str, str] | None) -> dict[str, str]:
    return {key: value for key, value in (facts or {}).items() if not key.startswith("unique.")}


# -- events -------------------------------------------------------------------------------------------


def _cluster_event(tx: Transaction, message: str) -> NodeEvent:
    moment = gotime.from_ns(tx.now_ns // SECOND_NS * SECOND_NS)
    return NodeEvent(message=message, subsystem="Cluster", timestamp=moment)


def _with_event(tx: Transaction, node: Node, event: NodeEvent | None) -> list[NodeEvent] | None:
    if event is None:
        return node.events
    event = msgspec.structs.replace(event, create_index=tx.index)
    return [*(node.events or []), event][-EVENTS_KEPT:]


def _existing(tx: Transaction, node_id: str) -> Node:
    node = tx.node(node_id)
    if node is None:
        raise NotFoundError("node not found")
    return node
