"""What a power cut would take from a folder: every byte and every name that no fsync has made durable.

In:      each change of a file's bytes before it is made, each change of a name in order to make it.
Out:     `cut` puts the folder back to what is durable, or, torn, to something between that and the present.
Not here: FUSE (faultfs.py), who fails and when (rules.py).

Bytes count by sectors of 512: a sector is durable as a whole or not at all, in no order. fsync of a file makes its bytes and
its size durable, and not its name; fsync of a directory makes the names in it durable, and not the directory's own name. What
happened in two directories at once, such as a rename from one to the other, is durable in both or in none.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nomadpy.entropy import Entropy

SECTOR = 512

Kind = Literal["made", "mkdir", "removed", "rename"]


@dataclass
class _Bytes:
    """A file with bytes that are not durable. handle: kept open, so that the file can be put back whatever it is called.

    old: what durable sectors held before they were first touched; written: the sectors that were written to.
    """

    handle: int
    durable_size: int
    old: dict[int, bytes] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)


@dataclass
class _Change:
    """A change of names. directory, source: inode numbers. kept: where a file lies that lost its name by this.

    directories: all that it is a change of, one that was removed included.
    """

    kind: Kind
    directory: int
    name: str
    source: int = 0
    source_name: str = ""
    kept: str = ""
    directories: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Lost:
    """What a cut took: files of which bytes were put back, sectors put back, names put back."""

    files: int
    sectors: int
    names: int


class Unsynced:
    """Changes of the files below `tree` that are not durable. `spare` is a folder beside it, for files without a name."""

    def __init__(self, tree: Path, spare: Path) -> None:
        self.tree = tree
        self._spare = spare
        self._bytes: dict[int, _Bytes] = {}
        self._changes: list[_Change] = []
        self._directories: dict[int, int] = {}
        self._count = 0

    @property
    def files(self) -> int:
        """How many files have bytes that are not durable."""
        return len(self._bytes)

    @property
    def names(self) -> int:
        """How many changes of names are not durable."""
        return len(self._changes)

    # -- bytes ------------------------------------------------------------------------------------------------

    def before_write(self, handle: int, offset: int, length: int) -> None:
        """Bytes from `offset` are about to be written. handle: open for reading and writing."""
        if length <= 0:
            return
        dirty = self._dirty(handle)
        sectors = range(offset // SECTOR, (offset + length - 1) // SECTOR + 1)
        self._save(dirty, sectors)
        dirty.written.update(sectors)
        size = os.fstat(handle).st_size
        if offset > size:
            # What lies between becomes zeros, which are no more durable than the rest.
            dirty.written.update(range(size // SECTOR, offset // SECTOR))
            self._save(dirty, range(size // SECTOR, size // SECTOR + 1))

    def before_truncate(self, handle: int, size: int) -> None:
        """The file is about to get another size."""
        dirty = self._dirty(handle)
        now = os.fstat(handle).st_size
        first, last = sorted((size, now))
        self._save(dirty, range(first // SECTOR, (last + SECTOR - 1) // SECTOR))
        if size > now:
            dirty.written.update(range(first // SECTOR, (last + SECTOR - 1) // SECTOR))

    def file_synced(self, handle: int) -> None:
        """Its bytes are durable now."""
        self._forget(os.fstat(handle).st_ino)

    def _dirty(self, handle: int) -> _Bytes:
        status = os.fstat(handle)
        dirty = self._bytes.get(status.st_ino)
        if dirty is None:
            own = os.open(f"/proc/self/fd/{handle}", os.O_RDWR | os.O_CLOEXEC)
            dirty = self._bytes[status.st_ino] = _Bytes(own, status.st_size)
        return dirty

    def _save(self, dirty: _Bytes, sectors: range) -> None:
        for sector in sectors:
            if sector in dirty.old:
                continue
            start = sector * SECTOR
            length = min(SECTOR, dirty.durable_size - start)
            if length <= 0:
                break
            # A sector that was written already was saved then; so what is here is what is durable.
            dirty.old[sector] = os.pread(dirty.handle, length, start)

    def _forget(self, inode: int) -> None:
        dirty = self._bytes.pop(inode, None)
        if dirty is not None:
            os.close(dirty.handle)

    # -- names ------------------------------------------------------------------------------------------------

    def create(self, path: str, flags: int, mode: int) -> int:
        """Make a file and open it. path: as every one here, from the tree's root, beginning with a slash."""
        handle = os.open(self._real(path), flags | os.O_CREAT | os.O_CLOEXEC, mode)
        self._note("made", path)
        return handle

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        os.symlink(target, self._real(path))
        self._note("made", path)

    def link(self, path: str, existing: str) -> None:
        """Give a file a further name."""
        os.link(self._real(existing), self._real(path), follow_symlinks=False)
        self._note("made", path)

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory."""
        os.mkdir(self._real(path), mode)
        self._note("mkdir", path)

    def unlink(self, path: str) -> None:
        """Take a file's name."""
        if stat.S_ISDIR(os.lstat(self._real(path)).st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory", path)
        self._remove(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        if os.listdir(self._real(path)):
            raise OSError(errno.ENOTEMPTY, "is not empty", path)
        self._remove(path)

    def rename(self, old: str, new: str) -> None:
        """Give a file or a directory another name, which may be another's that loses it."""
        kept = ""
        there = self._status(new)
        moved = os.lstat(self._real(old))
        if there is not None:
            if (there.st_dev, there.st_ino) == (moved.st_dev, moved.st_ino):
                return
            self._check_replacement(there, moved, new)
            kept = self._spare_place()
            if stat.S_ISDIR(there.st_mode):
                os.rename(self._real(new), kept)
            else:
                # The name is never without a file, as rename promises.
                os.link(self._real(new), kept, follow_symlinks=False)
        os.rename(self._real(old), self._real(new))
        source, source_name = self._place(old)
        self._note("rename", new, source=source, source_name=source_name, kept=kept)

    def directory_synced(self, path: str) -> None:
        """The names in it are durable now, and those of every directory that shares a change with it."""
        touched = {os.lstat(self._real(path)).st_ino}
        before = 0
        while len(touched) > before:
            before = len(touched)
            for change in self._changes:
                if change.directories & touched:
                    touched |= change.directories
        done = [c for c in self._changes if c.directories & touched]
        self._changes = [c for c in self._changes if not c.directories & touched]
        for change in done:
            self._commit(change)
        self._close_unused()

    def _check_replacement(self, there: os.stat_result, moved: os.stat_result, new: str) -> None:
        if stat.S_ISDIR(there.st_mode) != stat.S_ISDIR(moved.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(there.st_mode) else errno.ENOTDIR
            raise OSError(code, os.strerror(code), new)
        if stat.S_ISDIR(there.st_mode) and os.listdir(self._real(new)):
            raise OSError(errno.ENOTEMPTY, "is not empty", new)

    def _remove(self, path: str) -> None:
        kept = self._spare_place()
        os.rename(self._real(path), kept)
        self._note("removed", path, kept=kept)

    def _note(
        self, kind: Kind, path: str, *, source: int = 0, source_name: str = "", kept: str = ""
    ) -> None:
        directory, name = self._place(path)
        directories = {directory, source} - {0}
        if kept and stat.S_ISDIR(os.lstat(kept).st_mode):
            directories.add(os.lstat(kept).st_ino)
        self._changes.append(_Change(kind, directory, name, source, source_name, kept, directories))

    def _commit(self, change: _Change) -> None:
        if not change.kept:
            return
        status = os.lstat(change.kept)
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(change.kept)
        else:
            if status.st_nlink == 1:
                self._forget(status.st_ino)
            os.unlink(change.kept)

    def all_synced(self) -> None:
        """Everything is durable now, as when a disk at last writes what it had said was written."""
        for inode in list(self._bytes):
            self._forget(inode)
        done, self._changes = self._changes, []
        for change in done:
            self._commit(change)
        self._close_unused()

    # -- the fault --------------------------------------------------------------------------------------------

    def cut(self, source: Entropy, torn: float = 0.0) -> Lost:
        """Put everything back that is not durable.

        torn: 0 puts everything back. Above, each sector survives with that probability, a file that grew has any size
        up to the one it had, and the first of the names' changes survive, in their order, as a disk with a journal has them.
        """
        sectors = 0
        files = len(self._bytes)
        for inode in list(self._bytes):
            sectors += _put_back(self._bytes[inode], source, torn)
            self._forget(inode)
        survive = int(source.uniform(0, len(self._changes) + 0.999)) if torn else 0
        undone = self._changes[survive:]
        for change in reversed(undone):
            self._undo(change)
        for change in self._changes[:survive]:
            self._commit(change)
        self._changes = []
        self._close_unused()
        shutil.rmtree(self._spare)
        self._spare.mkdir()
        return Lost(files, sectors, len(undone))

    def _undo(self, change: _Change) -> None:
        here = self._directories[change.directory]
        if change.kind == "made":
            os.unlink(change.name, dir_fd=here)
        elif change.kind == "mkdir":
            shutil.rmtree(change.name, dir_fd=here)
        elif change.kind == "rename":
            os.rename(
                change.name,
                change.source_name,
                src_dir_fd=here,
                dst_dir_fd=self._directories[change.source],
            )
        if change.kept:
            os.rename(change.kept, change.name, dst_dir_fd=here)

    # -- places -----------------------------------------------------------------------------------------------

    def _real(self, path: str) -> str:
        return f"{self.tree}{path}"

    def _status(self, path: str) -> os.stat_result | None:
        try:
            return os.lstat(self._real(path))
        except FileNotFoundError:
            return None

    def _place(self, path: str) -> tuple[int, str]:
        """A path as (inode of its directory, name); the directory stays open as long as a change is noted in it."""
        parent, name = os.path.split(self._real(path))
        handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        inode = os.fstat(handle).st_ino
        if inode in self._directories:
            os.close(handle)
        else:
            self._directories[inode] = handle
        return inode, name

    def _spare_place(self) -> str:
        self._count += 1
        return str(self._spare / str(self._count))

    def _close_unused(self) -> None:
        used: set[int] = set()
        for change in self._changes:
            used |= change.directories
        for inode in set(self._directories) - used:
            os.close(self._directories.pop(inode))


def _put_back(dirty: _Bytes, source: Entropy, torn: float) -> int:
    now = os.fstat(dirty.handle).st_size
    size = dirty.durable_size
    if torn:
        if now > size:
            size = int(source.uniform(size, now + 0.999))
        elif now < size and source.uniform(0, 1) < torn:
            size = now
    count = 0
    for sector in sorted(dirty.old.keys() | dirty.written):
        if torn and sector in dirty.written and source.uniform(0, 1) < torn:
            continue
        # What a sector held beyond the end of the file is zeros, should the file now reach there.
        os.pwrite(dirty.handle, dirty.old.get(sector, b"").ljust(SECTOR, b"\0"), sector * SECTOR)
        count += 1
    os.ftruncate(dirty.handle, size)
    return count
