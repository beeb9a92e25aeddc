"""What every handler of the API gets, and how a handler is told its route."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web

from nomadpy.api.local import LocalNode
from nomadpy.rpc.caller import Caller

MEBIBYTE = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiConfig:
    """Where the API listens, and its limits.

    addresses: `host:port` (port 0 lets the system choose) or `unix:///path`. tls: None serves plain HTTP; to demand
    client certificates (verify_https_client), give a context with verify_mode CERT_REQUIRED.
    max_body_bytes: a larger request body is answered 413; 32 MiB holds a job with its full 1 MiB source and a
    payload many times over, and a node still survives a hundred of them at once.
    max_connections_per_client: more from one IP address are answered 429 and closed; 0 is no limit; unix sockets
    are never limited. header_timeout_s: from the connection's start (TLS included) to its first whole request head.
    body_timeout_s: for the whole body. keepalive_s: idle time between two requests.
    prometheus: whether /v1/metrics?format=prometheus answers. response_headers: added to every answer.
    """

    addresses: tuple[str, ...] = ("127.0.0.1:4646",)
    tls: ssl.SSLContext | None = None
    max_body_bytes: int = 32 * MEBIBYTE
    max_connections_per_client: int = 100
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    handshake_timeout_s: float = 5.0
    keepalive_s: float = 75.0
    prometheus: bool = False
    response_headers: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Api:
    """Handed to every handler."""

    caller: Caller
    local: LocalNode
    config: ApiConfig


Handler = Callable[[Api, web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """One row of a module's ROUTES. methods: space separated; path: aiohttp's pattern."""

    methods: str
    path: str
    handler: Handler


API_KEY: web.AppKey[Api] = web.AppKey("api", Api)
