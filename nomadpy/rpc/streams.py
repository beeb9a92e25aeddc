"""The reading half of a stream, and stream pairs inside one process.

In:      chunks as they arrive, the end, or the error that ended it.
Out:     rpc.caller.Stream.
Not here: streams over a connection (connection.py), which read through an Inbox too.
"""

from __future__ import annotations

import asyncio
from collections import deque

from nomadpy.errors import DefiniteError, NomadError, TooLargeError
from nomadpy.rpc.frames import CHUNK_OVERHEAD, MAX_CHUNK, WINDOW


class Inbox:
    """Chunks that have arrived and were not yet read. What had arrived before the end is still delivered."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._error: NomadError | None = None
        self.size = 0

    def put(self, chunk: bytes) -> None:
        """A chunk has arrived."""
        self._chunks.append(chunk)
        self.size += len(chunk) + CHUNK_OVERHEAD
        self._arrived.set()

    def end(self, error: NomadError | None = None) -> None:
        """Nothing more will arrive; the first end counts, unless only the second has an error."""
        self._ended = True
        self._error = self._error or error
        self._arrived.set()

    async def get(self) -> bytes | None:
        """The next chunk; None at the end. Raises the error that ended the stream."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        chunk = self._chunks.popleft()
        self.size -= len(chunk) + CHUNK_OVERHEAD
        return chunk


class LocalStream:
    """One end of a stream inside this process; the same window as over a connection."""

    def __init__(self) -> None:
        self._inbox = Inbox()
        self._room = asyncio.Event()
        self._other: LocalStream = self
        self._finished = False
        self._over = False
        self._error: NomadError | None = None

    async def receive(self) -> bytes | None:
        """The next chunk; None when the other side has finished. Raises its NomadError when it failed."""
        chunk = await self._inbox.get()
        if self._inbox.size < WINDOW:
            self._other._room.set()
        return chunk

    async def send(self, chunk: bytes) -> None:
        """Send a chunk; waits while the other side is behind. Raises NomadError when it is gone."""
        if len(chunk) > MAX_CHUNK:
            raise TooLargeError(f"a chunk of {len(chunk)} bytes is over the limit of {MAX_CHUNK}")
        while True:
            if self._over:
                raise self._error or stream_is_over()
            if self._finished:
                raise DefiniteError("the stream was finished from this side")
            if self._other._inbox.size < WINDOW:
                break
            self._room.clear()
            await self._room.wait()
        self._other._inbox.put(bytes(chunk))

    async def finish(self) -> None:
        """No more chunks from here; receiving goes on."""
        if not self._finished:
            self._finished = True
            self._other._inbox.end()

    def end(self, error: NomadError | None = None) -> None:
        """This side is over, in both directions, with `error` when it failed."""
        self._finished = True
        self._other._over = True
        self._other._error = error
        self._other._inbox.end(error)
        self._other._room.set()


def local_pair() -> tuple[LocalStream, LocalStream]:
    """Two ends; what one sends the other receives."""
    one, two = LocalStream(), LocalStream()
    one._other, two._other = two, one
    return one, two


def stream_is_over() -> NomadError:
    """What a sender gets when the other side has ended the stream without an error."""
    return DefiniteError("the other side has ended the stream")
