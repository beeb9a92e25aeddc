"""Accepts the streams of this node's rpc port and gives each to raft or to the calls, by its first byte.

`R`: raft, servers only. `C`: calls, in both directions. Anything else is refused with one log line, as is a
stream beyond the limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nomadpy import logs
from nomadpy.errors import PermissionDeniedError
from nomadpy.rpc.connection import Connection
from nomadpy.rpc.dispatch import Dispatcher
from nomadpy.rpc.network import Accept, ByteStream, Listening, Network
from nomadpy.rpc.refusals import Refusals

log = logs.get(__name__)

RAFT = b"R"
CALLS = b"C"

FIRST_BYTE_TIMEOUT_S = 5.0
MAX_STREAMS = 16_384
MAX_STREAMS_PER_ADDRESS = 100

Hook = Callable[[Connection], None]


class Listener:
    """The rpc port of a node; `start`, then `close`."""

    def __init__(
        self,
        network: Network,
        dispatcher: Dispatcher,
        *,
        raft: Accept | None = None,
        on_connect: Hook | None = None,
        on_disconnect: Hook | None = None,
        max_streams: int = MAX_STREAMS,
        max_streams_per_address: int = MAX_STREAMS_PER_ADDRESS,
    ) -> None:
        """raft: serves an authenticated server's raft stream (first byte taken), which is closed when it returns.

        on_connect, on_disconnect: told of each connection for calls; they must not raise.
        """
        self._network = network
        self._dispatcher = dispatcher
        self._raft = raft
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._max_streams = max_streams
        self._max_per_address = max_streams_per_address
        self._streams: dict[ByteStream, asyncio.Task[None]] = {}
        self._hosts: dict[str, int] = {}
        self._connections: dict[Connection, None] = {}
        self._refusals = Refusals()
        self._listening: Listening | None = None
        self._closed = False

    @property
    def address(self) -> str:
        """host:port with the real port; only after `start`."""
        assert self._listening is not None, "the listener was not started"
        return self._listening.address

    @property
    def connections(self) -> list[Connection]:
        """Those open now, oldest first."""
        return list(self._connections)

    async def start(self, address: str) -> None:
        """Open the port. Raises ConfigError when that cannot be."""
        self._listening = await self._network.listen(address, self._accept)

    async def close(self) -> None:
        """Stop accepting and end every stream, raft's too; returns when all are over."""
        self._closed = True
        if self._listening is not None:
            await self._listening.close()
        for connection in self._connections:
            connection.close()
        tasks = list(self._streams.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _accept(self, stream: ByteStream) -> None:
        host = stream.peer_address.rpartition(":")[0]
        here = self._hosts.get(host, 0)
        if self._closed:
            stream.abort()
            return
        if len(self._streams) >= self._max_streams or here >= self._max_per_address:
            self._refuse(stream, "too many connections")
            return
        task = asyncio.current_task()
        assert task is not None
        self._hosts[host] = here + 1
        self._streams[stream] = task
        try:
            await self._route(stream)
        finally:
            del self._streams[stream]
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]

    async def _route(self, stream: ByteStream) -> None:
        try:
            async with asyncio.timeout(FIRST_BYTE_TIMEOUT_S):
                first = await stream.read(1)
        except TimeoutError:
            self._refuse(stream, "it said nothing")
            return
        except OSError as error:
            self._refuse(stream, f"it broke before it said anything: {error}")
            return
        if first == CALLS:
            await self._serve_calls(stream)
        elif first == RAFT:
            await self._serve_raft(stream)
        elif first:
            self._refuse(stream, f"first byte {first.hex()} is neither raft nor calls")

    async def _serve_calls(self, stream: ByteStream) -> None:
        connection = Connection(stream, self._dispatcher, dialer=False)
        self._connections[connection] = None
        try:
            if self._on_connect is not None:
                self._on_connect(connection)
            await connection.run()
        finally:
            del self._connections[connection]
            if self._on_disconnect is not None:
                self._on_disconnect(connection)

    async def _serve_raft(self, stream: ByteStream) -> None:
        if self._raft is None:
            self._refuse(stream, "this node takes no part in raft")
        elif stream.peer.role != "server":
            self._refuse(stream, f"{stream.peer.name} may not speak raft: it is not a server")
        else:
            try:
                await self._raft(stream)
            except PermissionDeniedError as error:
                self._refuse(stream, str(error))
            finally:
                stream.close()

    def _refuse(self, stream: ByteStream, reason: str) -> None:
        self._refusals.report(stream.peer_address, reason, asyncio.get_running_loop().time())
        stream.abort()
