"""Control groups of the kit's own, one for each node, in the old form of the kernel and in the new. Needs root.

In the old form each controller has a tree of its own; in the new there is one tree for all.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

CONTROLLERS = ("cpu", "memory", "pids")
PERIOD_US = 100_000

_MEBIBYTE = 1 << 20


class Group(ABC):
    """What one node may use. Nothing is limited at first, and None takes a limit away."""

    folders: list[Path]
    """Its folders, one for each tree it is in."""

    def make(self) -> None:
        """Make its folders. Raises OSError."""
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)

    def members(self) -> list[int]:
        """The processes in it."""
        return [int(pid) for pid in _read(self.folders[0] / "cgroup.procs").split()]

    def remove(self) -> None:
        """Remove its folders; nothing may be in them any more. Raises OSError."""
        for folder in self.folders:
            if folder.is_dir():
                folder.rmdir()

    def inside(self) -> list[str]:
        """What to put before a command that is to run in it."""
        files = " ".join(f"'{folder / 'cgroup.procs'}'" for folder in self.folders)
        join = f'for file in {files}; do echo $$ >"$file" || exit 1; done; exec "$@"'
        return ["sh", "-c", join, "sh"]

    @abstractmethod
    def limit_cpu(self, share: float | None) -> None:
        """How much of one processor it may have, 0 to 1 or more."""

    @abstractmethod
    def choke_memory(self) -> None:
        """Allow no more memory than it cannot do without now: its next allocation kills one of it."""

    @abstractmethod
    def hold_memory(self) -> None:
        """Allow no more memory than it cannot do without now: who allocates waits, and nothing is killed."""

    @abstractmethod
    def free_memory(self) -> None:
        """Take both limits of memory away."""

    @abstractmethod
    def killed_for_memory(self) -> int:
        """How many processes of it the kernel has killed."""

    @abstractmethod
    def limit_tasks(self, *, more: int | None) -> None:
        """How many more processes and threads than now it may have."""

    def heal(self) -> None:
        """Take every limit away."""
        self.limit_cpu(None)
        self.free_memory()
        self.limit_tasks(more=None)


class OldGroup(Group):
    """One folder in the tree of each controller."""

    def __init__(self, trees: Mapping[str, Path], name: str) -> None:
        """trees: where each controller's is mounted; two may share one."""
        self._of = {controller: trees[controller] / name for controller in CONTROLLERS}
        self.folders = list(dict.fromkeys(self._of.values()))

    def limit_cpu(self, share: float | None) -> None:
        quota = -1 if share is None else int(share * PERIOD_US)
        _write(self._of["cpu"] / "cpu.cfs_period_us", PERIOD_US)
        _write(self._of["cpu"] / "cpu.cfs_quota_us", quota)

    def choke_memory(self) -> None:
        memory = self._of["memory"]
        _write(memory / "memory.swappiness", 0)
        needed = _stat(memory / "memory.stat", "total_rss")
        # The kernel refuses a limit that it cannot bring the use below; a little more will do then.
        for spare in (0, 1, 2, 4, 8, 16, 32):
            try:
                _write(memory / "memory.limit_in_bytes", needed + spare * _MEBIBYTE)
            except OSError:
                continue
            return
        raise RuntimeError(f"{memory}: the kernel does not accept a limit near {needed} bytes")

    def hold_memory(self) -> None:
        _write(self._of["memory"] / "memory.oom_control", 1)
        self.choke_memory()

    def free_memory(self) -> None:
        memory = self._of["memory"]
        _write(memory / "memory.limit_in_bytes", -1)
        _write(memory / "memory.oom_control", 0)

    def killed_for_memory(self) -> int:
        return _stat(self._of["memory"] / "memory.oom_control", "oom_kill")

    def limit_tasks(self, *, more: int | None) -> None:
        _limit_tasks(self._of["pids"], more)


class NewGroup(Group):
    """One folder."""

    def __init__(self, tree: Path, name: str) -> None:
        """tree: where it is mounted. Its folder and those above it must hand the controllers down: see `hand_down`."""
        self._folder = tree / name
        self.folders = [self._folder]

    def limit_cpu(self, share: float | None) -> None:
        quota = "max" if share is None else int(share * PERIOD_US)
        _write(self._folder / "cpu.max", f"{quota} {PERIOD_US}")

    def choke_memory(self) -> None:
        self._forbid_swap()
        _write(self._folder / "memory.max", self._needed())

    def hold_memory(self) -> None:
        # Above this the kernel makes who allocates wait, longer the more is wanted.
        self._forbid_swap()
        _write(self._folder / "memory.high", self._needed())

    def free_memory(self) -> None:
        _write(self._folder / "memory.max", "max")
        _write(self._folder / "memory.high", "max")

    def killed_for_memory(self) -> int:
        return _stat(self._folder / "memory.events", "oom_kill")

    def limit_tasks(self, *, more: int | None) -> None:
        _limit_tasks(self._folder, more)

    def _needed(self) -> int:
        return _stat(self._folder / "memory.stat", "anon")

    def _forbid_swap(self) -> None:
        swap = self._folder / "memory.swap.max"
        if swap.exists():
            _write(swap, 0)


class Trees:
    """What this machine mounts: trees of single controllers, and the one of the new form."""

    def __init__(self, mounts: str) -> None:
        """mounts: as /proc/self/mounts has them."""
        self.old: dict[str, Path] = {}
        self.new: Path | None = None
        for line in mounts.splitlines():
            _, where, kind, options, *_ = line.split(" ")
            if kind == "cgroup2":
                self.new = Path(where)
            elif kind == "cgroup":
                self.old.update({o: Path(where) for o in options.split(",") if o in CONTROLLERS})

    @property
    def is_old(self) -> bool:
        """Whether the controllers are in trees of the old form."""
        return set(self.old) == set(CONTROLLERS)

    def missing(self) -> str:
        """Why groups cannot be had; "" when they can, as far as reading tells."""
        if self.is_old:
            return ""
        if self.new is None:
            return "needs control groups with " + ", ".join(CONTROLLERS)
        there = _read(self.new / "cgroup.controllers").split()
        lacking = [c for c in CONTROLLERS if c not in there]
        return f"needs the control group controllers {', '.join(lacking)}" if lacking else ""

    def tops(self, tag: str) -> list[Path]:
        """The folders that hold all groups of a tag."""
        if self.is_old:
            return list(dict.fromkeys(self.old[c] / tag for c in CONTROLLERS))
        assert self.new is not None
        return [self.new / tag]

    def group(self, tag: str, name: str) -> Group:
        """A group that is yet to be made."""
        if self.is_old:
            return OldGroup(self.old, f"{tag}/{name}")
        assert self.new is not None
        return NewGroup(self.new, f"{tag}/{name}")

    def prepare(self, tag: str) -> None:
        """Make the folders for a tag, and let the groups below have the controllers. Raises OSError."""
        for top in self.tops(tag):
            top.mkdir(exist_ok=True)
        if not self.is_old:
            assert self.new is not None
            hand_down((self.new, self.new / tag))


def machine_trees() -> Trees:
    """What is mounted here."""
    return Trees(_read(Path("/proc/self/mounts")))


def hand_down(folders: Iterable[Path]) -> None:
    """Let the groups below have the controllers. Raises OSError, EBUSY where a folder of the new form holds processes itself."""
    for folder in folders:
        _write(folder / "cgroup.subtree_control", " ".join(f"+{c}" for c in CONTROLLERS))


def _limit_tasks(folder: Path, more: int | None) -> None:
    now = int(_read(folder / "pids.current"))
    _write(folder / "pids.max", "max" if more is None else now + more)


def _stat(file: Path, key: str) -> int:
    for line in _read(file).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    raise RuntimeError(f"{file} does not tell {key}")


def _read(file: Path) -> str:
    return file.read_text(encoding="ascii", errors="replace")


def _write(file: Path, value: object) -> None:
    # Never made anew: what is not there is a file that this kernel does not have.
    descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(descriptor, f"{value}\n".encode())
    finally:
        os.close(descriptor)
