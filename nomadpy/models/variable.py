"""Variables: small maps of text below a path, their encrypted form, and the lock that one may carry.

What is stored and logged is `StoredVariable`: its items are ciphertext. `Variable` is what a reader with the keys gets,
and its repr hides the items.
"""

from __future__ import annotations

import msgspec

from nomadpy.models.base import Wire, always

Items = dict[str, str]


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """Encrypted items. nonce: 12 bytes, never used twice with one key. data: ciphertext and tag.

    The root key `key_id` holds the data key; namespace and path are authenticated with it (pki/keyring.py).
    """

    key_id: str
    nonce: bytes
    data: bytes

    def __repr__(self) -> str:
        """What may be logged."""
        return f"Sealed(key_id={self.key_id!r}, {len(self.data)} bytes)"


class HeldLock(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A lock as the state has it. id: what the holder shows. ttl, delay: nanoseconds.

    expired: its time has passed unrenewed; until the delay is over nobody holds it and nobody can take it.
    """

    id: str
    ttl: int
    delay: int = 0
    expired: bool = False

    def __repr__(self) -> str:
        """The id opens the variable to whoever has it, so it is left out."""
        return f"HeldLock(ttl={self.ttl}, delay={self.delay}, expired={self.expired})"


class StoredVariable(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A variable as the state has it. Times: nanoseconds since 1970."""

    namespace: str
    path: str
    sealed: Sealed
    create_index: int = 0
    modify_index: int = 0
    create_time: int = 0
    modify_time: int = 0
    lock: HeldLock | None = None

    def open_to(self, lock_id: str) -> bool:
        """Whether who shows `lock_id` ("" for none) may write it: it is not locked, or by just this lock.

        An id shown for a lock that is gone refuses too: its owner believes in a lease that has ended.
        """
        if self.lock is None:
            return not lock_id
        return not self.lock.expired and self.lock.id == lock_id


class Written(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a write gave: the variable's indexes, times and lock as they are now, all 0 for none.

    conflict: "" when it was done, "cas" when another index is current, "lock" when a lock is in the way.
    """

    conflict: str = ""
    create_index: int = 0
    modify_index: int = 0
    create_time: int = 0
    modify_time: int = 0
    lock: HeldLock | None = None


class VariableLock(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """A lock on the wire; ttl and lock_delay are Go durations."""

    id: str = ""
    ttl: str = always(str)
    lock_delay: str = always(str)

    def __repr__(self) -> str:
        """The id opens the variable to whoever has it, so it is left out."""
        return f"VariableLock(ttl={self.ttl!r}, lock_delay={self.lock_delay!r})"


class VariableMetadata(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """All of a variable but its items: a row of a list, and what renewing a lock answers."""

    namespace: str = always(str)
    path: str = always(str)
    create_index: int = always(int)
    modify_index: int = always(int)
    create_time: int = always(int)
    modify_time: int = always(int)
    lock: VariableLock | None = None


class Variable(VariableMetadata, frozen=True, kw_only=True, omit_defaults=True):
    """A variable in the clear. items None leaves them out."""

    items: Items | None = None

    def __repr__(self) -> str:
        """What may be logged: no items."""
        return f"Variable({self.namespace!r}, {self.path!r}, modify_index={self.modify_index})"
