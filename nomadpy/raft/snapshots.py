"""Snapshots on disk: written aside, checked, then given their name; the newest two are kept.

    file   = b"NRSN" u32 version; then frames
    frame  = u8 kind u32 length u32 crc32c(kind, payload) payload
    kind 0 header (msgpack SnapshotHeader), 1 chunk of the state machine, 2 end (u64 number of chunks)

The name holds index and term, so a newer snapshot never replaces an older one in place and a transfer that is under
way goes on reading the file it began with.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

import google_crc32c
import msgspec

from nomadpy.errors import CorruptionError
from nomadpy.raft.configuration import Configuration
from nomadpy.raft.files import AppendFile, Files

_PREAMBLE = b"NRSN\x01\x00\x00\x00"
_FRAME = struct.Struct("<BII")
_HEADER, _CHUNK, _END = 0, 1, 2
_READ_BYTES = 1 << 20
_MAX_FRAME_BYTES = 256 << 20
_KEPT = 2
_PARTIAL = ".partial"


class SnapshotHeader(msgspec.Struct, frozen=True):
    """What a snapshot covers: the log up to (index, term), and the configuration at that index."""

    index: int
    term: int
    configuration: Configuration


class SnapshotStore:
    """The snapshots of one server. Methods that say so run in a thread; the others on the event loop."""

    def __init__(self, files: Files, directory: str, *, fsync: bool = True) -> None:
        self._files = files
        self._directory = directory
        self._fsync = fsync
        files.make_directory(directory)
        for name in files.list(directory):
            if name.endswith(_PARTIAL):
                files.remove(os.path.join(directory, name))
        self.headers: list[SnapshotHeader] = []
        self._useless: list[str] = []

    @property
    def latest(self) -> SnapshotHeader | None:
        """The newest usable snapshot."""
        return self.headers[-1] if self.headers else None

    def load(self) -> list[str]:
        """At start: read and check every snapshot; return what is wrong with those that are of no use."""
        damaged: list[str] = []
        for name in self._names():
            path = os.path.join(self._directory, name)
            try:
                self.headers.append(self._verify(path))
            except CorruptionError as cause:
                damaged.append(cause.message)
                self._useless.append(path)
        self.headers.sort(key=lambda header: header.index)
        if self._fsync:
            # A process that died between rename and sync leaves a name that a power cut would take back.
            self._files.sync_directory(self._directory)
        return damaged

    def chunks(self, header: SnapshotHeader, *, staged: bool = False) -> Iterator[bytes]:
        """The state machine's chunks. Raises CorruptionError where the file is damaged."""
        path = self._staged(header.index) if staged else self.path(header)
        for kind, payload in self._frames(path):
            if kind == _CHUNK:
                yield payload

    def path(self, header: SnapshotHeader) -> str:
        """Where the snapshot lies."""
        return os.path.join(self._directory, f"snapshot-{header.index:020d}-{header.term}.snap")

    def read(self, header: SnapshotHeader, offset: int, limit: int) -> bytes | None:
        """A piece of the file for a follower; None when the snapshot is no longer there."""
        try:
            return self._files.read(self.path(header), offset, limit)
        except FileNotFoundError:
            return None

    # ---- written here (in a thread)

    def write(self, header: SnapshotHeader, produce: Callable[[], Iterator[bytes]]) -> None:
        """Write, check nothing, make durable, give it its name. Raises OSError or what `produce` raises."""
        staged = os.path.join(self._directory, f"local-{header.index}{_PARTIAL}")
        self._files.remove(staged)
        try:
            self._write_staged(staged, header, produce)
            self._name(staged, header)
        except BaseException:
            # The next attempt has another index; on a full disk this one's room is what it needs.
            self._files.remove(staged)
            raise

    def _write_staged(
        self, staged: str, header: SnapshotHeader, produce: Callable[[], Iterator[bytes]]
    ) -> None:
        file = self._files.append(staged)
        try:
            file.write(_PREAMBLE)
            _write_frame(file, _HEADER, msgspec.msgpack.encode(header))
            count = 0
            for chunk in produce():
                _write_frame(file, _CHUNK, bytes(chunk))
                count += 1
            _write_frame(file, _END, struct.pack("<Q", count))
            if self._fsync:
                file.sync()
        finally:
            file.close()

    def adopt(self, header: SnapshotHeader) -> None:
        """On the loop: count a snapshot that `write` or `install` has named, and drop the oldest beyond two."""
        self.headers = sorted(
            {h.index: h for h in [*self.headers, header]}.values(), key=lambda h: h.index
        )
        for old in self.headers[:-_KEPT]:
            self._files.remove(self.path(old))
        # Kept until now for whoever wants to look at them; with a new one there is no more need.
        for path in self._useless:
            self._files.remove(path)
        self._useless = []
        self.headers = self.headers[-_KEPT:]

    # ---- received from a leader

    def receiver(self, index: int, term: int) -> Receiver:
        """Stage a snapshot that arrives in pieces."""
        return Receiver(self._files, self._staged(index), index, term, fsync=self._fsync)

    def sync(self, receiver: Receiver) -> None:
        """In a thread: write what has arrived; when that is all, check the whole file and set `receiver.header`.

        Raises CorruptionError when the file is not what was announced; then it must be discarded.
        """
        receiver.sync()
        if not receiver.durable:
            return
        path = self._staged(receiver.index)
        header = self._verify(path)
        if (header.index, header.term) != (receiver.index, receiver.term):
            raise CorruptionError(
                f"{path}: holds ({header.index}, {header.term}), announced was ({receiver.index}, {receiver.term})"
            )
        receiver.header = header

    def install(self, header: SnapshotHeader) -> None:
        """In a thread: give the checked, staged file its name, durably."""
        self._name(self._staged(header.index), header)

    # ---- inside

    def _names(self) -> list[str]:
        names = self._files.list(self._directory)
        return [n for n in names if n.startswith("snapshot-") and n.endswith(".snap")]

    def _staged(self, index: int) -> str:
        return os.path.join(self._directory, f"received-{index}{_PARTIAL}")

    def _name(self, staged: str, header: SnapshotHeader) -> None:
        self._files.rename(staged, self.path(header))
        if self._fsync:
            self._files.sync_directory(self._directory)

    def _verify(self, path: str) -> SnapshotHeader:
        header: SnapshotHeader | None = None
        for kind, payload in self._frames(path):
            if kind == _HEADER:
                try:
                    header = msgspec.msgpack.decode(payload, type=SnapshotHeader)
                except msgspec.DecodeError as cause:
                    raise CorruptionError(
                        f"{path}: the snapshot's header is unreadable: {cause}"
                    ) from cause
        if header is None:
            raise CorruptionError(f"{path}: the snapshot has no header")
        return header

    def _frames(self, path: str) -> Iterator[tuple[int, bytes]]:
        """All frames up to and without the end; CorruptionError unless the whole file is as it was written."""
        reader = _Reader(self._files, path)
        if reader.take(len(_PREAMBLE)) != _PREAMBLE:
            raise CorruptionError(f"{path}: not a snapshot of a known format")
        count = 0
        expected = _HEADER
        while True:
            at = reader.position
            kind, length, checksum = _FRAME.unpack(reader.take(_FRAME.size))
            if length > _MAX_FRAME_BYTES:
                raise CorruptionError(f"{path}: the snapshot is damaged at byte {at}")
            payload = reader.take(length)
            if _checksum(kind, payload) != checksum or (kind == _HEADER) != (expected == _HEADER):
                raise CorruptionError(f"{path}: the snapshot is damaged at byte {at}")
            expected = _CHUNK
            if kind == _END:
                if payload != struct.pack("<Q", count) or not reader.at_end():
                    raise CorruptionError(f"{path}: the snapshot is damaged at byte {at}")
                return
            count += kind == _CHUNK
            yield kind, payload


class Receiver:
    """One snapshot on its way in: pieces are taken on the loop and written by `sync` in the round's thread."""

    def __init__(self, files: Files, path: str, index: int, term: int, *, fsync: bool) -> None:
        self.index = index
        self.term = term
        self.expected = 0
        self.complete = False
        self.durable = False
        self.header: SnapshotHeader | None = None
        self._files = files
        self._path = path
        self._fsync = fsync
        self._pending: list[bytes] = []
        self._file: AppendFile | None = None
        files.remove(path)

    @property
    def dirty(self) -> bool:
        """Whether `sync` has something to do."""
        return bool(self._pending) or (self.complete and not self.durable)

    def take(self, offset: int, data: bytes, *, last: bool) -> bool:
        """Accept a piece when it is the next one; `expected` says which that is."""
        if offset != self.expected or (self.complete and data):
            return False
        if not data:
            return True
        self._pending.append(data)
        self.expected += len(data)
        self.complete = last
        return True

    def sync(self) -> None:
        """In a thread: write what has arrived; after the last piece make it durable."""
        if self._file is None:
            self._file = self._files.append(self._path)
        for data in self._pending:
            self._file.write(data)
        self._pending = []
        if self.complete and not self.durable:
            if self._fsync:
                self._file.sync()
            self.close()
            self.durable = True

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Another snapshot is wanted, or none."""
        self.close()
        self._files.remove(self._path)


class _Reader:
    """Reads a file in large pieces."""

    def __init__(self, files: Files, path: str) -> None:
        self.position = 0
        self._files = files
        self._path = path
        self._buffer = b""
        self._offset = 0

    def take(self, count: int) -> bytes:
        while len(self._buffer) - self._offset < count:
            piece = self._files.read(
                self._path,
                self.position + len(self._buffer) - self._offset,
                max(_READ_BYTES, count),
            )
            if not piece:
                raise CorruptionError(
                    f"{self._path}: the snapshot ends early, at byte {self.position}"
                )
            self._buffer = self._buffer[self._offset :] + piece
            self._offset = 0
        data = self._buffer[self._offset : self._offset + count]
        self._offset += count
        self.position += count
        return data

    def at_end(self) -> bool:
        return self._offset == len(self._buffer) and not self._files.read(
            self._path, self.position, 1
        )


def _write_frame(file: AppendFile, kind: int, payload: bytes) -> None:
    file.write(_FRAME.pack(kind, len(payload), _checksum(kind, payload)))
    if payload:
        file.write(payload)


def _checksum(kind: int, payload: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(bytes([kind])), payload))
