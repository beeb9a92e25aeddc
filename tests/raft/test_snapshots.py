"""Snapshots: written aside, checked whole, never half in force."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import CorruptionError
from nomadpy.raft.config import PeerSpec
from nomadpy.raft.configuration import Configuration
from nomadpy.raft.snapshots import SnapshotHeader, SnapshotStore
from nomadpy.simulator.disk import MemoryFiles

DIRECTORY = "/snapshots"
CLUSTER = Configuration("c", (PeerSpec("a", "one", "h:1"),))


def header(index: int) -> SnapshotHeader:
    return SnapshotHeader(index, 2, CLUSTER)


def store(files: MemoryFiles) -> tuple[SnapshotStore, list[str]]:
    opened = SnapshotStore(files, DIRECTORY)
    return opened, opened.load()


def written(files: MemoryFiles, index: int, chunks: list[bytes]) -> SnapshotStore:
    opened, _ = store(files)
    opened.write(header(index), lambda: iter(chunks))
    opened.adopt(header(index))
    return opened


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(st.binary(max_size=3000), max_size=20))
def test_a_snapshot_reads_back_chunk_by_chunk(chunks: list[bytes]) -> None:
    files = MemoryFiles()
    written(files, 7, chunks)
    again, damaged = store(files.power_cut(SeededEntropy(1)))
    assert not damaged
    assert again.latest == header(7)
    assert list(again.chunks(header(7))) == chunks


def test_the_two_newest_are_kept() -> None:
    files = MemoryFiles()
    for index in (5, 9, 12):
        written(files, index, [b"%d" % index])
    again, _ = store(files)
    assert [h.index for h in again.headers] == [9, 12]
    assert list(again.chunks(header(9))) == [b"9"]


def test_a_snapshot_cut_or_damaged_anywhere_is_found_out() -> None:
    files = MemoryFiles()
    opened = written(files, 7, [b"one", b"", b"two" * 10])
    path = opened.path(header(7))
    data = files.read(path)
    for offset in range(len(data)):
        copy = MemoryFiles()
        opened, _ = store(copy)
        file = copy.append(path)
        file.write(data[:offset] + bytes([data[offset] ^ 0x21]) + data[offset + 1 :])
        again, damaged = store(copy)
        assert again.latest is None
        assert len(damaged) == 1
        copy = MemoryFiles()
        opened, _ = store(copy)
        copy.append(path).write(data[:offset])
        assert store(copy)[0].latest is None
    copy = MemoryFiles()
    store(copy)
    copy.append(path).write(data + b"x")
    assert store(copy)[0].latest is None


def test_a_crash_while_writing_leaves_the_older_snapshot() -> None:
    for seed in range(20):
        files = MemoryFiles()
        opened = written(files, 7, [b"old"])

        def chunks() -> Iterator[bytes]:
            yield b"new"
            raise OSError(errno.ENOSPC, "full")

        with pytest.raises(OSError, match="full"):
            opened.write(header(9), chunks)
        again, damaged = store(files.power_cut(SeededEntropy(seed)))
        assert again.latest == header(7)
        assert not damaged
        assert not [p for p in again._files.list(DIRECTORY) if "partial" in p]


def test_a_received_snapshot_counts_only_when_whole_and_checked() -> None:
    files = MemoryFiles()
    opened = written(files, 7, [b"one", b"two"])
    data = opened.read(header(7), 0, 1 << 20)
    assert data is not None
    target = MemoryFiles()
    receiving, _ = store(target)
    receiver = receiving.receiver(7, 2)
    assert receiver.take(0, data[:10], last=False)
    receiving.sync(receiver)
    assert not receiver.take(5, data[5:10], last=False)
    assert not receiver.take(20, data[20:], last=True)
    assert receiver.expected == 10
    assert receiver.take(10, data[10:], last=True)
    assert receiver.header is None
    receiving.sync(receiver)
    assert receiver.header == header(7)
    assert store(target.killed())[0].latest is None  # staged is not installed
    target = MemoryFiles()
    receiving, _ = store(target)
    receiver = receiving.receiver(7, 2)
    receiver.take(0, data, last=True)
    receiving.sync(receiver)
    receiving.install(header(7))
    assert store(target.power_cut(SeededEntropy(1)))[0].latest == header(7)


def test_a_received_snapshot_that_is_damaged_or_another_is_refused() -> None:
    opened = written(MemoryFiles(), 7, [b"one", b"two"])
    data = opened.read(header(7), 0, 1 << 20)
    assert data is not None
    for announced, body in ((7, data[:-1]), (7, data[:40] + b"!" + data[41:]), (8, data)):
        receiving, _ = store(MemoryFiles())
        receiver = receiving.receiver(announced, 2)
        receiver.take(0, body, last=True)
        with pytest.raises(CorruptionError):
            receiving.sync(receiver)
        assert receiver.header is None


def test_a_snapshot_that_could_not_be_written_leaves_its_room_to_the_next() -> None:
    files = MemoryFiles()
    opened = SnapshotStore(files, DIRECTORY)
    for operation in ("write", "sync", "rename"):
        files.fail(operation, errno.ENOSPC, where=lambda path: "local-" in path)
        with pytest.raises(OSError, match="No space"):
            opened.write(header(7), lambda: iter([b"x" * 100]))
        assert files.paths() == []
    opened.write(header(8), lambda: iter([b"y"]))
    opened.adopt(header(8))
    assert list(opened.chunks(header(8))) == [b"y"]


def test_a_damaged_snapshot_goes_when_a_new_one_has_come() -> None:
    files = MemoryFiles()
    opened = SnapshotStore(files, DIRECTORY)
    for index in (1, 2):
        opened.write(header(index), lambda: iter([b"x"]))
    path = opened.path(header(2))
    files.damage(path, 40, b"?")
    again = SnapshotStore(files, DIRECTORY)
    (message,) = again.load()
    assert path in message
    assert path in files.paths()
    again.write(header(3), lambda: iter([b"x"]))
    again.adopt(header(3))
    assert path not in files.paths()
