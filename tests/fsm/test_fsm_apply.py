"""The state machine as raft sees it: repeated requests, refusals, bugs, snapshots."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fsm.fsm_samples import SECOND, START_NS, Machine, alloc, evaluation, job, node, plan

from nomadpy.errors import ConflictError, CorruptionError, NomadError
from nomadpy.fsm import apply, dedup
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import (
    Applied,
    Command,
    Entry,
    EvalUpsert,
    JobRegister,
    NodeRegister,
    Noop,
    PlanResults,
    encode_entry,
)
from nomadpy.fsm.dedup import Requests
from nomadpy.state.changes import ChangeSet
from nomadpy.state.store import StateStore


def test_a_repeated_request_gives_the_first_result_and_changes_nothing() -> None:
    m = Machine()
    first = m.try_run(JobRegister(job=job()), request_id="r1")
    second = m.try_run(JobRegister(job=job(count=9)), request_id="r1")
    assert first == second == Applied(index=1, value={"job_modify_index": 1, "version": 0})
    assert m.index == 2
    assert len(m.state.job_versions("default", "web")) == 1


def test_a_repeated_request_that_was_refused_is_refused_alike() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    command = JobRegister(job=job(count=3), enforce_index=0)
    first, second = (m.try_run(command, request_id="r1") for _ in range(2))
    assert isinstance(first, ConflictError)
    assert isinstance(second, ConflictError)
    assert (first.message, first.status) == (second.message, second.status)


def test_requests_without_an_id_are_all_applied() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    m.run(JobRegister(job=job(count=9)))
    assert len(m.state.job_versions("default", "web")) == 2


def test_requests_are_forgotten_by_number_and_by_age_oldest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dedup, "MAX_REQUESTS", 3)
    requests = Requests()
    for number in range(5):
        requests.remember(f"r{number}", number, START_NS + number, Applied(index=number))
    assert [requests.find(f"r{n}") is not None for n in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    requests.remember("", 5, START_NS + dedup.MAX_AGE_NS + 4, Applied(index=5))
    assert [requests.find(f"r{n}") is not None for n in range(5)] == [
        False,
        False,
        False,
        False,
        True,
    ]


def test_a_clock_that_runs_behind_makes_no_request_young_again() -> None:
    requests = Requests()
    requests.remember("r1", 1, START_NS + 2 * dedup.MAX_AGE_NS, Applied(index=1))
    requests.remember("r2", 2, START_NS, Applied(index=2))
    assert requests.find("r1") is not None
    assert len(requests) == 2
    requests.remember("r3", 3, START_NS + 4 * dedup.MAX_AGE_NS, Applied(index=3))
    assert [requests.find(r) is not None for r in ("r1", "r2", "r3")] == [False, False, True]


def test_a_bug_in_a_handler_is_an_error_value_and_leaves_nothing_half_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(tx: Any, command: Any) -> None:
        apply.nodes.register(tx, node())
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(apply._HANDLERS, Noop, broken)
    m = Machine()
    with caplog.at_level(logging.ERROR):
        error = m.refused(Noop())
    assert type(error) is NomadError
    assert error.message == "Noop: ZeroDivisionError: a bug"
    assert "command failed" in caplog.text
    assert "Traceback" in caplog.text
    m.run(NodeRegister(node=node()))


def test_applying_an_index_twice_is_the_callers_fault() -> None:
    m = Machine()
    m.run(Noop())
    with pytest.raises(ValueError, match="1"):
        m.machine.apply(1, m.log[0])


def busy() -> Machine:
    m = Machine()
    m.run(NodeRegister(node=node()), request_id="r1")
    m.run(JobRegister(job=job(), evaluation=evaluation("e1")), request_id="r2")
    m.run(PlanResults(plans=[plan(alloc("a1"), alloc("a2"))]), request_id="r3")
    return m


def test_a_restored_machine_is_equal_and_goes_on_alike() -> None:
    source, target = busy(), Machine()
    target.machine.restore(source.machine.snapshot()())
    assert target.index == source.index
    assert target.machine.checksum() == source.machine.checksum()
    again = Entry(request_id="r2", now_ns=START_NS, command=JobRegister(job=job(count=9)))
    entries = [
        encode_entry(again),
        encode_entry(
            Entry(now_ns=START_NS + 9 * SECOND, command=EvalUpsert(evals=[evaluation("e2")]))
        ),
    ]
    for data in entries:
        assert source.machine.apply(source.index + 1, data) == target.machine.apply(
            target.index + 1, data
        )
    assert target.machine.checksum() == source.machine.checksum()


def test_a_snapshot_is_of_its_moment_whatever_is_applied_before_it_is_written() -> None:
    m = busy()
    before = m.machine.checksum()
    capture = m.machine.snapshot()
    m.run(JobRegister(job=job("other")), request_id="r9")
    target = StateMachine(StateStore())
    target.restore(capture())
    assert target.checksum() == before
    target.restore(capture())
    assert target.checksum() == before


def test_a_restore_replaces_everything_and_says_so() -> None:
    target = Machine()
    target.run(NodeRegister(node=node("other")), request_id="mine")
    heard: list[ChangeSet] = []
    target.store.subscribe(heard.append)
    target.machine.restore(busy().machine.snapshot()())
    assert [n.id for n in target.state.nodes()] == ["n1"]
    assert heard == [ChangeSet(3, [], restored=True)]
    assert isinstance(target.try_run(NodeRegister(node=node("other")), request_id="mine"), Applied)
    assert target.state.node("other") is not None


def test_a_damaged_snapshot_is_refused_and_replaces_nothing() -> None:
    chunks = list(busy().machine.snapshot()())
    target = Machine()
    before = target.state
    for damaged in (
        chunks[:-1],
        chunks[1:],
        [],
        [b"".join(chunks)[:-1]],
        [*chunks, b"\x00\x00\x00\x01x"],
    ):
        with pytest.raises(CorruptionError):
            target.machine.restore(damaged)
    assert target.state is before


def test_two_machines_with_one_log_are_equal_at_every_index() -> None:
    commands: list[Command] = [
        NodeRegister(node=node()),
        JobRegister(job=job(), evaluation=evaluation("e1")),
        JobRegister(job=job(), enforce_index=0),
        PlanResults(plans=[plan(alloc("a1"))]),
    ]
    one, other = Machine(), Machine()
    for command in commands:
        one.try_run(command)
        other.try_run(command)
        assert one.machine.checksum() == other.machine.checksum()
