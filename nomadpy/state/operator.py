"""Writes of what belongs to the cluster as a whole: scheduler and autopilot settings, root keys, its identity."""

from __future__ import annotations

import msgspec

from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.models.operator import AutopilotConfiguration, SchedulerConfiguration
from nomadpy.models.root_key import RootKey
from nomadpy.state import schema
from nomadpy.state.schema import ClusterMetadata
from nomadpy.state.store import Transaction


def set_scheduler_config(tx: Transaction, config: SchedulerConfiguration, cas: int | None) -> bool:
    """Set the scheduler settings; with `cas` only if it is their ModifyIndex. Return whether they were set."""
    existing = tx.scheduler_config()
    if cas is not None and cas != existing.modify_index:
        return False
    config = msgspec.structs.replace(
        config, create_index=existing.create_index or tx.index, modify_index=tx.index
    )
    tx.put(schema.SCHEDULER_CONFIG, schema.ONLY, config)
    return True


def set_autopilot_config(tx: Transaction, config: AutopilotConfiguration, cas: int | None) -> bool:
    """Set the autopilot settings; with `cas` only if it is their ModifyIndex. Return whether they were set."""
    existing = tx.autopilot_config()
    if cas is not None and cas != existing.modify_index:
        return False
    config = msgspec.structs.replace(
        config, create_index=existing.create_index or tx.index, modify_index=tx.index
    )
    tx.put(schema.AUTOPILOT, schema.ONLY, config)
    return True


def upsert_root_key(tx: Transaction, key: RootKey) -> None:
    """Store a root key; when it is the active one, the one that was becomes inactive and still verifies."""
    existing = tx.root_key(key.key_id)
    key = msgspec.structs.replace(
        key,
        create_index=tx.index if existing is None else existing.create_index,
        create_time=key.create_time or tx.now_ns,
        modify_index=tx.index,
    )
    if key.state == "active":
        for other in tx.root_keys():
            if other.state == "active" and other.key_id != key.key_id:
                other = msgspec.structs.replace(other, state="inactive", modify_index=tx.index)
                tx.put(schema.ROOT_KEYS, other.key_id, other)
    tx.put(schema.ROOT_KEYS, key.key_id, key)


def delete_root_key(tx: Transaction, key_id: str) -> None:
    """Remove a root key. Raises NotFoundError, InvalidRequestError (it is the active one)."""
    key = tx.root_key(key_id)
    if key is None:
        raise NotFoundError("root key metadata not found", status=500)
    if key.state == "active":
        raise InvalidRequestError(
            "active root key cannot be deleted - call rotate first", status=500
        )
    tx.delete(schema.ROOT_KEYS, key_id)


def set_cluster_metadata(tx: Transaction, cluster_id: str) -> ClusterMetadata:
    """Give the cluster its id, once; return the one it has."""
    existing = tx.cluster_metadata()
    if existing is not None:
        return existing
    metadata = ClusterMetadata(cluster_id=cluster_id, create_time=tx.now_ns)
    tx.put(schema.CLUSTER, schema.ONLY, metadata)
    return metadata
