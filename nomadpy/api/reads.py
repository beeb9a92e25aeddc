"""What simple routes share: one Read or Write call, its own flags, and the answer dressed."""

from __future__ import annotations

from aiohttp import web

from nomadpy.api.context import Api
from nomadpy.api.request import flags, query_options, write_options
from nomadpy.api.response import read_response, write_response
from nomadpy.models import calls


async def read(
    api: Api,
    request: web.Request,
    method: str,
    name: str = "",
    *,
    switches: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
) -> web.StreamResponse:
    """Call a read method with the query's options. switches, words: its own parameters (see request.flags)."""
    call = calls.Read(
        id=name,
        options=query_options(api, request),
        flags=flags(request, switches=switches, words=words),
    )
    return await read_response(request, await api.caller.call(method, call))


async def write(
    api: Api,
    request: web.Request,
    method: str,
    name: str = "",
    *,
    switches: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    index_header: bool = True,
) -> web.StreamResponse:
    """Call a write method that needs nothing but a name and flags."""
    call = calls.Write(
        id=name,
        options=write_options(api, request),
        flags=flags(request, switches=switches, words=words),
    )
    answer = await api.caller.call(method, call)
    return await write_response(request, answer, index_header=index_header)
