"""This node's membership: who it is, what it has, and the heartbeats that keep it alive in the servers' eyes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from agent.local_state import LocalState, NodeIdentity
from agent.server_list import Backoff, ServerList
from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.errors import NomadError, NotFoundError
from nomadpy.models.calls import NodeHeartbeat, NodeRegister, NodeReply
from nomadpy.models.node import DriverInfo, Node
from nomadpy.rpc.caller import Caller

log = logs.get(__name__)

INITIALIZING = "initializing"
READY = "ready"

_SECOND = 1_000_000_000
_CALL_TIMEOUT_S = 10.0
_DEFAULT_TTL_S = 10.0
_ANSWER_S = 1.0

Fingerprint = Callable[[], Awaitable[Node]]
"""Looks at the host: attributes, resources, drivers, links; who the node is is not its business."""

Describe = Callable[[Node], Node]
"""Adds to a fingerprint what configuration and operators say: names, addresses, metadata."""


async def load_identity(state: LocalState, entropy: Entropy) -> NodeIdentity:
    """The node's identity, made on its first start."""
    identity = await state.node()
    if identity is None:
        identity = NodeIdentity(id=entropy.uuid(), secret=entropy.uuid())
        await state.put_node(identity)
        log.info("node identity made", node_id=identity.id)
    return identity


class Registration:
    """Registers the node and keeps it registered."""

    def __init__(
        self,
        caller: Caller,
        fingerprint: Fingerprint,
        describe: Describe,
        clock: Clock,
        entropy: Entropy,
        *,
        region: str,
        servers: ServerList | None = None,
        fingerprint_interval_s: float = 60.0,
    ) -> None:
        self._caller = caller
        self._identity = NodeIdentity(id="", secret="")
        self._fingerprint = fingerprint
        self._describe = describe
        self._clock = clock
        self._entropy = entropy
        self._region = region
        self._servers = servers
        self._interval_s = fingerprint_interval_s
        self._found = Node()
        self._node = Node()
        self._registered: Node | None = None
        self._doubts = 0  # how often what servers had acknowledged may have been forgotten
        self._status = INITIALIZING
        self._wake = asyncio.Event()
        self._contact_s = clock.monotonic()
        self._next_within_s = 0.0
        self._ttl_s = 0.0
        self.registered = asyncio.Event()

    @property
    def node(self) -> Node:
        """The node as it is now, without its secret."""
        return self._node

    @property
    def status(self) -> str:
        """What the node says of itself: initializing | ready."""
        return self._status

    @property
    def heartbeat_ttl_s(self) -> float:
        """For how long the last heartbeat keeps the node alive; 0 before the first."""
        return self._ttl_s

    def contact_age_s(self) -> float:
        """Seconds since a server last answered, or since the agent began."""
        return self._clock.monotonic() - self._contact_s

    def silence_s(self) -> float:
        """Seconds since a server last answered (or the agent began), 0 while no answer is overdue."""
        silence_s = self.contact_age_s()
        return silence_s if silence_s > self._next_within_s else 0.0

    def identify(self, identity: NodeIdentity) -> None:
        """Say who the node is; before anything else."""
        self._identity = identity

    async def look(self) -> None:
        """Take a fingerprint; must have run once before `run`."""
        self._found = await self._fingerprint()
        self.refresh()

    def refresh(self) -> None:
        """Put the node together again, e.g. with new metadata, and register it if that changed it."""
        self._node = self._describe(self._found)
        if self._registered is not None and not same(self._node, self._registered):
            self._wake.set()

    def anew(self) -> None:
        """Register as soon as possible, whatever servers have acknowledged."""
        self._registered = None
        self._doubts += 1
        self._wake.set()

    async def run(self) -> None:
        """Register, then beat, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(), name="heartbeat")
            group.create_task(self._look_again(), name="fingerprint")

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s * self._entropy.uniform(0.9, 1.1))
            await self.look()

    async def _beat(self) -> None:
        backoff = Backoff(self._entropy)
        while True:
            self._wake.clear()
            try:
                wait_s = await self._say()
                backoff.reset()
            except NotFoundError as cause:
                log.warning("servers do not know this node; registering", error=cause.message)
                self._registered = None
                wait_s = backoff.next_s()
            except NomadError as cause:
                log.warning("heartbeat failed", error=cause.message)
                wait_s = backoff.next_s()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _say(self) -> float:
        """Register if needed, else beat; returns seconds until the next time."""
        if self._registered is None or not same(self._node, self._registered):
            node, doubts = self._node, self._doubts
            reply = await self._register(node)
            if doubts == self._doubts:
                self._registered = node
            self._heard(reply)
            if self._status == READY:
                return self._pause_s(reply)
        self._status = READY
        reply = await self._caller.call(
            "Node.Heartbeat",
            NodeHeartbeat(node_id=self._identity.id, secret_id=self._identity.secret, status=READY),
            timeout_s=_CALL_TIMEOUT_S,
        )
        self._heard(reply)
        if not self.registered.is_set():
            log.info("node is ready", node_id=self._identity.id)
            self.registered.set()
        return self._pause_s(reply)

    async def _register(self, node: Node) -> NodeReply:
        whole = msgspec.structs.replace(node, secret_id=self._identity.secret, status=self._status)
        reply: NodeReply = await self._caller.call(
            "Node.Register",
            NodeRegister(node=whole, region=self._region),
            timeout_s=_CALL_TIMEOUT_S,
        )
        log.info("node registered", node_id=node.id, status=self._status)
        return reply

    def _heard(self, reply: NodeReply) -> None:
        self._contact_s = self._clock.monotonic()
        self._next_within_s = 0.0
        if self._servers is not None:
            self._servers.update(reply.servers)

    def _pause_s(self, reply: NodeReply) -> float:
        # Early enough for a second try within the TTL, spread so that nodes do not beat together.
        ttl_s = reply.ttl_ns / _SECOND if reply.ttl_ns > 0 else _DEFAULT_TTL_S
        self._ttl_s = ttl_s
        pause_s = ttl_s * self._entropy.uniform(0.5, 0.75)
        # Between beats silence means nothing; what counts is a beat that stays unanswered.
        self._next_within_s = pause_s + _ANSWER_S
        return pause_s


def same(a: Node, b: Node) -> bool:
    """Whether two descriptions differ in nothing that servers would want to know: times do not count."""
    return _timeless(a) == _timeless(b)


def _timeless(node: Node) -> Node:
    drivers = {
        name: msgspec.structs.replace(info, update_time=DriverInfo().update_time)
        for name, info in (node.drivers or {}).items()
    }
    return msgspec.structs.replace(node, drivers=drivers, status="", status_updated_at=0)
