"""Writes of what belongs to the cluster as a whole: scheduler and autopilot settings, root keys, its identity."""

from __future__ import annotations

import msgspec

from nomadpy.errors import ConflictError, InvalidRequestError, NotFoundError
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


def upsert_root_key(tx: Transaction, key: RootKey, *, full: bool = False) -> None:
    """Store a root key; when it is the active one, the one that was becomes inactive and still verifies.

    full: all others that are not about to become active are rekeying: what they encrypted is encrypted anew.
    """
    existing = tx.root_key(key.key_id)
    if key.state not in ("active", "prepublished") and not key.retired_time:
        # When it was retired is not known; from now on is late enough.
        key = msgspec.structs.replace(key, retired_time=tx.now_ns)
    key = msgspec.structs.replace(
        key,
        create_index=tx.index if existing is None else existing.create_index,
        create_time=key.create_time or tx.now_ns,
        modify_index=tx.index,
    )
    if key.state == "active":
        for other in tx.root_keys():
            if other.key_id == key.key_id or other.state == "prepublished":
                continue
            if other.state == "active" or (full and other.state == "inactive"):
                other = msgspec.structs.replace(
                    other,
                    state="rekeying" if full else "inactive",
                    retired_time=other.retired_time or tx.now_ns,
                    modify_index=tx.index,
                )
                tx.put(schema.ROOT_KEYS, other.key_id, other)
    tx.put(schema.ROOT_KEYS, key.key_id, key)


def delete_root_key(tx: Transaction, key_id: str, *, force: bool = False) -> None:
    """Remove a root key. Raises NotFoundError, InvalidRequestError (it is the active one, or encrypts a variable).

    force: also when variables are encrypted with it; nobody can read them any more then.
    """
    key = tx.root_key(key_id)
    if key is None:
        raise NotFoundError("root key metadata not found", status=500)
    if key.state == "active":
        raise InvalidRequestError(
            "active root key cannot be deleted - call rotate first", status=500
        )
    if not force and tx.rows(schema.VARIABLES).count("root_key", key_id):
        raise InvalidRequestError("root key in use, cannot delete", status=500)
    tx.delete(schema.ROOT_KEYS, key_id)


def retire_rekeyed(tx: Transaction) -> None:
    """Make root keys inactive whose variables have all been encrypted anew."""
    for key in tx.root_keys():
        if key.state == "rekeying" and not tx.rows(schema.VARIABLES).count("root_key", key.key_id):
            key = msgspec.structs.replace(key, state="inactive", modify_index=tx.index)
            tx.put(schema.ROOT_KEYS, key.key_id, key)


def set_cluster_metadata(
    tx: Transaction, cluster_id: str, *, log_format: int = 1
) -> ClusterMetadata:
    """Give the cluster its id and the log its first format, once; return what it has."""
    existing = tx.cluster_metadata()
    if existing is not None:
        return existing
    metadata = ClusterMetadata(cluster_id=cluster_id, create_time=tx.now_ns, log_format=log_format)
    tx.put(schema.CLUSTER, schema.ONLY, metadata)
    return metadata


def raise_log_format(tx: Transaction, version: int) -> None:
    """Let the log have another format from here on. Raises ConflictError unless it is a higher one."""
    existing = tx.cluster_metadata()
    if existing is None or version <= existing.log_format:
        raise ConflictError(
            f"the log is of format {tx.log_format()} already, or the cluster has no id yet"
        )
    tx.put(schema.CLUSTER, schema.ONLY, msgspec.structs.replace(existing, log_format=version))
