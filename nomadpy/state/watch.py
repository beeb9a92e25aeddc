"""What a read depends on, and who is told when it changes. Callbacks only: waiting is in server/query.py.

A watch fires once, with the index of the transaction that touched one of its keys, and is then forgotten. Everything
runs in the caller's thread, so whoever reads a snapshot and registers without awaiting in between misses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from nomadpy import logs
from nomadpy.state.changes import Change
from nomadpy.state.table import IndexOf

log = logs.get(__name__)

Key = tuple[Hashable, ...]
"""("table", name): any row of a table. ("table", name, row key): one row. ("by", name, index, index key): the rows of a
table under one key of a secondary index, e.g. ("by", "allocs", "node", node_id). ("index",): any entry applied."""

Callback = Callable[[int], None]


class WatchHandle:
    """One registered watch."""

    __slots__ = ("_watches", "callback", "keys")

    def __init__(self, watches: Watches, keys: tuple[Key, ...], callback: Callback) -> None:
        self._watches = watches
        self.keys = keys
        self.callback = callback

    def cancel(self) -> None:
        """Forget the watch; harmless when it has fired."""
        self._watches.forget(self)


class Watches:
    """All watches of a store. Calling it registers one."""

    def __init__(self, indexes: Mapping[str, Mapping[str, IndexOf]]) -> None:
        """indexes: by table and index name, the function that names a row's index key."""
        self._indexes = indexes
        # Dicts instead of sets: callbacks run in the order of registration.
        self._by_key: dict[Key, dict[WatchHandle, None]] = {}
        # How many watches need each secondary index looked at.
        self._by_index: dict[tuple[str, str], int] = {}

    def register(self, keys: Iterable[Key], callback: Callback) -> WatchHandle:
        """Call `callback(index)` once, after the next transaction that touches one of `keys`.

        Raises KeyError for a table or index that does not exist.
        """
        handle = WatchHandle(self, tuple(dict.fromkeys(keys)), callback)
        for key in handle.keys:
            self._check(key)
        for key in handle.keys:
            self._by_key.setdefault(key, {})[handle] = None
            if key[0] == "by":
                pair = (str(key[1]), str(key[2]))
                self._by_index[pair] = self._by_index.get(pair, 0) + 1
        return handle

    __call__ = register

    def forget(self, handle: WatchHandle) -> None:
        """Drop a watch; harmless when it is not registered."""
        for key in handle.keys:
            handles = self._by_key.get(key)
            if handles is None or handle not in handles:
                continue
            del handles[handle]
            if not handles:
                del self._by_key[key]
            if key[0] == "by":
                pair = (str(key[1]), str(key[2]))
                self._by_index[pair] -= 1
                if not self._by_index[pair]:
                    del self._by_index[pair]

    def fire(self, index: int, changes: Iterable[Change]) -> None:
        """Tell everyone whose keys these changes touch."""
        if not self._by_key:
            return
        touched: dict[Key, None] = {("index",): None}
        for change in changes:
            touched[("table", change.table)] = None
            touched[("table", change.table, change.key)] = None
            if self._by_index:
                self._touch_indexes(change, touched)
        due: dict[WatchHandle, None] = {}
        for key in touched:
            due.update(self._by_key.get(key, {}))
        self._call(index, due)

    def fire_all(self, index: int) -> None:
        """Tell everyone: the state was replaced."""
        due: dict[WatchHandle, None] = {}
        for handles in self._by_key.values():
            due.update(handles)
        self._call(index, due)

    def __len__(self) -> int:
        return len({handle for handles in self._by_key.values() for handle in handles})

    def _call(self, index: int, due: dict[WatchHandle, None]) -> None:
        for handle in due:
            handle.cancel()
        for handle in due:
            try:
                handle.callback(index)
            except Exception:
                log.exception("watch callback failed", index=index)

    def _touch_indexes(self, change: Change, touched: dict[Key, None]) -> None:
        for name, index_of in self._indexes.get(change.table, {}).items():
            if (change.table, name) not in self._by_index:
                continue
            for row in (change.before, change.after):
                index_key: Any = None if row is None else index_of(row)
                if index_key is not None:
                    touched[("by", change.table, name, index_key)] = None

    def _check(self, key: Key) -> None:
        if key == ("index",):
            return
        shapes = {"table": (2, 3), "by": (4,)}
        known = bool(key) and len(key) in shapes.get(str(key[0]), ()) and key[1] in self._indexes
        if not known or (key[0] == "by" and key[2] not in self._indexes[str(key[1])]):
            raise KeyError(f"no such thing to watch: {key!r}")
