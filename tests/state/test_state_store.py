"""The store: transactions, snapshots, the change feed, table indexes."""

from __future__ import annotations

import pytest
from fsm.fsm_samples import Machine, evaluation, job, node

from nomadpy.fsm.commands import (
    EvalDelete,
    EvalUpsert,
    JobRegister,
    NodeDeregister,
    NodeRegister,
    Noop,
)
from nomadpy.state import nodes, schema
from nomadpy.state.changes import ChangeSet
from nomadpy.state.store import StateStore


def test_a_new_state_has_the_built_in_pools_and_the_default_namespace_at_index_1() -> None:
    state = StateStore().snapshot()
    assert [(p.name, p.create_index, p.modify_index) for p in state.node_pools()] == [
        ("all", 1, 1),
        ("default", 1, 1),
    ]
    namespace = state.namespace("default")
    assert namespace is not None
    assert (namespace.create_index, namespace.modify_index) == (1, 1)


def test_tables_that_were_never_written_report_what_a_fresh_server_does() -> None:
    state = StateStore().snapshot()
    for name in ("jobs", "nodes", "allocs", "evals", "deployments", "job_summaries", "root_keys"):
        assert state.table_index(name) == 0
    for name in (
        "services",
        "variables",
        "namespaces",
        "node_pools",
        "scaling_policies",
        "scheduler_config",
    ):
        assert state.table_index(name) == 1
    assert state.table_index("jobs", "node_pools") == 1
    with pytest.raises(KeyError):
        state.table_index("nonsense")


def test_the_settings_have_defaults_with_index_0_until_they_are_written() -> None:
    state = StateStore().snapshot()
    assert state.scheduler_config().scheduler_algorithm == "binpack"
    assert state.scheduler_config().create_index == 0
    assert state.autopilot_config().create_index == 0
    assert state.active_root_key() is None
    assert state.cluster_metadata() is None


def test_a_snapshot_never_changes() -> None:
    m = Machine()
    m.run(NodeRegister(node=node("n1")))
    before = m.state
    m.run(NodeRegister(node=node("n0")))
    m.run(NodeDeregister(node_ids=["n1"]))
    assert [n.id for n in before.nodes()] == ["n1"]
    assert before.index == 1
    assert [n.id for n in m.state.nodes()] == ["n0"]


def test_a_transaction_that_raises_leaves_nothing_behind() -> None:
    store = StateStore()
    before = store.snapshot()

    def fail() -> None:
        with store.transaction(5) as tx:
            nodes.register(tx, node())
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fail()
    assert store.snapshot() is before


def test_entries_are_applied_once_and_in_order() -> None:
    store = StateStore()
    store.advance(3)
    with pytest.raises(ValueError, match="3"):
        store.transaction(3)
    with pytest.raises(ValueError, match="3"):
        store.advance(2)


def test_the_feed_tells_each_row_once_with_what_it_was_and_what_it_is() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    before = m.state.node("n1")
    seen: list[ChangeSet] = []
    m.store.subscribe(seen.append)
    with m.store.transaction(7) as tx:
        nodes.set_status(tx, "n1", "ready", None)
        nodes.set_eligibility(tx, "n1", "ineligible", None)
    [changes] = seen
    assert changes.index == 7
    [change] = changes.changes
    assert (change.table, change.key) == ("nodes", "n1")
    assert change.before is before
    assert (change.after.status, change.after.scheduling_eligibility) == ("ready", "ineligible")


def test_the_feed_tells_of_every_index_in_order_even_when_nothing_changed() -> None:
    m = Machine()
    seen: list[ChangeSet] = []
    m.store.subscribe(seen.append)
    m.run(Noop())
    m.run(EvalUpsert(evals=[evaluation("e1")]))
    m.refused(NodeDeregister(node_ids=["nobody"]))
    assert [(s.index, len(s.changes)) for s in seen] == [(1, 0), (2, 1), (3, 0)]


def test_what_came_and_went_within_a_transaction_was_never_there() -> None:
    store = StateStore()
    seen: list[ChangeSet] = []
    store.subscribe(seen.append)
    with store.transaction(2) as tx:
        nodes.register(tx, node())
        tx.delete(schema.NODES, "n1")
    assert seen == [ChangeSet(2, [])]
    assert store.snapshot().table_index("nodes") == 0


def test_a_listener_that_fails_does_not_undo_what_was_applied() -> None:
    m = Machine()
    heard: list[int] = []

    def fails(_: ChangeSet) -> None:
        raise RuntimeError("listener")

    m.store.subscribe(fails)
    m.store.subscribe(lambda changes: heard.append(changes.index))
    m.run(NodeRegister(node=node()))
    assert heard == [1]
    assert m.state.node("n1") is not None


def test_deleting_moves_the_index_of_the_table() -> None:
    m = Machine()
    m.run(EvalUpsert(evals=[evaluation("e1")]))
    m.run(EvalDelete(eval_ids=["e1", "unknown"]))
    assert m.state.table_index("evals") == 2
    m.run(EvalDelete(eval_ids=["e1"]))
    assert m.state.table_index("evals") == 2


def test_lists_come_in_order_and_by_prefix() -> None:
    m = Machine()
    for job_id in ("web-b", "db", "web-a"):
        m.run(JobRegister(job=job(job_id)))
    assert [j.id for j in m.state.jobs()] == ["db", "web-a", "web-b"]
    assert [j.id for j in m.state.jobs_by_prefix("default", "web")] == ["web-a", "web-b"]
    assert [j.id for j in m.state.jobs_by_prefix(None, "web-b")] == ["web-b"]
    assert list(m.state.jobs("nowhere")) == []
    for node_id in ("ab", "ac"):
        m.run(NodeRegister(node=node(node_id)))
    assert [n.id for n in m.state.nodes_by_prefix("ac")] == ["ac"]
    assert [n.id for n in m.state.nodes_by_pool("all")] == ["ab", "ac"]
    assert m.state.nodes_by_pool("gpu") == []
