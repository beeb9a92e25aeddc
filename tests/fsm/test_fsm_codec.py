"""Entries that are applied where they were encoded are not decoded again, and lead to the same state."""

from __future__ import annotations

import msgspec
import pytest
from fsm.fsm_samples import START_NS, Machine, alloc, evaluation, job, node, plan

from nomadpy.fsm import commands
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import Applied, Entry, EntryCodec, JobRegister, PackedPlans, PlanResults
from nomadpy.fsm.packing import unpack
from nomadpy.models.allocation import AllocationMetric, NodeScoreMeta
from nomadpy.state.store import StateStore


def entry(number: int = 1) -> Entry:
    scores = [NodeScoreMeta(node_id="n1", scores={"binpack": 0.25}, norm_score=0.25)]
    placed = alloc(
        f"a{number}", metrics=AllocationMetric(nodes_evaluated=3, score_meta_data=scores)
    )
    command = PlanResults(plans=[plan(placed, evaluations=[evaluation("e1")])])
    return Entry(request_id=f"r{number}", now_ns=START_NS, command=command)


def prepared(codec: EntryCodec | None) -> StateMachine:
    machine = StateMachine(StateStore(), codec)
    made = Machine()
    made.run(commands.NodeRegister(node=node()))
    made.run(JobRegister(job=job(), evaluation=evaluation("e1")))
    for index, data in enumerate(made.log, 1):
        assert isinstance(machine.apply(index, data), Applied)
    return machine


@pytest.mark.parametrize("packed", [False, True])
def test_a_plan_applied_where_it_was_made_gives_the_state_that_every_other_server_gets(
    packed: bool,
) -> None:
    codec = EntryCodec()
    own, other = prepared(codec), prepared(None)
    data = codec.encode(entry(), packed=packed)
    # A copy, as the log has one: equal bytes, not the same object.
    assert isinstance(own.apply(3, bytes(bytearray(data))), Applied)
    assert isinstance(other.apply(3, data), Applied)
    assert own.checksum() == other.checksum()
    assert own.store.snapshot().alloc("a1") == other.store.snapshot().alloc("a1")


def test_a_plan_is_not_decoded_where_it_was_encoded() -> None:
    codec = EntryCodec()
    made = entry()
    data = codec.encode(made)
    assert codec.decode(data) is made
    # Once: what comes again, after a restart of raft, say, is decoded.
    assert codec.decode(data) is not made
    assert codec.decode(data) == made


def test_a_packed_plan_is_not_unpacked_where_it_was_encoded() -> None:
    codec = EntryCodec()
    made = entry()
    data = codec.encode(made, packed=True)
    assert codec.decode(data) is made
    read = codec.decode(data).command
    assert isinstance(read, PackedPlans)
    assert isinstance(made.command, PlanResults)
    assert [unpack(plan) for plan in read.plans] == made.command.plans


def test_what_is_never_applied_is_forgotten() -> None:
    codec = EntryCodec()
    entries = [entry(number) for number in range(40)]
    texts = [codec.encode(one) for one in entries]
    kept = [one for one, data in zip(entries, texts, strict=True) if codec.decode(data) is one]
    assert kept == entries[-16:]


def test_other_commands_are_decoded_everywhere() -> None:
    codec = EntryCodec()
    made = Entry(now_ns=START_NS, command=JobRegister(job=job(), evaluation=None))
    found = codec.decode(codec.encode(made))
    assert found == made
    assert msgspec.structs.asdict(found)["command"] is not made.command
