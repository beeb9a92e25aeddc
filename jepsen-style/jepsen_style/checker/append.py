"""Lists that only grow: nothing lost, nothing twice, nothing out of the order of time."""

from __future__ import annotations

from jepsen_style.checker.result import Result
from jepsen_style.history import Call, History, by_key


def check_append(history: History) -> Result:
    """`append` of unique elements, `read` of the list, per key."""
    appended = perhaps = reads = 0
    for key, calls in by_key(history.calls("append", "read")):
        fault = _fault(calls)
        if fault is not None:
            reason, offending = fault
            return Result(
                checker="append",
                valid=False,
                summary=f"{key}: {reason}",
                offending=[c.told() for c in offending],
                moments=[c.start_ns for c in offending],
            )
        for call in calls:
            ok = call.done.type == "ok"
            reads += call.invoke.f == "read" and ok
            appended += call.invoke.f == "append" and ok
            perhaps += call.invoke.f == "append" and call.done.type == "info"
    facts = {"appended": appended, "perhaps": perhaps, "reads": reads}
    if not (appended and reads):
        return Result(
            checker="append", valid=None, summary="nothing was appended and read", facts=facts
        )
    return Result(
        checker="append",
        valid=True,
        summary=f"{appended} elements, none lost, none twice, in order; {reads} reads",
        facts=facts,
    )


def _fault(calls: list[Call]) -> tuple[str, list[Call]] | None:
    reads = [c for c in calls if c.invoke.f == "read" and c.done.type == "ok"]
    appends = {str(c.invoke.value): c for c in calls if c.invoke.f == "append"}
    if not reads:
        return None
    longest = max(reads, key=lambda c: len(c.done.value))
    order = [str(e) for e in longest.done.value]
    places = {element: place for place, element in enumerate(order)}
    if len(places) < len(order):
        twice = next(e for e in order if order.count(e) > 1)
        return f"{twice} is there twice", [*_known(appends, twice), longest]
    for element in order:
        call = appends.get(element)
        if call is None or call.done.type == "fail":
            what = "was never appended" if call is None else "was refused"
            return f"{element} {what} and is there", [*_known(appends, element), longest]
    for read in reads:
        mine = [str(e) for e in read.done.value]
        if mine != order[: len(mine)]:
            return "two reads disagree about the order", [read, longest]
    # Ends before the beginning of a read: it must hold them. In order of their ends, the furthest place so far.
    ended = sorted((c for c in appends.values() if c.done.type == "ok"), key=lambda c: c.end_ns)
    for call in ended:
        if str(call.invoke.value) not in places and longest.start_ns > call.end_ns:
            return f"{call.invoke.value} was acknowledged and is lost", [call, longest]
    return _missing(reads, ended, places) or _disorder(appends, order)


def _known(appends: dict[str, Call], element: str) -> list[Call]:
    return [appends[element]] if element in appends else []


def _missing(
    reads: list[Call], ended: list[Call], places: dict[str, int]
) -> tuple[str, list[Call]] | None:
    position = 0
    furthest: Call | None = None
    for read in sorted(reads, key=lambda c: c.start_ns):
        while position < len(ended) and ended[position].end_ns < read.start_ns:
            call = ended[position]
            position += 1
            if str(call.invoke.value) not in places:
                return f"{call.invoke.value} was acknowledged and is lost", [call, read]
            if (
                furthest is None
                or places[str(call.invoke.value)] > places[str(furthest.invoke.value)]
            ):
                furthest = call
        if furthest is not None and len(read.done.value) <= places[str(furthest.invoke.value)]:
            return (
                f"{furthest.invoke.value} was acknowledged before a read that lacks it",
                [furthest, read],
            )
    return None


def _disorder(appends: dict[str, Call], order: list[str]) -> tuple[str, list[Call]] | None:
    # From the end of the list: the earliest end among the later elements must not be before an element's beginning.
    earliest: Call | None = None
    for element in reversed(order):
        call = appends[element]
        if earliest is not None and earliest.end_ns < call.start_ns:
            return (
                f"{element} stands before {earliest.invoke.value}, which was acknowledged before it was asked for",
                [earliest, call],
            )
        if call.done.type == "ok" and (earliest is None or call.end_ns < earliest.end_ns):
            earliest = call
    return None
