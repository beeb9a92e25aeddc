"""The exec websocket: both directions, handshake, and how it ends."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import quote

import aiohttp
import pytest
from serving import FakeCaller, FakeStream, serving

from nomadpy.errors import NomadError, NotFoundError, PermissionDeniedError

pytestmark = pytest.mark.real_time

COMMAND = quote(json.dumps(["/bin/sh", "-c", "ls"]))
PATH = f"/v1/client/allocation/a1/exec?task=t&tty=true&command={COMMAND}"


async def test_frames_pass_both_ways_and_the_end_is_a_normal_close() -> None:
    stream = FakeStream([], echo=True)
    async with serving(FakeCaller(ClientAlloc__Exec=stream)) as api:
        async with api.session.ws_connect(PATH) as socket:
            await socket.send_str('{"stdin":{"data":"bHM="}}')
            assert await socket.receive_str() == '{"stdin":{"data":"bHM="}}'
            await socket.send_str('{"stdin":{"close":true}}')
            end = await socket.receive()
            assert end.type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 1000
        call = api.caller.last
        assert (call.alloc_id, call.task, call.tty) == ("a1", "t", True)
        assert call.command == ["/bin/sh", "-c", "ls"]
        assert stream.left


async def test_the_handshake_message_carries_the_token() -> None:
    stream = FakeStream([b'{"exited":true,"result":{"exit_code":3}}'])
    async with serving(FakeCaller(ClientAlloc__Exec=stream)) as api:
        async with api.session.ws_connect(PATH + "&ws_handshake=true") as socket:
            await socket.send_str('{"version":1,"auth_token":"secret"}')
            assert json.loads(await socket.receive_str())["result"] == {"exit_code": 3}
            await socket.receive()
        assert api.caller.last.token == "secret"


@pytest.mark.parametrize("hello", ["nonsense", '{"version":2}', "[]"])
async def test_a_bad_handshake_is_refused(hello: str) -> None:
    async with (
        serving() as api,
        api.session.ws_connect(PATH + "&ws_handshake=true") as socket,
    ):
        await socket.send_str(hello)
        await socket.receive()
        assert socket.close_code == 1008
        assert api.caller.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NomadError("boom"), 1011),
        (NotFoundError("alloc not found"), 1008),
        (PermissionDeniedError(), 1008),
        (NomadError("é" * 200), 1011),
    ],
)
async def test_an_error_is_a_close_frame(error: NomadError, code: int) -> None:
    async with (
        serving(FakeCaller(ClientAlloc__Exec=error)) as api,
        api.session.ws_connect(PATH) as socket,
    ):
        end = await socket.receive()
        assert (socket.close_code, end.extra) == (
            code,
            error.message[: 61 if "é" in error.message else None],
        )


async def test_a_client_that_goes_ends_the_stream() -> None:
    stream = FakeStream([], echo=True)
    async with serving(FakeCaller(ClientAlloc__Exec=stream)) as api:
        async with api.session.ws_connect(PATH) as socket:
            await socket.send_str("{}")
            await socket.receive_str()
        for _ in range(100):
            if stream.left:
                break
            await asyncio.sleep(0.02)
        assert stream.left


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/client/allocation/a1/exec?task=t", 400),
        ("/v1/client/allocation/a1/exec?task=t&command=ls", 400),
        ("/v1/client/allocation/a1/exec?task=t&command=%5B%5D", 400),
        (PATH + "&ws_handshake=perhaps", 400),
        (PATH, 400),
    ],
)
async def test_a_bad_request_is_refused_before_the_upgrade(path: str, status: int) -> None:
    async with serving() as api:
        assert (await api.get(path))[0] == status


async def test_a_page_of_another_site_may_not_open_a_shell() -> None:
    async with serving() as api:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await api.session.ws_connect(PATH, headers={"Origin": "http://evil.example"})
        assert refused.value.status == 403
        host, port = api.host_port
        api.caller.replies["ClientAlloc.Exec"] = FakeStream([])
        async with api.session.ws_connect(PATH, origin=f"http://{host}:{port}") as socket:
            await socket.receive()
            assert socket.close_code == 1000
