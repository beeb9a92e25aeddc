"""/v1/namespaces and /v1/namespace/:name, read only."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api.context import Api, Route
from nomadpy.api.reads import read


async def list_namespaces(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/namespaces."""
    return await read(api, request, "Namespace.List")


async def read_namespace(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/namespace/:name."""
    return await read(api, request, "Namespace.Get", request.match_info["name"])


ROUTES = [
    Route("GET", "/v1/namespaces", list_namespaces),
    Route("GET", "/v1/namespace/{name}", read_namespace),
]
