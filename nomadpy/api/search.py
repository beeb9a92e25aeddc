"""/v1/search: ids by prefix."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api import bodies
from nomadpy.api.context import Api, Route
from nomadpy.api.request import body_of, query_options
from nomadpy.api.response import read_response
from nomadpy.models import calls


async def prefix(api: Api, request: web.Request) -> web.StreamResponse:
    """PUT or POST /v1/search; the Read's id is the prefix, flags: context."""
    body = await body_of(api, request, bodies.SearchRequest)
    call = calls.Read(
        id=body.prefix,
        options=query_options(api, request),
        flags={"context": body.context},
    )
    return await read_response(request, await api.caller.call("Search.Prefix", call))


ROUTES = [Route("PUT POST", "/v1/search", prefix)]
