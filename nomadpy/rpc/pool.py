"""Outgoing connections: one for each address, shared by all who call, dialed when first needed.

A dial that fails is answered at once with UnreachableError for a while that doubles with each failure, so that a
dead peer costs its callers nothing; they turn to another. What the peer asks over such a connection is
served too: servers call agents over the connection that the agent opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from nomadpy import logs
from nomadpy.entropy import Entropy
from nomadpy.errors import NomadError, UnreachableError
from nomadpy.rpc.caller import Stream
from nomadpy.rpc.connection import Connection
from nomadpy.rpc.dispatch import Dispatcher
from nomadpy.rpc.listener import CALLS
from nomadpy.rpc.network import Network
from nomadpy.rpc.tasks import Tasks

log = logs.get(__name__)

DIAL_TIMEOUT_S = 10.0
BACKOFF_FIRST_S = 0.1
BACKOFF_LIMIT_S = 2.0
PEERS_KEPT = 256


class _Peer:
    """What is known of one address."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.dialing: asyncio.Task[Connection | NomadError] | None = None
        self.failures = 0
        self.retry_at = 0.0
        self.error: NomadError | None = None

    @property
    def idle(self) -> bool:
        return self.connection is None and self.dialing is None


class Pool:
    """Connections to other nodes; `close` ends them."""

    def __init__(self, network: Network, dispatcher: Dispatcher | None, entropy: Entropy) -> None:
        """dispatcher: serves what peers ask over connections that we dialed; None refuses it."""
        self._network = network
        self._dispatcher = dispatcher
        self._entropy = entropy
        self._peers: dict[tuple[str, str], _Peer] = {}
        self._tasks = Tasks()
        self._closed = False

    async def get(self, address: str, role: str = "server") -> Connection:
        """The open connection to host:port, dialing when there is none. Raises UnreachableError and
        PermissionDeniedError (the peer does not prove `role`), both definite.
        """
        if self._closed:
            raise UnreachableError(f"{address}: this node is shutting down")
        peer = self._peer(address, role)
        if peer.connection is not None and not peer.connection.closed:
            return peer.connection
        if peer.dialing is None:
            if peer.error is not None and asyncio.get_running_loop().time() < peer.retry_at:
                raise _again(peer.error)
            peer.dialing = self._tasks.start(
                self._dial(peer, address, role), name=f"dial {address}"
            )
        dialing = peer.dialing
        try:
            # Shielded: others wait for the same dial.
            result = await asyncio.shield(dialing)
        except asyncio.CancelledError:
            if dialing.cancelled() and self._closed:
                raise UnreachableError(f"{address}: this node is shutting down") from None
            raise
        if isinstance(result, NomadError):
            raise _again(result)
        return result

    async def call(
        self,
        address: str,
        method: str,
        request: msgspec.Struct,
        *,
        role: str = "server",
        timeout_s: float | None = None,
    ) -> Any:
        """Call a method at an address; errors as of Connection.call and `get`."""
        connection = await self.get(address, role)
        return await connection.call(method, request, timeout_s=timeout_s)

    @asynccontextmanager
    async def open(
        self, address: str, method: str, request: msgspec.Struct, *, role: str = "server"
    ) -> AsyncIterator[Stream]:
        """Start a streaming method at an address; errors as of Connection.open and `get`."""
        connection = await self.get(address, role)
        async with connection.open(method, request) as stream:
            yield stream

    @property
    def connections(self) -> list[Connection]:
        """Those open now."""
        return [
            peer.connection
            for peer in self._peers.values()
            if peer.connection is not None and not peer.connection.closed
        ]

    async def close(self) -> None:
        """End all connections and dials; calls under way fail. Returns when all are over."""
        self._closed = True
        for connection in self.connections:
            connection.close()
        await self._tasks.close()

    def _peer(self, address: str, role: str) -> _Peer:
        key = (address, role)
        peer = self._peers.get(key)
        if peer is None:
            if len(self._peers) >= PEERS_KEPT:
                for old in [key for key, known in self._peers.items() if known.idle]:
                    del self._peers[old]
            peer = self._peers[key] = _Peer()
        return peer

    async def _dial(self, peer: _Peer, address: str, role: str) -> Connection | NomadError:
        """One attempt; its error is a value, because nobody may be left who waits for it."""
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                stream = await self._network.dial(address, role=role)
        except TimeoutError:
            error: NomadError = UnreachableError(f"{address}: no answer to the dial")
        except NomadError as cause:
            error = cause
        except OSError as cause:
            error = UnreachableError(f"{address}: {cause}")
        else:
            stream.write(CALLS)
            connection = Connection(stream, self._dispatcher, dialer=True)
            peer.connection, peer.error = connection, None
            self._tasks.start(self._run(peer, connection), name=f"connection {address}")
            return connection
        finally:
            peer.dialing = None
        self._failed(peer, error)
        return error

    async def _run(self, peer: _Peer, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            if peer.connection is connection:
                peer.connection = None
            if connection.heard:
                peer.failures = 0
            else:
                # It took our connection and said nothing: it may refuse our certificate, or be going down.
                why = "the peer ended the last connection before it said anything"
                self._failed(peer, UnreachableError(f"{connection.address}: {why}"))

    def _failed(self, peer: _Peer, error: NomadError) -> None:
        limit = min(BACKOFF_LIMIT_S, BACKOFF_FIRST_S * 2.0 ** min(peer.failures, 16))
        peer.failures += 1
        peer.error = error
        peer.retry_at = asyncio.get_running_loop().time() + self._entropy.uniform(limit / 2, limit)


def _again(error: NomadError) -> NomadError:
    """The same error for another who waits: one exception object must not be raised in two tasks."""
    return NomadError.from_wire(error.to_wire())
