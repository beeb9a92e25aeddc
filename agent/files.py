"""Read access to the files of an allocation, for users: list, stat, read, follow.

A path is relative to the allocation's directory and must stay there, whatever links a task has laid: a file is opened
without effect first (O_PATH), and only what the kernel says lies inside, is a regular file, and is no secret, is read.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from nomadpy.errors import DefiniteError, InvalidRequestError, NotFoundError
from nomadpy.models import gotime
from nomadpy.models.stats import AllocFileInfo, StreamFrame

FRAME_BYTES = 64 * 1024
POLL_S = 0.2
HEARTBEAT_S = 1.0
FILE_DELETED = "file deleted"
FILE_TRUNCATED = "file truncated"

_HIDDEN = (".nomadpy",)
_SNIFF_BYTES = 512
_TYPES = (
    (b"%PDF-", "application/pdf"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"PK\x03\x04", "application/zip"),
    (b"<?xml", "text/xml; charset=utf-8"),
    (b"<!DOCTYPE HTML", "text/html; charset=utf-8"),
    (b"<html", "text/html; charset=utf-8"),
)


class FileAccessError(DefiniteError):
    """The path may not be read. Nomad answers 500."""

    code = "file-access"


class AllocFiles:
    """The files of one allocation. Every call may block on the disk, so it runs in a thread."""

    def __init__(self, root: str) -> None:
        """root: the allocation's directory; need not exist (any more)."""
        self._root = os.path.realpath(root)

    async def entries(self, path: str) -> list[AllocFileInfo]:
        """The entries of a directory, by name. Raises NotFoundError, FileAccessError."""
        return await asyncio.to_thread(self._entries, path)

    async def stat(self, path: str) -> AllocFileInfo:
        """One entry, with the type of its content. Raises NotFoundError, FileAccessError."""
        return await asyncio.to_thread(self._stat, path)

    async def read(self, path: str, *, offset: int = 0, limit: int = 0) -> AsyncIterator[bytes]:
        """The bytes of a file from `offset`, `limit` at most (0: all). Raises as `entries`."""
        file = await asyncio.to_thread(self._open_file, path)
        try:
            position, left = offset, limit or -1
            while left != 0:
                want = FRAME_BYTES if left < 0 else min(left, FRAME_BYTES)
                data = await asyncio.to_thread(os.pread, file, want, position)
                if not data:
                    return
                yield data
                position += len(data)
                left = left - len(data) if left > 0 else left
        finally:
            os.close(file)

    async def stream(
        self, path: str, *, offset: int, origin: str, follow: bool
    ) -> AsyncIterator[StreamFrame]:
        """A file in frames; with `follow` for ever, a frame without anything when nothing happened for a second."""
        file = await asyncio.to_thread(self._open_file, path)
        try:
            size = os.fstat(file).st_size
            position = max(size - offset, 0) if origin == "end" else offset
            idle_s = 0.0
            while True:
                data = await asyncio.to_thread(os.pread, file, FRAME_BYTES, position)
                if data:
                    position += len(data)
                    idle_s = 0.0
                    yield StreamFrame(data=data, file=path, offset=position)
                    continue
                if not follow:
                    return
                event = await asyncio.to_thread(self._event, path, file, position)
                if event == FILE_TRUNCATED:
                    position = 0
                if event:
                    yield StreamFrame(file=path, file_event=event, offset=position)
                if event == FILE_DELETED:
                    return
                await asyncio.sleep(POLL_S)
                idle_s += POLL_S
                if idle_s >= HEARTBEAT_S:
                    idle_s = 0.0
                    yield StreamFrame()
        finally:
            os.close(file)

    # -- in a thread ------------------------------------------------------------------------------

    def _entries(self, path: str) -> list[AllocFileInfo]:
        handle, _ = self._find(path, "open")
        try:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                raise FileAccessError(f"readdirent {self._absolute(path)}: not a directory")
            folder = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(handle)
        try:
            found = []
            for name in sorted(os.listdir(folder)):
                if name in _HIDDEN:
                    continue
                try:
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found.append(_info(name, status))
            return found
        finally:
            os.close(folder)

    def _stat(self, path: str) -> AllocFileInfo:
        handle, inside = self._find(path, "stat")
        try:
            status = os.fstat(handle)
            content_type = ""
            if stat.S_ISREG(status.st_mode) and not _is_secret(inside):
                file = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY)
                try:
                    content_type = content_type_of(os.read(file, _SNIFF_BYTES))
                finally:
                    os.close(file)
        finally:
            os.close(handle)
        return _info(posixpath.basename(_relative(path)) or "/", status, content_type)

    def _open_file(self, path: str) -> int:
        """A descriptor of a regular file that may be read; the caller closes it."""
        handle, inside = self._find(path, "stat")
        try:
            if _is_secret(inside):
                raise FileAccessError(f"Reading secret file prohibited: {path}")
            mode = os.fstat(handle).st_mode
            if stat.S_ISDIR(mode):
                raise InvalidRequestError(f'file "{path}" is a directory')
            if not stat.S_ISREG(mode):
                raise InvalidRequestError(f'file "{path}" is not a regular file')
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(handle)

    def _find(self, path: str, verb: str) -> tuple[int, str]:
        """An O_PATH descriptor and the true path inside the directory. Errors speak as Go's `verb` would."""
        absolute = self._absolute(path)
        try:
            handle = os.open(absolute, os.O_PATH | os.O_CLOEXEC)
        except OSError as cause:
            text = f"{verb} {absolute}: {os.strerror(cause.errno or errno.EIO).lower()}"
            if cause.errno in (errno.ENOENT, errno.ENOTDIR):
                raise NotFoundError(text) from cause
            raise FileAccessError(text) from cause
        true = os.readlink(f"/proc/self/fd/{handle}")
        inside = posixpath.relpath(true, self._root)
        if inside == ".." or inside.startswith("../"):
            os.close(handle)
            raise FileAccessError("Path escapes the alloc directory")
        if inside.split("/")[0] in _HIDDEN:
            os.close(handle)
            raise NotFoundError(f"{verb} {absolute}: no such file or directory")
        return handle, inside

    def _absolute(self, path: str) -> str:
        relative = _relative(path)
        if relative == ".." or relative.startswith("../"):
            raise FileAccessError("Path escapes the alloc directory")
        return self._root if relative == "." else f"{self._root}/{relative}"

    def _event(self, path: str, file: int, position: int) -> str:
        """What happened to a file that is followed: deleted, truncated or "" nothing."""
        status = os.fstat(file)
        if status.st_size < position:
            return FILE_TRUNCATED
        try:
            now = Path(self._absolute(path)).stat()
        except OSError:
            return FILE_DELETED
        return "" if (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino) else FILE_DELETED


def _relative(path: str) -> str:
    if "\0" in path:
        raise InvalidRequestError("a path cannot have a NUL byte")
    return posixpath.normpath(path.lstrip("/") or ".")


def _is_secret(inside: str) -> bool:
    parts = inside.split("/")
    return len(parts) > 1 and parts[1] in ("secrets", "private")


def _info(name: str, status: os.stat_result, content_type: str = "") -> AllocFileInfo:
    return AllocFileInfo(
        name=name,
        is_dir=stat.S_ISDIR(status.st_mode),
        size=status.st_size,
        file_mode=go_mode(status.st_mode),
        mod_time=gotime.from_ns(status.st_mtime_ns),
        content_type=content_type,
    )


def go_mode(mode: int) -> str:
    """A mode as Go prints it: `drwxr-xr-x`, `Srw-rw-rw-`, `dtrwxrwxrwx`."""
    kinds = {
        stat.S_IFDIR: "d",
        stat.S_IFLNK: "L",
        stat.S_IFIFO: "p",
        stat.S_IFSOCK: "S",
        stat.S_IFBLK: "D",
        stat.S_IFCHR: "Dc",
    }
    prefix = kinds.get(stat.S_IFMT(mode), "")
    flags = "".join(
        letter
        for bit, letter in ((stat.S_ISUID, "u"), (stat.S_ISGID, "g"), (stat.S_ISVTX, "t"))
        if mode & bit
    )
    if prefix == "Dc":
        prefix, flags = "D", flags.replace("t", "") + "c" + ("t" if "t" in flags else "")
    bits = "".join(
        letter if mode & (0o400 >> place) else "-" for place, letter in enumerate("rwxrwxrwx")
    )
    return (prefix + flags or "-") + bits


def content_type_of(head: bytes) -> str:
    """What a file's first 512 bytes look like, in the words of Go's sniffer (the common cases)."""
    for mark, kind in _TYPES:
        if head[: len(mark)].upper() == mark.upper():
            return kind
    if head.startswith((b"\xfe\xff", b"\xff\xfe")):
        return "text/plain; charset=utf-16" + ("be" if head[0] == 0xFE else "le")
    binary = any(byte < 0x20 and byte not in b"\t\n\x0c\r\x1b" for byte in head)
    return "application/octet-stream" if binary else "text/plain; charset=utf-8"
