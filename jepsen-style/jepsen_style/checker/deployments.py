"""Every deployment ends in time, ends once, and as it deserves: what cannot run is never called successful."""

from __future__ import annotations

import msgspec

from jepsen_style.checker.result import Result
from jepsen_style.history import Call, History

ENDED = ("successful", "failed", "cancelled")

Fault = tuple[str, list[str], list[int]]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment. version: the job's JobModifyIndex that it is for."""

    id: str
    job: str
    version: int
    status: str
    description: str = ""


class Deployments(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. seconds: waited for their ends."""

    rows: list[Row]
    seconds: float = 0.0


def check_deployments(history: History) -> Result:
    """`run` (value: {"good": whether its tasks can run}, version: JobModifyIndex) by job, `look`, `settle` (values: Deployments)."""
    runs = {
        c.done.version: c
        for c in history.calls("run")
        if c.done.type == "ok" and c.done.version is not None
    }
    seen = [c for c in history.calls("look", "settle") if c.done.type == "ok"]
    ends: dict[str, tuple[Row, Call]] = {}
    fault: Fault | None = None
    for call in seen:
        for row in msgspec.convert(call.done.value, Deployments).rows:
            fault = fault or _end(row, call, ends, runs)
    settled = [c for c in seen if c.invoke.f == "settle"]
    if settled and fault is None:
        fault = _open(settled[0], runs)
    statuses = [row.status for row, _ in ends.values()]
    facts = {status: statuses.count(status) for status in ENDED}
    if fault is not None:
        reason, offending, moments = fault
        return Result(
            checker="deploy", valid=False, summary=reason, offending=offending, moments=moments, facts=facts
        )  # fmt: skip
    if not settled or not facts["successful"]:
        return Result(
            checker="deploy", valid=None, summary="no deployment was successful", facts=facts
        )
    told = ", ".join(f"{count} {status}" for status, count in facts.items())
    return Result(
        checker="deploy", valid=True, summary=f"every deployment ended, once: {told}", facts=facts
    )


def _told(row: Row, call: Call) -> str:
    when = f"{call.start_ns / 1e9:9.4f} .. {call.done.time / 1e9:9.4f} s"
    return f"{when}  deployment {row.id[:8]} of {row.job} at {row.version}: {row.status} ({row.description})"


def _end(
    row: Row, call: Call, ends: dict[str, tuple[Row, Call]], runs: dict[int, Call]
) -> Fault | None:
    known = ends.get(row.id)
    if (
        known is not None
        and known[0].status != row.status
        # Reads at the same time may see one the state before the other.
        and (known[1].end_ns < call.start_ns or row.status in ENDED)
    ):
        told = [_told(*known), _told(row, call)]
        return "a deployment that had ended changed", told, [known[1].start_ns, call.start_ns]
    if row.status not in ENDED:
        return None
    if known is None or call.end_ns < known[1].end_ns:
        ends[row.id] = (row, call)
    run = runs.get(row.version)
    if row.status == "successful" and run is not None and not run.invoke.value["good"]:
        told = [run.told(), _told(row, call)]
        return "a deployment of what cannot run was successful", told, [run.start_ns, call.start_ns]
    return None


def _open(settle: Call, runs: dict[int, Call]) -> Fault | None:
    found = msgspec.convert(settle.done.value, Deployments)
    for row in found.rows:
        if row.status not in ENDED:
            reason = f"a deployment is {row.status} {found.seconds:.0f} s after the end"
            return reason, [_told(row, settle)], [settle.start_ns]
        run = runs.get(row.version)
        # Only what began when all faults were over must go well.
        calm = run is not None and run.invoke.phase == "liveness"
        if run is not None and calm and run.invoke.value["good"] and row.status == "failed":
            told = [run.told(), _told(row, settle)]
            return "a deployment of sound tasks failed without a fault", told, [run.start_ns]
    return None
