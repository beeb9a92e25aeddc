"""From a method's name to its handler: decode the request, check the role, run, encode the reply.

A handler is `async (context, request) -> reply`, of a streaming method `async (context, request, stream) -> None`.
What it raises as NomadError crosses to the caller as it is; anything else is a fault of ours, logged here with
its traceback, and the caller hears only its type.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from nomadpy import logs
from nomadpy.errors import (
    IndefiniteError,
    InvalidRequestError,
    NomadError,
    PermissionDeniedError,
    UnsupportedError,
)
from nomadpy.metrics import Registry
from nomadpy.pki.roles import Identity
from nomadpy.rpc.caller import Stream
from nomadpy.rpc.figures import FIGURES, REQUESTS
from nomadpy.rpc.methods import METHODS, Method
from nomadpy.rpc.streams import local_pair
from nomadpy.rpc.tasks import Tasks

if TYPE_CHECKING:
    from nomadpy.rpc.connection import Connection

log = logs.get(__name__)

Handler = Callable[..., Awaitable[Any]]
_encoder = msgspec.msgpack.Encoder()


class CallContext(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls. connection: None when the call comes from this process; else it can be called back over it."""

    peer: Identity
    address: str = "local"
    connection: Connection | None = None


class Dispatcher:
    """The methods that this node serves."""

    def __init__(self, metrics: Registry | None = None) -> None:
        """metrics: where calls are counted and timed; None counts nothing."""
        self._handlers: dict[str, Handler] = {}
        self._metrics = metrics

    def register(self, method: str, handler: Handler) -> None:
        """Serve a method of rpc/methods.py. Raises ValueError for one that is not there, or is served already."""
        if method not in METHODS:
            raise ValueError(f"{method} is not in the method table")
        if method in self._handlers:
            raise ValueError(f"{method} has a handler already")
        self._handlers[method] = handler

    @property
    def methods(self) -> list[str]:
        """The names that have a handler."""
        return sorted(self._handlers)

    # -- calls that came as bytes ----------------------------------------------------------------------------

    async def dispatch(self, method: str, body: bytes | msgspec.Raw, context: CallContext) -> bytes:
        """Serve a call and return the reply as msgpack. Raises NomadError, nothing else."""
        row = self._allowed(method, context, stream=False)
        reply = await self._run(row, context, decode_request(row, body))
        try:
            return _encoder.encode(reply)
        except (TypeError, ValueError, OverflowError, RecursionError) as cause:
            log.exception("rpc reply cannot be encoded", method=method)
            raise NomadError(f"internal error: {type(cause).__name__}") from None

    async def dispatch_stream(
        self, method: str, body: bytes | msgspec.Raw, context: CallContext, stream: Stream
    ) -> None:
        """Serve a streaming call until its handler returns. Raises NomadError, nothing else."""
        row = self._allowed(method, context, stream=True)
        await self._run(row, context, decode_request(row, body), stream)

    # -- calls within this process ---------------------------------------------------------------------------

    async def dispatch_local(
        self, method: str, request: msgspec.Struct, context: CallContext
    ) -> Any:
        """Serve a call of this node itself; structs are handed over as they are. Raises NomadError."""
        row = self._allowed(method, context, stream=False)
        _check_request(row, request)
        return await self._run(row, context, request)

    @asynccontextmanager
    async def open_local(
        self, method: str, request: msgspec.Struct, context: CallContext
    ) -> AsyncIterator[Stream]:
        """Start a streaming method in this process; leaving the block cancels its handler."""
        row = self._allowed(method, context, stream=True)
        _check_request(row, request)
        ours, theirs = local_pair()

        async def serve() -> None:
            error: NomadError | None = NomadError("internal error: the handler was cancelled")
            try:
                await self._run(row, context, request, theirs)
                error = None
            except NomadError as cause:
                error = cause
            finally:
                theirs.end(error)

        tasks = Tasks()
        tasks.start(serve(), name=f"rpc {method}")
        try:
            yield ours
        finally:
            await tasks.close()

    # -- both -----------------------------------------------------------------------------------------------

    def _allowed(self, method: str, context: CallContext, *, stream: bool) -> Method:
        row = METHODS.get(method)
        if row is None or method not in self._handlers:
            raise UnsupportedError(f"rpc method {method[:80]!r} is not served by this node")
        if context.peer.role not in row.roles:
            raise PermissionDeniedError()
        if row.stream is not stream:
            raise InvalidRequestError(f"{method} is {'' if row.stream else 'not '}a stream")
        return row

    async def _run(self, row: Method, *arguments: Any) -> Any:
        metrics = self._metrics
        if metrics is None:
            return await self._serve(row, *arguments)
        figures = FIGURES[row.name]
        metrics.count(REQUESTS)
        metrics.count(figures.rate)
        started_s = metrics.monotonic()
        try:
            return await self._serve(row, *arguments)
        finally:
            metrics.observe_since(figures.timer, started_s)

    async def _serve(self, row: Method, *arguments: Any) -> Any:
        try:
            reply = await self._handlers[row.name](*arguments)
            if not row.stream and not isinstance(reply, row.reply):
                raise TypeError(
                    f"the handler replied {type(reply).__name__}, not {row.reply.__name__}"
                )
        except NomadError:
            raise
        except Exception as cause:
            log.exception("rpc handler failed", method=row.name)
            # The text stays here: it may quote what the caller must not see.
            raise NomadError(f"internal error: {type(cause).__name__}") from None
        return reply


def decode_request(row: Method, body: bytes | msgspec.Raw) -> msgspec.Struct:
    """The method's request struct. Raises InvalidRequestError that says where it is wrong."""
    try:
        request: msgspec.Struct = _request_decoder(row.name).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise InvalidRequestError(f"malformed request for {row.name}: {cause}") from cause
    return request


def decode_reply(method: str, body: bytes | msgspec.Raw) -> Any:
    """The method's reply struct. Raises IndefiniteError: the call did run."""
    try:
        return _reply_decoder(method).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise IndefiniteError(f"malformed reply to {method}: {cause}") from cause


@functools.cache
def _request_decoder(method: str) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(METHODS[method].request)


@functools.cache
def _reply_decoder(method: str) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(METHODS[method].reply)


def _check_request(row: Method, request: msgspec.Struct) -> None:
    if not isinstance(request, row.request):
        raise InvalidRequestError(
            f"{row.name} takes {row.request.__name__}, not {type(request).__name__}"
        )
