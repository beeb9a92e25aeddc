"""Find where on this host a task's control group can be, version 1, 2 or both mounted.

Out: the folders that a task joins so that none of its processes can hide. Making, joining and killing is the
supervisor's (drivers/supervisor/process.py); limits are not set here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

DEFAULT_PARENT = "nomad.slice"


class Hierarchies(msgspec.Struct, frozen=True, kw_only=True):
    """The mounted hierarchies. unified: mount point of version 2, "" when absent; legacy: controller to mount point.

    own: hierarchy to the path of this process in it ("" names version 2).
    """

    unified: str = ""
    legacy: dict[str, str] = {}
    own: dict[str, str] = {}

    @property
    def version(self) -> str:
        """ "2" where version 2 has the controllers, "1" where version 1 has, "" without any."""
        if self.legacy:
            return "1"
        return "2" if self.unified else ""


def detect(mounts: str = "/proc/self/mounts", membership: str = "/proc/self/cgroup") -> Hierarchies:
    """Read the mounts of this process; empty when they cannot be read."""
    unified, legacy, own = "", {}, {}
    for line in _lines(mounts):
        _, point, kind, options, *_ = line.split(" ")
        if kind == "cgroup2":
            unified = unified or point
        elif kind == "cgroup":
            for option in options.split(","):
                if option in ("freezer", "memory", "pids", "cpu", "cpuset"):
                    legacy[option] = point
    for line in _lines(membership):
        _, controllers, path = line.rstrip("\n").split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    return Hierarchies(unified=unified, legacy=legacy, own=own)


def task_folders(found: Hierarchies, parent: str, name: str) -> list[str]:
    """The folders of task `name` below `parent`; [] when this process may make none.

    Version 2 is preferred also beside version 1: it kills a group at once. There a group with members has no
    children, so `parent` is at the root; version 1 stays below this process's own group, whose limits go on to hold.
    """
    candidates = []
    if found.unified:
        candidates.append(os.path.join(found.unified, parent.strip("/"), name))
    elif "freezer" in found.legacy:
        candidates.append(_below_own(found, "freezer", parent, name))
    if "memory" in found.legacy:
        # It counts the kills for want of memory.
        candidates.append(_below_own(found, "memory", parent, name))
    usable = [folder for folder in candidates if _can_make(os.path.dirname(folder))]
    tracks = bool(usable) and usable[0] == candidates[0]
    return usable if tracks else []


def supervisor_folder(found: Hierarchies, parent: str) -> str:
    """Where supervisors live, apart from the agent's service; "" where nothing needs to move."""
    if found.unified and found.version == "2":
        folder = os.path.join(found.unified, parent.strip("/"), "supervisors")
        return folder if _can_make(os.path.dirname(folder)) else ""
    return ""


def enable_controllers(found: Hierarchies, parent: str) -> None:
    """On version 2, let the children of `parent` have memory events; what is not allowed is left."""
    if found.version != "2":
        return
    folder = os.path.join(found.unified, parent.strip("/"))
    try:
        with open(os.path.join(folder, "cgroup.subtree_control"), "w", encoding="ascii") as file:
            file.write("+memory")
    except OSError:
        return


def overrides(found: Hierarchies, v2: str, v1: Iterable[tuple[str, str]]) -> list[str]:
    """The folders a job asked for itself: `cgroup_v2_override`, `cgroup_v1_override` (controller, path)."""
    if v2 and found.unified:
        return [os.path.join(found.unified, v2.removeprefix(found.unified).strip("/"))]
    return [
        os.path.join(found.legacy[controller], path.strip("/"))
        for controller, path in v1
        if controller in found.legacy
    ]


def _below_own(found: Hierarchies, controller: str, parent: str, name: str) -> str:
    own = found.own.get(controller, "/").strip("/")
    return os.path.join(found.legacy[controller], own, parent.strip("/"), name)


def _can_make(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readlines()
    except OSError:
        return []
