"""/v1/volumes and /v1/volume/host: dynamic host volumes, and the claims of sticky ones."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api import bodies
from nomadpy.api.context import Api, Route
from nomadpy.api.errors import text_response
from nomadpy.api.reads import read, write
from nomadpy.api.request import body_of, flags, write_options
from nomadpy.api.response import json_response, write_response
from nomadpy.errors import InvalidRequestError
from nomadpy.models import calls

NODE_WAIT_S = 90.0
"""A plugin has a minute, and the way there takes its time too."""


async def list_volumes(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/volumes?type=host; flags: node_id, node_pool. Of type csi, or of none, there are no volumes."""
    kind = request.query.get("type")
    if kind in (None, "csi"):
        return await json_response(request, [])
    if kind != "host":
        return text_response(404, "")
    return await read(api, request, "HostVolume.List", words=("node_id", "node_pool"))


async def read_volume(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/volume/host/:id."""
    return await read(api, request, "HostVolume.Get", request.match_info["id"])


async def create_volume(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/volume/host/create."""
    return await _write_volume(api, request, "HostVolume.Create")


async def register_volume(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/volume/host/register."""
    return await _write_volume(api, request, "HostVolume.Register")


async def delete_volume(api: Api, request: web.Request) -> web.StreamResponse:
    """DELETE /v1/volume/host/:id and /v1/volume/host/:id/delete; flags: force."""
    call = calls.Write(
        id=request.match_info["id"],
        options=write_options(api, request),
        flags=flags(request, switches=("force",)),
    )
    answer = await api.caller.call("HostVolume.Delete", call, timeout_s=NODE_WAIT_S)
    return await write_response(request, answer)


async def list_claims(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/volumes/claims; flags: job_id, task_group, volume_name."""
    words = ("job_id", "task_group", "volume_name")
    return await read(api, request, "TaskGroupHostVolumeClaim.List", words=words)


async def delete_claim(api: Api, request: web.Request) -> web.StreamResponse:
    """DELETE /v1/volumes/claim/:id."""
    name = request.match_info["id"]
    return await write(api, request, "TaskGroupHostVolumeClaim.Delete", name)


async def _write_volume(api: Api, request: web.Request, method: str) -> web.StreamResponse:
    body = await body_of(api, request, bodies.HostVolumeRequest)
    if body.volume is None:
        raise InvalidRequestError("missing volume definition: the body needs a Volume")
    call = calls.HostVolumeWrite(
        volume=body.volume,
        options=write_options(api, request, body_namespace=body.volume.namespace or body.namespace),
    )
    answer = await api.caller.call(method, call, timeout_s=NODE_WAIT_S)
    return await write_response(request, answer)


ROUTES = [
    Route("GET", "/v1/volumes", list_volumes),
    Route("GET", "/v1/volumes/claims", list_claims),
    Route("DELETE", "/v1/volumes/claim/{id}", delete_claim),
    Route("PUT POST", "/v1/volume/host/create", create_volume),
    Route("PUT POST", "/v1/volume/host/register", register_volume),
    Route("GET", "/v1/volume/host/{id}", read_volume),
    Route("DELETE", "/v1/volume/host/{id}", delete_volume),
    Route("DELETE", "/v1/volume/host/{id}/delete", delete_volume),
]
