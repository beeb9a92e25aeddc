"""One client at one node never sees a key go back to an older version, also when it reads stale.

A node that was killed and started again may be behind at first: a stale read tells what this process has applied. So
a restart of the node begins a new session.
"""

from __future__ import annotations

from jepsen_style.checker.result import Result
from jepsen_style.history import NEMESIS, Call, History

RESTARTS = "restarted"


def check_monotonic(history: History) -> Result:
    """Check reads that succeeded, per process, node and key."""
    restarts: dict[str, list[int]] = {}
    for op in history.events(NEMESIS):
        if op.f == RESTARTS:
            restarts.setdefault(op.node, []).append(op.time)
    newest: dict[tuple[int, str, str], Call] = {}
    total = 0
    for call in history.calls("read"):
        done = call.done
        if done.type != "ok" or done.version is None:
            continue
        total += 1
        session = (done.process, done.node, done.key)
        before = newest.get(session)
        if before is not None and before.done.version is not None:
            fresh = any(before.start_ns <= t <= call.end_ns for t in restarts.get(done.node, ()))
            if done.version < before.done.version and not fresh:
                return Result(
                    checker="monotonic",
                    valid=False,
                    summary=f"{done.key} went back from version {before.done.version} to {done.version} at {done.node}",
                    offending=[before.told(), call.told()],
                    moments=[before.start_ns, call.start_ns],
                )
        newest[session] = call
    return Result(
        checker="monotonic",
        valid=True if total else None,
        summary=f"{total} reads never went back" if total else "no read succeeded",
        facts={"reads": total},
    )
