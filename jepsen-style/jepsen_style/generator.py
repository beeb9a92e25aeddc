"""What is done when, decided by the seed alone: the phases of a run, the clients' pace, the schedule of faults.

Pure: the same seed gives the same requests and the same faults. Who leads when a fault strikes is not in the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from nomadpy.entropy import SeededEntropy

PhaseName = Literal["safety", "heal", "liveness", "final"]

GRACE_S = 3.0
FAULT_S = (4.0, 9.0)
CALM_S = (4.0, 8.0)
# Faults that overlap.
MOST_AT_ONCE = 3
NEXT_S = (1.0, 5.0)
CALM_EVERY = 4


class Phase(msgspec.Struct, frozen=True):
    """safety: clients work while faults strike. heal: every fault is undone. liveness: all nodes must answer again.
    final: the state is read once at every node."""

    name: PhaseName
    seconds: float


class Step(msgspec.Struct, frozen=True):
    """A fault from start_s to end_s of the safety phase. seed: what the fault itself decides by."""

    nemesis: str
    start_s: float
    end_s: float
    seed: str


def phases(time_limit_s: float, liveness_s: float = 5.0) -> list[Phase]:
    """The phases of a run; the time limit is the safety phase's."""
    return [
        Phase("safety", time_limit_s),
        Phase("heal", 0.0),
        Phase("liveness", liveness_s),
        Phase("final", 0.0),
    ]


def chance(seed: int, who: str) -> SeededEntropy:
    """The chance of one client or of the nemesis; theirs do not depend on one another."""
    return SeededEntropy(f"{seed}/{who}")


def schedule(seed: int, nemeses: Sequence[str], time_limit_s: float) -> list[Step]:
    """Faults one after another with calm between; each nemesis comes before any comes again.

    Nothing strikes in the first seconds, and all is undone before the limit.
    """
    if not nemeses:
        return []
    source = chance(seed, "nemesis")
    steps: list[Step] = []
    waiting: list[str] = []
    now = GRACE_S
    while True:
        if not waiting:
            waiting = list(nemeses)
            source.shuffle(waiting)
        length = source.uniform(*FAULT_S)
        calm = source.uniform(*CALM_S)
        if now + 1.0 > time_limit_s:
            return steps
        end = min(now + length, time_limit_s)
        steps.append(Step(waiting.pop(), now, end, f"{seed}/fault-{len(steps)}"))
        now = end + calm


def overlapping(seed: int, families: Mapping[str, str], time_limit_s: float) -> list[Step]:
    """Faults of different families that overlap, by their beginnings; each nemesis comes before any comes again.

    families: every nemesis with its family. As in `schedule`, nothing strikes at first, and all is undone before the limit;
    after every CALM_EVERY faults there is calm.
    """
    if not families:
        return []
    source = chance(seed, "nemesis")
    steps: list[Step] = []
    waiting: list[str] = []
    now = GRACE_S
    while now + 1.0 <= time_limit_s:
        if not waiting:
            waiting = list(families)
            source.shuffle(waiting)
        active = [step for step in steps if step.end_s > now]
        busy = {families[step.nemesis] for step in active}
        free = [name for name in waiting if families[name] not in busy]
        if not free or len(active) >= MOST_AT_ONCE:
            now = min(step.end_s for step in active)
            continue
        waiting.remove(free[-1])
        end = min(now + source.uniform(*FAULT_S), time_limit_s)
        steps.append(Step(free[-1], now, end, f"{seed}/fault-{len(steps)}"))
        now += source.uniform(*NEXT_S)
        if len(steps) % CALM_EVERY == 0:
            # A time without any fault, so that not all of a run is without a majority.
            now = max(now, *(step.end_s for step in steps)) + source.uniform(*CALM_S)
    return steps


def pause_s(source: SeededEntropy, rate: float, concurrency: int) -> float:
    """How long a client waits before its next request, so that all together make `rate` a second; 0 is no limit."""
    return source.uniform(0.0, 2.0 * concurrency / rate) if rate > 0 else 0.0
