"""How soon writes go on after each fault, and whether everything came back when all faults were undone."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable

import msgspec

from jepsen_style.checker.perf import faults, is_write
from jepsen_style.checker.result import Result
from jepsen_style.history import NEMESIS, OBSERVER, History

UNHEALED = "unhealed"
"""The event of a cluster that did not come back; its error says what was missing."""

SILENT = "?"
S = 1_000_000_000

# Seconds, where a promise was made: without a write from the fault's beginning, and from when all nodes answer again.
PROMISED_S = {
    "kill-leader": 3.0,
    "pause-leader": 5.0,
    "partition-leader": 5.0,
    "partition-deaf-leader": 5.0,
}
PROMISED_UP_S = {"restart-all": 3.0, "kill-all": 3.0}


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """What one fault did to writes.

    begin_ns, end_ns: the fault's. silence_ns: the longest time without an acknowledged write from the fault's beginning
    until the next fault, or the end of the faults. up_ns: when the last node that had not answered did so again, 0 when
    every node answered all the time. after_up_ns: from then to the next acknowledged write, or the next fault.
    """

    nemesis: str
    begin_ns: int
    end_ns: int
    silence_ns: int
    up_ns: int = 0
    after_up_ns: int = 0


def outages(history: History) -> list[Outage]:
    """One for each fault that struck alone, in the order of their beginnings; none when nothing was written."""
    calls = [c for c in history.calls() if is_write(c) and c.done.type == "ok"]
    acknowledged = sorted(c.done.time for c in calls)
    if not acknowledged:
        return []
    struck = faults(history)
    healed = [op.time for op in history.events(NEMESIS) if op.f == "heal"]
    over = healed[0] if healed else max(history.ops[-1].time, struck[-1][1] if struck else 0)
    found = []
    for number, (begin, end, what) in enumerate(struck):
        if any(b < end and begin < e for n, (b, e, _) in enumerate(struck) if n != number):
            continue
        until = struck[number + 1][0] if number + 1 < len(struck) else over
        silence = _silence(acknowledged, begin, until, over)
        up = _all_up(history, begin, max(until, end))
        if number + 1 < len(struck) and up >= until:
            # They were down again before all had answered.
            up = 0
        following = acknowledged[bisect.bisect_right(acknowledged, up) :][:1]
        # When the next fault comes first, it is as long as that at least.
        after = min([*following, *([until] if number + 1 < len(struck) else [])], default=up) - up
        found.append(
            Outage(
                nemesis=what.split(" ")[0],
                begin_ns=begin,
                end_ns=end,
                silence_ns=silence,
                up_ns=up,
                after_up_ns=after if up else 0,
            )
        )
    return found


def _silence(acknowledged: list[int], begin: int, until: int, over: int) -> int:
    """The longest time between acknowledgements of which some lies between `begin` and `until`, counted from `begin`."""
    first = bisect.bisect_right(acknowledged, begin)
    last = bisect.bisect_right(acknowledged, until)
    moments = [begin, *acknowledged[first:last]]
    # The one after, so that an outage that outlasts the fault is seen whole. But when the faults are over, clients
    # pause: a time without writes that begins shortly before is not the fault's.
    following = acknowledged[last : last + 1]
    if following and following[0] > over and first < last:
        following = [max(over, moments[-1])]
    return max((b - a for a, b in itertools.pairwise([*moments, *following])), default=0)


def _all_up(history: History, begin: int, until: int) -> int:
    """When the last node that did not answer in this time did so again; 0 when all answered, or one never did."""
    silent: set[str] = set()
    up = 0
    for op in history.events(OBSERVER):
        if op.f != "leader" or not begin <= op.time <= until + 30 * S:
            continue
        if op.value == SILENT and op.time <= until:
            silent.add(op.node)
        elif op.value != SILENT and op.node in silent:
            silent.discard(op.node)
            up = op.time
    return 0 if silent else up


class Longest(msgspec.Struct, frozen=True, kw_only=True):
    """All faults of one kind together, in seconds; after_up_s is None when every node answered all the time."""

    nemesis: str
    count: int
    silence_s: float
    after_up_s: float | None
    promised: str = ""


def by_nemesis(found: Iterable[Outage]) -> list[Longest]:
    """The longest of each kind, by name."""
    groups: dict[str, list[Outage]] = {}
    for outage in found:
        groups.setdefault(outage.nemesis, []).append(outage)
    rows = []
    for nemesis, group in sorted(groups.items()):
        silence = max(o.silence_ns for o in group) / S
        after = max((o.after_up_ns / S for o in group if o.up_ns), default=None)
        rows.append(
            Longest(
                nemesis=nemesis,
                count=len(group),
                silence_s=round(silence, 2),
                after_up_s=None if after is None else round(after, 2),
                promised=_promise(nemesis, silence, after),
            )
        )
    return rows


def _promise(nemesis: str, silence: float, after: float | None) -> str:
    """In words, whether a promise was kept; "" when there is none."""
    if nemesis in PROMISED_S:
        limit = PROMISED_S[nemesis]
        return f"at most {limit:g} s: {'kept' if silence <= limit else 'NOT kept'}"
    if nemesis in PROMISED_UP_S and after is not None:
        limit = PROMISED_UP_S[nemesis]
        return f"at most {limit:g} s once all answer: {'kept' if after <= limit else 'NOT kept'}"
    return ""


def check_recovery(history: History) -> Result:
    """Invalid when the cluster did not come back after all faults were undone; the figures do not decide anything."""
    broken = [op for op in history.events(NEMESIS) if op.f == UNHEALED]
    if broken:
        return Result(
            checker="recovery",
            valid=False,
            summary="the cluster did not come back after all faults were undone",
            offending=[f"{op.time / 1e9:.2f} s: {op.error}" for op in broken],
            moments=[op.time for op in broken],
        )
    rows = by_nemesis(outages(history))
    told = ", ".join(f"{r.nemesis} {r.silence_s:.2f} s" for r in rows)
    return Result(
        checker="recovery",
        valid=True,
        summary=f"longest time without a write, by fault: {told or 'none struck alone'}",
        facts={r.nemesis: msgspec.to_builtins(r) for r in rows},
    )
