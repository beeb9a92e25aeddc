"""Volumes for a driver without a file system of its own: a symbolic link in the task's directory leads to each.

A link and no bind mount: whatever removes the task's directory can then never reach into the volume. It also cannot be
read-only, so a task that asks for that is refused rather than trusted.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat

from agent.drivers.base import DriverError, TaskConfig, TaskVolume


def link_volumes(task: TaskConfig) -> None:
    """Make the links, or see that they are there. Blocks on the disk. Raises DriverError that names the volume."""
    for volume in task.volumes:
        if volume.read_only:
            raise DriverError(
                f"volume {volume.name!r}: a task without a file system of its own cannot have it read-only"
            )
        parts = _inside(task.paths.task, volume)
        try:
            _link(task.paths.task, parts, volume.path)
        except OSError as cause:
            raise DriverError(
                f"volume {volume.name!r}: {volume.target!r} cannot lead to it: {cause.strerror}"
            ) from cause


def _inside(root: str, volume: TaskVolume) -> list[str]:
    """Where the link goes, as names below the task's directory."""
    root = posixpath.normpath(root)
    relative = posixpath.relpath(posixpath.normpath(posixpath.join(root, volume.target)), root)
    if relative == "." or relative.split("/")[0] == "..":
        raise DriverError(
            f"volume {volume.name!r}: {volume.target!r} is not inside the task's directory, and the"
            " task has no file system of its own: use a relative destination"
        )
    return relative.split("/")


def _link(root: str, parts: list[str], path: str) -> None:
    *parents, name = parts
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for part in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=folder)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode):
                # Of an earlier start; the volume may lie elsewhere by now.
                os.unlink(name, dir_fd=folder)
        os.symlink(path, name, dir_fd=folder)
    finally:
        os.close(folder)
