"""What tasks get of the devices that they were given, through a whole agent with a scripted driver."""

from __future__ import annotations

import json

import msgspec
from agent_world import LoopClock, Script, World, allocation, kinds, task
from device_world import Scripted, given

from agent.devices.base import DeviceError
from agent.devices.manager import Devices
from nomadpy.models.allocation import Allocation
from nomadpy.models.calls import NodeRead
from nomadpy.models.node import NodeDevice
from nomadpy.models.resources import AllocatedDeviceResource


def with_devices(alloc: Allocation, *devices: AllocatedDeviceResource) -> Allocation:
    """The allocation, its first task with devices."""
    resources = alloc.allocated_resources
    assert resources is not None
    tasks = dict(resources.tasks or {})
    name = next(iter(tasks))
    tasks[name] = msgspec.structs.replace(tasks[name], devices=list(devices))
    return msgspec.structs.replace(
        alloc, allocated_resources=msgspec.structs.replace(resources, tasks=tasks)
    )


async def test_a_task_starts_with_the_variables_and_nodes_of_its_devices() -> None:
    world, plugin = World(), Scripted("X", "a", "b")
    # A job may not say that others' devices are its own.
    own = task("task", env={"OF_X": "all", "COPY": "${NOMAD_DEVICE_ACME_GPU_T4}"})
    alloc = with_devices(allocation(own, task("other")), given("b"))
    async with world.running(devices=Devices([plugin], LoopClock())):
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
    config, other = sorted(world.driver.configs, key=lambda one: one.task != "task")
    assert config.env["OF_X"] == "1"
    assert config.env["NOMAD_DEVICE_ACME_GPU_T4"] == config.env["COPY"] == "b"
    assert [one.host_path for one in config.devices] == ["/dev/X"]
    assert config.device_env == {"NOMAD_DEVICE_ACME_GPU_T4": "b", "OF_X": "1"}
    assert (other.devices, other.device_env) == ([], {})
    assert "OF_X" not in other.env


async def test_devices_that_cannot_be_reserved_fail_the_start_and_the_policy_tries_again() -> None:
    world, plugin = World(), Scripted("X", "a")
    plugin.refusal = DeviceError("the firmware sleeps")
    alloc = with_devices(allocation(task(attempts=5, delay_s=2.0)), given("a"))
    async with world.running(devices=Devices([plugin], LoopClock())):
        world.servers.want(alloc)
        await world.servers.until(lambda: len(plugin.reserved) == 2)
        plugin.refusal = None
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
    assert world.driver.started == ["task"]
    seen = world.servers.reported[alloc.id]
    assert kinds(seen)[:3] == ["Received", "Task Setup", "Task hook failed"]
    events = (seen.task_states or {})["task"].events or []
    assert events[2].display_message == "devices cannot be reserved: the firmware sleeps"


async def test_a_refusal_for_good_fails_the_allocation_at_once() -> None:
    world, plugin = World(), Scripted("X", "a")
    plugin.refusal = DeviceError("never", recoverable=False)
    alloc = with_devices(allocation(task(attempts=5)), given("a"))
    async with world.running(devices=Devices([plugin], LoopClock())):
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
    assert "Setup Failure" in kinds(world.servers.reported[alloc.id])
    assert world.driver.started == []


async def test_a_new_agent_takes_the_task_up_without_asking_again() -> None:
    world, plugin = World(), Scripted("X", "a")
    alloc = with_devices(allocation(), given("a"))
    async with world.running(devices=Devices([plugin], LoopClock())):
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
    assert plugin.reserved == [["a"]]
    again = Scripted("X", "a")
    async with world.running(devices=Devices([again], LoopClock())) as agent:
        await world.servers.until(lambda: agent.sync.runners and agent.sync.restored.is_set())
        assert agent.sync.runner(alloc.id).tasks["task"].is_running
    assert again.reserved == []
    assert world.driver.started == ["task"]


async def test_a_restart_asks_again() -> None:
    world, plugin = World(), Scripted("X", "a")
    world.driver.script("task", Script(runs_s=1.0, exit_code=1), Script())
    alloc = with_devices(allocation(task(attempts=2)), given("a"))
    async with world.running(devices=Devices([plugin], LoopClock())):
        world.servers.want(alloc)
        await world.servers.until(lambda: world.driver.started == ["task", "task"])
    assert plugin.reserved == [["a"], ["a"]]


async def test_the_node_tells_its_devices_at_first_and_every_change_at_once() -> None:
    world, plugin = World(), Scripted("X", "a")
    async with world.running(devices=Devices([plugin], LoopClock())):
        await world.servers.until(lambda: len(world.servers.registrations) == 1)
        (first,) = world.servers.registrations
        assert first.node_resources is not None
        assert first.node_resources.devices == plugin.found
        (group,) = plugin.found
        sick = NodeDevice(id="a", healthy=False, health_description="hot")
        plugin.found = [msgspec.structs.replace(group, instances=[sick])]
        await world.servers.until(
            lambda: len(world.servers.registrations) == 2, within_s=plugin.interval_s + 2
        )
    second = world.servers.registrations[1]
    assert second.node_resources is not None
    assert second.node_resources.devices == plugin.found


async def test_figures_of_devices_are_the_nodes_and_the_tasks_that_have_them() -> None:
    world, plugin = World(), Scripted("X", "a", "b")
    alloc = with_devices(allocation(task(), task("other")), given("b"))
    async with world.running(devices=Devices([plugin], LoopClock())) as agent:
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        endpoints = agent._endpoints
        host = json.loads((await endpoints.stats(None, NodeRead())).body)
        answer = await endpoints.alloc_stats(None, NodeRead(alloc_id=alloc.id))
    assert list(host["DeviceStats"][0]["InstanceStats"]) == ["a", "b"]
    found = json.loads(answer.body)
    assert list(found["ResourceUsage"]["DeviceStats"][0]["InstanceStats"]) == ["b"]
    tasks = {name: one["ResourceUsage"]["DeviceStats"] for name, one in found["Tasks"].items()}
    assert list(tasks["task"][0]["InstanceStats"]) == ["b"]
    assert tasks["other"] is None
