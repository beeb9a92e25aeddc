"""The websocket of /v1/client/allocation/:id/exec, bridged to the ClientAlloc.Exec stream.

In:      text frames of the browser or CLI: {"stdin": ...}, {"tty_size": ...}, {} as a sign of life.
Out:     the node's frames: {"stdout": ...}, {"stderr": ...}, {"exited": true, "result": {"exit_code": 0}}.
Errors before the upgrade are HTTP answers; later ones are close frames, 1011 for a 500 and 1008 for the rest.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from nomadpy.api.context import MEBIBYTE, Api
from nomadpy.api.request import go_bool, query_options, token_of
from nomadpy.errors import InvalidRequestError, NomadError, PermissionDeniedError
from nomadpy.models import calls
from nomadpy.rpc.caller import Stream

HANDSHAKE_S = 10.0
PING_S = 30.0
_REASON_BYTES = 123  # what a close frame holds


class _Handshake(msgspec.Struct):
    version: int = 0
    auth_token: str = ""


async def exec_(api: Api, request: web.Request) -> web.StreamResponse:
    """GET (websocket) ...?task=&command=["/bin/sh"]&tty=&ws_handshake=."""
    query_options(api, request)
    query = request.query
    try:
        command = msgspec.json.decode(query.get("command", ""), type=list[str])
    except msgspec.MsgspecError as cause:
        raise InvalidRequestError(
            f'command must be a JSON array of strings, e.g. ["/bin/sh"]: {cause}'
        ) from cause
    if not command:
        raise InvalidRequestError("command must not be empty")
    tty = go_bool(query.get("tty", ""), "tty")
    handshake = go_bool(query.get("ws_handshake", ""), "ws_handshake")
    _same_origin(request)
    socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MEBIBYTE)
    if not socket.can_prepare(request).ok:
        raise InvalidRequestError("this route is a websocket; send an upgrade request")
    await socket.prepare(request)
    try:
        token = await _handshake_token(socket) if handshake else token_of(request)
        start = calls.ExecStart(
            alloc_id=request.match_info["id"],
            task=query.get("task", ""),
            command=command,
            tty=tty,
            token=token,
        )
        async with api.caller.open("ClientAlloc.Exec", start) as stream:
            await _bridge(socket, stream)
        await socket.close(code=WSCloseCode.OK)
    except NomadError as error:
        code = WSCloseCode.INTERNAL_ERROR if error.status == 500 else WSCloseCode.POLICY_VIOLATION
        await socket.close(code=code, message=_reason(error.message))
    return socket


async def _bridge(socket: web.WebSocketResponse, stream: Stream) -> None:
    """Pass frames both ways until the node has finished, or the client has gone. Raises the node's NomadError."""
    failure: list[NomadError] = []

    async def to_client() -> None:
        try:
            while (chunk := await stream.receive()) is not None:
                await socket.send_str(chunk.decode("utf-8", "replace"))
        except NomadError as error:
            failure.append(error)

    async def to_node() -> None:
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await stream.send(message.data.encode())
                elif message.type is WSMsgType.BINARY:
                    await stream.send(message.data)
        except NomadError as error:
            failure.append(error)

    async with asyncio.TaskGroup() as group:
        ends = {
            group.create_task(to_client(), name="exec-to-client"),
            group.create_task(to_node(), name="exec-to-node"),
        }
        # Whichever side ends first ends the session: a node that has finished has nothing more to hear, and
        # without a client the process must be told at once.
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
    if failure:
        raise failure[0]


async def _handshake_token(socket: web.WebSocketResponse) -> str:
    """The token of the first message, for browsers, which cannot set headers on a websocket."""
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            hello = msgspec.json.decode(await socket.receive_str(), type=_Handshake)
    except TimeoutError as cause:
        raise InvalidRequestError("no handshake message came") from cause
    except (TypeError, msgspec.MsgspecError) as cause:
        raise InvalidRequestError("the first message must be the handshake") from cause
    if hello.version != 1:
        raise InvalidRequestError("handshake version is not supported; use 1")
    return hello.auth_token


def _same_origin(request: web.Request) -> None:
    """A page of another site must not open a shell with the visitor's certificate or network place."""
    origin = request.headers.get("Origin")
    if origin and urlsplit(origin).netloc.lower() != request.host.lower():
        raise PermissionDeniedError("request origin not allowed for websocket")


def _reason(text: str) -> bytes:
    return text.encode()[:_REASON_BYTES].decode("utf-8", "ignore").encode()
