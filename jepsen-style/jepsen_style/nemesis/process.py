"""Faults of processes: killed, stopped for a while, restarted one after another or all at once."""

from __future__ import annotations

import contextlib
import threading

from jepsen_style.checker.monotonic import RESTARTS
from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note, Target, targets
from nomadpy.demo.client import until
from nomadpy.entropy import Entropy

ANSWER_S = 15.0


class Kill(Nemesis):
    """SIGKILL; started again at the end."""

    def __init__(self, cluster: OwnCluster, note: Note, target: Target) -> None:
        super().__init__(cluster, note)
        self._target = target
        self._struck: list[str] = []

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


class Pause(Nemesis):
    """SIGSTOP, then SIGCONT: the process does not know that time has passed."""

    def __init__(self, cluster: OwnCluster, note: Note, target: Target) -> None:
        super().__init__(cluster, note)
        self._target = target
        self._struck: list[str] = []

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
            # The next one's turn comes though another fault keeps this one silent.
            with contextlib.suppress(TimeoutError):
                until(
                    lambda n=name: self.cluster.leader_seen_by(n) not in ("", "?"),  # type: ignore[misc]
                    seconds=ANSWER_S,
                    what=f"{name}'s answer",
                )

    def end(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
