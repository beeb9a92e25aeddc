"""What must survive an agent restart: the node's identity, allocations, task records, dynamic node metadata.

Every `put` has reached the disk when it returns (WAL, synchronous FULL); writers that wait at the same time share one
commit. A file that is damaged is moved aside and replaced by an empty one, with an error in the log: the node
then joins as a new node, and servers replace its allocations. That costs restarts, but an agent that refuses to start costs
the node, and nothing in the file is a source of truth for the cluster.

SQLite finds damage to its own structure, not to what it holds; so every value carries a checksum of itself and of its key. A row
that does not add up is left out, with an error in the log; what still runs of it is ended (strays.py).
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import google_crc32c
import msgspec

from agent.runner.task_machine import TaskRecord
from nomadpy import logs
from nomadpy.models.allocation import Allocation, AllocDeploymentStatus

log = logs.get(__name__)

SCHEMA_VERSION = 2

_VOLUME = "volume/"
"""Where the names of facts begin that are volumes."""

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE facts  (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE allocs (id TEXT PRIMARY KEY, alloc BLOB NOT NULL, health BLOB, since_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tasks  (alloc_id TEXT NOT NULL, task TEXT NOT NULL, record BLOB NOT NULL,
                     PRIMARY KEY (alloc_id, task)) WITHOUT ROWID;
"""


class NodeIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is. The secret is bound to the id by the first registration."""

    id: str
    secret: str

    def __repr__(self) -> str:
        """Without the secret: a repr ends up in logs."""
        return f"NodeIdentity(id={self.id!r})"


class AllocRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One allocation as it was last known here. since_ns: wall time it came to this node."""

    alloc: Allocation
    tasks: dict[str, TaskRecord] = {}
    health: AllocDeploymentStatus | None = None
    since_ns: int = 0


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One dynamic volume of this node. plugin_id "": it was registered, nobody made it. path: "" until it was made.

    Capacities in bytes; 0 means no bound. deleting: its removal began and has not ended well."""

    id: str
    name: str
    namespace: str = "default"
    plugin_id: str = ""
    path: str = ""
    capacity_bytes: int = 0
    capacity_min_bytes: int = 0
    capacity_max_bytes: int = 0
    parameters: dict[str, str] = {}
    deleting: bool = False


class LocalState(Protocol):
    """Where the agent keeps what must survive it."""

    async def node(self) -> NodeIdentity | None:
        """The node's identity, None before the first `put_node`."""
        ...

    async def put_node(self, identity: NodeIdentity) -> None:
        """Keep the identity."""
        ...

    async def meta(self) -> dict[str, str | None]:
        """Metadata set at run time; None hides a static key."""
        ...

    async def put_meta(self, meta: dict[str, str | None]) -> None:
        """Replace the metadata set at run time."""
        ...

    async def allocs(self) -> list[AllocRecord]:
        """Everything known, in the order of ids."""
        ...

    async def put_alloc(self, alloc: Allocation, *, since_ns: int) -> None:
        """Keep a new or changed allocation; its tasks and health stay. since_ns counts for a new one only."""
        ...

    async def put_task(self, alloc_id: str, task: str, record: TaskRecord) -> None:
        """Keep what is known of one task."""
        ...

    async def put_health(self, alloc_id: str, health: AllocDeploymentStatus | None) -> None:
        """Keep the judged health of a kept allocation."""
        ...

    async def delete_alloc(self, alloc_id: str) -> None:
        """Forget an allocation and its tasks."""
        ...

    async def volumes(self) -> list[VolumeRecord]:
        """The dynamic volumes of this node, in the order of ids."""
        ...

    async def put_volume(self, volume: VolumeRecord) -> None:
        """Keep a new or changed volume."""
        ...

    async def delete_volume(self, volume_id: str) -> None:
        """Forget a volume."""
        ...

    async def close(self) -> None:
        """No more calls."""
        ...


class MemoryState:
    """Keeps everything in memory, for the simulator and throw-away agents; outlives the agent that used it."""

    def __init__(self) -> None:
        self._node: NodeIdentity | None = None
        self._meta: dict[str, str | None] = {}
        self._allocs: dict[str, AllocRecord] = {}
        self._volumes: dict[str, VolumeRecord] = {}

    async def node(self) -> NodeIdentity | None:
        """See LocalState."""
        return self._node

    async def put_node(self, identity: NodeIdentity) -> None:
        """See LocalState."""
        self._node = identity

    async def meta(self) -> dict[str, str | None]:
        """See LocalState."""
        return dict(self._meta)

    async def put_meta(self, meta: dict[str, str | None]) -> None:
        """See LocalState."""
        self._meta = dict(meta)

    async def allocs(self) -> list[AllocRecord]:
        """See LocalState."""
        return [self._allocs[key] for key in sorted(self._allocs)]

    async def put_alloc(self, alloc: Allocation, *, since_ns: int) -> None:
        """See LocalState."""
        old = self._allocs.get(alloc.id)
        if old is None:
            self._allocs[alloc.id] = AllocRecord(alloc=alloc, since_ns=since_ns)
        else:
            self._allocs[alloc.id] = msgspec.structs.replace(old, alloc=alloc)

    async def put_task(self, alloc_id: str, task: str, record: TaskRecord) -> None:
        """See LocalState."""
        old = self._allocs.get(alloc_id)
        if old is not None:
            tasks = {**old.tasks, task: record}
            self._allocs[alloc_id] = msgspec.structs.replace(old, tasks=tasks)

    async def put_health(self, alloc_id: str, health: AllocDeploymentStatus | None) -> None:
        """See LocalState."""
        old = self._allocs.get(alloc_id)
        if old is not None:
            self._allocs[alloc_id] = msgspec.structs.replace(old, health=health)

    async def delete_alloc(self, alloc_id: str) -> None:
        """See LocalState."""
        self._allocs.pop(alloc_id, None)

    async def volumes(self) -> list[VolumeRecord]:
        """See LocalState."""
        return [self._volumes[key] for key in sorted(self._volumes)]

    async def put_volume(self, volume: VolumeRecord) -> None:
        """See LocalState."""
        self._volumes[volume.id] = volume

    async def delete_volume(self, volume_id: str) -> None:
        """See LocalState."""
        self._volumes.pop(volume_id, None)

    async def close(self) -> None:
        """See LocalState."""


class DamagedError(ValueError):
    """A value is not what was written."""


class _Job:
    """Something to do with the database, and who waits for it."""

    def __init__(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        self.work = work
        self.done: concurrent.futures.Future[Any] = concurrent.futures.Future()


class SQLiteState:
    """LocalState in one SQLite file, used by one thread of its own."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; blocks for milliseconds. Raises OSError when the folder cannot be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._database = _open_or_replace(path)
        self._jobs: collections.deque[_Job] = collections.deque()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="local-state")

    async def node(self) -> NodeIdentity | None:
        """See LocalState."""
        raw = await self._fact("node")
        return None if raw is None else msgspec.msgpack.decode(raw, type=NodeIdentity)

    async def put_node(self, identity: NodeIdentity) -> None:
        """See LocalState."""
        await self._put_fact("node", msgspec.msgpack.encode(identity))

    async def meta(self) -> dict[str, str | None]:
        """See LocalState. Metadata that is damaged is lost, with an error in the log."""
        try:
            raw = await self._fact("meta")
        except DamagedError as cause:
            log.error("dynamic metadata lost", error=str(cause))
            return {}
        return {} if raw is None else msgspec.msgpack.decode(raw, type=dict[str, str | None])

    async def put_meta(self, meta: dict[str, str | None]) -> None:
        """See LocalState."""
        await self._put_fact("meta", msgspec.msgpack.encode(meta))

    async def allocs(self) -> list[AllocRecord]:
        """See LocalState. A row that cannot be decoded is left out with an error in the log."""
        return await self._run(_read_allocs)

    async def put_alloc(self, alloc: Allocation, *, since_ns: int) -> None:
        """See LocalState."""
        raw = msgspec.msgpack.encode(alloc)

        def work(database: sqlite3.Connection) -> None:
            found = database.execute("SELECT since_ns FROM allocs WHERE id = ?", (alloc.id,))
            row = found.fetchone()
            since = since_ns if row is None else row[0]
            database.execute(
                "INSERT INTO allocs (id, alloc, since_ns) VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET alloc = excluded.alloc",
                (alloc.id, _sealed(raw, "alloc", alloc.id, str(since)), since),
            )

        await self._run(work)

    async def put_task(self, alloc_id: str, task: str, record: TaskRecord) -> None:
        """See LocalState. A task of an allocation that is not kept (any more) is not kept either."""
        raw = _sealed(msgspec.msgpack.encode(record), "task", alloc_id, task)
        await self._execute(
            "INSERT INTO tasks (alloc_id, task, record)"
            " SELECT id, ?, ? FROM allocs WHERE id = ?"
            " ON CONFLICT (alloc_id, task) DO UPDATE SET record = excluded.record",
            (task, raw, alloc_id),
        )

    async def put_health(self, alloc_id: str, health: AllocDeploymentStatus | None) -> None:
        """See LocalState."""
        raw = (
            None if health is None else _sealed(msgspec.msgpack.encode(health), "health", alloc_id)
        )
        await self._execute("UPDATE allocs SET health = ? WHERE id = ?", (raw, alloc_id))

    async def delete_alloc(self, alloc_id: str) -> None:
        """See LocalState."""

        def work(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM tasks WHERE alloc_id = ?", (alloc_id,))
            database.execute("DELETE FROM allocs WHERE id = ?", (alloc_id,))

        await self._run(work)

    async def volumes(self) -> list[VolumeRecord]:
        """See LocalState. A record that is damaged is left out with an error in the log; its directory stays."""
        return await self._run(_read_volumes)

    async def put_volume(self, volume: VolumeRecord) -> None:
        """See LocalState."""
        await self._put_fact(_VOLUME + volume.id, msgspec.msgpack.encode(volume))

    async def delete_volume(self, volume_id: str) -> None:
        """See LocalState."""
        await self._execute("DELETE FROM facts WHERE name = ?", (_VOLUME + volume_id,))

    async def close(self) -> None:
        """See LocalState."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown(wait=False)

    async def _fact(self, name: str) -> bytes | None:
        def work(database: sqlite3.Connection) -> bytes | None:
            row = database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            return None if row is None else bytes(row[0])

        raw = await self._run(work)
        return None if raw is None else _opened(raw, "fact", name)

    async def _put_fact(self, name: str, value: bytes) -> None:
        await self._execute(
            "INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)",
            (name, _sealed(value, "fact", name)),
        )

    async def _execute(self, statement: str, values: tuple[Any, ...]) -> None:
        def work(database: sqlite3.Connection) -> None:
            database.execute(statement, values)

        await self._run(work)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        job = _Job(work)
        self._jobs.append(job)
        self._thread.submit(self._commit_waiting)
        # Shielded: the write is in the queue and will happen, whether or not its caller still waits.
        result: T = await asyncio.shield(asyncio.wrap_future(job.done))
        return result

    def _commit_waiting(self) -> None:
        # Whoever comes first does the work of all that wait; the later calls then find nothing to do.
        batch: list[_Job] = []
        while self._jobs:
            batch.append(self._jobs.popleft())
        if not batch:
            return
        try:
            self._database.execute("BEGIN IMMEDIATE")
            results = [job.work(self._database) for job in batch]
            self._database.execute("COMMIT")
        except (sqlite3.Error, msgspec.MsgspecError) as cause:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            for job in batch:
                job.done.set_exception(OSError(f"{self._path}: {cause}"))
            return
        for job, result in zip(batch, results, strict=True):
            job.done.set_result(result)


def _read_allocs(database: sqlite3.Connection) -> list[AllocRecord]:
    tasks: dict[str, dict[str, TaskRecord]] = {}
    for alloc_id, task, raw in database.execute("SELECT alloc_id, task, record FROM tasks"):
        try:
            sound = _opened(raw, "task", alloc_id, task)
            record = msgspec.msgpack.decode(sound, type=TaskRecord)
        except (msgspec.MsgspecError, DamagedError) as cause:
            log.error("task record unreadable", alloc_id=alloc_id, task=task, error=str(cause))
            continue
        tasks.setdefault(alloc_id, {})[task] = record
    found: list[AllocRecord] = []
    rows = database.execute("SELECT id, alloc, health, since_ns FROM allocs ORDER BY id")
    for alloc_id, raw, health, since_ns in rows:
        try:
            sound = _opened(raw, "alloc", alloc_id, str(since_ns))
            record_ = AllocRecord(
                alloc=msgspec.msgpack.decode(sound, type=Allocation),
                tasks=tasks.get(alloc_id, {}),
                health=None if health is None else _health(alloc_id, health),
                since_ns=since_ns,
            )
        except (msgspec.MsgspecError, DamagedError) as cause:
            log.error("allocation record unreadable", alloc_id=alloc_id, error=str(cause))
            continue
        found.append(record_)
    return found


def _read_volumes(database: sqlite3.Connection) -> list[VolumeRecord]:
    found: list[VolumeRecord] = []
    rows = database.execute("SELECT name, value FROM facts ORDER BY name").fetchall()
    for name, raw in rows:
        if not str(name).startswith(_VOLUME):
            continue
        try:
            sound = _opened(raw, "fact", name)
            found.append(msgspec.msgpack.decode(sound, type=VolumeRecord))
        except (msgspec.MsgspecError, DamagedError) as cause:
            log.error("volume record unreadable", record=name, error=str(cause))
    return found


def _health(alloc_id: str, raw: bytes) -> AllocDeploymentStatus:
    return msgspec.msgpack.decode(_opened(raw, "health", alloc_id), type=AllocDeploymentStatus)


def _sealed(value: bytes, *key: str) -> bytes:
    """The value behind a checksum of its key and itself: four bytes, CRC32C."""
    return _checksum(value, key) + value


def _opened(raw: bytes, *key: str) -> bytes:
    """The value of what `_sealed` made. Raises DamagedError."""
    raw = bytes(raw)
    if _checksum(raw[4:], key) != raw[:4]:
        raise DamagedError(f"the checksum of {' '.join(key)} does not hold")
    return raw[4:]


def _checksum(value: bytes, key: tuple[str, ...]) -> bytes:
    # A damaged key need not be text any more.
    head = "".join(f"{len(part)}:{part}" for part in map(str, key)).encode("utf-8", "replace")
    total: int = google_crc32c.value(head + b"\0" + value)
    return total.to_bytes(4, "little")


def _open_or_replace(path: Path) -> sqlite3.Connection:
    try:
        return _open(path)
    except sqlite3.DatabaseError as cause:
        if isinstance(cause, sqlite3.OperationalError) and "locked" in str(cause):
            raise OSError(f"{path}: another agent uses this data directory") from cause
        aside = path.with_name(path.name + ".damaged")
        log.error(
            "local state damaged; starting without it", path=path, kept_as=aside, error=str(cause)
        )
        os.replace(path, aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _open(path)


def _open(path: Path) -> sqlite3.Connection:
    existed = path.exists()
    database = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
    try:
        # The file holds the node's secret.
        path.chmod(0o600)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        found = database.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(f"quick_check: {found}")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and existed:
            log.error("local state is empty, though the node was here before", path=path)
        if version == 1:
            _seal_all(database)
        elif version == 0:
            script = f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            database.executescript(script)
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(
                f"schema version {version}, this agent knows {SCHEMA_VERSION}"
            )
        _check_identity(database)
    except BaseException:
        database.close()
        raise
    return database


def _check_identity(database: sqlite3.Connection) -> None:
    """Raise DatabaseError when the node's identity is damaged: without it the rest belongs to nobody."""
    row = database.execute("SELECT value FROM facts WHERE name = 'node'").fetchone()
    if row is None:
        return
    try:
        msgspec.msgpack.decode(_opened(row[0], "fact", "node"), type=NodeIdentity)
    except (DamagedError, msgspec.MsgspecError) as cause:
        raise sqlite3.DatabaseError(f"the node's identity: {cause}") from cause


def _seal_all(database: sqlite3.Connection) -> None:
    """Bring a file of version 1, which had no checksums, to this version."""
    database.execute("BEGIN IMMEDIATE")
    try:
        for name, value in database.execute("SELECT name, value FROM facts").fetchall():
            database.execute(
                "UPDATE facts SET value = ? WHERE name = ?", (_sealed(value, "fact", name), name)
            )
        rows = database.execute("SELECT id, alloc, health, since_ns FROM allocs").fetchall()
        for alloc_id, alloc, health, since_ns in rows:
            database.execute(
                "UPDATE allocs SET alloc = ?, health = ? WHERE id = ?",
                (
                    _sealed(alloc, "alloc", alloc_id, str(since_ns)),
                    None if health is None else _sealed(health, "health", alloc_id),
                    alloc_id,
                ),
            )
        found = database.execute("SELECT alloc_id, task, record FROM tasks").fetchall()
        for alloc_id, task, record in found:
            database.execute(
                "UPDATE tasks SET record = ? WHERE alloc_id = ? AND task = ?",
                (_sealed(record, "task", alloc_id, task), alloc_id, task),
            )
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise
