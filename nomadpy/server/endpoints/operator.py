"""Operator.*, System.*, Status.* and what servers say to each other."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.errors import InvalidRequestError, NotLeaderError
from nomadpy.fsm import commands
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.models.operator import (
    SCHEDULER_ALGORITHMS,
    AgentMember,
    RaftConfiguration,
    RaftServer,
    SchedulerConfigurationResponse,
    SchedulerSetConfigurationResponse,
)
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server.endpoints.base import Services, done, written
from nomadpy.server.members import Member
from nomadpy.server.query import Found
from nomadpy.state.store import Snapshot

SERF_PROTOCOL = {"ProtocolMin": 1, "ProtocolMax": 5, "ProtocolCur": 2}


class Operators:
    """Handlers."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._queries = services.queries
        self._members = services.members
        self._duties = services.duties
        register = services.router.register
        register("Status.Leader", self.leader)
        register("Status.Peers", self.peers)
        register("Status.Members", self.member_list)
        register("Status.Regions", self.regions)
        register("Operator.RaftConfiguration", self.raft_configuration)
        register("Operator.AutopilotConfiguration", self.autopilot)
        register("Operator.SetAutopilotConfiguration", self.set_autopilot)
        register("Operator.SchedulerConfiguration", self.scheduler)
        register("Operator.SetSchedulerConfiguration", self.set_scheduler)
        register("System.GarbageCollect", self.collect_garbage)
        register("System.ReconcileSummaries", self.reconcile_summaries)
        register("Server.Hello", self.hello)
        register("Raft.ReadIndex", self.read_index)

    # -- status -------------------------------------------------------------------------------------------

    async def leader(self, _: CallContext, _request: calls.Read) -> Answer:
        """The leader's rpc address, "" when there is none."""
        leader = self._core.raft.leader
        return written(leader.address if leader is not None else "")

    async def peers(self, _: CallContext, _request: calls.Read) -> Answer:
        """The rpc addresses of the raft servers."""
        return written([server.rpc for server in self._members.configuration])

    async def regions(self, _: CallContext, _request: calls.Read) -> Answer:
        """The regions known; one, until federation exists."""
        return written([self._core.settings.region])

    async def member_list(self, _: CallContext, _request: calls.Read) -> Answer:
        """All servers, as /v1/agent/members shows them."""
        settings = self._core.settings
        body = {
            "ServerName": settings.name,
            "ServerRegion": settings.region,
            "ServerDC": settings.datacenter,
            "Members": [agent_member(m) for m in self._members.all()],
        }
        return written(body)

    async def raft_configuration(self, _: CallContext, request: calls.Read) -> Answer:
        """The raft servers, and which of them leads; when stale is allowed, as this server knows it.

        A server that was removed still has the configuration that it was part of, and must not tell it as today's.
        """
        if not request.options.allow_stale:
            await self._queries.consistent()
        leader = self._core.raft.leader
        region = self._core.settings.region
        servers = [
            RaftServer(
                id=server.id,
                node=f"{server.name}.{region}",
                address=server.address,
                leader=leader is not None and leader.id == server.id,
                voter=votes,
                raft_protocol="3",
            )
            for server, votes in self._core.raft.peers()
        ]
        index = self._core.raft.configuration_index
        return written(RaftConfiguration(servers=servers, index=index))

    # -- autopilot ----------------------------------------------------------------------------------------

    async def autopilot(self, _: CallContext, request: calls.Read) -> Answer:
        """The autopilot settings."""

        def read(snapshot: Snapshot) -> Found:
            return Found(index=0, value=snapshot.autopilot_config())

        answer = await self._queries.answer(request.options, [("table", "autopilot")], read)
        return Answer(body=answer.body)

    async def set_autopilot(self, _: CallContext, request: calls.AutopilotConfigWrite) -> Answer:
        """Store autopilot settings."""
        applied = await self._core.propose(
            commands.AutopilotConfigSet(config=request.config, cas=request.cas),
            request_id=request.options.request_id,
        )
        return written(applied.value is not False)

    # -- scheduler ----------------------------------------------------------------------------------------

    async def scheduler(self, _: CallContext, request: calls.Read) -> Answer:
        """The cluster's scheduler settings."""

        def read(snapshot: Snapshot) -> Found:
            config = snapshot.scheduler_config()
            value = SchedulerConfigurationResponse(
                scheduler_config=config, index=config.modify_index, known_leader=True
            )
            return Found(index=config.modify_index, value=value)

        return await self._queries.answer(request.options, [("table", "scheduler_config")], read)

    async def set_scheduler(self, _: CallContext, request: calls.SchedulerConfigWrite) -> Answer:
        """Store scheduler settings; with a check-and-set index, only when that is current."""
        config = request.config
        if not config.scheduler_algorithm:
            config = msgspec.structs.replace(config, scheduler_algorithm="binpack")
        if config.scheduler_algorithm not in SCHEDULER_ALGORITHMS:
            raise InvalidRequestError(f"invalid scheduler algorithm: {config.scheduler_algorithm}")
        applied = await self._core.propose(
            commands.SchedulerConfigSet(config=config, cas=request.cas),
            request_id=request.options.request_id,
        )
        return written(
            SchedulerSetConfigurationResponse(
                updated=applied.value is not False, index=applied.index
            ),
            applied.index,
        )

    # -- system -------------------------------------------------------------------------------------------

    async def collect_garbage(self, _: CallContext, _request: calls.Write) -> Answer:
        """Remove all that is over, now."""
        await self._duties.garbage.sweep(force=True)
        return done()

    async def reconcile_summaries(self, _: CallContext, request: calls.Write) -> Answer:
        """Count every job's summary anew."""
        await self._core.propose(
            commands.ReconcileSummaries(), request_id=request.options.request_id
        )
        return done()

    # -- between servers ----------------------------------------------------------------------------------

    async def hello(self, _: CallContext, request: calls.ServerHello) -> calls.ServerHelloReply:
        """Another server says who it is."""
        return self._members.heard(request)

    async def read_index(self, _: CallContext, _request: calls.IndexRequest) -> calls.IndexReply:
        """An index that no acknowledged write is newer than; only a confirmed leader can give it."""
        if not self._core.raft.is_leader:
            raise NotLeaderError("this server does not lead", leader_address="")
        return calls.IndexReply(index=await self._core.raft.read_index())


def agent_member(member: Member) -> AgentMember:
    """A server in the form of a gossip member, which clients of the wire expect."""
    hello = member.hello
    host, _, port = hello.rpc.rpartition(":")
    tags: dict[str, Any] = {
        "role": "nomad",
        "region": hello.region,
        "dc": hello.datacenter,
        "id": hello.id,
        "rpc_addr": host,
        "port": port,
        "expect": str(hello.expect),
        "vsn": "1",
        "raft_vsn": "3",
        "build": hello.version,
        "revision": "",
    }
    if hello.expect == 1:
        tags["bootstrap"] = "1"
    return AgentMember(
        name=f"{hello.name}.{hello.region}",
        addr=host,
        port=int(port),
        tags=tags,
        status=member.status,
        protocol_min=SERF_PROTOCOL["ProtocolMin"],
        protocol_max=SERF_PROTOCOL["ProtocolMax"],
        protocol_cur=SERF_PROTOCOL["ProtocolCur"],
        delegate_min=2,
        delegate_max=5,
        delegate_cur=4,
    )
