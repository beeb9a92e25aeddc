"""What carries bytes between nodes: an ordered stream with a proven peer.

Real nodes use TLS over TCP (`rpc/tls_network.py`), the simulator its own (`simulator/network.py`). Both promise:
bytes arrive in order or the stream ends; loss only with a disconnect.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from nomadpy.pki.roles import Identity as Identity


class ByteStream(Protocol):
    """One connection. `read` returns b"" at the end; a broken one raises OSError (ConnectionError)."""

    @property
    def peer(self) -> Identity:
        """Who is at the other end."""
        ...

    @property
    def peer_address(self) -> str:
        """host:port of the other end, for logs."""
        ...

    async def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, at least one unless the stream has ended."""
        ...

    def write(self, data: bytes) -> None:
        """Queue bytes; never blocks. The owner watches `queued` and bounds it."""
        ...

    @property
    def queued(self) -> int:
        """Bytes written and not yet handed to the network."""
        ...

    async def drain(self) -> None:
        """Wait until `queued` is low again."""
        ...

    def close(self) -> None:
        """End the stream after what is queued; may be called twice."""
        ...

    def abort(self) -> None:
        """End the stream now, dropping what is queued."""
        ...


Accept = Callable[[ByteStream], Awaitable[None]]
"""Serves one accepted stream; the stream is closed when it returns."""


class Listening(Protocol):
    """An open port."""

    @property
    def address(self) -> str:
        """host:port with the real port."""
        ...

    async def close(self) -> None:
        """Stop accepting; streams already open stay with their owners."""
        ...


class Network(Protocol):
    """Opens and accepts streams on behalf of one node."""

    async def dial(self, address: str, *, role: str) -> ByteStream:
        """Connect to host:port and demand that the peer proves `role` (server or client).

        Raises UnreachableError when no stream could be made, PermissionDeniedError when the peer is not who it must be.
        """
        ...

    async def listen(self, address: str, accept: Accept) -> Listening:
        """Serve a port; `accept` runs once for each authenticated stream, in a task of the listener."""
        ...
