"""Watches: who is woken by what, once."""

from __future__ import annotations

import pytest
from fsm.fsm_samples import Machine, alloc, evaluation, job, node, plan

from nomadpy.fsm.commands import (
    AllocClientUpdate,
    EvalUpsert,
    JobRegister,
    NodeRegister,
    Noop,
    PlanResults,
)


def test_a_watch_fires_once_with_the_index_of_the_change() -> None:
    m = Machine()
    fired: list[int] = []
    m.store.watch([("table", "jobs")], fired.append)
    m.run(NodeRegister(node=node()))
    assert fired == []
    m.run(JobRegister(job=job()))
    m.run(JobRegister(job=job("other")))
    assert fired == [2]


def test_a_watch_of_one_row_does_not_wake_for_others() -> None:
    m = Machine()
    fired: list[int] = []
    m.store.watch([("table", "nodes", "n2"), ("table", "nodes", "n3")], fired.append)
    m.run(NodeRegister(node=node("n1")))
    assert fired == []
    m.run(NodeRegister(node=node("n2")))
    assert fired == [2]


def test_a_watch_of_an_index_key_wakes_for_rows_under_it_alone() -> None:
    m = Machine()
    m.run(JobRegister(job=job()))
    fired: list[tuple[str, int]] = []
    m.store.watch([("by", "allocs", "node", "n1")], lambda index: fired.append(("n1", index)))
    m.store.watch([("by", "allocs", "node", "n2")], lambda index: fired.append(("n2", index)))
    m.run(PlanResults(plans=[plan(alloc("a1", node_id="n2"))]))
    assert fired == [("n2", 2)]
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="running")]))
    assert fired == [("n2", 2)]
    m.run(PlanResults(plans=[plan(alloc("a2", node_id="n1"))]))
    assert fired == [("n2", 2), ("n1", 4)]


def test_the_index_watch_wakes_for_an_entry_that_changes_nothing() -> None:
    m = Machine()
    fired: list[int] = []
    m.store.watch([("index",)], fired.append)
    m.run(Noop())
    assert fired == [1]


def test_a_cancelled_watch_does_not_fire_and_leaves_nothing_behind() -> None:
    m = Machine()
    fired: list[int] = []
    handle = m.store.watch.register(
        [("table", "evals"), ("by", "evals", "job", ("default", "web"))], fired.append
    )
    assert len(m.store.watch) == 1
    handle.cancel()
    handle.cancel()
    m.run(EvalUpsert(evals=[evaluation("e1")]))
    assert fired == []
    assert len(m.store.watch) == 0


def test_a_watch_can_be_registered_from_within_a_callback() -> None:
    m = Machine()
    fired: list[int] = []

    def again(index: int) -> None:
        fired.append(index)
        m.store.watch([("table", "nodes")], again)

    again(0)
    m.run(NodeRegister(node=node("n1")))
    m.run(NodeRegister(node=node("n2")))
    assert fired == [0, 1, 2]


def test_every_watch_fires_when_the_state_is_replaced() -> None:
    source, target = Machine(), Machine()
    source.run(NodeRegister(node=node()))
    fired: list[int] = []
    target.store.watch([("table", "jobs")], fired.append)
    target.machine.restore(source.machine.snapshot()())
    assert fired == [1]


@pytest.mark.parametrize(
    "key",
    [(), ("table",), ("table", "nonsense"), ("by", "allocs", "colour", 1), ("jobs",), ("index", 1)],
)
def test_watching_what_does_not_exist_is_refused(key: tuple[str, ...]) -> None:
    with pytest.raises(KeyError):
        Machine().store.watch([key], lambda _: None)


def test_a_callback_that_fails_keeps_neither_the_entry_nor_the_other_readers() -> None:
    m = Machine()
    fired: list[int] = []

    def fails(_: int) -> None:
        raise RuntimeError("reader")

    m.store.watch([("table", "nodes")], fails)
    m.store.watch([("table", "nodes")], fired.append)
    m.run(NodeRegister(node=node()))
    assert fired == [1]
    assert len(m.store.watch) == 0
