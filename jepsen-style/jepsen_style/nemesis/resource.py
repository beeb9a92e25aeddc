"""Starved nodes: hardly any processor, no more memory, no more threads."""

from __future__ import annotations

from abc import abstractmethod

from jepsen_style.checker.monotonic import RESTARTS
from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note, Target, targets
from jepsen_style.res.cgroup import Group
from jepsen_style.res.groups import Groups
from nomadpy.entropy import Entropy

CPU_SHARE = 0.1


class _Starvation(Nemesis):
    """The groups of the nodes that are meant get a limit, which is taken away at the end."""

    def __init__(self, cluster: OwnCluster, note: Note, target: Target) -> None:
        super().__init__(cluster, note)
        self._target = target
        self._struck: list[str] = []

    def begin(self, source: Entropy) -> str:
        for name in targets(self.cluster, self._target, source):
            if self.cluster.alive(name):
                self._struck.append(name)
                self._strike(self._group(name))
        return ", ".join(self._struck) or "nobody was running"

    def end(self) -> None:
        for name in self._struck:
            self._lift(self._group(name))
        for name in self._struck:
            if self.cluster.start_node(name):
                self.note(RESTARTS, name)
        self._struck = []

    def _group(self, name: str) -> Group:
        groups = self.cluster.equipment[Groups.need]
        assert isinstance(groups, Groups)
        return groups.of(name)

    @abstractmethod
    def _strike(self, group: Group) -> None:
        """Limit one."""

    @abstractmethod
    def _lift(self, group: Group) -> None:
        """Take that limit away, and no other."""


class LittleCpu(_Starvation):
    """A tenth of one processor."""

    def _strike(self, group: Group) -> None:
        group.limit_cpu(CPU_SHARE)

    def _lift(self, group: Group) -> None:
        group.limit_cpu(None)


class OutOfMemory(_Starvation):
    """No more memory: the kernel kills the node at its next allocation. It is started again at the end."""

    def _strike(self, group: Group) -> None:
        group.choke_memory()

    def _lift(self, group: Group) -> None:
        group.free_memory()


class NoMemoryYet(_Starvation):
    """No more memory: whichever thread allocates stands still until the end."""

    def _strike(self, group: Group) -> None:
        group.hold_memory()

    def _lift(self, group: Group) -> None:
        group.free_memory()


class NoThreads(_Starvation):
    """No more processes and threads than there are."""

    def _strike(self, group: Group) -> None:
        group.limit_tasks(more=0)

    def _lift(self, group: Group) -> None:
        group.limit_tasks(more=None)
