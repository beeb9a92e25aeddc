"""/v1/nodes, /v1/node/:id and /v1/node/pool(s)."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api import bodies
from nomadpy.api.context import Api, Route
from nomadpy.api.reads import read, write
from nomadpy.api.request import body_of, write_options
from nomadpy.api.response import write_response
from nomadpy.errors import InvalidRequestError
from nomadpy.models import calls
from nomadpy.models.node import NodePool


async def list_nodes(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/nodes; flags: resources, os."""
    return await read(api, request, "Node.List", switches=("resources", "os"))


async def read_node(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/node/:id."""
    return await read(api, request, "Node.Get", request.match_info["id"])


async def node_allocations(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/node/:id/allocations."""
    return await read(api, request, "Node.Allocations", request.match_info["id"])


async def drain(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/node/:id/drain."""
    body = await body_of(api, request, bodies.NodeUpdateDrainRequest)
    call = calls.NodeDrainWrite(
        node_id=request.match_info["id"],
        options=write_options(api, request),
        spec=body.drain_spec,
        mark_eligible=body.mark_eligible,
        meta=body.meta,
    )
    return await write_response(request, await api.caller.call("Node.Drain", call))


async def eligibility(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/node/:id/eligibility."""
    body = await body_of(api, request, bodies.NodeUpdateEligibilityRequest)
    call = calls.NodeEligibilityWrite(
        node_id=request.match_info["id"],
        eligibility=body.eligibility,
        options=write_options(api, request),
    )
    return await write_response(request, await api.caller.call("Node.Eligibility", call))


async def evaluate(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/node/:id/evaluate."""
    return await write(api, request, "Node.Evaluate", request.match_info["id"])


async def purge(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/node/:id/purge."""
    return await write(api, request, "Node.Purge", request.match_info["id"])


async def list_pools(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/node/pools."""
    return await read(api, request, "NodePool.List")


async def read_pool(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/node/pool/:name."""
    return await read(api, request, "NodePool.Get", request.match_info["name"])


async def pool_nodes(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/node/pool/:name/nodes; flags: resources, os."""
    _no_prefix(request)
    name = request.match_info["name"]
    return await read(api, request, "NodePool.Nodes", name, switches=("resources", "os"))


async def pool_jobs(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/node/pool/:name/jobs; flags: meta."""
    _no_prefix(request)
    return await read(api, request, "NodePool.Jobs", request.match_info["name"], switches=("meta",))


async def write_pool(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/node/pools and /v1/node/pool/:name."""
    pool = await body_of(api, request, NodePool)
    name = request.match_info.get("name", pool.name)
    if name != pool.name:
        raise InvalidRequestError("Node pool name does not match request path")
    call = calls.NodePoolWrite(pool=pool, options=write_options(api, request))
    return await write_response(request, await api.caller.call("NodePool.Upsert", call))


async def delete_pool(api: Api, request: web.Request) -> web.StreamResponse:
    """DELETE /v1/node/pool/:name."""
    return await write(api, request, "NodePool.Delete", request.match_info["name"])


def _no_prefix(request: web.Request) -> None:
    if request.query.get("prefix"):
        raise InvalidRequestError("prefix argument not allowed")


ROUTES = [
    Route("GET", "/v1/nodes", list_nodes),
    Route("GET", "/v1/node/pools", list_pools),
    Route("PUT POST", "/v1/node/pools", write_pool),
    Route("GET", "/v1/node/pool/{name}", read_pool),
    Route("PUT POST", "/v1/node/pool/{name}", write_pool),
    Route("DELETE", "/v1/node/pool/{name}", delete_pool),
    Route("GET", "/v1/node/pool/{name}/nodes", pool_nodes),
    Route("GET", "/v1/node/pool/{name}/jobs", pool_jobs),
    Route("GET", "/v1/node/{id}", read_node),
    Route("GET", "/v1/node/{id}/allocations", node_allocations),
    Route("PUT POST", "/v1/node/{id}/drain", drain),
    Route("PUT POST", "/v1/node/{id}/eligibility", eligibility),
    Route("PUT POST", "/v1/node/{id}/evaluate", evaluate),
    Route("PUT POST", "/v1/node/{id}/purge", purge),
]
