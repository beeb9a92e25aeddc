"""Devices and cores from one NUMA node, and shares that never add up to more than a device."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_world import World, make_group, make_job, make_node, make_task

from nomadpy.models.allocation import Allocation
from nomadpy.models.job import Job
from nomadpy.models.node import (
    Node,
    NodeCore,
    NodeDevice,
    NodeDeviceLocality,
    NodeDeviceResource,
    NodeProcessors,
    NodeTopology,
)
from nomadpy.models.resources import (
    AllocatedDeviceResource,
    AllocatedResources,
    AllocatedTaskResources,
    NUMAResource,
    RequestedDevice,
    Resources,
)
from nomadpy.scheduler import numa
from nomadpy.scheduler.cores import CoreRequest
from nomadpy.scheduler.devices import DeviceGroup, DeviceRequest, bus_key
from nomadpy.scheduler.fit import allocs_fit

BUSES = {"0000:3b:00.0": 0, "0000:5e:00.0": 0, "0000:af:00.0": 1, "0000:d8:00.0": 1}


def two_sockets(
    name: str = "n", *, buses: tuple[str, ...] = tuple(BUSES), topology: bool = True
) -> Node:
    """Cores 0 and 1 on NUMA node 0, 2 and 3 on 1; a GPU on each of the buses."""
    node = make_node(name)
    assert node.node_resources is not None
    found = NodeTopology(
        nodes=[0, 1],
        cores=[NodeCore(id=core, node_id=core // 2) for core in range(4)],
        bus_associativity=BUSES,
    )
    gpus = NodeDeviceResource(
        vendor="nvidia",
        type="gpu",
        name="T4",
        # The driver writes the domain with eight digits and large letters, the kernel does not.
        instances=[
            NodeDevice(
                id=f"gpu{n}",
                healthy=True,
                locality=NodeDeviceLocality(pci_bus_id=f"0000{bus.upper()}") if bus else None,
            )
            for n, bus in enumerate(buses)
        ],
    )
    resources = msgspec.structs.replace(
        node.node_resources,
        devices=[gpus],
        processors=NodeProcessors(topology=found if topology else None),
    )
    return msgspec.structs.replace(node, node_resources=resources)


def asking(
    name: str, affinity: str = "require", *, cores: int = 2, gpus: int = 1, count: int = 1
) -> Job:
    task = make_task(
        resources=Resources(
            cores=cores,
            memory_mb=10,
            devices=[RequestedDevice(name="nvidia/gpu", count=gpus)],
            numa=NUMAResource(affinity=affinity, devices=["nvidia/gpu"]),
        )
    )
    return make_job(name, make_group(count=count, tasks=[task]))


def places(world: World, job: Job) -> list[tuple[list[int], list[str]]]:
    """Cores and devices of each live allocation."""
    found = []
    for alloc in world.live(job):
        assert alloc.allocated_resources is not None
        for task in (alloc.allocated_resources.tasks or {}).values():
            ids = [one for device in task.devices or [] for one in device.device_ids or []]
            found.append((list(task.cpu.reserved_cores or []), ids))
    return sorted(found)


def test_required_devices_are_on_the_numa_node_of_the_cores() -> None:
    world = World()
    world.add_nodes(two_sockets())
    job = asking("job", gpus=2, count=2)
    world.deploy(job)
    assert places(world, job) == [([0, 1], ["gpu0", "gpu1"]), ([2, 3], ["gpu2", "gpu3"])]
    world.check()


def test_a_requirement_that_no_numa_node_meets_waits_and_a_preference_does_not() -> None:
    world = World()
    world.add_nodes(two_sockets(buses=("0000:3b:00.0", "0000:5e:00.0")))
    # The cores beside the GPUs are taken.
    taker = make_job(
        "taker", make_group(tasks=[make_task(resources=Resources(cores=1, memory_mb=1))])
    )
    world.deploy(taker)
    job = asking("job")
    decision = world.deploy(job)
    assert decision.failed_tg_allocs["group"].dimension_exhausted == {numa.APART: 1}
    liked = asking("liked", "prefer")
    world.deploy(liked)
    assert places(world, liked) == [([2, 3], ["gpu0"])]
    world.stop(taker)
    world.check()


def test_a_preference_is_followed_where_that_is_possible() -> None:
    world = World()
    world.add_nodes(two_sockets(buses=("0000:af:00.0",)))
    job = asking("job", "prefer")
    world.deploy(job)
    assert places(world, job) == [([2, 3], ["gpu0"])]


def test_a_device_of_which_nobody_knows_where_it_is_is_beside_no_core() -> None:
    world = World()
    world.add_nodes(two_sockets(buses=("", "0000:99:00.0")))
    assert world.deploy(asking("job")).queued == {"group": 1}


def test_on_a_node_with_one_numa_node_everything_is_beside_everything() -> None:
    world = World()
    world.add_nodes(two_sockets(buses=("",), topology=False))
    job = asking("job", cores=3)
    world.deploy(job)
    assert places(world, job) == [([0, 1, 2], ["gpu0"])]


def test_without_cores_the_named_devices_share_a_numa_node() -> None:
    world = World()
    world.add_nodes(two_sockets(buses=("0000:3b:00.0", "0000:af:00.0", "0000:d8:00.0")))
    task = make_task(
        resources=Resources(
            cpu=10,
            memory_mb=10,
            devices=[RequestedDevice(name="gpu", count=2)],
            numa=NUMAResource(affinity="require", devices=["gpu"]),
        )
    )
    job = make_job("job", make_group(tasks=[task]))
    world.deploy(job)
    assert places(world, job) == [([], ["gpu1", "gpu2"])]


@pytest.mark.parametrize("spelling", ["00000000:3B:00.0", "0000:3b:00.0", "3b:00.0", " 3B:00.0 "])
def test_bus_ids_are_equal_however_they_are_written(spelling: str) -> None:
    assert bus_key(spelling) == bus_key("0000:3b:00.0")
    assert bus_key("0001:3b:00.0") != bus_key("0000:3b:00.0")


# -- against every way there is ----------------------------------------------------------------------------------


class Wish(msgspec.Struct, frozen=True):
    cores: int
    devices: int
    beside: str


wishes = st.lists(
    st.builds(
        Wish,
        cores=st.integers(0, 3),
        devices=st.integers(1, 2),
        beside=st.sampled_from(["", "prefer", "require", "require"]),
    ),
    min_size=1,
    max_size=3,
)
stocks = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=3)
"""Free cores and devices of each NUMA node."""


def ways(asked: list[Wish], stock: list[tuple[int, int]]) -> list[tuple[int | None, ...]]:
    """Every choice of NUMA nodes with which all can be met."""
    found = []
    options = {"": [None], "require": list(range(len(stock))), "prefer": [None, *range(len(stock))]}
    for way in itertools.product(*(options[wish.beside] for wish in asked)):  # type: ignore[arg-type]
        cores: Counter[int | None] = Counter()
        devices: Counter[int | None] = Counter()
        for wish, place in zip(asked, way, strict=True):
            cores[place] += wish.cores
            devices[place] += wish.devices
        if (
            all(
                cores[place] <= stock[place][0] and devices[place] <= stock[place][1]
                for place in range(len(stock))
            )
            and cores.total() <= sum(one for one, _ in stock)
            and devices.total() <= sum(one for _, one in stock)
        ):
            found.append(way)
    return found


@settings(max_examples=300, deadline=None)
@given(asked=wishes, stock=stocks)
def test_what_is_possible_is_found_and_as_many_preferences_as_can_be_are_met(
    asked: list[Wish], stock: list[tuple[int, int]]
) -> None:
    core_places = [node for node, (cores, _) in enumerate(stock) for _ in range(cores)]
    device_places = [node for node, (_, devices) in enumerate(stock) for _ in range(devices)]
    group = DeviceGroup(
        "v",
        "gpu",
        "m",
        tuple(("v", "gpu", "m", str(n)) for n in range(len(device_places))),
        {},
        tuple(device_places),
    )
    core_requests = [
        CoreRequest(str(n), wish.cores, "none") for n, wish in enumerate(asked) if wish.cores
    ]
    device_requests = tuple(
        DeviceRequest(str(n), "gpu", wish.devices, 1000, beside=wish.beside)
        for n, wish in enumerate(asked)
    )
    found = numa.assign(
        core_requests,
        device_requests,
        free=set(range(len(core_places))),
        places=dict(enumerate(core_places)),
        groups=(group,),
        taken={},
    )
    possible = ways(asked, stock)
    assert (found is not None) == bool(possible)
    if found is None:
        return
    cores, chosen = found
    used = [core for mine in cores.values() for core in mine]
    held = [key for _, _, keys in chosen for key in keys]
    assert len(set(used)) == len(used) == sum(wish.cores for wish in asked)
    assert len(set(held)) == len(held) == sum(wish.devices for wish in asked)
    assert [request for request, _, _ in chosen] == list(device_requests)
    local = 0
    for n, wish in enumerate(asked):
        nodes = {core_places[core] for core in cores.get(str(n), [])}
        nodes |= {device_places[int(key[3])] for key in chosen[n][2]}
        assert wish.beside != "require" or len(nodes) == 1
        local += wish.beside == "prefer" and len(nodes) == 1
    best = max(
        sum(
            wish.beside == "prefer" and place is not None
            for wish, place in zip(asked, way, strict=True)
        )
        for way in possible
    )
    assert local >= best


# -- shares ------------------------------------------------------------------------------------------------------


def holding(number: int, *shares: tuple[str, int]) -> Allocation:
    devices = [
        AllocatedDeviceResource(
            vendor="nvidia", type="gpu", name="T4", device_ids=[device], share=share % 1000
        )
        for device, share in shares
    ]
    resources = AllocatedResources(tasks={"task": AllocatedTaskResources(devices=devices)})
    return Allocation(id=f"a{number}", name=f"a{number}", allocated_resources=resources)


parts = st.tuples(st.sampled_from(["gpu0", "gpu1"]), st.sampled_from([100, 300, 500, 700, 1000]))


@settings(max_examples=200, deadline=None)
@given(allocs=st.lists(st.lists(parts, max_size=2), max_size=5))
def test_the_plan_applier_takes_shares_up_to_a_whole_device_and_no_more(
    allocs: list[list[tuple[str, int]]],
) -> None:
    taken: Counter[str] = Counter()
    for shares in allocs:
        for device, share in shares:
            taken[device] += share
    result = allocs_fit(two_sockets(), [holding(n, *shares) for n, shares in enumerate(allocs)])
    assert result.ok == all(share <= 1000 for share in taken.values())
    assert result.ok or result.dimension == "device oversubscribed"


@settings(max_examples=60, deadline=None)
@given(shares=st.lists(st.sampled_from([None, 100, 250, 400, 500, 600, 1000]), max_size=10))
def test_shares_that_are_given_never_exceed_a_device(shares: list[int | None]) -> None:
    world = World()
    world.add_nodes(two_sockets(buses=("0000:3b:00.0", "0000:af:00.0")))
    for number, share in enumerate(shares):
        asked = RequestedDevice(name="gpu", count=1, share=share)
        task = make_task(resources=Resources(cpu=1, memory_mb=1, devices=[asked]))
        world.deploy(make_job(f"job{number}", make_group(tasks=[task])))
    taken: Counter[str] = Counter()
    live = [alloc for alloc in world.snapshot.allocs() if alloc.desired_status == "run"]
    for alloc in live:
        assert alloc.allocated_resources is not None
        for task_given in (alloc.allocated_resources.tasks or {}).values():
            for one in task_given.devices or []:
                for device in one.device_ids or []:
                    taken[device] += one.share or 1000
    assert all(share <= 1000 for share in taken.values())
    # Nobody waits for what a device still has whole.
    smallest = min((share or 1000 for share in shares), default=1000)
    if len(live) < len(shares) and len({share or 1000 for share in shares}) == 1:
        assert all(1000 - taken[device] < smallest for device in ("gpu0", "gpu1"))
