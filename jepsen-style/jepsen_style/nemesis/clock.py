"""Faults of wall clocks: they jump, jump back and forth, or run too fast or too slow. The monotonic clocks stay right."""

from __future__ import annotations

import math
import threading
from abc import abstractmethod

from jepsen_style.clock.clocks import Clocks
from jepsen_style.clock.skew import FaultyClock
from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note, Target, targets
from nomadpy.entropy import Entropy

BUMP_S = (4.0, 7200.0)
STROBE_S = (0.5, 60.0)
STROBE_EVERY_S = 0.01
DRIFT = (0.5, 2.0)


class _ClockFault(Nemesis):
    """Each of the nodes that are meant has a fault of its own."""

    def __init__(self, cluster: OwnCluster, note: Note, target: Target) -> None:
        super().__init__(cluster, note)
        self._target = target
        self._struck: list[FaultyClock] = []

    def begin(self, source: Entropy) -> str:
        clocks = self.cluster.equipment[Clocks.need]
        assert isinstance(clocks, Clocks)
        words = []
        for name in targets(self.cluster, self._target, source):
            clock = clocks.of(name)
            self._struck.append(clock)
            words.append(f"{name} {self._strike(clock, source)}")
        return ", ".join(words)

    def end(self) -> None:
        for clock in self._struck:
            clock.heal()
        self._struck = []

    @abstractmethod
    def _strike(self, clock: FaultyClock, source: Entropy) -> str:
        """Do it to one; return in words what."""


class Bump(_ClockFault):
    """The clock jumps by seconds or hours, forth or back, and back to the right time at the end."""

    def _strike(self, clock: FaultyClock, source: Entropy) -> str:
        by_s = _jump(source, *BUMP_S)
        clock.bump(by_s)
        return f"{by_s:+.0f} s"


class Strobe(_ClockFault):
    """The clock jumps to a wrong time and back, again and again."""

    def __init__(self, cluster: OwnCluster, note: Note, target: Target) -> None:
        super().__init__(cluster, note, target)
        self._jumps: list[tuple[FaultyClock, float]] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, source: Entropy) -> str:
        words = super().begin(source)
        self._over.clear()
        self._thread = threading.Thread(target=self._flicker, name="strobe")
        self._thread.start()
        return f"{words}, forth and back every {STROBE_EVERY_S * 1000:.0f} ms"

    def _strike(self, clock: FaultyClock, source: Entropy) -> str:
        by_s = _jump(source, *STROBE_S)
        self._jumps.append((clock, by_s))
        return f"{by_s:+.1f} s"

    def _flicker(self) -> None:
        while not self._over.wait(STROBE_EVERY_S):
            for clock, by_s in self._jumps:
                clock.bump(by_s)
            self._jumps = [(clock, -by_s) for clock, by_s in self._jumps]

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._jumps = []
        super().end()


class Drift(_ClockFault):
    """The clock runs at half to double speed."""

    def _strike(self, clock: FaultyClock, source: Entropy) -> str:
        rate = math.exp(source.uniform(math.log(DRIFT[0]), math.log(DRIFT[1])))
        clock.run_at(rate)
        return f"at {rate:.2f} of its speed"


def _jump(source: Entropy, low_s: float, high_s: float) -> float:
    """A jump whose order of magnitude is by chance, either way."""
    return source.choice((1, -1)) * math.exp(source.uniform(math.log(low_s), math.log(high_s)))
