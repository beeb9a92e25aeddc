"""/v1/allocations and /v1/allocation/:id."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api.context import Api, Route
from nomadpy.api.reads import read, write


async def list_allocations(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/allocations; flags: resources, task_states (absent means true)."""
    return await read(api, request, "Alloc.List", switches=("resources", "task_states"))


async def read_allocation(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/allocation/:id."""
    return await read(api, request, "Alloc.Get", request.match_info["id"])


async def stop(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/allocation/:id/stop; flags: no_shutdown_delay, reschedule."""
    name = request.match_info["id"]
    switches = ("no_shutdown_delay", "reschedule")
    return await write(api, request, "Alloc.Stop", name, switches=switches)


async def services(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/allocation/:id/services."""
    return await read(api, request, "Alloc.Services", request.match_info["id"])


ROUTES = [
    Route("GET", "/v1/allocations", list_allocations),
    Route("GET", "/v1/allocation/{id}", read_allocation),
    Route("PUT POST", "/v1/allocation/{id}/stop", stop),
    Route("GET", "/v1/allocation/{id}/services", services),
]
