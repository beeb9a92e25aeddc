"""Disks of the kit's own: a mounted faultfs for every server, commanded over its socket."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from jepsen_style.cluster import OwnCluster
from jepsen_style.equipment import Equipment
from jepsen_style.undo import UndoList
from nomadpy.demo.client import until

KIT = Path(__file__).resolve().parents[2]
READY_S = 20.0
ANSWER_S = 30.0


class Mount:
    """One faultfs: a process, a folder where it is mounted, and a folder behind it that outlives both."""

    def __init__(self, folder: Path, undo: UndoList, seed: str = "1") -> None:
        self.folder = folder
        self.mounted_at = folder / "mount"
        self.backing = folder / "backing"
        self._socket = folder / "control"
        self._undo = undo
        self._seed = seed
        self._times = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def up(self) -> bool:
        """Whether it serves."""
        return self._process is not None and self._process.poll() is None

    def mount(self) -> None:
        """Mount it; nothing when it is. Raises TimeoutError, RuntimeError with its last words."""
        if self.up:
            return
        if self._times == 0:
            self.mounted_at.mkdir(parents=True)
            self._undo.note("mount", str(self.mounted_at))
        self._times += 1
        log_file = self.folder / "faultfs.log"
        with log_file.open("ab") as log:
            places = [str(self.backing), str(self.mounted_at), str(self._socket)]
            seed = ["--seed", f"{self._seed}/{self._times}"]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jepsen_style.disk.faultfs", *places, *seed],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(KIT)},
                start_new_session=True,
            )

        def ready() -> bool:
            if not self.up:
                raise RuntimeError(f"faultfs ended: {log_file.read_text(encoding='utf-8')}")
            return self._mounted()

        until(ready, seconds=READY_S, what=f"{self.mounted_at} to be mounted")

    def _mounted(self) -> bool:
        # Not by looking at it: without power it answers nobody.
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        return any(line.split(" ")[1] == str(self.mounted_at) for line in mounts)

    def unmount(self) -> None:
        """Unmount it and wait for its process; nothing when it is not mounted."""
        busy = False
        if self._mounted():
            done = subprocess.run(["umount", str(self.mounted_at)], capture_output=True)
            busy = bool(done.returncode)
        if busy:
            # Somebody still holds a file of it; with its process gone nobody is answered any more.
            subprocess.run(["umount", "-l", str(self.mounted_at)], check=True)
        if self._process is not None:
            if busy:
                self._process.kill()
            try:
                self._process.wait(READY_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One command of faultfs.py. Raises RuntimeError when it is refused, OSError when nobody answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(str(self._socket))
            connection.sendall(msgspec.json.encode({"do": do, **arguments}) + b"\n")
            with connection.makefile("rb") as stream:
                answer: dict[str, Any] = msgspec.json.decode(stream.readline())
        if "error" in answer:
            raise RuntimeError(f"faultfs: {answer['error']}")
        return answer

    def cut(self, torn: float) -> dict[str, Any]:
        """The power goes and comes back: what was not durable is gone, and it is mounted anew. Its user must be dead."""
        lost = self.ask("cut", torn=torn)
        self.unmount()
        self.mount()
        return lost


class Disks(Equipment):
    """Every server's data directory lies on a faultfs of its own."""

    need: ClassVar[str] = "disk"
    about: ClassVar[str] = "each server's data on a file system that fails on command"

    def __init__(self, folder: Path, undo: UndoList) -> None:
        super().__init__(folder, undo)
        self.mounts: dict[str, Mount] = {}

    @classmethod
    def missing(cls) -> str:
        if os.geteuid() != 0:
            return "needs root"
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "needs /dev/fuse"
        if importlib.util.find_spec("mfusepy") is None:
            return "needs the Python package mfusepy"
        try:
            # It looks for libfuse3 when it is imported.
            importlib.import_module("mfusepy")
        except (OSError, AttributeError, ImportError):
            return "needs libfuse3 (Debian: libfuse3-3, fuse3)"
        return ""

    def up(self, cluster: OwnCluster) -> None:
        for name in cluster.names:
            mount = self.mounts[name] = Mount(self.folder / name, self.undo, seed=name)
            mount.mount()

    def data_dir(self, name: str, folder: Path) -> Path:
        return self.mounts[name].mounted_at if name in self.mounts else folder

    def before_start(self, name: str) -> None:
        if name in self.mounts:
            self.mounts[name].mount()

    def heal(self) -> None:
        for mount in self.mounts.values():
            if mount.up:
                mount.ask("clear")

    def down(self) -> None:
        for mount in self.mounts.values():
            mount.unmount()
