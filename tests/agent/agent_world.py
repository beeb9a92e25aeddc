"""A world for agent tests: a scripted driver, servers in memory, a clock that follows the loop, jobs by the handful."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent.agent import Agent, AgentConfig
from agent.devices.manager import Devices
from agent.drivers.base import (
    DriverError,
    DriverFingerprint,
    ExecInput,
    ExecOutput,
    ExitResult,
    Started,
    TaskConfig,
    TaskHandle,
    TaskNotFoundError,
)
from agent.drivers.mock import MockDriver
from agent.local_state import MemoryState
from agent.services.certificates import Credentials, NoCredentials
from agent.task_dir import MemoryDirectories
from nomadpy.entropy import SeededEntropy
from nomadpy.errors import NoLeaderError, NotFoundError, UnreachableError
from nomadpy.models import calls
from nomadpy.models.allocation import Allocation
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.lifecycle import TaskLifecycle
from nomadpy.models.node import Node, NodeResources
from nomadpy.models.resources import (
    AllocatedCpuResources,
    AllocatedMemoryResources,
    AllocatedResources,
    AllocatedSharedResources,
    AllocatedTaskResources,
)
from nomadpy.models.stats import CpuStats, HostStats, MemoryStats, ResourceUsage, StreamFrame
from nomadpy.models.task import Task
from nomadpy.models.task_blocks import RestartPolicy

SECOND = 1_000_000_000
EPOCH_NS = 1_795_000_000 * SECOND


class LoopClock:
    """The loop's time, virtual or real."""

    def now_ns(self) -> int:
        return EPOCH_NS + int(self.monotonic() * SECOND)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass
class Script:
    """How one start of a task goes. runs_s: until it ends by itself, None for ever. stop_s: how long it takes to end
    after the signal, None ignores it until the timeout."""

    runs_s: float | None = None
    exit_code: int = 0
    start_s: float = 0.0
    start_error: str = ""
    recoverable: bool = True
    stop_s: float | None = 0.0


@dataclass
class Process:
    config: TaskConfig
    script: Script
    ended: asyncio.Future[ExitResult]
    signals: list[str] = field(default_factory=list)


class ScriptedDriver:
    """A driver whose tasks do what their script says; the tasks outlive any agent that uses it."""

    name = "scripted"

    def __init__(self) -> None:
        self.scripts: dict[str, list[Script]] = {}
        self.processes: dict[str, Process] = {}
        self.started: list[str] = []
        self.configs: list[TaskConfig] = []
        self.calls: list[str] = []
        self.live_at_once = 0
        self.refuse_stop = 0

    def script(self, task: str, *scripts: Script) -> None:
        """The last one repeats."""
        self.scripts[task] = list(scripts)

    def live(self) -> list[str]:
        return sorted(p.config.task for p in self.processes.values() if not p.ended.done())

    async def fingerprint(self) -> DriverFingerprint:
        return DriverFingerprint(detected=True, healthy=True, description="Healthy")

    def validate(self, config: dict[str, Any]) -> list[str]:
        return ["command must not be empty"] if config.get("bad") else []

    async def start(self, task: TaskConfig) -> Started:
        scripts = self.scripts.get(task.task, [Script()])
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        self.calls.append(f"start {task.task}")
        await asyncio.sleep(script.start_s)
        if script.start_error:
            raise DriverError(script.start_error, recoverable=script.recoverable)
        old = self.processes.get(task.id)
        assert old is None or old.ended.done(), f"{task.id} runs already"
        loop = asyncio.get_running_loop()
        process = Process(task, script, loop.create_future())
        self.processes[task.id] = process
        self.started.append(task.task)
        self.configs.append(task)
        if script.runs_s is not None:
            result = ExitResult(exit_code=script.exit_code)
            loop.call_later(script.runs_s, self._end, process, result)
        return Started(
            handle=TaskHandle(driver=self.name, task_id=task.id, state={"n": len(self.started)})
        )

    def _end(self, process: Process, result: ExitResult) -> None:
        if not process.ended.done():
            process.ended.set_result(result)

    def _find(self, task_id: str) -> Process:
        if task_id not in self.processes:
            raise TaskNotFoundError(f"no task {task_id}")
        return self.processes[task_id]

    async def recover(self, handle: TaskHandle, task: TaskConfig) -> None:
        self.calls.append(f"recover {task.task}")
        self._find(handle.task_id)

    async def wait(self, task_id: str) -> ExitResult:
        return await asyncio.shield(self._find(task_id).ended)

    async def stop(self, task_id: str, *, signal: str, timeout_s: float) -> None:
        process = self._find(task_id)
        if self.refuse_stop > 0:
            self.refuse_stop -= 1
            raise DriverError("the runtime is busy")
        process.signals.append(signal)
        self.calls.append(f"stop {process.config.task}")
        stop_s = process.script.stop_s
        if stop_s is not None and stop_s < timeout_s:
            await asyncio.sleep(stop_s)
            self._end(process, ExitResult(exit_code=130, signal=2))
        else:
            await asyncio.sleep(timeout_s)
            self._end(process, ExitResult(exit_code=137, signal=9))

    async def signal(self, task_id: str, signal: str) -> None:
        self._find(task_id).signals.append(signal)

    async def destroy(self, task_id: str) -> None:
        process = self._find(task_id)
        assert process.ended.done(), f"{task_id} still runs"
        self.calls.append(f"destroy {process.config.task}")
        del self.processes[task_id]

    async def stats(self, task_id: str) -> ResourceUsage:
        self._find(task_id)
        return ResourceUsage(memory_stats=MemoryStats(rss=1000), cpu_stats=CpuStats(percent=1.0))

    async def exec(
        self, task_id: str, command: list[str], *, tty: bool, inputs: AsyncIterator[ExecInput]
    ) -> AsyncIterator[ExecOutput]:
        yield ExecOutput(channel="stdout", data=" ".join(command).encode())
        async for item in inputs:
            if item.closed:
                break
            if item.data:
                yield ExecOutput(channel="stderr", data=item.data.upper())
            if item.height:
                yield ExecOutput(channel="stdout", data=f"{item.height}x{item.width}".encode())
        yield ExecOutput(channel="exit", exit_code=3)

    async def close(self) -> None:
        self.calls.append("close")


class FakeServers:
    """The servers' side of an agent's calls."""

    def __init__(self) -> None:
        self.up = True
        self.index = 10
        self.restored = 0
        self.wanted: dict[str, Allocation] = {}
        self.reported: dict[str, Allocation] = {}
        self.reports: list[Allocation] = []
        self.batches: list[int] = []
        self.node: Node | None = None
        self.registrations: list[Node] = []
        self.beats: list[float] = []
        self.statuses: list[str] = []
        self.ttl_ns = 10 * SECOND
        self.sign: Callable[[calls.TaskCertificateRequest], calls.TaskCertificateReply] | None = (
            None
        )
        self.identities: list[calls.SignedIdentity] = []
        self.signed = 0
        self._moved = asyncio.Event()

    def want(self, alloc: Allocation) -> None:
        """Place or change an allocation."""
        self.index += 1
        self.wanted[alloc.id] = msgspec.structs.replace(alloc, alloc_modify_index=self.index)
        self._move()

    def change(self, alloc_id: str, **changes: Any) -> None:
        self.want(msgspec.structs.replace(self.wanted[alloc_id], **changes))

    def forget(self, alloc_id: str) -> None:
        self.index += 1
        del self.wanted[alloc_id]
        self._move()

    def restore(self, wanted: dict[str, Allocation], reported: dict[str, Allocation]) -> None:
        """An earlier state comes back, at a new index; versions of allocations are what they were then."""
        self.index += 1
        self.restored = self.index
        self.wanted, self.reported = dict(wanted), dict(reported)
        self._move()

    def stop(self, up: bool) -> None:
        self.up = up
        self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def status(self, alloc_id: str) -> str:
        return self.reported[alloc_id].client_status if alloc_id in self.reported else ""

    async def until(self, condition: Callable[[], Any], *, within_s: float = 120.0) -> None:
        """Wait for a state (polling: virtual time costs nothing)."""
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.05)

    def open(self, method: str, request: msgspec.Struct) -> Any:
        raise UnreachableError("no streams here")

    async def call(self, method: str, request: Any, *, timeout_s: float | None = None) -> Any:
        await asyncio.sleep(0.001)
        if not self.up:
            raise UnreachableError("connection refused")
        match method:
            case "Node.Register":
                self.node = request.node
                self.registrations.append(request.node)
                return calls.NodeReply(index=self.index, ttl_ns=self.ttl_ns)
            case "Node.Heartbeat":
                if self.node is None or self.node.id != request.node_id:
                    raise NotFoundError("node not found")
                self.beats.append(asyncio.get_running_loop().time())
                self.statuses.append(request.status)
                return calls.NodeReply(index=self.index, ttl_ns=self.ttl_ns)
            case "Node.ClientAllocs":
                return await self._client_allocs(request)
            case "Alloc.GetMany":
                found = [self.wanted[i] for i in request.ids if i in self.wanted]
                return calls.AllocsGetReply(allocs=found)
            case "Node.UpdateAllocs":
                self.batches.append(len(request.allocs))
                for alloc in request.allocs:
                    self.reported[alloc.id] = alloc
                    self.reports.append(alloc)
                    if alloc.id in self.wanted:
                        self.wanted[alloc.id] = msgspec.structs.replace(
                            self.wanted[alloc.id], client_status=alloc.client_status
                        )
                return calls.IndexReply(index=self.index)
            case "Alloc.SignCertificate":
                if self.sign is None:
                    raise NoLeaderError
                self.signed += 1
                return self.sign(request)
            case "Alloc.SignIdentities":
                return calls.SignIdentitiesReply(identities=self.identities)
        raise AssertionError(method)

    async def _client_allocs(self, request: calls.ClientAllocsRequest) -> Any:
        end = asyncio.get_running_loop().time() + request.options.wait_ns / SECOND
        while self.index <= request.options.min_index:
            moved = self._moved
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left):
                    await moved.wait()
            except TimeoutError:
                break
            if not self.up:
                raise UnreachableError("connection reset")
        return calls.ClientAllocsReply(
            index=self.index,
            allocs={k: a.alloc_modify_index for k, a in self.wanted.items()},
            restored=self.restored,
        )


class NoLogs:
    """Task logs of a world without files."""

    async def frames(
        self, logs_dir: str, task: str, kind: str, *, offset: int, origin: str, follow: bool
    ) -> AsyncIterator[StreamFrame]:
        yield StreamFrame(data=b"hello\n", file=f"alloc/logs/{task}.{kind}.0", offset=6)


def task(
    name: str = "task",
    *,
    hook: str = "",
    sidecar: bool = False,
    attempts: int = 0,
    delay_s: float = 1.0,
    interval_s: float = 600.0,
    mode: str = "fail",
    **more: Any,
) -> Task:
    return Task(
        name=name,
        driver="scripted",
        kill_timeout=more.pop("kill_timeout", 5 * SECOND),
        lifecycle=TaskLifecycle(hook=hook, sidecar=sidecar) if hook else None,
        restart_policy=RestartPolicy(
            attempts=attempts,
            delay=int(delay_s * SECOND),
            interval=int(interval_s * SECOND),
            mode=mode,
        ),
        **more,
    )


def allocation(
    *tasks: Task,
    number: int = 1,
    kind: str = "service",
    group: dict[str, Any] | None = None,
    **more: Any,
) -> Allocation:
    """An allocation of job `web`, group `g`; `group` are fields of the group."""
    chosen = list(tasks) or [task()]
    job = Job(
        id="web",
        name="web",
        namespace="default",
        region="global",
        type=kind,
        task_groups=[TaskGroup(name="g", count=1, tasks=chosen, **(group or {}))],
    )
    job = msgspec.structs.replace(job, **more.pop("job", {}))
    resources = AllocatedResources(
        tasks={
            t.name: AllocatedTaskResources(
                cpu=AllocatedCpuResources(cpu_shares=100),
                memory=AllocatedMemoryResources(memory_mb=64),
            )
            for t in chosen
        },
        shared=AllocatedSharedResources(disk_mb=300),
    )
    fields: dict[str, Any] = {
        "id": f"{number:08d}-0000-4000-8000-000000000000",
        "namespace": "default",
        "name": f"web.g[{number - 1}]",
        "node_id": "node",
        "job_id": "web",
        "job": job,
        "task_group": "g",
        "desired_status": "run",
        "client_status": "pending",
        "allocated_resources": resources,
    }
    return Allocation(**{**fields, **more})


class World:
    """Servers, a driver and what survives agents; `agent()` makes the next agent process."""

    def __init__(self) -> None:
        self.servers = FakeServers()
        self.driver = ScriptedDriver()
        self.state = MemoryState()
        self.directories = MemoryDirectories()

    def agent(
        self,
        *,
        credentials: Credentials | None = None,
        devices: Devices | None = None,
        **config: Any,
    ) -> Agent:
        async def fingerprint() -> Node:
            return Node(
                attributes={"kernel.name": "linux", "cpu.arch": "amd64"},
                node_resources=NodeResources(),
            )

        async def host_stats() -> HostStats:
            return HostStats(uptime=5)

        return Agent(
            AgentConfig(name="n1", **config),
            caller=self.servers,
            drivers={"scripted": self.driver, "mock_driver": MockDriver(LoopClock())},
            fingerprint=fingerprint,
            host_stats=host_stats,
            task_logs=NoLogs(),
            clock=LoopClock(),
            entropy=SeededEntropy(7),
            state=self.state,
            directories=self.directories,
            credentials=credentials or NoCredentials(),
            devices=devices,
        )

    def running(self, **config: Any) -> Running:
        """An agent process for the length of a block; leaving the block is its death."""
        return Running(self.agent(**config))


class Running:
    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def __aenter__(self) -> Agent:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._task = self._group.create_task(self.agent.run(), name="agent")
        return self.agent

    async def __aexit__(self, *error: Any) -> None:
        self._task.cancel()
        await self._group.__aexit__(None, None, None)


def kinds(alloc: Allocation, name: str = "task") -> list[str]:
    """The types of a task's events."""
    assert alloc.task_states is not None
    return [event.type for event in alloc.task_states[name].events or []]
