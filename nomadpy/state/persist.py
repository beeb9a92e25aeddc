"""A whole state as a stream of chunks, and back: what raft keeps as a snapshot and sends to a server that is far behind.

The stream is a sequence of frames, each a length (4 bytes, big endian) and a msgpack array `[section, version, payload]`.
A chunk is one or more whole frames; a reader may cut the stream anywhere. Sections, in this order:

    header   format, state index, index of every table
    jobs     the distinct Job objects, in pieces; what follows refers to them by position
    table    name and rows, in pieces, for each table; allocations and jobs hold positions instead of jobs
    extra    name and bytes, for what the state machine keeps beside the state
    end      the number of frames before it

A section's version moves when its payload changes shape; a reader refuses what it does not know rather than guess.
Not here: files, checksums of them, and sending (raft).
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from nomadpy.errors import CorruptionError
from nomadpy.models.allocation import Allocation
from nomadpy.models.job import Job
from nomadpy.state.schema import ALLOCS, FIRST_INDEXES, JOB_VERSIONS, JOBS, TABLES
from nomadpy.state.store import Snapshot
from nomadpy.state.table import Table, TableSpec, table_of

FORMAT = "nomadpy-state"
VERSIONS = {"header": 1, "jobs": 1, "table": 1, "extra": 1, "end": 1}
PIECE_ROWS = 256
MAX_FRAME = 1 << 30
NO_JOB = -1
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError, KeyError)
"""What a damaged stream makes the decoder raise."""

T = TypeVar("T")


class Restored(msgspec.Struct, frozen=True):
    """What a stream held."""

    snapshot: Snapshot
    extras: dict[str, list[bytes]]


class Header(msgspec.Struct, frozen=True):
    """index: of the last entry in the state; table_indexes: of the last write to each table."""

    format: str
    index: int
    table_indexes: dict[str, int]


class _Frame(msgspec.Struct, frozen=True, array_like=True):
    section: str
    version: int
    payload: msgspec.Raw


class _Piece(msgspec.Struct, frozen=True, array_like=True):
    """Rows of one table: pairs of key and row, encoded by the table's own types."""

    table: str
    rows: msgspec.Raw


class _Extra(msgspec.Struct, frozen=True, array_like=True):
    name: str
    data: bytes


# -- writing --------------------------------------------------------------------------------------------


def write(
    snapshot: Snapshot, extras: Mapping[str, Iterable[bytes]] | None = None
) -> Iterator[bytes]:
    """Yield the stream. Reads only immutable values, so it may run in a thread while the state moves on."""
    count = 0
    for section, payload in _payloads(snapshot, extras or {}):
        count += 1
        yield _frame(section, payload)
    yield _frame("end", count)


def _payloads(
    snapshot: Snapshot, extras: Mapping[str, Iterable[bytes]]
) -> Iterator[tuple[str, Any]]:
    yield "header", Header(FORMAT, snapshot.index, dict(snapshot.table_indexes))
    pool = _JobPool(snapshot)
    for held in _pieces(pool.jobs):
        yield "jobs", held
    for name in TABLES:
        for rows in _pieces(_rows_out(snapshot.tables[name], pool)):
            yield "table", (name, rows)
    for name, items in extras.items():
        for data in items:
            yield "extra", _Extra(name, data)


def _rows_out(table: Table[Any, Any], pool: _JobPool) -> Iterator[tuple[Any, ...]]:
    holds_jobs = table.spec.name in (JOBS.name, JOB_VERSIONS.name)
    for key in table.keys():  # noqa: SIM118 - in order, by name
        row = table.get(key)
        if holds_jobs:
            yield key, pool.position(row)
        elif isinstance(row, Allocation):
            yield key, msgspec.structs.replace(row, job=None), pool.position(row.job)
        else:
            yield key, row


def _pieces(items: Iterable[T]) -> Iterator[list[T]]:
    piece: list[T] = []
    for item in items:
        piece.append(item)
        if len(piece) == PIECE_ROWS:
            yield piece
            piece = []
    if piece:
        yield piece


def _frame(section: str, payload: Any) -> bytes:
    body = msgspec.msgpack.encode((section, VERSIONS[section], payload))
    return len(body).to_bytes(4, "big") + body


class _JobPool:
    """The distinct Job objects of a snapshot: one that many allocations share is written once, and shared again."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.jobs: list[Job] = []
        self._positions: dict[int, int] = {}
        for name in (JOBS.name, JOB_VERSIONS.name):
            table = snapshot.tables[name]
            for key in table.keys():  # noqa: SIM118 - in order, by name
                self._add(table.get(key))
        for alloc in snapshot.allocs():
            self._add(alloc.job)

    def position(self, job: Job | None) -> int:
        return NO_JOB if job is None else self._positions[id(job)]

    def _add(self, job: Job | None) -> None:
        if job is not None and id(job) not in self._positions:
            self._positions[id(job)] = len(self.jobs)
            self.jobs.append(job)


# -- reading --------------------------------------------------------------------------------------------


def read(chunks: Iterable[bytes]) -> Restored:
    """Rebuild the state that `write` was given. Raises CorruptionError for a stream that is cut, damaged or newer."""
    # All of it is kept, so looking for garbage meanwhile is in vain; it would take as long as the rest.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _read(chunks)
    except UNREADABLE as error:
        raise CorruptionError(f"snapshot cannot be decoded: {error}") from error
    finally:
        if collecting:
            gc.enable()


def _read(chunks: Iterable[bytes]) -> Restored:
    reader = Reader()
    for chunk in chunks:
        reader.feed(chunk)
    return reader.finish()


class Reader:
    """Takes a stream piece by piece, so that decoding a large one can be spread over time. Raises as `read` does, and
    also what msgspec raises."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self._jobs: list[Job] = []
        self._rows: dict[str, dict[Any, Any]] = {name: {} for name in TABLES}
        self._extras: dict[str, list[bytes]] = {}
        self._ended = False
        self._count = 0
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take the next piece, cut anywhere."""
        buffer = self._buffer
        buffer += chunk
        start = 0
        while len(buffer) - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "big")
            if size > MAX_FRAME:
                raise CorruptionError(f"snapshot has a frame of {size} bytes")
            if len(buffer) - start - 4 < size:
                break
            body = bytes(buffer[start + 4 : start + 4 + size])
            start += 4 + size
            self._take(msgspec.msgpack.decode(body, type=_Frame))
        del buffer[:start]

    def finish(self) -> Restored:
        """What the stream held, now that it is over."""
        if self._buffer:
            raise CorruptionError("snapshot ends within a frame")
        if self.header is None or not self._ended:
            raise CorruptionError("snapshot ends before its end")
        tables = {name: table_of(spec, self._rows[name].items()) for name, spec in TABLES.items()}
        indexes = {**FIRST_INDEXES, **self.header.table_indexes}
        return Restored(Snapshot(self.header.index, tables, indexes), self._extras)

    def counts(self) -> dict[str, int]:
        """Rows so far, by table."""
        return {name: len(rows) for name, rows in self._rows.items()}

    def _take(self, frame: _Frame) -> None:
        if self._ended:
            raise CorruptionError("snapshot goes on behind its end")
        known = VERSIONS.get(frame.section)
        if known is None or frame.version > known:
            raise CorruptionError(
                f"snapshot has section {frame.section!r} version {frame.version}, which this server does not know; "
                "it was written by a newer one"
            )
        if (frame.section == "header") != (self._count == 0):
            raise CorruptionError("snapshot does not begin with its header")
        if frame.section == "header":
            self.header = msgspec.msgpack.decode(frame.payload, type=Header)
            if self.header.format != FORMAT:
                raise CorruptionError(f"not a snapshot of a state but {self.header.format!r}")
        elif frame.section == "jobs":
            self._jobs.extend(msgspec.msgpack.decode(frame.payload, type=list[Job]))
        elif frame.section == "table":
            piece = msgspec.msgpack.decode(frame.payload, type=_Piece)
            spec = TABLES[piece.table]
            self._rows[piece.table].update(_rows_in(spec, piece.rows, self._jobs))
        elif frame.section == "extra":
            extra = msgspec.msgpack.decode(frame.payload, type=_Extra)
            self._extras.setdefault(extra.name, []).append(extra.data)
        else:
            self._ended = True
            if msgspec.msgpack.decode(frame.payload, type=int) != self._count:
                raise CorruptionError("snapshot lacks frames")
        self._count += 1


def _rows_in(
    spec: TableSpec[Any, Any], encoded: msgspec.Raw, jobs: list[Job]
) -> Iterator[tuple[Any, Any]]:
    key_type: Any = spec.key_type
    row_type: Any = spec.row_type
    if spec.name in (JOBS.name, JOB_VERSIONS.name):
        held: list[tuple[Any, int]] = msgspec.msgpack.decode(
            encoded, type=list[tuple[key_type, int]]
        )
        for key, position in held:
            yield key, _job_at(jobs, position)
    elif spec is ALLOCS:
        allocs: list[tuple[str, Allocation, int]] = msgspec.msgpack.decode(
            encoded, type=list[tuple[str, Allocation, int]]
        )
        for key, alloc, position in allocs:
            job = None if position == NO_JOB else _job_at(jobs, position)
            yield key, msgspec.structs.replace(alloc, job=job)
    else:
        yield from msgspec.msgpack.decode(encoded, type=list[tuple[key_type, row_type]])


def _job_at(jobs: list[Job], position: int) -> Job:
    if position < 0:
        raise IndexError(f"job {position}")
    return jobs[position]
