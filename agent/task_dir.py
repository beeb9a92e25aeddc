"""Directories of an allocation: layout, modes, ownership, secrets in memory, removal.

    <alloc_dir>/<alloc id>/alloc/{data,logs,tmp}      shared by the group's tasks
    <alloc_dir>/<alloc id>/<task>/{local,secrets,tmp} one task's own

The names and modes are Nomad's. `secrets` is a tmpfs where the agent may mount one; else a directory on disk. Nothing here
follows a symbolic link that a task could have put in the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import pwd
import shutil
import stat
from pathlib import Path
from typing import Protocol

from agent.drivers.base import TaskPaths
from nomadpy import logs
from nomadpy.errors import DefiniteError, InvalidRequestError

log = logs.get(__name__)

SHARED = "alloc"
SHARED_PARTS = ("data", "logs", "tmp")
SECRETS_MB = 1

_MS_NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8
_MNT_DETACH = 0x2


class DirectoryError(DefiniteError):
    """A directory could not be made, written or removed."""

    code = "directory"


class TaskDirectories(Protocol):
    """Where the files of allocations live."""

    def root(self, alloc_id: str) -> str:
        """Absolute path of an allocation's directory."""
        ...

    def paths(self, alloc_id: str, task: str) -> TaskPaths:
        """Absolute paths of one task."""
        ...

    async def build(self, alloc_id: str, task: str, user: str) -> TaskPaths:
        """Make what is missing of the task's directories. user: owner of `local` and `secrets`, "" the agent's.

        Raises DirectoryError."""
        ...

    async def write(
        self, alloc_id: str, task: str, name: str, data: bytes, *, mode: int, user: str
    ) -> None:
        """Put a file at `name`, relative to the task's directory, atomically; parents are made.

        Raises DirectoryError, and InvalidRequestError for a name that leaves the directory."""
        ...

    async def read(self, alloc_id: str, task: str, name: str) -> bytes | None:
        """What `write` put there; None when there is nothing."""
        ...

    async def adopt(self, alloc_id: str, previous_id: str, tasks: list[str]) -> bool:
        """Move shared data and the tasks' `local` of an earlier allocation here (sticky ephemeral disk).

        Returns whether the earlier allocation has a directory on this node. Raises DirectoryError."""
        ...

    async def remove(self, alloc_id: str) -> None:
        """Remove all of an allocation; no error when there is nothing. Raises DirectoryError."""
        ...

    async def known(self) -> list[str]:
        """Ids of the allocations that have a directory."""
        ...

    async def disk_used_percent(self) -> float:
        """How full the disk is that carries the directories, 0 to 100."""
        ...


class MemoryDirectories:
    """Paths without directories, files in memory: for the simulator."""

    def __init__(self, base: str = "/allocations") -> None:
        self._base = base
        self._files: dict[str, dict[str, bytes]] = {}

    def root(self, alloc_id: str) -> str:
        """See TaskDirectories."""
        return f"{self._base}/{alloc_id}"

    def paths(self, alloc_id: str, task: str) -> TaskPaths:
        """See TaskDirectories."""
        return _paths(self.root(alloc_id), task)

    async def build(self, alloc_id: str, task: str, user: str) -> TaskPaths:  # noqa: ARG002
        """See TaskDirectories."""
        self._files.setdefault(alloc_id, {})
        return self.paths(alloc_id, task)

    async def write(
        self,
        alloc_id: str,
        task: str,
        name: str,
        data: bytes,
        *,
        mode: int,  # noqa: ARG002
        user: str,  # noqa: ARG002
    ) -> None:
        """See TaskDirectories."""
        self._files.setdefault(alloc_id, {})[f"{task}/{_inside(name)}"] = data

    async def read(self, alloc_id: str, task: str, name: str) -> bytes | None:
        """See TaskDirectories."""
        return self._files.get(alloc_id, {}).get(f"{task}/{_inside(name)}")

    async def adopt(self, alloc_id: str, previous_id: str, tasks: list[str]) -> bool:  # noqa: ARG002
        """See TaskDirectories."""
        moved = self._files.get(previous_id, {})
        local = {k: v for k, v in moved.items() if k.split("/")[1] == "local"}
        self._files.setdefault(alloc_id, {}).update(local)
        return previous_id in self._files

    async def remove(self, alloc_id: str) -> None:
        """See TaskDirectories."""
        self._files.pop(alloc_id, None)

    async def known(self) -> list[str]:
        """See TaskDirectories."""
        return sorted(self._files)

    async def disk_used_percent(self) -> float:
        """See TaskDirectories."""
        return 0.0


class HostDirectories:
    """TaskDirectories on this host's disk. Blocking work runs in threads."""

    def __init__(self, base: Path, *, mount_secrets: bool = True) -> None:
        """base: the agent's alloc_dir, made at once. mount_secrets: try a tmpfs (needs root)."""
        base.mkdir(parents=True, exist_ok=True)
        base.chmod(0o711)
        self._base = base.resolve()
        self._mount_secrets = mount_secrets and os.geteuid() == 0

    def root(self, alloc_id: str) -> str:
        """See TaskDirectories."""
        return str(self._base / _single(alloc_id))

    def paths(self, alloc_id: str, task: str) -> TaskPaths:
        """See TaskDirectories."""
        return _paths(self.root(alloc_id), _single(task))

    async def build(self, alloc_id: str, task: str, user: str) -> TaskPaths:
        """See TaskDirectories."""
        paths = self.paths(alloc_id, task)
        await self._do(self._build, paths, user, what=f"building directories of {task}")
        return paths

    async def write(
        self, alloc_id: str, task: str, name: str, data: bytes, *, mode: int, user: str
    ) -> None:
        """See TaskDirectories."""
        top = Path(self.paths(alloc_id, task).task)
        relative = _inside(name)
        owner = _owner(user)
        await self._do(_write_below, top, relative, data, mode, owner, what=f"writing {name}")

    async def read(self, alloc_id: str, task: str, name: str) -> bytes | None:
        """See TaskDirectories."""
        top = Path(self.paths(alloc_id, task).task)
        return await asyncio.to_thread(_read_below, top, _inside(name))

    async def adopt(self, alloc_id: str, previous_id: str, tasks: list[str]) -> bool:
        """See TaskDirectories."""
        old, new = Path(self.root(previous_id)), Path(self.root(alloc_id))
        await self._do(_adopt, old, new, tasks, what="taking over the ephemeral disk")
        return await asyncio.to_thread(old.is_dir)

    async def remove(self, alloc_id: str) -> None:
        """See TaskDirectories."""
        await self._do(self._remove, Path(self.root(alloc_id)), what="removing the directory")

    async def known(self) -> list[str]:
        """See TaskDirectories."""
        names = await asyncio.to_thread(os.listdir, self._base)
        return sorted(name for name in names if len(name) == 36)

    async def disk_used_percent(self) -> float:
        """See TaskDirectories."""
        usage = await asyncio.to_thread(shutil.disk_usage, self._base)
        return 100.0 * usage.used / max(usage.total, 1)

    def _build(self, paths: TaskPaths, user: str) -> None:
        owner = _owner(user)
        # The allocation's own directory hides its tasks from other users; what is inside is open as in Nomad.
        _make(Path(paths.alloc).parent, 0o711)
        _make(Path(paths.alloc), 0o777)
        for part in SHARED_PARTS:
            _make(Path(paths.alloc) / part, 0o777)
        _make(Path(paths.task), 0o777)
        _make(Path(paths.local), 0o777, owner)
        _make(Path(paths.task) / "tmp", 0o1777)
        secrets = Path(paths.secrets)
        _make(secrets, 0o700, owner)
        if self._mount_secrets and not secrets.is_mount():
            try:
                _mount_tmpfs(secrets, owner)
            except OSError as cause:
                log.warning("secrets stay on disk; no tmpfs", path=secrets, error=str(cause))
                self._mount_secrets = False

    @staticmethod
    def _remove(root: Path) -> None:
        if not root.is_dir() or root.is_symlink():
            return
        for task in root.iterdir():
            secrets = task / "secrets"
            if not task.is_symlink() and not secrets.is_symlink() and secrets.is_mount():
                _unmount(secrets)
        shutil.rmtree(root, onerror=_retry_unprotected)

    @staticmethod
    async def _do(work: object, *arguments: object, what: str) -> None:
        try:
            await asyncio.to_thread(work, *arguments)  # type: ignore[arg-type]
        except (OSError, KeyError) as cause:
            raise DirectoryError(f"{what}: {cause}") from cause


def _paths(root: str, task: str) -> TaskPaths:
    return TaskPaths(
        alloc=f"{root}/{SHARED}",
        task=f"{root}/{task}",
        local=f"{root}/{task}/local",
        secrets=f"{root}/{task}/secrets",
        logs=f"{root}/{SHARED}/logs",
    )


def _single(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise InvalidRequestError(f"{name!r} is not a file name")
    return name


def _inside(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in name:
        raise InvalidRequestError(f"{name!r} leaves the task's directory")
    return "/".join(parts)


def _owner(user: str) -> tuple[int, int] | None:
    """uid and gid of a user by name or `uid[:gid]`; None keeps the agent's. Raises KeyError for an unknown one."""
    if not user or os.geteuid() != 0:
        return None
    name, _, group = user.partition(":")
    if name.isdigit():
        return int(name), int(group) if group.isdigit() else int(name)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        # A container image may have users that the host does not know; the driver decides whether that is an error.
        return None
    return entry.pw_uid, entry.pw_gid


def _make(path: Path, mode: int, owner: tuple[int, int] | None = None) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(descriptor, mode)
        if owner is not None:
            os.fchown(descriptor, *owner)
    finally:
        os.close(descriptor)


def _write_below(
    top: Path, relative: str, data: bytes, mode: int, owner: tuple[int, int] | None
) -> None:
    """Write beside and rename, walking down by descriptors so that no link leads elsewhere."""
    *parents, name = relative.split("/")
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for part in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=folder)
                if owner is not None:
                    os.chown(part, *owner, dir_fd=folder, follow_symlinks=False)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        beside = f".{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside, dir_fd=folder)
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=folder)
        try:
            os.fchmod(file, mode)
            if owner is not None:
                os.fchown(file, *owner)
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _read_below(top: Path, relative: str) -> bytes | None:
    *parents, name = relative.split("/")
    try:
        folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        for part in parents:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        # Missing, or replaced by a link or something else that we did not write.
        return None
    finally:
        os.close(folder)
    with os.fdopen(file, "rb") as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            return None
        return handle.read(1 << 20)


def _adopt(old: Path, new: Path, tasks: list[str]) -> None:
    moves = [(old / SHARED / "data", new / SHARED / "data")]
    moves += [(old / task / "local", new / task / "local") for task in tasks]
    for source, target in moves:
        if not source.is_dir() or source.is_symlink():
            continue
        _make(new, 0o711)
        _make(target.parent, 0o777)
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        if not target.exists():
            os.rename(source, target)


def _mount_tmpfs(path: Path, owner: tuple[int, int] | None) -> None:
    uid, gid = owner or (os.geteuid(), os.getegid())
    options = f"size={SECRETS_MB}m,mode=0700,uid={uid},gid={gid}"
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.mount(
        b"tmpfs",
        os.fsencode(path),
        b"tmpfs",
        ctypes.c_ulong(_MS_NOSUID_NODEV_NOEXEC),
        options.encode(),
    )
    if done != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


def _unmount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            raise OSError(code, os.strerror(code), str(path))


def _retry_unprotected(_function: object, path: str, error: object) -> None:
    """A task may have taken the write bit from its directories; give it back and try once more."""
    if not isinstance(error, tuple):
        raise TypeError(error)
    cause = error[1]
    if isinstance(cause, FileNotFoundError):
        return
    if not isinstance(cause, PermissionError):
        raise cause
    parent = os.path.dirname(path)
    os.chmod(parent, 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        shutil.rmtree(path)
    else:
        os.unlink(path)
