"""What this node answers about itself and its allocations: the Client.*, ClientAlloc.* and FS.* methods.

Bodies are JSON as the HTTP API gives them to users. Who may ask is settled before a call comes here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from agent import exec_session, migrate, task_env
from agent.alloc_sync import AllocSync
from agent.devices.manager import Devices
from agent.drivers.base import ExecInput, ExecOutput
from agent.files import AllocFiles
from agent.garbage import GarbageCollector
from agent.runner.task_runner import TaskRunner
from agent.stats import total
from nomadpy.clock import Clock
from nomadpy.errors import (
    DefiniteError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
)
from nomadpy.models.allocation import Allocation
from nomadpy.models.base import ZERO_TIME
from nomadpy.models.calls import (
    AllocRestart,
    AllocSignal,
    ClientMetaApply,
    ExecStart,
    FileRead,
    LogsRead,
    NodeRead,
)
from nomadpy.models.envelope import Answer
from nomadpy.models.node import NodeMetaResponse
from nomadpy.models.stats import (
    AllocResourceUsage,
    HostStats,
    StreamFrame,
    TaskResourceUsage,
)
from nomadpy.rpc.caller import Stream

_DONE = Answer(body=b'{"Index":0}')

Handler = Callable[..., Awaitable[Any]]


class Registry(Protocol):
    """Takes the handlers, as the rpc dispatcher does."""

    def register(self, method: str, handler: Handler) -> None:
        """Serve a method of rpc/methods.py."""
        ...


class NodeMetadata(Protocol):
    """The node's metadata, which operators may change while the agent runs."""

    @property
    def static(self) -> Mapping[str, str]:
        """What the configuration says."""
        ...

    @property
    def dynamic(self) -> Mapping[str, str | None]:
        """What was set at run time; None hides a static key."""
        ...

    @property
    def merged(self) -> Mapping[str, str]:
        """What counts."""
        ...

    async def apply(self, changes: Mapping[str, str | None]) -> None:
        """Change, store and register. Raises InvalidRequestError."""
        ...


class TaskLogs(Protocol):
    """Reads the rotated logs of tasks."""

    def frames(
        self, logs_dir: str, task: str, kind: str, *, offset: int, origin: str, follow: bool
    ) -> AsyncIterator[StreamFrame]:
        """Frames of `<task>.<kind>.<n>`; with `follow` an empty frame each second in which nothing happened."""
        ...


class Endpoints:
    """The handlers of one node."""

    def __init__(
        self,
        sync: AllocSync,
        garbage: GarbageCollector,
        metadata: NodeMetadata,
        clock: Clock,
        *,
        host_stats: Callable[[], Awaitable[HostStats]],
        alloc_root: Callable[[str], str],
        logs: TaskLogs,
        remote_exec: bool = True,
        devices: Devices | None = None,
    ) -> None:
        """alloc_root: an allocation's directory by its id. remote_exec: False refuses every exec session."""
        self._sync = sync
        self._garbage = garbage
        self._metadata = metadata
        self._clock = clock
        self._host_stats = host_stats
        self._alloc_root = alloc_root
        self._logs = logs
        self._remote_exec = remote_exec
        self._devices = devices or Devices()

    def register(self, registry: Registry) -> None:
        """Serve everything a node serves."""
        handlers: dict[str, Handler] = {
            "Client.Stats": self.stats,
            "Client.Meta": self.meta,
            "Client.MetaApply": self.meta_apply,
            "Client.GarbageCollect": self.collect,
            "ClientAlloc.Stats": self.alloc_stats,
            "ClientAlloc.Checks": self.alloc_checks,
            "ClientAlloc.GarbageCollect": self.alloc_collect,
            "ClientAlloc.Signal": self.alloc_signal,
            "ClientAlloc.Restart": self.alloc_restart,
            "ClientAlloc.Exec": self.alloc_exec,
            "FS.List": self.files_list,
            "FS.Stat": self.files_stat,
            "FS.Cat": self.files_cat,
            "FS.ReadAt": self.files_read_at,
            "FS.Stream": self.files_stream,
            "FS.Logs": self.files_logs,
            "FS.Disk": self.files_disk,
        }
        for method, handler in handlers.items():
            registry.register(method, handler)

    # -- the node ---------------------------------------------------------------------------------

    async def stats(self, _context: object, _request: NodeRead) -> Answer:
        """Client.Stats: what the host uses, and its devices do."""
        host = await self._host_stats()
        measured = await self._devices.stats()
        return _json(msgspec.structs.replace(host, device_stats=measured) if measured else host)

    async def meta(self, _context: object, _request: NodeRead) -> Answer:
        """Client.Meta: static, dynamic and effective metadata."""
        return self._meta_answer()

    async def meta_apply(self, _context: object, request: ClientMetaApply) -> Answer:
        """Client.MetaApply: change the dynamic metadata."""
        await self._metadata.apply(request.meta)
        return self._meta_answer()

    def _meta_answer(self) -> Answer:
        return _json(
            NodeMetaResponse(
                meta=dict(self._metadata.merged),
                dynamic=dict(self._metadata.dynamic),
                static=dict(self._metadata.static),
            )
        )

    async def collect(self, _context: object, _request: NodeRead) -> Answer:
        """Client.GarbageCollect: remove all ended allocations."""
        await self._garbage.collect_all()
        return Answer()

    # -- an allocation ----------------------------------------------------------------------------

    async def alloc_stats(self, _context: object, request: NodeRead) -> Answer:
        """ClientAlloc.Stats: use of the running tasks; flags may name one `task`."""
        runner = self._sync.runner(request.alloc_id)
        name = request.flags.get("task", "")
        tasks = {name: runner.task(name)} if name else runner.tasks
        now_ns = self._clock.now_ns()
        usages = await self._usages(runner.alloc, tasks)
        whole = total(u.resource_usage for u in usages.values() if u.resource_usage is not None)
        # Nomad writes an empty list for the whole, and null for each task without devices.
        measured = [
            group
            for usage in usages.values()
            if usage.resource_usage is not None
            for group in usage.resource_usage.device_stats or ()
        ]
        whole = msgspec.structs.replace(whole, device_stats=measured)
        return _json(AllocResourceUsage(resource_usage=whole, tasks=usages, timestamp=now_ns))

    async def _usages(
        self, alloc: Allocation, tasks: Mapping[str, TaskRunner]
    ) -> dict[str, TaskResourceUsage]:
        found: dict[str, TaskResourceUsage] = {}
        for name, runner in tasks.items():
            usage = await runner.stats()
            if usage is None:
                continue
            given = task_env.task_resources(alloc, name)
            measured = await self._devices.task_stats(given.devices if given else None)
            if measured and usage.resource_usage is not None:
                whole = msgspec.structs.replace(usage.resource_usage, device_stats=measured)
                usage = msgspec.structs.replace(usage, resource_usage=whole)
            found[name] = usage
        return found

    async def alloc_checks(self, _context: object, request: NodeRead) -> Answer:
        """ClientAlloc.Checks: this agent runs no service checks, so there are none."""
        self._sync.runner(request.alloc_id)
        return Answer(body=b"null")

    async def alloc_collect(self, _context: object, request: NodeRead) -> Answer:
        """ClientAlloc.GarbageCollect: remove one ended allocation."""
        if not await self._garbage.collect_one(request.alloc_id):
            raise DefiniteError(
                f'allocation "{request.alloc_id}" is not terminal and cannot be garbage collected'
            )
        return Answer()

    async def alloc_signal(self, _context: object, request: AllocSignal) -> Answer:
        """ClientAlloc.Signal."""
        await self._sync.runner(request.alloc_id).signal(request.signal, request.task)
        return _DONE

    async def alloc_restart(self, _context: object, request: AllocRestart) -> Answer:
        """ClientAlloc.Restart."""
        runner = self._sync.runner(request.alloc_id)
        await runner.restart(request.task, all_tasks=request.all_tasks)
        return _DONE

    async def alloc_exec(self, _context: object, request: ExecStart, stream: Stream) -> None:
        """ClientAlloc.Exec: a command beside a running task. PermissionDeniedError where the operator forbids it."""
        if not self._remote_exec:
            raise PermissionDeniedError
        runner = self._sync.runner(request.alloc_id)
        name = request.task
        if not name:
            if len(runner.tasks) != 1:
                raise InvalidRequestError("must provide task name")
            name = next(iter(runner.tasks))
        if name not in runner.tasks:
            raise NotFoundError(f'unknown task name "{name}"')
        if not request.command:
            raise InvalidRequestError("command is not present")
        task = runner.task(name)

        def run(inputs: AsyncIterator[ExecInput]) -> AsyncIterator[ExecOutput]:
            return task.exec(request.command, tty=request.tty, inputs=inputs)

        await exec_session.serve(stream, run)

    # -- files ------------------------------------------------------------------------------------

    def _files(self, alloc_id: str) -> AllocFiles:
        self._sync.runner(alloc_id)
        return AllocFiles(self._alloc_root(alloc_id))

    async def files_list(self, _context: object, request: FileRead) -> Answer:
        """FS.List."""
        return _json(await self._files(request.alloc_id).entries(request.path))

    async def files_stat(self, _context: object, request: FileRead) -> Answer:
        """FS.Stat."""
        return _json(await self._files(request.alloc_id).stat(request.path))

    async def files_cat(self, _context: object, request: FileRead, stream: Stream) -> None:
        """FS.Cat: the raw bytes of a file."""
        async for data in self._files(request.alloc_id).read(request.path):
            await stream.send(data)
        await stream.finish()

    async def files_disk(self, _context: object, request: NodeRead, stream: Stream) -> None:
        """FS.Disk: the whole ephemeral disk of an allocation that has ended, for the node of its replacement."""
        runner = self._sync.runner(request.alloc_id)
        if not runner.is_terminal:
            raise DefiniteError(f'allocation "{request.alloc_id}" has not ended')
        root = self._alloc_root(request.alloc_id)
        await migrate.send_disk(stream, root, list(runner.tasks))

    async def files_read_at(self, _context: object, request: FileRead, stream: Stream) -> None:
        """FS.ReadAt: the raw bytes of a part."""
        files = self._files(request.alloc_id)
        async for data in files.read(request.path, offset=request.offset, limit=request.limit):
            await stream.send(data)
        await stream.finish()

    async def files_stream(self, _context: object, request: FileRead, stream: Stream) -> None:
        """FS.Stream: frames, or raw bytes when `plain`."""
        frames = self._files(request.alloc_id).stream(
            request.path, offset=request.offset, origin=request.origin, follow=request.follow
        )
        await _send_frames(stream, frames, plain=request.plain)

    async def files_logs(self, _context: object, request: LogsRead, stream: Stream) -> None:
        """FS.Logs: a task's output, frames or raw bytes."""
        runner = self._sync.runner(request.alloc_id)
        task = runner.tasks.get(request.task)
        if task is None:
            raise InvalidRequestError(f'unknown task name "{request.task}"')
        if task.state.started_at == ZERO_TIME and not task.state.restarts:
            raise NotFoundError(f'task "{request.task}" not started yet. No logs available')
        frames = self._logs.frames(
            f"{self._alloc_root(request.alloc_id)}/alloc/logs",
            request.task,
            request.type,
            offset=request.offset,
            origin=request.origin,
            follow=request.follow,
        )
        await _send_frames(stream, frames, plain=request.plain)


async def _send_frames(stream: Stream, frames: AsyncIterator[StreamFrame], *, plain: bool) -> None:
    async for frame in frames:
        if not plain:
            await stream.send(msgspec.json.encode(frame))
        elif frame.data:
            await stream.send(frame.data)
    await stream.finish()


def _json(value: Any) -> Answer:
    return Answer(body=msgspec.json.encode(value))
