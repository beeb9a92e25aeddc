"""A real API server on loopback whose Caller and node are played by the test."""

from __future__ import annotations

import asyncio
import json
import pathlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from nomadpy.api import ApiConfig, ApiServer, create_app
from nomadpy.clock import SystemClock
from nomadpy.errors import NomadError
from nomadpy.metrics import Registry
from nomadpy.models.envelope import Answer
from nomadpy.models.operator import AgentHealth, AgentHealthResponse, AgentMember

REFERENCE = pathlib.Path(__file__).parent.parent / "wire" / "reference"


def recorded(scenario: str, name: str) -> Any:
    """The body of a recorded exchange."""
    for line in (REFERENCE / f"{scenario}.jsonl").read_text(encoding="utf-8").splitlines():
        exchange = json.loads(line)
        if exchange["name"] == name:
            return exchange["response"]["body"]
    raise LookupError(f"{scenario}/{name}")


def answer(value: Any, **more: Any) -> Answer:
    return Answer(body=msgspec.json.encode(value), **more)


Reply = Answer | NomadError | Callable[[msgspec.Struct], Any]


class FakeStream:
    """Chunks given beforehand out; what the API sends in, kept."""

    def __init__(self, chunks: list[bytes | NomadError], *, echo: bool = False) -> None:
        self._out: asyncio.Queue[bytes | NomadError | None] = asyncio.Queue()
        for chunk in chunks:
            self._out.put_nowait(chunk)
        self._echo = echo
        self.sent: list[bytes] = []
        self.left = False
        if not echo:
            self._out.put_nowait(None)

    async def receive(self) -> bytes | None:
        chunk = await self._out.get()
        if isinstance(chunk, NomadError):
            raise chunk
        return chunk

    async def send(self, chunk: bytes) -> None:
        self.sent.append(chunk)
        if self._echo:
            self._out.put_nowait(None if b"close" in chunk else chunk)

    async def finish(self) -> None:
        pass

    def end(self) -> None:
        self._out.put_nowait(None)

    def push(self, chunk: bytes | NomadError) -> None:
        self._out.put_nowait(chunk)


class FakeCaller:
    """Replies by method name; keeps every call."""

    def __init__(self, **replies: Any) -> None:
        self.replies: dict[str, Any] = {k.replace("__", "."): v for k, v in replies.items()}
        self.calls: list[tuple[str, Any]] = []
        self.cancelled: list[str] = []

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        self.calls.append((method, request))
        reply = self.replies[method]
        if callable(reply):
            try:
                reply = await reply(request)
            except asyncio.CancelledError:
                self.cancelled.append(method)
                raise
        if isinstance(reply, NomadError):
            raise reply
        return reply

    @asynccontextmanager
    async def open(self, method: str, request: msgspec.Struct) -> AsyncIterator[Any]:
        self.calls.append((method, request))
        stream = self.replies[method]
        if isinstance(stream, NomadError):
            raise stream
        try:
            yield stream
        finally:
            stream.left = True

    @property
    def last(self) -> Any:
        return self.calls[-1][1]


class FakeLocal:
    """A node that is server and client at once."""

    region = "global"
    is_server = True

    def __init__(self, node_id: str = "5013599c-3540-28a9-c33f-6a24c7d264f6") -> None:
        self.node_id = node_id
        self.metrics = Registry(SystemClock(), {"host": "vm"})
        self.well = True
        self.joined: list[str] = []
        self.left: list[tuple[str, bool]] = []

    def config(self) -> dict[str, Any]:
        return {"Region": "global", "Datacenter": "dc1"}

    def stats(self) -> dict[str, dict[str, str]]:
        return {"raft": {"applied_index": "7"}}

    def member(self) -> AgentMember:
        return AgentMember(name="vm.global", status="alive")

    async def health(self) -> AgentHealthResponse:
        return AgentHealthResponse(
            client=AgentHealth(ok=True, message="ok"),
            server=AgentHealth(ok=self.well, message="ok" if self.well else "No cluster leader"),
        )

    def servers(self) -> list[str]:
        return ["127.0.0.1:4647"]

    def set_servers(self, addresses: list[str]) -> None:
        self.joined = addresses

    async def join(self, addresses: list[str]) -> int:
        self.joined += addresses
        return len(addresses)

    async def force_leave(self, name: str, *, prune: bool) -> None:
        self.left.append((name, prune))


class Served:
    """What a test holds: the caller, the node, the server, and a client session bound to it."""

    def __init__(
        self,
        caller: FakeCaller,
        local: FakeLocal,
        server: ApiServer,
        session: aiohttp.ClientSession,
    ) -> None:
        self.caller = caller
        self.local = local
        self.server = server
        self.session = session

    @property
    def host_port(self) -> tuple[str, int]:
        host, _, port = self.server.addresses[0].rpartition(":")
        return host, int(port)

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, dict[str, str], bytes]:
        async with self.session.request(method, path, allow_redirects=False, **more) as response:
            return response.status, dict(response.headers), await response.read()

    async def get(self, path: str, **more: Any) -> tuple[int, dict[str, str], bytes]:
        return await self.ask("GET", path, **more)


@asynccontextmanager
async def serving(
    caller: FakeCaller | None = None, local: FakeLocal | None = None, **config: Any
) -> AsyncIterator[Served]:
    """Serve on a free port for the length of the block."""
    caller, local = caller or FakeCaller(), local or FakeLocal()
    config.setdefault("addresses", ("127.0.0.1:0",))
    server = ApiServer(create_app(caller, local, ApiConfig(**config)))
    await server.start()
    scheme = "https" if config.get("tls") else "http"
    try:
        async with aiohttp.ClientSession(
            f"{scheme}://{server.addresses[0]}",
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
        ) as session:
            yield Served(caller, local, server, session)
    finally:
        await server.stop()
