"""A whole agent and volumes: what it tells servers, and tasks that mount what is there or is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_world import World, allocation, task

from agent.drivers.raw_exec import RawExecDriver, RawExecPolicy
from agent.local_state import SQLiteState
from agent.task_dir import HostDirectories
from nomadpy.clock import SystemClock
from nomadpy.models import calls
from nomadpy.models.allocation import Allocation
from nomadpy.models.job import VolumeRequest
from nomadpy.models.node import HostVolumeInfo
from nomadpy.models.task_blocks import VolumeMount

ONE = "11111111-2222-4333-8444-555555555555"


def mounting(script: str = "", *, source: str = "data", **more: Any) -> Allocation:
    """An allocation of one task with the volume at `data` of its directory."""
    it = task(volume_mounts=[VolumeMount(volume="v", destination="data")])
    if script:
        config = {"command": "/bin/sh", "args": ["-c", script]}
        it = msgspec.structs.replace(it, config=config)
    wanted = VolumeRequest(name="v", type="host", source=source)
    return allocation(it, group={"volumes": {"v": wanted}}, **more)


def create(volume_id: str = ONE, name: str = "data") -> calls.ClientHostVolumeCreateRequest:
    return calls.ClientHostVolumeCreateRequest(
        id=volume_id, name=name, node_id="n", plugin_id="mkdir"
    )


def delete() -> calls.ClientHostVolumeDeleteRequest:
    return calls.ClientHostVolumeDeleteRequest(id=ONE, name="data", node_id="n", plugin_id="mkdir")


def said(alloc: Allocation) -> list[str]:
    assert alloc.task_states is not None
    return [event.display_message for event in alloc.task_states["task"].events or []]


async def test_a_task_whose_volume_is_not_there_fails_with_an_event_that_names_it() -> None:
    world = World()
    alloc = mounting(source="gone")
    world.servers.want(alloc)
    async with world.running():
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
    assert any(
        "volume 'gone' is not on this node" in line
        for line in said(world.servers.reported[alloc.id])
    )
    assert world.driver.started == []


@pytest.mark.real_time
async def test_a_directory_that_vanished_fails_the_task_with_an_event_that_names_it(
    tmp_path: Path,
) -> None:
    world = World()
    alloc = mounting()
    world.servers.want(alloc)
    static = {"data": HostVolumeInfo(name="data", path=f"{tmp_path}/none")}
    async with world.running(host_volumes=static):
        await world.servers.until(lambda: world.servers.status(alloc.id) == "failed")
    lines = said(world.servers.reported[alloc.id])
    assert any(f"volume 'data': {tmp_path}/none is not there" in line for line in lines)


@pytest.mark.real_time
async def test_servers_hear_at_once_of_volumes_that_come_and_go(tmp_path: Path) -> None:
    world = World()
    options = {
        "host_volumes_dir": str(tmp_path / "volumes"),
        "host_volume_plugin_dir": str(tmp_path / "plugins"),
        "host_volumes": {"fixed": HostVolumeInfo(name="fixed", path="/srv")},
    }
    async with world.running(**options) as agent:
        await world.servers.until(lambda: len(world.servers.registrations) >= 1)
        node = world.servers.registrations[0]
        assert (node.attributes or {})["plugins.host_volume.mkdir.version"] == "0.0.1"
        assert (node.attributes or {})["kernel.name"] == "linux"
        assert sorted(node.host_volumes or {}) == ["fixed"]
        await agent.volumes.create(None, create())
        path = f"{tmp_path}/volumes/{ONE}"
        expected = HostVolumeInfo(name="data", path=path, id=ONE)
        await world.servers.until(lambda: _told(world).get("data") == expected, within_s=30)
        await agent.volumes.delete(None, delete())
        await world.servers.until(lambda: "data" not in _told(world), within_s=30)
        await agent.volumes.create(None, create())
    # The next agent of the node tells of it with its first word.
    first = len(world.servers.registrations)
    async with world.running(**options):
        await world.servers.until(lambda: len(world.servers.registrations) > first, within_s=30)
        assert (world.servers.registrations[first].host_volumes or {})["data"] == expected


@pytest.mark.real_time
async def test_processes_share_a_volume_over_a_restart_of_the_agent(tmp_path: Path) -> None:
    world = World()
    options = {"host_volumes_dir": str(tmp_path / "volumes")}

    def next_agent() -> Any:
        world.state = SQLiteState(tmp_path / "client.db")  # type: ignore[assignment]
        world.directories = HostDirectories(tmp_path / "allocs", mount_secrets=False)  # type: ignore[assignment]
        world.driver = RawExecDriver(SystemClock(), RawExecPolicy(enabled=True))  # type: ignore[assignment]
        return world.running(**options)

    writer = mounting("echo rows > data/db", kind="batch")
    reader = mounting("test $(cat data/db) = rows && echo ok > data/seen", number=2, kind="batch")
    async with next_agent() as agent:
        await world.servers.until(lambda: world.servers.registrations, within_s=30)
        await agent.volumes.create(None, create())
        world.servers.want(writer)
        await world.servers.until(lambda: world.servers.status(writer.id) == "complete")
    async with next_agent() as agent:
        world.servers.want(reader)
        await world.servers.until(lambda: world.servers.status(reader.id) == "complete")
        volume = tmp_path / "volumes" / ONE
        assert (volume / "seen").read_text() == "ok\n"
        # Removing the allocations takes their links, not what they lead to.
        await agent.sync.remove(writer.id)
        await agent.sync.remove(reader.id)
        assert (volume / "db").read_text() == "rows\n"


@pytest.mark.real_time
async def test_a_volume_of_a_running_task_is_not_deleted(tmp_path: Path) -> None:
    world = World()
    async with world.running(host_volumes_dir=str(tmp_path / "volumes")) as agent:
        await world.servers.until(lambda: world.servers.registrations, within_s=30)
        await agent.volumes.create(None, create())
        alloc = mounting()
        world.servers.want(alloc)
        await world.servers.until(lambda: world.servers.status(alloc.id) == "running")
        (volume,) = world.driver.configs[-1].volumes
        assert (volume.name, volume.path) == ("data", f"{tmp_path}/volumes/{ONE}")
        with pytest.raises(Exception, match=f"in use by allocation {alloc.id}"):
            await agent.volumes.delete(None, delete())
        world.servers.want(msgspec.structs.replace(alloc, desired_status="stop"))
        await world.servers.until(lambda: world.servers.status(alloc.id) == "complete")
        await agent.volumes.delete(None, delete())
        assert not Path(volume.path).exists()


def _told(world: World) -> dict[str, HostVolumeInfo]:
    return (
        (world.servers.registrations[-1].host_volumes or {}) if world.servers.registrations else {}
    )
