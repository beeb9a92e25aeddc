"""What runs is what was asked for: no task twice, none that goes on after its end was learned, in the end all of them.

A look is what servers say and, right after it, what the machine shows. Desired statuses only ever go from run to stop, so what a
later look still calls wanted was wanted when the earlier one saw it run.

Overlap that is no fault: a node that was given up goes on with its tasks until it hears of it, and a task that is told to
stop has its time to do so.
"""

from __future__ import annotations

import collections
import itertools
from typing import Any

import msgspec

from jepsen_style.checker.result import Result
from jepsen_style.history import Call, History, by_key
from jepsen_style.processes import Live

S = 1_000_000_000
STOP_S = 20.0
"""An agent that is in touch ends an unwanted task in this time; the tasks' own time to stop is 2 seconds."""
BLIND_S = 3.0
"""Without a look for so long, agents may have been without servers too."""

Fault = tuple[str, list[str], list[int]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An allocation as servers have it."""

    id: str
    name: str
    job: str
    node: str
    desired: str
    client: str

    @property
    def is_wanted(self) -> bool:
        """Whether it is to run, and has not ended."""
        return self.desired == "run" and self.client in ("pending", "running")


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """nodes: status by id. counts: of each job, by its id, as servers have it; only at the end. seconds: waited for it."""

    nodes: dict[str, str]
    allocs: list[Row]
    live: list[Live]
    counts: dict[str, int] = {}
    seconds: float = 0.0


class Seen(msgspec.Struct, frozen=True):
    """A look and when it was."""

    call: Call
    look: Look
    rows: dict[str, Row]


def looks(history: History) -> list[Seen]:
    """All looks that succeeded, in order."""
    found = []
    for call in history.calls("look", "settle"):
        if call.done.type == "ok":
            look = msgspec.convert(call.done.value, Look)
            found.append(Seen(call, look, {row.id: row for row in look.allocs}))
    return found


def check_placement(history: History) -> Result:
    """`run` (value: {"count": n}) and `purge` by job, `look` and `settle` (value: Look)."""
    seen = looks(history)
    fault = None
    for one in seen:
        fault = fault or _named_twice(one)
    for one, later in itertools.pairwise(seen):
        fault = fault or _runs_twice(one, later) or _twins(one, later)
    fault = fault or _goes_on(seen) or _unsettled(history, seen)
    most = max((len(one.look.live) for one in seen), default=0)
    facts: dict[str, Any] = {"looks": len(seen), "most_tasks": most}
    if fault is not None:
        reason, offending, moments = fault
        return Result(
            checker="placement",
            valid=False,
            summary=reason,
            offending=offending,
            moments=moments,
            facts=facts,
        )
    settled = [one for one in seen if one.call.invoke.f == "settle"]
    if not settled or not most:
        return Result(
            checker="placement", valid=None, summary="nothing ran to the end", facts=facts
        )
    return Result(
        checker="placement",
        valid=True,
        summary=f"{len(seen)} looks at up to {most} tasks: none twice, none too long; all that was acknowledged ran "
        f"{settled[0].look.seconds:.1f} s after the end",
        facts=facts,
    )


def at(seen: Seen, *rest: str) -> str:
    """A line about a look."""
    return (
        f"{seen.call.start_ns / 1e9:9.4f} .. {seen.call.done.time / 1e9:9.4f} s  {' '.join(rest)}"
    )


def _told(row: Row | None) -> str:
    if row is None:
        return "unknown to servers"
    return f"allocation {row.id[:8]} on node {row.node[:8]}: {row.desired}, {row.client}"


def _ready(seen: Seen, node: str) -> bool:
    return seen.look.nodes.get(node) == "ready"


def _named_twice(seen: Seen) -> Fault | None:
    """Servers themselves want two of one name."""
    names = collections.defaultdict(list)
    for row in seen.look.allocs:
        if row.is_wanted and _ready(seen, row.node):
            names[row.name].append(row)
    for name, rows in names.items():
        if len(rows) > 1:
            return (
                f"{name} was placed twice",
                [at(seen, _told(row)) for row in rows],
                [seen.call.start_ns],
            )
    return None


def _runs_twice(seen: Seen, later: Seen) -> Fault | None:
    names: dict[str, list[Live]] = collections.defaultdict(list)
    for live in seen.look.live:
        row = later.rows.get(live.alloc)
        if row is not None and row.is_wanted and _ready(seen, row.node) and _ready(later, row.node):
            names[f"{live.name}/{live.task}"].append(live)
    for name, lives in names.items():
        if len({one.alloc for one in lives}) > 1:
            told = [at(seen, f"process {one.pid} runs {name};", _told(later.rows[one.alloc])) for one in lives]  # fmt: skip
            return f"{name} ran twice", told, [seen.call.start_ns]
    return None


def _twins(seen: Seen, later: Seen) -> Fault | None:
    """One allocation's task in two processes, and not just for the moment of a restart."""
    still = {(one.alloc, one.task, one.identity) for one in later.look.live}
    tasks = collections.defaultdict(list)
    for live in seen.look.live:
        if (live.alloc, live.task, live.identity) in still:
            tasks[live.alloc, live.task].append(live)
    for (alloc, task), lives in tasks.items():
        if len(lives) > 1:
            told = [at(seen, f"process {one.pid} is task {task} of {alloc[:8]}") for one in lives]
            return f"task {task} of {alloc[:8]} ran in two processes", told, [seen.call.start_ns]
    return None


def _goes_on(seen: list[Seen]) -> Fault | None:
    since: dict[tuple[str, int, int], Seen] = {}
    nodes: dict[str, str] = {}
    before: Seen | None = None
    for one in seen:
        if before is not None and one.call.start_ns - before.call.end_ns > BLIND_S * S:
            since.clear()
        before = one
        unwanted = set()
        for live in one.look.live:
            row = one.rows.get(live.alloc)
            if row is not None:
                nodes[live.alloc] = row.node
            node = nodes.get(live.alloc)
            in_touch = (
                _ready(one, node)
                if node is not None
                else all(status == "ready" for status in one.look.nodes.values())
            )
            if in_touch and not (row is not None and row.is_wanted):
                unwanted.add((live.alloc, *live.identity))
        for key in unwanted:
            first = since.setdefault(key, one)
            if one.call.start_ns - first.call.end_ns > STOP_S * S:
                alloc, pid, _ = key
                told = [
                    at(s, f"process {pid} runs {alloc[:8]};", _told(s.rows.get(alloc)))
                    for s in (first, one)
                ]
                return (
                    f"a task of {alloc[:8]} went on after its end",
                    told,
                    [first.call.start_ns, one.call.start_ns],
                )
        for key in since.keys() - unwanted:
            del since[key]
    return None


def possible_counts(calls: list[Call]) -> set[int]:
    """How many of a job there may be after these `run`s and `purge`s of one client, one after another."""
    last, strays = 0, set()
    for call in calls:
        count = call.invoke.value["count"] if call.invoke.f == "run" else 0
        if call.done.type == "ok":
            last = count
        elif call.done.type == "info":
            strays.add(count)
    return {last, *strays}


def _unsettled(history: History, seen: list[Seen]) -> Fault | None:
    settled = [one for one in seen if one.call.invoke.f == "settle"]
    if not settled:
        return None
    last = settled[0]
    moments = [last.call.start_ns]
    for key, calls in by_key(history.calls("run", "purge")):
        there = [count for job, count in last.look.counts.items() if job.endswith(f"-{key}")]
        count = there[0] if there else 0
        if count not in possible_counts(calls):
            told = [c.told() for c in calls[-3:]]
            return f"{key} has a count of {count} at the end", [*told, at(last)], moments
    for job, count in last.look.counts.items():
        rows = [r for r in last.look.allocs if r.job == job and r.is_wanted]
        running = [one for one in last.look.live if one.job == job]
        good = {one.alloc for one in running} == {r.id for r in rows if r.client == "running"}
        if len(running) != count or not good:
            told = [at(last, _told(r)) for r in last.look.allocs if r.job == job]
            told += [at(last, f"process {one.pid} runs {one.alloc[:8]}") for one in running]
            what = f"{len(running)} of {count} tasks of {job} ran {last.look.seconds:.0f} s after the end of all faults"
            return what, told or [at(last, "no allocation of it")], moments
    return None
