"""What every task driver offers, and the values it takes and gives.

The runner knows tasks only through this protocol. A driver keeps nothing that `TaskHandle` does not hold: after an
agent restart `recover(handle)` must be enough to wait for, signal and stop the task as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, runtime_checkable

import msgspec

from nomadpy.errors import DefiniteError, NotFoundError
from nomadpy.models.resources import AllocatedTaskResources, PortMapping
from nomadpy.models.stats import ResourceUsage


class DriverError(DefiniteError):
    """The driver could not do it; `recoverable` says whether the restart policy may try again."""

    code = "driver"

    def __init__(self, message: str, *, recoverable: bool = False, **details: Any) -> None:
        super().__init__(message, recoverable=recoverable, **details)
        self.recoverable = recoverable


class TaskNotFoundError(NotFoundError):
    """The driver has no such task (any more)."""

    code = "task-not-found"


class TaskPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute host paths of one task. alloc: shared `alloc/`; task: the task's own directory; logs: `alloc/logs`."""

    alloc: str
    task: str
    local: str
    secrets: str
    logs: str


class TaskMount(msgspec.Struct, frozen=True, kw_only=True):
    """A path of the host that the task is to see. task_path: where; drivers without a file system of their own leave it out."""

    host_path: str
    task_path: str
    read_only: bool = False
    propagation: str = ""


class TaskDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device node of the host that the task may use. permissions: of `r`, `w` and `m` (mknod)."""

    host_path: str
    task_path: str
    permissions: str = "rwm"


class TaskVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of the node that the task gets. name: what the node calls it. path: absolute, on the host.

    target: where the task wants it, as its driver understands paths. propagation: private | host-to-task | bidirectional.
    """

    name: str
    path: str
    target: str
    read_only: bool = False
    propagation: str = "private"
    selinux_label: str = ""


class TaskConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that a driver needs to start one task; everything is interpolated already.

    id: ALLOC_ID/TASK, unique on the node over time together with `attempt`. config: the job's free map.
    env: NAME to value, NOMAD_* included, with host paths (docker translates them to the container's).
    mounts, devices: what others than the job's config give the task: host volumes, device plugins. device_env: those of
    `env` that came from device plugins.
    log_max_files, log_max_file_mb: rotation of `<task>.<stdout|stderr>.<n>` under paths.logs.
    volumes: only for a start. kill_timeout_s: only a hint here; `stop` has its own.
    """

    id: str
    alloc_id: str
    task: str
    namespace: str
    job_id: str
    group: str
    node_id: str = ""
    node_name: str = ""
    attempt: int = 0
    config: dict[str, Any] = {}
    env: dict[str, str] = {}
    user: str = ""
    resources: AllocatedTaskResources | None = None
    ports: list[PortMapping] = []
    mounts: list[TaskMount] = []
    devices: list[TaskDevice] = []
    device_env: dict[str, str] = {}
    paths: TaskPaths
    volumes: list[TaskVolume] = []
    log_max_files: int = 10
    log_max_file_mb: int = 10
    log_disabled: bool = False
    kill_timeout_s: float = 5.0


class TaskHandle(msgspec.Struct, frozen=True, kw_only=True):
    """What survives an agent restart; stored in the agent's database. state: the driver's own, JSON values only."""

    driver: str
    task_id: str
    version: int = 1
    state: dict[str, Any] = {}


class DriverNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """Where the task answers, when that is not the host itself. ports: label to port inside."""

    ip: str = ""
    auto_advertise: bool = False
    ports: dict[str, int] = {}


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A task that runs."""

    handle: TaskHandle
    network: DriverNetwork | None = None


class ExitResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a task ended. signal: 0 when it was not killed by one. error: "" unless the driver lost track of it."""

    exit_code: int = 0
    signal: int = 0
    oom_killed: bool = False
    error: str = ""

    @property
    def successful(self) -> bool:
        """Exit code 0, no signal, no error."""
        return self.exit_code == 0 and self.signal == 0 and not self.error


class DriverFingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver finds on this host. attributes: e.g. {"driver.docker.version": "20.10.24"}."""

    detected: bool
    healthy: bool
    description: str = ""
    attributes: dict[str, str] = {}


class ExecInput(msgspec.Struct, frozen=True, kw_only=True):
    """One event from the user of an exec session: bytes, end of input, or a new terminal size."""

    data: bytes = b""
    closed: bool = False
    height: int = 0
    width: int = 0


class ExecOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One event to the user. channel: stdout | stderr | exit. With exit, exit_code is set and nothing follows."""

    channel: str
    data: bytes = b""
    exit_code: int = 0


class Driver(Protocol):
    """A kind of task. Every method may be called concurrently for different tasks."""

    @property
    def name(self) -> str:
        """What a job's `driver` says."""
        ...

    async def fingerprint(self) -> DriverFingerprint:
        """Look at the host; never raises for an absent runtime, says detected=False."""
        ...

    def validate(self, config: dict[str, Any]) -> list[str]:
        """Every fault of a task's config, as sentences; empty when it can be started."""
        ...

    async def start(self, task: TaskConfig) -> Started:
        """Start it. Raises DriverError; then nothing is left behind."""
        ...

    async def recover(self, handle: TaskHandle, task: TaskConfig) -> None:
        """Take up a task started by an earlier agent process. Raises TaskNotFoundError when it cannot be found."""
        ...

    async def wait(self, task_id: str) -> ExitResult:
        """Return when the task has ended (at once if it has); cancelling the wait does not touch the task."""
        ...

    async def stop(self, task_id: str, *, signal: str, timeout_s: float) -> None:
        """Send `signal` (e.g. SIGINT), after timeout_s SIGKILL the whole task; returns when it has ended."""
        ...

    async def signal(self, task_id: str, signal: str) -> None:
        """Send a signal by name. Raises DriverError for one the runtime refuses."""
        ...

    async def destroy(self, task_id: str) -> None:
        """Forget an ended task and remove what the runtime keeps of it (its logs stay)."""
        ...

    async def stats(self, task_id: str) -> ResourceUsage:
        """Use since start; Percent and MHz over the time since the last call."""
        ...

    def exec(
        self, task_id: str, command: list[str], *, tty: bool, inputs: AsyncIterator[ExecInput]
    ) -> AsyncIterator[ExecOutput]:
        """Run a command inside the task's environment."""
        ...

    async def close(self) -> None:
        """Release what this agent process holds; tasks go on."""
        ...


@runtime_checkable
class EndsStrays(Protocol):
    """A driver whose tasks outlive the agent and can be found by their allocation alone."""

    async def end_strays(self, alloc_id: str, root: str) -> int:
        """End what runs of an allocation that the agent has forgotten; root: its directory. Returns how many tasks ran.

        Raises DriverError when that cannot be told or done now."""
        ...
