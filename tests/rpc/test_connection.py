"""A connection over an in-memory stream, on virtual time: calls, streams, keepalive, limits, the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from memory_stream import CLI, CLIENT, SERVER, MemoryStream, memory_pair

from nomadpy.errors import (
    ConnectionLostError,
    DeadlineError,
    DefiniteError,
    InvalidRequestError,
    NomadError,
    NotFoundError,
    PermissionDeniedError,
    TooLargeError,
    UnreachableError,
    UnsupportedError,
)
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.rpc.caller import Stream
from nomadpy.rpc.connection import Connection
from nomadpy.rpc.dispatch import CallContext, Dispatcher
from nomadpy.rpc.frames import MAX_CHUNK, WINDOW, Chunk, Error, Open, Reply, Request, encode

READ = calls.Read(id="web")
LOGS = calls.LogsRead(alloc_id="a", task="t", type="stdout")


async def echo(context: CallContext, request: calls.Read) -> Answer:
    return Answer(body=request.id.encode())


@asynccontextmanager
async def connected(
    dispatcher: Dispatcher | None = None,
    *,
    dialing: Dispatcher | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Connection, Connection, MemoryStream, MemoryStream]]:
    """(dialer, acceptor, and their streams); `options` are the acceptor's."""
    near, far = memory_pair()
    dialer = Connection(near, dialing, dialer=True)
    acceptor = Connection(far, dispatcher, dialer=False, **options)
    async with asyncio.TaskGroup() as group:
        group.create_task(dialer.run(), name="dialer")
        group.create_task(acceptor.run(), name="acceptor")
        try:
            yield dialer, acceptor, near, far
        finally:
            dialer.close()
            acceptor.close()


def serving(**handlers: Callable[..., Awaitable[Any]]) -> Dispatcher:
    dispatcher = Dispatcher()
    for name, handler in handlers.items():
        dispatcher.register(name.replace("_", "."), handler)
    return dispatcher


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(600):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_call_gets_its_reply() -> None:
    async with connected(serving(Job_Get=echo)) as (dialer, *_):
        answer = await dialer.call("Job.Get", READ)
    assert answer == Answer(body=b"web")


async def test_both_ends_call_each_other_over_the_same_connection() -> None:
    async def stats(context: CallContext, request: calls.NodeRead) -> Answer:
        assert context.peer == SERVER
        return Answer(body=b"stats")

    async def ask_back(context: CallContext, request: calls.Read) -> Answer:
        assert context.peer == CLIENT
        assert context.connection is not None
        return await context.connection.call("Client.Stats", calls.NodeRead())

    server, agent = serving(Job_Get=ask_back), serving(Client_Stats=stats)
    async with connected(server, dialing=agent) as (dialer, *_):
        assert (await dialer.call("Job.Get", READ)).body == b"stats"


async def test_a_thousand_calls_at_once_each_get_their_own_reply() -> None:
    async def slow(context: CallContext, request: calls.Read) -> Answer:
        await asyncio.sleep(int(request.id) % 7)
        return Answer(body=request.id.encode())

    async with connected(serving(Job_Get=slow)) as (dialer, *_), asyncio.TaskGroup() as group:
        asked = [
            group.create_task(dialer.call("Job.Get", calls.Read(id=str(n)))) for n in range(1000)
        ]
    assert [task.result().body for task in asked] == [str(n).encode() for n in range(1000)]


async def test_a_reply_larger_than_a_frame_arrives() -> None:
    async def large(context: CallContext, request: calls.Read) -> Answer:
        return Answer(body=b"x" * 40_000_000, index=7)

    async with connected(serving(Job_List=large)) as (dialer, *_):
        answer = await dialer.call("Job.List", READ)
    assert (len(answer.body), answer.index) == (40_000_000, 7)


async def test_a_request_over_the_frame_limit_is_refused_before_it_is_sent() -> None:
    async with connected(serving(Job_Get=echo)) as (dialer, *_):
        with pytest.raises(TooLargeError):
            await dialer.call("Job.Get", calls.Read(id="x" * 17_000_000))
        assert (await dialer.call("Job.Get", READ)).body == b"web"


@pytest.mark.parametrize(
    "error",
    [NotFoundError("job not found"), DefiniteError("busy", status=429), PermissionDeniedError()],
    ids=repr,
)
async def test_a_nomad_error_crosses_as_it_is(error: NomadError) -> None:
    async def fails(context: CallContext, request: calls.Read) -> Answer:
        raise error

    async with connected(serving(Job_Get=fails)) as (dialer, *_):
        with pytest.raises(type(error)) as caught:
            await dialer.call("Job.Get", READ)
    assert caught.value.to_wire() == error.to_wire()


async def test_any_other_exception_crosses_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(context: CallContext, request: calls.Read) -> Answer:
        raise ValueError("the password is hunter2")

    async with connected(serving(Job_Get=fails)) as (dialer, *_):
        with pytest.raises(NomadError) as caught:
            await dialer.call("Job.Get", READ)
    assert caught.value.message == "internal error: ValueError"
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None


async def test_an_error_whose_details_cannot_be_encoded_still_arrives() -> None:
    async def fails(context: CallContext, request: calls.Read) -> Answer:
        raise NotFoundError("gone", what=object())

    async with connected(serving(Job_Get=fails)) as (dialer, *_):
        with pytest.raises(NotFoundError, match="gone"):
            await dialer.call("Job.Get", READ)


async def test_a_handler_that_is_cancelled_from_inside_still_answers() -> None:
    async def fails(context: CallContext, request: calls.Read) -> Answer:
        raise asyncio.CancelledError

    async with connected(serving(Job_Get=fails)) as (dialer, *_):
        with pytest.raises(NomadError, match="cancelled"):
            await dialer.call("Job.Get", READ, timeout_s=5)


@pytest.mark.parametrize("method", ["Job.Versions", "No.Such"])
async def test_a_method_that_is_not_served_is_unsupported(method: str) -> None:
    async with connected(serving(Job_Get=echo)) as (dialer, *_):
        with pytest.raises(UnsupportedError):
            await dialer.call(method, READ)


async def test_a_side_without_a_dispatcher_refuses_calls() -> None:
    async with connected(None) as (dialer, *_):
        with pytest.raises(UnsupportedError):
            await dialer.call("Job.Get", READ)


async def test_a_malformed_request_is_refused_and_says_where() -> None:
    async with connected(serving(Job_Scale=echo)) as (dialer, *_):
        with pytest.raises(InvalidRequestError, match=r"\$\.job_id"):
            await dialer.call(
                "Job.Scale", msgspec.defstruct("Wrong", [("job_id", int), ("group", str)])(1, "g")
            )


async def test_a_role_that_may_not_call_a_method_is_denied() -> None:
    near, far = memory_pair(dialer=CLI)
    dialer = Connection(near, None, dialer=True)
    acceptor = Connection(far, serving(Node_Register=echo), dialer=False)
    async with asyncio.TaskGroup() as group:
        group.create_task(dialer.run())
        group.create_task(acceptor.run())
        with pytest.raises(PermissionDeniedError):
            await dialer.call("Node.Register", READ)
        dialer.close()


async def test_a_call_that_takes_too_long_raises_deadline_and_its_handler_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def slow(context: CallContext, request: calls.Read) -> Answer:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Answer()

    async with connected(serving(Job_Get=slow)) as (dialer, acceptor, *_):
        with pytest.raises(DeadlineError):
            await dialer.call("Job.Get", READ, timeout_s=3)
        async with asyncio.timeout(1):
            await cancelled.wait()
        await until(lambda: dialer._frames.under_way == acceptor._frames.under_way == 0)


async def test_a_caller_that_goes_away_cancels_the_handler() -> None:
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(context: CallContext, request: calls.Read) -> Answer:
        running.set()
        try:
            await asyncio.sleep(1000)
        finally:
            cancelled.set()
        return Answer()

    async with connected(serving(Job_Get=slow)) as (dialer, *_), asyncio.TaskGroup() as group:
        call = group.create_task(dialer.call("Job.Get", READ))
        await running.wait()
        call.cancel()
        async with asyncio.timeout(1):
            await cancelled.wait()


async def test_when_the_connection_is_lost_calls_under_way_are_indefinite_and_handlers_end() -> (
    None
):
    running, ended = asyncio.Event(), asyncio.Event()

    async def slow(context: CallContext, request: calls.Read) -> Answer:
        running.set()
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()
        return Answer()

    async with connected(serving(Job_Get=slow)) as (dialer, _, near, _far):
        async with asyncio.TaskGroup() as group:
            call = group.create_task(_outcome(dialer.call("Job.Get", READ)))
            await running.wait()
            near.abort()
        assert isinstance(call.result(), ConnectionLostError)
        await ended.wait()
        with pytest.raises(UnreachableError):
            await dialer.call("Job.Get", READ)
        with pytest.raises(UnreachableError):
            async with dialer.open("FS.Logs", LOGS):
                pass


async def _outcome(awaitable: Awaitable[Any]) -> object:
    try:
        return await awaitable
    except NomadError as error:
        return error


async def test_cancelling_run_ends_handlers_and_the_stream() -> None:
    ended = asyncio.Event()

    async def slow(context: CallContext, request: calls.Read) -> Answer:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()
        return Answer()

    near, far = memory_pair()
    dialer, acceptor = (
        Connection(near, None, dialer=True),
        Connection(far, serving(Job_Get=slow), dialer=False),
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(dialer.run())
        serving_task = group.create_task(acceptor.run())
        call = group.create_task(_outcome(dialer.call("Job.Get", READ)))
        await until(lambda: bool(acceptor._running))
        serving_task.cancel()
    assert ended.is_set()
    assert isinstance(call.result(), ConnectionLostError)


# -- keepalive --------------------------------------------------------------------------------------------------


async def test_an_idle_connection_stays_up_for_a_day() -> None:
    async with connected(serving(Job_Get=echo)) as (dialer, *_):
        await asyncio.sleep(86_400)
        assert (await dialer.call("Job.Get", READ)).body == b"web"


async def test_a_peer_that_falls_silent_is_noticed_and_calls_fail() -> None:
    async def slow(context: CallContext, request: calls.Read) -> Answer:
        await asyncio.sleep(10_000)
        return Answer()

    loop = asyncio.get_running_loop()
    async with connected(serving(Job_Get=slow)) as (dialer, acceptor, _near, far):
        async with asyncio.TaskGroup() as group:
            call = group.create_task(_outcome(dialer.call("Job.Get", READ)))
            await until(lambda: bool(acceptor._running))
            far.silent = True
            before = loop.time()
        assert isinstance(call.result(), ConnectionLostError)
        assert 60 <= loop.time() - before <= 125
        assert "does not answer" in str(call.result())


# -- limits -----------------------------------------------------------------------------------------------------


async def test_calls_beyond_the_limit_wait_their_turn_and_beyond_that_are_refused() -> None:
    running, most = 0, 0

    async def slow(context: CallContext, request: calls.Read) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return Answer(body=request.id.encode())

    async with (
        connected(serving(Job_Get=slow), max_running=4, max_waiting=6) as (dialer, *_),
        asyncio.TaskGroup() as group,
    ):
        asked = [
            group.create_task(_outcome(dialer.call("Job.Get", calls.Read(id=str(n)))))
            for n in range(12)
        ]
    results = [task.result() for task in asked]
    assert most == 4
    assert results[:10] == [Answer(body=str(n).encode()) for n in range(10)]
    assert all(isinstance(r, DefiniteError) and r.status == 429 for r in results[10:])


async def test_a_waiting_call_that_is_cancelled_is_never_run() -> None:
    served: list[str] = []

    async def slow(context: CallContext, request: calls.Read) -> Answer:
        served.append(request.id)
        await asyncio.sleep(10)
        return Answer()

    async with (
        connected(serving(Job_Get=slow), max_running=1) as (dialer, *_),
        asyncio.TaskGroup() as group,
    ):
        for name in ("first", "third"):
            group.create_task(dialer.call("Job.Get", calls.Read(id=name)))
            await asyncio.sleep(0.1)
            if name == "first":
                with pytest.raises(DeadlineError):
                    await dialer.call("Job.Get", calls.Read(id="second"), timeout_s=1)
    assert served == ["first", "third"]


async def test_replies_to_a_peer_that_does_not_read_are_bounded() -> None:
    async def large(context: CallContext, request: calls.Read) -> Answer:
        return Answer(body=b"x" * 900_000)

    near, far = memory_pair()
    acceptor = Connection(far, serving(Job_Get=large), dialer=False)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(acceptor.run())
        for n in range(300):
            body = msgspec.Raw(msgspec.msgpack.encode(READ))
            near.write(encode(Request(2 * n + 1, "Job.Get", body)))
        await asyncio.sleep(5)
        assert far.queued < 4_000_000
        assert not acceptor.closed
        task.cancel()


async def test_a_peer_that_breaks_the_protocol_is_cut_off_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    near, far = memory_pair()
    acceptor = Connection(far, serving(Job_Get=echo), dialer=False)
    async with asyncio.TaskGroup() as group:
        group.create_task(acceptor.run())
        near.write((2**31).to_bytes(4, "big") + b"x" * 100)
    assert acceptor.closed
    assert [r.getMessage() for r in caplog.records] == ["connection ended: protocol broken"]


async def test_an_error_frame_of_nonsense_ends_the_connection() -> None:
    near, far = memory_pair()
    dialer = Connection(near, None, dialer=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(dialer.run())
        call = group.create_task(_outcome(dialer.call("Job.Get", READ)))
        await far.read(1000)
        # kind 3, id 1, a status that is no number
        far.write(encode(Error(1, {"code": "invalid", "message": 3, "status": "x"})))
    assert isinstance(call.result(), ConnectionLostError)


async def test_a_reply_of_the_wrong_shape_is_indefinite() -> None:
    near, far = memory_pair()
    dialer = Connection(near, None, dialer=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(dialer.run())
        call = group.create_task(_outcome(dialer.call("Job.Get", READ)))
        await far.read(1000)
        far.write(encode(Reply(1, msgspec.Raw(b"\x01"))))
        await until(call.done)
        dialer.close()
    assert "malformed reply" in str(call.result())


# -- streams ----------------------------------------------------------------------------------------------------


async def test_a_stream_carries_chunks_both_ways_in_order() -> None:
    async def upper(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        while (chunk := await stream.receive()) is not None:
            await stream.send(chunk.upper())
        await stream.send(b"THE END")

    async with (
        connected(serving(FS_Logs=upper)) as (dialer, *_),
        dialer.open("FS.Logs", LOGS) as stream,
    ):
        for word in (b"a", b"", b"c" * MAX_CHUNK):
            await stream.send(word)
            assert await stream.receive() == word.upper()
        await stream.finish()
        assert await stream.receive() == b"THE END"
        assert await stream.receive() is None
        assert await stream.receive() is None
        with pytest.raises(DefiniteError):
            await stream.send(b"x")


async def test_a_streams_error_comes_after_its_chunks() -> None:
    async def fails(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        await stream.send(b"one")
        await stream.send(b"two")
        raise NotFoundError("no such file")

    async with (
        connected(serving(FS_Logs=fails)) as (dialer, *_),
        dialer.open("FS.Logs", LOGS) as stream,
    ):
        assert [await stream.receive(), await stream.receive()] == [b"one", b"two"]
        with pytest.raises(NotFoundError, match="no such file"):
            await stream.receive()


async def test_leaving_the_block_cancels_the_handler_of_the_stream() -> None:
    ended = asyncio.Event()

    async def follow(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        try:
            while True:
                await stream.send(b"line\n")
                await asyncio.sleep(1)
        finally:
            ended.set()

    async with connected(serving(FS_Logs=follow)) as (dialer, acceptor, *_):
        async with dialer.open("FS.Logs", LOGS) as stream:
            assert await stream.receive() == b"line\n"
        async with asyncio.timeout(5):
            await ended.wait()
        await until(lambda: dialer._frames.under_way == acceptor._frames.under_way == 0)


async def test_a_slow_reader_bounds_what_is_sent_and_other_calls_go_on() -> None:
    sent = 0

    async def flood(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        nonlocal sent
        while True:
            await stream.send(b"x" * 10_000)
            sent += 10_000

    async with connected(serving(FS_Logs=flood, Job_Get=echo)) as (dialer, *_):
        async with dialer.open("FS.Logs", LOGS) as stream:
            await asyncio.sleep(60)
            assert sent <= WINDOW + 10_000
            assert (await dialer.call("Job.Get", READ)).body == b"web"
            taken = 0
            while taken < 5_000_000:
                taken += len(await stream.receive() or b"")
        assert sent <= taken + 2 * WINDOW


async def test_a_sender_learns_that_the_other_side_has_ended_the_stream() -> None:
    async def brief(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        await asyncio.sleep(1)

    async with (
        connected(serving(FS_Logs=brief)) as (dialer, *_),
        dialer.open("FS.Logs", LOGS) as stream,
    ):
        with pytest.raises(DefiniteError, match="ended the stream"):
            while True:
                await stream.send(b"x" * 50_000)
        assert await stream.receive() is None


async def test_a_lost_connection_ends_its_streams_with_an_error_on_both_sides() -> None:
    seen: list[object] = []

    async def read(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        try:
            seen.append(await stream.receive())
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    async with connected(serving(FS_Logs=read)) as (dialer, acceptor, near, _far):
        async with dialer.open("FS.Logs", LOGS) as stream:
            await until(lambda: bool(acceptor._running))
            near.abort()
            with pytest.raises(ConnectionLostError):
                await stream.receive()
        await until(lambda: bool(seen))
    assert seen[0] in ("ConnectionLostError", "CancelledError")


async def test_two_senders_of_one_stream_both_wait_for_credit() -> None:
    async def two(context: CallContext, request: calls.LogsRead, stream: Stream) -> None:
        async with asyncio.TaskGroup() as group:
            for name in (b"o", b"e"):
                group.create_task(_send_all(stream, name))

    async def _send_all(stream: Stream, name: bytes) -> None:
        for _ in range(50):
            await stream.send(name * 50_000)

    async with (
        connected(serving(FS_Logs=two)) as (dialer, *_),
        dialer.open("FS.Logs", LOGS) as stream,
    ):
        got = [chunk[:1] async for chunk in _all(stream)]
    assert (got.count(b"o"), got.count(b"e")) == (50, 50)


async def _all(stream: Stream) -> AsyncIterator[bytes]:
    while (chunk := await stream.receive()) is not None:
        await asyncio.sleep(0.01)
        yield chunk


async def test_a_stream_method_called_as_a_call_is_refused_and_the_other_way_round() -> None:
    async def nothing(context: CallContext, request: object, stream: Stream) -> None:
        raise AssertionError

    async with connected(serving(FS_Logs=nothing, Job_Get=echo)) as (dialer, *_):
        with pytest.raises(InvalidRequestError):
            await dialer.call("FS.Logs", LOGS)
        async with dialer.open("Job.Get", READ) as stream:
            with pytest.raises(InvalidRequestError):
                await stream.receive()


async def test_a_chunk_beyond_the_window_cuts_the_peer_off() -> None:
    async def asleep(context: CallContext, request: object, stream: Stream) -> None:
        await asyncio.sleep(1000)

    near, far = memory_pair()
    acceptor = Connection(far, serving(FS_Logs=asleep), dialer=False)
    async with asyncio.TaskGroup() as group:
        group.create_task(acceptor.run())
        near.write(encode(Open(1, "FS.Logs", msgspec.Raw(msgspec.msgpack.encode(LOGS)))))
        for _ in range(10):
            near.write(encode(Chunk(1, b"x" * 100_000)))
    assert acceptor.closed
