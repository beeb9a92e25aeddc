"""Formats of the log: what belongs to which, that the format only rises, and that what cannot be read stops the server."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from fsm.fsm_samples import Machine, job

from nomadpy.errors import ConflictError, LogFormatError
from nomadpy.fsm import commands, formats
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import (
    Checkpoint,
    ClusterMetadataSet,
    Entry,
    JobRegister,
    LogFormatSet,
    Restore,
    RestorePart,
    encode_entry,
)
from nomadpy.state import persist
from nomadpy.state.checksum import Sums
from nomadpy.state.schema import RESTORED
from nomadpy.state.store import StateStore


def machine(lowest: int, highest: int) -> StateMachine:
    return StateMachine(StateStore(), reads=(lowest, highest))


def test_a_command_belongs_to_the_format_that_its_tag_came_with() -> None:
    assert formats.format_of(commands.Restore) == 1
    assert formats.format_of(commands.Checkpoint) == 2
    assert formats.format_of(commands.HostVolumeUpsert) == 3
    assert max(formats.FIRST_TAGS) == formats.HIGHEST
    assert formats.format_of_tag(10_000) == formats.HIGHEST


def test_the_format_of_a_log_only_rises() -> None:
    m = Machine()
    assert isinstance(m.refused(LogFormatSet(version=2)), ConflictError)
    m.run(ClusterMetadataSet(cluster_id="c1"))
    assert m.state.log_format() == 1
    m.run(LogFormatSet(version=2))
    assert m.state.log_format() == 2
    for version in (1, 2):
        assert isinstance(m.refused(LogFormatSet(version=version)), ConflictError)
    assert m.state.log_format() == 2


def test_a_new_cluster_begins_with_the_format_that_its_servers_read() -> None:
    m = Machine()
    m.run(ClusterMetadataSet(cluster_id="c1", log_format=2))
    m.run(ClusterMetadataSet(cluster_id="c2", log_format=1))
    assert m.state.log_format() == 2


@pytest.mark.parametrize(
    ("highest", "entry"),
    [
        (1, Entry(command=Checkpoint())),
        (1, Entry(command=LogFormatSet(version=2))),
        (2, Entry(command=LogFormatSet(version=3))),
        (1, Entry(command=ClusterMetadataSet(cluster_id="c1", log_format=2))),
    ],
)
def test_a_server_stops_before_an_entry_that_it_does_not_read(highest: int, entry: Entry) -> None:
    old = machine(1, highest)
    with pytest.raises(LogFormatError, match=rf"reads 1 to {highest}\. Install"):
        old.apply(1, encode_entry(entry))
    assert old.store.index == 0


def test_a_command_that_nobody_here_knows_stops_the_server() -> None:
    with pytest.raises(LogFormatError, match="tag 999, which came with a version newer"):
        machine(1, 2).apply(1, msgspec.msgpack.encode({"command": {"type": 999, "new": {}}}))


def test_a_raft_snapshot_of_a_newer_format_is_refused_whole() -> None:
    m = Machine()
    m.run(ClusterMetadataSet(cluster_id="c1", log_format=2))
    old = machine(1, 1)
    with pytest.raises(LogFormatError, match="raft snapshot is of log format 2"):
        old.restore(m.machine.snapshot()())
    assert old.store.index == 0


def restored(m: Machine, data: bytes) -> None:
    m.run(RestorePart(restore_id="r", number=0, data=data))
    m.run(Restore(restore_id="r", parts=1, sha256=hashlib.sha256(data).hexdigest()))


def test_a_restored_snapshot_does_not_lower_the_format_and_is_remembered_by_its_index() -> None:
    earlier, m = Machine(), Machine()
    earlier.run(ClusterMetadataSet(cluster_id="c1"))
    m.run(ClusterMetadataSet(cluster_id="c2", log_format=2))
    m.run(JobRegister(job=job()))
    assert m.state.table_index(RESTORED) == 0
    restored(m, b"".join(persist.write(earlier.state)))
    assert m.state.log_format() == 2
    metadata = m.state.cluster_metadata()
    assert metadata is not None
    assert metadata.cluster_id == "c1"
    assert m.state.table_index(RESTORED) == m.index


def test_with_servers_of_the_first_format_a_restore_leaves_what_they_would_leave() -> None:
    earlier, m = Machine(), Machine()
    for one in (earlier, m):
        one.run(ClusterMetadataSet(cluster_id="c1"))
    m.run(JobRegister(job=job()))
    restored(m, b"".join(persist.write(earlier.state)))
    assert m.state.table_index(RESTORED) == 0


def test_a_checkpoint_changes_nothing_and_sums_up_the_state_at_it() -> None:
    def sums(m: Machine) -> Sums:
        found: list[Sums] = []

        def take(index: int, walk: object) -> None:
            assert index == m.index

            def finish() -> Sums:
                return (yield from walk)  # type: ignore[misc]

            steps = finish()
            try:
                while True:
                    next(steps)  # type: ignore[call-overload]
            except StopIteration as end:
                found.append(end.value)

        m.machine.on_checkpoint = take
        before = m.state
        m.run(Checkpoint())
        assert m.state.tables == before.tables
        return found[0]

    one, other = Machine(), Machine()
    for m in (one, other):
        m.run(JobRegister(job=job()), request_id="r1")
    assert sums(one) == sums(other)
    one.run(JobRegister(job=job()), request_id="r2")
    other.run(JobRegister(job=job(count=9)), request_id="r2")
    a, b = sums(one), sums(other)
    assert {name for name in a if a[name] != b[name]} >= {"jobs", "job_versions"}
    assert a["nodes"] == b["nodes"]
    # A restart by snapshot sums up to the same.
    again = Machine()
    again.machine.restore(one.machine.snapshot()())
    assert sums(again) == sums(one)
