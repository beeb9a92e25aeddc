"""The set of tables at one index: transactions move it on, snapshots keep what it was.

    with store.transaction(index, now_ns) as tx:
        nodes.register(tx, node)

Leaving the block commits: what follows from the changes (derive.py) is written in the same transaction, the store
moves to `index`, subscribers get one ChangeSet, watches fire. An exception discards everything and passes on.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, cast

from nomadpy import logs
from nomadpy.state import derive
from nomadpy.state.changes import Change, ChangeSet
from nomadpy.state.checksum import checksum
from nomadpy.state.reads import Reads
from nomadpy.state.schema import FIRST_INDEXES, TABLES, first_tables
from nomadpy.state.table import Rows, Table, TableSpec, TableWriter
from nomadpy.state.watch import Watches

K = TypeVar("K")
V = TypeVar("V")

log = logs.get(__name__)

Listener = Callable[[ChangeSet], None]


class Snapshot(Reads):
    """The whole state at one index; never changes, costs nothing, and may be read in any thread."""

    __slots__ = ("_index", "_table_indexes", "_tables")

    def __init__(
        self, index: int, tables: dict[str, Table[Any, Any]], table_indexes: dict[str, int]
    ) -> None:
        self._index = index
        self._tables = tables
        self._table_indexes = table_indexes

    @property
    def index(self) -> int:
        """The index of the last entry that this state has."""
        return self._index

    @property
    def tables(self) -> dict[str, Table[Any, Any]]:
        """All tables by name; not to be changed."""
        return self._tables

    @property
    def table_indexes(self) -> dict[str, int]:
        """The index of each table; not to be changed."""
        return self._table_indexes

    def rows(self, spec: TableSpec[K, V]) -> Rows[K, V]:
        """One table."""
        return self._tables[spec.name]

    def table_index(self, *tables: str) -> int:
        """The highest index at which any of these tables was written."""
        return max((self._table_indexes[name] for name in tables), default=0)


class Transaction(Reads):
    """Changes at one index, seen by nobody else until they are committed. Reads see its own writes."""

    __slots__ = ("_base", "_changes", "_store", "_writers", "index", "now_ns")

    def __init__(self, store: StateStore, base: Snapshot, index: int, now_ns: int) -> None:
        self._store = store
        self._base = base
        self._writers: dict[str, TableWriter[Any, Any]] = {}
        self._changes: dict[tuple[str, Any], Change] = {}
        self.index = index
        self.now_ns = now_ns

    def rows(self, spec: TableSpec[K, V]) -> Rows[K, V]:
        """One table, as this transaction has it."""
        writer = self._writers.get(spec.name)
        return self._base.rows(spec) if writer is None else writer

    def table_index(self, *tables: str) -> int:
        """The highest index at which any of these tables was written, this transaction included."""
        written = any(name in self._writers for name in tables)
        return self.index if written else self._base.table_index(*tables)

    def put(self, spec: TableSpec[K, V], key: K, row: V) -> None:
        """Insert or replace a row."""
        before = self._writer(spec).put(key, row)
        self._note(spec.name, key, before, row)

    def insert(self, spec: TableSpec[K, V], rows: dict[K, V]) -> None:
        """Insert rows under keys that the table does not have."""
        if not rows:
            return
        self._writer(spec).insert(rows)
        name, changes = spec.name, self._changes
        for key, row in rows.items():
            place = (name, key)
            first = changes.get(place)
            before = None if first is None else first.before
            changes[place] = Change(name, key, before, row)

    def delete(self, spec: TableSpec[K, V], key: K) -> V | None:
        """Remove a row and return it; None when there was none."""
        if self.rows(spec).get(key) is None:
            return None
        before = self._writer(spec).delete(key)
        self._note(spec.name, key, before, None)
        return before

    def changes(self) -> list[Change]:
        """What was changed so far, a row at most once, in the order of first writes."""
        return [c for c in self._changes.values() if c.before is not c.after]

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            derive.settle(self)
            self._store._commit(self, self._writers)

    def _writer(self, spec: TableSpec[K, V]) -> TableWriter[K, V]:
        writer = self._writers.get(spec.name)
        if writer is None:
            writer = self._base.tables[spec.name].writer()
            self._writers[spec.name] = writer
        return cast("TableWriter[K, V]", writer)

    def _note(self, table: str, key: Any, before: Any, after: Any) -> None:
        first = self._changes.get((table, key))
        self._changes[(table, key)] = Change(
            table, key, before if first is None else first.before, after
        )


class StateStore:
    """The state of one server. One thread writes; snapshots may be read anywhere."""

    def __init__(self) -> None:
        self._current = Snapshot(0, first_tables(), dict(FIRST_INDEXES))
        self._listeners: list[Listener] = []
        self.watch = Watches({name: spec.indexes for name, spec in TABLES.items()})

    @property
    def index(self) -> int:
        """The index of the last entry that was applied."""
        return self._current.index

    def snapshot(self) -> Snapshot:
        """The state at this moment."""
        return self._current

    def transaction(self, index: int, now_ns: int = 0) -> Transaction:
        """Open the transaction of one entry. now_ns: the entry's time, the only one there is.

        Raises ValueError when the store is at this index already: entries are applied once, in order.
        """
        self._check(index)
        return Transaction(self, self._current, index, now_ns)

    def advance(self, index: int) -> None:
        """Move to an index whose entry changes nothing. Raises ValueError as `transaction` does."""
        self._check(index)
        self._publish(
            Snapshot(index, self._current.tables, self._current.table_indexes),
            ChangeSet(index, []),
        )

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with the changes of each entry from now on, in order, before watches fire."""
        self._listeners.append(listener)

    def replace(self, snapshot: Snapshot) -> None:
        """Replace everything by a restored state; subscribers are told, every watch fires."""
        self._current = snapshot
        self._tell(ChangeSet(snapshot.index, [], restored=True))
        self.watch.fire_all(snapshot.index)

    def checksum(self) -> str:
        """A digest of the content, equal on servers that are equal at this index; O(n)."""
        return checksum(self._current)

    def _check(self, index: int) -> None:
        if index <= self._current.index:
            raise ValueError(f"entry {index} comes after {self._current.index} was applied")

    def _commit(self, tx: Transaction, writers: dict[str, TableWriter[Any, Any]]) -> None:
        self._check(tx.index)
        changes = tx.changes()
        tables = dict(self._current.tables)
        table_indexes = dict(self._current.table_indexes)
        for name in {change.table: None for change in changes}:
            tables[name] = writers[name].commit()
            table_indexes[name] = max(table_indexes[name], tx.index)
        self._publish(Snapshot(tx.index, tables, table_indexes), ChangeSet(tx.index, changes))

    def _publish(self, snapshot: Snapshot, changes: ChangeSet) -> None:
        self._current = snapshot
        self._tell(changes)
        self.watch.fire(snapshot.index, changes.changes)

    def _tell(self, changes: ChangeSet) -> None:
        for listener in list(self._listeners):
            try:
                listener(changes)
            except Exception:
                log.exception("change listener failed", index=changes.index)
