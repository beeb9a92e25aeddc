"""/v1/agent/*: this node itself, its view of the members, and its log."""

from __future__ import annotations

import asyncio
import base64
import collections
import logging

import msgspec
from aiohttp import web

from nomadpy import logs
from nomadpy.api.context import Api, Route
from nomadpy.api.errors import TEXT, text_response
from nomadpy.api.reads import read
from nomadpy.api.request import go_bool
from nomadpy.api.response import JSON, body_response, json_response
from nomadpy.errors import InvalidRequestError, UnsupportedError
from nomadpy.models.operator import AgentSelf

HEARTBEAT_S = 1.0

_LEVELS = {
    "TRACE": 0,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
}


async def self_(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/agent/self."""
    body = AgentSelf(
        config=api.local.config(), member=api.local.member(), stats=dict(api.local.stats())
    )
    return await json_response(request, body)


async def members(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/agent/members."""
    return await read(api, request, "Status.Members")


async def health(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/agent/health?type=server|client: 500 with the same JSON as text when an asked role is not well."""
    kinds = set(request.query.getall("type", ["server", "client"]))
    if unknown := kinds - {"server", "client"}:
        raise InvalidRequestError(
            f'unknown type "{sorted(unknown)[0]}"; use type=server or type=client'
        )
    state = await api.local.health()
    shown = {
        name: part
        for name, part in (("client", state.client), ("server", state.server))
        if name in kinds and part is not None
    }
    body = msgspec.json.encode(shown)
    if all(part.ok for part in shown.values()):
        return await body_response(request, body, {})
    return await body_response(request, body, {}, status=500, content_type=TEXT)


async def servers(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/agent/servers: of a client agent."""
    _needs_client(api)
    return await json_response(request, api.local.servers())


async def set_servers(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/agent/servers?address=host:port&address=..."""
    _needs_client(api)
    addresses = request.query.getall("address", [])
    if not any(addresses):
        raise InvalidRequestError("missing server address")
    api.local.set_servers(addresses)
    return text_response(200, "")


async def join(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/agent/join?address=host:port&address=..."""
    _needs_server(api)
    addresses = request.query.getall("address", [])
    if not any(addresses):
        raise InvalidRequestError("missing address to join")
    joined = await api.local.join(addresses)
    return await json_response(request, {"num_joined": joined, "error": ""})


async def force_leave(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/agent/force-leave?node=NAME&prune."""
    _needs_server(api)
    name = request.query.get("node", "")
    if not name:
        raise InvalidRequestError("missing node to force leave")
    prune = "prune" in request.query and go_bool(request.query["prune"], "prune", empty=True)
    await api.local.force_leave(name, prune=prune)
    return text_response(200, "")


async def monitor(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/agent/monitor: the last lines of the log and then each new one, until the client goes.

    Framed as JSON objects with base64 Data and `{}` every second, or raw with plain=true. Only lines that the agent's
    own log level lets through exist. A reader too slow for the log loses lines, and is told how many.
    """
    query = request.query
    name = query.get("log_level", "info") or "info"
    level = _LEVELS.get(name.upper())
    if level is None:
        raise InvalidRequestError(f"Unknown log level: {name}")
    for other in ("node_id", "server_id"):
        if query.get(other) not in (None, "", api.local.node_id):
            raise UnsupportedError(
                f"the log of another node is not forwarded; ask that node's own API instead of passing {other}"
            )
    plain = go_bool(query.get("plain", ""), "plain")
    response = web.StreamResponse(
        headers={"Vary": "Accept-Encoding", "Content-Type": "text/plain" if plain else JSON}
    )
    await response.prepare(request)
    with _Tail(level) as tail:
        while True:
            text = await tail.next_text(HEARTBEAT_S)
            if plain:
                if text:
                    await response.write(text)
            elif text:
                await response.write(b'{"Data":"' + base64.b64encode(text) + b'"}')
            else:
                await response.write(b"{}")


class _Tail:
    """What a reader of the log has not been sent yet: at most RING_LINES lines."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._loop = asyncio.get_running_loop()
        self._lines: collections.deque[str] = collections.deque()
        self._lost = 0
        self._fresh = asyncio.Event()

    def __enter__(self) -> _Tail:
        for level, line in list(logs.ring.lines):
            self._add(level, line)
        logs.ring.listeners.append(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        logs.ring.listeners.remove(self._heard)

    async def next_text(self, timeout_s: float) -> bytes:
        """All lines since the last call; b"" when none came in time."""
        if not self._lines:
            self._fresh.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._fresh.wait()
            except TimeoutError:
                return b""
        lines = list(self._lines)
        self._lines.clear()
        if self._lost:
            lines.insert(0, f"[{self._lost} lines were lost: the log is faster than this reader]")
            self._lost = 0
        return ("\n".join(lines) + "\n").encode("utf-8", "replace")

    def _heard(self, level: int, line: str) -> None:
        # Threads log too.
        self._loop.call_soon_threadsafe(self._add, level, line)

    def _add(self, level: int, line: str) -> None:
        if level < self._level:
            return
        if len(self._lines) >= logs.RING_LINES:
            self._lines.popleft()
            self._lost += 1
        self._lines.append(line)
        self._fresh.set()


def _needs_client(api: Api) -> None:
    if not api.local.node_id:
        raise UnsupportedError("Invalid method: this agent runs no client")


def _needs_server(api: Api) -> None:
    if not api.local.is_server:
        raise UnsupportedError("Invalid method: this agent runs no server")


ROUTES = [
    Route("GET", "/v1/agent/self", self_),
    Route("GET", "/v1/agent/members", members),
    Route("GET", "/v1/agent/health", health),
    Route("GET", "/v1/agent/servers", servers),
    Route("PUT POST", "/v1/agent/servers", set_servers),
    Route("PUT POST", "/v1/agent/join", join),
    Route("PUT POST", "/v1/agent/force-leave", force_leave),
    Route("GET", "/v1/agent/monitor", monitor),
]
