"""The `mock_driver`: tasks that only seem to run, on the event loop's time, for tests and the simulator.

What a task will do is written in its config; see MockTaskConfig.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec

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
from agent.drivers.config_schema import decode, faults, seconds
from nomadpy.clock import Clock
from nomadpy.models.stats import CpuStats, MemoryStats, ResourceUsage

Duration = str | float


class MockTaskConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a task will do. Durations are Go texts or seconds.

    run_for: "" runs until it is stopped. exit_err_msg: the driver "lost" the task. kill_after: how long it takes to
    die when asked; a kill beyond its timeout ends it at once. exec_command: what an exec session answers.
    """

    start_error: str = ""
    start_error_recoverable: bool = False
    start_block_for: Duration = ""
    run_for: Duration = ""
    exit_code: int = 0
    exit_signal: int = 0
    exit_err_msg: str = ""
    oom_killed: bool = False
    kill_after: Duration = ""
    signal_error: str = ""
    stdout_string: str = ""
    stdout_repeat: int = 0
    stderr_string: str = ""
    exec_command: dict[str, Any] = {}
    recover_error: str = ""


class _Task:
    """A task in the driver's imagination."""

    def __init__(self, config: MockTaskConfig, started_at: float, run_for_s: float | None) -> None:
        self.config = config
        self.started_at = started_at
        self.ended = asyncio.Event()
        self.result = ExitResult()
        self.signals: list[str] = []
        self.ends_at = None if run_for_s is None else started_at + run_for_s
        self.timer: asyncio.TimerHandle | None = None

    def end(self, result: ExitResult) -> None:
        """Once; a second end changes nothing."""
        if not self.ended.is_set():
            self.result = result
            self.ended.set()
        if self.timer is not None:
            self.timer.cancel()


class MockDriver:
    """Imagined tasks. write_logs: whether stdout_string goes to real files (the simulator has no disk).

    `recover` works when this very object started the task, or from the handle, whose state has the wall time of the
    start: the task then ends when it would have ended.
    """

    def __init__(self, clock: Clock, *, write_logs: bool = True) -> None:
        self._clock = clock
        self._write_logs = write_logs
        self._tasks: dict[str, _Task] = {}

    @property
    def name(self) -> str:
        """`mock_driver`."""
        return "mock_driver"

    async def fingerprint(self) -> DriverFingerprint:
        """Always there."""
        return DriverFingerprint(detected=True, healthy=True, description="Healthy")

    def validate(self, config: dict[str, Any]) -> list[str]:
        """Every fault of a task's config."""
        found = faults(config, MockTaskConfig)
        if not found:
            parsed = decode(config, MockTaskConfig)
            for name in ("start_block_for", "run_for", "kill_after"):
                try:
                    seconds(getattr(parsed, name) or 0, name)
                except ValueError as error:
                    found.append(str(error))
        return found

    async def start(self, task: TaskConfig) -> Started:
        """Wait start_block_for, then fail with start_error or run."""
        if found := self.validate(task.config):
            raise DriverError(f"failed to parse config: {'; '.join(found)}")
        config = decode(task.config, MockTaskConfig)
        if block_s := seconds(config.start_block_for or 0, "start_block_for"):
            await asyncio.sleep(block_s)
        if config.start_error:
            raise DriverError(config.start_error, recoverable=config.start_error_recoverable)
        self._begin(task.id, config, already_s=0.0)
        if self._write_logs and not task.log_disabled:
            await asyncio.to_thread(_write_output, task, config)
        state = {"started_ns": self._clock.now_ns()}
        return Started(handle=TaskHandle(driver=self.name, task_id=task.id, state=state))

    async def recover(self, handle: TaskHandle, task: TaskConfig) -> None:
        """Go on as if nothing had happened. Raises TaskNotFoundError without a handle's state."""
        config = decode(task.config, MockTaskConfig)
        if config.recover_error:
            raise DriverError(config.recover_error)
        if handle.task_id in self._tasks:
            return
        if "started_ns" not in handle.state:
            raise TaskNotFoundError(f"mock_driver has no task {handle.task_id}")
        already_s = (self._clock.now_ns() - int(handle.state["started_ns"])) / 1e9
        self._begin(handle.task_id, config, already_s=max(0.0, already_s))

    async def wait(self, task_id: str) -> ExitResult:
        """The imagined end."""
        task = self._find(task_id)
        await task.ended.wait()
        return task.result

    async def stop(self, task_id: str, *, signal: str, timeout_s: float) -> None:
        """Die after kill_after, or at timeout_s by SIGKILL."""
        task = self._find(task_id)
        task.signals.append(signal)
        dies_s = seconds(task.config.kill_after or 0, "kill_after")
        try:
            async with asyncio.timeout(min(dies_s, timeout_s)):
                await task.ended.wait()
        except TimeoutError:
            if dies_s > timeout_s:
                task.end(ExitResult(exit_code=137, signal=9))
            else:
                task.end(_result(task.config) if task.config.exit_code else ExitResult())

    async def signal(self, task_id: str, signal: str) -> None:
        """Remembered, nothing else; signal_error makes it fail."""
        task = self._find(task_id)
        if task.config.signal_error:
            raise DriverError(task.config.signal_error)
        task.signals.append(signal)

    async def destroy(self, task_id: str) -> None:
        """Forget it."""
        task = self._tasks.pop(task_id, None)
        if task is not None:
            task.end(ExitResult(exit_code=137, signal=9))

    async def stats(self, task_id: str) -> ResourceUsage:
        """Nothing is used."""
        self._find(task_id)
        return ResourceUsage(
            memory_stats=MemoryStats(measured=["RSS"]), cpu_stats=CpuStats(measured=["Percent"])
        )

    async def exec(
        self,
        task_id: str,
        command: list[str],  # noqa: ARG002
        *,
        tty: bool,  # noqa: ARG002
        inputs: AsyncIterator[ExecInput],  # noqa: ARG002
    ) -> AsyncIterator[ExecOutput]:
        """Say what `exec_command` says: stdout_string, stderr_string, exit_code."""
        answer = self._find(task_id).config.exec_command
        for channel in ("stdout", "stderr"):
            if text := str(answer.get(f"{channel}_string", "")):
                yield ExecOutput(channel=channel, data=text.encode())
        yield ExecOutput(channel="exit", exit_code=int(answer.get("exit_code", 0)))

    async def close(self) -> None:
        """Imagined tasks go on in imagination: only the timers of this process end."""
        for task in self._tasks.values():
            if task.timer is not None:
                task.timer.cancel()
        self._tasks.clear()

    def signals(self, task_id: str) -> list[str]:
        """Every signal the task was sent, for tests."""
        return list(self._find(task_id).signals)

    def _begin(self, task_id: str, config: MockTaskConfig, *, already_s: float) -> None:
        loop = asyncio.get_running_loop()
        run_for_s = None if config.run_for == "" else seconds(config.run_for, "run_for")
        task = _Task(config, loop.time() - already_s, run_for_s)
        self._tasks[task_id] = task
        if run_for_s is not None:
            left_s = max(0.0, run_for_s - already_s)
            task.timer = loop.call_later(left_s, task.end, _result(config))

    def _find(self, task_id: str) -> _Task:
        task = self._tasks.get(task_id)
        if task is None:
            raise TaskNotFoundError(f"mock_driver has no task {task_id}")
        return task


def _result(config: MockTaskConfig) -> ExitResult:
    return ExitResult(
        exit_code=config.exit_code,
        signal=config.exit_signal,
        oom_killed=config.oom_killed,
        error=config.exit_err_msg,
    )


def _write_output(task: TaskConfig, config: MockTaskConfig) -> None:
    """The whole output at once: in imagination it takes no time to print."""
    texts = {
        "stdout": config.stdout_string * (1 + config.stdout_repeat),
        "stderr": config.stderr_string,
    }
    os.makedirs(task.paths.logs, exist_ok=True)
    for stream, text in texts.items():
        path = os.path.join(task.paths.logs, f"{task.task}.{stream}.0")
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
