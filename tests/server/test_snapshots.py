"""An operator's snapshot: what it holds, what is refused, and that a restore replaces the state of every server at one index."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import msgspec
import pytest
from server_world import World, job, running

from nomadpy.errors import InvalidRequestError
from nomadpy.fsm.formats import HIGHEST
from nomadpy.models.calls import Read, Write
from nomadpy.models.envelope import QueryOptions
from nomadpy.state import archive, persist


async def save(world: World, *, stale: bool = False) -> bytes:
    request = Read(options=QueryOptions(allow_stale=stale))
    async with world.leader.server.open("Operator.SnapshotSave", request) as stream:
        head = msgspec.json.decode(await stream.receive() or b"")
        data = b"".join([chunk async for chunk in _chunks(stream)])
    assert len(data) == head["Size"]
    return data


async def _chunks(stream: object) -> AsyncIterator[bytes]:
    while (chunk := await stream.receive()) is not None:  # type: ignore[attr-defined]
        yield chunk


async def restore(world: World, data: bytes, *, follower: bool = False) -> None:
    process = world.followers[0] if follower else world.leader
    async with process.server.open("Operator.SnapshotRestore", Write()) as stream:
        for start in range(0, len(data), 50_000):
            await stream.send(data[start : start + 50_000])
        await stream.finish()
        assert await stream.receive() is None


async def test_a_restore_brings_the_saved_state_back_on_every_server() -> None:
    async with running(3) as world:
        await world.register(job("kept"))
        await world.settled()
        data = await save(world)
        saved = archive.read(io.BytesIO(data))
        assert saved.counts["jobs"] == 1
        await world.register(job("lost"))
        await world.settled()
        before = world.state.index
        await restore(world, data, follower=True)
        assert [j.id for j in world.state.jobs(None)] == ["kept"]
        assert world.state.index > before
        assert world.state.table_index("jobs") > before
        await world.caught_up()
        sums = {s.process.store.checksum() for s in world.servers if s.process is not None}
        assert len(sums) == 1
        await world.register(job("later"))
        assert {j.id for j in world.state.jobs(None)} == {"kept", "later"}


async def test_the_leaders_duties_begin_anew_with_the_restored_state() -> None:
    async with running(1) as world:
        data = await save(world)
        await world.node()
        await restore(world, data)
        node = await world.node()
        await world.register(job("web"))
        await world.until(lambda: len(node.wanted()) == 1, "the placement")


async def test_a_state_goes_into_another_cluster_whose_log_is_shorter() -> None:
    async with running(3) as world:
        for number in range(60):
            await world.register(job("web", Meta={"n": str(number)}))
        await world.settled()
        data = await save(world)
        old = world.state.index
    async with running(3) as world:
        assert world.state.index < old
        await restore(world, data)
        assert world.state.index > old
        found = world.state.job("default", "web")
        assert found is not None
        assert found.version == 59


async def test_a_restore_survives_the_loss_of_a_server_and_a_restart_of_all() -> None:
    async with running(3) as world:
        await world.register(job("kept"))
        data = await save(world)
        await world.register(job("lost"))
        late = next(s for s in world.servers if s is not world.leading)
        await late.crash(power=True)
        await restore(world, data)
        await late.start()
        for server in world.servers:
            await server.crash(power=True)
        for server in world.servers:
            await server.start()
        await world.has_leader()
        await world.caught_up()
        for server in world.servers:
            assert server.process is not None
            assert [j.id for j in server.process.store.snapshot().jobs(None)] == ["kept"]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "not gzip"])
async def test_a_damaged_snapshot_changes_nothing(damage: str) -> None:
    async with running(1) as world:
        await world.register(job("web"))
        await world.settled()
        data = await save(world)
        middle = len(data) // 2
        bad = {
            "empty": b"",
            "cut": data[:middle],
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "not gzip": b"hello" * 100,
        }[damage]
        index = world.state.index
        with pytest.raises(InvalidRequestError):
            await restore(world, bad)
        assert world.state.index == index


async def test_a_second_restore_overtakes_the_first() -> None:
    async with running(1) as world:
        await world.register(job("web"))
        data = await save(world)
        results = await asyncio.gather(
            restore(world, data), restore(world, data), return_exceptions=True
        )
        assert [r for r in results if r is None]
        assert world.state.job("default", "web") is not None


async def test_a_redacted_snapshot_is_not_restored() -> None:
    async with running(1) as world:
        data = await save(world)
        contents = archive.read(io.BytesIO(data))
        redacted = io.BytesIO()
        bare = archive.without_keys(archive.state_of(contents))
        archive.write(redacted, contents.meta, persist.write(bare))
        await world.register(job("later"))
        with pytest.raises(InvalidRequestError, match="was redacted"):
            await restore(world, redacted.getvalue())
        assert [j.id for j in world.state.jobs(None)] == ["later"]


async def test_a_snapshot_of_a_newer_log_format_waits_for_the_upgrade_of_all() -> None:
    async with running(3) as world:
        data = await save(world)
        assert archive.read(io.BytesIO(data)).log_format == HIGHEST
        for server in world.servers:
            assert server.process is not None
            server.process.server.core.common_format = lambda: 1
        with pytest.raises(InvalidRequestError, match="upgrade all servers first"):
            await restore(world, data)
