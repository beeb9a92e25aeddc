"""A set whose elements are added and taken out once: none lost, none that comes back."""

from __future__ import annotations

from jepsen_style.checker.result import Result
from jepsen_style.history import FOREVER, Call, History


def check_set(history: History) -> Result:
    """`add` and `remove` of unique elements, `read` of the whole set."""
    adds = {str(c.invoke.value): c for c in history.calls("add") if c.done.type != "fail"}
    refused = {str(c.invoke.value): c for c in history.calls("add") if c.done.type == "fail"}
    removes: dict[str, Call] = {}
    for call in history.calls("remove"):
        if call.done.type != "fail":
            removes.setdefault(str(call.invoke.value), call)
    reads = [c for c in history.calls("read") if c.done.type == "ok"]
    present = [frozenset(str(e) for e in c.done.value) for c in reads]
    for read, elements in zip(reads, present, strict=True):
        for element in sorted(elements - adds.keys()):
            what = "was refused" if element in refused else "was never added"
            involved = [refused[element]] if element in refused else []
            return _invalid(f"{element} {what} and is there", [*involved, read])
    lost = 0
    for element, add in adds.items():
        remove = removes.get(element)
        # From when it must be there: its acknowledgement, or the first who saw it.
        since: Call | None = add if add.end_ns < FOREVER else None
        for read, elements in zip(reads, present, strict=True):
            there = element in elements
            if there and read.end_ns < add.start_ns:
                return _invalid(f"{element} was read before it was added", [read, add])
            if there and remove is not None and remove.end_ns < read.start_ns:
                return _invalid(f"{element} came back after it was taken out", [remove, read])
            if there and (since is None or read.end_ns < since.end_ns):
                since = read
            must = since is not None and since.end_ns < read.start_ns
            may_be_gone = remove is not None and remove.start_ns <= read.end_ns
            if not there and must and not may_be_gone and since is not None:
                return _invalid(f"{element} was there and is lost", [since, read])
        lost += since is None
    facts = {"added": len(adds), "removed": len(removes), "never_seen": lost, "reads": len(reads)}
    if not reads or not adds:
        return Result(checker="set", valid=None, summary="nothing was added and read", facts=facts)
    return Result(
        checker="set",
        valid=True,
        summary=f"{len(adds)} added, {len(removes)} taken out, none lost, none came back; {len(reads)} reads",
        facts=facts,
    )


def _invalid(reason: str, offending: list[Call]) -> Result:
    return Result(
        checker="set",
        valid=False,
        summary=reason,
        offending=[c.told() for c in offending],
        moments=[c.start_ns for c in offending],
    )
