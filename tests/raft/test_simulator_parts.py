"""The simulator's loop, network and disk do what they say, or no simulation means anything."""

from __future__ import annotations

import asyncio
import errno

import pytest

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import PermissionDeniedError, UnreachableError
from nomadpy.rpc.network import ByteStream
from nomadpy.simulator.disk import MemoryFiles
from nomadpy.simulator.loop import START_NS, DeadlockError, SimClock, run
from nomadpy.simulator.network import SimNetwork


async def echo(stream: ByteStream) -> None:
    while data := await stream.read(1000):
        stream.write(data)


async def read_all(stream: ByteStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.read(100)
        assert piece, "the stream ended early"
        data += piece
    return data


async def pair(net: SimNetwork) -> ByteStream:
    """A stream from host a to an echo on host b."""
    await net.host("b").listen("b:1", echo)
    return await net.host("a").dial("b:1", role="server")


def test_an_hour_passes_in_no_time_and_waiting_for_nothing_is_an_error() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        clock = SimClock(loop, skew_ns=5, rate=2.0)
        before = clock.monotonic()
        await asyncio.sleep(3600)
        assert clock.monotonic() - before == 7200
        assert clock.now_ns() == START_NS + 3600 * 10**9 + 5
        return loop.time()

    assert run(main) == 3600

    async def stuck() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        run(stuck)


def test_the_order_of_tasks_in_a_group_is_the_order_of_their_start() -> None:
    async def main() -> list[int]:
        ended: list[int] = []

        async def one(number: int) -> None:
            try:
                await asyncio.sleep(100)
            finally:
                ended.append(number)

        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                for number in range(30):
                    tasks.create_task(one(number))
                await asyncio.sleep(1)
                raise ValueError
        return ended

    assert run(main) == run(main)


async def test_bytes_arrive_in_order_after_a_delay() -> None:
    net = SimNetwork(SeededEntropy(1), delay_s=(0.01, 0.05))
    stream = await pair(net)
    began = asyncio.get_running_loop().time()
    for number in range(100):
        stream.write(b"%03d" % number)
    assert await read_all(stream, 300) == b"".join(b"%03d" % n for n in range(100))
    assert 0.02 <= asyncio.get_running_loop().time() - began < 0.5
    stream.close()
    assert await stream.read(10) == b""


async def test_a_partition_holds_bytes_and_healing_delivers_them() -> None:
    net = SimNetwork(SeededEntropy(1), give_up_s=100)
    stream = await pair(net)
    net.block("a", "b")
    stream.write(b"held")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await stream.read(10)
    assert stream.queued == 4
    net.unblock("a", "b")
    assert await read_all(stream, 4) == b"held"
    assert stream.queued == 0
    stream.abort()
    await asyncio.sleep(1)


async def test_a_one_way_block_lets_the_other_way_through() -> None:
    net = SimNetwork(SeededEntropy(1), give_up_s=100)
    received: list[bytes] = []

    async def keep(stream: ByteStream) -> None:
        while data := await stream.read(100):
            received.append(data)
            stream.write(b"yes")

    await net.host("b").listen("b:1", keep)
    stream = await net.host("a").dial("b:1", role="server")
    net.block("b", "a")
    stream.write(b"hello")
    await asyncio.sleep(1)
    assert received == [b"hello"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await stream.read(10)
    net.heal()
    assert await stream.read(10) == b"yes"
    stream.abort()
    await asyncio.sleep(1)


async def test_a_connection_does_not_outlive_a_long_partition_and_no_new_one_is_made() -> None:
    net = SimNetwork(SeededEntropy(1), give_up_s=5, dial_s=1)
    stream = await pair(net)
    net.partition(["a"], ["b"])
    with pytest.raises(ConnectionResetError):
        await stream.read(10)
    with pytest.raises(UnreachableError, match="timed out"):
        await net.host("a").dial("b:1", role="server")
    net.heal()


async def test_cut_and_crash_end_connections_and_a_silent_crash_does_so_late() -> None:
    loop = asyncio.get_running_loop()
    for silent in (None, False, True):
        net = SimNetwork(SeededEntropy(1), give_up_s=8)
        stream = await pair(net)
        began = loop.time()
        if silent is None:
            net.cut("a", "b")
        else:
            net.crash("b", silent=silent)
        with pytest.raises(ConnectionResetError):
            await stream.read(10)
        waited = loop.time() - began
        assert (waited > 5) == (silent is True)
        if silent is not None:
            with pytest.raises(UnreachableError, match="refused"):
                await net.host("a").dial("b:1", role="server")


async def test_a_peer_proves_the_role_of_its_host() -> None:
    net = SimNetwork(SeededEntropy(1))
    seen: list[str] = []

    async def accept(stream: ByteStream) -> None:
        seen.append(stream.peer.role)

    await net.host("b").listen("b:1", accept)
    agent = net.host("agent", role="client")
    await agent.dial("b:1", role="server")
    with pytest.raises(PermissionDeniedError):
        await agent.dial("b:1", role="client")
    await asyncio.sleep(1)
    assert seen == ["client"]


async def test_closing_a_listener_ends_its_tasks_and_frees_the_port() -> None:
    net = SimNetwork(SeededEntropy(1))
    host = net.host("b")
    listening = await host.listen("b:0", echo)
    stream = await net.host("a").dial(listening.address, role="server")
    with pytest.raises(OSError, match="in use"):
        await host.listen(listening.address, echo)
    await listening.close()
    assert await stream.read(10) == b""
    await (await host.listen(listening.address, echo)).close()


def written(files: MemoryFiles, path: str, data: bytes) -> None:
    file = files.append(path)
    file.write(data)


def test_a_power_cut_keeps_what_was_synced_and_a_prefix_of_the_rest() -> None:
    lengths = set()
    for seed in range(200):
        files = MemoryFiles()
        files.make_directory("/d")
        file = files.append("/d/f")
        file.write(b"synced")
        file.sync()
        files.sync_directory("/d")
        file.write(b"-maybe")
        written(files, "/d/new", b"x")
        after = files.power_cut(SeededEntropy(seed))
        data = after.read("/d/f")
        assert data.startswith(b"synced")
        lengths.add((len(data), "/d/new" in after.paths()))
        with pytest.raises(OSError, match="power"):
            file.write(b"!")
        with pytest.raises(OSError, match="power"):
            files.read("/d/f")
    assert {length for length, _ in lengths} == set(range(6, 13))
    assert {new for _, new in lengths} == {True, False}


def test_a_rename_is_all_or_nothing_and_killing_the_process_loses_nothing() -> None:
    seen = set()
    for seed in range(50):
        files = MemoryFiles()
        files.make_directory("/d")
        for name in ("old", "new"):
            file = files.append(f"/d/{name}")
            file.write(name.encode())
            file.sync()
        files.sync_directory("/d")
        files.rename("/d/new", "/d/old")
        assert files.killed().read("/d/old") == b"new"
        files = MemoryFiles.power_cut(files, SeededEntropy(seed))
        seen.add(files.read("/d/old"))
    assert seen == {b"old", b"new"}


def test_a_lying_disk_forgets_what_it_confirmed() -> None:
    files = MemoryFiles(lying=True)
    files.make_directory("/d")
    file = files.append("/d/f")
    file.write(b"data")
    file.sync()
    files.sync_directory("/d")
    assert any(
        "/d/f" not in MemoryFiles.power_cut(files, SeededEntropy(seed)).paths()
        for seed in range(10)
    )


def test_a_planned_failure_happens_once_and_where_it_was_planned() -> None:
    files = MemoryFiles()
    files.make_directory("/d")
    files.fail("write", errno.ENOSPC, where=lambda path: path == "/d/b")
    written(files, "/d/a", b"fine")
    with pytest.raises(OSError, match="No space"):
        written(files, "/d/b", b"1234")
    assert files.read("/d/b") == b"12"
    written(files, "/d/b", b"fine")
