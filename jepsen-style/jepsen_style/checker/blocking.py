"""Blocking queries: the index never goes back, no change is slept through, and who is woken sees the change.

A query names the index that it has seen and waits for a larger one. Judged are its answers with the writes of the same key:
- X-Nomad-Index never falls for one client at one node.
- An answer before its time has an index above the one that was named; its body is of no older write than any that was
  acknowledged before the query began, and is what was written under its version.
- A query that waited to its end although a change was acknowledged long before slept through it. In a fault's time it
  may: a node that is cut off hears of nothing.
"""

from __future__ import annotations

import bisect

import msgspec

from jepsen_style.checker.perf import faults
from jepsen_style.checker.result import Result
from jepsen_style.history import OBSERVER, Call, History, by_key

S = 1_000_000_000
LATE_S = 1.5
"""A wake-up on a busy machine takes this long at most."""
AFTERMATH_S = 6.0
"""After a fault, until all nodes know each other again."""

Fault = tuple[str, list[Call]]


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """What a `wait` asked for and got; the completion's value. index: named, 0 for at once. found: X-Nomad-Index.

    version, element: of the write whose body was answered; 0 and None when there was none.
    """

    index: int
    wait_s: float
    found: int = 0
    version: int = 0
    element: int | None = None


class _Writes:
    """The acknowledged writes of one key, in the order of their versions and of their ends."""

    def __init__(self, calls: list[Call]) -> None:
        done = [c for c in calls if c.done.type == "ok" and c.done.version]
        self.by_version = sorted(done, key=lambda c: c.done.version or 0)
        self._versions = [c.done.version or 0 for c in self.by_version]
        # The earliest end among a version and all later ones.
        self._earliest: list[Call] = []
        for call in reversed(self.by_version):
            best = self._earliest[-1] if self._earliest else call
            self._earliest.append(call if call.end_ns < best.end_ns else best)
        self._earliest.reverse()
        by_end = sorted(done, key=lambda c: c.end_ns)
        self._ends = [c.end_ns for c in by_end]
        self._newest: list[Call] = []
        for call in by_end:
            best = self._newest[-1] if self._newest else call
            self._newest.append(
                call if (call.done.version or 0) > (best.done.version or 0) else best
            )

    def first_after(self, index: int) -> Call | None:
        """The write of a version above `index` that was acknowledged first."""
        place = bisect.bisect_right(self._versions, index)
        return self._earliest[place] if place < len(self._earliest) else None

    def newest_before(self, moment_ns: int) -> Call | None:
        """The newest version that was acknowledged before a moment."""
        place = bisect.bisect_left(self._ends, moment_ns)
        return self._newest[place - 1] if place else None

    def of(self, version: int) -> Call | None:
        """The write of this version."""
        place = bisect.bisect_left(self._versions, version)
        if place < len(self._versions) and self._versions[place] == version:
            return self.by_version[place]
        return None


def check_blocking(history: History) -> Result:
    """`write` (version: as acknowledged, value: {"element": n}) and `wait` (value: as Wait), per key."""
    calm = _Calm(history)
    waits = woken = 0
    for key, calls in by_key(history.calls("write", "wait")):
        writes = _Writes([c for c in calls if c.invoke.f == "write"])
        answered = [c for c in calls if c.invoke.f == "wait" and c.done.type == "ok"]
        fault = _gone_back(answered)
        for call in answered:
            if fault is not None:
                break
            fault = _old_body(call, writes) or _slept(call, writes, calm)
        if fault is not None:
            reason, offending = fault
            return Result(
                checker="blocking",
                valid=False,
                summary=f"{key}: {reason}",
                offending=[c.told() for c in offending],
                moments=[c.start_ns for c in offending],
            )
        waits += len(answered)
        woken += sum(0 < _wait(c).index < _wait(c).found for c in answered)
    facts = {"waits": waits, "woken": woken}
    if not woken:
        return Result(checker="blocking", valid=None, summary="no query was woken", facts=facts)
    return Result(
        checker="blocking",
        valid=True,
        summary=f"{woken} of {waits} queries were woken, none slept through a change, none saw an old body",
        facts=facts,
    )


def _wait(call: Call) -> Wait:
    return msgspec.convert(call.done.value, Wait)


def _gone_back(answered: list[Call]) -> Fault | None:
    newest: dict[tuple[int, str], Call] = {}
    for call in answered:
        session = (call.done.process, call.done.node)
        before = newest.get(session)
        if before is not None and _wait(call).found < _wait(before).found:
            was, now = _wait(before).found, _wait(call).found
            return f"the index went back from {was} to {now}", [before, call]
        newest[session] = call
    return None


def _old_body(call: Call, writes: _Writes) -> Fault | None:
    got = _wait(call)
    early = (call.end_ns - call.start_ns) / S < got.wait_s
    if got.index and early and got.found <= got.index:
        return "woken with an index that was known already", [call]
    if got.found < got.version:
        return "the index is older than the body", [call]
    known = writes.newest_before(call.start_ns)
    if known is not None and got.version < (known.done.version or 0):
        return "the body is older than what was acknowledged before the query", [known, call]
    write = writes.of(got.version)
    if write is not None and write.invoke.value["element"] != got.element:
        return "the body is not what was written under its version", [write, call]
    return None


def _slept(call: Call, writes: _Writes, calm: _Calm) -> Fault | None:
    got = _wait(call)
    if not got.index or (call.end_ns - call.start_ns) / S < got.wait_s:
        return None
    change = writes.first_after(got.index)
    if change is None:
        return None
    since = max(change.end_ns, call.start_ns)
    if call.end_ns - since > LATE_S * S and calm.throughout(change.start_ns, call.end_ns):
        return "a query slept through a change", [change, call]
    return None


class _Calm:
    """When no fault was at work, nor the time after one, nor a change of leader."""

    def __init__(self, history: History) -> None:
        after = int(AFTERMATH_S * S)
        self._unrest = [(start, end + after) for start, end, _ in faults(history)]
        seen: set[str] = set()
        for op in history.events(OBSERVER):
            # What a node says first is no change.
            if op.node in seen or op.value in ("", "?"):
                self._unrest.append((op.time, op.time + after))
            seen.add(op.node)

    def throughout(self, start_ns: int, end_ns: int) -> bool:
        """Whether the whole time was calm."""
        return not any(start < end_ns and start_ns < end for start, end in self._unrest)
