"""Nodes and node pools."""

from __future__ import annotations

import msgspec
import pytest
from fsm.fsm_samples import SECOND, START_NS, Machine, alloc, evaluation, job, node, plan

from nomadpy.errors import ConflictError, InvalidRequestError, NotFoundError
from nomadpy.fsm.commands import (
    AllocClientUpdate,
    EvalUpsert,
    JobRegister,
    NodeDeregister,
    NodeDrain,
    NodeEligibility,
    NodePoolDelete,
    NodePoolUpsert,
    NodeRegister,
    NodeStatus,
    PlanResults,
)
from nomadpy.models import gotime
from nomadpy.models.node import (
    DrainMetadata,
    DrainStrategy,
    Node,
    NodeDeviceResource,
    NodeEvent,
    NodePool,
    NodeResources,
)
from nomadpy.state.nodes import computed_class

EVENT = NodeEvent(message="Node drain strategy set", subsystem="Drain")


def stored(m: Machine, node_id: str = "n1") -> Node:
    found = m.state.node(node_id)
    assert found is not None
    return found


def messages(m: Machine) -> list[str]:
    return [event.message for event in stored(m).events or []]


def test_a_first_registration_makes_an_eligible_node_with_an_event() -> None:
    m = Machine()
    m.run(NodeRegister(node=node(drain=True, drain_strategy=DrainStrategy())))
    found = stored(m)
    assert (found.create_index, found.modify_index) == (1, 1)
    assert (found.status, found.scheduling_eligibility) == ("initializing", "eligible")
    assert (found.drain, found.drain_strategy) == (False, None)
    assert found.status_updated_at == m.now_ns // SECOND
    assert [(e.message, e.subsystem, e.create_index) for e in found.events or []] == [
        ("Node registered", "Cluster", 0)
    ]


def test_registering_again_keeps_what_servers_decided() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(NodeStatus(node_id="n1", status="ready"))
    m.run(NodeDrain(node_id="n1", drain=DrainStrategy(deadline=SECOND), event=EVENT))
    before = stored(m)
    m.run(NodeRegister(node=node(meta={"rack": "r2"})))
    found = stored(m)
    assert (found.create_index, found.modify_index) == (1, 4)
    assert found.meta == {"rack": "r2"}
    for name in (
        "status",
        "status_updated_at",
        "drain",
        "drain_strategy",
        "scheduling_eligibility",
        "events",
        "last_drain",
    ):
        assert getattr(found, name) == getattr(before, name)


def test_a_node_that_was_down_registers_with_an_event_and_its_new_status() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(NodeStatus(node_id="n1", status="down"))
    assert stored(m).last_missed_heartbeat_index == 2
    m.run(NodeRegister(node=node()))
    assert stored(m).status == "initializing"
    assert messages(m) == ["Node registered", "Node re-registered"]
    m.run(NodeStatus(node_id="n1", status="ready"))
    assert stored(m).last_missed_heartbeat_index == 0


def test_another_secret_for_a_known_node_is_refused() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    error = m.refused(NodeRegister(node=node(secret_id="stolen")))
    assert isinstance(error, ConflictError)
    assert error.message == "node secret ID does not match. Not registering node."


def test_an_unknown_pool_is_made_by_the_first_node_in_it() -> None:
    m = Machine()
    m.run(NodeRegister(node=node(node_pool="gpu")))
    pool = m.state.node_pool("gpu")
    assert pool is not None
    assert pool.create_index == 1
    assert [n.id for n in m.state.nodes_by_pool("gpu")] == ["n1"]
    m.run(NodeRegister(node=node("n2", node_pool="")))
    assert stored(m, "n2").node_pool == "default"


def test_a_status_change_is_timed_in_seconds_and_carries_its_evaluations() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(NodeStatus(node_id="n1", status="down", event=EVENT, evaluations=[evaluation("e1")]))
    found = stored(m)
    assert (found.status, found.modify_index) == ("down", 2)
    assert found.status_updated_at == START_NS // SECOND + 2
    assert (found.events or [])[-1].create_index == 2
    assert m.state.eval("e1") is not None


def test_a_node_keeps_its_ten_newest_events() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    for number in range(15):
        event = NodeEvent(message=str(number))
        m.run(NodeStatus(node_id="n1", status="ready", event=event))
    assert messages(m) == [str(number) for number in range(5, 15)]


def test_a_drain_makes_ineligible_and_is_told_when_it_ended() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    strategy = DrainStrategy(deadline=60 * SECOND)
    m.run(
        NodeDrain(
            node_id="n1",
            drain=strategy,
            meta={"reason": "kernel"},
            event=EVENT,
            last_drain_status="draining",
            accessor_id="token:acls-disabled",
        )
    )
    started = gotime.from_ns(m.now_ns)
    found = stored(m)
    assert (found.drain, found.drain_strategy, found.scheduling_eligibility) == (
        True,
        strategy,
        "ineligible",
    )
    assert found.last_drain == DrainMetadata(
        started_at=started,
        updated_at=started,
        status="draining",
        accessor_id="token:acls-disabled",
        meta={"reason": "kernel"},
    )
    m.run(NodeDrain(node_id="n1", drain=None, last_drain_status="complete"))
    found = stored(m)
    assert (found.drain, found.drain_strategy, found.scheduling_eligibility) == (
        False,
        None,
        "ineligible",
    )
    assert found.last_drain == DrainMetadata(
        started_at=started,
        updated_at=gotime.from_ns(m.now_ns),
        status="complete",
        accessor_id="token:acls-disabled",
        meta={"reason": "kernel"},
    )
    m.run(NodeDrain(node_id="n1", drain=None, mark_eligible=True, last_drain_status="canceled"))
    assert stored(m).scheduling_eligibility == "eligible"
    assert stored(m).last_drain == found.last_drain


def test_a_second_drain_is_a_new_one_but_a_changed_drain_is_not() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(NodeDrain(node_id="n1", drain=DrainStrategy(), meta={"a": "1"}))
    first = stored(m).last_drain
    m.run(NodeDrain(node_id="n1", drain=DrainStrategy(deadline=5)))
    changed = stored(m).last_drain
    assert first is not None
    assert changed is not None
    assert (changed.started_at, changed.meta) == (first.started_at, {"a": "1"})
    m.run(NodeDrain(node_id="n1", drain=None, mark_eligible=True))
    ended = stored(m).last_drain
    assert ended is not None
    assert ended.status == "canceled"
    m.run(NodeDrain(node_id="n1", drain=DrainStrategy()))
    again = stored(m).last_drain
    assert again is not None
    assert (again.started_at, again.meta) == (gotime.from_ns(m.now_ns), None)


def test_a_draining_node_cannot_be_made_eligible() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(NodeDrain(node_id="n1", drain=DrainStrategy()))
    error = m.refused(
        NodeEligibility(node_id="n1", eligibility="eligible", evaluations=[evaluation("e1")])
    )
    assert (
        error.message
        == "can not set node's scheduling eligibility to eligible while it is draining"
    )
    assert error.status == 500
    m.run(NodeEligibility(node_id="n1", eligibility="ineligible"))


def test_eligibility_has_two_values() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(NodeEligibility(node_id="n1", eligibility="ineligible", event=EVENT))
    assert (stored(m).scheduling_eligibility, stored(m).modify_index) == ("ineligible", 2)
    error = m.refused(NodeEligibility(node_id="n1", eligibility="maybe"))
    assert (error.message, error.status) == ('invalid scheduling eligibility "maybe"', 500)
    assert isinstance(m.refused(NodeStatus(node_id="n1", status="asleep")), InvalidRequestError)


def test_unknown_nodes_cannot_be_changed() -> None:
    m = Machine()
    for command in (
        NodeStatus(node_id="n1", status="ready"),
        NodeDrain(node_id="n1", drain=None),
        NodeEligibility(node_id="n1", eligibility="eligible"),
        NodeDeregister(node_ids=["n1"]),
    ):
        error = m.refused(command)
        assert isinstance(error, NotFoundError)
        assert error.message == "node not found"


def test_deregistering_removes_nodes_and_keeps_their_evaluations() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(NodeDeregister(node_ids=["n1", "gone already"], evaluations=[evaluation("e1")]))
    assert m.state.node("n1") is None
    assert m.state.eval("e1") is not None
    m.run(NodeRegister(node=node(secret_id="another is fine now")))


def test_a_report_after_missed_heartbeats_is_noted_on_the_node_and_others_are_not() -> None:
    m = Machine()
    m.run(NodeRegister(node=node()))
    m.run(JobRegister(job=job()))
    m.run(PlanResults(plans=[plan(alloc("a1"))]))
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="running")]))
    assert m.state.table_index("nodes") == 1
    m.run(NodeStatus(node_id="n1", status="disconnected"))
    m.run(AllocClientUpdate(allocs=[alloc("a1", client_status="running")]))
    assert stored(m).last_alloc_update_index == 6
    assert stored(m).modify_index == 5


# -- the computed class -----------------------------------------------------------------------------------


def test_nodes_that_differ_in_unique_facts_only_share_a_class() -> None:
    one = node("n1", meta={"rack": "r1", "unique.serial": "1"})
    other = node("n2", meta={"rack": "r1", "unique.serial": "2"}, http_addr="elsewhere")
    assert computed_class(one) == computed_class(other)
    assert computed_class(one).startswith("v1:")
    assert 0 <= int(computed_class(one)[3:]) < 1 << 64


@pytest.mark.parametrize(
    "more",
    [
        {"datacenter": "dc2"},
        {"node_class": "big"},
        {"node_pool": "gpu"},
        {"meta": {"rack": "r1"}},
        {"attributes": {"kernel.name": "windows"}},
        {
            "node_resources": NodeResources(
                devices=[NodeDeviceResource(vendor="nvidia", type="gpu", name="x")]
            )
        },
    ],
)
def test_what_feasibility_looks_at_makes_another_class(more: dict[str, object]) -> None:
    assert computed_class(node(**more)) != computed_class(node())


def test_the_class_does_not_depend_on_the_order_of_facts() -> None:
    one = node(attributes={"a": "1", "b": "2"})
    assert computed_class(one) == computed_class(
        msgspec.structs.replace(one, attributes={"b": "2", "a": "1"})
    )


# -- node pools -------------------------------------------------------------------------------------------


def test_a_pool_is_made_changed_and_removed() -> None:
    m = Machine()
    m.run(
        NodePoolUpsert(
            pools=[NodePool(name="gpu", description="gpu machines", meta={"team": "ml"})]
        )
    )
    pool = m.state.node_pool("gpu")
    assert pool is not None
    # As recorded from a real server.
    assert pool.hash == "dJnPApMysLRRkAD0NnCFCgJf3oso479rEWZkwQ2ZVaI="
    assert pool.node_identity_ttl == 86_400 * SECOND
    m.run(NodePoolUpsert(pools=[NodePool(name="gpu", description="other")]))
    pool = m.state.node_pool("gpu")
    assert pool is not None
    assert (pool.create_index, pool.modify_index, pool.description) == (1, 2, "other")
    m.run(NodePoolDelete(names=["gpu"]))
    assert m.state.node_pool("gpu") is None
    assert m.state.table_index("node_pools") == 3


def test_built_in_pools_can_be_neither_changed_nor_removed() -> None:
    m = Machine()
    assert m.refused(NodePoolUpsert(pools=[NodePool(name="all")])).status == 400
    assert (
        m.refused(NodePoolDelete(names=["default"])).message
        == 'deleting node pool "default" is not allowed'
    )
    m.run(NodeRegister(node=node()))
    error = m.refused(NodePoolDelete(names=["default"]))
    assert (
        error.message
        == '1 error occurred:\n\t* node pool "default" has nodes in regions: [global]\n\n'
    )
    assert error.status == 500


def test_a_pool_in_use_cannot_be_removed_nor_any_that_is_named_with_it() -> None:
    m = Machine()
    m.run(NodePoolUpsert(pools=[NodePool(name="gpu"), NodePool(name="idle")]))
    m.run(JobRegister(job=job(node_pool="gpu"), evaluation=evaluation("e1")))
    error = m.refused(NodePoolDelete(names=["idle", "gpu"], region="eu"))
    assert 'node pool "gpu" has non-terminal jobs in regions: [eu]' in error.message
    m.run(EvalUpsert(evals=[evaluation("e1", status="complete")]))
    m.run(NodePoolDelete(names=["idle", "gpu"]))
    assert isinstance(m.refused(NodePoolDelete(names=["gpu"])), NotFoundError)
