"""A state written and read back is the same state, jobs shared as they were; a damaged stream is refused."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from fsm.fsm_samples import Machine, alloc, deployment, evaluation, job, node, plan
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.errors import CorruptionError
from nomadpy.fsm.commands import (
    ClusterMetadataSet,
    HostVolumeUpsert,
    JobRegister,
    JobScale,
    LogFormatSet,
    NodeRegister,
    PlanResults,
    RootKeyUpsert,
    SchedulerConfigSet,
    VariableLock,
)
from nomadpy.models.host_volume import HostVolume
from nomadpy.models.job import JobSubmission, TaskGroup, VolumeRequest
from nomadpy.models.node import HostVolumeInfo
from nomadpy.models.operator import SchedulerConfiguration
from nomadpy.models.root_key import RootKey
from nomadpy.models.scaling import ScalingEvent
from nomadpy.models.variable import Sealed
from nomadpy.state import persist
from nomadpy.state.checksum import checksum
from nomadpy.state.schema import TABLES
from nomadpy.state.store import Snapshot, StateStore


def full() -> Snapshot:
    """A state with rows in every table."""
    m = Machine()
    m.run(NodeRegister(node=node(node_pool="gpu")))
    m.run(JobRegister(job=job(), submission=JobSubmission(source="x"), evaluation=evaluation("e1")))
    m.run(
        PlanResults(
            plans=[plan(alloc("a1", deployment_id="d1"), alloc("a2"), deployment=deployment())]
        )
    )
    for count in range(3, 12):
        m.run(JobRegister(job=job(count=count), submission=JobSubmission(source=str(count))))
    m.run(PlanResults(plans=[plan(alloc("a3"), version=9)]))
    m.run(
        JobScale(
            namespace="default", job_id="web", group="group", event=ScalingEvent(meta={"n": 1})
        )
    )
    m.run(SchedulerConfigSet(config=SchedulerConfiguration(scheduler_algorithm="spread")))
    m.run(RootKeyUpsert(key=RootKey(key_id="k1", ca_key_pem=b"\x00\xff")))
    m.run(ClusterMetadataSet(cluster_id="cluster"))
    claimed(m)
    sealed = Sealed("k1", b"n" * 12, b"\x00\xff")
    m.run(VariableLock(namespace="default", path="p", sealed=sealed, lock_id="l1", ttl=9, delay=9))
    return m.state


def claimed(m: Machine) -> None:
    """A host volume, and an allocation whose group holds it."""
    m.run(LogFormatSet(version=3))
    there = {"data": HostVolumeInfo(name="data", path="/volumes/v1", id="v1")}
    volume = HostVolume(namespace="default", id="v1", name="data", node_id="n1", state="ready")
    m.run(NodeRegister(node=node(node_pool="gpu", host_volumes=there)))
    m.run(HostVolumeUpsert(volumes=[volume]))
    wanted = {"data": VolumeRequest(name="data", type="host", source="data", sticky=True)}
    m.run(JobRegister(job=job("db", task_groups=[TaskGroup(name="group", volumes=wanted)])))
    m.run(PlanResults(plans=[plan(alloc("b1", "db"), job_id="db")]))


def assert_same(one: Snapshot, other: Snapshot) -> None:
    assert other.index == one.index
    assert other.table_indexes == one.table_indexes
    for name, spec in TABLES.items():
        keys = list(one.tables[name].keys())
        assert list(other.tables[name].keys()) == keys
        assert [other.tables[name].get(key) for key in keys] == [
            one.tables[name].get(key) for key in keys
        ]
        for index, index_of in spec.indexes.items():
            for key in {index_of(one.tables[name].get(key)) for key in keys} - {None}:
                assert other.tables[name].members(index, key) == one.tables[name].members(
                    index, key
                )
    assert checksum(other) == checksum(one)


def test_a_state_survives_with_every_table_index_and_secondary_index() -> None:
    state = full()
    assert all(len(state.tables[name]) for name in TABLES if name != "autopilot")
    assert_same(state, persist.read(persist.write(state)).snapshot)


def test_jobs_are_written_once_and_shared_again() -> None:
    restored = persist.read(persist.write(full())).snapshot
    a1, a2, a3 = (restored.alloc(i) for i in ("a1", "a2", "a3"))
    assert a1 is not None
    assert a2 is not None
    assert a3 is not None
    # Version 0 is kept by its allocations alone.
    assert restored.job_version("default", "web", 0) is None
    assert a1.job is a2.job
    assert a3.job is restored.job_version("default", "web", 9)
    text = b"".join(persist.write(full()))
    assert text.count(b"mock_driver") == 6 + 1 + 1


def test_a_new_state_survives_too() -> None:
    state = StateStore().snapshot()
    assert_same(state, persist.read(persist.write(state)).snapshot)


def test_extras_come_back_in_order() -> None:
    extras = {"requests": [b"one", b"", b"two"], "other": [b"three"]}
    assert persist.read(persist.write(full(), extras)).extras == extras


@given(cuts=st.lists(st.integers(1, 400), min_size=1, max_size=50))
def test_a_reader_may_cut_the_stream_anywhere(cuts: list[int]) -> None:
    state = _STATE
    stream = b"".join(persist.write(state))
    chunks, start, turn = [], 0, 0
    while start < len(stream):
        size = cuts[turn % len(cuts)]
        chunks.append(stream[start : start + size])
        start, turn = start + size, turn + 1
    assert persist.read(chunks).snapshot.table_indexes == state.table_indexes


_STATE = full()


@given(position=st.integers(0, 1 << 20), byte=st.integers(0, 255))
def test_a_damaged_byte_is_refused_or_changes_a_value_and_nothing_else(
    position: int, byte: int
) -> None:
    stream = bytearray(b"".join(persist.write(_STATE)))
    stream[position % len(stream)] = byte
    with contextlib.suppress(CorruptionError):
        persist.read([bytes(stream)])


@given(length=st.integers(0, 1 << 20))
def test_a_stream_that_is_cut_is_refused(length: int) -> None:
    stream = b"".join(persist.write(_STATE))
    with pytest.raises(CorruptionError):
        persist.read([stream[: length % len(stream)]])


def test_a_section_of_a_newer_server_is_refused_with_a_reason() -> None:
    chunks = list(persist.write(_STATE))
    for section, version in (("table", 2), ("novelty", 1)):
        body = msgspec.msgpack.encode((section, version, None))
        with pytest.raises(CorruptionError, match="written by a newer one"):
            persist.read([chunks[0], len(body).to_bytes(4, "big") + body, *chunks[1:]])


def test_frames_that_are_missing_or_repeated_are_noticed() -> None:
    chunks = list(persist.write(_STATE))
    for wrong in (
        chunks[:3] + chunks[4:],
        [*chunks, chunks[-1]],
        [*chunks[:-1], chunks[1], chunks[-1]],
        chunks[1:],
    ):
        with pytest.raises(CorruptionError):
            persist.read(wrong)


def test_the_checksum_tells_states_apart() -> None:
    m = Machine()
    seen = {m.store.checksum()}
    m.run(NodeRegister(node=node()))
    seen.add(m.store.checksum())
    m.run(NodeRegister(node=node("n2")))
    seen.add(m.store.checksum())
    assert len(seen) == 3


def test_the_checksum_does_not_depend_on_which_jobs_are_shared() -> None:
    state = full()
    found = state.alloc("a2")
    assert found is not None
    assert found.job is not None
    apart = msgspec.structs.replace(found, job=msgspec.structs.replace(found.job))
    writer = state.tables["allocs"].writer()
    writer.put("a2", apart)
    tables = {**state.tables, "allocs": writer.commit()}
    assert checksum(Snapshot(state.index, tables, state.table_indexes)) == checksum(state)


def test_the_checksum_looks_at_rows_at_jobs_of_allocations_and_not_at_the_order_of_a_dict() -> None:
    def of(meta: dict[str, str], count: int) -> str:
        m = Machine()
        m.run(NodeRegister(node=node(meta=meta)))
        m.run(JobRegister(job=job(count=count)))
        m.run(PlanResults(plans=[plan(alloc("a1"))]))
        found = m.state.alloc("a1")
        assert found is not None
        # Only the allocation's own copy of the job is left to differ.
        writers = {name: m.state.tables[name].writer() for name in ("jobs", "job_versions")}
        writers["jobs"].delete(("default", "web"))
        writers["job_versions"].delete(("default", "web", 0))
        tables = {**m.state.tables, **{name: w.commit() for name, w in writers.items()}}
        return checksum(Snapshot(m.state.index, tables, m.state.table_indexes))

    base = of({"a": "1", "b": "2"}, 2)
    assert of({"b": "2", "a": "1"}, 2) == base
    assert of({"a": "1", "b": "3"}, 2) != base
    assert of({"a": "1", "b": "2"}, 3) != base
