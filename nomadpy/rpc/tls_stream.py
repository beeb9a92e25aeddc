"""A TCP connection, with TLS or bare, as a ByteStream: bounded read buffer, honest `queued`, no copies.

In:      asyncio's transport callbacks.
Out:     rpc.network.ByteStream.
Not here: handshakes and who may connect (tls_network.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import cast

from nomadpy.pki.roles import Identity

READ_HIGH = 256 * 1024
READ_LOW = 64 * 1024
WRITE_HIGH = 256 * 1024
WRITE_PIECE = 64 * 1024
CLOSE_TIMEOUT_S = 10.0
# A connection whose bytes nobody confirms for so long is given up. Without this, TCP tries ever less often: after a partition
# of seven seconds the next try would come six seconds after its end, and whatever waits for this peer would wait too.
UNHEARD_MS = 5000
_NOBODY = Identity(role="", region="")


class TransportStream(asyncio.Protocol):
    """One connection. Reading stops at READ_HIGH unread bytes, so a fast peer waits in its own buffers."""

    def __init__(self, peer_address: str, *, paused: bool) -> None:
        """paused: do not read yet, because TLS is to take over the transport first."""
        self.peer_address = peer_address
        self.peer = _NOBODY
        self._start_paused = paused
        self._raw: asyncio.Transport | None = None
        self._transport: asyncio.Transport | None = None
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._reading_paused = False
        self._writing_paused = False
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._drainers: list[asyncio.Future[None]] = []
        self._backlog: deque[memoryview] = deque()
        self._backlog_size = 0
        self._closing = False
        self._deadline: asyncio.TimerHandle | None = None

    # -- what the network does before it hands the stream out ---------------------------------------

    @property
    def raw(self) -> asyncio.Transport:
        """The TCP transport, which TLS is to wrap."""
        assert self._raw is not None
        return self._raw

    @property
    def connected(self) -> bool:
        """Whether a transport has taken over the socket, and will close it."""
        return self._raw is not None or self._ended

    def secured(self, transport: asyncio.Transport) -> None:
        """From now on everything goes through TLS."""
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH)

    # -- ByteStream ----------------------------------------------------------------------------------

    async def read(self, limit: int) -> bytes:
        """Up to `limit` bytes; b"" at the end; the connection's OSError when it broke."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            assert self._reader is None, "two tasks read one stream"
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        chunk = self._chunks.popleft()
        if len(chunk) > limit:
            self._chunks.appendleft(chunk[limit:])
            chunk = chunk[:limit]
        self._unread -= len(chunk)
        if self._reading_paused and self._unread <= READ_LOW:
            self._reading_paused = False
            if self._transport is not None and not self._ended:
                self._transport.resume_reading()
        return chunk

    def write(self, data: bytes) -> None:
        """Queue bytes; after the end they go nowhere, which `read` and `drain` report."""
        transport = self._transport
        if transport is None or self._closing or transport.is_closing():
            return
        if not self._backlog and not self._writing_paused and len(data) <= WRITE_PIECE:
            transport.write(data)
            return
        view = memoryview(data)
        for cut in range(0, len(data), WRITE_PIECE):
            self._backlog.append(view[cut : cut + WRITE_PIECE])
        self._backlog_size += len(data)
        self._feed()

    def _feed(self) -> None:
        """Give the transport what it takes. It would take all: TLS encrypts a write at once and hands it to TCP
        without a limit, and neither counts what the other holds. In pieces, what waits is here and is counted.
        """
        transport = self._transport
        while self._backlog and not self._writing_paused and transport is not None:
            piece = self._backlog.popleft()
            self._backlog_size -= len(piece)
            transport.write(piece)
        if self._backlog or self._writing_paused:
            return
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_result(None)
        if self._closing and transport is not None:
            transport.close()

    @property
    def queued(self) -> int:
        """Bytes that the kernel has not taken yet, those inside TLS included."""
        if self._transport is None or self._raw is None:
            return 0
        size = self._backlog_size + self._transport.get_write_buffer_size()
        if self._raw is not self._transport:
            size += self._raw.get_write_buffer_size()
        return size

    async def drain(self) -> None:
        """Wait until less than about 600 KiB are queued; raises ConnectionResetError when the connection is gone."""
        if self._ended:
            raise ConnectionResetError("the connection is closed")
        if not self._writing_paused and not self._backlog:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._drainers.append(waiter)
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._drainers.remove(waiter)

    def close(self) -> None:
        """Send what is queued, say goodbye, end; a peer that takes nothing for CLOSE_TIMEOUT_S is cut off."""
        if self._transport is None or self._closing:
            return
        self._closing = True
        if self._backlog or self._writing_paused:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(CLOSE_TIMEOUT_S, self.abort)
        else:
            self._transport.close()

    def abort(self) -> None:
        """End now."""
        self._closing = True
        self._backlog.clear()
        self._backlog_size = 0
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP is there."""
        self._raw = self._transport = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)
        self._transport.set_write_buffer_limits(high=WRITE_PIECE)
        if self._start_paused:
            self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """Keep the bytes for `read`."""
        self._chunks.append(bytes(data))
        self._unread += len(data)
        if self._unread >= READ_HIGH and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        """The peer has finished; we do not speak to one who does not listen."""
        self._wake_reader()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self._ended = True
        self._error = exc
        self._backlog.clear()
        if self._deadline is not None:
            self._deadline.cancel()
        self._wake_reader()
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_exception(ConnectionResetError("the connection is closed"))
        # The transports and this stream refer to each other; without this the memory waits for a collection.
        self._transport = self._raw = None

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The transport's buffer is low."""
        self._writing_paused = False
        self._feed()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
