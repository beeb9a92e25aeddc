"""Capacity, lifecycle sums, ports."""

import msgspec
import pytest
from scheduling_world import World, make_group, make_job, make_node, make_task, static_port

from nomadpy.entropy import SeededEntropy
from nomadpy.models.allocation import Allocation
from nomadpy.models.lifecycle import TaskLifecycle
from nomadpy.models.node import (
    NodeNetworkAddress,
    NodeNetworkResource,
    NodeReservedCpuResources,
    NodeReservedNetworkResources,
    NodeReservedResources,
)
from nomadpy.models.plan import AllocStop, Plan
from nomadpy.models.resources import (
    AllocatedCpuResources,
    AllocatedMemoryResources,
    AllocatedResources,
    AllocatedSharedResources,
    AllocatedTaskResources,
    NetworkResource,
    Port,
    PortMapping,
    Resources,
)
from nomadpy.scheduler.fit import (
    allocs_fit,
    node_plan_fits,
    plan_by_node,
    plan_fits_node,
    usage,
)
from nomadpy.scheduler.ports import NodePorts, NoPortError, parse_ports


def given_alloc(
    name: str, cpu: int = 100, memory: int = 100, cores: list[int] | None = None, port: int = 0
) -> Allocation:
    ports = [PortMapping(label="p", value=port, host_ip="10.0.0.1")] if port else None
    return Allocation(
        id=name,
        node_id="n1",
        desired_status="run",
        client_status="running",
        allocated_resources=AllocatedResources(
            tasks={
                "t": AllocatedTaskResources(
                    cpu=AllocatedCpuResources(cpu_shares=cpu, reserved_cores=cores),
                    memory=AllocatedMemoryResources(memory_mb=memory),
                )
            },
            shared=AllocatedSharedResources(disk_mb=10, ports=ports),
        ),
    )


@pytest.mark.parametrize(
    ("allocs", "dimension"),
    [
        ([given_alloc("a", cpu=4000)], ""),
        ([given_alloc("a", cpu=4000), given_alloc("b", cpu=1)], "cpu"),
        ([given_alloc("a", memory=8193)], "memory"),
        ([given_alloc("a", cores=[0, 1]), given_alloc("b", cores=[1])], "cores"),
        ([given_alloc("a", cores=[7])], "cores"),
        (
            [given_alloc("a", port=80), given_alloc("b", port=80)],
            "network: reserved port collision p=80",
        ),
        ([given_alloc("a", port=80), given_alloc("b", port=81)], ""),
    ],
)
def test_the_first_dimension_that_does_not_suffice_is_named(
    allocs: list[Allocation], dimension: str
) -> None:
    result = allocs_fit(make_node("n1"), allocs)
    assert (result.ok, result.dimension) == (not dimension, dimension)


@pytest.mark.parametrize(
    "ended", [{"client_status": "complete"}, {"client_status": "lost"}, {"desired_status": "stop"}]
)
def test_ended_allocations_do_not_count(ended: dict[str, str]) -> None:
    old = msgspec.structs.replace(given_alloc("a", cpu=4000, port=80), **ended)
    assert allocs_fit(make_node("n1"), [old, given_alloc("b", cpu=4000, port=80)]).ok


def test_what_the_node_reserves_is_not_given_away() -> None:
    reserved = NodeReservedResources(
        cpu=NodeReservedCpuResources(cpu_shares=1000),
        networks=NodeReservedNetworkResources(reserved_host_ports="22,8000-8010"),
    )
    node = make_node("n1", reserved_resources=reserved)
    assert allocs_fit(node, [given_alloc("a", cpu=3000)]).ok
    assert allocs_fit(node, [given_alloc("a", cpu=3001)]).dimension == "cpu"
    assert not allocs_fit(node, [given_alloc("a", port=8010)]).ok


def test_the_node_limit_of_allocations_holds() -> None:
    node = make_node("n1", node_max_allocs=1)
    two = [given_alloc("a"), given_alloc("b")]
    assert allocs_fit(node, two).dimension == "max allocations exceeded"


def test_tasks_that_do_not_run_at_the_same_time_share_room() -> None:
    hooks = {
        "before": TaskLifecycle(hook="prestart"),
        "beside": TaskLifecycle(hook="prestart", sidecar=True),
        "after": TaskLifecycle(hook="poststop"),
    }
    tasks = [make_task(name, cpu=1000, lifecycle=hook) for name, hook in hooks.items()]
    world = World()
    world.add_nodes(make_node("n1", cpu=2000))
    job = make_job("web", make_group(tasks=[*tasks, make_task("main", cpu=1000)]))
    world.deploy(job)
    (alloc,) = world.live(job)
    assert usage(alloc).cpu == 2000
    assert alloc.resources is not None
    assert alloc.resources.cpu == 4000


def test_port_lists_are_read_leniently() -> None:
    assert parse_ports("22, 80,8500-8502,x,9-") == {22, 80, 8500, 8501, 8502}
    assert parse_ports("") == frozenset()


def test_a_port_is_free_on_another_address() -> None:
    addresses = [
        NodeNetworkAddress(alias="default", address="10.0.0.1"),
        NodeNetworkAddress(alias="private", address="192.168.0.1"),
    ]
    node = make_node("n1")
    assert node.node_resources is not None
    node = msgspec.structs.replace(
        node,
        node_resources=msgspec.structs.replace(
            node.node_resources,
            node_networks=[NodeNetworkResource(mode="host", device="eth0", addresses=addresses)],
        ),
    )
    ports = NodePorts(node)
    ports.add(given_alloc("a", port=80))
    private = NetworkResource(
        reserved_ports=[Port(label="http", value=80, host_network="private", to=-1)]
    )
    offer = ports.assign_group(private, SeededEntropy(1))
    assert offer.ports == [PortMapping(label="http", value=80, to=80, host_ip="192.168.0.1")]
    with pytest.raises(NoPortError, match="reserved port collision http=80"):
        ports.assign_group(static_port("http", 80), SeededEntropy(1))
    with pytest.raises(NoPortError, match='no addresses available for "public" network'):
        ports.assign_group(
            NetworkResource(dynamic_ports=[Port(label="p", host_network="public")]),
            SeededEntropy(1),
        )


def test_dynamic_ports_run_out_only_when_all_are_taken() -> None:
    node = make_node("n1")
    assert node.node_resources is not None
    narrow = msgspec.structs.replace(
        node.node_resources, min_dynamic_port=20_000, max_dynamic_port=20_002
    )
    ports = NodePorts(msgspec.structs.replace(node, node_resources=narrow))
    ask = NetworkResource(dynamic_ports=[Port(label="p")])
    chosen = {ports.assign_group(ask, SeededEntropy(3)).ports[0].value for _ in range(3)}
    assert chosen == {20_000, 20_001, 20_002}
    with pytest.raises(NoPortError, match="dynamic port selection failed"):
        ports.assign_group(ask, SeededEntropy(3))


def test_a_port_that_may_collide_is_shared() -> None:
    ports = NodePorts(make_node("n1"))
    ask = NetworkResource(reserved_ports=[Port(label="http", value=80, ignore_collision=True)])
    assert (
        ports.assign_group(ask, SeededEntropy(1)).ports
        == ports.assign_group(ask, SeededEntropy(1)).ports
    )


def test_a_task_network_gets_ports_on_one_address() -> None:
    world = World()
    world.add_nodes(make_node("n1"))
    network = NetworkResource(dynamic_ports=[Port(label="db")], mbits=10)
    task = make_task(resources=Resources(cpu=100, memory_mb=100, networks=[network]))
    job = make_job("web", make_group(tasks=[task], count=2))
    world.deploy(job)
    values = set()
    for alloc in world.live(job):
        assert alloc.allocated_resources is not None
        assert alloc.allocated_resources.tasks is not None
        (given,) = alloc.allocated_resources.tasks["task"].networks or []
        assert given.ip.startswith("10.0.0.")
        assert given.device == "eth0"
        values.add((given.dynamic_ports or [])[0].value)
    assert len(values) == 2
    world.check()


def test_cores_are_given_whole_and_once() -> None:
    world = World()
    world.add_nodes(make_node("n1", cpu=4000))
    task = make_task(resources=Resources(cores=2, memory_mb=100))
    job = make_job("web", make_group(tasks=[task], count=3))
    decision = world.deploy(job)
    given = [alloc.allocated_resources.tasks["task"].cpu for alloc in world.live(job)]  # type: ignore[union-attr,index]
    assert sorted(core for cpu in given for core in cpu.reserved_cores or ()) == [0, 1, 2, 3]
    assert [cpu.cpu_shares for cpu in given] == [2000, 2000]
    assert decision.failed_tg_allocs["group"].dimension_exhausted == {"cores": 1}


def plan_for(*placements: Allocation, stops: list[AllocStop] | None = None) -> Plan:
    return Plan(eval_id="e", placements=list(placements), stops=stops or [])


def test_a_plan_is_refused_where_it_no_longer_holds() -> None:
    world = World()
    world.add_nodes(make_node("n1"))
    wanted = plan_for(given_alloc("new", cpu=3000))
    assert plan_fits_node(world.snapshot, wanted, "n1") == (True, "")
    job = make_job("web", make_group(tasks=[make_task(cpu=2000)]))
    world.deploy(job)
    assert plan_fits_node(world.snapshot, wanted, "n1") == (False, "cpu")
    (present,) = world.live(job)
    freeing = plan_for(
        given_alloc("new", cpu=3000), stops=[AllocStop(alloc_id=present.id, node_id="n1")]
    )
    assert plan_fits_node(world.snapshot, freeing, "n1") == (True, "")
    for change, reason in (
        ({"status": "down"}, "node is not ready for placements"),
        ({"status": "ready", "drain": True}, "node is draining"),
        ({"drain": False, "scheduling_eligibility": "ineligible"}, "node is not eligible"),
    ):
        world.change_node("n1", **change)
        assert plan_fits_node(world.snapshot, freeing, "n1") == (False, reason)
    # What only updates or stops what is there does not need a node that takes new work.
    assert plan_fits_node(world.snapshot, plan_for(present), "n1") == (True, "")
    stopping = plan_for(stops=[AllocStop(alloc_id=present.id, node_id="n1")])
    assert plan_fits_node(world.snapshot, stopping, "n1") == (True, "")
    nowhere = msgspec.structs.replace(given_alloc("new"), node_id="gone")
    assert plan_fits_node(world.snapshot, plan_for(nowhere), "gone") == (
        False,
        "node does not exist",
    )


def test_a_plan_cut_into_nodes_is_judged_as_the_whole() -> None:
    world = World()
    world.add_nodes(make_node("n1"), make_node("n2", cpu=50))
    other = msgspec.structs.replace(given_alloc("b"), node_id="n2")
    plan = plan_for(given_alloc("a"), other, stops=[AllocStop(alloc_id="x", node_id="n1")])
    cut = plan_by_node(plan)
    assert list(cut) == ["n1", "n2"]
    for node_id, wanted in cut.items():
        assert node_plan_fits(
            world.snapshot.node(node_id), world.snapshot.allocs_by_node(node_id), wanted
        ) == plan_fits_node(world.snapshot, plan, node_id)
    assert plan_fits_node(world.snapshot, plan, "n2") == (False, "cpu")
