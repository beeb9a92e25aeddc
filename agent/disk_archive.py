"""An ephemeral disk as a row of chunks, and back: what a sticky, migrating group takes along to another node.

Each chunk is at most CHUNK_BYTES. Its first byte says what it is: E an entry (msgpack), D bytes of the file last named, Z the
end, with the SHA-256 of all chunks before it. Directories, files and symbolic links are taken with mode, owner and time; links are neither
followed nor looked into. Setuid and setgid bits of files stay behind, so do sockets, pipes and devices.

A chunk comes from another machine, so nothing of it is trusted: a path stays below `alloc/data` or a task's `local`, no link is
walked through, and bytes and entries have limits. All is put beside its place first; only a complete archive whose sum is right moves there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from nomadpy.errors import DefiniteError

CHUNK_BYTES = 256 * 1024
MOST_ENTRIES = 1_000_000
ASIDE = ".migrating"

_ENTRY, _DATA, _END = b"E", b"D", b"Z"
_MOST_NAME = 4096


class ArchiveError(DefiniteError):
    """The disk cannot be packed, or what came is not a whole one that may be unpacked."""

    code = "disk-archive"


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One thing of the disk. kind: d | f | l. path: below the allocation's directory. target: of a link."""

    kind: str
    path: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    target: bytes = b""


_decoder = msgspec.msgpack.Decoder(Entry)


def tops_of(tasks: Iterable[str]) -> list[str]:
    """The directories that move: what the tasks share, and what is each one's own."""
    return ["alloc/data", *(f"{task}/local" for task in tasks)]


def pack(root: Path, tasks: Iterable[str]) -> Iterator[bytes]:
    """The chunks of an allocation's disk. Blocks on it. Raises ArchiveError, also when a file changes meanwhile."""
    total = hashlib.sha256()
    try:
        for chunk in _chunks(root, tops_of(tasks)):
            total.update(chunk)
            yield chunk
    except OSError as cause:
        raise ArchiveError(f"the disk cannot be read: {cause}") from cause
    yield _END + total.digest()


def is_end(chunk: bytes) -> bool:
    """Whether a chunk is the last one."""
    return chunk[:1] == _END


def _chunks(root: Path, tops: list[str]) -> Iterator[bytes]:
    for top in tops:
        base = root / top
        if base.is_symlink() or base.parent.is_symlink() or not base.is_dir():
            continue
        for folder, directories, files, handle in os.fwalk(base, follow_symlinks=False):
            inside = os.fsencode(os.path.relpath(folder, root))
            yield _entry("d", inside, os.fstat(handle))
            for name in sorted((*directories, *files)):
                status = os.lstat(name, dir_fd=handle)
                path = inside + b"/" + os.fsencode(name)
                if stat.S_ISLNK(status.st_mode):
                    target = os.fsencode(os.readlink(name, dir_fd=handle))
                    yield _entry("l", path, status, target=target)
                elif stat.S_ISREG(status.st_mode):
                    yield from _file(name, path, handle)


def _file(name: str, path: bytes, folder: int) -> Iterator[bytes]:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        status = os.fstat(file)
        yield _entry("f", path, status, size=status.st_size)
        left = status.st_size
        while left:
            data = os.read(file, min(left, CHUNK_BYTES - 1))
            if not data:
                raise ArchiveError(f"{os.fsdecode(path)} became shorter while it was read")
            left -= len(data)
            yield _DATA + data
    finally:
        os.close(file)


def _entry(
    kind: str, path: bytes, status: os.stat_result, *, size: int = 0, target: bytes = b""
) -> bytes:
    entry = Entry(
        kind,
        path,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        size,
        target,
    )
    return _ENTRY + msgspec.msgpack.encode(entry)


class Unpacker:
    """Takes chunks in their order. Every method blocks on the disk; after an error, `discard`."""

    def __init__(self, root: Path, tasks: Iterable[str], *, most_bytes: int) -> None:
        """root: the new allocation's directory, made if need be. most_bytes: of all files together. Raises ArchiveError."""
        self._root = root
        self._aside = root / ASIDE
        self._tops = [tuple(os.fsencode(top).split(b"/")) for top in tops_of(tasks)]
        self._most_bytes = most_bytes
        self._total = hashlib.sha256()
        self._directories: list[Entry] = []
        self._file: tuple[Entry, int] | None = None
        self._left = 0
        self._entries = 0
        self.bytes = 0
        self.complete = False
        try:
            self.discard()
            root.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._aside.mkdir(mode=0o700)
        except OSError as cause:
            raise ArchiveError(f"no room to unpack into: {cause}") from cause

    def take(self, chunks: Iterable[bytes]) -> None:
        """Take the next chunks. Raises ArchiveError; then nothing of it may be used."""
        try:
            for chunk in chunks:
                self._take(chunk)
        except (OSError, OverflowError, msgspec.MsgspecError) as cause:
            raise ArchiveError(f"the disk cannot be unpacked: {cause}") from cause

    def commit(self) -> None:
        """Put what came in its place, in the stead of what is there. Raises ArchiveError when it is not whole."""
        if not self.complete:
            raise ArchiveError("the archive ended too early")
        try:
            for entry in reversed(self._directories):
                self._finish_directory(entry)
            for top in self._tops:
                source = self._aside.joinpath(*map(os.fsdecode, top))
                target = self._root.joinpath(*map(os.fsdecode, top))
                if not source.is_dir():
                    continue
                target.parent.mkdir(mode=0o777, exist_ok=True)
                if target.is_dir():
                    shutil.rmtree(target)
                os.rename(source, target)
            self.discard()
        except (OSError, OverflowError) as cause:
            raise ArchiveError(f"the disk cannot be put in its place: {cause}") from cause

    def discard(self) -> None:
        """Remove what was unpacked and not committed."""
        if self._file is not None:
            os.close(self._file[1])
            self._file = None
        if self._aside.is_dir():
            shutil.rmtree(self._aside)

    def _take(self, chunk: bytes) -> None:
        if self.complete or not chunk or len(chunk) > CHUNK_BYTES:
            raise ArchiveError("a chunk is not what it should be")
        kind, rest = chunk[:1], chunk[1:]
        if kind == _DATA:
            self._take_data(rest)
        elif self._left:
            raise ArchiveError("a file is shorter than it was said to be")
        elif kind == _ENTRY:
            self._take_entry(_decoder.decode(rest))
        elif kind == _END:
            if rest != self._total.digest():
                raise ArchiveError("the sum of the archive does not hold")
            self.complete = True
        else:
            raise ArchiveError("a chunk is not what it should be")
        self._total.update(chunk)

    def _take_entry(self, entry: Entry) -> None:
        self._entries += 1
        if self._entries > MOST_ENTRIES:
            raise ArchiveError(f"the disk has more than {MOST_ENTRIES} files and directories")
        parts = self._parts(entry)
        folder = self._open_parent(parts)
        try:
            if entry.kind == "d":
                os.mkdir(parts[-1], 0o700, dir_fd=folder)
                self._directories.append(entry)
            elif entry.kind == "l":
                os.symlink(entry.target, parts[-1], dir_fd=folder)
                _own(parts[-1], entry, folder)
            elif entry.kind == "f":
                self._begin_file(parts[-1], entry, folder)
            else:
                raise ArchiveError(f"{entry.kind!r} is no kind of file")
        finally:
            os.close(folder)

    def _begin_file(self, name: bytes, entry: Entry, folder: int) -> None:
        if entry.size < 0 or self.bytes + entry.size > self._most_bytes:
            raise ArchiveError(f"the disk has more than {self._most_bytes} bytes")
        self.bytes += entry.size
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self._file = (entry, os.open(name, flags, 0o600, dir_fd=folder))
        self._left = entry.size
        if not self._left:
            self._finish_file()

    def _take_data(self, data: bytes) -> None:
        if self._file is None or len(data) > self._left:
            raise ArchiveError("a file is longer than it was said to be")
        self._left -= len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._file[1], view) :]
        if not self._left:
            self._finish_file()

    def _finish_file(self) -> None:
        assert self._file is not None
        entry, file = self._file
        self._file = None
        try:
            if os.geteuid() == 0:
                os.fchown(file, entry.uid, entry.gid)
            os.fchmod(file, entry.mode & 0o1777)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _finish_directory(self, entry: Entry) -> None:
        parts = self._parts(entry)
        parent = self._open_parent(parts)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            folder = os.open(parts[-1], flags, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            if os.geteuid() == 0:
                os.fchown(folder, entry.uid, entry.gid)
            os.fchmod(folder, entry.mode & 0o3777)
            os.utime(folder, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(folder)

    def _parts(self, entry: Entry) -> tuple[bytes, ...]:
        """The names of a path that is below one of the directories that move, or is one."""
        parts = tuple(entry.path.split(b"/"))
        sound = all(part not in (b"", b".", b"..") and b"\0" not in part for part in parts)
        inside = parts[:2] in self._tops and (len(parts) > 2 or entry.kind == "d")
        if not sound or not inside or len(entry.path) > _MOST_NAME or b"\0" in entry.target:
            raise ArchiveError(f"{os.fsdecode(entry.path)!r} is not a path of the disk")
        return parts

    def _open_parent(self, parts: tuple[bytes, ...]) -> int:
        """A descriptor of the directory that a path lies in; the directories of the tops are made here."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        folder = os.open(self._aside, flags)
        try:
            for depth, part in enumerate(parts[:-1]):
                if depth == 0:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o711, dir_fd=folder)
                below = os.open(part, flags, dir_fd=folder)
                os.close(folder)
                folder = below
        except OSError:
            os.close(folder)
            raise
        return folder


def _own(name: bytes, entry: Entry, folder: int) -> None:
    if os.geteuid() == 0:
        os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)
