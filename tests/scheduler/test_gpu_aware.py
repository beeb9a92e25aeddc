"""The gpu-aware algorithm: what stays usable beside free devices decides."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling_world import World, make_group, make_job, make_node, make_task
from test_devices import gpus, node_with
from test_node_table import with_gpus

from nomadpy.models.job import Job
from nomadpy.models.node import Node
from nomadpy.models.resources import RequestedDevice, Resources
from nomadpy.scheduler.gpu_aware import Beside, PerDevice, score, stranded, usual
from nomadpy.scheduler.gpu_aware import Node as There

USUAL = PerDevice(1000.0, 1000.0)


def asking(name: str, cpu: int, count: int = 1, gpu: int = 1) -> Job:
    devices = [RequestedDevice(name="nvidia/gpu", count=gpu)] if gpu else None
    task = make_task(resources=Resources(cpu=cpu, memory_mb=100, devices=devices))
    return make_job(name, make_group(count=count, tasks=[task]), type="batch")


def world_of(*nodes: Node, algorithm: str = "gpu-aware") -> World:
    world = World()
    world.configure(scheduler_algorithm=algorithm)
    world.add_nodes(*nodes)
    return world


def homes(world: World, job: Job) -> list[str]:
    world.deploy(job)
    return [alloc.node_id for alloc in world.live(job)]


def test_devices_without_cpu_or_memory_beside_them_are_stranded() -> None:
    assert stranded(4, 4000, 4000, USUAL) == 0
    assert stranded(4, 1000, 4000, USUAL) == 3
    assert stranded(4, 4000, 500, USUAL) == 3.5
    assert stranded(0, 0, 0, USUAL) == 0


@pytest.mark.parametrize(
    ("held", "there", "expected"),
    [
        (Beside(), Beside(), (1, 1)),
        (Beside(), Beside(8000, 4096, 8000), (1024, 512)),
        (Beside(3000, 6000, 1500), Beside(8000, 4096, 8000), (2048, 4096)),
        (Beside(0, 0, 1000), Beside(), (1, 1)),
    ],
)
def test_what_is_usual_is_what_holders_of_devices_hold_and_at_first_what_nodes_have(
    held: Beside, there: Beside, expected: tuple[float, float]
) -> None:
    assert usual(held, there) == expected


@given(cpu=st.integers(1, 10**6), more=st.integers(0, 100))
def test_a_little_more_seldom_changes_what_is_usual(cpu: int, more: int) -> None:
    before = usual(Beside(cpu, cpu, 1000), Beside()).cpu
    after = usual(Beside(cpu + cpu * more // 1000, cpu, 1000), Beside()).cpu
    assert before <= after <= before * 1.2
    assert 0.9 <= before / cpu <= 1.1


@given(
    devices=st.integers(0, 16),
    total=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    parts=st.tuples(*[st.integers(0, 100)] * 5),
    beside=st.tuples(st.integers(1, 10**5), st.integers(1, 10**5)),
)
def test_a_score_lies_between_0_and_1(
    devices: int,
    total: tuple[int, int],
    parts: tuple[int, int, int, int, int],
    beside: tuple[int, int],
) -> None:
    free_cpu, free_memory = total[0] * parts[0] // 100, total[1] * parts[1] // 100
    free_devices = devices * parts[2] / 100
    node = There(*total, devices, free_cpu, free_memory, free_devices)
    found = score(
        node,
        free_cpu * parts[3] // 100,
        free_memory * parts[4] // 100,
        free_devices * parts[3] / 100,
        PerDevice(*beside),
    )
    assert 0 < found < 1


def test_a_task_that_wants_much_cpu_goes_where_its_devices_have_it() -> None:
    narrow = with_gpus(make_node("narrow", cpu=8000, memory=64000), 8)
    wide = with_gpus(make_node("wide", cpu=8000, memory=64000), 2)
    job = asking("hungry", 3500)
    assert homes(world_of(narrow, wide), job) == ["wide"]


def test_where_nothing_would_be_stranded_the_fuller_node_is_taken() -> None:
    nodes = [with_gpus(make_node(name, cpu=8000, memory=64000), 4) for name in ("a", "b")]
    world = world_of(*nodes)
    first = homes(world, asking("first", 1500))
    assert homes(world, asking("second", 1500)) == first


def test_a_task_without_devices_leaves_nodes_with_devices_alone_while_it_can() -> None:
    plain = make_node("plain", cpu=3000, memory=64000)
    equipped = with_gpus(make_node("equipped", cpu=2000, memory=2000), 1)
    world = world_of(plain, equipped)
    assert homes(world, asking("first", 1000, gpu=0)) == ["plain"]
    assert homes(world, asking("second", 1000, gpu=0)) == ["plain"]
    assert homes(world, asking("last", 1500, gpu=0)) == ["equipped"]


def test_what_runs_tells_what_is_usual() -> None:
    """So little cpu goes with a device here that a task without any may have the rest."""
    world = world_of(
        with_gpus(make_node("few", cpu=4000, memory=64000), 4),
        with_gpus(make_node("many", cpu=16000, memory=64000), 4),
    )
    world.deploy(asking("usual", 100, count=3))
    view = world.table
    assert view.catch_up(world.snapshot)
    per_device = view.view(asking("any", 1)).per_device()
    assert 85 < per_device.cpu < 115
    assert 85 < per_device.memory_mb < 115


def test_devices_that_are_not_healthy_are_no_reason_to_keep_cpu() -> None:
    sick = gpus("T4", 2)
    unhealthy = [msgspec.structs.replace(one, healthy=False) for one in sick.instances or []]
    world = world_of(
        node_with("sick", msgspec.structs.replace(sick, instances=unhealthy)),
        node_with("well", gpus("T4", 2)),
    )
    assert homes(world, asking("plain", 100, gpu=0)) == ["sick"]
