"""Faults of agents: one is killed, stopped as an operator stops it, paused, or cut off from all servers. Tasks are left alone."""

from __future__ import annotations

from abc import abstractmethod

from jepsen_style.checker.monotonic import RESTARTS
from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note
from nomadpy.entropy import Entropy


class _OneAgent(Nemesis):
    """Strikes one agent, whichever chance names."""

    def __init__(self, cluster: OwnCluster, note: Note) -> None:
        super().__init__(cluster, note)
        self._struck = ""

    def begin(self, source: Entropy) -> str:
        self._struck = source.choice(self.cluster.agent_names)
        self._strike(self._struck)
        return self._struck

    @abstractmethod
    def _strike(self, name: str) -> None: ...

    def end(self) -> None:
        if self._struck:
            self._restore(self._struck)
        self._struck = ""

    def _restore(self, name: str) -> None:
        if self.cluster.start_node(name):
            self.note(RESTARTS, name)


class KillAgent(_OneAgent):
    """SIGKILL; started again at the end."""

    def _strike(self, name: str) -> None:
        self.cluster.kill(name)


class StopAgent(_OneAgent):
    """SIGTERM, as for an upgrade; started again at the end."""

    def _strike(self, name: str) -> None:
        self.cluster.stop_node(name)


class PauseAgent(_OneAgent):
    """SIGSTOP, then SIGCONT."""

    def _strike(self, name: str) -> None:
        self.cluster.pause(name)

    def _restore(self, name: str) -> None:
        self.cluster.resume(name)


class PartitionAgents(Nemesis):
    """No packet passes between some agents and the servers: one agent, or all of them."""

    def begin(self, source: Entropy) -> str:
        agents = list(self.cluster.agent_names)
        if source.uniform(0, 1) < 0.5:
            agents = [source.choice(agents)]
        pairs = [(a, s) for a in agents for s in self.cluster.names]
        self.cluster.network.cut([*pairs, *((s, a) for a, s in pairs)])
        return ", ".join(agents)

    def end(self) -> None:
        self.cluster.network.mend()
