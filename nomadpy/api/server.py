"""Serves the application: sockets, TLS, limits on connections and slow clients."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import socket

from aiohttp import web

from nomadpy import logs
from nomadpy.api.context import API_KEY, ApiConfig
from nomadpy.errors import ConfigError

log = logs.get(__name__)

_UNIX = "unix://"
_TOO_MANY = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 44\r\nConnection: close\r\n\r\nYour IP is issuing too many concurrent conns"
)
STOP_S = 0.5  # aiohttp waits this long twice, and a blocking query uses all of it


class ApiServer:
    """Listens on every address of the configuration. `run` serves until it is cancelled."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._config: ApiConfig = app[API_KEY].config
        self._runner: web.AppRunner | None = None
        self._servers: list[asyncio.Server] = []
        self._unix_paths: list[str] = []
        self._per_client: collections.Counter[str] = collections.Counter()
        self.addresses: list[
            str
        ] = []  # host:port with the real ports, or unix:///path; after start()

    async def run(self) -> None:
        """Start, serve until cancelled, stop. Raises ConfigError when an address cannot be used."""
        await self.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self.stop()

    async def start(self) -> None:
        """Open the ports. Raises ConfigError naming the address that cannot be used; then none is open."""
        runner = web.AppRunner(
            self._app,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=self._config.keepalive_s,
            shutdown_timeout=STOP_S,
        )
        await runner.setup()
        self._runner = runner
        try:
            for address in self._config.addresses:
                await self._listen(address)
        except OSError as cause:
            await self.stop()
            raise ConfigError(
                f"cannot serve the HTTP API on {address}: {cause.strerror or cause}; "
                "choose another address or port (ports.http, addresses.http)"
            ) from cause
        log.info("http api listening", addresses=", ".join(self.addresses))

    async def stop(self) -> None:
        """Close the ports, give requests a moment to end, then cut them; may be called twice."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for path in self._unix_paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self._unix_paths.clear()

    @property
    def connections(self) -> int:
        """Connections over TCP that are open now."""
        return self._per_client.total()

    async def _listen(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        if address.startswith(_UNIX):
            path = address.removeprefix(_UNIX)
            _remove_dead_socket(path)
            server = await loop.create_unix_server(self._protocol, path)
            os.chmod(path, 0o600)
            self._unix_paths.append(path)
            self._servers.append(server)
            self.addresses.append(address)
            return
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"the HTTP address {address!r} is not host:port")
        tls = self._config.tls
        server = await loop.create_server(
            self._protocol,
            host.strip("[]") or None,
            int(port),
            ssl=tls,
            ssl_handshake_timeout=self._config.handshake_timeout_s if tls else None,
            backlog=1024,
            reuse_address=True,
        )
        self._servers.append(server)
        bound: tuple[str, int] = server.sockets[0].getsockname()[:2]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        self.addresses.append(f"{shown}:{bound[1]}")

    def _protocol(self) -> asyncio.Protocol:
        runner = self._runner
        assert runner is not None
        assert runner.server is not None
        return _Connection(runner.server(), self._per_client, self._config)


class _Connection(asyncio.Protocol):
    """Stands before aiohttp's protocol: refuses the client that has too many connections or sends no request.

    aiohttp bounds the idle time between requests but not the time to a connection's first one.
    """

    def __init__(
        self,
        inner: asyncio.Protocol,
        per_client: collections.Counter[str],
        config: ApiConfig,
    ) -> None:
        self._inner = inner
        self._per_client = per_client
        self._config = config
        self._transport: asyncio.Transport | None = None
        self._client = ""
        self._refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        limit = self._config.max_connections_per_client
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._client = str(peer[0])
            self._per_client[self._client] += 1
            if limit and self._per_client[self._client] > limit:
                self._refused = True
                transport.write(_TOO_MANY)
                transport.close()
                return
        self._inner.connection_made(transport)
        self._timer = asyncio.get_running_loop().call_later(
            self._config.header_timeout_s, self._too_slow
        )

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._timer is not None:
            # Only the end of the first head is looked for; its parts are kept no longer than that.
            self._head = self._head[-3:] + data
            if b"\r\n\r\n" in self._head:
                self._settle()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._refused else self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        if self._client:
            self._per_client[self._client] -= 1
            if self._per_client[self._client] <= 0:
                del self._per_client[self._client]
        if not self._refused:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if not self._refused:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if not self._refused:
            self._inner.resume_writing()

    def _settle(self) -> None:
        self._head = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._transport is not None:
            self._transport.abort()


def _remove_dead_socket(path: str) -> None:
    """Unlink a unix socket that nobody serves any more. Raises OSError (EADDRINUSE) when somebody does."""
    if not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
