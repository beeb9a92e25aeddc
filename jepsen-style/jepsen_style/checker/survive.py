"""Tasks outlive their agent: the same process before and after, no exit code lost, no line of a log lost or doubled.

Two kinds of jobs: one ticks for ever, one ticks for a while and ends with a code that the history knows beforehand. Both number
their lines. At the end, everything that servers and the machine know of each is read.
"""

from __future__ import annotations

from typing import Any

import msgspec

from jepsen_style.checker.perf import faults
from jepsen_style.checker.placement import Seen, at, looks
from jepsen_style.checker.result import Result
from jepsen_style.history import Call, History, by_key

LAST = "the end"
"""What a task that ends by itself says last."""

Fault = tuple[str, list[str], list[int]]


class End(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a job at the end. allocs: how many it had; exit_code None while the task runs; lines of its stdout.

    refused: a Docker daemon that was struck did not start the task, and it may not be tried again.
    """

    alloc: str
    allocs: int
    client: str
    exit_code: int | None
    restarts: int
    lines: list[str]
    refused: bool = False


def check_survive(history: History) -> Result:
    """`run` (value: {"ticks": n or 0 for ever, "code": exit code}), `look` (value: Look), `end` (value: End) by job."""
    seen = looks(history)
    given_up = {
        node for one in seen for node, status in one.look.nodes.items() if status != "ready"
    }
    lost_by = {row.id for one in seen for row in one.look.allocs if row.node in given_up}
    without_daemon = [f[:2] for f in faults(history) if f[2].split(" ")[0] == "docker-kill-daemon"]
    fault = _changed(seen)
    ended = lasting = 0
    for _, calls in by_key(history.calls("run", "end")):
        began = [c for c in calls if c.invoke.f == "run" and c.done.type == "ok"]
        known = [c for c in calls if c.invoke.f == "end"]
        if not began or not known:
            continue
        end_call = known[0]
        fault = fault or _judge(began[0], end_call, seen, lost_by, without_daemon)
        if began[0].invoke.value["ticks"]:
            ended += 1
        else:
            lasting += 1
    facts: dict[str, Any] = {"ended": ended, "lasting": lasting, "looks": len(seen)}
    if fault is not None:
        reason, offending, moments = fault
        return Result(
            checker="survive", valid=False, summary=reason, offending=offending, moments=moments, facts=facts
        )  # fmt: skip
    if not (ended and lasting):
        return Result(checker="survive", valid=None, summary="no task of each kind", facts=facts)
    return Result(
        checker="survive",
        valid=True,
        summary=f"{lasting} tasks went on in their first process, {ended} ended with their code; all logs whole",
        facts=facts,
    )


def _changed(seen: list[Seen]) -> Fault | None:
    """A task's first process was replaced."""
    first: dict[tuple[str, str], tuple[Seen, int, tuple[int, int]]] = {}
    for one in seen:
        for live in one.look.live:
            key = (live.alloc, live.task)
            known = first.setdefault(key, (one, live.pid, live.identity))
            if known[2] != live.identity:
                told = [
                    at(known[0], f"process {known[1]} runs {live.name}"),
                    at(one, f"process {live.pid} runs {live.name}"),
                ]
                moments = [known[0].call.start_ns, one.call.start_ns]
                return f"the task of {live.alloc[:8]} was started anew", told, moments
    return None


def _ended_without(alloc: str, began: Call, seen: list[Seen], spans: list[tuple[int, int]]) -> bool:
    """Whether a task may have ended in one of these spans: between the last look that saw it and the next one.

    What a container says while its daemon is dead is lost by Docker when it ends before the daemon is back.
    """
    with_it = [one for one in seen if any(live.alloc == alloc for live in one.look.live)]
    first = with_it[-1].call.start_ns if with_it else began.start_ns
    after = [one.call.end_ns for one in seen if one.call.start_ns > first]
    last = after[0] if after else None
    return any(start <= (last or end) and first <= end for start, end in spans)


def _judge(
    began: Call,
    call: Call,
    seen: list[Seen],
    lost_by: set[str],
    without_daemon: list[tuple[int, int]],
) -> Fault | None:
    asked = began.invoke.value
    moments = [began.start_ns, call.start_ns]

    def fault(reason: str, *lines: str) -> Fault:
        return f"{call.invoke.key}: {reason}", [began.told(), call.told(), *lines], moments

    if call.done.type != "ok":
        return fault("its end could not be read")
    end = msgspec.convert(call.done.value, End)
    if end.alloc in lost_by or (end.allocs > 1 and lost_by):
        # Its node was given up; replacing it was right, and placement judges that.
        return None
    if (
        end.refused
        and end.client == "failed"
        and all(live.alloc != end.alloc for one in seen for live in one.look.live)
    ):
        return None
    if end.allocs != 1:
        return fault(f"had {end.allocs} allocations")
    if end.restarts:
        return fault(f"was restarted {end.restarts} times")
    if asked["ticks"]:
        if end.client not in ("complete", "failed"):
            return fault(f"is {end.client}, and should have ended")
        if end.exit_code != asked["code"]:
            return fault(f"ended with {asked['code']}, and {end.exit_code} is known")
        wanted = [*(str(n) for n in range(1, asked["ticks"] + 1)), LAST]
        if _ended_without(end.alloc, began, seen, without_daemon):
            wanted = wanted[: len(end.lines)]
        return _compared(fault, wanted, end.lines)
    if end.client != "running" or end.exit_code is not None:
        return fault(f"is {end.client}, and should run")
    last = seen[-1] if seen else None
    if last is not None and all(live.alloc != end.alloc for live in last.look.live):
        return fault("does not run", at(last, "no process of it"))
    if not end.lines:
        return fault("its log is empty")
    return _compared(fault, [str(n) for n in range(1, len(end.lines) + 1)], end.lines)


def _compared(fault: Any, wanted: list[str], lines: list[str]) -> Fault | None:
    for number, (want, line) in enumerate(zip(wanted, lines, strict=False), 1):
        if want != line:
            found: Fault = fault(f"line {number} of its log is {line!r} and not {want!r}")
            return found
    if len(wanted) != len(lines):
        short: Fault = fault(f"its log has {len(lines)} lines and not {len(wanted)}")
        return short
    return None
