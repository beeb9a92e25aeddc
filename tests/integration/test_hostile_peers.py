"""The rpc port against those who must not get in: refused before anything is parsed, one log line, no memory kept.

How: a real listener with TLS on loopback whose dispatcher and raft handler must never be reached; each attack
opens a socket of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import pickle
import socket
import ssl
import tracemalloc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nomadpy.clock import SystemClock
from nomadpy.entropy import SystemEntropy
from nomadpy.errors import ConnectionLostError, NomadError, PermissionDeniedError, UnreachableError
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.pki.ca import write_ca, write_certificate
from nomadpy.pki.tls import TLSMaterial, load_material
from nomadpy.rpc import frames
from nomadpy.rpc.dispatch import CallContext, Dispatcher
from nomadpy.rpc.listener import Listener
from nomadpy.rpc.network import ByteStream
from nomadpy.rpc.pool import Pool
from nomadpy.rpc.tls_network import TLSNetwork

pytestmark = pytest.mark.real_time

NOW = SystemClock().now_ns()


class Certificates:
    """Two authorities, and certificates of every kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cas = {}
        for name in ("ours", "foreign"):
            (folder / name).mkdir()
            self.cas[name] = write_ca(folder / name, now_ns=NOW)

    def make(
        self, role: str, *, ca: str = "ours", region: str = "global", days: float = 1
    ) -> tuple[Path, Path, Path]:
        """(CA that it trusts: ours, certificate, key)."""
        made = self.folder / f"{ca}-{role}-{region}-{days}"
        made.mkdir(exist_ok=True)
        stem = made / f"{region}-{role}-nomad"
        if not stem.with_suffix(".pem").exists():
            write_certificate(made, *self.cas[ca], role, region, days=days, now_ns=NOW)
        key = made / f"{region}-{role}-nomad-key.pem"
        return self.cas["ours"][0], stem.with_suffix(".pem"), key

    def material(self, role: str, *, region: str = "global") -> TLSMaterial:
        return load_material(*self.make(role, region=region))

    def context(
        self,
        certificate: tuple[Path, Path, Path] | None,
        *,
        version: ssl.TLSVersion | None = None,
    ) -> ssl.SSLContext:
        """A client that does not care whom it talks to."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if version is not None:
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                context.minimum_version = context.maximum_version = version
        if certificate is not None:
            context.load_cert_chain(certificate[1], certificate[2])
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


class Target:
    """The server under attack. `reached` stays empty."""

    def __init__(self, network: TLSNetwork) -> None:
        self.network = network
        self.reached: list[str] = []
        dispatcher = Dispatcher()
        dispatcher.register("Job.Get", self._job_get)
        dispatcher.register("Server.Hello", self._hello)
        self.listener = Listener(network, dispatcher, raft=self._raft)

    async def _job_get(self, context: CallContext, request: calls.Read) -> Answer:
        self.reached.append("Job.Get")
        return Answer(body=b"here")

    async def _hello(self, context: CallContext, request: calls.ServerHello) -> Answer:
        self.reached.append("Server.Hello")
        raise NomadError("reached")

    async def _raft(self, stream: ByteStream) -> None:
        self.reached.append("raft")

    @property
    def port(self) -> int:
        return int(self.listener.address.rpartition(":")[2])


@asynccontextmanager
async def target(
    certificates: Certificates, *, minimum: str = "tls13", handshake_timeout_s: float = 5.0
) -> AsyncIterator[Target]:
    network = TLSNetwork(
        certificates.material("server"), minimum=minimum, handshake_timeout_s=handshake_timeout_s
    )
    under_attack = Target(network)
    await under_attack.listener.start("127.0.0.1:0")
    try:
        yield under_attack
    finally:
        await under_attack.listener.close()


async def speak_plain(port: int, data: bytes) -> bytes:
    """Send bytes without TLS; return all that came back until the server closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
    got = b""
    with contextlib.suppress(ConnectionError):
        got = await reader.read()
    writer.close()
    return got


async def speak_tls(port: int, context: ssl.SSLContext, data: bytes) -> bytes:
    """Shake hands and send bytes; return what came back until the server closed, b"" when it would not."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(data)
        return await reader.read()
    except (OSError, ssl.SSLError):
        return b""
    finally:
        if writer is not None:
            writer.transport.abort()


class Canary:
    """What runs when someone unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, ("/nonexistent/nomadpy-canary", "w"))


Attack = Callable[[Certificates, int], Awaitable[bytes]]

CALL = b"C" + frames.Multiplexer(dialer=True).request("Job.Get", b"\x80")[1]

ATTACKS: dict[str, Attack] = {
    "no certificate": lambda c, port: speak_tls(port, c.context(None), CALL),
    "foreign CA": lambda c, port: speak_tls(port, c.context(c.make("server", ca="foreign")), CALL),
    "expired": lambda c, port: speak_tls(port, c.context(c.make("server", days=-1)), CALL),
    "other region": lambda c, port: speak_tls(
        port, c.context(c.make("server", region="mars")), CALL
    ),
    "TLS 1.1": lambda c, port: speak_tls(
        port, c.context(c.make("server"), version=ssl.TLSVersion.TLSv1_1), CALL
    ),
    "TLS 1.2": lambda c, port: speak_tls(
        port, c.context(c.make("server"), version=ssl.TLSVersion.TLSv1_2), CALL
    ),
    "plain call": lambda c, port: speak_plain(port, CALL),
    "HTTP": lambda c, port: speak_plain(port, b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n"),
    "garbage": lambda c, port: speak_plain(port, bytes(range(256)) * 40),
    "pickle": lambda c, port: speak_plain(port, pickle.dumps(Canary())),
    "2 GiB frame": lambda c, port: speak_plain(port, (2**31).to_bytes(4, "big") + b"x" * 100_000),
    "plain raft": lambda c, port: speak_plain(port, b"R" + pickle.dumps(Canary())),
    "TLS record of 2 GiB": lambda c, port: speak_plain(
        port, b"\x16\x03\x01\xff\xff" + b"\x00" * 70_000
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_who_cannot_prove_itself_is_refused_with_one_line_before_anything_is_parsed(
    certificates: Certificates,
    name: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def parsed(self: object, data: bytes) -> list[frames.Frame]:
        raise AssertionError(f"parsed {data[:40]!r}")

    monkeypatch.setattr(frames.Splitter, "feed", parsed)
    caplog.set_level(logging.DEBUG)
    async with target(certificates) as server, asyncio.timeout(10):
        caplog.clear()
        answer = await ATTACKS[name](certificates, server.port)
        await _until(lambda: server.network.refused == 1)
        await asyncio.sleep(0.05)
        lines = [record for record in caplog.records if record.levelno > logging.DEBUG]
        assert server.reached == []
        assert server.listener.connections == []
        assert len(answer) < 50, "at most a TLS alert"
    assert [record.getMessage() for record in lines] == ["connection refused"]
    assert lines[0].fields["address"].startswith("127.0.0.1:")  # type: ignore[attr-defined]
    assert lines[0].fields["reason"]  # type: ignore[attr-defined]
    print(name, "->", lines[0].fields["reason"])  # type: ignore[attr-defined]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(8):
        while not condition():
            await asyncio.sleep(0.005)


async def test_tls_1_2_gets_in_where_the_configuration_allows_it_and_1_1_does_not(
    certificates: Certificates,
) -> None:
    async with target(certificates, minimum="tls12") as server:
        for version, reached in ((ssl.TLSVersion.TLSv1_1, 0), (ssl.TLSVersion.TLSv1_2, 1)):
            context = certificates.context(certificates.make("client"), version=version)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await speak_tls(server.port, context, CALL)
            assert server.reached == ["Job.Get"] * reached


async def test_who_says_nothing_is_refused_after_the_handshake_timeout(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async with target(certificates, handshake_timeout_s=0.3) as server, asyncio.timeout(5):
        assert await speak_plain(server.port, b"") == b""
        assert await speak_plain(server.port, b"\x16\x03\x01") == b""
        await _until(lambda: server.network.refused == 2)
    reasons = [record.fields["reason"] for record in caplog.records]  # type: ignore[attr-defined]
    assert len(reasons) == 2
    assert all("time" in reason for reason in reasons)


@pytest.mark.parametrize("role", ["client", "cli"])
async def test_only_a_server_speaks_raft_and_calls_what_servers_say_among_themselves(
    certificates: Certificates, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    hello = calls.ServerHello(
        id="x", name="x", region="global", datacenter="", rpc="", http="", version=""
    )
    async with target(certificates) as server:
        network = TLSNetwork(certificates.material(role))
        stream = await network.dial(server.listener.address, role="server")
        stream.write(b"R" + pickle.dumps(Canary()))
        with contextlib.suppress(ConnectionError):
            assert await stream.read(100) == b""
        stream.abort()
        pool = Pool(network, None, SystemEntropy())
        with pytest.raises(PermissionDeniedError):
            await pool.call(server.listener.address, "Server.Hello", hello)
        assert server.reached == []
        await pool.close()
    assert [r.fields["reason"] for r in caplog.records] == [  # type: ignore[attr-defined]
        f"{role}.global.nomad may not speak raft: it is not a server"
    ]


@asynccontextmanager
async def impostor(made: tuple[Path, Path, Path]) -> AsyncIterator[str]:
    """Listens where a server should, with another certificate; yields its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made[1], made[2])
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        # asyncio gives no other handle on handshakes that failed at its side.
        await _until(lambda: len(asyncio.all_tasks()) == 1)


@pytest.mark.parametrize("role", ["client", "cli"])
async def test_a_client_certificate_does_not_pass_for_a_server(
    certificates: Certificates, role: str
) -> None:
    network = TLSNetwork(certificates.material("client"))
    async with impostor(certificates.make(role)) as address:
        with pytest.raises(PermissionDeniedError, match=r"server\.global\.nomad"):
            await network.dial(address, role="server")


@pytest.mark.parametrize(
    "options", [{"region": "mars"}, {"ca": "foreign"}, {"days": -1}], ids=lambda o: str(o)
)
async def test_a_server_of_another_region_or_ca_or_time_is_not_dialed(
    certificates: Certificates, options: dict[str, object]
) -> None:
    network = TLSNetwork(certificates.material("client"))
    async with impostor(certificates.make("server", **options)) as address:  # type: ignore[arg-type]
        with pytest.raises(PermissionDeniedError):
            await network.dial(address, role="server")


@pytest.mark.parametrize(
    "payload",
    [
        b"C" + (2**31).to_bytes(4, "big") + b"x" * 1000,
        b"C" + pickle.dumps(Canary()),
        b"C" + b"\x00\x00\x00\x05" + b"\x80\x04\x95\x10c",
        b"X" + b"x" * 1000,
    ],
    ids=["2 GiB frame", "pickle", "pickle in a frame", "first byte"],
)
async def test_an_authenticated_peer_that_breaks_the_rules_is_cut_off_with_one_line(
    certificates: Certificates, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with target(certificates) as server, asyncio.timeout(5):
        context = certificates.context(certificates.make("client"))
        assert await speak_tls(server.port, context, payload) == b""
        await _until(lambda: bool(caplog.records))
        assert server.reached == []
        assert len(caplog.records) == 1


async def test_floods_leave_no_memory_and_few_lines_behind(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    flood: list[Attack] = [
        ATTACKS[name] for name in ("no certificate", "foreign CA", "pickle", "HTTP", "2 GiB frame")
    ]
    async with target(certificates) as server, asyncio.timeout(120):

        async def wave(rounds: int) -> None:
            for _ in range(rounds):
                for attack in flood:
                    await attack(certificates, server.port)
            await asyncio.sleep(0.1)
            gc.collect()

        await wave(20)
        before = server.network.refused
        caplog.clear()
        with _traced() as memory:
            await wave(60)
            grown = memory()
        assert server.network.refused >= before + 300
        assert server.listener.connections == []
        assert grown < 256 * 1024, f"{grown} bytes after 300 refused connections"
        assert len(caplog.records) < 40


@contextlib.contextmanager
def _traced() -> Iterator[Callable[[], int]]:
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        yield lambda: tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


async def test_an_announced_frame_of_sixteen_mebibytes_takes_only_what_arrives(
    certificates: Certificates,
) -> None:
    async with target(certificates) as server, asyncio.timeout(20):
        context = certificates.context(certificates.make("client"))
        writers = []
        with _traced() as memory:
            for _ in range(20):
                _reader, writer = await asyncio.open_connection(
                    "127.0.0.1", server.port, ssl=context
                )
                writer.write(b"C" + frames.MAX_FRAME.to_bytes(4, "big") + b"x" * 1000)
                await writer.drain()
                writers.append(writer)
            await _until(lambda: len(server.listener.connections) == 20)
            await asyncio.sleep(0.1)
            grown = memory()
        for writer in writers:
            writer.transport.abort()
        await _until(lambda: not server.listener.connections)
    # Both ends of twenty TLS connections, their tasks and buffers of 256 KiB for reading; not 320 MiB.
    assert grown < 20 * 1024 * 1024


async def test_half_open_handshakes_of_one_host_do_not_lock_out_the_others(
    certificates: Certificates,
) -> None:
    async with target(certificates) as server, asyncio.timeout(20):
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
        await _until(lambda: server.network.refused >= 72)
        network = TLSNetwork(certificates.material("client"))
        stranger = _bound_to("127.0.0.9", server.port)
        with pytest.raises(BlockingIOError):
            stranger.recv(1)
        stranger.close()
        for _reader, writer in idle:
            writer.transport.abort()
        await _until(lambda: not network._handshakes and not server.network._handshakes)
        pool = Pool(network, None, SystemEntropy())
        assert (await pool.call(server.listener.address, "Job.Get", calls.Read())).body == b"here"
        await pool.close()


def _bound_to(host: str, port: int) -> socket.socket:
    """A connection from another loopback address, which is let wait for its handshake, not closed."""
    connection = socket.socket()
    connection.bind((host, 0))
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    return connection


async def test_certificates_change_without_a_restart(
    certificates: Certificates, tmp_path: Path
) -> None:
    """The cluster moves to another CA: new connections need the new one, those open stay."""
    ca, ca_key = write_ca(tmp_path, now_ns=NOW)
    new = load_material(ca, *write_certificate(tmp_path, ca, ca_key, "server", now_ns=NOW))
    client = load_material(ca, *write_certificate(tmp_path, ca, ca_key, "client", now_ns=NOW))
    async with target(certificates) as server:
        address = server.listener.address
        old_network = TLSNetwork(certificates.material("client"))
        old = Pool(old_network, None, SystemEntropy())
        await old.call(address, "Job.Get", calls.Read())
        server.network.reload(new)
        await old.call(address, "Job.Get", calls.Read())
        fresh = Pool(TLSNetwork(client), None, SystemEntropy())
        await fresh.call(address, "Job.Get", calls.Read())
        late = Pool(old_network, None, SystemEntropy())
        with pytest.raises((PermissionDeniedError, UnreachableError, ConnectionLostError)):
            await late.call(address, "Job.Get", calls.Read())
        old_network.reload(client)
        await asyncio.sleep(0.2)
        await late.call(address, "Job.Get", calls.Read())
        for pool in (old, fresh, late):
            await pool.close()
