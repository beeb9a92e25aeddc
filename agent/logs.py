"""Read a task's rotated logs as one stream: by offset from either end, once or for ever.

In:      `<task>.<stdout|stderr>.<n>` files that a supervisor or driver writes, rotates and removes meanwhile.
Out:     frames as the wire has them, or plain bytes.
Not here: writing (drivers/supervisor/rotation.py); who may read (endpoints.py); one ordinary file (files.py).
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator

from agent.drivers.supervisor.rotation import indexes
from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.models.stats import StreamFrame

FRAME_BYTES = 64 * 1024
POLL_S = 0.2
HEARTBEAT_S = 1.0
FILE_DELETED = "file deleted"
FILE_TRUNCATED = "file truncated"
KINDS = ("stdout", "stderr")
# A task can write to the folder: neither a link nor a pipe in it may lead or hold us.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class RotatedLogs:
    """Logs on this host's disk. Files are read in a thread."""

    async def frames(
        self, logs_dir: str, task: str, kind: str, *, offset: int, origin: str, follow: bool
    ) -> AsyncIterator[StreamFrame]:
        """Frames of at most FRAME_BYTES; their Offset is the position in File after Data.

        origin: "start" or "end" of all the files together; offset counts bytes from there. With `follow` for ever, an
        empty frame each second in which nothing happened. Raises InvalidRequestError, NotFoundError.
        """
        check(kind, origin, offset)
        reader = _Reader(logs_dir, f"{task}.{kind}")
        try:
            found = await asyncio.to_thread(reader.seek, origin, offset)
            if not found and not follow:
                raise NotFoundError(f'log entry for task "{task}" and log type "{kind}" not found')
            idle_s = 0.0
            while True:
                frame = await asyncio.to_thread(reader.step)
                if frame is not None:
                    idle_s = 0.0
                    yield frame
                    continue
                if not follow:
                    return
                await asyncio.sleep(POLL_S)
                idle_s += POLL_S
                if idle_s >= HEARTBEAT_S:
                    idle_s = 0.0
                    yield StreamFrame()
        finally:
            reader.close()

    async def plain(
        self, logs_dir: str, task: str, kind: str, *, offset: int, origin: str, follow: bool
    ) -> AsyncIterator[bytes]:
        """The bytes of `frames` alone."""
        async for frame in self.frames(
            logs_dir, task, kind, offset=offset, origin=origin, follow=follow
        ):
            if frame.data:
                yield frame.data


def check(kind: str, origin: str, offset: int) -> None:
    """Raise InvalidRequestError, in the wire's words, for what cannot be asked."""
    if kind not in KINDS:
        raise InvalidRequestError("must provide log type (stdout/stderr)")
    if origin not in ("start", "end"):
        raise InvalidRequestError("origin must be start or end")
    if offset < 0:
        raise InvalidRequestError("offset must not be negative")


class _Reader:
    """Walks from file to file; blocking. A file that is open is read to its end even when it has been removed."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder = folder
        self._name = name
        self._fd = -1
        self._index = -1
        self._position = 0

    def seek(self, origin: str, offset: int) -> bool:
        """Stand at the wanted byte; False when there is no file yet."""
        sizes = self._sizes()
        if not sizes:
            return False
        total = sum(size for _, size in sizes)
        left = min(offset, total) if origin == "start" else max(0, total - offset)
        for index, size in sizes:
            if left <= size and not (left == size and index != sizes[-1][0]):
                self._open(index, left)
                break
            left -= size
        return True

    def step(self) -> StreamFrame | None:
        """The next piece or event; None when there is nothing at the moment."""
        while True:
            if self._fd < 0:
                following = self._next_index()
                if following is None or not self._open(following, 0):
                    return None
            size = os.fstat(self._fd).st_size
            if size < self._position:
                self._position = 0
                return self._event(FILE_TRUNCATED)
            # Ask for the successor first: once it exists, what this file has now is all it will ever have.
            following = self._next_index()
            data = os.pread(self._fd, FRAME_BYTES, self._position)
            if data:
                self._position += len(data)
                return StreamFrame(file=self._path(), data=data, offset=self._position)
            deleted = os.fstat(self._fd).st_nlink == 0
            if following is None and not deleted:
                return None
            event = self._event(FILE_DELETED) if deleted else None
            self._close_file()
            if event is not None:
                return event

    def close(self) -> None:
        """No more is read."""
        self._close_file()

    def _event(self, kind: str) -> StreamFrame:
        return StreamFrame(file=self._path(), file_event=kind, offset=self._position)

    def _path(self) -> str:
        return f"alloc/logs/{self._name}.{self._index}"

    def _sizes(self) -> list[tuple[int, int]]:
        found = []
        for index in indexes(os.path.join(self._folder, self._name)):
            try:
                fd = self._open_fd(index)
            except OSError:
                continue
            found.append((index, os.fstat(fd).st_size))
            os.close(fd)
        return found

    def _next_index(self) -> int | None:
        """The oldest file after the one that was read last."""
        present = indexes(os.path.join(self._folder, self._name))
        later = [index for index in present if index > self._index]
        # All files may have been removed and begun anew.
        if not later and self._fd < 0 and present:
            later = present
        return later[0] if later else None

    def _open(self, index: int, position: int) -> bool:
        try:
            fd = self._open_fd(index)
        except OSError:
            return False
        self._fd, self._index, self._position = fd, index, position
        return True

    def _open_fd(self, index: int) -> int:
        folder = os.open(self._folder, _FLAGS | os.O_DIRECTORY)
        try:
            fd = os.open(f"{self._name}.{index}", _FLAGS, dir_fd=folder)
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(f"{self._name}.{index} is not a regular file")
        return fd

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
