"""/v1/status/*, /v1/regions, /v1/system/*, /v1/metrics, the JWKS and the root page."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api.context import Api, Route
from nomadpy.api.errors import text_response
from nomadpy.api.reads import read, write
from nomadpy.api.request import query_options
from nomadpy.api.response import json_response, read_response
from nomadpy.models import calls

_NO_UI = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>nomadpy</title></head>
<body><p>This agent has no web UI built in. The HTTP API is under <code>/v1/</code>;
on the command line, start with <code>nomadpy status</code>.</p></body></html>
"""


async def leader(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/status/leader: host:port of its rpc, as a JSON string."""
    return await read(api, request, "Status.Leader")


async def peers(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/status/peers."""
    return await read(api, request, "Status.Peers")


async def regions(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/regions."""
    return await read(api, request, "Status.Regions")


async def collect_garbage(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT /v1/system/gc."""
    return await write(api, request, "System.GarbageCollect", index_header=False)


async def reconcile_summaries(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT /v1/system/reconcile/summaries."""
    return await write(api, request, "System.ReconcileSummaries", index_header=False)


async def metrics(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/metrics: this node's figures, JSON or (where enabled) Prometheus text."""
    prometheus = request.query.get("format") == "prometheus"
    if prometheus and not api.config.prometheus:
        return text_response(415, "Prometheus is not enabled")
    await api.local.metrics.refresh()
    if prometheus:
        response = text_response(200, api.local.metrics.prometheus_text())
        response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
        return response
    return await json_response(request, api.local.metrics.json_body())


async def jwks(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /.well-known/jwks.json: the keys that workload identities are signed with."""
    call = calls.Read(options=query_options(api, request))
    response = await read_response(request, await api.caller.call("Keyring.JWKS", call))
    response.headers["Cache-Control"] = "public, max-age=300"
    return response


async def openid_configuration(_api: Api, _request: web.Request) -> web.StreamResponse:
    """GET /.well-known/openid-configuration: not offered without an issuer."""
    return text_response(404, "OIDC Discovery endpoint disabled")


async def root(_api: Api, request: web.Request) -> web.StreamResponse:
    """GET /: to the UI, with the query."""
    query = request.rel_url.raw_query_string
    return web.Response(status=307, headers={"Location": "/ui/" + (f"?{query}" if query else "")})


async def no_ui(_api: Api, _request: web.Request) -> web.StreamResponse:
    """GET /ui/: says that there is none."""
    return web.Response(text=_NO_UI, content_type="text/html", charset="utf-8")


ROUTES = [
    Route("GET", "/v1/status/leader", leader),
    Route("GET", "/v1/status/peers", peers),
    Route("GET", "/v1/regions", regions),
    Route("PUT", "/v1/system/gc", collect_garbage),
    Route("PUT", "/v1/system/reconcile/summaries", reconcile_summaries),
    Route("GET", "/v1/metrics", metrics),
    Route("GET", "/.well-known/jwks.json", jwks),
    Route("GET", "/.well-known/openid-configuration", openid_configuration),
    Route("GET", "/", root),
]

UI_ROUTES = [Route("GET", "/ui", no_ui), Route("GET", "/ui/{rest:.*}", no_ui)]
