"""Who gets in by the first byte, and how outgoing connections are shared, lost and dialed again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from memory_stream import CLI, CLIENT, SERVER, MemoryNetwork, MemoryStream, memory_pair

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import ConnectionLostError, PermissionDeniedError, UnreachableError
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.rpc.connection import Connection
from nomadpy.rpc.dispatch import CallContext, Dispatcher
from nomadpy.rpc.listener import Listener
from nomadpy.rpc.network import ByteStream
from nomadpy.rpc.pool import Pool
from nomadpy.rpc.refusals import BURST, Refusals

READ = calls.Read(id="web")
SERVER_ADDRESS = "server:4647"


def serving() -> Dispatcher:
    async def echo(context: CallContext, request: calls.Read) -> Answer:
        return Answer(body=f"{context.peer.role} {request.id}".encode())

    async def slow(context: CallContext, request: calls.Read) -> Answer:
        await asyncio.sleep(1000)
        return Answer()

    dispatcher = Dispatcher()
    dispatcher.register("Job.Get", echo)
    dispatcher.register("Job.List", slow)
    return dispatcher


@asynccontextmanager
async def cluster(
    **options: Any,
) -> AsyncIterator[tuple[MemoryNetwork, Listener, Pool]]:
    async with asyncio.TaskGroup() as group:
        network = MemoryNetwork(group)
        listener = Listener(network, serving(), **options)
        await listener.start(SERVER_ADDRESS)
        pool = Pool(network, None, SeededEntropy(1))
        try:
            yield network, listener, pool
        finally:
            await pool.close()
            await listener.close()


async def test_callers_share_one_connection_and_one_dial() -> None:
    async with cluster() as (network, _listener, pool), asyncio.TaskGroup() as group:
        asked = [
            group.create_task(pool.call(SERVER_ADDRESS, "Job.Get", calls.Read(id=str(n))))
            for n in range(50)
        ]
    assert [task.result().body for task in asked] == [f"client {n}".encode() for n in range(50)]
    assert network.dials == 1


async def test_hooks_hear_of_connections_and_their_end_and_can_call_back() -> None:
    heard: list[str] = []
    connections: list[Connection] = []

    def on_connect(connection: Connection) -> None:
        heard.append(f"connect {connection.peer.role}")
        connections.append(connection)

    async def stats(context: CallContext, request: calls.NodeRead) -> Answer:
        return Answer(body=b"stats")

    agent = Dispatcher()
    agent.register("Client.Stats", stats)
    async with asyncio.TaskGroup() as group:
        network = MemoryNetwork(group)
        listener = Listener(
            network,
            serving(),
            on_connect=on_connect,
            on_disconnect=lambda connection: heard.append("disconnect"),
        )
        await listener.start(SERVER_ADDRESS)
        pool = Pool(network, agent, SeededEntropy(1))
        await pool.call(SERVER_ADDRESS, "Job.Get", READ)
        assert listener.connections == connections
        assert (await connections[0].call("Client.Stats", calls.NodeRead())).body == b"stats"
        await pool.close()
        await asyncio.sleep(1)
        assert heard == ["connect client", "disconnect"]
        assert listener.connections == []
        await listener.close()


async def test_a_lost_connection_is_dialed_again_by_the_next_call() -> None:
    async with cluster() as (network, listener, pool):
        await pool.call(SERVER_ADDRESS, "Job.Get", READ)
        listener.connections[0].close()
        await asyncio.sleep(1)
        assert (await pool.call(SERVER_ADDRESS, "Job.Get", READ)).body == b"client web"
        assert network.dials == 2


async def test_a_dead_peer_is_dialed_ever_more_rarely_and_found_again_soon() -> None:
    async with cluster() as (network, listener, pool):
        assert listener._listening is not None
        await listener._listening.close()
        for _ in range(10_000):
            with pytest.raises(UnreachableError):
                await pool.call(SERVER_ADDRESS, "Job.Get", READ)
            await asyncio.sleep(0.01)
        assert 50 < network.dials < 110
        await listener.start(SERVER_ADDRESS)
        await asyncio.sleep(2)
        assert (await pool.call(SERVER_ADDRESS, "Job.Get", READ)).body == b"client web"


async def test_a_peer_that_hangs_up_at_once_is_backed_off_from_too() -> None:
    async def hang_up(stream: ByteStream) -> None:
        await stream.read(1)
        stream.abort()

    async with asyncio.TaskGroup() as group:
        network = MemoryNetwork(group)
        await network.listen(SERVER_ADDRESS, hang_up)
        pool = Pool(network, None, SeededEntropy(1))
        for _ in range(1000):
            with pytest.raises((UnreachableError, ConnectionLostError)):
                await pool.call(SERVER_ADDRESS, "Job.Get", READ)
            await asyncio.sleep(0.01)
        assert network.dials < 30
        await pool.close()


async def test_a_peer_of_the_wrong_role_is_denied() -> None:
    async with cluster() as (_network, _listener, pool):
        with pytest.raises(PermissionDeniedError):
            await pool.call(SERVER_ADDRESS, "Job.Get", READ, role="client")
        assert (await pool.call(SERVER_ADDRESS, "Job.Get", READ)).body == b"client web"


async def test_a_caller_that_gives_up_does_not_spoil_the_dial_for_the_others() -> None:
    async with cluster() as (network, _listener, pool), asyncio.TaskGroup() as group:

        async def delay() -> None:
            await asyncio.sleep(3)

        network.before_dial = delay
        first = group.create_task(pool.call(SERVER_ADDRESS, "Job.Get", READ))
        second = group.create_task(pool.call(SERVER_ADDRESS, "Job.Get", READ))
        await asyncio.sleep(1)
        first.cancel()
        assert (await second).body == b"client web"


async def test_closing_the_pool_fails_calls_and_dials_under_way() -> None:
    async with cluster() as (network, _listener, pool), asyncio.TaskGroup() as group:
        call = group.create_task(_error_of(pool.call(SERVER_ADDRESS, "Job.List", READ)))
        await asyncio.sleep(1)

        async def delay() -> None:
            await asyncio.sleep(5)

        network.before_dial = delay
        dial = group.create_task(_error_of(pool.get("other:4647")))
        await asyncio.sleep(1)
        await pool.close()
        assert isinstance(await call, ConnectionLostError)
        assert isinstance(await dial, UnreachableError)
        with pytest.raises(UnreachableError):
            await pool.get(SERVER_ADDRESS)


async def _error_of(awaitable: Any) -> object:
    try:
        return await awaitable
    except Exception as error:
        return error


# -- the first byte -----------------------------------------------------------------------------------------------


async def enter(listener: Listener, stream: MemoryStream) -> None:
    await listener._accept(stream)


@pytest.mark.parametrize("first", [b"X", b"\x16", b"\x80", b"\x00", b"G"], ids=repr)
async def test_an_unknown_first_byte_is_refused_with_one_line(
    first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as (_network, listener, _pool):
        near, far = memory_pair()
        near.write(first + b"rest")
        await enter(listener, far)
        with pytest.raises(ConnectionResetError):
            await near.read(100)
    assert [r.getMessage() for r in caplog.records] == ["connection refused"]


async def test_who_says_nothing_is_refused_after_five_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with cluster() as (_network, listener, _pool):
        before = asyncio.get_running_loop().time()
        await enter(listener, memory_pair()[1])
        assert asyncio.get_running_loop().time() - before == pytest.approx(5, abs=0.1)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("peer", [CLIENT, CLI], ids=lambda peer: peer.role)
async def test_only_servers_may_speak_raft(peer: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def raft(stream: ByteStream) -> None:
        raise AssertionError("reached raft")

    async with cluster(raft=raft) as (_network, listener, _pool):
        near, far = memory_pair(dialer=peer)
        near.write(b"Rhello")
        await enter(listener, far)
    (record,) = caplog.records
    assert "may not speak raft" in record.fields["reason"]  # type: ignore[attr-defined]


async def test_a_servers_raft_stream_goes_to_raft_without_its_first_byte() -> None:
    got: list[bytes] = []

    async def raft(stream: ByteStream) -> None:
        got.append(await stream.read(100))

    async with cluster(raft=raft) as (_network, listener, _pool):
        near, far = memory_pair(dialer=SERVER)
        near.write(b"Rhello")
        await enter(listener, far)
    assert got == [b"hello"]


async def test_connections_of_one_address_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster(max_streams_per_address=3) as (_network, listener, _pool):
        async with asyncio.TaskGroup() as group:
            pairs = [memory_pair() for _ in range(5)]
            for near, far in pairs:
                near.write(b"C")
                group.create_task(enter(listener, far))
            await asyncio.sleep(1)
            assert len(listener.connections) == 3
            for near, _far in pairs:
                near.abort()
        near, far = memory_pair()
        near.write(b"C")
        async with asyncio.TaskGroup() as group:
            group.create_task(enter(listener, far))
            await asyncio.sleep(1)
            assert len(listener.connections) == 1
            near.abort()
    assert len([r for r in caplog.records if r.getMessage() == "connection refused"]) == 2


async def test_closing_the_listener_ends_every_stream() -> None:
    async with cluster() as (_network, listener, pool):
        async with asyncio.TaskGroup() as group:
            call = group.create_task(_error_of(pool.call(SERVER_ADDRESS, "Job.List", READ)))
            await asyncio.sleep(1)
            await listener.close()
        assert isinstance(call.result(), ConnectionLostError)
        assert listener.connections == []


# -- the refusals' log ----------------------------------------------------------------------------------------------


def test_a_flood_from_one_address_is_logged_as_a_trickle_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals = Refusals()
    for n in range(100_000):
        refusals.report("10.0.0.1:5", "plain HTTP", now=n / 1000)
    assert refusals.count == 100_000
    assert BURST <= len(caplog.records) <= BURST + 21
    unsaid = [getattr(r, "fields", {}).get("refused_silently_before", 0) for r in caplog.records]
    assert sum(unsaid) + len(caplog.records) > 90_000


def test_one_noisy_address_does_not_hide_another(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for _ in range(1000):
        refusals.report("10.0.0.1:5", "noise", now=0.0)
    caplog.clear()
    refusals.report("10.0.0.2:6", "foreign CA", now=0.0)
    assert len(caplog.records) == 1


def test_many_addresses_take_bounded_memory_and_bounded_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals = Refusals()
    for n in range(50_000):
        refusals.report(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:1", "noise", now=0.0)
    assert len(refusals._hosts) <= 1024
    assert len(caplog.records) <= 200
