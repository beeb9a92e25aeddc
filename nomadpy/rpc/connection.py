"""One connection between two nodes: calls and streams in both directions over one byte stream.

`run` reads until the connection ends; while it runs, `call` and `open` work, and what the peer asks is served by the
dispatcher. All memory is bounded: requests served and waiting, the bytes queued to a slow peer, each stream's window.
Not here: framing and its rules (frames.py), who dials and accepts (pool.py, listener.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from nomadpy import logs
from nomadpy.errors import (
    ConnectionLostError,
    DeadlineError,
    DefiniteError,
    NomadError,
    UnreachableError,
    UnsupportedError,
)
from nomadpy.pki.roles import Identity
from nomadpy.rpc.caller import Stream
from nomadpy.rpc.dispatch import CallContext, Dispatcher, decode_reply
from nomadpy.rpc.frames import (
    Cancel,
    Chunk,
    Credit,
    Error,
    Finish,
    Frame,
    Multiplexer,
    Open,
    Ping,
    ProtocolError,
    Reply,
    Request,
    ping,
    pong,
)
from nomadpy.rpc.network import ByteStream
from nomadpy.rpc.streams import Inbox, stream_is_over

log = logs.get(__name__)

READ_SIZE = 256 * 1024
KEEPALIVE_S = 30.0
MISSES_ALLOWED = 2
MAX_RUNNING = 1024
MAX_WAITING = 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024

# Senders wait above SEND_HIGH. Only answers to pings and credits do not wait; a peer that makes us
# queue more than QUEUED_LIMIT asks without listening.
SEND_HIGH = 1024 * 1024
QUEUED_LIMIT = 64 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()


class Connection:
    """Both ends have one. `dialer` decides who has the odd call ids."""

    def __init__(
        self,
        stream: ByteStream,
        dispatcher: Dispatcher | None,
        *,
        dialer: bool,
        keepalive_s: float = KEEPALIVE_S,
        max_running: int = MAX_RUNNING,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """dispatcher None: the peer may not call us. max_running: its calls served at a time; max_waiting more
        wait their turn, and what exceeds that is refused with status 429.
        """
        self._stream = stream
        self._dispatcher = dispatcher
        self._frames = Multiplexer(dialer=dialer)
        self._keepalive_s = keepalive_s
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._group: asyncio.TaskGroup | None = None
        self._closed = False
        self._leaving = False
        self._why = ""
        self._calls: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._streams: dict[int, ConnectionStream] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._waiting: deque[_Incoming] = deque()
        self._waiting_bytes = 0
        self._out: list[bytes] = []
        self._out_size = 0
        self._flush_planned = False
        self._send_turn = asyncio.Lock()
        self._heard_lately = False
        self.heard = False
        """Whether the peer has said anything at all yet."""
        self._context = CallContext(peer=stream.peer, address=stream.peer_address, connection=self)

    @property
    def peer(self) -> Identity:
        """Who is at the other end."""
        return self._stream.peer

    @property
    def address(self) -> str:
        """host:port of the other end."""
        return self._stream.peer_address

    @property
    def closed(self) -> bool:
        """Whether calls can no longer be made."""
        return self._closed

    # -- life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until the peer goes, breaks the rules, or `close`; cancelling ends it too. Call once."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                pinger = group.create_task(self._keep_alive(), name=f"keepalive {self.address}")
                try:
                    await self._read()
                finally:
                    self._lost("the connection was closed from this side")
                    pinger.cancel()
                    for task in self._running.values():
                        task.cancel()
        finally:
            if self._leaving:
                self._stream.close()
            else:
                self._stream.abort()

    def close(self) -> None:
        """Send what is queued and end; `run` returns soon after. Calls under way fail."""
        self._flush()
        self._lost("the connection was closed from this side")
        self._leaving = True
        self._stream.close()

    async def _read(self) -> None:
        while not self._closed:
            try:
                data = await self._stream.read(READ_SIZE)
                if not data:
                    self._lost(self._ended_text("the peer ended the connection"))
                    return
                self._heard_lately = self.heard = True
                for frame in self._frames.receive(data):
                    self._handle(frame)
            except ProtocolError as error:
                self._lost(f"the peer broke the protocol: {error}")
                log.warning(
                    "connection ended: protocol broken",
                    address=self.address,
                    peer=self.peer.name,
                    reason=str(error),
                )
                return
            except OSError as error:
                self._lost(self._ended_text(f"the connection broke: {error}"))
                return

    def _ended_text(self, text: str) -> str:
        return (
            text if self.heard else f"{text} before it said anything; it may refuse our certificate"
        )

    async def _keep_alive(self) -> None:
        misses = 0
        while True:
            await asyncio.sleep(self._keepalive_s)
            if self._heard_lately:
                self._heard_lately, misses = False, 0
                continue
            if misses >= MISSES_ALLOWED:
                log.warning(
                    "connection ended: no answer", address=self.address, peer=self.peer.name
                )
                self._lost("the peer does not answer")
                self._stream.abort()
                return
            misses += 1
            self._post(ping(misses))

    def _lost(self, why: str) -> None:
        """Tell everyone who waits for the peer; may be called twice, the first reason stays."""
        if not self._closed:
            self._why = why
        self._closed = True
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(self._lost_error())
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.ended(self._lost_error())
        self._waiting.clear()

    def _lost_error(self) -> ConnectionLostError:
        return ConnectionLostError(f"{self.address}: {self._why}")

    # -- calls of ours ---------------------------------------------------------------------------------------

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        """Return the method's reply struct. Raises the peer's NomadError, UnreachableError when the connection had
        ended before (definite), ConnectionLostError and DeadlineError (indefinite).
        """
        body = _encoder.encode(request)
        try:
            async with asyncio.timeout(timeout_s):
                return decode_reply(method, await self._exchange(method, body))
        except TimeoutError as cause:
            raise DeadlineError(
                f"{self.address}: no answer to {method} within {timeout_s:g} seconds"
            ) from cause

    async def _exchange(self, method: str, body: bytes) -> msgspec.Raw:
        await self._room()
        self._check_open()
        call_id, data = self._frames.request(method, body)
        future: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        self._post(data)
        try:
            return await future
        finally:
            if self._calls.pop(call_id, None) is not None:
                self._post(self._frames.cancel(call_id))

    @asynccontextmanager
    async def open(self, method: str, request: msgspec.Struct) -> AsyncIterator[Stream]:
        """Start a streaming method; leaving the block ends it on both sides. Raises UnreachableError at once when
        the connection has ended; the peer's errors come out of the stream.
        """
        body = _encoder.encode(request)
        await self._room()
        self._check_open()
        call_id, data = self._frames.open(method, body)
        stream = self._streams[call_id] = ConnectionStream(self, call_id)
        self._post(data)
        try:
            yield stream
        finally:
            stream.ended(None)
            if self._streams.pop(call_id, None) is not None:
                self._post(self._frames.cancel(call_id))

    def _check_open(self) -> None:
        if self._closed:
            raise UnreachableError(f"{self.address}: {self._why}")

    # -- what the peer says -----------------------------------------------------------------------------------

    def _handle(self, frame: Frame) -> None:
        match frame:
            case Request() | Open():
                self._admit(frame)
            case Reply(id=call_id, body=body):
                if (future := self._calls.pop(call_id, None)) is not None:
                    if not future.done():
                        future.set_result(body)
                elif (stream := self._streams.pop(call_id, None)) is not None:
                    stream.ended(None)
            case Error(id=call_id, error=raw):
                error = _error_from(raw)
                if (future := self._calls.pop(call_id, None)) is not None:
                    if not future.done():
                        future.set_exception(error)
                elif (stream := self._streams.pop(call_id, None)) is not None:
                    stream.ended(error)
            case Chunk(id=call_id, data=data):
                if (stream := self._streams.get(call_id)) is not None:
                    stream.inbox.put(data)
            case Finish(id=call_id):
                if (stream := self._streams.get(call_id)) is not None:
                    stream.inbox.end()
            case Credit(id=call_id):
                if (stream := self._streams.get(call_id)) is not None:
                    stream.room.set()
            case Cancel(id=call_id):
                if (task := self._running.get(call_id)) is not None:
                    task.cancel()
                if (stream := self._streams.pop(call_id, None)) is not None:
                    stream.ended(None)
            case Ping(id=number):
                self._post(pong(number))
            case _:
                pass

    def _admit(self, frame: Request | Open) -> None:
        if self._dispatcher is None:
            self._fail(frame.id, UnsupportedError("this side of the connection serves no calls"))
            return
        call = _Incoming(frame.id, frame.method, bytes(frame.body), isinstance(frame, Open))
        if len(self._running) < self._max_running:
            self._start(call, self._dispatcher)
        elif (
            len(self._waiting) < self._max_waiting
            and self._waiting_bytes + len(call.body) <= MAX_WAITING_BYTES
        ):
            self._waiting.append(call)
            self._waiting_bytes += len(call.body)
        else:
            busy = DefiniteError("too many calls at a time over one connection", status=429)
            self._fail(call.id, busy)
            return
        if call.is_stream:
            self._streams[call.id] = ConnectionStream(self, call.id)

    def _start(self, call: _Incoming, dispatcher: Dispatcher) -> None:
        assert self._group is not None
        self._running[call.id] = self._group.create_task(
            self._serve(call, dispatcher), name=f"rpc {call.method}"
        )

    def _start_next(self, dispatcher: Dispatcher) -> None:
        while self._waiting and not self._closed and len(self._running) < self._max_running:
            call = self._waiting.popleft()
            self._waiting_bytes -= len(call.body)
            if self._frames.is_open(call.id):
                self._start(call, dispatcher)

    async def _serve(self, call: _Incoming, dispatcher: Dispatcher) -> None:
        """Run one call of the peer to its end and answer it. Nothing escapes but cancellation."""
        call_id = call.id
        try:
            if call.is_stream:
                stream = self._streams[call_id]
                await dispatcher.dispatch_stream(call.method, call.body, self._context, stream)
                stream.ended(None)
                body = b""
            else:
                body = await dispatcher.dispatch(call.method, call.body, self._context)
            for piece in self._frames.reply(call_id, body):
                await self._room()
                self._post(piece)
        except NomadError as error:
            self._fail(call_id, error)
        except asyncio.CancelledError:
            # When it was neither the peer nor the end of the connection that cancelled, the peer still waits.
            if not self._closed:
                self._fail(call_id, NomadError("internal error: the call was cancelled"))
            raise
        finally:
            self._running.pop(call_id, None)
            if (ended := self._streams.pop(call_id, None)) is not None:
                ended.ended(None)
            self._start_next(dispatcher)

    def _fail(self, call_id: int, error: NomadError) -> None:
        try:
            self._post(self._frames.fail(call_id, error.to_wire()))
        except (NomadError, TypeError, ValueError, OverflowError, RecursionError):
            log.exception("an rpc error cannot be sent", error=type(error).__name__)
            plain = {"code": error.code, "message": error.message[:4096], "status": error.status}
            self._post(self._frames.fail(call_id, {**plain, "details": {}}))

    # -- sending -----------------------------------------------------------------------------------------------

    def _post(self, data: bytes) -> None:
        """Queue a frame; all that is posted in one turn of the loop leaves in one write."""
        if not data or self._closed:
            return
        self._out.append(data)
        self._out_size += len(data)
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        if not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        self._stream.write(data)
        if self._stream.queued > QUEUED_LIMIT:
            log.warning("connection ended: peer does not read", address=self.address)
            self._lost("the peer does not read what it asked for")
            self._stream.abort()

    async def _room(self) -> None:
        """Wait until the peer has taken most of what is queued; one waiter at a time goes on."""
        if self._out_size + self._stream.queued <= SEND_HIGH:
            return
        async with self._send_turn:
            while not self._closed and self._out_size + self._stream.queued > SEND_HIGH:
                self._flush()
                try:
                    await self._stream.drain()
                except OSError:
                    return
                # A drain that returns at once must not hold the loop.
                await asyncio.sleep(0)


def _error_from(raw: dict[str, Any]) -> NomadError:
    try:
        return NomadError.from_wire(raw)
    except (TypeError, ValueError, AttributeError) as cause:
        raise ProtocolError(f"malformed error: {cause}") from cause


class _Incoming(msgspec.Struct, frozen=True):
    """A call of the peer. The body is a copy: the frame's is a view that would hold all that was read with it."""

    id: int
    method: str
    body: bytes
    is_stream: bool


class ConnectionStream:
    """A stream over a connection (rpc.caller.Stream), at either end."""

    def __init__(self, connection: Connection, call_id: int) -> None:
        self._connection = connection
        self._id = call_id
        self._over = False
        self._error: NomadError | None = None
        self._finished = False
        self.inbox = Inbox()
        self.room = asyncio.Event()

    async def receive(self) -> bytes | None:
        """The next chunk; None when the other side has finished. Raises its NomadError when it failed."""
        chunk = await self.inbox.get()
        if chunk is not None:
            self._connection._post(self._connection._frames.consumed(self._id, len(chunk)))
        return chunk

    async def send(self, chunk: bytes) -> None:
        """Send at most 1 MiB; waits while the other side is behind. Raises NomadError when the stream is over."""
        connection = self._connection
        while True:
            if self._over:
                raise self._error or stream_is_over()
            if self._finished:
                raise DefiniteError("the stream was finished from this side")
            if not connection._frames.may_send(self._id):
                self.room.clear()
                await self.room.wait()
            elif connection._out_size + connection._stream.queued > SEND_HIGH:
                await connection._room()
                await asyncio.sleep(0)
            else:
                break
        connection._post(connection._frames.chunk(self._id, bytes(chunk)))

    async def finish(self) -> None:
        """No more chunks from here; receiving goes on."""
        if not self._finished and not self._over:
            self._finished = True
            self._connection._post(self._connection._frames.finish(self._id))

    def ended(self, error: NomadError | None) -> None:
        """The stream is over in both directions (called by the connection)."""
        if not self._over:
            self._over = True
            self._error = error
            self.inbox.end(error)
            self.room.set()
