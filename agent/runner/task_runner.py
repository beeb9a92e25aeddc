"""One task: carries out what the task machine says, and tells it what happened.

Every event passes one inbox and is handled in order. Whatever takes time runs as a child task that answers with an event.
What the machine remembers is on disk before its instructions are carried out, so that an agent that dies at any
point finds out afterwards what may have happened.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, runtime_checkable

import msgspec

from agent import task_env
from agent.devices.base import DeviceError, Reservation
from agent.drivers.base import (
    Driver,
    DriverError,
    ExecInput,
    ExecOutput,
    ExitResult,
    TaskConfig,
    TaskHandle,
    TaskNotFoundError,
    TaskVolume,
)
from agent.runner import events, restarts
from agent.runner import task_machine as machine
from agent.runner.context import RunnerContext, SetupError
from agent.runner.task_machine import Phase, TaskMachine, TaskRecord, TaskSpec
from agent.server_list import Backoff
from agent.services.certificates import CredentialsError
from agent.task_env import TaskEnvironment
from agent.volume_mounts import task_volumes
from nomadpy import logs
from nomadpy.errors import DefiniteError, NomadError, NotFoundError
from nomadpy.models.allocation import Allocation, TaskState
from nomadpy.models.stats import TaskResourceUsage
from nomadpy.models.task import Task
from nomadpy.models.task_blocks import WorkloadIdentity

log = logs.get(__name__)

_SECOND = 1_000_000_000
_FORCE_TIMEOUT_S = 1.0


@runtime_checkable
class MeasuresProcesses(Protocol):
    """A driver that can tell the processes of a task apart."""

    async def usage(self, task_id: str) -> TaskResourceUsage:
        """As `stats`, with every process."""
        ...


class TaskNotRunningError(DefiniteError):
    """Only a running task can do that."""

    code = "task-not-running"


class TaskRunner:
    """Runs one task of an allocation until its allocation is over; cancelling `run` leaves the workload alone."""

    def __init__(
        self,
        context: RunnerContext,
        alloc: Allocation,
        task: Task,
        record: TaskRecord | None,
        changed: Callable[[], None],
    ) -> None:
        """record: None for a task new to this node. changed: called after every change of `state`."""
        self.name = task.name
        self.task_id = f"{alloc.id}/{task.name}"
        self._context = context
        self._alloc = alloc
        self._task = task
        self._changed = changed
        self._inbox: asyncio.Queue[machine.Event] = asyncio.Queue()
        self._children: dict[str, asyncio.Task[None]] = {}
        self._config: TaskConfig | None = None
        # What was lost while the agent was away may run elsewhere by now: servers decide before it starts here again.
        self._ask_first = record is not None
        now_ns = context.clock.now_ns()
        self._new = record is None
        self.machine = TaskMachine(
            self._spec(), record or TaskMachine.fresh(now_ns), context.entropy
        )
        self.restored = asyncio.Event()
        self._log = log.bind(alloc_id=alloc.id, task=task.name)

    @property
    def state(self) -> TaskState:
        """The task's state as the wire has it."""
        return self.machine.state

    @property
    def is_running(self) -> bool:
        """Whether the workload runs, be it on its way out."""
        return self.machine.phase in (Phase.RUNNING, Phase.DRAINING, Phase.STOPPING)

    def post(self, event: machine.Event) -> None:
        """Tell the machine; handled in order."""
        self._inbox.put_nowait(event)

    def update(self, alloc: Allocation, task: Task) -> None:
        """Take over a definition that changed in place; what needs a start comes into force with the next one."""
        self._alloc = alloc
        self._task = task
        self.machine.spec = self._spec()

    async def run(self) -> None:
        """Handle events for ever."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            if self._new:
                await self._save()
            first = self.machine.begin()
            await self._perform_all(first)
            if self.machine.phase is not Phase.RECOVERING:
                self.restored.set()
            while True:
                await self._step(await self._inbox.get())

    # -- what users ask for -----------------------------------------------------------------------

    async def signal(self, signal: str) -> None:
        """Send the running task a signal. Raises TaskNotRunningError, DriverError."""
        if not self.is_running:
            raise TaskNotRunningError("Task not running")
        self.post(machine.Note(event=events.signaling(self._context.clock.now_ns(), signal)))
        await self._driver().signal(self.task_id, signal)

    async def stats(self) -> TaskResourceUsage | None:
        """Use of the running task, by process where the driver can tell; None when it does not run."""
        if not self.is_running:
            return None
        driver = self._driver()
        try:
            if isinstance(driver, MeasuresProcesses):
                return await driver.usage(self.task_id)
            return TaskResourceUsage(
                resource_usage=await driver.stats(self.task_id),
                timestamp=self._context.clock.now_ns(),
            )
        except (DriverError, NotFoundError):
            # It ended between the question and the answer.
            return None

    def exec(
        self, command: list[str], *, tty: bool, inputs: AsyncIterator[ExecInput]
    ) -> AsyncIterator[ExecOutput]:
        """Run a command beside the task. Raises TaskNotRunningError."""
        if not self.is_running:
            raise TaskNotRunningError(f'task "{self.name}" is not running.')
        return self._driver().exec(self.task_id, command, tty=tty, inputs=inputs)

    async def kill_now(self) -> None:
        """Stop and forget the workload without the machine: only when `run` has ended."""
        record = self.machine.record
        if record.handle is None and not record.launching:
            return
        try:
            driver = self._driver()
            if record.handle is None:
                handle = TaskHandle(driver=driver.name, task_id=self.task_id)
                await driver.recover(handle, self._present_config())
            await driver.stop(
                self.task_id,
                signal=self.machine.spec.kill_signal,
                timeout_s=self.machine.spec.kill_timeout_ns / _SECOND,
            )
            await driver.destroy(self.task_id)
        except TaskNotFoundError:
            return
        except NomadError as cause:
            self._log.warning("task not stopped on exit", error=cause.message)

    # -- the loop ---------------------------------------------------------------------------------

    async def _step(self, event: machine.Event) -> None:
        before = self.machine.record
        if isinstance(event, machine.Exited):
            self._cancel("stop")
            self._cancel("watch")
            self._cancel("credentials")
        instructions = self.machine.handle(event, self._context.clock.now_ns())
        if self.machine.record is not before:
            await self._save()
        await self._perform_all(instructions)
        if self.machine.phase is not Phase.RECOVERING:
            self.restored.set()
        if self.machine.record is not before:
            self._changed()

    async def _save(self) -> None:
        try:
            await self._context.state.put_task(self._alloc.id, self.name, self.machine.record)
        except OSError as cause:
            # Going on is better than stopping the workload: what is lost is re-attaching after the next restart.
            self._log.error("task record not saved", error=str(cause))

    async def _perform_all(self, instructions: list[machine.Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case machine.Discard():
                    await self._discard()
                case machine.Prepare():
                    self._spawn("prepare", self._prepare(), self._prepare_broke)
                case machine.CancelPrepare():
                    self._cancel("prepare")
                case machine.Launch():
                    self._spawn("launch", self._launch(), self._launch_broke)
                case machine.Recover(handle=handle):
                    self._spawn("recover", self._recover(handle), self._recover_broke)
                case machine.Watch():
                    self._spawn("watch", self._watch(), self._watch_broke)
                    self._spawn("credentials", self._keep_credentials(), _unheard)
                case machine.Stop(signal=signal, timeout_ns=timeout_ns):
                    self._spawn("stop", self._stop(signal, timeout_ns / _SECOND), self._stop_broke)
                case machine.StartTimer(delay_ns=delay_ns):
                    self._spawn("timer", self._timer(delay_ns / _SECOND), _unheard)
                case machine.CancelTimer():
                    self._cancel("timer")

    def _spawn(
        self, kind: str, work: Coroutine[Any, Any, None], broke: Callable[[str], None]
    ) -> None:
        self._cancel(kind)
        self._children[kind] = self._group.create_task(
            self._guarded(kind, work, broke), name=f"{kind} {self.task_id}"
        )

    async def _guarded(
        self, kind: str, work: Coroutine[Any, Any, None], broke: Callable[[str], None]
    ) -> None:
        try:
            await work
        except Exception as cause:  # noqa: BLE001 - the child's life ends here; a driver's bug must not end the agent
            self._log.exception("a step of a task broke", step=kind)
            broke(f"internal error in {kind}: {cause!r}")

    def _cancel(self, kind: str) -> None:
        child = self._children.pop(kind, None)
        if child is not None:
            child.cancel()

    # -- steps, each answers with an event --------------------------------------------------------

    async def _prepare(self) -> None:
        try:
            await self._prepare_start()
        except (SetupError, CredentialsError) as cause:
            self.post(machine.PrepareFailed(message=cause.message, recoverable=cause.recoverable))
        except NomadError as cause:
            self.post(machine.PrepareFailed(message=cause.message, recoverable=False))
        else:
            self.post(machine.Prepared())

    async def _prepare_start(self) -> None:
        alloc, task, context = self._alloc, self._task, self._context
        if self._ask_first:
            await context.contacted.wait()
            self._ask_first = False
        driver = self._driver()
        if self.machine.record.attempt == 0:
            self.post(
                machine.Note(event=events.setup(context.clock.now_ns(), "Building Task Directory"))
            )
        paths = await context.directories.build(alloc.id, task.name, task.user)
        extra: dict[str, str] = {}
        for hook in context.hooks:
            extra.update(await hook.prepare(alloc, task, paths, self._say))
        extra.update(await context.credentials.prepare(alloc, task, self._say))
        reserved = await self._reserve()
        environment = self._environment(extra, reserved.env)
        config = self._task_config(environment, attempt=self.machine.record.attempt + 1)
        faults = driver.validate(config.config)
        if faults:
            raise SetupError(f"failed to parse config: {'; '.join(faults)}")
        self._config = msgspec.structs.replace(
            config,
            volumes=await self._volumes(environment),
            mounts=reserved.mounts,
            devices=reserved.devices,
            device_env=reserved.env,
        )

    async def _reserve(self) -> Reservation:
        """What the task's devices need. Asked for at every start, and not when a task that runs is taken up again."""
        given = task_env.task_resources(self._alloc, self.name)
        try:
            return await self._context.devices.reserve(given.devices if given else None)
        except DeviceError as cause:
            raise SetupError(
                f"devices cannot be reserved: {cause.message}", recoverable=cause.recoverable
            ) from cause

    async def _volumes(self, environment: TaskEnvironment) -> list[TaskVolume]:
        """What the task wants mounted. Raises SetupError for a volume that is not there: an empty directory
        in its place would look like lost data."""
        on_node = self._context.node().host_volumes or {}
        volumes = task_volumes(self._alloc, self._task, on_node, environment.resolve)
        for volume in volumes:
            if not await asyncio.to_thread(os.path.exists, volume.path):
                raise SetupError(
                    f"volume {volume.name!r}: {volume.path} is not there", recoverable=True
                )
        return volumes

    async def _launch(self) -> None:
        assert self._config is not None
        try:
            started = await self._driver().start(self._config)
        except DriverError as cause:
            self.post(machine.LaunchFailed(message=cause.message, recoverable=cause.recoverable))
        except NomadError as cause:
            self.post(machine.LaunchFailed(message=cause.message, recoverable=True))
        else:
            self._log.info("task started", attempt=self.machine.record.attempt)
            self.post(machine.Launched(handle=started.handle))

    async def _recover(self, handle: TaskHandle | None) -> None:
        # A start that no agent saw through left no handle; the drivers can find a task by its id and attempt.
        found = handle or TaskHandle(driver=self._task.driver, task_id=self.task_id)
        try:
            await self._driver().recover(found, self._present_config())
        except NomadError as cause:
            self._log.warning("task lost while the agent was away", error=cause.message)
            self.post(machine.RecoverFailed(message=f"failed to recover task: {cause.message}"))
        else:
            self._ask_first = False
            self._log.info("task recovered")
            self.post(machine.Recovered(handle=found))

    async def _watch(self) -> None:
        try:
            result = await self._driver().wait(self.task_id)
        except NomadError as cause:
            result = ExitResult(exit_code=-1, error=cause.message)
        self._log.info("task ended", exit_code=result.exit_code, signal=result.signal)
        self.post(machine.Exited(result=result))

    async def _stop(self, signal: str, timeout_s: float) -> None:
        backoff = Backoff(self._context.entropy, first_s=1.0)
        while True:
            try:
                await self._driver().stop(self.task_id, signal=signal, timeout_s=timeout_s)
            except TaskNotFoundError as cause:
                self.post(machine.Exited(result=ExitResult(exit_code=-1, error=cause.message)))
                return
            except NomadError as cause:
                self._log.error("task not stopped; trying again", error=cause.message)
                self.post(machine.StopFailed(message=cause.message))
                await asyncio.sleep(backoff.next_s())
                signal, timeout_s = "SIGKILL", _FORCE_TIMEOUT_S
            else:
                return

    async def _timer(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self.post(machine.TimerFired())

    async def _keep_credentials(self) -> None:
        await self._context.credentials.keep(self._alloc, self._task, self._identity_changed)

    async def _discard(self) -> None:
        try:
            await self._driver().destroy(self.task_id)
        except NotFoundError:
            return
        except NomadError as cause:
            self._log.warning("ended task not removed from its driver", error=cause.message)

    def _prepare_broke(self, message: str) -> None:
        self.post(machine.PrepareFailed(message=message, recoverable=False))

    def _launch_broke(self, message: str) -> None:
        self.post(machine.LaunchFailed(message=message, recoverable=True))

    def _recover_broke(self, message: str) -> None:
        self.post(machine.RecoverFailed(message=message))

    def _watch_broke(self, message: str) -> None:
        self.post(machine.Exited(result=ExitResult(exit_code=-1, error=message)))

    def _stop_broke(self, message: str) -> None:
        self.post(machine.StopFailed(message=message))

    def _identity_changed(self, identity: WorkloadIdentity) -> None:
        now_ns = self._context.clock.now_ns()
        if identity.change_mode == "restart":
            self.post(machine.Restart(reason=f"Identity {identity.name} was renewed"))
        elif identity.change_mode == "signal" and identity.change_signal:
            self.post(machine.Note(event=events.signaling(now_ns, identity.change_signal)))
            self._spawn("identity-signal", self._signal_quietly(identity.change_signal), _unheard)

    async def _signal_quietly(self, signal: str) -> None:
        try:
            await self._driver().signal(self.task_id, signal)
        except NomadError as cause:
            self._log.warning("renewed identity not signalled", error=cause.message)

    def _say(self, message: str) -> None:
        self.post(machine.Note(event=events.hook_message(self._context.clock.now_ns(), message)))

    # -- what the definition amounts to -----------------------------------------------------------

    def _driver(self) -> Driver:
        driver = self._context.drivers.get(self._task.driver)
        if driver is None:
            raise SetupError(f'driver "{self._task.driver}" not found on this node')
        return driver

    def _spec(self) -> TaskSpec:
        task = self._task
        longest_ns = int(self._context.max_kill_timeout_s * _SECOND)
        policy = task.restart_policy or task_env.group_of(self._alloc).restart_policy
        job_type = self._alloc.job.type if self._alloc.job is not None else ""
        spec = TaskSpec(
            restart_on_success=restarts.restarts_on_success(job_type, task),
            # A container's entry point expects TERM, a plain program INT: Nomad's drivers choose so.
            kill_signal=task.kill_signal or ("SIGTERM" if task.driver == "docker" else "SIGINT"),
            kill_timeout_ns=min(task.kill_timeout, longest_ns),
            shutdown_delay_ns=task.shutdown_delay,
        )
        if policy is None:
            return spec
        return TaskSpec(
            restart_policy=policy,
            restart_on_success=spec.restart_on_success,
            kill_signal=spec.kill_signal,
            kill_timeout_ns=spec.kill_timeout_ns,
            shutdown_delay_ns=spec.shutdown_delay_ns,
        )

    def _present_config(self) -> TaskConfig:
        """The config of the start that an earlier agent process made, as far as it can be known."""
        return self._task_config(self._environment({}), attempt=self.machine.record.attempt)

    def _environment(
        self, extra: dict[str, str], devices: dict[str, str] | None = None
    ) -> TaskEnvironment:
        alloc, task, node = self._alloc, self._task, self._context.node()
        paths = self._context.directories.paths(alloc.id, task.name)
        return task_env.build(
            alloc,
            task,
            node,
            paths,
            region=self._context.region,
            extra=extra,
            devices=devices or {},
        )

    def _task_config(self, environment: TaskEnvironment, *, attempt: int) -> TaskConfig:
        alloc, task, node = self._alloc, self._task, self._context.node()
        paths = self._context.directories.paths(alloc.id, task.name)
        config = environment.resolve_all(task.config or {})
        assert isinstance(config, dict)
        log_config = task.log_config
        return TaskConfig(
            id=self.task_id,
            alloc_id=alloc.id,
            task=task.name,
            namespace=alloc.namespace,
            job_id=alloc.job_id,
            group=alloc.task_group,
            node_id=node.id,
            node_name=node.name,
            attempt=attempt,
            config=config,
            env=environment.variables,
            user=environment.resolve(task.user),
            resources=task_env.task_resources(alloc, task.name),
            ports=task_env.ports_of(alloc, task.name),
            paths=paths,
            log_max_files=log_config.max_files if log_config else 10,
            log_max_file_mb=log_config.max_file_size_mb if log_config else 10,
            log_disabled=log_config.disabled if log_config else False,
            kill_timeout_s=self.machine.spec.kill_timeout_ns / _SECOND,
        )


def _unheard(_message: str) -> None:
    """For children whose failure the machine need not know; it is in the log."""
