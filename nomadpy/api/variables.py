"""/v1/vars and /v1/var/:path: variables, check-and-set, locks."""

from __future__ import annotations

import re

from aiohttp import hdrs, web

from nomadpy.api.bodies import VariableRequest
from nomadpy.api.context import Api, Route
from nomadpy.api.errors import TEXT
from nomadpy.api.reads import read
from nomadpy.api.request import body_of, write_options
from nomadpy.api.response import JSON, body_response
from nomadpy.errors import InvalidRequestError
from nomadpy.models import calls

LOCK_OPERATIONS = ("lock-acquire", "lock-release", "lock-renew")
_MAX_UINT64 = (1 << 64) - 1


async def list_variables(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/vars: metadata only; prefix is one of paths, namespace=* is all."""
    return await read(api, request, "Variables.List")


async def read_variable(api: Api, request: web.Request) -> web.StreamResponse:
    """GET /v1/var/:path."""
    return await read(api, request, "Variables.Get", _path(request))


async def write_variable(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/var/:path, with cas, or one of lock-acquire, lock-renew, lock-release."""
    path = _path(request)
    query = request.query
    operations = [name for name in LOCK_OPERATIONS if name in query]
    if len(operations) > 1:
        raise InvalidRequestError("multiple lock operations")
    cas = _cas(query.get("cas", ""))
    if operations and cas is not None:
        raise InvalidRequestError("CAS can't be used with lock operations")
    body = await body_of(api, request, VariableRequest)
    if not operations and not body.items:
        raise InvalidRequestError("variable missing required Items object")
    lock = body.lock
    call = calls.VariableApply(
        path=path,
        op=operations[0] if operations else "set",
        options=write_options(api, request, body_namespace=body.namespace),
        cas=cas,
        items=body.items,
        lock_id=lock.id if lock is not None else "",
        ttl=lock.ttl if lock is not None else None,
        delay=lock.lock_delay if lock is not None else None,
    )
    return await _answer(api, request, call)


async def delete_variable(api: Api, request: web.Request) -> web.StreamResponse:
    """DELETE /v1/var/:path, with cas."""
    call = calls.VariableApply(
        path=_path(request),
        op="delete",
        options=write_options(api, request),
        cas=_cas(request.query.get("cas", "")),
    )
    return await _answer(api, request, call)


async def other_method(_api: Api, _request: web.Request) -> web.StreamResponse:
    """Any other method of /v1/var/:path."""
    raise InvalidRequestError("Invalid method")


async def _answer(api: Api, request: web.Request, call: calls.VariableApply) -> web.StreamResponse:
    reply: calls.VariableReply = await api.caller.call("Variables.Apply", call)
    headers = {"X-Nomad-Index": str(reply.index)} if reply.index >= 0 else {}
    if reply.conflict:
        return await _conflict(request, reply.body, headers)
    status = 200 if reply.body else 204
    return await body_response(request, reply.body, headers, status=status, content_type=JSON)


class _Untyped(web.Response):
    """A body without a Content-Type; aiohttp would put one."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall(hdrs.CONTENT_TYPE, None)


async def _conflict(
    request: web.Request, body: bytes, headers: dict[str, str]
) -> web.StreamResponse:
    """JSON under a text's name, or compressed under none, as the wire has it: 409 is sent before the type is known."""
    response = await body_response(request, body, headers, status=409, content_type=TEXT)
    if hdrs.CONTENT_ENCODING not in response.headers:
        return response
    del response.headers[hdrs.CONTENT_TYPE]
    return _Untyped(status=409, body=response.body, headers=response.headers)


def _path(request: web.Request) -> str:
    path = request.match_info["path"]
    if not path:
        raise InvalidRequestError("missing variable path")
    return path


def _cas(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) > _MAX_UINT64:
        raise InvalidRequestError(
            f'can not parse cas: strconv.ParseUint: parsing "{text}": invalid syntax'
        )
    return int(text)


ROUTES = [
    Route("GET", "/v1/vars", list_variables),
    Route("GET", "/v1/var/{path:.*}", read_variable),
    Route("PUT POST", "/v1/var/{path:.*}", write_variable),
    Route("DELETE", "/v1/var/{path:.*}", delete_variable),
    Route("*", "/v1/var/{path:.*}", other_method),
]
