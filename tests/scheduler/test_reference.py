"""The scheduler chooses as the slow, obvious one does, node by node, whatever happened before."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import event, given, settings
from hypothesis import strategies as st
from reference import Reference
from scheduling_world import (
    SECOND,
    World,
    constraint,
    make_group,
    make_job,
    make_node,
    make_task,
    rolling,
)

from nomadpy.models.allocation import Allocation
from nomadpy.models.constraint import Affinity, Spread, SpreadTarget
from nomadpy.models.host_volume import HostVolume, HostVolumeCapability
from nomadpy.models.job import EphemeralDisk, Job, TaskGroup, VolumeRequest
from nomadpy.models.node import (
    HostVolumeInfo,
    Node,
    NodeDevice,
    NodeDeviceResource,
    NodeReservedMemoryResources,
)
from nomadpy.models.node import NodeReservedResources as Reserved
from nomadpy.models.operator import SCHEDULER_ALGORITHMS
from nomadpy.models.resources import Attribute, NetworkResource, Port, RequestedDevice, Resources
from nomadpy.scheduler.decision import Decision
from nomadpy.scheduler.fit import plan_fits_node, terminal
from nomadpy.scheduler.reconcile_groups import UPDATING

CONSTRAINTS = [
    constraint("${meta.rack}", "=", "r1"),
    constraint("${meta.rack}", "!=", "r0"),
    constraint("${node.datacenter}", "regexp", "dc[12]"),
    constraint("${attr.cores}", ">=", "4"),
    constraint("${node.unique.name}", "!=", "n1"),
    constraint("${meta.gone}", "is_set"),
    constraint("", "distinct_hosts", "true"),
    constraint("${meta.rack}", "distinct_property", "2"),
]
AFFINITIES = [
    Affinity(l_target="${meta.rack}", operand="=", r_target="r1", weight=50),
    Affinity(l_target="${node.class}", operand="=", r_target="big", weight=-30),
    Affinity(l_target="${node.unique.name}", operand="=", r_target="n2", weight=100),
]
SPREADS = [
    Spread(attribute="${node.datacenter}", weight=50),
    Spread(attribute="${meta.rack}", weight=30),
    Spread(
        attribute="${meta.rack}",
        weight=100,
        spread_target=[SpreadTarget(value="r0", percent=70), SpreadTarget(value="r1", percent=20)],
    ),
]
NETWORKS = [
    NetworkResource(mode="host", dynamic_ports=[Port(label="a"), Port(label="b")]),
    NetworkResource(mode="host", reserved_ports=[Port(label="s", value=8080)]),
]


DEVICES = [
    RequestedDevice(name="gpu", count=1),
    RequestedDevice(name="nvidia/gpu", count=2),
    RequestedDevice(name="gpu", count=1, share=300),
    RequestedDevice(name="nvidia/gpu/T4", count=1, share=600),
    RequestedDevice(
        name="gpu", count=1, constraints=[constraint("${device.attr.memory}", ">=", "20")]
    ),
    RequestedDevice(
        name="gpu",
        count=1,
        share=500,
        affinities=[
            Affinity(l_target="${device.model}", operand="=", r_target="V100", weight=40),
            Affinity(l_target="${device.model}", operand="=", r_target="M1", weight=-70),
        ],
    ),
]
MODELS = [("nvidia", "T4", 16), ("nvidia", "V100", 32), ("amd", "M1", 64)]


@st.composite
def device_groups(draw: st.DrawFn) -> list[NodeDeviceResource] | None:
    """Up to two models of GPUs, some of them broken."""
    chosen = draw(st.lists(st.sampled_from(MODELS), max_size=2, unique=True))
    return [
        NodeDeviceResource(
            vendor=vendor,
            type="gpu",
            name=model,
            instances=[
                NodeDevice(id=f"{model}-{number}", healthy=draw(st.integers(0, 5)) > 0)
                for number in range(draw(st.integers(1, 3)))
            ],
            attributes={"memory": Attribute(int_val=memory)},
        )
        for vendor, model, memory in chosen
    ] or None


OFFERS: dict[str, tuple[str, ...]] = {
    "writer": ("single-node-writer", "single-node-reader-only"),
    "alone": ("single-node-single-writer",),
    "both": ("single-node-single-writer", "single-node-multi-writer"),
    "pending": ("single-node-writer",),
}
"""What kinds of dynamic volumes offer. The kind of a volume is where it is on its node."""

VOLUMES = [
    VolumeRequest(name="v", type="host", source="data"),
    VolumeRequest(name="v", type="host", source="data", read_only=True),
    VolumeRequest(name="v", type="host", source="data", access_mode="single-node-single-writer"),
    VolumeRequest(name="v", type="host", source="data", access_mode="single-node-multi-writer"),
    VolumeRequest(
        name="v", type="host", source="data", access_mode="single-node-multi-writer", read_only=True
    ),
    VolumeRequest(name="v", type="host", source="data", per_alloc=True),
    VolumeRequest(
        name="v",
        type="host",
        source="data",
        per_alloc=True,
        access_mode="single-node-single-writer",
    ),
]


def node_volumes(node: str) -> st.SearchStrategy[dict[str, HostVolumeInfo]]:
    """Some volumes of a node."""
    names = ["data", "data[0]", "data[1]", "data[2]"]
    return st.dictionaries(st.sampled_from(names), st.sampled_from(["static", *OFFERS])).map(
        lambda kinds: {
            name: HostVolumeInfo(
                name=name, path=kind, id="" if kind == "static" else f"{node}-{name}"
            )
            for name, kind in kinds.items()
        }
    )


def dynamic_volumes(nodes: list[Node]) -> list[HostVolume]:
    """The volumes that nodes tell of, as the state has them."""
    return [
        HostVolume(
            namespace="default",
            id=one.id,
            name=one.name,
            node_id=node.id,
            state="pending" if one.path == "pending" else "ready",
            requested_capabilities=[
                HostVolumeCapability(attachment_mode="file-system", access_mode=mode)
                for mode in OFFERS[one.path]
            ],
        )
        for node in nodes
        for one in (node.host_volumes or {}).values()
        if one.id
    ]


@st.composite
def clusters(draw: st.DrawFn, with_devices: bool = False, with_volumes: bool = False) -> list[Node]:
    nodes = []
    for number in range(draw(st.integers(1, 8))):
        node = make_node(
            f"n{number}",
            cpu=draw(st.sampled_from([500, 1000, 2000, 4000])),
            memory=draw(st.sampled_from([512, 1024, 4096])),
            datacenter=draw(st.sampled_from(["dc1", "dc2", "eu"])),
            node_class=draw(st.sampled_from(["", "big"])),
            meta={"rack": draw(st.sampled_from(["r0", "r1", "r2"]))},
            attributes={"cores": draw(st.sampled_from(["2", "4", "16"]))},
            node_max_allocs=draw(st.sampled_from([0, 0, 0, 2])),
            host_volumes=draw(
                st.sampled_from(
                    [{}, {"data": HostVolumeInfo(name="data", path="/d", read_only=True)}]
                )
                if not with_volumes
                else node_volumes(f"n{number}")
            ),
            reserved_resources=draw(
                st.sampled_from([None, Reserved(memory=NodeReservedMemoryResources(memory_mb=200))])
            ),
        )
        if draw(st.integers(0, 4)) == 0:
            assert node.node_resources is not None
            narrow = msgspec.structs.replace(
                node.node_resources, min_dynamic_port=20_000, max_dynamic_port=20_002
            )
            node = msgspec.structs.replace(node, node_resources=narrow)
        if with_devices:
            assert node.node_resources is not None
            more = msgspec.structs.replace(node.node_resources, devices=draw(device_groups()))
            node = msgspec.structs.replace(node, node_resources=more)
        nodes.append(node)
    return nodes


@st.composite
def groups(
    draw: st.DrawFn, name: str, with_devices: bool = False, with_volumes: bool = False
) -> TaskGroup:
    resources = Resources(
        cpu=draw(st.integers(1, 900)),
        memory_mb=draw(st.integers(10, 600)),
        cores=draw(st.sampled_from([0, 0, 0, 1, 2])),
        devices=draw(st.lists(st.sampled_from(DEVICES), max_size=2)) if with_devices else None,
    )
    network = draw(st.sampled_from([None, None, *NETWORKS]))
    spreads = draw(st.lists(st.sampled_from(SPREADS), max_size=2, unique_by=str))
    return make_group(
        name,
        count=draw(st.integers(1, 6)),
        tasks=[make_task(resources=resources, env=draw(st.sampled_from([None, {"V": "2"}])))],
        networks=[network] if network else None,
        ephemeral_disk=EphemeralDisk(size_mb=300, sticky=draw(st.booleans())),
        constraints=draw(st.lists(st.sampled_from(CONSTRAINTS), max_size=2, unique_by=str)),
        affinities=draw(st.lists(st.sampled_from(AFFINITIES), max_size=2, unique_by=str)),
        spreads=spreads or None,
        update=draw(st.sampled_from([None, rolling(2)])),
        volumes=draw(st.sampled_from([None, None, {"v": VOLUMES[1]}]))
        if not with_volumes
        else {"v": draw(st.sampled_from(VOLUMES))},
    )


@st.composite
def jobs(
    draw: st.DrawFn, name: str = "job", with_devices: bool = False, with_volumes: bool = False
) -> Job:
    made = [draw(groups("one", with_devices, with_volumes))]
    if draw(st.booleans()):
        made.append(draw(groups("two", with_devices, with_volumes)))
    return make_job(
        name,
        *made,
        type=draw(st.sampled_from(["service", "batch"])),
        datacenters=draw(st.sampled_from([["*"], ["dc1"], ["dc*"]])),
        constraints=draw(st.lists(st.sampled_from(CONSTRAINTS[2:]), max_size=1)),
        affinities=draw(st.lists(st.sampled_from(AFFINITIES), max_size=1)),
    )


def reference_for(world: World, job: Job) -> Reference:
    """The reference in the state of the world."""
    snapshot = world.snapshot
    nodes = list(snapshot.nodes())
    allocs = [alloc for node in nodes for alloc in snapshot.allocs_by_node(node.id)]
    config = snapshot.scheduler_config()
    return Reference(
        nodes,
        allocs,
        job,
        algorithm=config.scheduler_algorithm,
        volumes=snapshot.host_volumes(),
        jobs=snapshot.jobs(),
    )


def check(world: World, job: Job, decision: Decision) -> None:
    """Play the decision through on the reference: each placement is one it would choose, and what waits fits nowhere."""
    slow = reference_for(world, job)
    known = {alloc.id: alloc for alloc in slow.allocs.values()}
    plan = decision.plan
    replaced = set()
    for stop in plan.stops if plan else []:
        if stop.desired_status != "run":
            if stop.description == UPDATING:
                replaced.add(stop.alloc_id)
            else:
                slow.remove(stop.alloc_id)
    by_name = {group.name: group for group in job.task_groups or []}
    for alloc in plan.placements if plan else []:
        if alloc.id in known:
            continue
        group = by_name[alloc.task_group]
        if alloc.previous_allocation in replaced:
            slow.remove(alloc.previous_allocation)
        check_choice(world, slow, group, alloc)
        slow.place(alloc)
    for name, number in decision.queued.items():
        waits = number and not (plan and plan.deployment and by_name[name].update)
        if waits and not replaced:
            event("some wait")
            for waiting in missing(world, slow, by_name[name]):
                assert slow.best(by_name[name], name=waiting) == []


def missing(world: World, slow: Reference, group: TaskGroup) -> list[str]:
    """Names for which the group waits: of those that were never placed, where they differ, else one for all."""
    names = [f"{slow.job.id}.{group.name}[{index}]" for index in range(group.count)]
    if not any(asked.per_alloc for asked in (group.volumes or {}).values()):
        return names[:1]
    # One that failed may have to wait for its time.
    placed = {alloc.name for alloc in (*world.allocs(slow.job), *slow.allocs.values())}
    return [name for name in names if name not in placed]


def check_choice(world: World, slow: Reference, group: TaskGroup, alloc: Allocation) -> None:
    penalties: set[str] = set()
    events = (alloc.reschedule_tracker.events or []) if alloc.reschedule_tracker else []
    if events and events[-1].prev_alloc_id == alloc.previous_allocation:
        event("rescheduled")
        penalties = {one.prev_node_id for one in events}
    elif alloc.previous_allocation and group.ephemeral_disk and group.ephemeral_disk.sticky:
        previous = world.snapshot.alloc(alloc.previous_allocation)
        assert previous is not None
        home = slow.nodes.get(previous.node_id)
        if home is not None and not slow.problem(home, group, alloc.name):
            event("stays with its disk")
            assert alloc.node_id == home.id
            return
    assert alloc.node_id in slow.best(group, penalties, alloc.name)
    assert not slow.collides(alloc)


@settings(max_examples=200, deadline=None)
@given(
    nodes=clusters(),
    others=jobs("other"),
    job=jobs(),
    algorithm=st.sampled_from(SCHEDULER_ALGORITHMS),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["fail", "update", "down", "drop", "again"]),
            st.integers(0, 9),
            jobs(),
        ),
        max_size=4,
    ),
)
def test_every_choice_is_the_references(
    nodes: list[Node],
    others: Job,
    job: Job,
    algorithm: str,
    steps: list[tuple[str, int, Job]],
) -> None:
    world = World()
    world.configure(scheduler_algorithm=algorithm)
    world.add_nodes(*nodes)
    world.deploy(others)
    world.register(job)
    decide(world, job)
    for kind, pick, replacement in steps:
        live = world.live(job)
        if kind == "fail" and live:
            world.report(live[pick % len(live)], status="failed")
            world.now += 60 * SECOND
        elif kind == "update":
            job = msgspec.structs.replace(replacement, type=job.type)
            world.register(job)
        elif kind == "down":
            world.change_node(nodes[pick % len(nodes)].id, status="down")
        elif kind == "drop":
            world.stop(others)
            world.run(others)
        decide(world, job)


@settings(max_examples=150, deadline=None)
@given(
    nodes=clusters(with_devices=True),
    made=st.lists(jobs(with_devices=True), min_size=1, max_size=4),
    algorithm=st.sampled_from(SCHEDULER_ALGORITHMS),
)
def test_every_choice_of_nodes_with_devices_is_the_references(
    nodes: list[Node], made: list[Job], algorithm: str
) -> None:
    world = World()
    world.configure(scheduler_algorithm=algorithm)
    world.add_nodes(*nodes)
    for number, one in enumerate(made):
        job = msgspec.structs.replace(one, id=f"job{number}", constraints=None, datacenters=["*"])
        world.register(job)
        decide(world, job)
        if number == 1 and (live := world.live(job)):
            event("an allocation with devices ends")
            world.report(live[0], status="complete")


@settings(max_examples=200, deadline=None)
@given(
    nodes=clusters(with_volumes=True),
    made=st.lists(jobs(with_volumes=True), min_size=1, max_size=4),
    picks=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=4),
)
def test_every_choice_of_nodes_with_volumes_is_the_references(
    nodes: list[Node], made: list[Job], picks: list[tuple[bool, int]]
) -> None:
    world = World()
    world.add_nodes(*nodes)
    world.add_volumes(*dynamic_volumes(nodes))
    registered: list[Job] = []
    for number, one in enumerate(made):
        job = msgspec.structs.replace(
            one, id=f"job{number}", type="service", constraints=None, datacenters=["*"]
        )
        world.register(job)
        decide(world, job)
        registered.append(job)
    for fails, pick in picks:
        job = registered[pick % len(registered)]
        live = world.live(job)
        if not live:
            continue
        ended = live[pick % len(live)]
        world.report(ended, status="failed" if fails else "complete")
        world.now += 60 * SECOND
        decide(world, job)
    slow = reference_for(world, registered[0])
    for node in nodes:
        for one in (node.host_volumes or {}).values():
            modes = slow.written(node, one.name) if one.id else []
            if modes:
                event("a dynamic volume is written")
            assert len(modes) < 2 or "single-node-single-writer" not in modes
    for alloc in slow.allocs.values():
        assert alloc.job is not None
        (group,) = [g for g in alloc.job.task_groups or [] if g.name == alloc.task_group]
        for asked in (group.volumes or {}).values():
            if asked.per_alloc:
                event("an allocation has a volume of its own")
                own = asked.source + alloc.name[alloc.name.rindex("[") :]
                assert own in (slow.nodes[alloc.node_id].host_volumes or {})


def decide(world: World, job: Job) -> Decision:
    decision = world.decide(world.evaluation(job))
    check(world, job, decision)
    world.apply(decision)
    world.check()
    return decision


@settings(max_examples=100, deadline=None)
@given(nodes=clusters(), job=jobs(), other=jobs("other"), away=st.sets(st.integers(0, 7)))
def test_of_a_late_plan_nothing_is_placed_that_no_longer_fits(
    nodes: list[Node], job: Job, other: Job, away: set[int]
) -> None:
    """Two plans of one snapshot, and nodes that go away in between: what the re-check lets through fits together."""
    world = World()
    world.add_nodes(*nodes)
    world.register(job)
    world.register(other)
    first, late = (world.decide(world.evaluation(one)) for one in (other, job))
    world.apply(first)
    for number in away:
        if number < len(nodes):
            world.change_node(nodes[number].id, status="down")
    if late.plan is None:
        return
    slow = reference_for(world, job)
    by_name = {group.name: group for group in job.task_groups or []}
    present: dict[str, list[Any]] = {
        node.id: [a for a in world.snapshot.allocs_by_node(node.id) if not terminal(a)]
        for node in nodes
    }
    for node_id in {alloc.node_id for alloc in late.plan.placements}:
        holds, reason = plan_fits_node(world.snapshot, late.plan, node_id)
        mine = [alloc for alloc in late.plan.placements if alloc.node_id == node_id]
        if not holds:
            event(f"refused: {reason}")
            # What is refused as a whole must be too much: one of it at least does not fit.
            assert not all(_takes(slow, by_name[alloc.task_group], alloc) for alloc in mine)
            continue
        node = slow.nodes[node_id]
        assert node.status == "ready"
        everything = [*present[node_id], *mine]
        ports = [
            port.value
            for alloc in everything
            for port in alloc.allocated_resources.shared.ports or []
        ]
        assert len(ports) == len(set(ports))
        for alloc in mine:
            slow.place(alloc)
        assert all(u <= h for u, h in zip(slow.used(node), slow.usable(node), strict=True))


def _takes(slow: Reference, group: TaskGroup, alloc: Allocation) -> bool:
    """Place it on the reference if it fits with the very ports it was given."""
    node = slow.nodes[alloc.node_id]
    if slow.problem(node, group) or slow.collides(alloc):
        return False
    slow.place(alloc)
    return True


@settings(max_examples=60, deadline=None)
@given(
    nodes=st.lists(st.sampled_from([1000, 2000, 4000]), min_size=2, max_size=5),
    count=st.integers(1, 3),
    picks=st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_where_it_failed_it_goes_only_when_nothing_else_will_do(
    nodes: list[int], count: int, picks: list[int]
) -> None:
    world = World()
    world.add_nodes(*(make_node(f"n{place}", cpu=cpu) for place, cpu in enumerate(nodes)))
    job = make_job("job", make_group("one", count=count))
    world.register(job)
    decide(world, job)
    for pick in picks:
        live = world.live(job)
        world.report(live[pick % len(live)], status="failed")
        world.now += 4000 * SECOND
        decide(world, job)
        assert len(world.live(job)) == count
