"""What must be undone when the kit dies: noted on disk before it is done, so that `run.py heal` finds it.

Each run has one file, named after its process. What is undone twice does no harm.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from nomadpy.demo.client import until
from nomadpy.demo.leftovers import end_processes_of, is_alive, remove_folder

Kind = Literal["folder", "netns", "link", "mount", "cgroup"]


class Undo(msgspec.Struct, frozen=True):
    """folder: end its processes, stopped ones too, and the containers whose files are in it, and remove it.

    netns, link: remove it, by name. mount: unmount it, by path, though it be busy. cgroup: by its folder: end what is in
    it, frozen or not, and remove it with those below.
    """

    kind: Kind
    name: str


def undo_folder() -> Path:
    """Where the notes are."""
    return Path(tempfile.gettempdir()) / f"nomadpy-jepsen-{os.getuid()}"


class UndoList:
    """One run's notes."""

    def __init__(self, folder: Path | None = None) -> None:
        home = folder or undo_folder()
        home.mkdir(mode=0o700, exist_ok=True)
        self._file = home / f"{os.getpid()}.json"
        self._entries: list[Undo] = []

    def note(self, kind: Kind, name: str) -> None:
        """Say, before it is made, what will have to be undone."""
        self._entries.append(Undo(kind, name))
        draft = self._file.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(self._entries))
        draft.replace(self._file)

    def undo_all(self) -> None:
        """Undo everything, newest first, and forget it."""
        undo(self._entries)
        self._entries = []
        self._file.unlink(missing_ok=True)


def undo(entries: list[Undo]) -> None:
    """Undo, newest first."""
    for entry in reversed(entries):
        _UNDO[entry.kind](entry.name)


def _folder(name: str) -> None:
    folder = Path(name)
    end_processes_of(folder)
    _end_containers(folder)
    if folder.exists():
        remove_folder(folder)


def _end_containers(folder: Path) -> None:
    """End processes whose root lies in the folder: containers live on when their daemon and its shims are gone."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            mounts = (entry / "mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # Fields of a line: id, parent, device, what of it is mounted, where; the layers are told at the end.
        roots = [line for line in mounts.splitlines() if line.split(" ")[4:5] == ["/"]]
        if any(f"{folder}/" in line for line in roots):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def _netns(name: str) -> None:
    if Path(f"/run/netns/{name}").exists():
        subprocess.run(["ip", "netns", "del", name], check=True)


def _link(name: str) -> None:
    if Path(f"/sys/class/net/{name}").exists():
        subprocess.run(["ip", "link", "del", name], check=True)


def _mount(name: str) -> None:
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    for _ in [m for m in mounts if m.split(" ")[1] == name]:
        subprocess.run(["umount", "-l", name], check=True)


def _cgroup(name: str) -> None:
    top = Path(name)
    if not top.is_dir():
        return
    groups = [Path(g) for g, _, _ in os.walk(top, topdown=False)]
    for group in groups:
        for file, thawed in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (group / file).exists():
                (group / file).write_text(thawed, encoding="ascii")
        until(lambda g=group: _ended(g), seconds=10, what=f"{group} to be empty")  # type: ignore[misc]


def _ended(group: Path) -> bool:
    """Whether it is gone; a process that is on its way out keeps it busy for a moment, though it is no longer told."""
    for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


_UNDO: dict[Kind, Callable[[str], None]] = {
    "folder": _folder,
    "netns": _netns,
    "link": _link,
    "mount": _mount,
    "cgroup": _cgroup,
}


def heal(folder: Path | None = None) -> list[Undo]:
    """Undo what runs left behind whose process is gone; return it."""
    healed: list[Undo] = []
    home = folder or undo_folder()
    if not home.is_dir():
        return healed
    for file in sorted(home.glob("*.json")):
        if is_alive(int(file.stem)):
            continue
        entries = msgspec.json.decode(file.read_bytes(), type=list[Undo])
        undo(entries)
        healed += entries
        file.unlink()
    return healed
