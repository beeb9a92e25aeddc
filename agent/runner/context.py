"""What every runner on a node shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.devices.manager import Devices
from agent.drivers.base import Driver, TaskPaths
from agent.local_state import LocalState
from agent.migrate import BringsDisk
from agent.services.certificates import Credentials
from agent.task_dir import TaskDirectories
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.errors import DefiniteError
from nomadpy.models.allocation import Allocation
from nomadpy.models.node import Node
from nomadpy.models.task import Task


class SetupError(DefiniteError):
    """A step before the start failed; `recoverable` says whether the restart policy may try again."""

    code = "task-setup"

    def __init__(self, message: str, *, recoverable: bool = False) -> None:
        super().__init__(message, recoverable=recoverable)
        self.recoverable = recoverable


class StartHook(Protocol):
    """A step between the directories and the start of a task, e.g. downloading artifacts."""

    async def prepare(
        self, alloc: Allocation, task: Task, paths: TaskPaths, say: Callable[[str], None]
    ) -> dict[str, str]:
        """Do it; returns variables for the task's environment. say: adds an event. Raises SetupError."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunnerContext:
    """Built once by the agent. migration: None for agents that fetch no disks from others. contacted: set when servers were heard of since this agent process began."""

    drivers: Mapping[str, Driver]
    directories: TaskDirectories
    credentials: Credentials
    state: LocalState
    clock: Clock
    entropy: Entropy
    node: Callable[[], Node]
    region: str
    max_kill_timeout_s: float = 30.0
    devices: Devices = field(default_factory=Devices)
    hooks: Sequence[StartHook] = ()
    migration: BringsDisk | None = None
    contacted: asyncio.Event = field(default_factory=asyncio.Event)
