"""Sockets, TLS and limits of the API server."""

from __future__ import annotations

import asyncio
import datetime
import pathlib
import ssl
import stat
import time

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from serving import FakeCaller, FakeLocal, answer, serving

from nomadpy.api import ApiConfig, ApiServer, create_app
from nomadpy.errors import ConfigError

pytestmark = pytest.mark.real_time

LEADER = "127.0.0.1:4647"


def caller() -> FakeCaller:
    return FakeCaller(Status__Leader=answer(LEADER))


async def test_more_connections_than_allowed_are_answered_429() -> None:
    async with serving(caller(), max_connections_per_client=2) as api:
        host, port = api.host_port
        held = [await asyncio.open_connection(host, port) for _ in range(2)]
        reader, writer = await asyncio.open_connection(host, port)
        refusal = await reader.read()
        assert refusal.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        head, _, body = refusal.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        writer.close()
        for _, other in held:
            other.close()
            await other.wait_closed()
        await asyncio.sleep(0.05)
        assert (await api.get("/v1/status/leader"))[0] == 200


async def test_a_client_that_never_sends_a_request_is_cut() -> None:
    async with serving(caller(), header_timeout_s=0.2) as api:
        reader, writer = await asyncio.open_connection(*api.host_port)
        writer.write(b"GET /v1/status/leader HTTP/1.1\r\nHost: a\r\n")
        started = time.monotonic()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"\r\n\r\n")
        assert time.monotonic() - started < 2
        writer.close()


async def test_a_request_in_pieces_is_served_and_then_not_cut() -> None:
    async with serving(caller(), header_timeout_s=0.3) as api:
        reader, writer = await asyncio.open_connection(*api.host_port)
        for piece in (b"GET /v1/status/leader HT", b"TP/1.1\r\nHost: a\r", b"\n\r", b"\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.4)
        writer.write(b"GET /v1/status/leader HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP/1.1 200" in await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_a_body_that_does_not_come_is_408() -> None:
    async with serving(caller(), body_timeout_s=0.2) as api:
        reader, writer = await asyncio.open_connection(*api.host_port)
        writer.write(b"PUT /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
        assert b" 408 " in await reader.readline()
        writer.close()


async def test_garbage_instead_of_http_is_a_400() -> None:
    async with serving(caller()) as api:
        reader, writer = await asyncio.open_connection(*api.host_port)
        writer.write(b"\x16\x03\x01\x00garbage\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()


async def test_a_port_in_use_is_a_config_error_that_names_it() -> None:
    async with serving(caller()) as api:
        taken = api.server.addresses[0]
        other = ApiServer(create_app(caller(), FakeLocal(), ApiConfig(addresses=(taken,))))
        with pytest.raises(ConfigError, match="cannot serve the HTTP API on 127"):
            await other.start()


async def test_an_address_without_a_port_is_a_config_error() -> None:
    other = ApiServer(create_app(caller(), FakeLocal(), ApiConfig(addresses=("localhost",))))
    with pytest.raises(ConfigError, match="is not host:port"):
        await other.start()


async def test_a_unix_socket_serves_its_owner_only_and_is_removed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "api.sock"
    async with serving(caller(), addresses=("127.0.0.1:0", f"unix://{path}")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        connector = aiohttp.UnixConnector(str(path))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://a/v1/status/leader") as response,
        ):
            assert await response.json() == LEADER
    assert not path.exists()


async def test_run_serves_until_it_is_cancelled() -> None:
    server = ApiServer(create_app(caller(), FakeLocal(), ApiConfig(addresses=("127.0.0.1:0",))))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(server.run())
        while not server.addresses:
            await asyncio.sleep(0.01)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{server.addresses[0]}/v1/status/leader") as response,
        ):
            assert response.status == 200
        running.cancel()


async def test_stopping_does_not_wait_for_a_blocking_query() -> None:
    async def forever(_: object) -> None:
        await asyncio.Event().wait()

    blocked = FakeCaller(Job__List=forever)
    server = ApiServer(create_app(blocked, FakeLocal(), ApiConfig(addresses=("127.0.0.1:0",))))
    await server.start()
    host, _, port = server.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/jobs?index=4&wait=60s HTTP/1.1\r\nHost: a\r\n\r\n")
    while not blocked.calls:
        await asyncio.sleep(0.01)
    started = time.monotonic()
    await server.stop()
    assert time.monotonic() - started < 3
    assert blocked.cancelled == ["Job.List"]
    assert await reader.read() == b""
    writer.close()


def _certificates(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


async def test_https_can_demand_a_client_certificate(tmp_path: pathlib.Path) -> None:
    cert_file, key_file = _certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(cert_file))
    context.load_cert_chain(cert_file, key_file)
    context.verify_mode = ssl.CERT_REQUIRED
    async with serving(caller(), tls=context) as api:
        mine = ssl.create_default_context(cafile=str(cert_file))
        mine.check_hostname = False
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await api.get("/v1/status/leader", ssl=mine)
        mine.load_cert_chain(cert_file, key_file)
        assert (await api.get("/v1/status/leader", ssl=mine))[0] == 200
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await api.session.get(f"http://{api.server.addresses[0]}/v1/status/leader")
