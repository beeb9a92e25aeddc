"""A network of hosts in one event loop: delays, partitions, broken connections, crashes; all chance from one seed.

A stream delivers its bytes in order or ends: bytes are lost with their connection only, as with TCP. A blocked link
holds what is under way; after `give_up_s` the connections across it break, and a dial fails after `dial_s`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from nomadpy.entropy import Entropy
from nomadpy.errors import PermissionDeniedError, UnreachableError
from nomadpy.rpc.network import Accept, ByteStream, Identity

_LOW_WATER = 64 << 10
_FIRST_PORT = 20000


class SimNetwork:
    """All hosts and the links between them.

    delay_s: (least, most) one-way delay, drawn for every write. dial_s: how long a dial into the void takes.
    give_up_s: how long a connection outlives a blocked link.
    """

    def __init__(
        self,
        entropy: Entropy,
        *,
        delay_s: tuple[float, float] = (0.0005, 0.002),
        dial_s: float = 3.0,
        give_up_s: float = 10.0,
    ) -> None:
        self.delay_s = delay_s
        self.dial_s = dial_s
        self.give_up_s = give_up_s
        self.bytes_sent = 0
        self._entropy = entropy
        self._hosts: dict[str, HostNetwork] = {}
        self._blocked: dict[tuple[str, str], None] = {}
        self._slow: dict[tuple[str, str], tuple[float, float]] = {}
        self._connections: dict[_Connection, None] = {}
        self._next_port = _FIRST_PORT

    def host(self, name: str, *, role: str = "server", region: str = "global") -> HostNetwork:
        """The network of one node. `name` is its address without the port; a node that starts again gets a new one."""
        identity = Identity(role=role, region=region, name=f"{role}.{region}.nomad")
        host = HostNetwork(self, name, identity)
        self._hosts[name] = host
        return host

    # ---- faults

    def block(self, source: str, target: str) -> None:
        """One way: nothing gets from `source` to `target` any more."""
        if (source, target) in self._blocked:
            return
        self._blocked[source, target] = None
        for connection in list(self._connections):
            if {connection.dialer.host, connection.acceptor.host} == {source, target}:
                connection.limit_life(self.give_up_s)

    def unblock(self, source: str, target: str) -> None:
        """The link works again; what it held is delivered."""
        self._blocked.pop((source, target), None)
        for connection in list(self._connections):
            for end in (connection.dialer, connection.acceptor):
                if (end.host, end.other.host) == (source, target):
                    end.flush()

    def partition(self, *groups: Iterable[str]) -> None:
        """Both ways: hosts reach their own group only; hosts of no group reach everyone but nobody's group."""
        sides = [list(group) for group in groups]
        for i, one in enumerate(sides):
            for other in sides[i + 1 :]:
                for a in one:
                    for b in other:
                        self.block(a, b)
                        self.block(b, a)

    def heal(self) -> None:
        """Every link works again, at the usual speed."""
        for source, target in list(self._blocked):
            self.unblock(source, target)
        self._slow.clear()

    def cut(self, one: str, other: str) -> None:
        """Break every connection between two hosts now; what was under way is lost."""
        for connection in list(self._connections):
            if {connection.dialer.host, connection.acceptor.host} == {one, other}:
                connection.break_now()

    def slow(self, source: str, target: str, delay_s: tuple[float, float]) -> None:
        """Give one direction a delay of its own."""
        self._slow[source, target] = delay_s

    def crash(self, name: str, *, silent: bool = False) -> None:
        """The host is gone, with its ports and connections. silent (a power cut): the others are told only when they
        send something or give up; else (a killed process) the kernel tells them."""
        host = self._hosts.pop(name, None)
        if host is not None:
            host.dead = True
        for connection in list(self._connections):
            for end in (connection.dialer, connection.acceptor):
                if end.owner is host and host is not None:
                    connection.lose(end, silent=silent)

    # ---- for the parts below

    def is_blocked(self, source: str, target: str) -> bool:
        """Whether bytes are held."""
        return (source, target) in self._blocked

    def draw_delay(self, source: str, target: str) -> float:
        """How long the next bytes take."""
        low, high = self._slow.get((source, target), self.delay_s)
        return self._entropy.uniform(low, high)

    def find(self, address: str) -> HostNetwork | None:
        """The host that serves this address, None when there is none."""
        host = self._hosts.get(address.rpartition(":")[0])
        return host if host is not None and address in host.ports else None

    def take_port(self) -> int:
        """A port that nobody has."""
        self._next_port += 1
        return self._next_port

    def connections(self) -> dict[_Connection, None]:
        """All connections that are not over, oldest first."""
        return self._connections


class HostNetwork:
    """`rpc.network.Network` of one host."""

    def __init__(self, world: SimNetwork, name: str, identity: Identity) -> None:
        self.world = world
        self.name = name
        self.identity = identity
        self.dead = False
        self.ports: dict[str, SimListening] = {}

    async def dial(self, address: str, *, role: str) -> ByteStream:
        """Connect; UnreachableError when nobody serves the address, PermissionDeniedError for another role."""
        world = self.world
        target_name = address.rpartition(":")[0]
        if world.is_blocked(self.name, target_name) or world.is_blocked(target_name, self.name):
            await asyncio.sleep(world.dial_s)
            raise UnreachableError(f"dial {address}: timed out")
        await asyncio.sleep(
            world.draw_delay(self.name, target_name) + world.draw_delay(target_name, self.name)
        )
        target = world.find(address)
        if self.dead or target is None:
            raise UnreachableError(f"dial {address}: connection refused")
        if target.identity.role != role:
            raise PermissionDeniedError(f"dial {address}: the peer is a {target.identity.role}")
        connection = _Connection(world, self, target, address)
        target.ports[address].accept(connection.acceptor)
        return connection.dialer

    async def listen(self, address: str, accept: Accept) -> SimListening:
        """Serve host:port; port 0 picks one. The host must be this one."""
        name, _, port = address.rpartition(":")
        if name != self.name:
            raise OSError(f"listen {address}: this host is {self.name}")
        if port == "0":
            address = f"{name}:{self.world.take_port()}"
        if address in self.ports:
            raise OSError(f"listen {address}: address already in use")
        listening = self.ports[address] = SimListening(self, address, accept)
        return listening


class SimListening:
    """An open port; accepted streams are served in tasks of its own."""

    def __init__(self, host: HostNetwork, address: str, accept: Accept) -> None:
        self._host = host
        self._address = address
        self._accept = accept
        self._tasks: dict[asyncio.Task[None], None] = {}

    @property
    def address(self) -> str:
        """host:port."""
        return self._address

    def accept(self, stream: SimStream) -> None:
        """Serve a stream in a task that `close` ends."""
        # A listener outlives the call that made it, so its tasks belong to no block; `close` ends every one of them.
        task = asyncio.get_running_loop().create_task(
            self._serve(stream), name=f"accept-{self._address}"
        )
        self._tasks[task] = None

        def ended(done: asyncio.Task[None]) -> None:
            # Here and not in the task: one that is cancelled before its first step never runs at all.
            del self._tasks[done]
            stream.close()

        task.add_done_callback(ended)

    async def _serve(self, stream: SimStream) -> None:
        try:
            await self._accept(stream)
        except OSError:
            stream.abort()

    async def close(self) -> None:
        """Stop accepting, and end the tasks that serve accepted streams."""
        self._host.ports.pop(self._address, None)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            await asyncio.wait([task])


class _Connection:
    def __init__(
        self, world: SimNetwork, dialer: HostNetwork, acceptor: HostNetwork, address: str
    ) -> None:
        self.world = world
        self.dialer = SimStream(self, dialer, acceptor.identity, address)
        self.acceptor = SimStream(
            self, acceptor, dialer.identity, f"{dialer.name}:{world.take_port()}"
        )
        self.dialer.other, self.acceptor.other = self.acceptor, self.dialer
        world.connections()[self] = None

    def limit_life(self, seconds: float) -> None:
        """Break when the link is still blocked after `seconds`."""

        def give_up() -> None:
            a, b = self.dialer.host, self.acceptor.host
            if self.world.is_blocked(a, b) or self.world.is_blocked(b, a):
                self.break_now()

        asyncio.get_running_loop().call_later(seconds, give_up)

    def break_now(self) -> None:
        """Both ends find the connection reset."""
        self.world.connections().pop(self, None)
        self.dialer.reset()
        self.acceptor.reset()

    def lose(self, end: SimStream, *, silent: bool) -> None:
        """One end is gone with its host."""
        end.reset()
        if silent:
            end.other.void = True
            asyncio.get_running_loop().call_later(self.world.give_up_s, self.break_now)
            return
        end.other.finish_later()


class SimStream:
    """One end of a connection."""

    other: SimStream

    def __init__(
        self, connection: _Connection, owner: HostNetwork, peer: Identity, peer_address: str
    ) -> None:
        self.owner = owner
        self.host = owner.name
        self.void = False
        self._connection = connection
        self._world = connection.world
        self._peer = peer
        self._peer_address = peer_address
        self._under_way: deque[bytes | None] = deque()
        self._held = 0
        self._queued = 0
        self._arrives_at = 0.0
        self._incoming = bytearray()
        self._ended = False
        self._broken = False
        self._closed = False
        self._readable = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def peer(self) -> Identity:
        """Who is at the other end."""
        return self._peer

    @property
    def peer_address(self) -> str:
        """host:port of the other end."""
        return self._peer_address

    @property
    def queued(self) -> int:
        """Bytes under way or held by a blocked link."""
        return self._queued

    async def read(self, limit: int) -> bytes:
        """Up to `limit` bytes; b"" at the end; ConnectionResetError when broken."""
        while not self._incoming and not self._ended and not self._broken:
            self._readable.clear()
            await self._readable.wait()
        if self._broken:
            raise ConnectionResetError("connection reset by peer")
        data = bytes(self._incoming[:limit])
        del self._incoming[:limit]
        return data

    def write(self, data: bytes) -> None:
        """Queue bytes; they are lost when the connection is over."""
        if self._closed or self._broken or not data:
            return
        self._queued += len(data)
        self._world.bytes_sent += len(data)
        if self._queued > _LOW_WATER:
            self._drained.clear()
        self._send(data)

    async def drain(self) -> None:
        """Wait until little is under way."""
        await self._drained.wait()
        if self._broken:
            raise ConnectionResetError("connection reset by peer")

    def close(self) -> None:
        """End after what is queued."""
        if not self._closed:
            self._closed = True
            if not self._broken:
                self._send(None)
            self._end()

    def abort(self) -> None:
        """End now; what is queued is lost."""
        if self._broken:
            return
        self._closed = True
        self.reset()
        self.other.finish_later()

    # ---- for the network

    def reset(self) -> None:
        """Here and now the connection is over."""
        self._broken = True
        self._under_way.clear()
        self._queued = 0
        self._drained.set()
        self._readable.set()

    def finish_later(self) -> None:
        """The other end is over; this one hears of it after a delay, unless the link is blocked."""
        source, target = self.other.host, self.host
        if self._broken or self._world.is_blocked(source, target):
            return
        delay = self._world.draw_delay(source, target)
        asyncio.get_running_loop().call_later(delay, self._connection.break_now)

    def flush(self) -> None:
        """The link works again: what it held goes on its way."""
        held, self._held = self._held, 0
        for _ in range(held):
            self._schedule()

    def _send(self, data: bytes | None) -> None:
        self._under_way.append(data)
        self._schedule()

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        delay = self._world.draw_delay(self.host, self.other.host)
        self._arrives_at = max(self._arrives_at, loop.time() + delay)
        loop.call_at(self._arrives_at, self._arrive)

    def _arrive(self) -> None:
        if not self._under_way:
            return
        if self._held or self._world.is_blocked(self.host, self.other.host):
            self._held += 1
            return
        if self.void:
            # The other host lost its power; whatever answers there now knows nothing of this connection.
            if self._world._hosts.get(self.other.host) is not None:
                self._connection.break_now()
            return
        data = self._under_way.popleft()
        other = self.other
        if data is None:
            other._ended = True
        else:
            self._queued -= len(data)
            other._incoming += data
            if self._queued <= _LOW_WATER:
                self._drained.set()
        other._readable.set()

    def _end(self) -> None:
        if self.other._closed:
            self._world.connections().pop(self._connection, None)
