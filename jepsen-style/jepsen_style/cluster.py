"""The cluster under test: servers and agents that this kit starts with certificates of its own, or nodes whose addresses it is given."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jepsen_style.client import NodeClient, NotDoneError, OutcomeUnknownError, tls_context
from jepsen_style.docker import PrivateDaemon
from jepsen_style.equipment import Equipment
from jepsen_style.network import Network
from nomadpy import mutations
from nomadpy.clock import SystemClock
from nomadpy.demo.client import until
from nomadpy.demo.cluster import HOST, Daemon, LocalCluster
from nomadpy.pki.ca import write_ca, write_certificate


class Cluster(Protocol):
    """What clients and reports need."""

    @property
    def names(self) -> list[str]:
        """The nodes."""
        ...

    def client(self, name: str, timeout_s: float = 5.0) -> NodeClient:
        """A new client of a node."""
        ...

    def leader_seen_by(self, name: str) -> str:
        """Who leads, as a node says: a node's name, an address that is nobody's, "" for none, "?" for no answer."""
        ...

    def logs(self) -> dict[str, str]:
        """The nodes' logs, where they can be had."""
        ...


def _leader_seen_by(cluster: Cluster, name: str, names_by_rpc: dict[str, str]) -> str:
    client = cluster.client(name, timeout_s=1.0)
    try:
        address = client.send("GET", "/v1/status/leader").body
    except (NotDoneError, OutcomeUnknownError):
        return "?"
    finally:
        client.close()
    return names_by_rpc.get(address, str(address))


class GivenCluster:
    """Nodes that somebody else runs: workloads, but no faults."""

    def __init__(self, addresses: Sequence[str], tls: ssl.SSLContext | None) -> None:
        """addresses: host:port of their APIs."""
        self._addresses = {f"node-{n}": a for n, a in enumerate(addresses, 1)}
        self._tls = tls

    @property
    def names(self) -> list[str]:
        return list(self._addresses)

    def client(self, name: str, timeout_s: float = 5.0) -> NodeClient:
        return NodeClient(name, self._addresses[name], self._tls, timeout_s)

    def leader_seen_by(self, name: str) -> str:
        return _leader_seen_by(self, name, {})

    def logs(self) -> dict[str, str]:
        return {}


class HostDaemon(Daemon):
    """A daemon that may live in a host of its own. address, data, extra: equipment may change them before the start."""

    def __init__(self, name: str, role: str, folder: Path, http: int, rpc: int) -> None:
        super().__init__(name, role, folder, http, rpc)
        self.address = HOST
        self.data = folder / "data"
        self.extra = ""
        self.paused = False
        self.lock = threading.RLock()

    @property
    def http(self) -> str:
        return f"{self.address}:{self.http_port}"

    @property
    def rpc(self) -> str:
        """host:port of its rpc."""
        return f"{self.address}:{self.rpc_port}"

    @property
    def alive(self) -> bool:
        """Whether its process exists, paused or not."""
        return self.process is not None and self.process.poll() is None

    def run(self, inside: Sequence[str], env: dict[str, str]) -> None:
        """Start the process behind a prefix."""
        command = [sys.executable, "-m", "nomadpy", "agent", "-config", str(self.config_file)]
        with self.log_file.open("ab") as log:
            # Every prefix becomes the daemon, so signals reach it.
            self.process = subprocess.Popen(
                [*inside, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **env},
                start_new_session=True,
            )


class OwnCluster(LocalCluster):
    """Servers, and agents where there are any, of this kit's own, each a process, with the equipment it is given.

    names: the servers; agent_names: the agents; all_names: both. Whatever takes a name takes either's.
    """

    def __init__(
        self,
        folder: Path,
        servers: int,
        *,
        agents: int = 0,
        mutation: str = "",
        equipment: Sequence[Equipment] = (),
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """extra: lines for the configuration of each role, "server" and "client"."""
        super().__init__(folder, servers=servers, clients=agents)
        self._extra.update(extra or {})
        self._mutation = mutation
        self._node_ids: dict[str, str] = {}
        self.hosts: dict[str, HostDaemon] = {}
        for daemon in (*self.servers, *self.clients):
            name = daemon.name.replace("client-", "agent-")
            home = folder / name
            self.hosts[name] = HostDaemon(
                name, daemon.role, home, daemon.http_port, daemon.rpc_port
            )
        self.servers = [h for h in self.hosts.values() if h.role == "server"]
        self.clients = [h for h in self.hosts.values() if h.role == "client"]
        self._equipment = list(equipment)
        self.equipment: dict[str, Equipment] = {
            need: one for one in equipment for need in (*one.gives, one.need)
        }

    # -- files ------------------------------------------------------------------------------------------------

    def equip(self) -> None:
        """Bring the equipment up."""
        for one in self._equipment:
            one.up(self)

    def prepare(self) -> None:
        now_ns = SystemClock().now_ns()
        docker = self.equipment.get(PrivateDaemon.need)
        # Without a daemon of the kit's own, the machine's must not be used either.
        self._docker_host = (
            docker.endpoint
            if isinstance(docker, PrivateDaemon)
            else f"unix://{self.folder}/no-docker"
        )
        for host in self.hosts.values():
            host.folder.mkdir(parents=True)
            for one in self._equipment:
                one.configure(host)
                host.data = one.data_dir(host.name, host.data)
        self.certificates.mkdir(parents=True, mode=0o700)
        ca, key = write_ca(self.certificates, name=mutations.KIT_CA, now_ns=now_ns)
        ips = sorted({h.address for h in self.hosts.values()})
        for role in ("server", "client", "cli"):
            write_certificate(self.certificates, ca, key, role, ips=ips, now_ns=now_ns)
        for host in self.hosts.values():
            host.config_file.write_text(self.configuration(host), encoding="utf-8")

    def configuration(self, daemon: Daemon) -> str:
        text = super().configuration(daemon)
        for host in self.hosts.values():
            for port in (host.http_port, host.rpc_port):
                text = text.replace(f'"{HOST}:{port}"', f'"{host.address}:{port}"')
        own = self.hosts[daemon.name]
        text = text.replace(f'bind_addr = "{HOST}"', f'bind_addr = "{own.address}"')
        text = text.replace(f'"{own.folder / "data"}"', f'"{own.data}"')
        return text + own.extra

    # -- what clients need ------------------------------------------------------------------------------------

    @property
    def mutation(self) -> str:
        """How the nodes are broken on purpose; "" when they are not."""
        return self._mutation

    @property
    def names(self) -> list[str]:
        return [h.name for h in self.hosts.values() if h.role == "server"]

    @property
    def agent_names(self) -> list[str]:
        """The agents."""
        return [h.name for h in self.hosts.values() if h.role == "client"]

    @property
    def all_names(self) -> list[str]:
        """Servers, then agents."""
        return list(self.hosts)

    def client(self, name: str, timeout_s: float = 5.0) -> NodeClient:
        return NodeClient(name, self.hosts[name].http, self._tls(), timeout_s)

    def _tls(self) -> ssl.SSLContext:
        folder = self.certificates
        return tls_context(
            str(folder / "nomad-agent-ca.pem"),
            str(folder / "global-cli-nomad.pem"),
            str(folder / "global-cli-nomad-key.pem"),
        )

    def leader_seen_by(self, name: str) -> str:
        return _leader_seen_by(self, name, {h.rpc: h.name for h in self.hosts.values()})

    def logs(self) -> dict[str, str]:
        return {h.name: h.log_text() for h in self.hosts.values() if h.log_file.exists()}

    # -- what faults need ---------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network between the nodes, where "hosts" or "wire" was asked for."""
        found = self.equipment["hosts"]
        assert isinstance(found, Network)
        return found

    def start(self) -> None:
        for name in self.all_names:
            self.start_node(name)

    def start_node(self, name: str) -> bool:
        """Start a node's process on its data; False when it runs already."""
        host = self.hosts[name]
        with host.lock:
            if host.alive:
                return False
            env = {mutations.VARIABLE: self._mutation} if self._mutation else {}
            inside: list[str] = []
            for one in self._equipment:
                one.before_start(name)
                env.update(one.environment(name))
                inside += one.inside(name)
            host.run(inside, env)
            for one in self._equipment:
                one.after_start(name, host.pid)
        return True

    def kill(self, name: str) -> None:
        """SIGKILL, of a paused one too; nothing when it does not run."""
        self._end(name, self.hosts[name].kill)

    def stop_node(self, name: str) -> None:
        """SIGTERM, and wait until it has ended."""
        # A stopped process does not hear SIGTERM.
        self.resume(name)
        self._end(name, self.hosts[name].stop)

    def _end(self, name: str, how: Callable[[], object]) -> None:
        host = self.hosts[name]
        with host.lock:
            ran = host.alive
            how()
            host.paused = False
            if ran:
                for one in self._equipment:
                    one.after_stop(name)

    def alive(self, name: str) -> bool:
        """Whether its process exists, paused or not."""
        return self.hosts[name].alive

    def pause(self, name: str) -> None:
        """SIGSTOP; nothing when it does not run."""
        self._signal(name, signal.SIGSTOP, paused=True)

    def resume(self, name: str) -> None:
        """SIGCONT; nothing when it does not run."""
        self._signal(name, signal.SIGCONT, paused=False)

    def _signal(self, name: str, number: signal.Signals, *, paused: bool) -> None:
        host = self.hosts[name]
        with host.lock:
            if host.alive:
                os.kill(host.pid, number)
                host.paused = paused

    def node_id(self, name: str) -> str:
        """An agent's node id, from any server that knows it. Raises TimeoutError when none does."""
        if name not in self._node_ids:
            until(lambda: self._learn_node_ids(name), seconds=30, what=f"{name}'s registration")
        return self._node_ids[name]

    def _learn_node_ids(self, name: str) -> bool:
        for node in self._nodes():
            self._node_ids[node["Name"]] = node["ID"]
        return name in self._node_ids

    def _nodes(self) -> list[dict[str, Any]]:
        for server in self.names:
            client = self.client(server, timeout_s=2.0)
            try:
                answer = client.send("GET", "/v1/nodes")
            except (NotDoneError, OutcomeUnknownError):
                continue
            finally:
                client.close()
            if answer.status == 200:
                nodes: list[dict[str, Any]] = answer.body
                return nodes
        return []

    def leader(self) -> str | None:
        """Whom most of the nodes that answer call the leader."""
        votes: dict[str, int] = {}
        for name in self.names:
            host = self.hosts[name]
            if host.alive and not host.paused:
                said = self.leader_seen_by(name)
                if said in self.hosts:
                    votes[said] = votes.get(said, 0) + 1
        return max(votes, key=lambda n: votes[n]) if votes else None

    def await_leader(self, *, seconds: float = 40.0) -> str:
        """Wait until one leads. Raises RuntimeError when a node ended by itself, TimeoutError."""

        def look() -> str | None:
            for host in self.hosts.values():
                self._explain_death(host)
            return self.leader()

        found: str = until(look, seconds=seconds, what="a leader")
        return found

    def await_answers(self, *, seconds: float = 40.0) -> None:
        """Wait until every server knows a leader. Raises TimeoutError."""
        for name in self.names:
            until(
                lambda n=name: self.leader_seen_by(n) not in ("", "?"),  # type: ignore[misc]
                seconds=seconds,
                what=f"{name}'s answer",
            )

    def await_agents(self, *, seconds: float = 40.0) -> None:
        """Wait until every agent is ready. Raises RuntimeError when one ended by itself, TimeoutError."""

        def look() -> bool:
            for host in self.hosts.values():
                self._explain_death(host)
            ready = {n["Name"] for n in self._nodes() if n["Status"] == "ready"}
            return ready.issuperset(self.agent_names)

        if self.agent_names:
            until(look, seconds=seconds, what="ready agents")

    def heal(self) -> list[str]:
        """Undo every fault; return the nodes that had to be started."""
        for one in self._equipment:
            one.heal()
        for name in self.all_names:
            self.resume(name)
        return [name for name in self.all_names if self.start_node(name)]

    def stop(self) -> None:
        """End every node, agents first, then take the equipment away."""
        try:
            for name in self.all_names:
                # A paused one cannot end by itself.
                self.resume(name)
            super().stop()
        finally:
            for one in reversed(self._equipment):
                one.down()
