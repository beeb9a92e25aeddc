"""One immutable table: rows by key, secondary indexes, keys in order; and its mutable view inside a transaction.

Structure: rows are an `immutables.Map` (a persistent hash trie), so a version of the table is one pointer, and a
transaction writes through a mutation that shares all it does not touch. A secondary index is a map from index key to a
persistent set of row keys. Reads sort by key, so nothing depends on hash order. The sorted keys of a whole table are
made when first asked for and then handed on: updates of rows leave them valid, and inserts and deletes are merged into
them by the next reader.

Measured with 50,000 rows of 36-character keys (bench/state.py): one write costs 0.4 us and a thousand 0.5 ms; a copied
dict costs 0.14 ms for one and 0.18 ms for a thousand, but every transaction would pay it for each index too, and most
write a handful of rows. Sorting all keys costs 35 ms once; a listing then 40 ms, and no more after further inserts.

In:      rows, and functions that name a row's index keys.
Not here: which tables exist (schema.py), what rows mean, who is told of changes (store.py).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import immutables

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)

IndexKey = Hashable
IndexOf = Callable[[Any], IndexKey | None]
"""Names the index key of a row; None leaves the row out of the index."""

LAST_CHARACTER = "\U0010ffff"
"""Sorts behind every text that begins with the same prefix."""

_Members = immutables.Map[Any, None]
_NO_MEMBERS: _Members = immutables.Map()


class TableSpec(Generic[K, V]):
    """What a table is called, what its rows are, and how they are found.

    row_type: what msgspec decodes rows as. key_type: of keys, likewise.
    first_index: the table's index before it was ever written.
    """

    __slots__ = ("first_index", "indexes", "key_type", "name", "row_type")

    def __init__(
        self,
        name: str,
        *,
        key_type: Any,
        row_type: Any,
        indexes: Mapping[str, IndexOf] | None = None,
        first_index: int = 0,
    ) -> None:
        self.name = name
        self.key_type = key_type
        self.row_type = row_type
        self.indexes: dict[str, IndexOf] = dict(indexes or {})
        self.first_index = first_index


class Rows(Protocol[K, V_co]):
    """What can be read of a table, as it was committed or as a transaction has changed it."""

    def get(self, key: K) -> V_co | None:
        """Return the row, or None."""
        ...

    def __len__(self) -> int: ...

    def keys(self) -> Sequence[K]:
        """All keys in order; not to be changed."""
        ...

    def members(self, index: str, index_key: IndexKey) -> Sequence[K]:
        """Keys of the rows under one index key, in order."""
        ...

    def count(self, index: str, index_key: IndexKey) -> int:
        """How many rows are under one index key."""
        ...


def values(rows: Rows[K, V]) -> Iterator[V]:
    """All rows in key order."""
    get = rows.get
    for key in rows.keys():  # noqa: SIM118 - Rows is not a mapping: it is iterated in order, by name
        yield get(key)  # type: ignore[misc]


def select(rows: Rows[K, V], index: str, index_key: IndexKey) -> list[V]:
    """The rows under one index key, in key order."""
    get = rows.get
    return [get(key) for key in rows.members(index, index_key)]  # type: ignore[misc]


def between(rows: Rows[K, V], low: Any, high: Any) -> Iterator[V]:
    """Rows with low <= key < high, in key order."""
    keys: Sequence[Any] = rows.keys()
    start = bisect.bisect_left(keys, low)
    stop = bisect.bisect_left(keys, high, lo=start)
    get = rows.get
    for position in range(start, stop):
        yield get(keys[position])  # type: ignore[misc]


class _KeyOrder(Generic[K]):
    """The sorted keys of one table version: a sorted list of an older version and what changed since.

    Versions that nobody lists cost a small map each; the first reader merges, and later versions start from there.
    """

    __slots__ = ("_state",)

    def __init__(self, base: list[K] | None, delta: immutables.Map[K, bool]) -> None:
        # One attribute, so that a reader in another thread sees a matching pair.
        self._state = (base, delta)

    def sorted_keys(self, rows: immutables.Map[K, Any]) -> list[K]:
        base, delta = self._state
        if base is not None and not delta:
            return base
        if base is None:
            merged = sorted(rows.keys())  # type: ignore[type-var]
        else:
            gone = {key for key, present in delta.items() if not present}
            merged = [key for key in base if key not in gone] if gone else list(base)
            merged.extend(key for key, present in delta.items() if present)
            # A long sorted run and a short tail: nearly a merge.
            merged = sorted(merged)  # type: ignore[type-var]
        self._state = (merged, immutables.Map())
        return merged

    def changed(self, changes: dict[K, bool], size: int) -> _KeyOrder[K]:
        """The order after keys came (True) and went (False); `size` is the number of rows then."""
        base, delta = self._state
        if base is None or len(delta) + len(changes) > 1024 + size // 4:
            return _KeyOrder(None, immutables.Map())
        mutation = delta.mutate()
        for key, present in changes.items():
            # Two changes of one key undo each other: the base is right about it again.
            if key in mutation:
                del mutation[key]
            else:
                mutation[key] = present
        return _KeyOrder(base, mutation.finish())


class Table(Generic[K, V]):
    """One version of a table. Never changed; `writer()` makes the next one."""

    __slots__ = ("_indexes", "_order", "_rows", "spec")

    def __init__(
        self,
        spec: TableSpec[K, V],
        rows: immutables.Map[K, V],
        indexes: dict[str, immutables.Map[Any, _Members]],
        order: _KeyOrder[K],
    ) -> None:
        self.spec = spec
        self._rows = rows
        self._indexes = indexes
        self._order = order

    @staticmethod
    def of(spec: TableSpec[K, V], rows: Mapping[K, V]) -> Table[K, V]:
        """A table with these rows."""
        indexes: dict[str, immutables.Map[Any, _Members]] = {}
        for name, index_of in spec.indexes.items():
            groups: dict[Any, dict[Any, None]] = {}
            for key, row in rows.items():
                index_key = index_of(row)
                if index_key is not None:
                    groups.setdefault(index_key, {})[key] = None
            indexes[name] = immutables.Map({k: immutables.Map(v) for k, v in groups.items()})
        return Table(spec, immutables.Map(rows), indexes, _KeyOrder(None, immutables.Map()))

    def get(self, key: K) -> V | None:
        """Return the row, or None."""
        return self._rows.get(key)

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> Sequence[K]:
        """All keys in order; not to be changed."""
        return self._order.sorted_keys(self._rows)

    def items(self) -> Iterator[tuple[K, V]]:
        """All keys and rows, in no order that means anything; nothing is sorted for it."""
        return iter(self._rows.items())

    def members(self, index: str, index_key: IndexKey) -> Sequence[K]:
        """Keys of the rows under one index key, in order."""
        return sorted(self._indexes[index].get(index_key, _NO_MEMBERS))

    def count(self, index: str, index_key: IndexKey) -> int:
        """How many rows are under one index key."""
        return len(self._indexes[index].get(index_key, _NO_MEMBERS))

    def writer(self) -> TableWriter[K, V]:
        """A mutable view that leaves this version as it is."""
        return TableWriter(self.spec, self._rows, self._indexes, self._order)


class TableWriter(Generic[K, V]):
    """What a transaction does to one table; reads see its own writes."""

    __slots__ = (
        "_came_and_went",
        "_indexes",
        "_members",
        "_open",
        "_order",
        "_rows",
        "_sorted",
        "spec",
    )

    def __init__(
        self,
        spec: TableSpec[K, V],
        rows: immutables.Map[K, V],
        indexes: dict[str, immutables.Map[Any, _Members]],
        order: _KeyOrder[K],
    ) -> None:
        self.spec = spec
        self._rows = rows.mutate()
        self._indexes = indexes
        self._order = order
        # The sets that this transaction changed, by index and index key.
        self._members: dict[str, dict[Any, _Members]] = {name: {} for name in indexes}
        # Those that it changes at the moment: a plan puts thousands into one set, which is cheaper in place.
        self._open: dict[str, dict[Any, immutables.MapMutation[Any, None]]] = {
            name: {} for name in indexes
        }
        self._came_and_went: dict[K, bool] = {}
        self._sorted: tuple[int, list[K]] | None = None

    def get(self, key: K) -> V | None:
        """Return the row, or None."""
        return self._rows.get(key)

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, key: K, row: V) -> V | None:
        """Insert or replace a row; return the one it replaces."""
        before = self._rows.get(key)
        if before is row:
            return before
        self._rows[key] = row
        for name, index_of in self.spec.indexes.items():
            new = index_of(row)
            old = None if before is None else index_of(before)
            if new == old:
                continue
            if old is not None:
                self._change(name, old, key, present=False)
            if new is not None:
                self._change(name, new, key, present=True)
        if before is None:
            self._mark(key, present=True)
        return before

    def insert(self, rows: dict[K, V]) -> None:
        """Insert rows under keys that the table does not have; as `put` for each, at half the cost."""
        self._rows.update(rows)
        for name, index_of in self.spec.indexes.items():
            members: dict[Any, dict[K, None]] = {}
            for key, row in rows.items():
                index_key = index_of(row)
                if index_key is None:
                    continue
                found = members.get(index_key)
                if found is None:
                    members[index_key] = {key: None}
                else:
                    found[key] = None
            for index_key, keys in members.items():
                self._opened(name, index_key).update(keys)
        if self._came_and_went.keys().isdisjoint(rows):
            self._came_and_went.update(dict.fromkeys(rows, True))
        else:
            for key in rows:
                self._mark(key, present=True)

    def delete(self, key: K) -> V | None:
        """Remove a row; return it, or None when there was none."""
        before = self._rows.get(key)
        if before is None:
            return None
        del self._rows[key]
        for name, index_of in self.spec.indexes.items():
            old = index_of(before)
            if old is not None:
                self._change(name, old, key, present=False)
        self._mark(key, present=False)
        return before

    def keys(self) -> Sequence[K]:
        """All keys in order; not to be changed."""
        stamp = len(self._came_and_went)
        if self._sorted is None or self._sorted[0] != stamp:
            # Rare in a transaction, so a fresh version is good enough.
            self._sorted = (stamp, list(self.commit().keys()))
        return self._sorted[1]

    def members(self, index: str, index_key: IndexKey) -> Sequence[K]:
        """Keys of the rows under one index key, in order."""
        return sorted(self._set(index, index_key))

    def count(self, index: str, index_key: IndexKey) -> int:
        """How many rows are under one index key."""
        return len(self._set(index, index_key))

    def commit(self) -> Table[K, V]:
        """The next version. The writer may go on; later writes do not change what was returned."""
        rows = self._rows.finish()
        self._rows = rows.mutate()
        indexes = dict(self._indexes)
        for name, changed in self._members.items():
            for index_key in list(self._open[name]):
                self._close(name, index_key)
            if not changed:
                continue
            mutation = self._indexes[name].mutate()
            for index_key, members in changed.items():
                if members:
                    mutation[index_key] = members
                elif index_key in mutation:
                    del mutation[index_key]
            indexes[name] = mutation.finish()
        order = self._order
        if self._came_and_went:
            order = order.changed(self._came_and_went, len(rows))
        return Table(self.spec, rows, indexes, order)

    def _set(self, index: str, index_key: IndexKey) -> _Members:
        if index_key in self._open[index]:
            self._close(index, index_key)
        changed = self._members[index].get(index_key)
        if changed is not None:
            return changed
        return self._indexes[index].get(index_key, _NO_MEMBERS)

    def _change(self, index: str, index_key: IndexKey, key: K, *, present: bool) -> None:
        members = self._opened(index, index_key)
        if present:
            members[key] = None
        else:
            del members[key]

    def _opened(self, index: str, index_key: IndexKey) -> immutables.MapMutation[Any, None]:
        members = self._open[index].get(index_key)
        if members is None:
            members = self._open[index][index_key] = self._set(index, index_key).mutate()
        return members

    def _close(self, index: str, index_key: IndexKey) -> None:
        self._members[index][index_key] = self._open[index].pop(index_key).finish()

    def _mark(self, key: K, *, present: bool) -> None:
        # Came and went within the transaction, or the other way round: as if nothing had been.
        if key in self._came_and_went:
            del self._came_and_went[key]
            self._sorted = None
        else:
            self._came_and_went[key] = present


def prefixed(rows: Rows[str, V], prefix: str) -> Iterator[V]:
    """Rows whose key, a text, begins with `prefix`; in key order."""
    if not prefix:
        return values(rows)
    return between(rows, prefix, prefix + LAST_CHARACTER)


def under(rows: Rows[Any, V], first: str, prefix: str = "") -> Iterator[V]:
    """Rows whose key is a tuple of `first` and a text that begins with `prefix`; in key order."""
    return between(rows, (first, prefix), (first, prefix + LAST_CHARACTER))


def table_of(spec: TableSpec[K, V], rows: Iterable[tuple[K, V]] = ()) -> Table[K, V]:
    """A table with these rows; a key given twice keeps its last row."""
    return Table.of(spec, dict(rows))
