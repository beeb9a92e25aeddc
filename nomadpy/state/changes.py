"""What one transaction changed, in order: the feed that the leader's duties, events and columns live on."""

from __future__ import annotations

from typing import Any

import msgspec


class Change(msgspec.Struct, frozen=True):
    """One row. before None: it is new; after None: it is gone. Both are whole rows, never to be changed."""

    table: str
    key: Any
    before: Any
    after: Any


class ChangeSet(msgspec.Struct, frozen=True):
    """All changes of the transaction at `index`, a row at most once, in the order of their first writes.

    An entry that changed nothing (it was refused, or there was nothing to do) has an empty set, so a listener sees
    every index. restored: the whole state was replaced by a snapshot; listeners must read everything anew.
    """

    index: int
    changes: list[Change]
    restored: bool = False
