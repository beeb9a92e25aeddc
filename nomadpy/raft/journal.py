"""The log on disk: segment files of checksummed batches, and the hard state (term and vote).

Changes touch memory and a pending buffer only; `sync` writes and makes durable everything pending, in one go, in a
thread, while nobody changes the journal. What depends on it may leave the server only after `sync` returned.

    segment  = 16 bytes: b"NRSG" u32 version u64 first index; then batches
    batch    = b"NRB1" u32 length u32 crc32c(payload) payload         one batch per sync
    payload  = records: u8 type u64 index u64 term u32 length command
    type 0 ENTRY, 1 TRUNCATE (entries at and after index are void), 2 RESET (the log is one sentinel: index, term)

A batch is written only after the one before it is durable. So a damaged end of the last segment is a batch that a
crash cut short, and nothing in it was ever acknowledged: it is dropped. A damaged batch with a valid one after it was
durable once: that is corruption, and the server must not start, for it would forget what it promised.

Of the last batch alone its own bytes cannot tell which of the two it is. So after every sync the file `synced` notes how
far the log is durable, in place and without a sync of its own: it may be behind, never ahead. What is damaged or
missing below it was durable once. Behind a power cut that took the note's last state along, less is known, and nothing wrong.

    synced   = b"NRSY" u32 crc32c(the rest) u64 segment u64 bytes of it
"""

from __future__ import annotations

import itertools
import os
import struct

import google_crc32c
import msgspec

from nomadpy.errors import CorruptionError
from nomadpy.raft.files import AppendFile, Files, write_atomically

LogEntry = tuple[bytes, int, int]
"""(command, index, term): the shape PySyncObj works with."""

SENTINEL = b"\x01"
"""The command of an entry that only marks where the log begins: a no-op of the core."""

_MAGIC = b"NRB1"
_SEGMENT = struct.Struct("<4sIQ")
_SEGMENT_MAGIC = b"NRSG"
_VERSION = 1
_BATCH = struct.Struct("<4sII")
_RECORD = struct.Struct("<BQQI")
_ENTRY, _TRUNCATE, _RESET = 0, 1, 2
_HARD_STATE_MAGIC = b"NRHS"
_SYNCED = struct.Struct("<4sIQQ")
_SYNCED_MAGIC = b"NRSY"

_ADVICE = (
    "Do not repair it by hand: what this server acknowledged may be lost. Stop it, remove it from the cluster, "
    "empty its raft directory and let it join again; if it is the only server, restore a snapshot or a backup."
)

_crc = google_crc32c.value


class SafetyError(Exception):
    """A rule of raft would be broken; the process must stop before anyone hears of it."""


class Journal:
    """Entries from `first_index` to `last_index` in memory, all of them on disk after `sync`."""

    def __init__(
        self, files: Files, directory: str, *, segment_bytes: int = 64 << 20, fsync: bool = True
    ) -> None:
        """Read what is there. Raises CorruptionError when it is damaged by more than a torn end."""
        self.entries: list[LogEntry] = []
        self.term = 0
        self.vote: str | None = None
        self.torn_bytes = 0
        self.command_bytes = 0
        self.syncs = 0
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._fsync = fsync
        self._pending: list[bytes] = []
        self._pending_first = 0
        self._hard_state_dirty = False
        self._segments: list[tuple[int, str]] = []
        self._dropped: list[str] = []
        self._file: AppendFile | None = None
        files.make_directory(directory)
        self._last_batch: tuple[str, int, bytes] | None = None
        found = self._load_hard_state()
        self._durable = self._load_synced()
        self._load_segments()
        if not found and self.entries and self.entries[-1][2] > 0:
            raise CorruptionError(
                f"{self._hard_state_path}: missing, though the log has entries of term {self.entries[-1][2]}; "
                f"without its vote this server could vote twice. {_ADVICE}"
            )
        if self._fsync:
            self._make_certain(hard_state=found)

    # ---- the log in memory

    @property
    def first_index(self) -> int:
        """Index of the first entry; 0 when empty."""
        return self.entries[0][1] if self.entries else 0

    @property
    def last_index(self) -> int:
        """Index of the last entry; 0 when empty."""
        return self.entries[-1][1] if self.entries else 0

    @property
    def last_term(self) -> int:
        """Term of the last entry; 0 when empty."""
        return self.entries[-1][2] if self.entries else 0

    def term_at(self, index: int) -> int | None:
        """Term of the entry at `index`; None when the log does not hold it."""
        offset = index - self.first_index
        if 0 <= offset < len(self.entries):
            return self.entries[offset][2]
        return None

    def slice(self, first: int, last: int) -> list[LogEntry]:
        """Entries first..last inclusive, as far as the log holds them."""
        base = self.first_index
        return self.entries[max(0, first - base) : max(0, last + 1 - base)]

    def trailing(self, index: int, entries: int, size: int) -> int:
        """Where a tail of the log begins that ends at `index`: at most so many entries and bytes of commands."""
        first = index
        while first > self.first_index and index - first < entries:
            size -= len(self.entries[first - self.first_index][0])
            if size < 0:
                break
            first -= 1
        return first

    def append(self, command: bytes, index: int, term: int) -> None:
        """Add one entry, which must follow the last."""
        if self.entries and index != self.entries[-1][1] + 1:
            raise SafetyError(f"entry {index} does not follow {self.entries[-1][1]}")
        if self.entries and term < self.entries[-1][2]:
            raise SafetyError(f"entry {index} of term {term} follows term {self.entries[-1][2]}")
        self.entries.append((command, index, term))
        self.command_bytes += len(command)
        self._record(_ENTRY, index, term, command)

    def truncate_from(self, index: int) -> None:
        """Drop the entries at and after `index`: a leader of a newer term has others there."""
        offset = index - self.first_index
        if offset <= 0:
            raise SafetyError(f"the log begins at {self.first_index}, it cannot be cut at {index}")
        if offset < len(self.entries):
            self.command_bytes -= sum(len(entry[0]) for entry in self.entries[offset:])
            del self.entries[offset:]
            self._record(_TRUNCATE, index, 0)

    def reset(self, index: int, term: int) -> None:
        """Forget everything: a snapshot that ends at (index, term) takes its place."""
        self.entries = [(SENTINEL, index, term)]
        self.command_bytes = len(SENTINEL)
        self._record(_RESET, index, term)

    def compact(self, first_index: int, disk_first_index: int) -> None:
        """Keep entries from `first_index` in memory, and on disk at least those from `disk_first_index`."""
        offset = first_index - self.first_index
        if offset > 0:
            offset = min(offset, len(self.entries) - 1)
            self.command_bytes -= sum(len(entry[0]) for entry in self.entries[:offset])
            self.entries = self.entries[offset:]
        while len(self._segments) > 1 and self._segments[1][0] <= disk_first_index:
            self._dropped.append(self._segments.pop(0)[1])

    # ---- the hard state

    def set_hard_state(self, term: int, vote: str | None) -> None:
        """Remember the term and whom this server voted for in it. Raises SafetyError on a step back."""
        if term < self.term:
            raise SafetyError(f"term would fall from {self.term} to {term}")
        if term == self.term and self.vote is not None and vote != self.vote:
            raise SafetyError(f"vote of term {term} would change from {self.vote} to {vote}")
        if (term, vote) != (self.term, self.vote):
            self.term, self.vote = term, vote
            self._hard_state_dirty = True

    # ---- durability

    @property
    def dirty(self) -> bool:
        """Whether something waits for `sync`."""
        return bool(self._pending or self._hard_state_dirty or self._dropped)

    def sync(self) -> None:
        """Make everything durable. Raises OSError; what is on disk is then unknown and the server must stop."""
        if self._hard_state_dirty:
            # Before the log: a log with entries of a term that the hard state does not know could vote again in it.
            self._write_hard_state()
        if self._pending:
            payload = b"".join(self._pending)
            file = self._file
            if file is None or file.size >= self._segment_bytes:
                file = self._new_segment(self._pending_first)
            file.write(_BATCH.pack(_MAGIC, len(payload), _crc(payload)) + payload)
            if self._fsync:
                file.sync()
                self._files.note(self._synced_path, self._how_far())
            self._pending = []
        for path in self._dropped:
            self._files.remove(path)
        self._dropped = []
        self.syncs += 1

    def close(self) -> None:
        """Give the file back. What was not synced was promised to nobody."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _make_certain(self, *, hard_state: bool) -> None:
        """A process that died between write and sync, or of a failed sync, leaves in the page cache what may not be
        on the disk; and after a failed sync the kernel takes the pages for clean. So write the newest again."""
        if self._last_batch is not None:
            self._files.write_again(*self._last_batch)
            self._last_batch = None
        if hard_state:
            self._write_hard_state()
        if self._file is not None:
            self._files.note(self._synced_path, self._how_far())
            self._files.write_again(self._synced_path, 0, self._how_far())
        self._files.sync_directory(self._directory)

    def _how_far(self) -> bytes:
        """The note that all of the newest segment is durable."""
        assert self._file is not None
        body = struct.pack("<QQ", _number_of(self._segments[-1][1]), self._file.size)
        return _SYNCED_MAGIC + struct.pack("<I", _crc(body)) + body

    def _write_hard_state(self) -> None:
        body = msgspec.msgpack.encode((self.term, self.vote))
        data = _HARD_STATE_MAGIC + _crc(body).to_bytes(4, "little") + body
        write_atomically(self._files, self._hard_state_path, data, fsync=self._fsync)
        self._hard_state_dirty = False

    def _record(self, kind: int, index: int, term: int, command: bytes = b"") -> None:
        if not self._pending:
            self._pending_first = index
        self._pending_first = min(self._pending_first, index)
        self._pending.append(_RECORD.pack(kind, index, term, len(command)))
        if command:
            self._pending.append(command)

    def _new_segment(self, first_index: int) -> AppendFile:
        if self._file is not None:
            self._file.close()
        number = _number_of(self._segments[-1][1]) + 1 if self._segments else 1
        path = os.path.join(self._directory, _segment_name(number))
        self._file = self._files.append(path)
        self._file.write(_SEGMENT.pack(_SEGMENT_MAGIC, _VERSION, first_index))
        if self._fsync:
            self._file.sync()
            self._files.sync_directory(self._directory)
        self._segments.append((first_index, path))
        return self._file

    # ---- reading

    @property
    def _hard_state_path(self) -> str:
        return os.path.join(self._directory, "hard-state")

    @property
    def _synced_path(self) -> str:
        return os.path.join(self._directory, "synced")

    def _load_hard_state(self) -> bool:
        path = self._hard_state_path
        try:
            data = self._files.read(path)
        except FileNotFoundError:
            return False
        body = data[8:]
        if data[:4] != _HARD_STATE_MAGIC or _crc(body) != int.from_bytes(data[4:8], "little"):
            raise CorruptionError(f"{path}: damaged (term and vote are unreadable). {_ADVICE}")
        self.term, self.vote = msgspec.msgpack.decode(body, type=tuple[int, str | None])
        return True

    def _load_synced(self) -> tuple[int, int]:
        """(segment, bytes of it) known to have been durable; (0, 0) when nothing is known."""
        try:
            data = self._files.read(self._synced_path)
        except FileNotFoundError:
            return 0, 0
        if len(data) != _SYNCED.size:
            return 0, 0
        magic, checksum, segment, size = _SYNCED.unpack(data)
        if magic != _SYNCED_MAGIC or _crc(data[8:]) != checksum:
            # A note that was cut short or damaged says nothing; the log still has its own checksums.
            return 0, 0
        return segment, size

    def _load_segments(self) -> None:
        names = [n for n in self._files.list(self._directory) if n.startswith("segment-")]
        paths = [os.path.join(self._directory, name) for name in names]
        for before, after in itertools.pairwise(paths):
            if _number_of(after) != _number_of(before) + 1:
                raise CorruptionError(f"{after}: the segment before it is missing. {_ADVICE}")
        newest = _number_of(paths[-1]) if paths else 0
        if newest < self._durable[0]:
            missing = os.path.join(self._directory, _segment_name(self._durable[0]))
            raise CorruptionError(f"{missing}: the newest segment is missing. {_ADVICE}")
        for path in paths:
            self._load_segment(path, is_last=path == paths[-1])
        self.command_bytes = sum(len(entry[0]) for entry in self.entries)
        if self._segments:
            self._file = self._files.append(self._segments[-1][1])

    def _load_segment(self, path: str, *, is_last: bool) -> None:
        data = self._files.read(path)
        good = 0
        first_index = 0
        if len(data) >= _SEGMENT.size:
            magic, version, first_index = _SEGMENT.unpack_from(data)
            if magic == _SEGMENT_MAGIC and version > _VERSION:
                raise CorruptionError(
                    f"{path}: written in format {version}, this program knows {_VERSION}; use the newer program. "
                    f"If there is no such program, byte 4 and those behind it are damaged. {_ADVICE}"
                )
            if magic == _SEGMENT_MAGIC and version == _VERSION:
                good = _SEGMENT.size
        while good:
            end = _batch_end(data, good)
            if end is None:
                break
            lowest = self._replay(path, data, good + _BATCH.size, end)
            if good == _SEGMENT.size:
                # The header has no checksum; so it is not believed where the first batch knows better.
                first_index = lowest
            self._last_batch = (path, good, data[good:end])
            good = end
        self._check_durable(path, data, good)
        if good <= _SEGMENT.size:
            # At most a header: its first batch never was durable, and the next one may begin at another index.
            self._cut_torn_end(path, data, good, keep=0, is_last=is_last)
            return
        if good < len(data):
            self._cut_torn_end(path, data, good, keep=good, is_last=is_last)
        self._segments.append((first_index, path))

    def _check_durable(self, path: str, data: bytes, good: int) -> None:
        segment, size = self._durable
        if _number_of(path) != segment or good >= size:
            return
        what = "damaged" if good < len(data) else "cut off"
        raise CorruptionError(
            f"{path}: {what} at byte {good}, though all of it up to byte {size} was on the disk once. {_ADVICE}"
        )

    def _cut_torn_end(self, path: str, data: bytes, good: int, *, keep: int, is_last: bool) -> None:
        if not is_last:
            raise CorruptionError(
                f"{path}: damaged at byte {good}, and newer segments follow. {_ADVICE}"
            )
        later = data.find(_MAGIC, good + 1)
        while later >= 0:
            if _batch_end(data, later) is not None:
                raise CorruptionError(
                    f"{path}: damaged at byte {good}, but a valid record follows at byte {later}, so this is "
                    f"not the end that a crash cut short. {_ADVICE}"
                )
            later = data.find(_MAGIC, later + 1)
        self.torn_bytes += len(data) - good
        if keep:
            self._files.truncate(path, keep)
        else:
            self._files.remove(path)
            self._files.sync_directory(self._directory)

    def _replay(self, path: str, data: bytes, position: int, end: int) -> int:
        """Apply a batch; return the lowest index in it."""
        lowest = 0
        batch_at = position - _BATCH.size
        while position < end:
            kind, index, term, length = _RECORD.unpack_from(data, position)
            position += _RECORD.size
            command = data[position : position + length]
            position += length
            lowest = min(lowest or index, index)
            if kind == _ENTRY:
                if self.entries and index != self.entries[-1][1] + 1:
                    raise CorruptionError(
                        f"{path}: the batch at byte {batch_at} has entry {index} after {self.entries[-1][1]}. {_ADVICE}"
                    )
                self.entries.append((command, index, term))
            elif kind == _TRUNCATE:
                del self.entries[max(0, index - self.first_index) :]
            elif kind == _RESET:
                self.entries = [(SENTINEL, index, term)]
            else:
                raise CorruptionError(
                    f"{path}: the batch at byte {batch_at} has a record of unknown type {kind}; it was written "
                    "by a newer program, use that one"
                )
        return lowest


def _batch_end(data: bytes, position: int) -> int | None:
    """Where the valid batch at `position` ends; None when there is none."""
    if position + _BATCH.size > len(data):
        return None
    magic, length, checksum = _BATCH.unpack_from(data, position)
    start = position + _BATCH.size
    end: int = start + length
    if magic != _MAGIC or not length or end > len(data):
        return None
    return end if _crc(data[start:end]) == checksum else None


def _segment_name(number: int) -> str:
    return f"segment-{number:012d}.log"


def _number_of(path: str) -> int:
    return int(os.path.basename(path)[len("segment-") : -len(".log")])
