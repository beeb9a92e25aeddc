"""/v1/deployments and /v1/deployment/:id."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api import bodies
from nomadpy.api.context import Api, Route
from nomadpy.api.reads import read
from nomadpy.api.request import body_of, write_options
from nomadpy.api.response import write_response
from nomadpy.errors import InvalidRequestError
from nomadpy.models import calls


async def list_deployments(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/deployments."""
    return await read(api, request, "Deployment.List")


async def read_deployment(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/deployment/:id."""
    return await read(api, request, "Deployment.Get", request.match_info["id"])


async def allocations(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/deployment/allocations/:id."""
    return await read(api, request, "Deployment.Allocations", request.match_info["id"])


async def fail(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/deployment/fail/:id; the body is optional."""
    name = request.match_info["id"]
    body = await body_of(api, request, bodies.DeploymentFailRequest, optional=True)
    _same(body.deployment_id or name, name)
    call = calls.Write(id=name, options=write_options(api, request))
    return await write_response(request, await api.caller.call("Deployment.Fail", call))


async def pause(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/deployment/pause/:id; flags: pause."""
    name = request.match_info["id"]
    body = await body_of(api, request, bodies.DeploymentPauseRequest)
    if not body.deployment_id:
        raise InvalidRequestError("DeploymentID must be specified")
    _same(body.deployment_id, name)
    call = calls.Write(
        id=name,
        options=write_options(api, request),
        flags={"pause": "true" if body.pause else "false"},
    )
    return await write_response(request, await api.caller.call("Deployment.Pause", call))


async def promote(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/deployment/promote/:id; all groups with canaries, or those named."""
    name = request.match_info["id"]
    body = await body_of(api, request, bodies.DeploymentPromoteRequest)
    if not body.deployment_id:
        raise InvalidRequestError("DeploymentID must be specified")
    _same(body.deployment_id, name)
    if body.all == bool(body.groups):
        raise InvalidRequestError("must promote either all or some groups")
    call = calls.DeploymentPromoteWrite(
        deployment_id=name,
        groups=None if body.all else body.groups,
        options=write_options(api, request),
    )
    return await write_response(request, await api.caller.call("Deployment.Promote", call))


def _same(in_body: str, in_path: str) -> None:
    if in_body != in_path:
        raise InvalidRequestError("Deployment ID does not match")


ROUTES = [
    Route("GET", "/v1/deployments", list_deployments),
    Route("GET", "/v1/deployment/{id}", read_deployment),
    Route("GET", "/v1/deployment/allocations/{id}", allocations),
    Route("PUT POST", "/v1/deployment/fail/{id}", fail),
    Route("PUT POST", "/v1/deployment/pause/{id}", pause),
    Route("PUT POST", "/v1/deployment/promote/{id}", promote),
]
