"""Where replacing, ports, distinct rules and several groups meet within one pass."""

from typing import Any

import msgspec
from scheduling_world import (
    SECOND,
    World,
    constraint,
    make_group,
    make_job,
    make_node,
    make_task,
    static_port,
)

from nomadpy.models.job import DisconnectStrategy, Job
from nomadpy.models.resources import NetworkResource, Port, Resources
from nomadpy.state import schema


def test_a_replacement_may_go_to_another_node_of_the_value_that_it_frees() -> None:
    world = World()
    world.add_nodes(make_node("small", cpu=600, meta={"rack": "r1"}))
    one_a_rack = [constraint("${meta.rack}", "distinct_property")]
    world.deploy(make_job("web", make_group(constraints=one_a_rack)))
    world.add_nodes(make_node("large", meta={"rack": "r1"}))
    bigger = make_task(resources=Resources(cpu=700, memory_mb=256))
    job = make_job("web", make_group(constraints=one_a_rack, tasks=[bigger]))
    assert world.deploy(job).failed_tg_allocs == {}
    assert [alloc.node_id for alloc in world.live(job)] == ["large"]


def test_distinct_hosts_lets_a_replacement_stay_on_its_host() -> None:
    world = World()
    world.add_nodes(make_node("a"))
    rule = [constraint("", "distinct_hosts")]
    world.deploy(make_job("web", make_group(constraints=rule)))
    job = make_job("web", make_group(constraints=rule), meta={"v": "2"})
    assert world.deploy(job).failed_tg_allocs == {}
    assert len(world.live(job)) == 1


def test_a_system_job_keeps_to_distinct_property() -> None:
    world = World()
    world.add_nodes(*[make_node(name, meta={"rack": "r1"}) for name in "abc"])
    rule = [constraint("${meta.rack}", "distinct_property", "2")]
    job = make_job("sys", make_group(constraints=rule), type="system")
    decision = world.deploy(job)
    assert len(world.live(job)) == 2
    assert decision.failed_tg_allocs == {}


def test_each_replacement_finds_the_port_that_it_frees() -> None:
    world = World()
    world.add_nodes(make_node("a"))
    groups = [make_group(f"g{port}", networks=[static_port("p", port)]) for port in (80, 81, 82)]
    world.deploy(make_job("web", *groups))
    job = make_job("web", *groups, meta={"v": "2"})
    assert world.deploy(job).failed_tg_allocs == {}
    world.check()


def test_the_room_of_one_that_could_not_be_replaced_is_not_given_away() -> None:
    world = World()
    world.add_nodes(make_node("a", cpu=500))
    world.deploy(make_job("web", make_group("one")))
    bigger = make_task(resources=Resources(cpu=501, memory_mb=256))
    job = make_job("web", make_group("one", tasks=[bigger]), make_group("two"))
    decision = world.deploy(job)
    assert decision.queued == {"one": 1, "two": 1}
    assert world.names(job) == ["web.one[0]"]
    world.check()


def test_ports_of_a_node_that_was_passed_over_stay_free() -> None:
    """The first group takes port 80 for itself, then fails on 90: port 80 must be there for the second."""
    world = World()
    world.add_nodes(make_node("a"))
    world.deploy(make_job("holder", make_group(networks=[static_port("p", 90)])))
    legacy = NetworkResource(reserved_ports=[Port(label="q", value=90)])
    task = make_task(resources=Resources(cpu=100, memory_mb=100, networks=[legacy]))
    job = make_job(
        "web",
        make_group("one", tasks=[task], networks=[static_port("p", 80)]),
        make_group("two", networks=[static_port("p", 80)]),
    )
    assert world.deploy(job).queued == {"one": 1, "two": 0}
    assert world.names(job) == ["web.two[0]"]


def disconnected(count: int) -> tuple[World, Job, Any]:
    """A job whose allocation [0] sits on a node that cannot be reached, and has been replaced."""
    world = World()
    world.add_nodes(*[make_node(name) for name in "abc"])
    job = make_job(
        "web", make_group(count=count, disconnect=DisconnectStrategy(lost_after=60 * SECOND))
    )
    world.deploy(job)
    world.report(*world.live(job))
    original = world.live(job)[0]
    world.change_node(original.node_id, status="disconnected")
    world.run(job, "node-update")
    return world, job, original


def test_what_has_its_replacement_is_not_replaced_again_when_it_is_lost() -> None:
    world, job, original = disconnected(count=2)
    world.report(next(a for a in world.live(job) if a.name == "web.group[1]"), status="complete")
    world.change_node(original.node_id, status="down")
    world.run(job, "node-update")
    assert world.names(job) == ["web.group[0]", "web.group[1]"]


def test_what_has_its_replacement_is_not_replaced_again_when_it_has_failed() -> None:
    world, job, original = disconnected(count=1)
    world.change_node(original.node_id, status="ready")
    world.report(original, status="failed")
    decision = world.run(job, "reconnect")
    assert decision.plan is None
    assert decision.created == []


def test_a_second_system_allocation_on_a_node_is_stopped() -> None:
    world = World()
    world.add_nodes(make_node("a"))
    job = make_job("sys", type="system")
    world.deploy(job)
    (first,) = world.live(job)
    with world.transaction() as tx:
        twin = msgspec.structs.replace(first, id=world.entropy.uuid(), create_index=tx.index)
        tx.put(schema.ALLOCS, twin.id, twin)
    world.run(job)
    assert [alloc.id for alloc in world.live(job)] == [twin.id]


def test_a_stop_in_the_same_pass_frees_its_room() -> None:
    world = World()
    world.add_nodes(make_node("a", cpu=500))
    world.deploy(make_job("web", make_group("old")))
    job = make_job("web", make_group("new"))
    assert world.deploy(job).failed_tg_allocs == {}
    assert world.names(job) == ["web.new[0]"]
