"""Imagined tasks on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.drivers.base import (
    DriverError,
    ExecInput,
    ExitResult,
    TaskConfig,
    TaskHandle,
    TaskNotFoundError,
    TaskPaths,
)
from agent.drivers.mock import MockDriver


class LoopClock:
    """The loop's virtual time as wall time."""

    def now_ns(self) -> int:
        return 10**18 + int(self.monotonic() * 1e9)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def task(config: dict[str, Any]) -> TaskConfig:
    return TaskConfig(
        id="a/t",
        alloc_id="a",
        task="t",
        namespace="default",
        job_id="j",
        group="g",
        config=config,
        paths=TaskPaths(alloc="/a", task="/t", local="/l", secrets="/s", logs="/logs"),
    )


def make() -> MockDriver:
    return MockDriver(LoopClock(), write_logs=False)


async def test_a_task_runs_for_its_time_and_ends_as_told() -> None:
    driver, loop = make(), asyncio.get_running_loop()
    config = {"run_for": "90s", "exit_code": 3, "exit_signal": 9, "start_block_for": "1s"}
    await driver.start(task(config))
    assert await driver.wait("a/t") == ExitResult(exit_code=3, signal=9)
    assert loop.time() == pytest.approx(91)
    await driver.destroy("a/t")
    with pytest.raises(TaskNotFoundError):
        await driver.wait("a/t")


async def test_a_start_fails_as_told() -> None:
    with pytest.raises(DriverError, match="boom") as caught:
        await make().start(task({"start_error": "boom", "start_error_recoverable": "true"}))
    assert caught.value.recoverable


async def test_a_task_without_an_end_runs_until_it_is_stopped() -> None:
    driver, loop = make(), asyncio.get_running_loop()
    await driver.start(task({"kill_after": 3}))
    await driver.stop("a/t", signal="SIGINT", timeout_s=10)
    assert loop.time() == pytest.approx(3)
    assert (await driver.wait("a/t")).successful
    await driver.start(task({"kill_after": "60s"}))
    await driver.stop("a/t", signal="SIGINT", timeout_s=10)
    assert loop.time() == pytest.approx(13)
    assert (await driver.wait("a/t")).signal == 9
    assert driver.signals("a/t") == ["SIGINT"]


async def test_a_recovered_task_ends_when_it_would_have_ended() -> None:
    first, loop = make(), asyncio.get_running_loop()
    started = await first.start(task({"run_for": "60s"}))
    await first.close()
    await asyncio.sleep(20)
    second = make()
    await second.recover(started.handle, task({"run_for": "60s"}))
    await second.wait("a/t")
    assert loop.time() == pytest.approx(60)
    with pytest.raises(TaskNotFoundError):
        await make().recover(TaskHandle(driver="mock_driver", task_id="x/t"), task({}))


async def test_exec_answers_as_told_and_faults_are_named() -> None:
    driver = make()
    await driver.start(task({"exec_command": {"stdout_string": "hi", "exit_code": 2}}))

    async def nothing() -> AsyncIterator[ExecInput]:
        return
        yield

    found = [e async for e in driver.exec("a/t", ["x"], tty=False, inputs=nothing())]
    assert [(e.channel, e.data, e.exit_code) for e in found] == [
        ("stdout", b"hi", 0),
        ("exit", b"", 2),
    ]
    assert len(driver.validate({"run_for": "soon", "exit_code": "x", "what": 1})) == 2
    assert len(driver.validate({"run_for": "soon"})) == 1
    await driver.close()
