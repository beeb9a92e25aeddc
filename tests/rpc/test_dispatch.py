"""Dispatch: roles, decoding, errors, and calls that stay in the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from memory_stream import CLI, CLIENT, SERVER

from nomadpy.errors import (
    DefiniteError,
    InvalidRequestError,
    NomadError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedError,
)
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.rpc.caller import Stream
from nomadpy.rpc.dispatch import CallContext, Dispatcher
from nomadpy.rpc.frames import MAX_CHUNK, WINDOW
from nomadpy.rpc.methods import METHODS

READ = calls.Read(id="web")
LOGS = calls.LogsRead(alloc_id="a", task="t", type="stdout")
AS_SERVER = CallContext(peer=SERVER)


def one(method: str, handler: object) -> Dispatcher:
    dispatcher = Dispatcher()
    dispatcher.register(method, handler)  # type: ignore[arg-type]
    return dispatcher


async def echo(context: CallContext, request: calls.Read) -> Answer:
    return Answer(body=request.id.encode())


def test_only_methods_of_the_table_can_be_registered_and_each_once() -> None:
    dispatcher = one("Job.Get", echo)
    with pytest.raises(ValueError):
        dispatcher.register("Job.Get", echo)
    with pytest.raises(ValueError):
        dispatcher.register("Job.Gett", echo)
    assert dispatcher.methods == ["Job.Get"]


@pytest.mark.parametrize("peer", [SERVER, CLIENT, CLI], ids=lambda peer: peer.role)
@pytest.mark.parametrize("method", sorted(METHODS))
async def test_a_method_serves_exactly_the_roles_of_its_row(method: str, peer: object) -> None:
    async def handler(context: CallContext, request: object, *stream: Stream) -> object:
        raise NotFoundError("reached")

    context = CallContext(peer=peer)  # type: ignore[arg-type]
    allowed = context.peer.role in METHODS[method].roles
    dispatcher = one(method, handler)
    expected = (NotFoundError, InvalidRequestError) if allowed else PermissionDeniedError
    with pytest.raises(expected):
        if METHODS[method].stream:
            await dispatcher.dispatch_stream(method, b"\x80", context, None)  # type: ignore[arg-type]
        else:
            await dispatcher.dispatch(method, b"\x80", context)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90",
        msgspec.msgpack.encode({"id": 7}),
        msgspec.msgpack.encode({"flags": {"a": 1}}),
        msgspec.msgpack.encode({"id": "x"}) + b"\x00",
        b"\x81\xa2id\xa1\xff",
        b"\x81\xa5flags" + b"\x91" * 3000,
    ],
    ids=["empty", "reserved", "list", "int id", "deep", "trailing", "bad utf-8", "nesting"],
)
async def test_a_malformed_body_is_an_invalid_request_and_the_handler_is_not_run(
    body: bytes,
) -> None:
    with pytest.raises(InvalidRequestError, match=r"malformed request for Job\.Get"):
        await one("Job.Get", echo).dispatch("Job.Get", body, AS_SERVER)


async def test_fields_that_we_do_not_know_are_ignored() -> None:
    body = msgspec.msgpack.encode({"id": "web", "of_a_newer_version": 1})
    reply = await one("Job.Get", echo).dispatch("Job.Get", body, AS_SERVER)
    assert msgspec.msgpack.decode(reply, type=Answer).body == b"web"


async def test_a_reply_of_the_wrong_type_is_our_fault_and_says_so() -> None:
    async def wrong(context: CallContext, request: calls.Read) -> int:
        return 7

    dispatcher = one("Job.Get", wrong)
    with pytest.raises(NomadError, match="internal error: TypeError"):
        await dispatcher.dispatch("Job.Get", b"\x80", AS_SERVER)
    with pytest.raises(NomadError, match="internal error: TypeError"):
        await dispatcher.dispatch_local("Job.Get", READ, AS_SERVER)


async def test_a_reply_that_cannot_be_encoded_is_our_fault_too() -> None:
    async def wrong(context: CallContext, request: calls.Read) -> Answer:
        return Answer(body=b"", index=2**80)

    with pytest.raises(NomadError, match="internal error: OverflowError"):
        await one("Job.Get", wrong).dispatch("Job.Get", b"\x80", AS_SERVER)


async def test_a_local_call_hands_the_structs_over_as_they_are() -> None:
    answer = Answer(body=b"x")
    seen: list[object] = []

    async def handler(context: CallContext, request: calls.Read) -> Answer:
        seen.append(request)
        return answer

    assert await one("Job.Get", handler).dispatch_local("Job.Get", READ, AS_SERVER) is answer
    assert seen[0] is READ


async def test_a_local_call_is_checked_like_any_other() -> None:
    dispatcher = one("Job.Get", echo)
    with pytest.raises(InvalidRequestError):
        await dispatcher.dispatch_local("Job.Get", LOGS, AS_SERVER)
    with pytest.raises(UnsupportedError):
        await dispatcher.dispatch_local("Job.List", READ, AS_SERVER)
    with pytest.raises(PermissionDeniedError):
        await one("Server.Hello", echo).dispatch_local(
            "Server.Hello", READ, CallContext(peer=CLIENT)
        )


async def chunks(stream: Stream) -> AsyncIterator[bytes]:
    while (chunk := await stream.receive()) is not None:
        yield chunk


async def test_a_local_stream_carries_chunks_both_ways() -> None:
    async def upper(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        async for chunk in chunks(stream):
            await stream.send(chunk.upper())

    async with one("FS.Logs", upper).open_local("FS.Logs", LOGS, AS_SERVER) as stream:
        for word in (b"a", b"bc"):
            await stream.send(word)
            assert await stream.receive() == word.upper()
        with pytest.raises(DefiniteError):
            await stream.send(b"x" * (MAX_CHUNK + 1))
        await stream.finish()
        with pytest.raises(DefiniteError):
            await stream.send(b"x")
        assert await stream.receive() is None


async def test_a_slow_local_reader_bounds_what_is_sent() -> None:
    sent = 0

    async def flood(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        nonlocal sent
        for _ in range(1000):
            await stream.send(b"x" * 10_000)
            sent += 10_000

    async with one("FS.Logs", flood).open_local("FS.Logs", LOGS, AS_SERVER) as stream:
        await asyncio.sleep(10)
        assert sent <= WINDOW + 10_000
        assert sum([len(chunk) async for chunk in chunks(stream)]) == 10_000_000


@pytest.mark.parametrize("error", [NotFoundError("no such file"), KeyError("secret")], ids=repr)
async def test_a_local_streams_error_comes_after_its_chunks(error: Exception) -> None:
    async def fails(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        await stream.send(b"one")
        raise error

    async with one("FS.Logs", fails).open_local("FS.Logs", LOGS, AS_SERVER) as stream:
        assert await stream.receive() == b"one"
        with pytest.raises(NomadError) as caught:
            await stream.receive()
    expected = error.message if isinstance(error, NomadError) else "internal error: KeyError"
    assert caught.value.message == expected


async def test_an_error_in_the_block_comes_out_as_it_is_and_the_handler_is_cancelled() -> None:
    ended = asyncio.Event()

    async def follow(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()

    with pytest.raises(ZeroDivisionError):
        async with one("FS.Logs", follow).open_local("FS.Logs", LOGS, AS_SERVER):
            await asyncio.sleep(1)
            raise ZeroDivisionError
    assert ended.is_set()
