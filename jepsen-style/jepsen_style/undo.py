"""What must be undone when the kit dies: noted on disk before it is done, so that `run.py heal` finds it.

Each run has one file, named after its process. What is undone twice does no harm.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from nomadpy.demo.leftovers import end_processes_of, is_alive, remove_folder


class Undo(msgspec.Struct, frozen=True):
    """folder: end its processes, stopped ones too, and remove it. netns, link: remove it."""

    kind: Literal["folder", "netns", "link"]
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

    def note(self, kind: Literal["folder", "netns", "link"], name: str) -> None:
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
        if entry.kind == "folder":
            folder = Path(entry.name)
            end_processes_of(folder)
            if folder.exists():
                remove_folder(folder)
        elif entry.kind == "netns":
            if Path(f"/run/netns/{entry.name}").exists():
                subprocess.run(["ip", "netns", "del", entry.name], check=True)
        elif Path(f"/sys/class/net/{entry.name}").exists():
            subprocess.run(["ip", "link", "del", entry.name], check=True)


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
