"""ByteStreams and a Network inside one event loop, for tests on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from nomadpy.errors import PermissionDeniedError, UnreachableError
from nomadpy.rpc.network import Accept, ByteStream, Identity, Listening

SERVER = Identity(role="server", region="global", name="server.global.nomad")
CLIENT = Identity(role="client", region="global", name="client.global.nomad")
CLI = Identity(role="cli", region="global", name="cli.global.nomad")

LOW = 64 * 1024


class MemoryStream:
    """One end. Bytes written here are readable at the other end `delay_s` later, in order."""

    def __init__(self, peer: Identity, address: str, delay_s: float, window: int) -> None:
        self._peer = peer
        self._address = address
        self._delay_s = delay_s
        self._window = window
        self._inbox = bytearray()
        self._changed = asyncio.Event()
        self._eof = False
        self._broken: OSError | None = None
        self._other: MemoryStream = self
        self._unsent = bytearray()
        self._drained = asyncio.Event()
        self._closing = False
        self.silent = False
        """Swallows what is written, as a peer that is gone without a word."""
        self.written = 0

    @property
    def peer(self) -> Identity:
        return self._peer

    @property
    def peer_address(self) -> str:
        return self._address

    async def read(self, limit: int) -> bytes:
        while not self._inbox:
            if self._broken is not None:
                raise self._broken
            if self._eof:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._inbox[:limit])
        del self._inbox[:limit]
        self._other._push()
        return data

    def write(self, data: bytes) -> None:
        if self._closing or self._broken is not None:
            return
        self.written += len(data)
        if self.silent:
            return
        self._unsent += data
        asyncio.get_running_loop().call_later(self._delay_s, self._push)

    def _push(self) -> None:
        """Hand over what the other side's window takes."""
        other = self._other
        room = self._window - len(other._inbox)
        if room > 0 and self._unsent:
            other._inbox += self._unsent[:room]
            del self._unsent[:room]
            other._changed.set()
        if len(self._unsent) < LOW:
            self._drained.set()
        if self._closing and not self._unsent:
            other._eof = self._eof = True
            other._changed.set()
            self._changed.set()

    @property
    def queued(self) -> int:
        return len(self._unsent)

    async def drain(self) -> None:
        while len(self._unsent) >= LOW:
            if self._broken is not None:
                raise self._broken
            self._drained.clear()
            await self._drained.wait()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_later(self._delay_s, self._push)

    def abort(self) -> None:
        self._closing = True
        self._unsent.clear()
        self._other.break_off(ConnectionResetError("reset by peer"))
        self.break_off(ConnectionResetError("aborted"))

    def break_off(self, error: OSError) -> None:
        """The connection is gone, for this end."""
        if self._broken is None:
            self._broken = error
        self._changed.set()
        self._drained.set()


def memory_pair(
    *,
    dialer: Identity = CLIENT,
    acceptor: Identity = SERVER,
    delay_s: float = 0.001,
    window: int = 256 * 1024,
) -> tuple[MemoryStream, MemoryStream]:
    """(the dialer's end, the acceptor's end)."""
    one = MemoryStream(acceptor, "acceptor:4647", delay_s, window)
    two = MemoryStream(dialer, "dialer:50000", delay_s, window)
    one._other, two._other = two, one
    return one, two


class MemoryListening:
    def __init__(self, address: str, forget: Callable[[], None]) -> None:
        self.address = address
        self._forget = forget

    async def close(self) -> None:
        self._forget()


class MemoryNetwork:
    """Ports by name; every accept runs in the given TaskGroup."""

    def __init__(self, group: asyncio.TaskGroup, identity: Identity = CLIENT) -> None:
        self._group = group
        self._identity = identity
        self._ports: dict[str, Accept] = {}
        self.dials = 0
        self.roles = {"server": SERVER, "client": CLIENT}
        self.before_dial: Callable[[], Awaitable[None]] | None = None

    async def dial(self, address: str, *, role: str) -> ByteStream:
        self.dials += 1
        if self.before_dial is not None:
            await self.before_dial()
        accept = self._ports.get(address)
        if accept is None:
            raise UnreachableError(f"{address}: connection refused")
        if role != "server":
            raise PermissionDeniedError(f"{address} is not a {role}")
        ours, theirs = memory_pair(dialer=self._identity)

        async def serve() -> None:
            try:
                await accept(theirs)
            finally:
                theirs.close()

        self._group.create_task(serve(), name=f"accept {address}")
        return ours

    async def listen(self, address: str, accept: Accept) -> Listening:
        self._ports[address] = accept
        return MemoryListening(address, lambda: self._ports.pop(address, None) and None)
