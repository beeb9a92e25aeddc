"""What an operator does with servers, as docs/operations.md has it: list, remove, hand over, empty a directory and join anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from jepsen_style.client import NotDoneError, OutcomeUnknownError
from jepsen_style.cluster import OwnCluster
from nomadpy.demo.client import until

JOIN_S = 60.0
CALL_S = 15.0
SOON = "1s"
_AUTOPILOT = "/v1/operator/autopilot/configuration"


class Voters:
    """The raft servers of a cluster."""

    def __init__(self, cluster: OwnCluster) -> None:
        self.cluster = cluster

    def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """The leader's good answer, or another server's, None when none gives one.

        The leader comes first: a server that was taken out tells of the cluster as it knew it.
        """
        hosts = self.cluster.hosts
        leads = self.cluster.leader()
        for name in sorted(hosts, key=lambda n: n != leads):
            host = hosts[name]
            if host.role != "server" or not host.alive or host.paused:
                continue
            client = self.cluster.client(name, CALL_S)
            try:
                answer = client.send(method, path, body, query=query)
            except (NotDoneError, OutcomeUnknownError):
                continue
            finally:
                client.close()
            if answer.status == 200:
                # Some answers are empty.
                return answer.body or True
        return None

    def peers(self) -> dict[str, dict[str, Any]]:
        """The configuration, by address."""
        found = self.ask("GET", "/v1/operator/raft/configuration")
        return {p["Address"]: p for p in found["Servers"]} if found else {}

    def peer(self, name: str) -> dict[str, Any] | None:
        """A node's place in the configuration."""
        return self.peers().get(self.cluster.hosts[name].rpc)

    def hurry(self) -> None:
        """Let new servers vote after a second; the default is ten."""

        def done() -> bool:
            settings = self.ask("GET", _AUTOPILOT)
            if not settings:
                return False
            if settings["ServerStabilizationTime"] == SOON:
                return True
            settings["ServerStabilizationTime"] = SOON
            return bool(self.ask("PUT", _AUTOPILOT, settings))

        until(done, seconds=JOIN_S, what="autopilot's settings")

    def remove(self, name: str) -> bool:
        """Take a server out of the configuration; whether that was accepted."""
        peer = self.peer(name)
        return peer is not None and bool(
            self.ask("DELETE", "/v1/operator/raft/peer", id=peer["ID"])
        )

    def hand_over(self, name: str) -> bool:
        """Make a server the leader; whether that was accepted."""
        peer = self.peer(name)
        return peer is not None and bool(
            self.ask("PUT", "/v1/operator/raft/transfer-leadership", id=peer["ID"])
        )

    def empty(self, name: str) -> None:
        """Remove a stopped server's raft directory: from then on it is a new server."""
        folder = raft_folder(self.cluster, name)
        if folder.exists():
            shutil.rmtree(folder)

    def await_all(self) -> None:
        """Wait until the cluster's own servers as they are now, and nobody else, vote. Raises TimeoutError.

        A server that came back empty has another id: until the old one is out, its vote counts and nobody casts it.
        """
        names = self.cluster.names
        until(lambda: self._complete(names), seconds=JOIN_S, what=f"{' '.join(names)} to vote")

    def _complete(self, names: list[str]) -> bool:
        wanted = {self.id_of(name) for name in names}
        if "" in wanted:
            return False
        peers = self.peers().values()
        for peer in peers:
            if peer["ID"] not in wanted:
                self.ask("DELETE", "/v1/operator/raft/peer", id=peer["ID"])
        return {p["ID"] for p in peers} == wanted and all(p["Voter"] for p in peers)

    def id_of(self, name: str) -> str:
        """Who a server is at present; "" before it has said."""
        try:
            file = raft_folder(self.cluster, name) / "server-id"
            return file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""


def raft_folder(cluster: OwnCluster, name: str) -> Path:
    """A server's raft directory."""
    return cluster.hosts[name].data / "server" / "raft"
