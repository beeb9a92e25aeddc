"""The real network on loopback: with TLS, without it, and its streams under load."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nomadpy.clock import SystemClock
from nomadpy.errors import ConfigError, PermissionDeniedError, UnreachableError
from nomadpy.pki.ca import write_ca, write_certificate
from nomadpy.pki.tls import TLSMaterial, load_material
from nomadpy.rpc.network import ByteStream, Network
from nomadpy.rpc.tls_network import TLSNetwork, split_address
from nomadpy.rpc.tls_stream import READ_HIGH, UNHEARD_MS, TransportStream

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> TLSMaterial:
    folder = tmp_path_factory.mktemp("certificates")
    now_ns = SystemClock().now_ns()
    ca, ca_key = write_ca(folder, now_ns=now_ns)
    return load_material(ca, *write_certificate(folder, ca, ca_key, "server", now_ns=now_ns))


@pytest.fixture(params=["tls", "plain"])
def network(request: pytest.FixtureRequest, material: TLSMaterial) -> TLSNetwork:
    return TLSNetwork(material if request.param == "tls" else None)


async def echo(stream: ByteStream) -> None:
    while data := await stream.read(1 << 16):
        stream.write(data)
        await stream.drain()


@asynccontextmanager
async def listening(
    network: Network, accept: Callable[[ByteStream], Awaitable[None]]
) -> AsyncIterator[str]:
    accepted = []

    async def counted(stream: ByteStream) -> None:
        accepted.append(stream)
        try:
            await accept(stream)
        finally:
            stream.abort()
            accepted.remove(stream)

    port = await network.listen("127.0.0.1:0", counted)
    try:
        yield port.address
    finally:
        await port.close()
        async with asyncio.timeout(5):
            while accepted:
                await asyncio.sleep(0.01)


async def test_bytes_go_both_ways_and_each_side_knows_the_other(network: TLSNetwork) -> None:
    seen: list[str] = []

    async def note_and_echo(stream: ByteStream) -> None:
        seen.append(stream.peer.name)
        await echo(stream)

    async with listening(network, note_and_echo) as address:
        stream = await network.dial(address, role="server")
        assert (stream.peer.role, stream.peer.region) == ("server", "global")
        assert stream.peer_address == address
        stream.write(b"hello")
        assert await stream.read(2) == b"he"
        assert await stream.read(100) == b"llo"
        stream.close()
        stream.close()
        assert await stream.read(100) == b""
    assert seen == ["server.global.nomad"]


async def test_both_sides_give_up_a_connection_whose_bytes_nobody_confirms(
    network: TLSNetwork,
) -> None:
    """The kernel does it, and tests cannot cut loopback: the fault-injection kit measures the effect."""
    limits: list[int] = []

    def note_limit(stream: ByteStream) -> None:
        assert isinstance(stream, TransportStream)
        connection = stream.raw.get_extra_info("socket")
        limits.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    async def note_and_echo(stream: ByteStream) -> None:
        note_limit(stream)
        await echo(stream)

    async with listening(network, note_and_echo) as address:
        stream = await network.dial(address, role="server")
        note_limit(stream)
        stream.write(b"hello")
        assert await stream.read(100) == b"hello"
        stream.close()
    assert limits == [UNHEARD_MS, UNHEARD_MS]


async def test_a_large_write_arrives_whole_and_queued_tells_the_truth(network: TLSNetwork) -> None:
    release = asyncio.Event()
    got = 0

    async def slow(stream: ByteStream) -> None:
        nonlocal got
        await release.wait()
        while data := await stream.read(1 << 20):
            got += len(data)

    async with listening(network, slow) as address, asyncio.timeout(30):
        stream = await network.dial(address, role="server")
        stream.write(b"x" * 32_000_000)
        assert stream.queued > 16_000_000
        draining = asyncio.get_running_loop().create_task(stream.drain())
        await asyncio.sleep(0.2)
        assert not draining.done()
        release.set()
        await draining
        assert stream.queued < 1_000_000
        stream.close()
        while got < 32_000_000:
            await asyncio.sleep(0.01)
    assert got == 32_000_000


async def test_a_reader_that_waits_makes_the_sender_wait_and_keeps_little(
    network: TLSNetwork,
) -> None:
    streams: list[ByteStream] = []
    release = asyncio.Event()

    async def idle(stream: ByteStream) -> None:
        streams.append(stream)
        await release.wait()

    async with listening(network, idle) as address:
        stream = await network.dial(address, role="server")
        for _ in range(100):
            stream.write(b"x" * 400_000)
            await asyncio.sleep(0.001)
        unread = streams[0]._unread  # type: ignore[attr-defined]
        assert unread <= READ_HIGH + 512 * 1024
        stream.abort()
        release.set()


async def test_a_broken_connection_is_an_error_and_an_end_is_not(network: TLSNetwork) -> None:
    async def leave(stream: ByteStream) -> None:
        if await stream.read(1) == b"a":
            stream.abort()
        else:
            stream.write(b"bye")
            stream.close()
            await asyncio.sleep(0.1)

    async with listening(network, leave) as address, asyncio.timeout(5):
        polite = await network.dial(address, role="server")
        polite.write(b"c")
        assert await polite.read(10) == b"bye"
        assert await polite.read(10) == b""
        rude = await network.dial(address, role="server")
        rude.write(b"a")
        with contextlib.suppress(OSError):
            assert await rude.read(10) == b""
        await asyncio.sleep(0.05)
        with pytest.raises(OSError):
            await rude.drain()
        rude.write(b"into the void")
        assert rude.queued == 0


async def test_nobody_there_is_unreachable(network: TLSNetwork) -> None:
    async with listening(network, echo) as address:
        pass
    with pytest.raises(UnreachableError, match=address):
        await network.dial(address, role="server")
    with pytest.raises(UnreachableError):
        await network.dial("no-such-host.invalid:4647", role="server")


async def test_who_does_not_answer_is_unreachable_after_the_timeout(material: TLSMaterial) -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for tls in (material, None):
        network = TLSNetwork(tls, handshake_timeout_s=0.2)
        with pytest.raises(UnreachableError, match="within"):
            await network.dial(address, role="server")
    server.close()


async def test_a_port_that_is_taken_is_a_configuration_error(network: TLSNetwork) -> None:
    async with listening(network, echo) as address:
        with pytest.raises(ConfigError, match="cannot listen on"):
            await network.listen(address, echo)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:4647"])
async def test_without_tls_only_loopback_is_served_and_dialed(address: str) -> None:
    network = TLSNetwork(None)
    with pytest.raises(ConfigError, match="TLS is not configured"):
        await network.listen(address, echo)
    with pytest.raises(ConfigError, match="TLS is not configured"):
        await network.dial(address, role="server")


async def test_without_tls_the_claimed_role_and_region_are_still_compared() -> None:
    async with listening(TLSNetwork(None, role="client"), echo) as address:
        with pytest.raises(PermissionDeniedError, match="not a server"):
            await TLSNetwork(None).dial(address, role="server")
    async with listening(TLSNetwork(None, region="mars"), echo) as address:
        with pytest.raises((PermissionDeniedError, UnreachableError)):
            await TLSNetwork(None).dial(address, role="server")


async def test_one_side_with_tls_and_one_without_refuse_each_other(
    material: TLSMaterial, caplog: pytest.LogCaptureFixture
) -> None:
    secure, plain = TLSNetwork(material), TLSNetwork(None)
    for server, client in ((secure, plain), (plain, secure)):
        caplog.clear()
        async with listening(server, echo) as address, asyncio.timeout(3):
            with pytest.raises((UnreachableError, PermissionDeniedError)):
                await client.dial(address, role="server")
            while not server.refused:
                await asyncio.sleep(0.01)
        assert [r.getMessage() for r in caplog.records] == ["connection refused"]


async def test_closing_the_port_ends_handshakes_and_leaves_open_streams(
    network: TLSNetwork,
) -> None:
    streams: list[ByteStream] = []

    async def keep(stream: ByteStream) -> None:
        streams.append(stream)
        await echo(stream)

    port = await network.listen("127.0.0.1:0", keep)
    stream = await network.dial(port.address, role="server")
    host, number = split_address(port.address)
    _reader, idle = await asyncio.open_connection(host, number)
    await asyncio.sleep(0.05)
    await port.close()
    stream.write(b"still here")
    assert await stream.read(100) == b"still here"
    with pytest.raises(UnreachableError):
        await network.dial(port.address, role="server")
    stream.abort()
    idle.close()
    await asyncio.sleep(0.05)
    assert len(streams) == 1


async def test_reload_keeps_the_old_certificates_when_the_new_ones_are_no_good(
    tmp_path: Path,
) -> None:
    now_ns = SystemClock().now_ns()
    ca, ca_key = write_ca(tmp_path, now_ns=now_ns)
    files = write_certificate(tmp_path, ca, ca_key, "server", now_ns=now_ns)
    network = TLSNetwork(load_material(ca, *files))
    fingerprint = network.identity.fingerprint
    files[1].write_bytes(b"half written")
    with pytest.raises(ConfigError, match=str(files[1])):
        network.reload()
    async with listening(network, echo) as address:
        stream = await network.dial(address, role="server")
        assert stream.peer.fingerprint == fingerprint
        stream.abort()
    for path in files:
        path.unlink()
    write_certificate(tmp_path, ca, ca_key, "server", now_ns=now_ns)
    network.reload()
    assert network.identity.fingerprint != fingerprint


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:4647", ("127.0.0.1", 4647)),
        ("[::1]:0", ("::1", 0)),
        ("server-1.example:65535", ("server-1.example", 65535)),
        (":4647", ("", 4647)),
    ],
)
async def test_an_address_has_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", "host", "host:", "host:x", "host:65536", "::1", "host:-1", "host:１２"]
)
async def test_an_address_without_them_is_a_configuration_error(address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        split_address(address)
