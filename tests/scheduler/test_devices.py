"""Devices and cores: what is accepted, who gets what, and that nothing is given twice."""

from __future__ import annotations

import msgspec
import pytest
from scheduling_world import World, constraint, make_group, make_job, make_node, make_task

from nomadpy.models.constraint import Affinity
from nomadpy.models.node import Node, NodeDevice, NodeDeviceResource
from nomadpy.models.quantities import attribute_text, parse_attribute
from nomadpy.models.resources import Attribute, RequestedDevice, Resources
from nomadpy.scheduler import cores
from nomadpy.scheduler.cores import CoreRequest
from nomadpy.scheduler.devices import DeviceRequest, accepts, assign, device_groups
from nomadpy.scheduler.fit import allocs_fit, plan_fits_node
from nomadpy.scheduler.operators import amounts_hold


def gpus(model: str, number: int, memory: int = 16) -> NodeDeviceResource:
    return NodeDeviceResource(
        vendor="nvidia",
        type="gpu",
        name=model,
        instances=[NodeDevice(id=f"{model}-{n}", healthy=True) for n in range(number)],
        attributes={"memory": Attribute(int_val=memory, unit="GiB")},
    )


def node_with(name: str, *devices: NodeDeviceResource) -> Node:

    node = make_node(name)
    resources = msgspec.structs.replace(node.node_resources, devices=list(devices))
    return msgspec.structs.replace(node, node_resources=resources)


def asking(name: str, count: int = 1, *asked: RequestedDevice) -> object:
    task = make_task(resources=Resources(cpu=10, memory_mb=10, devices=list(asked)))
    return make_job(name, make_group(count=count, tasks=[task]))


def given(world: World, job: object) -> list[list[str]]:
    return [
        device.device_ids or []
        for alloc in world.live(job)  # type: ignore[arg-type]
        for task in (alloc.allocated_resources.tasks or {}).values()  # type: ignore[union-attr]
        for device in task.devices or []
    ]


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("gpu", True),
        ("nvidia/gpu", True),
        ("nvidia/gpu/T4", True),
        ("nvidia/gpu/V100", False),
        ("amd/gpu", False),
        ("fpga", False),
    ],
)
def test_a_device_is_asked_for_by_type_vendor_and_model(name: str, fits: bool) -> None:
    (group,) = device_groups([gpus("T4", 1)])
    assert accepts(DeviceRequest("task", name, 1, 1000), group) is fits


def test_amounts_are_compared_by_what_they_amount_to() -> None:
    assert amounts_hold(">=", "11264 MiB", "11 GiB")
    assert amounts_hold("<", "11 GB", "11 GiB")
    assert amounts_hold("=", "1000 MHz", "1 GHz")
    assert not amounts_hold(">", "11 GiB", "1 GHz")
    assert not amounts_hold("=", None, "1")
    assert amounts_hold("!=", "Turing", "Ampere")


def test_attributes_are_read_as_they_are_written() -> None:
    for text in ("11264 MiB", "1.5 GHz", "true", "Turing", "7", "12 apples"):
        assert attribute_text(parse_attribute(text)) == text


def test_whole_devices_are_given_once_and_the_rest_waits() -> None:
    world = World()
    world.add_nodes(node_with("n", gpus("T4", 3)))
    job = asking("job", 4, RequestedDevice(name="gpu", count=1))
    decision = world.deploy(job)  # type: ignore[arg-type]
    assert sorted(given(world, job)) == [["T4-0"], ["T4-1"], ["T4-2"]]
    assert decision.queued == {"group": 1}
    metric = decision.failed_tg_allocs["group"]
    assert metric.dimension_exhausted == {"devices: no devices match request": 1}


def test_a_node_without_such_devices_is_filtered() -> None:
    world = World()
    world.add_nodes(make_node("plain"), node_with("small", gpus("T4", 1)))
    job = asking("job", 1, RequestedDevice(name="gpu", count=2))
    decision = world.deploy(job)  # type: ignore[arg-type]
    assert decision.failed_tg_allocs["group"].constraint_filtered == {"missing devices": 2}


def test_shares_fill_the_device_that_is_in_use_before_another() -> None:
    world = World()
    world.add_nodes(node_with("n", gpus("T4", 2)))
    first = asking("first", 2, RequestedDevice(name="gpu", count=1, share=400))
    world.deploy(first)  # type: ignore[arg-type]
    assert given(world, first) == [["T4-0"], ["T4-0"]]
    second = asking("second", 1, RequestedDevice(name="gpu", count=1, share=300))
    world.deploy(second)  # type: ignore[arg-type]
    assert given(world, second) == [["T4-1"]]
    whole = asking("whole", 1, RequestedDevice(name="gpu", count=1))
    assert world.deploy(whole).queued == {"group": 1}  # type: ignore[arg-type]
    world.check()


def test_constraints_and_affinities_choose_the_model() -> None:
    world = World()
    world.add_nodes(node_with("n", gpus("T4", 2), gpus("V100", 2, memory=32)))
    large = RequestedDevice(
        name="gpu", count=1, constraints=[constraint("${device.attr.memory}", ">=", "20 GiB")]
    )
    liked = RequestedDevice(
        name="gpu",
        count=1,
        affinities=[Affinity(l_target="${device.model}", operand="=", r_target="V100", weight=50)],
    )
    for name, asked, wanted in (
        ("a", large, "V100-0"),
        ("b", liked, "V100-1"),
        ("c", liked, "T4-0"),
    ):
        job = asking(name, 1, asked)
        world.deploy(job)  # type: ignore[arg-type]
        assert given(world, job) == [[wanted]]


def test_an_earlier_request_leaves_to_a_later_one_what_only_that_can_use() -> None:
    groups = device_groups([gpus("T4", 1), gpus("V100", 1)])
    asked = (DeviceRequest("a", "gpu", 1, 1000), DeviceRequest("b", "nvidia/gpu/T4", 1, 1000))
    chosen = assign(asked, groups, {})
    assert chosen is not None
    assert [keys[0][3] for _, _, keys in chosen] == ["V100-0", "T4-0"]


def test_a_request_that_likes_nothing_leaves_to_a_later_one_what_that_likes() -> None:
    groups = device_groups([gpus("V100", 1), gpus("T4", 1)])
    likes = (Affinity(l_target="${device.model}", operand="=", r_target="V100", weight=50),)
    asked = (DeviceRequest("a", "gpu", 1, 300), DeviceRequest("b", "gpu", 1, 800, (), likes))
    chosen = assign(asked, groups, {})
    assert chosen is not None
    assert [keys[0][3] for _, _, keys in chosen] == ["T4-0", "V100-0"]
    # What it likes itself comes first.
    greedy = (DeviceRequest("a", "gpu", 1, 300, (), likes), asked[1])
    chosen = assign(greedy, groups, {})
    assert chosen is not None
    assert [keys[0][3] for _, _, keys in chosen] == ["V100-0", "T4-0"]


def test_the_plan_applier_refuses_a_device_that_is_taken_or_gone() -> None:
    world = World()
    world.add_nodes(node_with("n", gpus("T4", 1)))
    one, other = (asking(name, 1, RequestedDevice(name="gpu", count=1)) for name in ("a", "b"))
    world.register(one)  # type: ignore[arg-type]
    world.register(other)  # type: ignore[arg-type]
    first, late = (world.decide(world.evaluation(job)) for job in (one, other))  # type: ignore[arg-type]
    assert first.plan is not None
    assert late.plan is not None
    world.apply(first)
    assert plan_fits_node(world.snapshot, late.plan, "n") == (False, "device oversubscribed")
    node = node_with("n")
    world.change_node("n", node_resources=node.node_resources)
    assert plan_fits_node(world.snapshot, late.plan, "n") == (False, "device is not there")
    # What runs already is not in the way of others when its device is gone.
    assert allocs_fit(node, world.live(one)).ok  # type: ignore[arg-type]


PLACES = {0: 0, 1: 0, 2: 1, 3: 1, 4: 1}


@pytest.mark.parametrize(
    ("affinity", "count", "free", "wanted"),
    [
        ("none", 2, [1, 2, 3], [1, 2]),
        ("prefer", 2, [1, 2, 3], [2, 3]),
        ("prefer", 4, [0, 1, 2, 3], [0, 1, 2, 3]),
        ("require", 2, [0, 1, 2, 3, 4], [0, 1]),
        ("require", 3, [0, 1, 2, 3, 4], [2, 3, 4]),
        ("require", 4, [0, 1, 2, 3, 4], None),
    ],
)
def test_cores_come_from_one_numa_node_where_that_is_wanted(
    affinity: str, count: int, free: list[int], wanted: list[int] | None
) -> None:
    given_cores = cores.assign([CoreRequest("task", count, affinity)], free, PLACES)
    assert given_cores == (None if wanted is None else {"task": wanted})
