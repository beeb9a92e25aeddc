"""Sticky and migrating ephemeral disks: what an allocation leaves behind is with the one that follows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_world import FakeServers, Running, Script, World, allocation, task

from agent.agent import Agent
from agent.drivers.raw_exec import RawExecDriver, RawExecPolicy
from agent.task_dir import HostDirectories
from nomadpy.clock import SystemClock
from nomadpy.errors import NomadError, NotFoundError, UnreachableError
from nomadpy.models.allocation import Allocation
from nomadpy.models.envelope import Answer
from nomadpy.models.job import EphemeralDisk
from nomadpy.rpc.streams import LocalStream, local_pair

STICKY = EphemeralDisk(sticky=True, size_mb=10)
MIGRATE = EphemeralDisk(sticky=True, migrate=True, size_mb=10)


class Registered:
    """Keeps a node's handlers."""

    def __init__(self, agent: Agent) -> None:
        self.handlers: dict[str, Any] = {}
        agent.register_endpoints(self)

    def register(self, method: str, handler: Any) -> None:
        self.handlers[method] = handler


class Neighbours(FakeServers):
    """Servers that know a second node's allocations and hand its streams on. cut: after so many chunks it breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.others: dict[str, Allocation] = {}
        self.node: Any = None
        self.neighbour: Registered | None = None
        self.cut = -1

    async def call(self, method: str, request: Any, *, timeout_s: float | None = None) -> Any:
        if method != "Alloc.Get":
            return await super().call(method, request, timeout_s=timeout_s)
        if request.id not in self.others:
            raise NotFoundError("alloc not found")
        return Answer(body=msgspec.json.encode(self.others[request.id]))

    def open(self, method: str, request: Any) -> AbstractAsyncContextManager[LocalStream]:
        return self._open(method, request)

    @asynccontextmanager
    async def _open(self, method: str, request: Any) -> AsyncIterator[LocalStream]:
        if self.neighbour is None:
            raise UnreachableError("no path to the node")
        ours, theirs = local_pair()
        sent = 0
        send = theirs.send

        async def counting(chunk: bytes) -> None:
            nonlocal sent
            if sent == self.cut:
                raise UnreachableError("connection reset")
            sent += 1
            await send(chunk)

        theirs.send = counting  # type: ignore[method-assign]

        async def serve(handler: Any) -> None:
            try:
                await handler(None, request, theirs)
                theirs.end()
            except NomadError as error:
                theirs.end(error)

        serving = asyncio.create_task(serve(self.neighbour.handlers[method]))
        try:
            yield ours
        finally:
            ours.end()
            await serving


def node(folder: Path, *, servers: FakeServers | None = None) -> World:
    """A node with a disk and plain processes."""
    world = World()
    if servers is not None:
        world.servers = servers
    world.directories = HostDirectories(folder / "allocs", mount_secrets=False)  # type: ignore[assignment]
    world.driver = RawExecDriver(SystemClock(), RawExecPolicy(enabled=True))  # type: ignore[assignment]
    return world


def shell(script: str, *, number: int = 1, disk: EphemeralDisk = STICKY, **more: Any) -> Allocation:
    it = task(config={"command": "/bin/sh", "args": ["-c", script]})
    return allocation(it, number=number, kind="batch", group={"ephemeral_disk": disk}, **more)


WRITE = """
echo shared > ../alloc/data/db; mkdir local/deep; echo own > local/deep/cache
echo secret > secrets/key; echo log > ../alloc/logs/other
"""
READ = """
test "$(cat ../alloc/data/db)" = shared && test "$(cat local/deep/cache)" = own &&
! test -e secrets/key && ! test -e ../alloc/logs/other
"""
NOTHING = "! test -e ../alloc/data/db && ! test -e local/deep"


def lines(alloc: Allocation) -> list[str]:
    assert alloc.task_states is not None
    return [event.display_message for event in alloc.task_states["task"].events or []]


# -- on one node --------------------------------------------------------------------------------------------


@pytest.mark.real_time
@pytest.mark.parametrize("disk", [STICKY, EphemeralDisk(migrate=True, size_mb=10)])
async def test_the_next_allocation_on_the_node_has_the_data_and_nothing_else(
    tmp_path: Path, disk: EphemeralDisk
) -> None:
    world = node(tmp_path)
    first = shell(WRITE, disk=disk)
    second = shell(READ, number=2, disk=disk, previous_allocation=first.id)
    plain = shell(NOTHING, number=3, disk=EphemeralDisk(), previous_allocation=second.id)
    async with world.running():
        for alloc in (first, second, plain):
            world.servers.want(alloc)
            await world.servers.until(lambda a=alloc: world.servers.status(a.id) == "complete")


@pytest.mark.real_time
async def test_data_moves_only_when_the_one_before_has_ended(tmp_path: Path) -> None:
    world = node(tmp_path)
    ending = (
        f"{WRITE} trap 'sleep 0.5; echo last >> ../alloc/data/db; exit 0' INT; sleep 600 & wait"
    )
    first = shell(ending)
    second = shell("grep -q last ../alloc/data/db", number=2, previous_allocation=first.id)
    async with world.running() as agent:
        world.servers.want(first)
        db = Path(agent._directories.root(first.id), "alloc/data/db")
        await world.servers.until(db.exists)
        world.servers.want(
            msgspec.structs.replace(first, desired_status="stop", alloc_modify_index=9)
        )
        world.servers.want(second)
        await world.servers.until(lambda: world.servers.status(second.id) == "complete")


@pytest.mark.real_time
async def test_data_stays_with_an_allocation_that_runs_on(tmp_path: Path) -> None:
    world = node(tmp_path)
    first = shell(f"{WRITE} sleep 600")
    second = shell(NOTHING, number=2, previous_allocation=first.id)
    async with world.running() as agent:
        world.servers.want(first)
        cache = Path(agent._directories.root(first.id), "task/local/deep/cache")
        await world.servers.until(cache.exists)
        world.servers.want(second)
        await world.servers.until(lambda: world.servers.status(second.id) == "complete")
        assert cache.exists()
        await agent.sync.remove(first.id)


async def test_one_that_waited_for_its_predecessor_waits_on_after_a_restart_of_the_agent() -> None:
    world = World()
    world.driver.script("old", Script(stop_s=40.0))
    old = allocation(task("old", kill_timeout=60_000_000_000))
    new = allocation(task("new"), number=2, previous_allocation=old.id)
    world.servers.want(old)
    async with world.running(max_kill_timeout_s=100.0):
        await world.servers.until(lambda: world.driver.live() == ["old"])
        world.servers.want(
            msgspec.structs.replace(old, desired_status="stop", alloc_modify_index=9)
        )
        world.servers.want(new)
        await world.servers.until(lambda: new.id in world.servers.reported)
        assert world.driver.live() == ["old"]
    async with world.running(max_kill_timeout_s=100.0):
        await world.servers.until(lambda: "new" in world.driver.live(), within_s=300)
        assert world.driver.live() == ["new"]


# -- from node to node --------------------------------------------------------------------------------------


class Two:
    """Two nodes: `old` has an ended allocation with data, `new` is to follow it."""

    def __init__(self, folder: Path) -> None:
        self.servers = Neighbours()
        self.old = node(folder / "old")
        self.new = node(folder / "new", servers=self.servers)
        self.first = shell(WRITE, disk=MIGRATE)

    @asynccontextmanager
    async def running(self, script: str = WRITE) -> AsyncIterator[Agent]:
        self.first = shell(script, disk=MIGRATE, node_id="old-node")
        async with Running(self.old.agent()) as agent:
            self.servers.neighbour = Registered(agent)
            self.old.servers.want(self.first)
            await self.old.servers.until(
                lambda: self.old.servers.status(self.first.id) in ("complete", "running")
            )
            self.servers.others[self.first.id] = msgspec.structs.replace(
                self.first, client_status=self.old.servers.status(self.first.id)
            )
            async with Running(self.new.agent()):
                yield agent

    async def follow(self, script: str, disk: EphemeralDisk = MIGRATE) -> Allocation:
        second = shell(
            script, number=2, disk=disk, previous_allocation=self.first.id, node_id="new-node"
        )
        self.servers.want(second)
        await self.servers.until(
            lambda: self.servers.status(second.id) in ("complete", "failed"), within_s=60
        )
        reported = self.servers.reported[second.id]
        assert reported.client_status == "complete", lines(reported)
        return reported


@pytest.mark.real_time
async def test_the_data_comes_from_the_other_node(tmp_path: Path) -> None:
    two = Two(tmp_path)
    async with two.running():
        reported = await two.follow(READ)
    assert any("Took over 11 bytes of ephemeral disk" in line for line in lines(reported))


@pytest.mark.real_time
async def test_a_disk_that_is_sticky_only_stays_where_it_is(tmp_path: Path) -> None:
    two = Two(tmp_path)
    async with two.running():
        await two.follow(NOTHING, STICKY)


@pytest.mark.real_time
async def test_it_waits_until_the_one_before_has_ended_on_its_node(tmp_path: Path) -> None:
    two = Two(tmp_path)
    async with two.running(f"{WRITE} trap 'echo last > local/last; exit 0' INT; sleep 600 & wait"):
        ending = msgspec.structs.replace(two.first, desired_status="stop", client_status="running")
        two.servers.others[two.first.id] = ending
        async with asyncio.TaskGroup() as group:
            following = group.create_task(two.follow("test -e local/last"))
            second_id = two.first.id.replace("00000001", "00000002")
            await two.servers.until(
                lambda: (
                    second_id in two.servers.reported
                    and any(
                        "Waiting for" in line for line in lines(two.servers.reported[second_id])
                    )
                )
            )
            two.old.servers.want(
                msgspec.structs.replace(two.first, desired_status="stop", alloc_modify_index=9)
            )
            await two.old.servers.until(lambda: two.old.servers.status(two.first.id) == "complete")
            two.servers.others[two.first.id] = msgspec.structs.replace(
                ending, client_status="complete"
            )
            await following


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("trouble", "complaint"),
    [
        ("cut", "connection reset"),
        ("unreachable", "no path to the node"),
        ("lost", "its node does not answer"),
        ("collected", "Unknown allocation"),
        ("forgotten", "alloc not found"),
        ("large", "more than 0 bytes"),
        ("running", "has not ended"),
    ],
)
async def test_without_the_data_the_task_starts_and_an_event_says_why(
    tmp_path: Path, trouble: str, complaint: str
) -> None:
    two = Two(tmp_path)
    script = f"{WRITE} sleep 600" if trouble == "running" else WRITE
    async with two.running(script) as old:
        first_id = two.first.id
        known = two.servers.others[first_id]
        if trouble == "cut":
            two.servers.cut = 3
        elif trouble == "unreachable":
            two.servers.neighbour = None
        elif trouble == "lost":
            two.servers.others[first_id] = msgspec.structs.replace(known, client_status="lost")
        elif trouble == "collected":
            await old.sync.remove(first_id)
        elif trouble == "forgotten":
            del two.servers.others[first_id]
        elif trouble == "running":
            two.servers.others[first_id] = msgspec.structs.replace(known, client_status="complete")
        disk = EphemeralDisk(sticky=True, migrate=True) if trouble == "large" else MIGRATE
        reported = await two.follow(NOTHING, disk)
        if trouble == "running":
            await old.sync.remove(first_id)
    assert any("not taken over" in line and complaint in line for line in lines(reported)), lines(
        reported
    )
    root = Path(two.new.directories.root(reported.id))
    assert not (root / ".migrating").exists()
