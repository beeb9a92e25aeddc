"""The cluster under test: servers that this kit starts with certificates of its own, or nodes whose addresses it is given."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jepsen_style.client import NodeClient, NotDoneError, OutcomeUnknownError, tls_context
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


class _HostDaemon(Daemon):
    """A daemon that may live in a host of its own."""

    def __init__(self, like: Daemon, address: str, inside: Sequence[str]) -> None:
        super().__init__(like.name, like.role, like.folder, like.http_port, like.rpc_port)
        self.address = address
        self._inside = inside

    @property
    def http(self) -> str:
        return f"{self.address}:{self.http_port}"

    @property
    def rpc(self) -> str:
        """host:port of its rpc."""
        return f"{self.address}:{self.rpc_port}"

    def start(self, *, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "nomadpy", "agent", "-config", str(self.config_file)]
        with self.log_file.open("ab") as log:
            # nsenter becomes the daemon, so signals reach it.
            self.process = subprocess.Popen(
                [*self._inside, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )


class OwnCluster(LocalCluster):
    """Servers of this kit's own, each a process; with `network`, each in a host of its own."""

    def __init__(
        self, folder: Path, servers: int, *, mutation: str = "", network: Network | None = None
    ) -> None:
        super().__init__(folder, servers=servers, clients=0)
        self.network = network
        self._mutation = mutation
        self._paused: set[str] = set()
        hosts: list[_HostDaemon] = []
        for number, daemon in enumerate(self.servers, 1):
            if network is None:
                hosts.append(_HostDaemon(daemon, HOST, []))
            else:
                hosts.append(_HostDaemon(daemon, network.address(number), network.inside(number)))
        self.hosts = {h.name: h for h in hosts}
        self.servers = list(hosts)

    # -- files ------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        now_ns = SystemClock().now_ns()
        self.certificates.mkdir(parents=True, mode=0o700)
        ca, key = write_ca(self.certificates, name=mutations.KIT_CA, now_ns=now_ns)
        ips = sorted({h.address for h in self.hosts.values()})
        for role in ("server", "cli"):
            write_certificate(self.certificates, ca, key, role, ips=ips, now_ns=now_ns)
        for daemon in self.servers:
            daemon.folder.mkdir(parents=True)
            daemon.config_file.write_text(self.configuration(daemon), encoding="utf-8")

    def configuration(self, daemon: Daemon) -> str:
        text = super().configuration(daemon)
        for host in self.hosts.values():
            for port in (host.http_port, host.rpc_port):
                text = text.replace(f'"{HOST}:{port}"', f'"{host.address}:{port}"')
        own = self.hosts[daemon.name].address
        return text.replace(f'bind_addr = "{HOST}"', f'bind_addr = "{own}"')

    # -- what clients need ------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
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

    def start(self) -> None:
        for name in self.names:
            self.start_node(name)

    def start_node(self, name: str) -> None:
        """Start a node's process on its data."""
        env = {mutations.VARIABLE: self._mutation} if self._mutation else None
        self.hosts[name].start(env=env)

    def alive(self, name: str) -> bool:
        """Whether its process exists, paused or not."""
        process = self.hosts[name].process
        return process is not None and process.poll() is None

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        self._paused.add(name)
        os.kill(self.hosts[name].pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self._paused.discard(name)
        if self.alive(name):
            os.kill(self.hosts[name].pid, signal.SIGCONT)

    def leader(self) -> str | None:
        """Whom most of the nodes that answer call the leader."""
        votes: dict[str, int] = {}
        for name in self.names:
            if self.alive(name) and name not in self._paused:
                said = self.leader_seen_by(name)
                if said in self.hosts:
                    votes[said] = votes.get(said, 0) + 1
        return max(votes, key=lambda n: votes[n]) if votes else None

    def await_leader(self, *, seconds: float = 40.0) -> str:
        """Wait until one leads. Raises RuntimeError when a node ended by itself, TimeoutError."""

        def look() -> str | None:
            for name in self.names:
                self._explain_death(self.hosts[name])
            return self.leader()

        found: str = until(look, seconds=seconds, what="a leader")
        return found

    def heal(self) -> list[str]:
        """Undo every fault; return the nodes that had to be started."""
        if self.network is not None:
            self.network.heal()
        for name in sorted(self._paused):
            self.resume(name)
        dead = [name for name in self.names if not self.alive(name)]
        for name in dead:
            self.start_node(name)
        return dead

    def stop(self) -> None:
        """End every node; a paused one cannot end by itself, so it goes on first."""
        for name in sorted(self._paused):
            self.resume(name)
        super().stop()
