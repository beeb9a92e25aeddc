"""The steps between a task's directories and its start that need nothing but files, and what we refuse.

A block of the job that this agent cannot honour fails the task with a clear event: a task that runs without its
template or secret would be worse.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.drivers.base import TaskPaths
from agent.runner.context import SetupError, StartHook
from agent.task_dir import TaskDirectories
from nomadpy.models.allocation import Allocation
from nomadpy.models.task import Task


class DispatchPayloadHook:
    """Writes the payload of a dispatched job to `local/<file>`."""

    def __init__(self, directories: TaskDirectories) -> None:
        self._directories = directories

    async def prepare(
        self,
        alloc: Allocation,
        task: Task,
        paths: TaskPaths,  # noqa: ARG002
        say: Callable[[str], None],  # noqa: ARG002
    ) -> dict[str, str]:
        """See StartHook."""
        wanted = task.dispatch_payload
        payload = alloc.job.payload if alloc.job is not None else None
        if wanted is None or not wanted.file or not payload:
            return {}
        await self._directories.write(
            alloc.id, task.name, f"local/{wanted.file}", payload, mode=0o644, user=task.user
        )
        return {}


class UnsupportedBlocks:
    """Refuses tasks with blocks that no other hook of this agent takes care of."""

    def __init__(self, *supported: str) -> None:
        """supported: names among template, artifact, vault."""
        self._supported = frozenset(supported)

    async def prepare(
        self,
        alloc: Allocation,  # noqa: ARG002
        task: Task,
        paths: TaskPaths,  # noqa: ARG002
        say: Callable[[str], None],  # noqa: ARG002
    ) -> dict[str, str]:
        """See StartHook."""
        asked = {
            "template": task.templates,
            "artifact": task.artifacts,
            "vault": task.vault,
        }
        for name, block in asked.items():
            if block and name not in self._supported:
                raise SetupError(
                    f"task {task.name!r} has a {name} block, which this agent cannot run"
                )
        return {}


def standard_hooks(directories: TaskDirectories) -> list[StartHook]:
    """What every agent does, in order."""
    return [UnsupportedBlocks(), DispatchPayloadHook(directories)]
