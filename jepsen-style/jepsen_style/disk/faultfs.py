"""A file system that fails on command: python -m jepsen_style.disk.faultfs BACKING MOUNT SOCKET [--seed N] [--map].

It passes everything through to BACKING/tree. Over the unix socket it takes one JSON object a line and answers one:

    {"do": "fault", "operations": ["write", "fsync"], "error": "EIO", "pattern": "segment", "probability": 0.1}
    {"do": "fault", "operations": ["fsync"], "delay_s": 0.5}        a slow disk
    {"do": "fault", "operations": ["fsync", "fsyncdir"], "lie": true}      a disk that says yes and forgets
    {"do": "space", "free": 4096}                                   a disk that is nearly full; null: as it is
    {"do": "clear"}                                                 no faults any more; what was lied about is written now
    {"do": "cut", "torn": 0.5}                                      the power goes: see unsynced.py; all operations fail from then on
    {"do": "state"}                                                 what is not durable, and counts

The kernel caches nothing (direct_io), so that what a process wrote is here. A process that maps files to share them
(SQLite's index of its log) needs --map; then kill it before the power is cut.
"""

from __future__ import annotations

import argparse
import errno
import os
import socket
import threading
from pathlib import Path
from typing import Any, Literal

import mfusepy  # type: ignore[import-untyped]
import msgspec

from jepsen_style.disk.rules import Rule, Rules, Space
from jepsen_style.disk.unsynced import Unsynced
from nomadpy.entropy import SeededEntropy

TREE = "tree"
SPARE = "spare"

_STATUS = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino", "st_blocks")
_SPACE = (
    "f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize", "f_namemax",
)  # fmt: skip


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What comes over the socket."""

    do: Literal["fault", "space", "clear", "cut", "state"]
    operations: list[str] = []
    pattern: str = ""
    probability: float = 1.0
    error: str = ""
    delay_s: float = 0.0
    lie: bool = False
    free: int | None = None
    torn: float = 0.0


class FaultFS(mfusepy.Operations):  # type: ignore[misc]
    """The operations; file handles are those of the backing files. Called by many threads."""

    use_ns = True

    def __init__(self, backing: Path, seed: str) -> None:
        self.tree = backing / TREE
        spare = backing / SPARE
        for folder in (self.tree, spare):
            folder.mkdir(parents=True, exist_ok=True)
        self.rules = Rules(SeededEntropy(f"{seed}/rules"))
        self._chance = SeededEntropy(f"{seed}/cut")
        self._space = Space()
        self._unsynced = Unsynced(self.tree, spare)
        self._lock = threading.RLock()
        self._off = False

    # -- commands ---------------------------------------------------------------------------------------------

    def obey(self, command: Command) -> dict[str, Any]:
        """Do what the kit asks. Raises ValueError when it makes no sense."""
        if command.do == "fault":
            rule = Rule(
                operations=command.operations,
                pattern=command.pattern,
                probability=command.probability,
                error=command.error,
                delay_s=command.delay_s,
                lie=command.lie,
            )
            self.rules.add(rule)
        elif command.do == "clear":
            lied = self.rules.clear()
            with self._lock:
                self._space.free = None
                if lied:
                    self._unsynced.all_synced()
        elif command.do == "space":
            with self._lock:
                self._space.free = command.free
        elif command.do == "cut":
            with self._lock:
                self._off = True
                lost = self._unsynced.cut(self._chance, command.torn)
            self.rules.clear()
            return {"files": lost.files, "sectors": lost.sectors, "names": lost.names}
        with self._lock:
            return {
                "files": self._unsynced.files,
                "names": self._unsynced.names,
                "counts": dict(self.rules.counts),
                "free": self._space.free,
            }

    def _meet(self, operation: str, path: str) -> bool:
        self._powered()
        lie = self.rules.meet(operation, path)
        self._powered()
        return lie

    def _powered(self) -> None:
        if self._off:
            raise OSError(errno.EIO, "the power is off")

    def _real(self, path: str) -> str:
        return f"{self.tree}{path}"

    # -- reading ----------------------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        self._powered()
        status = os.lstat(self._real(path)) if fh is None else os.fstat(fh)
        found = {name: getattr(status, name) for name in _STATUS}
        for name in ("atime", "mtime", "ctime"):
            found[f"st_{name}"] = getattr(status, f"st_{name}_ns")
        return found

    def readdir(self, path: str, fh: int) -> list[str]:  # noqa: ARG002
        self._powered()
        return [".", "..", *os.listdir(self._real(path))]

    def readlink(self, path: str) -> str:
        return os.readlink(self._real(path))

    def statfs(self, path: str) -> dict[str, int]:  # noqa: ARG002
        status = os.statvfs(self.tree)
        found = {name: getattr(status, name) for name in _SPACE}
        with self._lock:
            free = self._space.free
        if free is not None:
            found["f_bavail"] = found["f_bfree"] = free // status.f_frsize
        return found

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._meet("read", path)
        return os.pread(fh, size, offset)

    def open(self, path: str, flags: int) -> int:
        self._meet("open", path)
        access = flags & os.O_ACCMODE
        # Where a write belongs is the kernel's business; and old bytes must be readable to be put back.
        if access != os.O_RDONLY:
            access = os.O_RDWR
        handle = os.open(self._real(path), access | os.O_CLOEXEC)
        if flags & os.O_TRUNC:
            with self._lock:
                self._resize(handle, 0)
        return handle

    def release(self, path: str, fh: int) -> int:  # noqa: ARG002
        os.close(fh)
        return 0

    def flush(self, path: str, fh: int) -> int:  # noqa: ARG002
        return 0

    def opendir(self, path: str) -> int:  # noqa: ARG002
        self._powered()
        return 0

    def releasedir(self, path: str, fh: int) -> int:  # noqa: ARG002
        return 0

    # -- bytes ------------------------------------------------------------------------------------------------

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._meet("write", path)
        with self._lock:
            self._powered()
            grows = max(0, offset + len(data) - os.fstat(fh).st_size)
            room = self._space.take(grows)
            data = data[: len(data) - (grows - room)]
            self._unsynced.before_write(fh, offset, len(data))
            return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._meet("truncate", path)
        with self._lock:
            self._powered()
            handle = os.open(self._real(path), os.O_RDWR | os.O_CLOEXEC) if fh is None else fh
            try:
                self._resize(handle, length)
            finally:
                if fh is None:
                    os.close(handle)
        return 0

    def _resize(self, handle: int, length: int) -> None:
        self._space.give(os.fstat(handle).st_size - length)
        self._unsynced.before_truncate(handle, length)
        os.ftruncate(handle, length)

    def fsync(self, path: str, datasync: int, fh: int) -> int:  # noqa: ARG002
        if not self._meet("fsync", path):
            with self._lock:
                self._powered()
                self._unsynced.file_synced(fh)
        return 0

    # -- names ------------------------------------------------------------------------------------------------

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._meet("create", path)
        flags = fi if isinstance(fi, int) else 0
        with self._lock:
            self._powered()
            if self._space.free == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return self._unsynced.create(path, (flags & os.O_EXCL) | os.O_RDWR, mode)

    def rename(self, old: str, new: str) -> int:
        self._meet("rename", new)
        with self._lock:
            self._powered()
            self._unsynced.rename(old, new)
        return 0

    def unlink(self, path: str) -> int:
        self._meet("unlink", path)
        with self._lock:
            self._powered()
            size = os.lstat(self._real(path)).st_size
            self._unsynced.unlink(path)
            self._space.give(size)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._meet("mkdir", path)
        with self._lock:
            self._powered()
            self._unsynced.mkdir(path, mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._meet("rmdir", path)
        with self._lock:
            self._powered()
            self._unsynced.rmdir(path)
        return 0

    def symlink(self, target: str, source: str) -> int:
        with self._lock:
            self._powered()
            self._unsynced.symlink(target, source)
        return 0

    def link(self, target: str, source: str) -> int:
        with self._lock:
            self._powered()
            self._unsynced.link(target, source)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:  # noqa: ARG002
        if not self._meet("fsyncdir", path):
            with self._lock:
                self._powered()
                self._unsynced.directory_synced(path)
        return 0

    # -- what a power cut leaves alone ------------------------------------------------------------------------

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self._real(path), uid, gid, follow_symlinks=False)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        if times is None:
            os.utime(self._real(path), follow_symlinks=False)
        else:
            os.utime(self._real(path), ns=times, follow_symlinks=False)
        return 0


def _control(files: FaultFS, listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                try:
                    answer = files.obey(msgspec.json.decode(line, type=Command))
                except (ValueError, OSError, msgspec.MsgspecError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                stream.write(msgspec.json.encode(answer) + b"\n")
                stream.flush()


def main() -> None:
    """Serve until unmounted."""
    parser = argparse.ArgumentParser(prog="faultfs")
    parser.add_argument("backing", type=Path)
    parser.add_argument("mount", type=Path)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--map", action="store_true", help="let processes map files to share them")
    chosen = parser.parse_args()
    files = FaultFS(chosen.backing.resolve(), chosen.seed)
    chosen.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(chosen.socket))
    listener.listen(8)
    threading.Thread(target=_control, args=(files, listener), name="control", daemon=True).start()
    # A process that outlives its mount must not find the old names in the kernel's memory.
    options: dict[str, Any] = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
    # Operations that wait keep their thread.
    options["max_threads"] = 64
    if os.geteuid() == 0:
        options["allow_other"] = True
    mfusepy.FUSE(
        files,
        str(chosen.mount),
        foreground=True,
        fsname="faultfs",
        direct_io=not chosen.map,
        default_permissions=True,
        **options,
    )


if __name__ == "__main__":
    main()
