"""Starved nodes: hardly any processor, no more memory, no more threads."""

from __future__ import annotations

import contextlib
import subprocess
from abc import abstractmethod
from pathlib import Path

from jepsen_style.checker.monotonic import RESTARTS
from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note, Target, targets
from jepsen_style.res.cgroup import Group
from jepsen_style.res.groups import Groups
from nomadpy.demo.client import until
from nomadpy.entropy import Entropy

CPU_SHARE = 0.1
WANTED_MB = 64
SETTLE_S = 5.0


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
            self._await_answer(name)
            died = self.cluster.hosts[name].process
            if self.cluster.start_node(name):
                code = None if died is None else died.returncode
                self.note(f"ended with {code}", name)
                self.note(RESTARTS, name)
        self._struck = []

    def _await_answer(self, name: str) -> None:
        """Wait until a node answers or has ended: one whose disk refused it ends when it can go on, not at once."""

        def settled() -> bool:
            return not self.cluster.alive(name) or self.cluster.leader_seen_by(name) != "?"

        with contextlib.suppress(TimeoutError):
            until(settled, seconds=SETTLE_S, what=f"an answer of {name}")

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


class _Memory(_Starvation):
    """A group that has what it needs now, and a process beside the node's that wants more than there is."""

    def __init__(self, cluster: OwnCluster, note: Note, target: Target) -> None:
        super().__init__(cluster, note, target)
        self._greedy: list[subprocess.Popen[bytes]] = []

    def _want_memory(self, group: Group) -> None:
        """What a node has freed it uses again, and may not ask for more for long: another one asks."""
        for pid in group.members():
            # Of two, the kernel is to choose the node.
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000", encoding="ascii")
        ask = ["dd", "if=/dev/zero", "of=/dev/null", f"bs={WANTED_MB}M", "count=1"]
        self._greedy.append(
            subprocess.Popen(
                [*group.inside(), *ask],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def _lift(self, group: Group) -> None:
        group.free_memory()

    def end(self) -> None:
        for process in self._greedy:
            process.kill()
        super().end()
        for process in self._greedy:
            process.wait()
        self._greedy = []


class OutOfMemory(_Memory):
    """No more memory: the kernel kills the node. It is started again at the end."""

    def _strike(self, group: Group) -> None:
        group.choke_memory()
        self._want_memory(group)


class NoMemoryYet(_Memory):
    """No more memory: whichever thread allocates stands still until the end, and system calls fail for want of memory."""

    def _strike(self, group: Group) -> None:
        group.hold_memory()
        self._want_memory(group)


class NoThreads(_Starvation):
    """No more processes and threads than there are."""

    def _strike(self, group: Group) -> None:
        group.limit_tasks(more=0)

    def _lift(self, group: Group) -> None:
        group.limit_tasks(more=None)
