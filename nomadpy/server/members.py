"""Which servers there are: each says hello to the others every second, and silence is failure.

The first cluster forms when exactly `bootstrap_expect` servers know of exactly each other: all of them then start
raft from the same list. A server that comes later finds the others initialized and waits: their leader adds it (see
leader/autopilot.py), or, when it is one of the list and only missed the moment, sends it the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.errors import NomadError
from nomadpy.models.calls import ServerAddress, ServerHello, ServerHelloReply, StateSums
from nomadpy.server.core import Core
from nomadpy.server.settings import ServerSettings

log = logs.get(__name__)

HELLO_INTERVAL_S = 1.0
HELLO_TIMEOUT_S = 3.0
FAILED_AFTER_S = 5.0
GOODBYE = "left"


class Outgoing(Protocol):
    """What members needs of rpc.pool.Pool."""

    async def call(
        self, address: str, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> ServerHelloReply: ...


Bootstrap = Callable[[list[ServerAddress]], Awaitable[None]]
"""Starts raft from a list of servers; see Server."""


class Member(msgspec.Struct):
    """A server as last heard of. seen: monotonic seconds. status: alive | failed | left."""

    hello: ServerHello
    seen: float
    status: str = "alive"


class Members:
    """This server's view of all servers."""

    def __init__(
        self,
        core: Core,
        outgoing: Outgoing,
        bootstrap: Bootstrap,
        configuration: Callable[[], list[ServerAddress]],
        *,
        clock: Clock,
    ) -> None:
        self._core = core
        self._settings: ServerSettings = core.settings
        self._outgoing = outgoing
        self._bootstrap = bootstrap
        self._clock = clock
        self._members: dict[str, Member] = {}
        self._configuration = configuration
        self._warned_of: frozenset[str] = frozenset()
        self._leaving = False
        self._removed = False
        self._refused = ""
        self.checked: StateSums | None = None  # what state_check.py wants told
        self.too_old: Callable[[ServerHello], str] = lambda _hello: ""  # set by log_format.py

    @property
    def configuration(self) -> list[ServerAddress]:
        """The servers of raft's configuration, [] before there is one."""
        return self._configuration()

    def me(self) -> ServerHello:
        """What this server says about itself now."""
        settings, raft = self._settings, self._core.raft
        leader = raft.leader
        return ServerHello(
            id=settings.id,
            name=settings.name,
            region=settings.region,
            datacenter=settings.datacenter,
            rpc=settings.rpc_address,
            http=settings.http_address,
            version=settings.version,
            expect=settings.bootstrap_expect,
            initialized=raft.initialized,
            leader_id=leader.id if leader else "",
            raft_index=raft.last_index,
            raft_term=raft.term,
            known=sorted({settings.id, *self._members}),
            configuration=self.configuration,
            leaving=self._leaving,
            formats=settings.log_formats,
            build=settings.build,
            checked=self.checked,
        )

    def leave(self) -> None:
        """Tell the others from now on that this server goes, so that they do not add it again."""
        self._leaving = True

    def heard(self, hello: ServerHello) -> ServerHelloReply:
        """Answer another server's hello, and remember it."""
        self._note(hello)
        return ServerHelloReply(
            me=self.me(),
            members=[m.hello for m in self.all()],
            removed=hello.id in self._core.raft.removed,
            too_old=self.too_old(hello),
        )

    def all(self) -> list[Member]:
        """Every member, this server included, by name."""
        now = self._clock.monotonic()
        for member in self._members.values():
            if member.status != GOODBYE:
                silent = now - member.seen > FAILED_AFTER_S
                member.status = "failed" if silent else "alive"
        me = Member(self.me(), now)
        return sorted([me, *self._members.values()], key=lambda m: (m.hello.name, m.hello.id))

    def by_id(self, server_id: str) -> Member | None:
        """One member, or None."""
        return next((m for m in self.all() if m.hello.id == server_id), None)

    def addresses(self) -> list[ServerAddress]:
        """Live servers for agents to talk to, the leader first."""
        leader = self._core.raft.leader
        live = [m.hello for m in self.all() if m.status == "alive"]
        live.sort(key=lambda h: (leader is None or h.id != leader.id, h.name, h.id))
        return [ServerAddress(name=h.name, rpc=h.rpc, id=h.id) for h in live]

    def other_addresses(self) -> list[str]:
        """The rpc addresses of the other live servers."""
        mine = self._settings.rpc_address
        return [server.rpc for server in self.addresses() if server.rpc != mine]

    async def run(self) -> None:
        """Say hello to everyone until cancelled."""
        while True:
            await self.greet_all()
            await self._maybe_bootstrap()
            await asyncio.sleep(HELLO_INTERVAL_S if self._core.raft.initialized else 0.25)

    async def greet_all(self) -> None:
        """Say hello to everyone once."""
        async with asyncio.TaskGroup() as group:
            for address in self._targets():
                group.create_task(self._greet(address), name=f"hello-{address}")

    def _targets(self) -> list[str]:
        known = {m.hello.rpc for m in self._members.values() if m.status != GOODBYE}
        known.update(server.rpc for server in self.configuration)
        if not known or not self._core.raft.initialized:
            known.update(self._settings.retry_join)
        known.discard(self._settings.rpc_address)
        return sorted(known)

    def force_leave(self, name: str, *, prune: bool) -> None:
        """Treat a member as gone until it speaks again; prune forgets it. An unknown name changes nothing."""
        for member in list(self._members.values()):
            hello = member.hello
            if name in (hello.name, f"{hello.name}.{hello.region}"):
                member.status = GOODBYE
                if prune:
                    del self._members[hello.id]

    async def _greet(self, address: str) -> None:
        try:
            await self.greet(address)
        except NomadError as error:
            log.debug("no hello back", address=address, error=error.message)

    async def greet(self, address: str) -> None:
        """Say hello to one address and learn what it knows. Raises NomadError when it does not answer."""
        reply = await self._outgoing.call(
            address, "Server.Hello", self.me(), timeout_s=HELLO_TIMEOUT_S
        )
        self._note(reply.me)
        if reply.removed and not self._removed:
            self._removed = True
            log.error(
                "this server was removed from the cluster and takes no part in it: to let it join as a new one, stop it, "
                "empty its raft directory and start it again",
                told_by=reply.me.name,
            )
        if reply.too_old and reply.too_old != self._refused:
            log.error(
                "this server takes no part in the cluster",
                reason=reply.too_old,
                told_by=reply.me.name,
            )
        self._refused = reply.too_old
        taken = {m.hello.rpc for m in self._members.values()} | {self._settings.rpc_address}
        for hello in reply.members:
            if hello.id not in self._members and hello.rpc not in taken:
                # Only heard of: it counts once it has answered itself, but its address is worth a try.
                self._members[hello.id] = Member(hello, self._clock.monotonic())

    def _note(self, hello: ServerHello) -> None:
        if hello.id == self._settings.id:
            return
        if hello.region != self._settings.region:
            log.warning("hello from another region", name=hello.name, region=hello.region)
            return
        if hello.id not in self._members:
            log.info("server joined", name=hello.name, address=hello.rpc, id=hello.id)
        for other in list(self._members.values()):
            if other.hello.rpc == hello.rpc and other.hello.id != hello.id:
                # Its place was taken: that host lost its data, and came back as another server.
                del self._members[other.hello.id]
        status = GOODBYE if hello.leaving else "alive"
        self._members[hello.id] = Member(hello, self._clock.monotonic(), status)

    async def _maybe_bootstrap(self) -> None:
        if self._core.raft.initialized:
            return
        mine = self._settings.id
        if any(member.hello.initialized for member in self._members.values()):
            return
        expect = self._settings.bootstrap_expect
        if expect == 0:
            return
        together = {mine, *self._members}
        if len(together) > expect:
            self._warn_of(
                frozenset(together),
                "more servers than bootstrap_expect, so no cluster is formed: start exactly that many",
                expect=expect,
                found=len(together),
            )
            return
        if len(together) < expect:
            return
        for member in self._members.values():
            hello = member.hello
            if hello.expect != expect or set(hello.known) != together:
                return
        listed = [
            ServerAddress(name=h.name, rpc=h.rpc, id=h.id)
            for h in sorted(
                [self.me(), *(m.hello for m in self._members.values())], key=lambda h: h.id
            )
        ]
        try:
            await self._bootstrap(listed)
        except NomadError as error:
            # A leader may have sent us the others' list in this very moment.
            log.warning("cluster not formed from here", error=error.message)

    def _warn_of(self, ids: frozenset[str], text: str, **fields: object) -> None:
        """Once for each set of servers."""
        if ids != self._warned_of:
            self._warned_of = ids
            log.error(text, **fields)
