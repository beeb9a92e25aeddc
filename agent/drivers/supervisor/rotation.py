"""Append a task's output to `<prefix>.<n>` files, bounded in number and size, whatever the disk does.

Used inside the supervisor process and by drivers that follow a daemon's log; imports must stay tiny.
"""

from __future__ import annotations

import errno
import os
import stat

PENDING_LIMIT = 256 * 1024
_NEWLINE = 0x0A
# The task can write to the folder: a link must not lead us out of it, a pipe must not hold us.
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _SAFE


class RotatingLog:
    """One output stream of one task.

    prefix: absolute path up to the index, e.g. `/a/alloc/logs/web.stdout`; links are not followed. A later attempt of the task goes on in
    the newest file. An error of the disk never reaches the caller: up to PENDING_LIMIT bytes wait for better times,
    more are dropped, counted in `lost_bytes`, and a line in the log says so.
    """

    def __init__(self, prefix: str, *, max_files: int, max_bytes: int) -> None:
        self._folder, self._name = os.path.split(prefix)
        self._folder_fd = -1
        self._max_files = max(1, max_files)
        self._max_bytes = max(1, max_bytes)
        self._fd = -1
        self._pending = bytearray()
        self._lost_now = 0
        self._at_line_start = True
        self.lost_bytes = 0
        self.last_error = ""
        self.index = _newest(prefix)
        self.size = 0
        self._open_quietly()

    @property
    def has_pending(self) -> bool:
        """Whether bytes wait for the disk; call `write(b"")` now and then to try again."""
        return bool(self._pending or self._lost_now)

    def write(self, data: bytes) -> None:
        """Append; cuts files at the end of a line where one fits."""
        if self.has_pending:
            self._flush()
        if self._lost_now or (self._pending and len(self._pending) + len(data) > PENDING_LIMIT):
            # A hole is a hole: what comes after it in the same outage is lost too, so the log has one gap.
            self._lost_now += len(data)
            self.lost_bytes += len(data)
            return
        self._pending += data
        self._flush()

    def close(self) -> None:
        """Try a last time to write what is pending."""
        self._flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
            self._folder_fd = -1

    def _flush(self) -> None:
        try:
            if self._fd < 0:
                self._open()
            while self._pending:
                self._write_some()
            if self._lost_now:
                note = f"[log: {self._lost_now} bytes lost: {self.last_error}]\n".encode()
                self._lost_now = 0
                self._pending += note
                while self._pending:
                    self._write_some()
        except OSError as error:
            self.last_error = os.strerror(error.errno or errno.EIO)

    def _write_some(self) -> None:
        room = self._max_bytes - self.size
        if room <= 0:
            self._rotate()
            return
        cut = len(self._pending)
        if cut > room:
            cut = self._pending.rfind(b"\n", 0, room) + 1
            line_fits_a_file = len(self._pending) <= self._max_bytes
            if cut == 0 and self.size > 0 and self._at_line_start and line_fits_a_file:
                self._rotate()
                return
            cut = cut or room
        written = os.write(self._fd, self._pending[:cut])
        self._at_line_start = self._pending[written - 1] == _NEWLINE
        self.size += written
        del self._pending[:written]

    def _rotate(self) -> None:
        following = self._open_index(self.index + 1)
        os.close(self._fd)
        self._fd, self.index, self.size = following, self.index + 1, os.fstat(following).st_size
        self._remove_old()

    def _open(self) -> None:
        if self._folder_fd < 0:
            os.makedirs(self._folder, exist_ok=True)
            self._folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
        self._fd = self._open_index(self.index)
        self.size = os.fstat(self._fd).st_size
        self._remove_old()

    def _open_index(self, index: int) -> int:
        fd = os.open(f"{self._name}.{index}", _FLAGS, 0o644, dir_fd=self._folder_fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", f"{self._name}.{index}")
        return fd

    def _open_quietly(self) -> None:
        try:
            self._open()
        except OSError as error:
            self.last_error = os.strerror(error.errno or errno.EIO)

    def _remove_old(self) -> None:
        for index in _indexes(os.listdir(self._folder_fd), self._name):
            if index <= self.index - self._max_files:
                try:
                    os.unlink(f"{self._name}.{index}", dir_fd=self._folder_fd)
                except FileNotFoundError:
                    continue


def indexes(prefix: str) -> list[int]:
    """The indexes of the files that exist, oldest first; [] when there is none or no directory."""
    folder, name = os.path.split(prefix)
    try:
        entries = os.listdir(folder)
    except OSError:
        return []
    return _indexes(entries, name)


def _indexes(entries: list[str], name: str) -> list[int]:
    start = name + "."
    return sorted(
        int(e[len(start) :]) for e in entries if e.startswith(start) and e[len(start) :].isdecimal()
    )


def _newest(prefix: str) -> int:
    found = indexes(prefix)
    return found[-1] if found else 0
