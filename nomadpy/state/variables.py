"""Writes of variables: check-and-set, locks, and ciphertext that is replaced.

A write that a check refuses is no error but an answer (`Written.conflict`), for its index is part of the history that
callers see. What a lock guards is decided here, in the log's order; when a lock expires is the leader's to say.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.errors import ConflictError, InvalidRequestError
from nomadpy.models.variable import HeldLock, Sealed, StoredVariable, Written
from nomadpy.state import schema
from nomadpy.state.store import Transaction


class RetiredKeyError(ConflictError):
    """The items were encrypted with a root key that is gone or about to go: encrypt them anew."""

    code = "retired-key"


def store(
    tx: Transaction,
    namespace: str,
    path: str,
    sealed: Sealed,
    *,
    cas: int | None = None,
    lock_id: str = "",
) -> dict[str, Any]:
    """Insert or replace a variable; a lock on it stays. cas: as the command says.

    Raises InvalidRequestError (no such namespace), RetiredKeyError.
    """
    before = tx.variable(namespace, path)
    conflict = _conflict(before, cas=cas, lock_id=lock_id)
    if conflict is not None:
        return conflict
    _check(tx, namespace, path, sealed)
    return _put(tx, before, namespace, path, sealed, None if before is None else before.lock)


def delete(tx: Transaction, namespace: str, path: str, *, cas: int | None = None) -> dict[str, Any]:
    """Remove a variable that is not locked; none is no error unless `cas` names an index."""
    before = tx.variable(namespace, path)
    conflict = _conflict(before, cas=cas, lock_id="")
    if conflict is not None:
        return conflict
    tx.delete(schema.VARIABLES, (namespace, path))
    return _answer(None)


def lock(
    tx: Transaction,
    namespace: str,
    path: str,
    sealed: Sealed,
    new: HeldLock,
    *,
    keep: bool = False,
    held_id: str = "",
) -> dict[str, Any]:
    """Give the lock of a variable to who asks, unless another has it or its delay runs.

    Its holder (held_id) keeps the lock it has, id and times. keep: items that exist stay. Raises as `store`.
    """
    before = tx.variable(namespace, path)
    held = None if before is None else before.lock
    if held is not None and (held.expired or held.id != held_id):
        return _answer(None, conflict="lock")
    if before is not None and keep:
        sealed = before.sealed
    else:
        _check(tx, namespace, path, sealed)
    return _put(tx, before, namespace, path, sealed, held or new)


def unlock(tx: Transaction, namespace: str, path: str, lock_id: str, reason: str) -> dict[str, Any]:
    """End a lock. Only the lock with this id, and only in the state that `reason` ends.

    released: the holder's own; expired: its time is over, and the delay, if there is one, begins; delayed: the delay
    is over. ModifyTime stays: the items are as they were.
    """
    before = tx.variable(namespace, path)
    held = None if before is None else before.lock
    if (
        before is None
        or held is None
        or held.id != lock_id
        or held.expired is not (reason == "delayed")
    ):
        return _answer(None, conflict="lock")
    left = None
    if reason == "expired" and held.delay > 0:
        left = msgspec.structs.replace(held, expired=True)
    after = msgspec.structs.replace(before, lock=left, modify_index=tx.index)
    tx.put(schema.VARIABLES, (namespace, path), after)
    return _answer(after)


def reseal(tx: Transaction, namespace: str, path: str, *, was: bytes, sealed: Sealed) -> None:
    """Replace the ciphertext of a variable that has not been written since `was` was its nonce."""
    before = tx.variable(namespace, path)
    key = tx.root_key(sealed.key_id)
    if before is None or before.sealed.nonce != was or key is None or key.state == "rekeying":
        return
    tx.put(schema.VARIABLES, (namespace, path), msgspec.structs.replace(before, sealed=sealed))


def _conflict(
    before: StoredVariable | None, *, cas: int | None, lock_id: str
) -> dict[str, Any] | None:
    if cas is not None and cas != (0 if before is None else before.modify_index):
        return _answer(before, conflict="cas")
    # Without a variable there is no lock either, whatever id is shown.
    if not lock_id if before is None else before.open_to(lock_id):
        return None
    return _answer(None, conflict="lock")


def _check(tx: Transaction, namespace: str, path: str, sealed: Sealed) -> None:
    if tx.namespace(namespace) is None:
        raise InvalidRequestError(f'variable "{path}" is in nonexistent namespace "{namespace}"')
    key = tx.root_key(sealed.key_id)
    if key is None or key.state == "rekeying":
        # Otherwise the last pass of a rotation could miss it, and the key could be removed under it.
        raise RetiredKeyError(f"root key {sealed.key_id} encrypts nothing new")


def _put(
    tx: Transaction,
    before: StoredVariable | None,
    namespace: str,
    path: str,
    sealed: Sealed,
    held: HeldLock | None,
) -> dict[str, Any]:
    same = before is not None and sealed is before.sealed
    after = StoredVariable(
        namespace=namespace,
        path=path,
        sealed=sealed,
        create_index=tx.index if before is None else before.create_index,
        modify_index=tx.index,
        create_time=tx.now_ns if before is None else before.create_time,
        modify_time=before.modify_time if before is not None and same else tx.now_ns,
        lock=held,
    )
    tx.put(schema.VARIABLES, (namespace, path), after)
    return _answer(after)


def _answer(variable: StoredVariable | None, *, conflict: str = "") -> dict[str, Any]:
    """As builtin values: answers are kept for repeated requests, and go into snapshots."""
    if variable is None:
        written = Written(conflict=conflict)
    else:
        written = Written(
            conflict=conflict,
            create_index=variable.create_index,
            modify_index=variable.modify_index,
            create_time=variable.create_time,
            modify_time=variable.modify_time,
            lock=variable.lock,
        )
    built: dict[str, Any] = msgspec.to_builtins(written)
    return built
