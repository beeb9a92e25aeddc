"""Answers and streams to responses: Content-Type, index headers, ?pretty, gzip when asked.

The server side has built every body; here it is only dressed. Bodies below THREAD_BYTES are compressed on the event
loop (it is cheaper than changing threads), larger ones in a thread. Streams are never compressed: a follower wants
each line at once.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

import msgspec
from aiohttp import hdrs, web

from nomadpy.errors import NomadError
from nomadpy.models.envelope import Answer
from nomadpy.rpc.caller import Stream

JSON = "application/json"
THREAD_BYTES = 64 * 1024
GZIP_LEVEL = 1
PATIENCE_S = 1.0

_UNTRUSTED = {
    # What a task wrote is shown by the agent's own origin; a browser must neither guess its type nor run it.
    "X-Content-Type-Options": "nosniff",
    "X-XSS-Protection": "1; mode=block",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
}


async def read_response(request: web.Request, answer: Answer) -> web.Response:
    """A read's answer: all three index headers when the server knows its last contact."""
    headers: dict[str, str] = {}
    if answer.last_contact_ms >= 0:
        headers["X-Nomad-Index"] = str(answer.index)
        headers["X-Nomad-Lastcontact"] = str(answer.last_contact_ms)
        headers["X-Nomad-Knownleader"] = "true" if answer.known_leader else "false"
    elif answer.index:
        headers["X-Nomad-Index"] = str(answer.index)
    if answer.next_token:
        headers["X-Nomad-Nexttoken"] = answer.next_token
    return await body_response(request, answer.body, headers)


async def write_response(
    request: web.Request, answer: Answer, *, index_header: bool = True
) -> web.Response:
    """A write's answer: the index header, also when nothing changed and the index is 0."""
    headers = {"X-Nomad-Index": str(answer.index)} if index_header else {}
    return await body_response(request, answer.body, headers)


async def json_response(
    request: web.Request, value: Any, *, status: int = 200, content_type: str = JSON
) -> web.Response:
    """A value this node has made itself; structs are encoded by their wire names."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return await body_response(request, body, {}, status=status, content_type=content_type)


async def body_response(
    request: web.Request,
    body: bytes,
    headers: dict[str, str],
    *,
    status: int = 200,
    content_type: str = JSON,
) -> web.Response:
    """Bytes as they are, pretty and compressed as the request wishes; an empty body has no Content-Type."""
    headers["Vary"] = "Accept-Encoding"
    if not body:
        return web.Response(status=status, headers=headers)
    headers["Content-Type"] = content_type
    if _wants_pretty(request):
        body = msgspec.json.format(body, indent=4) + b"\n"
    if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
        headers["Content-Encoding"] = "gzip"
        body = _gzip(body) if len(body) < THREAD_BYTES else await asyncio.to_thread(_gzip, body)
    return web.Response(status=status, body=body, headers=headers)


async def compressed(request: web.Request, response: web.Response) -> web.Response:
    """Compress a finished small answer (an error) when the request accepts it."""
    body = response.body
    if isinstance(body, bytes) and body and "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
        response.headers["Content-Encoding"] = "gzip"
        response.body = _gzip(body)
    return response


async def stream_response(
    request: web.Request, stream: Stream, *, content_type: str | None = None
) -> web.StreamResponse:
    """Pass a stream's chunks on until it ends or the client is gone.

    content_type None is for raw files: the first chunk decides between text and bytes, as Go's sniffer would.
    An error before the first chunk is raised, so that it has its own status; a later one can only end the body,
    after its text. A stream that has nothing to say yet is answered after PATIENCE_S: a client that follows a quiet
    log waits for the head of the answer.
    """
    async with asyncio.TaskGroup() as group:
        first = group.create_task(_first_chunk(stream), name="stream-first-chunk")
        await asyncio.wait({first}, timeout=PATIENCE_S)
        if not first.done():
            return await _pass_on(await _begin(request, content_type, b""), stream, first)
    chunk = first.result()
    if isinstance(chunk, NomadError):
        raise chunk
    response = await _begin(request, content_type, chunk or b"")
    return await _pass_on(response, stream, first)


async def _begin(
    request: web.Request, content_type: str | None, start: bytes
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Vary": "Accept-Encoding"})
    if content_type is None:
        response.headers.update(_UNTRUSTED)
        content_type = sniffed(start)
    response.headers["Content-Type"] = content_type
    await response.prepare(request)
    return response


async def _first_chunk(stream: Stream) -> bytes | NomadError | None:
    try:
        return await stream.receive()
    except NomadError as error:
        return error


async def _pass_on(
    response: web.StreamResponse, stream: Stream, first: asyncio.Task[bytes | NomadError | None]
) -> web.StreamResponse:
    chunk = await first
    try:
        if isinstance(chunk, NomadError):
            raise chunk
        while chunk is not None:
            await response.write(chunk)
            chunk = await stream.receive()
    except NomadError as error:
        await response.write(error.message.encode("utf-8", "replace"))
    await response.write_eof()
    return response


def sniffed(start: bytes) -> str:
    """text/plain unless the bytes have what text never has. Markup stays text: it is a task's, not ours."""
    if any(byte < 9 or 14 <= byte < 27 or 28 <= byte < 32 for byte in start[:512]):
        return "application/octet-stream"
    return "text/plain; charset=utf-8"


def _wants_pretty(request: web.Request) -> bool:
    if "pretty" not in request.rel_url.raw_query_string:
        return False
    value = request.query.get("pretty")
    return value is not None and value != "0"


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    return packer.compress(body) + packer.flush()
