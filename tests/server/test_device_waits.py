"""Who waits for a device is woken when one becomes free, healthy or known, and not by other news of nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from server_world import FakeNode, World, job, running

from nomadpy.models.node import NodeDevice, NodeDeviceResource


def gpus(**healthy: bool) -> list[NodeDeviceResource]:
    return [
        NodeDeviceResource(
            vendor="nvidia",
            type="gpu",
            name="T4",
            instances=[NodeDevice(id=name, healthy=good) for name, good in healthy.items()],
        )
    ]


async def tell(node: FakeNode, devices: list[NodeDeviceResource] | None) -> None:
    """The node registers with these devices."""
    resources = msgspec.structs.replace(node.node.node_resources, devices=devices)
    await node.register(node_resources=resources)


def wanting(name: str, count: int = 1) -> dict[str, Any]:
    made = job(name)
    asked = [{"Name": "nvidia/gpu", "Count": count}]
    made["TaskGroups"][0]["Tasks"][0]["Resources"]["Devices"] = asked
    return made


async def waits(world: World, name: str, count: int = 1) -> None:
    answer = await world.register(wanting(name, count))
    assert (await world.evaluated(answer["EvalID"])).blocked_eval
    await world.settled()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (gpus(a=False), gpus(a=True)),
        (gpus(a=True), gpus(a=True, b=True)),
        (gpus(a=True, b=False), gpus(a=False, b=True, c=True)),
        (None, gpus(a=True, b=True)),
    ],
)
async def test_a_device_that_becomes_healthy_or_known_wakes_who_waits(
    before: list[NodeDeviceResource] | None, after: list[NodeDeviceResource]
) -> None:
    async with running(1) as world:
        node = await world.node()
        await tell(node, before)
        count = len(after[0].instances or []) - sum(
            not one.healthy for one in after[0].instances or []
        )
        await waits(world, "patient", count)
        await tell(node, after)
        await world.until(node.wanted, "the placement")


async def test_a_second_node_of_the_class_with_more_devices_wakes_who_waits() -> None:
    async with running(1) as world:
        await tell(await world.node("n0"), gpus(a=True))
        await waits(world, "patient", 2)
        other = await world.node("n1")
        await tell(other, gpus(b=True, c=True))
        await world.until(other.wanted, "the placement")


async def test_a_device_that_becomes_sick_wakes_nobody() -> None:
    async with running(1) as world:
        node = await world.node()
        await tell(node, gpus(a=True, b=True))
        await waits(world, "patient", 3)
        known = len(list(world.state.evals()))
        await tell(node, gpus(a=True, b=False))
        await asyncio.sleep(5)
        assert len(list(world.state.evals())) == known


async def test_a_freed_device_wakes_who_waits_for_it() -> None:
    async with running(1) as world:
        node = await world.node()
        await tell(node, gpus(a=True))
        first = await world.register(wanting("first"))
        await world.evaluated(first["EvalID"])
        (alloc,) = node.wanted()
        await waits(world, "second")
        await node.report(alloc, status="complete")
        await world.until(
            lambda: [one for one in node.wanted() if one.job_id == "second"], "the placement"
        )
