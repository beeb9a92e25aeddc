"""/v1/client/*: what one node answers about itself and its allocations; the Caller finds the node."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from nomadpy.api import bodies
from nomadpy.api.context import Api, Route
from nomadpy.api.errors import text_response
from nomadpy.api.exec import exec_
from nomadpy.api.request import body_of, go_bool, go_int, query_options, token_of
from nomadpy.api.response import JSON, read_response, stream_response, write_response
from nomadpy.errors import InvalidRequestError
from nomadpy.models import calls

_STREAMED = "text/plain; charset=utf-8"


async def stats(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/stats?node_id=."""
    return await _node(api, request, "Client.Stats")


async def metadata(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/metadata?node_id=."""
    return await _node(api, request, "Client.Meta")


async def set_metadata(api: Api, request: web.Request) -> web.StreamResponse:
    """POST /v1/client/metadata; the body's NodeID wins over the query's."""
    query_options(api, request)
    body = await body_of(api, request, bodies.NodeMetaApplyRequest)
    for key, value in (body.meta or {}).items():
        if not isinstance(value, str | None):
            raise InvalidRequestError(
                f"json: the value of Meta.{key} must be a string, or null to remove it"
            )
    call = calls.ClientMetaApply(
        node_id=body.node_id or _node_id(api, request),
        token=token_of(request),
        meta=body.meta or {},
    )
    return await read_response(request, await api.caller.call("Client.MetaApply", call))


async def collect_garbage(api: Api, request: web.Request) -> web.StreamResponse:
    """Any method on /v1/client/gc?node_id=."""
    return await _node(api, request, "Client.GarbageCollect")


async def alloc_stats(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/allocation/:id/stats?task=."""
    task = request.query.get("task")
    return await _alloc(api, request, "ClientAlloc.Stats", {"task": task} if task else {})


async def alloc_checks(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/allocation/:id/checks and /v1/allocation/:id/checks."""
    return await _alloc(api, request, "ClientAlloc.Checks", {})


async def alloc_gc(api: Api, request: web.Request) -> web.StreamResponse:
    """Any method on /v1/client/allocation/:id/gc."""
    return await _alloc(api, request, "ClientAlloc.GarbageCollect", {})


async def alloc_restart(api: Api, request: web.Request) -> web.StreamResponse:
    """Any method on /v1/client/allocation/:id/restart; an empty body restarts the running tasks."""
    query_options(api, request)
    body = await body_of(api, request, bodies.AllocationRestartRequest, optional=True)
    if body.all_tasks and body.task_name:
        raise InvalidRequestError(
            "cannot set both TaskName and AllTasks; name a task or restart all of them"
        )
    call = calls.AllocRestart(
        alloc_id=request.match_info["id"],
        task=body.task_name,
        all_tasks=body.all_tasks,
        token=token_of(request),
    )
    answer = await api.caller.call("ClientAlloc.Restart", call)
    return await write_response(request, answer, index_header=False)


async def alloc_signal(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/client/allocation/:id/signal."""
    query_options(api, request)
    try:
        body = await body_of(api, request, bodies.AllocSignalRequest)
    except InvalidRequestError as cause:
        raise InvalidRequestError(
            f"Failed to decode body: {cause.message}", status=cause.status
        ) from cause
    call = calls.AllocSignal(
        alloc_id=request.match_info["id"],
        signal=body.signal,
        task=body.task,
        token=token_of(request),
    )
    answer = await api.caller.call("ClientAlloc.Signal", call)
    return await write_response(request, answer, index_header=False)


async def files_list(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/fs/ls/:alloc?path=."""
    call = _file(api, request, path=request.query.get("path") or "/")
    return await read_response(request, await api.caller.call("FS.List", call))


async def files_stat(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/fs/stat/:alloc?path=."""
    call = _file(api, request, path=_path(request))
    return await read_response(request, await api.caller.call("FS.Stat", call))


async def files_cat(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/fs/cat/:alloc?path=: the raw bytes.

    A missing file is a 404 here; Nomad answers 200 with the error as the body, which no client can tell from a file.
    """
    call = _file(api, request, path=_path(request), plain=True)
    async with api.caller.open("FS.Cat", call) as stream:
        return await stream_response(request, stream)


async def files_read_at(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/fs/readat/:alloc?path=&offset=&limit=: raw bytes of a part."""
    offset, limit = request.query.get("offset", ""), request.query.get("limit", "")
    call = _file(
        api,
        request,
        path=_path(request),
        offset=_position(offset, "offset"),
        limit=_position(limit, "limit") if limit else 0,
        plain=True,
    )
    async with api.caller.open("FS.ReadAt", call) as stream:
        return await stream_response(request, stream)


async def files_stream(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/fs/stream/:alloc?path=&offset=&origin=&follow=: frames; follows unless told not to."""
    query = request.query
    call = _file(
        api,
        request,
        path=_path(request),
        offset=_position(query.get("offset") or "0", "offset"),
        origin=_origin(request),
        follow=_follow(request, default=True),
    )
    async with api.caller.open("FS.Stream", call) as stream:
        return await stream_response(request, stream, content_type=_STREAMED)


async def logs(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/client/fs/logs/:alloc?task=&type=&offset=&origin=&follow=&plain=."""
    query_options(api, request)
    query = request.query
    task, kind = query.get("task", ""), query.get("type", "")
    if not task:
        raise InvalidRequestError("must provide task name")
    if kind not in ("stdout", "stderr"):
        raise InvalidRequestError("must provide log type (stdout/stderr)")
    plain = go_bool(query.get("plain", ""), "plain")
    call = calls.LogsRead(
        alloc_id=request.match_info["id"],
        task=task,
        type=kind,
        offset=_position(query.get("offset") or "0", "offset"),
        origin=_origin(request),
        follow=_follow(request, default=False),
        plain=plain,
        token=token_of(request),
    )
    async with api.caller.open("FS.Logs", call) as stream:
        return await stream_response(request, stream, content_type="text/plain" if plain else JSON)


async def no_alloc(_api: Api, _request: web.Request) -> web.StreamResponse:
    """A file route without an allocation."""
    return text_response(400, "must provide a valid alloc id")


async def _node(api: Api, request: web.Request, method: str) -> web.StreamResponse:
    query_options(api, request)
    call = calls.NodeRead(node_id=_node_id(api, request), token=token_of(request))
    return await read_response(request, await api.caller.call(method, call))


async def _alloc(
    api: Api, request: web.Request, method: str, flags: dict[str, str]
) -> web.StreamResponse:
    query_options(api, request)
    call = calls.NodeRead(alloc_id=request.match_info["id"], token=token_of(request), flags=flags)
    return await read_response(request, await api.caller.call(method, call))


def _node_id(api: Api, request: web.Request) -> str:
    """The node that is asked about: the query's, else this node itself."""
    node_id = request.query.get("node_id") or api.local.node_id
    if not node_id:
        raise InvalidRequestError(
            "this agent runs no client; say which node is meant with ?node_id="
        )
    return node_id


def _file(api: Api, request: web.Request, *, path: str, **more: Any) -> calls.FileRead:
    query_options(api, request)
    call = calls.FileRead(alloc_id=request.match_info["id"], path=path, token=token_of(request))
    return msgspec.structs.replace(call, **more)


def _path(request: web.Request) -> str:
    path = request.query.get("path", "")
    if not path:
        raise InvalidRequestError("must provide a file name")
    return path


def _position(text: str, name: str) -> int:
    position = go_int(text, name)
    if position < 0:
        raise InvalidRequestError(f"{name} must not be negative")
    return position


def _origin(request: web.Request) -> str:
    origin = request.query.get("origin") or "start"
    if origin not in ("start", "end"):
        raise InvalidRequestError("origin must be start or end")
    return origin


def _follow(request: web.Request, *, default: bool) -> bool:
    text = request.query.get("follow", "")
    return go_bool(text, "follow") if text else default


ROUTES = [
    Route("GET", "/v1/client/stats", stats),
    Route("GET", "/v1/client/metadata", metadata),
    Route("POST", "/v1/client/metadata", set_metadata),
    Route("*", "/v1/client/gc", collect_garbage),
    Route("GET", "/v1/client/allocation/{id}/stats", alloc_stats),
    Route("GET", "/v1/client/allocation/{id}/checks", alloc_checks),
    Route("GET", "/v1/allocation/{id}/checks", alloc_checks),
    Route("*", "/v1/client/allocation/{id}/gc", alloc_gc),
    Route("*", "/v1/client/allocation/{id}/restart", alloc_restart),
    Route("PUT POST", "/v1/client/allocation/{id}/signal", alloc_signal),
    Route("GET", "/v1/client/allocation/{id}/exec", exec_),
    Route("GET", "/v1/client/fs/ls/{id}", files_list),
    Route("GET", "/v1/client/fs/stat/{id}", files_stat),
    Route("GET", "/v1/client/fs/cat/{id}", files_cat),
    Route("GET", "/v1/client/fs/readat/{id}", files_read_at),
    Route("GET", "/v1/client/fs/stream/{id}", files_stream),
    Route("GET", "/v1/client/fs/logs/{id}", logs),
    *(
        Route("GET", f"/v1/client/fs/{what}/", no_alloc)
        for what in ("ls", "stat", "cat", "readat", "stream", "logs")
    ),
]
