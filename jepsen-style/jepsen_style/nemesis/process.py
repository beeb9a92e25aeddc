"""Faults of processes: killed, stopped for a while, restarted one after another or all at once."""

from __future__ import annotations

import threading

from jepsen_style.checker.monotonic import RESTARTS
from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note, Target, targets
from nomadpy.clock import SystemClock
from nomadpy.entropy import Entropy

ANSWER_S = 15.0
HURRY_S = 5.0


class _OnTarget(Nemesis):
    """What strikes some nodes, and forgets them at the end."""

    def __init__(self, cluster: OwnCluster, note: Note, target: Target) -> None:
        super().__init__(cluster, note)
        self._target = target
        self._struck: list[str] = []


class Kill(_OnTarget):
    """SIGKILL; started again at the end."""

    def begin(self, source: Entropy) -> str:
        self._struck = targets(self.cluster, self._target, source)
        for name in self._struck:
            self.cluster.kill(name)
        return ", ".join(self._struck)

    def end(self) -> None:
        for name in self._struck:
            if self.cluster.start_node(name):
                self.note(RESTARTS, name)
        self._struck = []


class Pause(_OnTarget):
    """SIGSTOP, then SIGCONT: the process does not know that time has passed."""

    def begin(self, source: Entropy) -> str:
        self._struck = targets(self.cluster, self._target, source)
        for name in self._struck:
            self.cluster.pause(name)
        return ", ".join(self._struck)

    def end(self) -> None:
        for name in self._struck:
            self.cluster.resume(name)
        self._struck = []


class RestartAll(Nemesis):
    """Every node is killed and started again at once."""

    def begin(self, source: Entropy) -> str:  # noqa: ARG002
        for name in self.cluster.names:
            self.cluster.kill(name)
        self.end()
        return "all at once"

    def end(self) -> None:
        for name in self.cluster.names:
            if self.cluster.start_node(name):
                self.note(RESTARTS, name)


class RollingRestart(Nemesis):
    """Each node is stopped in order and started again, the next when the one before answers: an upgrade."""

    def __init__(self, cluster: OwnCluster, note: Note) -> None:
        super().__init__(cluster, note)
        self._over = threading.Event()
        self._never = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, source: Entropy) -> str:
        order = list(self.cluster.names)
        source.shuffle(order)
        self._thread = threading.Thread(target=self._roll, args=(order,), name="rolling-restart")
        self._thread.start()
        return " then ".join(order)

    def _roll(self, order: list[str]) -> None:
        for name in order:
            self.cluster.stop_node(name)
            if self.cluster.start_node(name):
                self.note(RESTARTS, name)
            self._await_answer(name)

    def _await_answer(self, name: str) -> None:
        """The next one's turn comes though another fault keeps this one silent, and soon when the time is over."""
        clock = SystemClock()
        began = clock.monotonic()
        while self.cluster.leader_seen_by(name) in ("", "?"):
            limit = HURRY_S if self._over.is_set() else ANSWER_S
            if clock.monotonic() - began > limit:
                return
            self._never.wait(0.1)

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
