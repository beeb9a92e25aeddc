"""The owner of everything a server runs; leaving `run` ends all of it.

The parts come in from outside (daemon.py, or the simulator): raft, the network, clock and chance. What is built here
is what makes them a server: the router with its endpoints, the members, the leader's duties.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.fsm.commands import EntryCodec
from nomadpy.metrics import Registry
from nomadpy.models.calls import ServerAddress, Write
from nomadpy.models.root_key import RootKey
from nomadpy.pki.keyring import Keyring
from nomadpy.rpc.caller import Stream
from nomadpy.rpc.connection import Connection
from nomadpy.rpc.dispatch import Dispatcher
from nomadpy.rpc.pool import Pool
from nomadpy.server.core import Core, Replication
from nomadpy.server.endpoints.allocs import Allocs
from nomadpy.server.endpoints.base import Services
from nomadpy.server.endpoints.evals import Deployments, Evals
from nomadpy.server.endpoints.explain import Explain
from nomadpy.server.endpoints.host_volumes import HostVolumes
from nomadpy.server.endpoints.job_plan import JobPlan
from nomadpy.server.endpoints.job_reads import JobReads
from nomadpy.server.endpoints.job_writes import JobWrites
from nomadpy.server.endpoints.keyring import RootKeys
from nomadpy.server.endpoints.nodes import NodeAgents, NodeReads, NodeWrites
from nomadpy.server.endpoints.operator import Operators
from nomadpy.server.endpoints.pools import Pools
from nomadpy.server.endpoints.quorum import Quorum
from nomadpy.server.endpoints.search import Search
from nomadpy.server.endpoints.snapshots import Snapshots
from nomadpy.server.endpoints.variables import Variables
from nomadpy.server.endpoints.what_if import WhatIf
from nomadpy.server.forward import ConnectedNodes, NodeLink, Router
from nomadpy.server.leader.autopilot import Autopilot
from nomadpy.server.leader.duties import LeaderDuties
from nomadpy.server.leader.snapshot_agent import SnapshotAgent
from nomadpy.server.log_format import LogFormats
from nomadpy.server.members import Members
from nomadpy.server.query import Queries
from nomadpy.server.settings import ServerSettings
from nomadpy.server.state_check import StateCheck
from nomadpy.server.worker import RunBlocking
from nomadpy.state.changes import ChangeSet
from nomadpy.state.store import StateStore

log = logs.get(__name__)


class RaftServer(Replication, Protocol):
    """What the owner of a server needs of raft beyond what its parts need."""

    async def run(self) -> None:
        """Replicate until cancelled."""
        ...


class Server:
    """One server. It is a Caller for its own node, and serves others through `dispatcher`."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        store: StateStore,
        raft: RaftServer,
        bootstrap: Callable[[list[ServerAddress]], Awaitable[None]],
        configuration: Callable[[], list[ServerAddress]],
        dispatcher: Dispatcher,
        pool: Pool,
        clock: Clock,
        entropy: Entropy,
        run_blocking: RunBlocking,
        make_root_key: Callable[[], Awaitable[RootKey]],
        keyring: Keyring,
        metrics: Registry | None = None,
        codec: EntryCodec | None = None,
    ) -> None:
        """bootstrap starts raft from a list; configuration is the list raft has, [] when not initialized."""
        self.settings = settings
        self.core = Core(
            settings, store, raft, clock=clock, entropy=entropy, metrics=metrics, codec=codec
        )
        self.raft = raft
        self.nodes = ConnectedNodes()
        self.members = Members(self.core, pool, bootstrap, configuration, clock=clock)
        self.router = Router(self.core, dispatcher, pool, self.nodes, self.members.other_addresses)
        self.queries = Queries(self.core, self.router)
        self.duties = LeaderDuties(
            self.core, run_blocking=run_blocking, make_root_key=make_root_key, keyring=keyring
        )
        self.formats = LogFormats(self.core, self.members)
        self.autopilot = Autopilot(self.core, self.members, self.formats)
        self.state_check = StateCheck(self.core, self.members)
        self.snapshots = (
            None
            if settings.snapshots is None
            else SnapshotAgent(self.core, settings.snapshots, run_blocking)
        )
        services = Services(
            self.core, self.router, self.queries, self.duties, self.members, self.nodes, keyring
        )
        for endpoints in (
            JobReads,
            JobWrites,
            JobPlan,
            Explain,
            WhatIf,
            NodeReads,
            NodeWrites,
            NodeAgents,
            Pools,
            Allocs,
            Evals,
            Deployments,
            Search,
            Variables,
            RootKeys,
            HostVolumes,
        ):
            endpoints(services)
        Operators(services)
        Quorum(services, self.autopilot, self.state_check)
        Snapshots(services, run_blocking)
        self._leading = asyncio.Event()
        self._following = asyncio.Event()
        self._following.set()
        self._replaced = asyncio.Event()
        raft.on_leadership(self._leadership)
        store.subscribe(self._on_change)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.raft.run(), name="raft")
            tasks.create_task(self.members.run(), name="members")
            tasks.create_task(self._lead_when_elected(), name="leadership")
            tasks.create_task(self.state_check.run(), name="state-check")

    def _leadership(self, leading: bool, term: int) -> None:
        self.core.metrics.count(f"nomad.raft.state.{'leader' if leading else 'follower'}")
        if leading:
            log.info("leadership won", term=term, name=self.settings.name)
            self._following.clear()
            self._leading.set()
        else:
            if self._leading.is_set():
                log.info("leadership lost", term=term, name=self.settings.name)
            self._leading.clear()
            self._following.set()

    async def _lead_when_elected(self) -> None:
        while True:
            await self._leading.wait()
            async with asyncio.TaskGroup() as leadership:
                begun = [
                    leadership.create_task(self.duties.run(), name="leader-duties"),
                    leadership.create_task(self.autopilot.run(), name="autopilot"),
                ]
                if self.snapshots is not None:
                    begun.append(leadership.create_task(self.snapshots.run(), name="snapshots"))
                await self._over()
                for task in begun:
                    task.cancel()

    async def _over(self) -> None:
        """Wait until this server follows, or its whole state was replaced: the duties then begin anew."""
        self._replaced.clear()
        async with asyncio.TaskGroup() as group:
            waits = [
                group.create_task(self._following.wait(), name="until-follower"),
                group.create_task(self._replaced.wait(), name="until-replaced"),
            ]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    def _on_change(self, changes: ChangeSet) -> None:
        if changes.restored:
            self._replaced.set()

    async def leave(self) -> None:
        """Take this server out of the configuration, so that it may stop for long and come back as the same.

        Raises NomadError when the others do not agree in time; nothing is lost then, and this server stays a member.
        """
        if len(self.raft.peers()) < 2:
            return
        self.members.leave()
        await self.members.greet_all()
        await self.call("Server.Leave", Write(id=self.settings.id))

    # -- Caller -----------------------------------------------------------------------------------------

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        """Call any method, as this node."""
        return await self.router.call(method, request, timeout_s=timeout_s)

    def open(self, method: str, request: msgspec.Struct) -> AbstractAsyncContextManager[Stream]:
        """Open any stream, as this node."""
        return self.router.open(method, request)

    # -- connections --------------------------------------------------------------------------------------

    def attach_local(self, node_id: str, link: NodeLink) -> None:
        """The agent in this process answers for its node."""
        self.nodes.attach(node_id, link)

    def connection_ended(self, connection: Connection) -> None:
        """For the listener: an agent's connection is gone."""
        self.nodes.detach(connection)
