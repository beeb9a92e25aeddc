"""Changes of membership while clients work: servers come, go, are replaced, hand over; at the end the first ones vote again."""

from __future__ import annotations

import json
import threading
from abc import abstractmethod

from jepsen_style.checker.monotonic import RESTARTS
from jepsen_style.cluster import HostDaemon, OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note, targets
from jepsen_style.nemesis.voters import JOIN_S, Voters, raft_folder
from nomadpy.demo.client import until
from nomadpy.demo.cluster import free_ports
from nomadpy.entropy import Entropy

SPARES = 2
PAUSE_S = 0.7


class _Membership(Nemesis):
    """What they share: at the end the cluster's own servers vote, and nobody else."""

    def __init__(self, cluster: OwnCluster, note: Note) -> None:
        super().__init__(cluster, note)
        self.voters = Voters(cluster)
        self._begun = False

    def begin(self, source: Entropy) -> str:
        self.voters.hurry()
        self._begun = True
        return self._strike(source)

    @abstractmethod
    def _strike(self, source: Entropy) -> str:
        """Change who belongs to the cluster; return in words how."""

    def end(self) -> None:
        if not self._begun:
            return
        self._begun = False
        self._restore()
        for name in self.cluster.names:
            if self.cluster.start_node(name):
                self.note(RESTARTS, name)
        self.voters.await_all()

    def _restore(self) -> None:
        """Before the servers are waited for."""

    def _join_anew(self, name: str) -> None:
        self.cluster.kill(name)
        self.voters.empty(name)
        self.cluster.start_node(name)
        self.note(RESTARTS, name)


class Replace(_Membership):
    """A server loses its disk and comes back empty: a new server in the old one's place."""

    def _strike(self, source: Entropy) -> str:
        (name,) = targets(self.cluster, "one", source)
        self._join_anew(name)
        return f"{name} comes back with an empty disk"


class Remove(_Membership):
    """A server is taken out, the leader or another; at the end it joins as a new one."""

    def __init__(self, cluster: OwnCluster, note: Note, *, leader: bool) -> None:
        super().__init__(cluster, note)
        self._leader = leader
        self._out = ""

    def _strike(self, source: Entropy) -> str:
        leads = self.cluster.leader()
        others = [n for n in self.cluster.names if n != leads]
        name = leads if self._leader and leads else source.choice(others)
        self._out = name
        accepted = self.voters.remove(name)
        return f"{name}{'' if accepted else ', refused'}"

    def _restore(self) -> None:
        if self._out and self.voters.peer(self._out) is None:
            self._join_anew(self._out)


class GrowShrink(_Membership):
    """Further servers join, and are taken out again at the end."""

    def __init__(self, cluster: OwnCluster, note: Note) -> None:
        super().__init__(cluster, note)
        self._spares: dict[str, HostDaemon] = {}

    def _strike(self, source: Entropy) -> str:  # noqa: ARG002
        for number in range(1, SPARES + 1):
            http, rpc = free_ports(2)
            name = f"spare-{number}"
            folder = self.cluster.folder / f"{name}-{rpc}"
            folder.mkdir()
            self._spares[name] = HostDaemon(name, "server", folder, http, rpc)
        for name, spare in self._spares.items():
            spare.config_file.write_text(self._configuration(name, spare), encoding="utf-8")
            spare.run([], {})
        return f"{', '.join(self._spares)} join"

    def _configuration(self, name: str, spare: HostDaemon) -> str:
        """A first server's, with its own name, directory and ports."""
        like = self.cluster.hosts[self.cluster.names[0]]
        text = self.cluster.configuration(like)
        before, joined, after = text.partition("retry_join")
        line, end, rest = after.partition("\n")
        for old, new in (
            (f'name      = "{like.name}"', f'name      = "{name}"'),
            (f'"{like.data}"', f'"{spare.data}"'),
            (f"http = {like.http_port}\n", f"http = {spare.http_port}\n"),
            (f"rpc  = {like.rpc_port}\n", f"rpc  = {spare.rpc_port}\n"),
            (f'"{like.http}"', f'"{spare.http}"'),
            (f'"{like.rpc}"', f'"{spare.rpc}"'),
        ):
            before, rest = before.replace(old, new), rest.replace(old, new)
        return before + joined + line + end + rest

    def _restore(self) -> None:
        wanted = {spare.rpc for spare in self._spares.values()}
        try:
            until(lambda: self._vote(wanted), seconds=JOIN_S, what="the further servers to vote")
            for name in self._spares:
                self.note("votes", name)
            for name, spare in self._spares.items():
                until(
                    lambda s=spare: self._taken_out(s.rpc),  # type: ignore[misc]
                    seconds=JOIN_S,
                    what=f"{name} to be out",
                )
        finally:
            for spare in self._spares.values():
                spare.stop()
            self._spares = {}

    def _vote(self, wanted: set[str]) -> bool:
        peers = self.voters.peers()
        return all(peers.get(address, {}).get("Voter") for address in wanted)

    def _taken_out(self, address: str) -> bool:
        peers = self.voters.peers()
        if address in peers:
            self.voters.ask("DELETE", "/v1/operator/raft/peer", id=peers[address]["ID"])
        return bool(peers) and address not in peers


class Transfer(_Membership):
    """Leadership is handed on all the time."""

    def __init__(self, cluster: OwnCluster, note: Note) -> None:
        super().__init__(cluster, note)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def _strike(self, source: Entropy) -> str:
        order = list(self.cluster.names)
        source.shuffle(order)
        self._thread = threading.Thread(target=self._pass_on, args=(order,), name="hand-over")
        self._thread.start()
        return " then ".join(order)

    def _pass_on(self, order: list[str]) -> None:
        number = 0
        while not self._over.wait(PAUSE_S):
            name = order[number % len(order)]
            number += 1
            if self.cluster.leader() != name:
                self.note("handed over" if self.voters.hand_over(name) else "kept", name)

    def _restore(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()


class RecoverPeers(_Membership):
    """The majority is lost for good with its disks; the rest goes on by peers.json, and empty servers join it.

    The one that stays leads when the others stop, and leads still when they have: so it has all that was acknowledged,
    and nothing may be missing, which is more than the operator is promised.
    """

    def _strike(self, source: Entropy) -> str:
        names = list(self.cluster.names)
        leads = self.cluster.leader()
        if leads is None:
            return "nobody leads"
        others = [n for n in names if n != leads]
        source.shuffle(others)
        lost = others[: len(names) // 2 + 1]
        for name in lost:
            self.cluster.pause(name)
        if self.cluster.leader_seen_by(leads) != leads:
            for name in lost:
                self.cluster.resume(name)
            return f"{leads} leads no more"
        for name in names:
            self.cluster.kill(name)
        for name in lost:
            self.voters.empty(name)
        rest = [n for n in names if n not in lost]
        peers = [
            {
                "id": self.voters.id_of(n),
                "address": self.cluster.hosts[n].rpc,
                "non_voter": False,
            }
            for n in rest
        ]
        for name in rest:
            file = raft_folder(self.cluster, name) / "peers.json"
            file.write_text(json.dumps(peers), encoding="utf-8")
            self.cluster.start_node(name)
            self.note(RESTARTS, name)
        until(self.cluster.leader, seconds=JOIN_S, what="a leader of those that are left")
        for name in lost:
            self.cluster.start_node(name)
            self.note(RESTARTS, name)
        return f"{', '.join(lost)} lost for good; {', '.join(rest)} went on by peers.json"
