"""How one part of nomadpy asks another, wherever that runs: `call` for an answer, `open` for a stream.

api, agent and cli know the cluster only as a Caller. On a server node it dispatches locally and forwards to the
leader; on a client node it goes out to a server.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec


class Stream(Protocol):
    """Chunks in both directions, each at most 1 MiB, in order. Either side may finish sending first."""

    async def receive(self) -> bytes | None:
        """The next chunk; None when the other side has finished. Raises its NomadError when it failed."""
        ...

    async def send(self, chunk: bytes) -> None:
        """Send a chunk; waits while the other side is behind (credit window)."""
        ...

    async def finish(self) -> None:
        """No more chunks from here; receiving goes on."""
        ...


class Caller(Protocol):
    """Reaches any method of rpc/methods.py."""

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        """Return the method's reply struct. Raises NomadError: the server's own, or UnreachableError (definite),
        ConnectionLostError and DeadlineError (indefinite)."""
        ...

    def open(self, method: str, request: msgspec.Struct) -> AbstractAsyncContextManager[Stream]:
        """Start a streaming method; leaving the block ends it on both sides."""
        ...
