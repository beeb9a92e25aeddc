"""Figures of a run, and whether the cluster came back to life: latency, rate, the longest time without a write."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from jepsen_style.checker.result import Result
from jepsen_style.history import NEMESIS, Call, History

QUANTILES = (0.5, 0.95, 0.99, 1.0)


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of values in rising order, by nearest rank; 0 for none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def faults(history: History) -> list[tuple[int, int, str]]:
    """(beginning, end, what) of each fault, in nanoseconds."""
    found = []
    began: dict[str, tuple[int, str]] = {}
    last = history.ops[-1].time if history.ops else 0
    for op in history.events(NEMESIS):
        if op.f == "start":
            began[op.key] = (op.time, f"{op.key} {op.value or ''}".strip())
        elif op.f == "stop" and op.key in began:
            start, what = began.pop(op.key)
            found.append((start, op.time, what))
    found += [(start, last, what) for start, what in began.values()]
    return sorted(found)


READS = frozenset({"read", "wait", "look", "settle", "end", "measure", "drain"})


def is_write(call: Call) -> bool:
    """Whether an operation changes something."""
    return call.invoke.f not in READS


def longest_outage(calls: Sequence[Call]) -> tuple[int, int]:
    """The longest time without the end of a successful write, from the first call to the end of the last: (from, to)."""
    if not calls:
        return 0, 0
    ends = sorted(c.done.time for c in calls if is_write(c) and c.done.type == "ok")
    borders = [min(c.start_ns for c in calls), *ends, max(c.done.time for c in calls)]
    return max(itertools.pairwise(borders), key=lambda gap: gap[1] - gap[0])


def check_perf(history: History) -> Result:
    """Figures; valid unless nothing succeeded."""
    calls = history.calls()
    worked = [c for c in calls if c.invoke.phase == "safety"]
    facts: dict[str, object] = {}
    for f in sorted({c.invoke.f for c in worked}):
        mine = [c for c in worked if c.invoke.f == f]
        latencies = sorted((c.done.time - c.start_ns) / 1e6 for c in mine if c.done.type == "ok")
        facts[f] = {
            **{t: sum(c.done.type == t for c in mine) for t in ("ok", "fail", "info")},
            **{f"p{q * 100:g}_ms": round(quantile(latencies, q), 1) for q in QUANTILES},
        }
    start, end = longest_outage(worked)
    seconds = max((c.done.time for c in worked), default=0) / 1e9
    answered = sum(c.done.type == "ok" for c in worked)
    facts["ok_per_s"] = round(answered / seconds, 1) if seconds else 0.0
    facts["longest_write_outage_s"] = round((end - start) / 1e9, 2)
    return Result(
        checker="perf",
        valid=True if answered else None,
        summary=f"{facts['ok_per_s']} answers/s; longest time without a write {facts['longest_write_outage_s']} s",
        moments=[start, end] if answered else [],
        facts=facts,
    )


def _reached(call: Call) -> bool:
    """Whether a write was done, or refused by whoever knows what is there: both take a leader with a majority."""
    return call.done.type == "ok" or call.done.version is not None


def check_liveness(history: History, nodes: Sequence[str]) -> Result:
    """After all faults are undone every node must answer a write."""
    calls = [c for c in history.calls() if c.invoke.phase == "liveness" and is_write(c)]
    if not calls:
        return Result(checker="liveness", valid=None, summary="the run ended before its last phase")
    silent = [
        node for node in nodes if not any(_reached(c) for c in calls if c.invoke.node == node)
    ]
    asked = {c.invoke.node for c in calls}
    if not silent:
        first = min(c.done.time for c in calls if _reached(c))
        healed = [op.time for op in history.events(NEMESIS) if op.f == "heal"]
        began = healed[0] if healed else min(c.start_ns for c in calls)
        return Result(
            checker="liveness",
            valid=True,
            summary=f"every node accepts writes again, the first {(first - began) / 1e9:.2f} s after the end of all faults",
        )
    if not asked.issuperset(silent):
        return Result(
            checker="liveness",
            valid=None,
            summary=f"too few clients: nobody asked {', '.join(sorted(set(silent) - asked))}",
        )
    last = [max((c for c in calls if c.invoke.node == n), key=lambda c: c.start_ns) for n in silent]
    return Result(
        checker="liveness",
        valid=False,
        summary=f"no write through {', '.join(silent)} after the end of all faults",
        offending=[c.told() for c in last],
        moments=[c.start_ns for c in last],
    )
