"""What the API asks of the node it runs on (api/local.py), answered out of the server and the agent in this process."""

from __future__ import annotations

import asyncio
import os
import platform
from typing import Any

from agent.agent import Agent
from agent.server_list import ServerList
from nomadpy.config.model import Config
from nomadpy.daemon.server_process import ServerProcess
from nomadpy.daemon.settings import with_port
from nomadpy.daemon.shown import shown_config
from nomadpy.errors import InvalidRequestError, NomadError, UnreachableError
from nomadpy.metrics import Registry
from nomadpy.models.calls import ServerAddress
from nomadpy.models.operator import AgentHealth, AgentHealthResponse, AgentMember
from nomadpy.server.endpoints.operator import agent_member
from nomadpy.server.members import Member

LOG_STORE = "nomadpy-segments"
_GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_GOSSIP_ONLY = (
    "coordinate_resets",
    "event_queue",
    "event_time",
    "intent_queue",
    "member_time",
    "query_queue",
    "query_time",
)


class LocalNode:
    """One node as only it knows itself."""

    def __init__(
        self,
        config: Config,
        metrics: Registry,
        *,
        server: ServerProcess | None,
        agent: Agent | None,
        servers: ServerList | None,
        http: str,
        rpc: str,
    ) -> None:
        """http, rpc: the addresses that others are told."""
        self._config = config
        self._metrics = metrics
        self._server = server
        self._agent = agent
        self._servers = servers
        self._http = http
        self._rpc = rpc

    @property
    def region(self) -> str:
        """The node's region."""
        return self._config.region

    @property
    def node_id(self) -> str:
        """The agent's node id, "" without one."""
        return self._agent.node_id if self._agent is not None else ""

    @property
    def is_server(self) -> bool:
        """Whether a server runs here."""
        return self._server is not None

    @property
    def metrics(self) -> Registry:
        """This process's figures."""
        return self._metrics

    def config(self) -> dict[str, Any]:
        """The effective configuration without secrets."""
        return shown_config(self._config, self._http, self._rpc)

    def stats(self) -> dict[str, dict[str, str]]:
        """Figures by part, all as text, under the names that tools know."""
        found = {"runtime": _runtime()}
        if self._server is not None:
            found["raft"] = self._raft()
            found["nomad"] = self._nomad()
            found["serf"] = self._serf()
            found["state_check"] = self._server.server.state_check.stats()
            if self._server.server.snapshots is not None:
                found["snapshot_agent"] = self._server.server.snapshots.stats()
        if self._agent is not None:
            found["client"] = {**self._agent.stats(), "known_servers": ",".join(self.servers())}
        return found

    def _nomad(self) -> dict[str, str]:
        assert self._server is not None
        raft = self._server.raft
        leader = raft.leader
        return {
            "server": "true",
            "leader": str(raft.is_leader).lower(),
            "leader_addr": leader.address if leader is not None else "",
            "bootstrap": str(self._config.server.bootstrap_expect == 1).lower(),
            "known_regions": "1",
            "log_format": str(self._server.store.snapshot().log_format()),
            "log_formats": "-".join(map(str, self._server.server.settings.log_formats)),
        }

    def _raft(self) -> dict[str, str]:
        assert self._server is not None
        raft = self._server.raft
        servers = " ".join(
            f"{{Suffrage:{'Voter' if votes else 'Nonvoter'} ID:{peer.id} Address:{peer.address}}}"
            for peer, votes in raft.peers()
        )
        return {
            # How often it went round and to the disk is shown among the metrics.
            **{k: v for k, v in raft.stats().items() if k not in ("rounds", "syncs")},
            "last_contact": "0" if raft.is_leader else raft.stats()["last_contact"],
            "latest_configuration": f"[{servers}]",
            "latest_configuration_index": str(raft.core.history.last_change_index),
            "logstore_backend": LOG_STORE,
            "protocol_version": "3",
            "protocol_version_min": "3",
            "protocol_version_max": "3",
            "snapshot_version_min": "1",
            "snapshot_version_max": "1",
        }

    def _serf(self) -> dict[str, str]:
        """Membership under the names of Nomad's gossip. What a gossip protocol alone has is 0."""
        assert self._server is not None
        members = self._server.server.members.all()
        return {
            "members": str(len(members)),
            "failed": str(sum(m.status == "failed" for m in members)),
            "left": str(sum(m.status == "left" for m in members)),
            "encrypted": str(self._config.tls.rpc).lower(),
            "health_score": "0",
            **dict.fromkeys(_GOSSIP_ONLY, "0"),
        }

    def member(self) -> AgentMember:
        """This server as a member; an empty one without a server."""
        if self._server is None:
            return AgentMember()
        return agent_member(Member(self._server.server.members.me(), 0.0))

    async def health(self) -> AgentHealthResponse:
        """Whether the parts here do their work."""
        server = client = None
        if self._server is not None:
            known = self._server.raft.leader is not None
            server = AgentHealth(ok=known, message="ok" if known else "no cluster leader")
        if self._agent is not None:
            known = bool(self._server is not None or self.servers())
            client = AgentHealth(ok=known, message="ok" if known else "no known servers")
        return AgentHealthResponse(server=server, client=client)

    def servers(self) -> list[str]:
        """The servers that the agent knows."""
        if self._servers is not None:
            return self._servers.ordered()
        if self._server is not None:
            return [s.rpc for s in self._server.server.members.addresses()]
        return []

    def set_servers(self, addresses: list[str]) -> None:
        """Replace the servers that the agent talks to."""
        if not addresses:
            raise InvalidRequestError("missing server addresses")
        if self._servers is None:
            raise InvalidRequestError("this node's agent uses the server in its own process")
        port = self._config.ports.rpc
        self._servers.update([ServerAddress(name="", rpc=with_port(a, port)) for a in addresses])

    async def join(self, addresses: list[str]) -> int:
        """Say hello to other servers; how many answered."""
        if self._server is None:
            raise InvalidRequestError("only a server can join others")
        failures: list[str] = []
        joined = 0
        for address in addresses:
            target = with_port(address, self._config.ports.rpc)
            try:
                await self._server.server.members.greet(target)
            except NomadError as error:
                failures.append(error.message)
            else:
                joined += 1
        if not joined:
            raise UnreachableError("; ".join(failures) or "no addresses to join")
        return joined

    async def force_leave(self, name: str, *, prune: bool) -> None:
        """Treat a server as gone."""
        if self._server is not None:
            self._server.server.members.force_leave(name, prune=prune)


def _runtime() -> dict[str, str]:
    machine = platform.machine()
    return {
        "arch": _GO_ARCH.get(machine, machine),
        "cpu_count": str(os.cpu_count() or 1),
        "goroutines": str(len(asyncio.all_tasks())),
        "kernel.name": platform.system().lower(),
        "max_procs": str(len(os.sched_getaffinity(0))),
        "version": f"python{platform.python_version()}",
    }
