"""A disk in memory that forgets at a power cut what was not synced, can fail, and can lie.

Contents survive a cut up to the last sync plus a random part of what was appended since; names up to the last sync of
their directory plus a random first part of the changes since, in the order they were made.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from nomadpy.entropy import Entropy


class _Content:
    """A file without its name."""

    __slots__ = ("data", "durable")

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = b""


_Names = dict[str, _Content]


class MemoryFiles:
    """`raft.files.Files` of one boot of one host. After `power_cut` or `killed` this one is dead; use what they return.

    lying: sync says yes and does nothing.
    """

    def __init__(self, *, lying: bool = False) -> None:
        self.lying = lying
        self.syncs = 0
        self._names: _Names = {}
        self._durable_names: _Names = {}
        self._name_changes: list[tuple[str, _Content | None]] = []
        self._directories: dict[str, None] = {}
        self._dead = False
        self._faults: list[tuple[str, Callable[[str], bool], int]] = []

    # ---- faults

    def fail(
        self, operation: str, error: int = errno.EIO, *, where: Callable[[str], bool] | None = None
    ) -> None:
        """The next `operation` (write, sync, read, rename, ...) on a path that `where` accepts raises OSError."""
        self._faults.append((operation, where or (lambda _path: True), error))

    def power_cut(self, entropy: Entropy) -> MemoryFiles:
        """What the next boot finds. The present boot can do nothing any more."""
        self._dead = True
        after = MemoryFiles(lying=self.lying)
        after._directories = dict(self._directories)
        names = dict(self._durable_names)
        survive = int(entropy.uniform(0, len(self._name_changes) + 0.999))
        for path, content in self._name_changes[:survive]:
            if content is None:
                names.pop(path, None)
            else:
                names[path] = content
        for path in sorted(names):
            before = names[path]
            content = _Content()
            content.data = bytearray(_after_cut(before, entropy))
            content.durable = bytes(content.data)
            after._names[path] = content
        after._durable_names = dict(after._names)
        return after

    def killed(self) -> MemoryFiles:
        """What the next process finds when only the process died: everything written."""
        self._dead = True
        after = MemoryFiles(lying=self.lying)
        after._directories = dict(self._directories)
        after._names = self._names
        after._durable_names = self._durable_names
        after._name_changes = self._name_changes
        return after

    def damage(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite bytes as a failing disk would."""
        content = self._names[path]
        content.data[offset : offset + len(data)] = data
        content.durable = bytes(content.data)

    def paths(self) -> list[str]:
        """All files, sorted."""
        return sorted(self._names)

    # ---- Files

    def make_directory(self, path: str) -> None:
        """Create the directory; durable at once."""
        self._check("make_directory", path)
        while path and path not in self._directories:
            self._directories[path] = None
            path = os.path.dirname(path)

    def list(self, directory: str) -> list[str]:
        """Sorted names."""
        self._check("list", directory)
        found = [p for p in self._names if os.path.dirname(p) == directory]
        return sorted(os.path.basename(p) for p in found)

    def size(self, path: str) -> int:
        """Bytes in the file."""
        self._check("size", path)
        return len(self._content(path).data)

    def read(self, path: str, offset: int = 0, limit: int = -1) -> bytes:
        """Up to `limit` bytes from `offset`."""
        self._check("read", path)
        data = self._content(path).data
        return bytes(data[offset:] if limit < 0 else data[offset : offset + limit])

    def append(self, path: str) -> MemoryAppendFile:
        """Open for appending, created when missing."""
        self._check("append", path)
        if os.path.dirname(path) not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        content = self._names.get(path)
        if content is None:
            content = _Content()
            self._set_name(path, content)
        return MemoryAppendFile(self, path, content)

    def rename(self, source: str, target: str) -> None:
        """Give a file another name."""
        self._check("rename", source)
        content = self._content(source)
        self._set_name(target, content)
        self._set_name(source, None)

    def remove(self, path: str) -> None:
        """Remove a name."""
        self._check("remove", path)
        if path in self._names:
            self._set_name(path, None)

    def truncate(self, path: str, size: int) -> None:
        """Cut the file, durably."""
        self._check("truncate", path)
        content = self._content(path)
        del content.data[size:]
        if not self.lying:
            content.durable = bytes(content.data)

    def write_again(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite bytes with the same bytes, durably."""
        self._check("write", path)
        content = self._content(path)
        content.data[offset : offset + len(data)] = data
        if not self.lying:
            content.durable = bytes(content.data)

    def note(self, path: str, data: bytes) -> None:
        """Write over the beginning of a file in place; durable by chance."""
        self._check("note", path)
        if path not in self._names:
            self._set_name(path, _Content())
        self._content(path).data[: len(data)] = data

    def sync_directory(self, directory: str) -> None:
        """Make names durable (all of them: changes keep their order over the whole disk, as in a journal)."""
        self._check("sync_directory", directory)
        self.syncs += 1
        if not self.lying:
            self._durable_names = dict(self._names)
            self._name_changes = []

    # ---- for open files

    def write_to(self, path: str, content: _Content, data: bytes) -> None:
        """Append to an open file; a full disk takes a part of it."""
        try:
            self._check("write", path)
        except OSError:
            if not self._dead:
                content.data += data[: len(data) // 2]
            raise
        content.data += data

    def sync_content(self, path: str, content: _Content) -> None:
        """Make an open file's contents durable."""
        self._check("sync", path)
        self.syncs += 1
        if not self.lying:
            content.durable = bytes(content.data)

    def _content(self, path: str) -> _Content:
        content = self._names.get(path)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return content

    def _set_name(self, path: str, content: _Content | None) -> None:
        if content is None:
            del self._names[path]
        else:
            self._names[path] = content
        self._name_changes.append((path, content))

    def _check(self, operation: str, path: str) -> None:
        if self._dead:
            raise OSError(errno.EIO, "the power is off", path)
        for fault in self._faults:
            wanted, where, error = fault
            if wanted == operation and where(path):
                self._faults.remove(fault)
                raise OSError(error, os.strerror(error), path)


class MemoryAppendFile:
    """An open file of MemoryFiles."""

    def __init__(self, files: MemoryFiles, path: str, content: _Content) -> None:
        self._files = files
        self._path = path
        self._content = content

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return len(self._content.data)

    def write(self, data: bytes) -> None:
        """Append."""
        self._files.write_to(self._path, self._content, data)

    def sync(self) -> None:
        """Make the contents durable."""
        self._files.sync_content(self._path, self._content)

    def close(self) -> None:
        """Nothing to give back."""


def _after_cut(content: _Content, entropy: Entropy) -> bytes:
    data, durable = bytes(content.data), content.durable
    if not data.startswith(durable):
        return durable
    fresh = len(data) - len(durable)
    kept = data[: len(durable) + int(entropy.uniform(0, fresh + 0.999))]
    if len(kept) > len(durable) and entropy.uniform(0, 1) < 0.2:
        # Not every sector of the unsynced part was written, though the file has its length.
        hole = int(entropy.uniform(len(durable), len(kept)))
        end = min(len(kept), hole + 64)
        kept = kept[:hole] + bytes(end - hole) + kept[end:]
    return kept
