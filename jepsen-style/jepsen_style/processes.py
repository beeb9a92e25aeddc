"""What tasks really run on this machine, found without asking the nodes: by what stands in the processes' environments."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

_WANTED = (b"NOMAD_ALLOC_ID", b"NOMAD_JOB_ID", b"NOMAD_TASK_NAME", b"NOMAD_ALLOC_NAME")


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """The first process of a task. started: its start in clock ticks, so that a number that is used again is another."""

    alloc: str
    name: str
    job: str
    task: str
    pid: int
    started: int

    @property
    def identity(self) -> tuple[int, int]:
        """The process, and no later one of the same number."""
        return self.pid, self.started


class _Process(msgspec.Struct, frozen=True):
    live: Live
    parent: int


def live_tasks(job_prefix: str) -> list[Live]:
    """The first process of every task whose job's id begins so, by allocation, task and number.

    What tasks start inherits their environment, so a task's first process is one whose parent is not of the task.
    """
    found: dict[int, _Process] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            process = _process(entry, job_prefix.encode())
            if process is not None:
                found[process.live.pid] = process
    roots = [p.live for p in found.values() if not _same_task(found.get(p.parent), p)]
    return sorted(roots, key=lambda one: (one.alloc, one.task, one.pid))


def _same_task(parent: _Process | None, child: _Process) -> bool:
    return (
        parent is not None
        and parent.live.alloc == child.live.alloc
        and parent.live.task == child.live.task
    )


def _process(entry: Path, job_prefix: bytes) -> _Process | None:
    try:
        environment = (entry / "environ").read_bytes()
        if job_prefix not in environment:
            return None
        stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
    except (OSError, ValueError):
        # Ended while we looked.
        return None
    said = dict(pair.partition(b"=")[::2] for pair in environment.split(b"\0"))
    alloc, job, task, name = (said.get(key, b"").decode() for key in _WANTED)
    fields = stat.rpartition(")")[2].split()
    if not alloc or not job.encode().startswith(job_prefix) or fields[0] in ("Z", "X"):
        return None
    live = Live(
        alloc=alloc, name=name, job=job, task=task, pid=int(entry.name), started=int(fields[19])
    )
    return _Process(live, int(fields[1]))


def open_files(pid: int) -> int:
    """How many descriptors a process has open; 0 when it has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def mounts_below(folder: Path) -> list[str]:
    """Where something is mounted below a folder, as this process sees it."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    points = (line.split(" ")[1] for line in lines)
    return sorted(point for point in points if point.startswith(f"{folder}/"))


def control_groups(names: Iterable[str]) -> list[str]:
    """Control groups whose name begins with one of `names`, in every hierarchy."""
    wanted = tuple(names)
    if not wanted:
        return []
    found = []
    for folder, below, _ in os.walk("/sys/fs/cgroup"):
        found += [os.path.join(folder, name) for name in below if name.startswith(wanted)]
    return sorted(found)
