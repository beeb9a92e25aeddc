"""/v1/operator/*: raft, autopilot, scheduler configuration, keyring, license."""

from __future__ import annotations

import msgspec
from aiohttp import web

from nomadpy.api.context import Api, Route
from nomadpy.api.errors import text_response
from nomadpy.api.reads import read, write
from nomadpy.api.request import (
    as_struct,
    body_of,
    go_bool,
    go_duration,
    query_options,
    raw_body,
    write_options,
)
from nomadpy.api.response import body_response, write_response
from nomadpy.errors import InvalidRequestError
from nomadpy.models import calls
from nomadpy.models.operator import AutopilotConfiguration, SchedulerConfiguration


async def raft_configuration(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/operator/raft/configuration."""
    return await read(api, request, "Operator.RaftConfiguration")


async def raft_remove_peer(api: Api, request: web.Request) -> web.StreamResponse:
    """DELETE /v1/operator/raft/peer?id= or ?address=."""
    flags = _one_server(request)
    call = calls.Write(id=flags.pop("id", ""), options=write_options(api, request), flags=flags)
    return await write_response(request, await api.caller.call("Operator.RemovePeer", call))


async def raft_transfer_leadership(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/operator/raft/transfer-leadership?id= or ?address=."""
    flags = _one_server(request)
    call = calls.Write(id=flags.pop("id", ""), options=write_options(api, request), flags=flags)
    return await write_response(request, await api.caller.call("Operator.TransferLeadership", call))


def _one_server(request: web.Request) -> dict[str, str]:
    """The one `id` or `address` of the query."""
    ids, addresses = request.query.getall("id", []), request.query.getall("address", [])
    if len(ids) + len(addresses) == 0:
        raise InvalidRequestError("Must specify the peer's ID or its address")
    if len(ids) + len(addresses) > 1:
        raise InvalidRequestError("The peer's ID or its address must be given once, not both")
    if not (ids or addresses)[0]:
        raise InvalidRequestError("The peer's ID or address must not be empty")
    return {"id": ids[0]} if ids else {"address": addresses[0]}


async def snapshot_save(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/operator/snapshot: the archive, with its digest and index in the head."""
    call = calls.Read(options=query_options(api, request))
    async with api.caller.open("Operator.SnapshotSave", call) as stream:
        head = msgspec.json.decode(await stream.receive() or b"", type=_SnapshotHead)
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/x-gzip",
                "Content-Disposition": "attachment",
                "Content-Length": str(head.size),
                "Digest": head.digest,
                "X-Nomad-Index": str(head.index),
                "X-Nomad-KnownLeader": "true",
                "X-Nomad-LastContact": "0",
                "Vary": "Accept-Encoding",
            }
        )
        await response.prepare(request)
        while (chunk := await stream.receive()) is not None:
            await response.write(chunk)
        await response.write_eof()
    return response


async def snapshot_restore(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/operator/snapshot: replace the cluster's state; answered when every part of it is committed."""
    call = calls.Write(options=write_options(api, request))
    async with api.caller.open("Operator.SnapshotRestore", call) as stream:
        async for chunk in request.content.iter_chunked(_SENT):
            await stream.send(chunk)
        await stream.finish()
        while await stream.receive() is not None:
            pass
    return web.Response(headers={"Vary": "Accept-Encoding"})


async def autopilot_configuration(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/operator/autopilot/configuration."""
    return await read(api, request, "Operator.AutopilotConfiguration")


async def set_autopilot_configuration(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT /v1/operator/autopilot/configuration; durations are Go duration strings (nanoseconds are taken too)."""
    raw = await raw_body(api, request, AutopilotConfiguration)
    for name in ("LastContactThreshold", "ServerStabilizationTime"):
        value = raw.get(name)
        if isinstance(value, str) and value and go_duration(value) is None:
            raise InvalidRequestError(
                f'Error parsing autopilot config: {name}: time: invalid duration "{value}"'
            )
    call = calls.AutopilotConfigWrite(
        config=as_struct(raw, AutopilotConfiguration),
        options=write_options(api, request),
        cas=_cas(request),
    )
    answer = await api.caller.call("Operator.SetAutopilotConfiguration", call)
    return await write_response(request, answer)


async def autopilot_health(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/operator/autopilot/health: 429 with the same body when the cluster is not healthy."""
    call = calls.Read(options=query_options(api, request))
    answer = await api.caller.call("Operator.AutopilotHealth", call)
    healthy = msgspec.json.decode(answer.body, type=_Health).healthy
    return await body_response(request, answer.body, {}, status=200 if healthy else 429)


async def scheduler_configuration(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/operator/scheduler/configuration."""
    return await read(api, request, "Operator.SchedulerConfiguration")


async def set_scheduler_configuration(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/operator/scheduler/configuration."""
    config = await body_of(api, request, SchedulerConfiguration)
    call = calls.SchedulerConfigWrite(
        config=config, options=write_options(api, request), cas=_cas(request)
    )
    answer = await api.caller.call("Operator.SetSchedulerConfiguration", call)
    return await write_response(request, answer)


async def keyring_list(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/operator/keyring/keys."""
    return await read(api, request, "Keyring.List")


async def keyring_rotate(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/operator/keyring/rotate; flags: full, algo, publish_time."""
    return await write(
        api, request, "Keyring.Rotate", switches=("full",), words=("algo", "publish_time")
    )


async def keyring_delete(api: Api, request: web.Request) -> web.StreamResponse:
    """DELETE /v1/operator/keyring/key/:id; force also removes a key that variables are encrypted with."""
    text = request.query.get("force", "")
    try:
        force = go_bool(text, "force")
    except InvalidRequestError as cause:
        raise InvalidRequestError("invalid force parameter", status=422) from cause
    call = calls.Write(
        id=request.match_info["id"],
        options=write_options(api, request),
        flags={"force": "true" if force else "false"},
    )
    return await write_response(request, await api.caller.call("Keyring.Delete", call))


async def license_get(_api: Api, _request: web.Request) -> web.StreamResponse:
    """GET /v1/operator/license: there is none."""
    return web.Response(status=204, headers={"Vary": "Accept-Encoding"})


async def enterprise_only(_api: Api, _request: web.Request) -> web.StreamResponse:
    """A route of the paid edition."""
    return text_response(501, "Nomad Enterprise only endpoint")


_SENT = 256 << 10


class _SnapshotHead(msgspec.Struct, rename="pascal"):
    index: int
    size: int
    digest: str


class _Health(msgspec.Struct):
    healthy: bool = msgspec.field(default=False, name="Healthy")


def _cas(request: web.Request) -> int | None:
    text = request.query.get("cas")
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 19:
        raise InvalidRequestError(
            f'Error parsing cas value: strconv.ParseUint: parsing "{text}": invalid syntax'
        )
    return int(text)


ROUTES = [
    Route("GET", "/v1/operator/raft/configuration", raft_configuration),
    Route("DELETE", "/v1/operator/raft/peer", raft_remove_peer),
    Route("PUT POST", "/v1/operator/raft/transfer-leadership", raft_transfer_leadership),
    Route("GET", "/v1/operator/snapshot", snapshot_save),
    Route("PUT POST", "/v1/operator/snapshot", snapshot_restore),
    Route("GET", "/v1/operator/autopilot/configuration", autopilot_configuration),
    Route("PUT", "/v1/operator/autopilot/configuration", set_autopilot_configuration),
    Route("GET", "/v1/operator/autopilot/health", autopilot_health),
    Route("GET", "/v1/operator/scheduler/configuration", scheduler_configuration),
    Route("PUT POST", "/v1/operator/scheduler/configuration", set_scheduler_configuration),
    Route("GET", "/v1/operator/keyring/keys", keyring_list),
    Route("PUT POST", "/v1/operator/keyring/rotate", keyring_rotate),
    Route("DELETE", "/v1/operator/keyring/key/{id}", keyring_delete),
    Route("GET", "/v1/operator/license", license_get),
    Route("PUT POST", "/v1/operator/license", enterprise_only),
    Route("POST", "/v1/operator/utilization", enterprise_only),
    *(
        Route("*", path, enterprise_only)
        for path in (
            "/v1/sentinel/policies",
            "/v1/sentinel/policy/{name}",
            "/v1/quotas",
            "/v1/quota-usages",
            "/v1/quota",
            "/v1/quota/{name}",
            "/v1/recommendation",
            "/v1/recommendations",
            "/v1/recommendations/apply",
            "/v1/recommendation/{id}",
        )
    ),
]
