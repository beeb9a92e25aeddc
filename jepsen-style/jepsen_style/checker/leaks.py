"""After everything was stopped and collected, agents hold no more than at the beginning."""

from __future__ import annotations

import msgspec

from jepsen_style.checker.result import Result
from jepsen_style.history import History

MORE_FILES = 12
"""So many more open files than at the start are connections and the like."""


class Remains(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to tasks and is there. files: how many each agent has open. seconds: waited for the rest to go."""

    processes: list[str] = []
    directories: list[str] = []
    mounts: list[str] = []
    groups: list[str] = []
    allocations: list[str] = []
    files: dict[str, int] = {}
    seconds: float = 0.0

    @property
    def kinds(self) -> dict[str, list[str]]:
        """All that should be gone, by kind."""
        return {
            "processes": self.processes,
            "allocation directories": self.directories,
            "mounts": self.mounts,
            "control groups": self.groups,
            "allocations": self.allocations,
        }

    @property
    def is_clean(self) -> bool:
        """Whether nothing of it is there."""
        return not any(self.kinds.values())


def check_leaks(history: History) -> Result:
    """`measure` at the start, `drain` at the end (values: Remains), `run` of jobs in between."""
    started = [c for c in history.calls("measure") if c.done.type == "ok"]
    drained = history.calls("drain")
    jobs = sum(c.done.type == "ok" for c in history.calls("run"))
    facts: dict[str, object] = {"jobs": jobs}
    if not (started and drained and jobs):
        return Result(
            checker="leaks", valid=None, summary="nothing ran, or it was not ended", facts=facts
        )
    last = drained[0]
    moments = [last.start_ns]
    if last.done.type != "ok":
        return Result(
            checker="leaks",
            valid=None,
            summary="what is left could not be read",
            offending=[last.told()],
            moments=moments,
            facts=facts,
        )
    before = msgspec.convert(started[0].done.value, Remains)
    after = msgspec.convert(last.done.value, Remains)
    facts |= {"files_before": before.files, "files_after": after.files}
    left = [f"{kind}: {one}" for kind, all_of in after.kinds.items() for one in all_of]
    left += [
        f"{agent} has {count} files open, {before.files.get(agent, 0)} at the start"
        for agent, count in after.files.items()
        if count > before.files.get(agent, 0) + MORE_FILES
    ]
    if left:
        return Result(
            checker="leaks",
            valid=False,
            summary=f"{len(left)} things were left {after.seconds:.0f} s after all jobs had been purged",
            offending=left[:30],
            moments=moments,
            facts=facts,
        )
    return Result(
        checker="leaks",
        valid=True,
        summary=f"nothing was left of {jobs} jobs {after.seconds:.1f} s after the last was purged",
        facts=facts,
    )
