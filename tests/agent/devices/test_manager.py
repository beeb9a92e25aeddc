"""What the node makes of several plugins."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from agent_world import LoopClock
from device_world import Scripted, given

from agent.devices.base import DeviceError, Reservation
from agent.devices.manager import BROKEN_PAUSE_S, FIRST_LOOK_S, STATS_AGE_S, Devices
from nomadpy.models.node import (
    NodeProcessors,
    NodeResources,
    NodeTopology,
)


@contextlib.asynccontextmanager
async def running(devices: Devices) -> AsyncIterator[list[int]]:
    """Yields a list that grows with every change."""
    changes: list[int] = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(devices.run(lambda: changes.append(1)))
        await devices.ready()
        yield changes
        task.cancel()


def health(devices: Devices) -> dict[str, bool]:
    groups = devices.groups() or []
    return {one.id: one.healthy for group in groups for one in group.instances or ()}


async def test_a_device_that_two_plugins_find_is_the_first_ones() -> None:
    first, second = Scripted("first", "a", "b"), Scripted("second", "b", "c")
    devices = Devices([first, second], LoopClock())
    async with running(devices) as changes:
        assert sorted(health(devices)) == ["a", "b", "c"]
        assert len(changes) == 2
        await devices.reserve([given("b", "c"), given("a")])
    assert (first.reserved, second.reserved) == ([["b", "a"]], [["c"]])


async def test_a_task_gets_what_all_its_plugins_say_and_the_generic_variables() -> None:
    devices = Devices([Scripted("X", "a"), Scripted("Y", "b")], LoopClock())
    async with running(devices):
        found = await devices.reserve([given("a", "b")])
        assert await devices.reserve(None) == Reservation()
        assert await devices.reserve([]) == Reservation()
    assert found.env == {"NOMAD_DEVICE_ACME_GPU_T4": "a,b", "OF_X": "1", "OF_Y": "1"}
    assert [one.host_path for one in found.devices] == ["/dev/X", "/dev/Y"]


async def test_a_device_that_is_not_here_cannot_be_reserved() -> None:
    devices = Devices([Scripted("X", "a")], LoopClock())
    async with running(devices):
        with pytest.raises(DeviceError, match="acme/gpu/T4 'z' is not on this node") as caught:
            await devices.reserve([given("a", "z")])
    assert caught.value.recoverable
    with pytest.raises(DeviceError):
        await Devices().reserve([given("a")])


@pytest.mark.parametrize("error", [DeviceError("the bus is gone"), ZeroDivisionError("bug")])
async def test_devices_of_a_plugin_that_fails_are_known_and_sick_until_it_works_again(
    error: Exception,
) -> None:
    plugin, other = Scripted("X", "a"), Scripted("Y", "b")
    devices = Devices([plugin, other], LoopClock())
    async with running(devices) as changes:
        plugin.error = error
        await asyncio.sleep(plugin.interval_s + 1)
        assert health(devices) == {"a": False, "b": True}
        (sick, _) = devices.groups() or []
        assert str(error) in (sick.instances or [])[0].health_description
        plugin.error = None
        await asyncio.sleep(plugin.interval_s + 1)
        assert health(devices) == {"a": True, "b": True}
        assert len(changes) == 4
        looks = plugin.looks
        await asyncio.sleep(plugin.interval_s * 3)
        assert plugin.looks > looks
        assert len(changes) == 4


class Lively(Scripted):
    """A plugin with a life of its own, which breaks at first."""

    lives = 0

    async def run(self, changed: Callable[[], None]) -> None:
        self.lives += 1
        if self.lives == 1:
            raise ZeroDivisionError
        changed()
        await asyncio.Event().wait()


async def test_a_plugin_whose_life_breaks_gets_another_and_the_node_goes_on() -> None:
    lively = Lively("X", "a")
    devices = Devices([lively, Scripted("Y", "b")], LoopClock())
    async with running(devices):
        assert health(devices) == {"a": True, "b": True}
        await asyncio.sleep(BROKEN_PAUSE_S + 1)
        assert lively.lives == 2


async def test_a_slow_plugin_keeps_the_node_back_for_a_while_only() -> None:
    slow = Scripted("slow", "a")
    slow.slow_s = FIRST_LOOK_S + 5
    devices = Devices([slow, Scripted("quick", "b")], LoopClock())
    before = asyncio.get_running_loop().time()
    async with running(devices):
        assert asyncio.get_running_loop().time() - before == pytest.approx(FIRST_LOOK_S)
        assert health(devices) == {"b": True}
        await asyncio.sleep(6)
        assert health(devices) == {"a": True, "b": True}


async def test_a_task_that_starts_with_the_agent_waits_for_the_first_look() -> None:
    slow = Scripted("slow", "a")
    slow.slow_s = 3.0
    devices = Devices([slow], LoopClock())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(devices.run(lambda: None))
        found = await devices.reserve([given("a")])
        task.cancel()
    assert found.env["OF_slow"] == "1"


async def test_figures_are_shared_for_a_moment_and_a_task_has_those_of_its_devices() -> None:
    plugin, broken = Scripted("X", "a", "b"), Scripted("Y", "c")
    devices = Devices([plugin, broken], LoopClock())
    async with running(devices):
        broken.error = DeviceError("no figures")
        assert [sorted(one.instance_stats or {}) for one in await devices.stats()] == [["a", "b"]]
        (mine,) = await devices.task_stats([given("b", "c")]) or []
        assert list(mine.instance_stats or {}) == ["b"]
        assert plugin.measured == 1
        await asyncio.sleep(STATS_AGE_S)
        assert await devices.task_stats([given("c")]) is None
        assert plugin.measured == 2
        assert await devices.task_stats(None) is None
    assert await Devices().stats() == []


async def test_the_operator_knows_better_than_the_kernel_where_a_bus_is() -> None:
    have = NodeResources(
        processors=NodeProcessors(
            topology=NodeTopology(bus_associativity={"0000:01:00.0": 0, "0000:02:00.0": 0})
        )
    )
    devices = Devices([Scripted("X", "a")], LoopClock(), numa_nodes={"0000:02:00.0": 1})
    async with running(devices):
        found = devices.on_node(have)
    assert found is not None
    assert found.processors.topology is not None
    assert found.processors.topology.bus_associativity == {"0000:01:00.0": 0, "0000:02:00.0": 1}
    assert found.devices == devices.groups()
    assert Devices().on_node(have) is have
    assert devices.on_node(None) is None
