"""/v1/evaluations and /v1/evaluation/:id."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api.context import Api, Route
from nomadpy.api.reads import read
from nomadpy.errors import InvalidRequestError


async def list_evaluations(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/evaluations; flags: job, status."""
    query = request.query
    if query.get("filter") and (query.get("job") or query.get("status")):
        raise InvalidRequestError("Filter expression cannot be used with other filter parameters")
    return await read(api, request, "Eval.List", words=("job", "status"))


async def count(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/evaluations/count."""
    return await read(api, request, "Eval.Count")


async def read_evaluation(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/evaluation/:id; flags: related."""
    return await read(api, request, "Eval.Get", request.match_info["id"], switches=("related",))


async def allocations(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/evaluation/:id/allocations."""
    return await read(api, request, "Eval.Allocations", request.match_info["id"])


async def explain(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/evaluation/:id/explain, which Nomad does not have; flags: nodes."""
    return await read(api, request, "Eval.Explain", request.match_info["id"], words=("nodes",))


ROUTES = [
    Route("GET", "/v1/evaluations", list_evaluations),
    Route("GET", "/v1/evaluations/count", count),
    Route("GET", "/v1/evaluation/{id}", read_evaluation),
    Route("GET", "/v1/evaluation/{id}/allocations", allocations),
    Route("GET", "/v1/evaluation/{id}/explain", explain),
]
