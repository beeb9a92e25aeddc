"""Which server to ask, and how long to wait before asking again.

`ServerList` keeps the addresses and their order; `FailoverCaller` asks one after the other. A request that may have
happened is never repeated here: only errors that say it did not lead to the next server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec

from nomadpy import logs
from nomadpy.entropy import Entropy
from nomadpy.errors import (
    ConnectionLostError,
    DeadlineError,
    NoLeaderError,
    NotLeaderError,
    UnreachableError,
)
from nomadpy.models.calls import ServerAddress
from nomadpy.rpc.caller import Caller, Stream

log = logs.get(__name__)


class Backoff:
    """Growing pauses between tries, spread by chance; `for`-able for ever, `reset` after a success."""

    def __init__(self, entropy: Entropy, *, first_s: float = 0.5, most_s: float = 15.0) -> None:
        self._entropy = entropy
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def next_s(self) -> float:
        """Seconds to wait now: between half and the whole of the current pause."""
        pause = self._next_s
        self._next_s = min(pause * 2, self._most_s)
        return self._entropy.uniform(pause / 2, pause)

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._next_s = self._first_s


class ServerList:
    """Known servers in the order they should be tried."""

    def __init__(self, addresses: Iterable[str], entropy: Entropy) -> None:
        """addresses: host:port from the configuration; shuffled, so that agents spread over servers."""
        self._entropy = entropy
        self._configured = list(dict.fromkeys(addresses))
        self._order = list(self._configured)
        entropy.shuffle(self._order)
        self._listeners: list[Callable[[list[str]], None]] = []

    def ordered(self) -> list[str]:
        """host:port of every server, the one to try first in front."""
        return list(self._order)

    def subscribe(self, listener: Callable[[list[str]], None]) -> None:
        """Call `listener` with all addresses whenever they change."""
        self._listeners.append(listener)

    def update(self, servers: Iterable[ServerAddress]) -> None:
        """Take over what a server told; an empty list changes nothing. Servers already known keep their place."""
        told = list(dict.fromkeys(server.rpc for server in servers if server.rpc))
        if not told:
            return
        kept = [address for address in self._order if address in told]
        new = [address for address in told if address not in kept]
        self._entropy.shuffle(new)
        changed = set(self._order) != set(told)
        self._order = kept + new
        if changed:
            log.info("servers known", servers=",".join(self._order))
            for listener in self._listeners:
                listener(self.ordered())

    def failed(self, address: str) -> None:
        """Put a server that did not answer last; with one server left, the configured ones come back."""
        if address in self._order:
            self._order.remove(address)
            self._order.append(address)
        # All that a server told may be gone since; what the operator wrote down is tried again then.
        self._order.extend(a for a in self._configured if a not in self._order)


class FailoverCaller:
    """A Caller over several servers."""

    def __init__(self, servers: ServerList, connect: Callable[[str], Caller]) -> None:
        """connect: the caller that reaches one address; asked anew each time, so it should keep connections."""
        self._servers = servers
        self._connect = connect

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        """Ask servers in turn until one takes the request. Raises the last server's error."""
        last: UnreachableError | NoLeaderError | NotLeaderError | None = None
        for address in self._servers.ordered():
            try:
                return await self._connect(address).call(method, request, timeout_s=timeout_s)
            except (UnreachableError, NoLeaderError, NotLeaderError) as cause:
                self._servers.failed(address)
                last = cause
            except (ConnectionLostError, DeadlineError):
                self._servers.failed(address)
                raise
        raise last or UnreachableError("no servers are known")

    def open(self, method: str, request: msgspec.Struct) -> AbstractAsyncContextManager[Stream]:
        """Open a stream on the first server that can be reached."""
        return self._open(method, request)

    @asynccontextmanager
    async def _open(self, method: str, request: msgspec.Struct) -> AsyncIterator[Stream]:
        last: UnreachableError | None = None
        for address in self._servers.ordered():
            opening = self._connect(address).open(method, request)
            try:
                stream = await opening.__aenter__()
            except UnreachableError as cause:
                self._servers.failed(address)
                last = cause
                continue
            async with _Opened(opening):
                yield stream
            return
        raise last or UnreachableError("no servers are known")


class _Opened:
    """Closes a stream that was entered by hand."""

    def __init__(self, opening: AbstractAsyncContextManager[Stream]) -> None:
        self._opening = opening

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._opening.__aexit__(*error)


async def pause(backoff: Backoff, wake: asyncio.Event | None = None) -> None:
    """Wait for the next pause of `backoff`, or until `wake` is set."""
    if wake is None:
        await asyncio.sleep(backoff.next_s())
        return
    try:
        async with asyncio.timeout(backoff.next_s()):
            await wake.wait()
    except TimeoutError:
        return
