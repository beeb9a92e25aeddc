"""Which directories of the node a task asks for with its volume_mount blocks, and where it wants them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.drivers.base import TaskVolume
from agent.runner.context import SetupError
from agent.task_env import alloc_index, group_of
from nomadpy.models.allocation import Allocation
from nomadpy.models.job import VolumeRequest
from nomadpy.models.node import HostVolumeInfo
from nomadpy.models.task import Task

PROPAGATIONS = ("private", "host-to-task", "bidirectional")


def source_of(request: VolumeRequest, alloc_name: str) -> str:
    """The name of the volume on the node: the source, with the allocation's index when each has its own."""
    return f"{request.source}[{alloc_index(alloc_name)}]" if request.per_alloc else request.source


def task_volumes(
    alloc: Allocation,
    task: Task,
    on_node: Mapping[str, HostVolumeInfo],
    resolve: Callable[[str], str],
) -> list[TaskVolume]:
    """The mounts of a task in the job's order. resolve: replaces `${...}`.

    Raises SetupError that names the volume. One that is not on the node may come back, so the restart policy tries again."""
    wanted = group_of(alloc).volumes or {}
    found: list[TaskVolume] = []
    for mount in task.volume_mounts or []:
        name = resolve(mount.volume or "")
        request = wanted.get(name)
        if request is None:
            raise SetupError(f"volume {name!r} is not a volume of the group")
        if request.type != "host":
            raise SetupError(f"volume {name!r}: this agent has no {request.type} volumes")
        source = source_of(request, alloc.name)
        info = on_node.get(source)
        if info is None:
            raise SetupError(f"volume {source!r} is not on this node", recoverable=True)
        target = resolve(mount.destination or "")
        if not target:
            raise SetupError(f"volume {source!r}: the mount has no destination")
        propagation = resolve(mount.propagation_mode or "") or "private"
        if propagation not in PROPAGATIONS:
            raise SetupError(f"volume {source!r}: {propagation!r} is not a propagation mode")
        found.append(
            TaskVolume(
                name=source,
                path=info.path,
                target=target,
                read_only=info.read_only or request.read_only or bool(mount.read_only),
                propagation=propagation,
                selinux_label=mount.se_linux_label or "",
            )
        )
    return found


def uses(alloc: Allocation, volume: str) -> bool:
    """Whether the allocation's group asks for this volume of the node."""
    requests = (group_of(alloc).volumes or {}).values()
    return any(r.type == "host" and source_of(r, alloc.name) == volume for r in requests)
