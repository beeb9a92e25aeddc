"""Carries raft messages between servers over authenticated byte streams.

Each server dials every other; requests go out on the dialed stream and their answers come back on it. Sending only
queues: the node flushes the early queue (what a leader may say before its own disk has it) and the late queue (every
promise) at their places in its round. A peer that does not keep up is disconnected and starts again from what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from nomadpy import logs
from nomadpy.entropy import Entropy
from nomadpy.errors import NomadError
from nomadpy.raft.config import PeerSpec
from nomadpy.raft.messages import (
    ANSWERS,
    FIRST_BYTE,
    PROTOCOL_VERSION,
    AppendEntries,
    FrameDecoder,
    Hello,
    Message,
    Ping,
    Pong,
    SnapshotChunk,
    Welcome,
    encode_frame,
)
from nomadpy.rpc.network import ByteStream, Network

HANDSHAKE_S = 5.0
KEEPALIVE_S = 2.0
SILENCE_S = 6.0
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 1.0
MAX_QUEUED_BYTES = 64 << 20
MAX_INBOX_BYTES = 64 << 20
_READ_BYTES = 256 << 10

log = logs.get(__name__)


class Link:
    """One stream to or from a peer. `current` falls when a newer stream replaces it: what it still says is stale."""

    __slots__ = ("current", "decoder", "heard_at", "peer", "reads_format", "stream")

    def __init__(self, stream: ByteStream, peer: PeerSpec, now: float) -> None:
        self.stream = stream
        self.peer = peer
        self.reads_format = 1
        self.current = True
        self.heard_at = now
        self.decoder = FrameDecoder()


class UnreadableLogError(ValueError):
    """The log that a peer has is of a format that this server does not read."""


class _Dialer:
    __slots__ = ("link", "peer", "task")

    def __init__(self, peer: PeerSpec) -> None:
        self.peer = peer
        self.link: Link | None = None
        self.task: asyncio.Task[None] | None = None


class RaftTransport:
    """The streams of one server. `deliver` takes what arrives; `connected` tells when a dialed stream comes or goes."""

    def __init__(
        self,
        *,
        me: PeerSpec,
        region: str,
        network: Network,
        entropy: Entropy,
        cluster: Callable[[], str],
        deliver: Callable[[Link, int, Message], None],
        on_link: Callable[[PeerSpec, bool], None],
        formats: tuple[int, int] = (1, 1),
    ) -> None:
        """formats: of the log that this server reads."""
        self._me = me
        self._formats = formats
        self._needs_format = formats[0]
        self._region = region
        self._network = network
        self._entropy = entropy
        self._cluster = cluster
        self._deliver = deliver
        self._on_link = on_link
        self._dialers: dict[str, _Dialer] = {}
        self._accepted: dict[str, Link] = {}
        self._refused: dict[str, str] = {}
        self._early: list[tuple[str, Message]] = []
        self._late: list[tuple[str, Message]] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._inbox_bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    # ---- who is there

    def add_peer(self, peer: PeerSpec) -> None:
        """Keep a stream to this server from now on; a new address replaces the old one."""
        if peer.id == self._me.id:
            return
        known = self._dialers.get(peer.id)
        if known is not None:
            if known.peer.address == peer.address:
                known.peer = peer
                return
            self.drop_peer(peer.id)
        dialer = self._dialers[peer.id] = _Dialer(peer)
        if self._tasks is not None:
            self._start(dialer)

    def drop_peer(self, server_id: str) -> None:
        """End the streams to and from this server."""
        dialer = self._dialers.pop(server_id, None)
        if dialer is not None:
            if dialer.task is not None:
                dialer.task.cancel()
            self._lose(dialer)
        link = self._accepted.pop(server_id, None)
        if link is not None:
            link.current = False
            link.stream.close()

    def require_format(self, version: int) -> None:
        """Have nothing to do any more with servers that do not read this format of the log."""
        if version <= self._needs_format:
            return
        self._needs_format = version
        for dialer in self._dialers.values():
            if dialer.link is not None and dialer.link.reads_format < version:
                dialer.link.stream.abort()
        for link in self._accepted.values():
            if link.reads_format < version:
                link.current = False
                link.stream.abort()

    def _cannot_read(self, name: str, reads_format: int) -> str:
        if reads_format >= self._needs_format:
            return ""
        return (
            f"the log is of format {self._needs_format}, and {name} reads formats up to {reads_format} only: install there "
            "the version that the other servers run"
        )

    def is_connected(self, server_id: str) -> bool:
        """Whether requests to this server would be sent."""
        dialer = self._dialers.get(server_id)
        return dialer is not None and dialer.link is not None

    # ---- sending

    def send(self, server_id: str, message: Message) -> None:
        """Queue for the flush that fits the kind; dropped when the server is not connected."""
        kind = type(message)
        early = kind is AppendEntries or kind is SnapshotChunk
        (self._early if early else self._late).append((server_id, message))

    def flush_early(self) -> None:
        """Send what promises nothing about this server's disk."""
        self._flush(self._early)

    def flush_late(self) -> None:
        """Send the promises; the caller has made true on disk what they say."""
        self._flush(self._late)

    def _flush(self, queue: list[tuple[str, Message]]) -> None:
        if not queue:
            return
        frames: dict[int, bytes] = {}
        outgoing: dict[tuple[str, bool], list[bytes]] = {}
        for server_id, message in queue:
            frame = frames.get(id(message))
            if frame is None:
                frame = frames[id(message)] = encode_frame(message)
            outgoing.setdefault((server_id, isinstance(message, ANSWERS)), []).append(frame)
        queue.clear()
        for (server_id, answer), parts in outgoing.items():
            link = self._link_to(server_id, answer=answer)
            if link is not None:
                link.stream.write(b"".join(parts))
                if link.stream.queued > MAX_QUEUED_BYTES:
                    log.warning(
                        "peer does not keep up, dropping its connection", peer=link.peer.name
                    )
                    link.stream.abort()

    def _link_to(self, server_id: str, *, answer: bool) -> Link | None:
        if answer:
            return self._accepted.get(server_id)
        dialer = self._dialers.get(server_id)
        return dialer.link if dialer is not None else None

    # ---- receiving

    def taken(self, size: int) -> None:
        """The node has worked off `size` bytes of what was delivered."""
        self._inbox_bytes -= size
        if self._inbox_bytes < MAX_INBOX_BYTES:
            self._room.set()

    async def _receive(self, link: Link) -> None:
        """Deliver what the stream says until it ends, is broken, or is replaced."""
        clock = asyncio.get_running_loop()
        while link.current:
            data = await link.stream.read(_READ_BYTES)
            if not data:
                return
            link.heard_at = clock.time()
            for size, message in link.decoder.feed(data):
                if isinstance(message, Ping):
                    link.stream.write(encode_frame(Pong()))
                elif not isinstance(message, Pong):
                    self._inbox_bytes += size
                    self._deliver(link, size, message)
            if self._inbox_bytes > MAX_INBOX_BYTES:
                self._room.clear()
                await self._room.wait()

    # ---- the accepting side

    async def serve(self, stream: ByteStream) -> None:
        """Serve a stream that another server dialed; its first byte has been read. Returns when it ends."""
        if self._tasks is None:
            stream.close()
            return
        loop = asyncio.get_running_loop()
        link = None
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                decoder = FrameDecoder(64 << 10)
                hello = await _next_message(stream, decoder)
            if not isinstance(hello, Hello):
                return
            refusal = self._refusal(hello, stream)
            welcome = Welcome(
                PROTOCOL_VERSION,
                self._me.id,
                self._cluster(),
                refusal,
                self._formats[1],
                self._needs_format,
            )
            stream.write(encode_frame(welcome))
            if refusal:
                # The other side tries again every second: once for each reason is enough.
                tell = log.debug if self._refused.get(hello.id) == refusal else log.warning
                self._refused[hello.id] = refusal
                tell("raft connection refused", peer=stream.peer_address, reason=refusal)
                await stream.drain()
                return
            peer = PeerSpec(hello.id, hello.name, hello.address)
            link = Link(stream, peer, loop.time())
            link.reads_format = hello.reads_format
            older = self._accepted.get(peer.id)
            if older is not None:
                older.current = False
                older.stream.abort()
            self._accepted[peer.id] = link
            self._refused.pop(peer.id, None)
            await self._receive(link)
        except (OSError, TimeoutError, ValueError) as cause:
            log.debug("raft stream ended", peer=stream.peer_address, cause=repr(cause))
        finally:
            if link is not None and self._accepted.get(link.peer.id) is link:
                del self._accepted[link.peer.id]
            stream.close()

    def _refusal(self, hello: Hello, stream: ByteStream) -> str:
        mine = self._cluster()
        if stream.peer.role != "server":
            return f"role {stream.peer.role!r} may not speak raft"
        if hello.version != PROTOCOL_VERSION:
            return f"raft protocol {hello.version} is not {PROTOCOL_VERSION}"
        if hello.region != self._region:
            return f"region {hello.region!r} is not {self._region!r}"
        if hello.to != self._me.id:
            return f"server {hello.to} is not here, this is {self._me.id}"
        if hello.id == self._me.id:
            return f"two servers have the id {hello.id}"
        if mine and hello.cluster and mine != hello.cluster:
            return (
                f"cluster {hello.cluster} is not {mine}: the servers were bootstrapped apart from each other; "
                "empty the raft directory of those that shall join"
            )
        return self._cannot_read(hello.name, hello.reads_format)

    # ---- the dialing side

    async def run(self) -> None:
        """Keep streams to all peers until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for dialer in list(self._dialers.values()):
                    self._start(dialer)
                tasks.create_task(self._keep_alive(), name="raft-keepalive")
        finally:
            self._tasks = None
            self._room.set()
            for dialer in self._dialers.values():
                if dialer.link is not None:
                    dialer.link.stream.abort()
                    dialer.link = None
            for link in self._accepted.values():
                link.current = False
                link.stream.abort()
            self._accepted.clear()

    def _start(self, dialer: _Dialer) -> None:
        assert self._tasks is not None
        work: Coroutine[Any, Any, None] = self._dial(dialer)
        dialer.task = self._tasks.create_task(work, name=f"raft-dial-{dialer.peer.name}")

    async def _dial(self, dialer: _Dialer) -> None:
        delay = BACKOFF_MIN_S
        said = ""
        while True:
            try:
                link = await self._connect(dialer.peer)
            except (OSError, TimeoutError, ValueError, NomadError) as cause:
                reason = str(cause) or type(cause).__name__
                if reason != said:
                    said = reason
                    tell = log.error if isinstance(cause, UnreadableLogError) else log.info
                    tell(
                        "raft peer is not reachable",
                        peer=dialer.peer.name,
                        address=dialer.peer.address,
                        reason=reason,
                    )
            else:
                delay, said = BACKOFF_MIN_S, ""
                dialer.link = link
                self._on_link(dialer.peer, True)
                try:
                    await self._receive(link)
                except (OSError, ValueError) as cause:
                    log.debug("raft stream ended", peer=dialer.peer.name, cause=repr(cause))
                finally:
                    link.stream.close()
                    self._lose(dialer)
            await asyncio.sleep(self._entropy.uniform(delay / 2, delay))
            delay = min(delay * 2, BACKOFF_MAX_S)

    def _lose(self, dialer: _Dialer) -> None:
        link, dialer.link = dialer.link, None
        if link is not None:
            link.current = False
            link.stream.abort()
            self._on_link(dialer.peer, False)

    async def _connect(self, peer: PeerSpec) -> Link:
        """Dial and shake hands. Raises OSError, TimeoutError, ValueError or NomadError."""
        async with asyncio.timeout(HANDSHAKE_S):
            stream = await self._network.dial(peer.address, role="server")
            link = Link(stream, peer, asyncio.get_running_loop().time())
            try:
                hello = Hello(
                    version=PROTOCOL_VERSION,
                    id=self._me.id,
                    name=self._me.name,
                    address=self._me.address,
                    region=self._region,
                    cluster=self._cluster(),
                    to=peer.id,
                    reads_format=self._formats[1],
                )
                stream.write(FIRST_BYTE + encode_frame(hello))
                welcome = await _next_message(stream, link.decoder)
                if not isinstance(welcome, Welcome):
                    raise ValueError("the peer does not speak raft")  # noqa: TRY004 - a peer's fault, not a type
                if welcome.needs_format > self._formats[1]:
                    raise UnreadableLogError(
                        f"the log there is of format {welcome.needs_format}, and this server reads "
                        f"{self._formats[0]} to {self._formats[1]}: it takes no part until the version that the other "
                        "servers run is installed here"
                    )
                if welcome.refusal:
                    raise ValueError(f"refused: {welcome.refusal}")
                link.reads_format = welcome.reads_format
                too_old = self._cannot_read(peer.name, welcome.reads_format)
                if too_old:
                    raise UnreadableLogError(too_old)
            except BaseException:
                stream.abort()
                raise
        return link

    async def probe(self, peer: PeerSpec) -> None:
        """Make sure that a server which is to join answers. Raises like `_connect`."""
        link = await self._connect(peer)
        link.stream.close()

    async def _keep_alive(self) -> None:
        """A stream whose other end is gone looks alive for minutes; ask, and drop it when no answer comes."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(KEEPALIVE_S)
            for dialer in list(self._dialers.values()):
                link = dialer.link
                if link is None:
                    continue
                silence_s = loop.time() - link.heard_at
                if silence_s > SILENCE_S:
                    log.warning("raft peer is silent, dialing again", peer=dialer.peer.name)
                    link.stream.abort()
                elif silence_s > KEEPALIVE_S / 2:
                    link.stream.write(encode_frame(Ping()))
            for link in list(self._accepted.values()):
                # The dialing side asks every few seconds; one that does not is gone without a word.
                if loop.time() - link.heard_at > 3 * SILENCE_S:
                    link.stream.abort()


async def _next_message(stream: ByteStream, decoder: FrameDecoder) -> Message:
    """The first message of a stream; nothing may follow it before it was answered."""
    while True:
        data = await stream.read(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the peer closed the connection")
        messages = decoder.feed(data)
        if len(messages) > 1:
            raise ValueError("more than one raft message in the handshake")
        if messages:
            return messages[0][1]
