"""Registers with check-and-set: linearizable per key, with the ModifyIndex as part of what is checked.

Every written value is unique, so what is known about a write of unknown outcome is this: if nobody ever saw its value it
need not have happened; if somebody did, it happened before that reader's end, at the version that the reader saw.
A refused check-and-set is a read: what it says was there must have been there, at another version than demanded.
"""

from __future__ import annotations

from typing import Any

import msgspec

from jepsen_style.checker import wgl
from jepsen_style.checker.result import Result
from jepsen_style.history import Call, History, by_key

State = tuple[int, str]
EMPTY: State = (0, "null")


class Operation(msgspec.Struct, frozen=True):
    """expected None: a read of (version, value); else a write of it where the version was `expected`."""

    expected: int | None
    version: int
    value: str
    call: Call


def step(state: State, op: Operation) -> State | None:
    """The register after an operation; None when it could not have answered so."""
    after = (op.version, op.value)
    if op.expected is None:
        return state if state == after else None
    return after if state[0] == op.expected and op.version > state[0] else None


def check_register(history: History, *, budget: int = wgl.DEFAULT_BUDGET) -> Result:
    """Check every key; reads are `read`, writes are `cas`."""
    total = unknown = written = 0
    undecided: list[str] = []
    for key, calls in by_key(history.calls("read", "cas")):
        timed, fault = operations(calls)
        total += len(timed)
        written += sum(c.done.type == "ok" and c.invoke.f == "cas" for c in calls)
        unknown += sum(c.done.type == "info" and c.invoke.f == "cas" for c in calls)
        if fault is None:
            verdict = wgl.check(timed, EMPTY, step, budget=budget)
            if verdict.linearizable:
                continue
            if verdict.linearizable is None:
                undecided.append(key)
                continue
            fault = contradiction(timed) or _stuck(timed, verdict)
        reason, offending = fault
        return Result(
            checker="register",
            valid=False,
            summary=f"{key} is not linearizable: {reason}",
            offending=[c.told() for c in offending],
            moments=[c.start_ns for c in offending],
            facts={"key": key, "operations": total},
        )
    facts = {"operations": total, "unknown_writes": unknown}
    if undecided:
        return Result(
            checker="register",
            valid=None,
            summary=f"the search gave up on {', '.join(undecided)}",
            facts=facts,
        )
    if written == 0:
        return Result(checker="register", valid=None, summary="no write succeeded", facts=facts)
    return Result(
        checker="register",
        valid=True,
        summary=f"linearizable: {total} operations, {unknown} writes of unknown outcome",
        facts=facts,
    )


Fault = tuple[str, list[Call]]


def operations(calls: list[Call]) -> tuple[list[wgl.Timed[Operation]], Fault | None]:
    """What the search is given, and a fault that shows without one."""
    reads: list[wgl.Timed[Operation]] = []
    writes: list[wgl.Timed[Operation]] = []
    # Of each value: the version it was seen at, by the reader who ended first.
    seen: dict[str, Call] = {}
    for call in calls:
        done = call.done
        is_read = call.invoke.f == "read"
        if done.version is None or not (done.type == "ok" if is_read else done.type == "fail"):
            continue
        if not is_read and done.version == call.invoke.cas:
            return [], ("a write was refused although its version was the current one", [call])
        value = text(done.value)
        earlier = seen.get(value)
        if earlier is None or call.end_ns < earlier.end_ns:
            seen[value] = call
        reads.append(
            wgl.Timed(call.start_ns, call.end_ns, Operation(None, done.version, value, call))
        )
    for call in calls:
        if call.invoke.f != "cas" or call.done.type == "fail":
            continue
        value, version, end_ns = text(call.invoke.value), call.done.version, call.end_ns
        if call.done.type == "info":
            witness = seen.get(value)
            if witness is None:
                continue
            version, end_ns = witness.done.version, witness.end_ns
            if end_ns < call.start_ns:
                return [], ("a value was read before it was written", [witness, call])
        assert version is not None
        write = Operation(call.invoke.cas or 0, version, value, call)
        writes.append(wgl.Timed(call.start_ns, end_ns, write))
    return sorted([*reads, *writes], key=lambda t: (t.start_ns, t.end_ns)), None


def text(value: Any) -> str:
    """A value as something that can be compared and hashed."""
    return msgspec.json.encode(value).decode()


def contradiction(timed: list[wgl.Timed[Operation]]) -> Fault | None:
    """Two or three operations that cannot all be true, when versions alone show it; None when more is needed."""
    values: dict[int, Operation] = {0: Operation(None, 0, EMPTY[1], timed[0].op.call)}
    writers: dict[int, Operation] = {}
    for t in timed:
        op = t.op
        other = values.setdefault(op.version, op)
        if other.value != op.value:
            return f"version {op.version} had two values", [other.call, op.call]
        if op.expected is not None:
            twin = writers.setdefault(op.version, op)
            if twin is not op:
                return f"version {op.version} was written twice", [twin.call, op.call]
    for version, op in values.items():
        if version and version not in writers:
            return f"nobody wrote what was read at version {version}", [op.call]
    previous = 0
    for version in sorted(writers):
        op = writers[version]
        if op.expected != previous:
            between = [writers[previous].call] if previous in writers else []
            return (
                f"a write that demanded version {op.expected} was accepted at version {previous}",
                [*between, op.call],
            )
        previous = version
    return _out_of_time(timed)


def _out_of_time(timed: list[wgl.Timed[Operation]]) -> Fault | None:
    # Going up the versions: whoever began latest among the lower ones must not begin after a higher one has ended.
    latest: wgl.Timed[Operation] | None = None
    ordered = sorted(timed, key=lambda t: (t.op.version, t.op.expected is None))
    position = 0
    while position < len(ordered):
        version = ordered[position].op.version
        group: list[wgl.Timed[Operation]] = []
        while position < len(ordered) and ordered[position].op.version == version:
            group.append(ordered[position])
            position += 1
        first = min(group, key=lambda t: t.end_ns)
        if latest is not None and first.end_ns < latest.start_ns:
            old, new = latest.op, first.op
            return (
                f"version {old.version} was the answer to a request that began after version {new.version} was known",
                [new.call, old.call],
            )
        writer = next((t for t in group if t.op.expected is not None), None)
        if writer is not None and first.end_ns < writer.start_ns:
            return "a value was read before it was written", [first.op.call, writer.op.call]
        newest = max(group, key=lambda t: t.start_ns)
        if latest is None or newest.start_ns > latest.start_ns:
            latest = newest
    return None


def _stuck(timed: list[wgl.Timed[Operation]], verdict: wgl.Verdict) -> Fault:
    reason = f"no order holds more than {verdict.reached} of {len(timed)} operations"
    return reason, [timed[verdict.stuck].op.call] if verdict.stuck >= 0 else []
