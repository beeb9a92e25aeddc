"""A counter lies between what was surely added and what may have been added."""

from __future__ import annotations

import bisect
from itertools import accumulate

from jepsen_style.checker.result import Result
from jepsen_style.history import Call, History


def check_counter(history: History) -> Result:
    """`add` of positive numbers, `read` of the sum. Each read is bounded by the adds before and around it."""
    adds = [c for c in history.calls("add") if c.done.type != "fail"]
    certain = sorted((c for c in adds if c.done.type == "ok"), key=lambda c: c.end_ns)
    ends = [c.end_ns for c in certain]
    low_sums = [0, *accumulate(int(c.invoke.value) for c in certain)]
    starts = [c.start_ns for c in adds]
    high_sums = [0, *accumulate(int(c.invoke.value) for c in adds)]
    reads = [c for c in history.calls("read") if c.done.type == "ok"]
    for read in reads:
        low = low_sums[bisect.bisect_left(ends, read.start_ns)]
        high = high_sums[bisect.bisect_right(starts, read.end_ns)]
        if not low <= int(read.done.value) <= high:
            return Result(
                checker="counter",
                valid=False,
                summary=f"{read.done.value} was read where {low} to {high} are possible",
                offending=[*(c.told() for c in _around(certain, ends, read)), read.told()],
                moments=[read.start_ns],
            )
    facts = {
        "added": low_sums[-1],
        "perhaps": high_sums[-1] - low_sums[-1],
        "final": reads[-1].done.value if reads else None,
    }
    if not reads or not certain:
        return Result(
            checker="counter", valid=None, summary="nothing was added and read", facts=facts
        )
    return Result(
        checker="counter",
        valid=True,
        summary=f"{facts['final']} at the end: {facts['added']} added, {facts['perhaps']} perhaps; {len(reads)} reads in bounds",
        facts=facts,
    )


def _around(certain: list[Call], ends: list[int], read: Call) -> list[Call]:
    # The last addition that the read had to hold.
    position = bisect.bisect_left(ends, read.start_ns)
    return certain[position - 1 : position] if position else []
