"""The disk as raft sees it: few operations, each with a stated durability, so that the simulator can cut the power.

Contents are durable after `AppendFile.sync`, names after `sync_directory`. Every method may raise OSError.
"""

from __future__ import annotations

import os
from typing import Protocol


class AppendFile(Protocol):
    """A file open for appending."""

    @property
    def size(self) -> int:
        """Bytes in the file, unsynced ones included."""
        ...

    def write(self, data: bytes) -> None:
        """Append all of `data`."""
        ...

    def sync(self) -> None:
        """Make the contents durable. After an error nothing is known of them: do not retry, stop."""
        ...

    def close(self) -> None:
        """Give the handle back; makes nothing durable."""
        ...


class Files(Protocol):
    """A file system."""

    def make_directory(self, path: str) -> None:
        """Create the directory and its parents, durably; fine when it exists."""
        ...

    def list(self, directory: str) -> list[str]:
        """Sorted names; empty when there is no such directory."""
        ...

    def size(self, path: str) -> int:
        """Bytes in the file; FileNotFoundError."""
        ...

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        """Up to `limit` bytes (all when negative) from `offset`; FileNotFoundError."""
        ...

    def append(self, path: str) -> AppendFile:
        """Open for appending, created when missing."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, atomically replacing `target`."""
        ...

    def remove(self, path: str) -> None:
        """Remove a name; fine when there is none."""
        ...

    def truncate(self, path: str, size: int) -> None:
        """Cut the file, durably."""
        ...

    def write_again(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite bytes with the same bytes, durably, for when it is not known whether they reached the disk."""
        ...

    def note(self, path: str, data: bytes) -> None:
        """Write over the beginning of a file in place, made when missing; durable at some time, or never."""
        ...

    def sync_directory(self, directory: str) -> None:
        """Make the names in the directory durable."""
        ...


def write_atomically(files: Files, path: str, data: bytes, *, fsync: bool) -> None:
    """Replace the file's contents so that a crash leaves the old or the new, never a mixture."""
    staged = path + ".tmp"
    files.remove(staged)
    file = files.append(staged)
    try:
        file.write(data)
        if fsync:
            file.sync()
    finally:
        file.close()
    files.rename(staged, path)
    if fsync:
        files.sync_directory(os.path.dirname(path))


class RealFiles:
    """The operating system's files; new ones are readable by their owner only."""

    def make_directory(self, path: str) -> None:
        """Create the directory and its parents, durably; fine when it exists."""
        path = os.path.abspath(path)
        if os.path.isdir(path):
            return
        above = os.path.dirname(path)
        if not os.path.exists(above):
            self.make_directory(above)
        os.mkdir(path, mode=0o700)
        # Each name is in the directory above it, and a name that is lost takes everything below with it.
        self.sync_directory(above)

    def list(self, directory: str) -> list[str]:
        """Sorted names; empty when there is no such directory."""
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []

    def size(self, path: str) -> int:
        """Bytes in the file."""
        return os.stat(path).st_size

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        """Up to `limit` bytes from `offset`."""
        with open(path, "rb") as file:
            if offset:
                file.seek(offset)
            return file.read(limit)

    def append(self, path: str) -> AppendFile:
        """Open for appending, created when missing."""
        return _RealAppendFile(path)

    def rename(self, source: str, target: str) -> None:
        """Give a file another name."""
        os.replace(source, target)

    def remove(self, path: str) -> None:
        """Remove a name; fine when there is none."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return

    def truncate(self, path: str, size: int) -> None:
        """Cut the file, durably."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write_again(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite bytes with the same bytes, durably."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            rest = memoryview(data)
            while rest:
                written = os.pwrite(descriptor, rest, offset)
                offset += written
                rest = rest[written:]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def note(self, path: str, data: bytes) -> None:
        """Write over the beginning of a file in place; durable at some time, or never."""
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, data, 0)
        finally:
            os.close(descriptor)

    def sync_directory(self, directory: str) -> None:
        """Make the names in the directory durable."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _RealAppendFile:
    def __init__(self, path: str) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        self._closed = False

    @property
    def size(self) -> int:
        return self._size

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.write(self._descriptor, rest)
            self._size += written
            rest = rest[written:]

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._descriptor)
