"""Async tests run on virtual time, or on the real loop when marked real_time; a test that leaves a task behind fails."""

from __future__ import annotations

import asyncio
import inspect
import os
import selectors
from pathlib import Path
from typing import Any

import pytest


class _JumpSelector(selectors.DefaultSelector):
    """Instead of sleeping until the next timer, moves the loop's clock there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            # Nothing is scheduled: only a thread could wake us, so wait for it for a moment of real time.
            ready = super().select(1.0)
            if not ready:
                raise RuntimeError("deadlock: the test waits, and nothing is scheduled to wake it")
            return ready
        if timeout > 0:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer."""

    def __init__(self) -> None:
        self._jump = _JumpSelector()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


# Tests of real daemons, clients and clocks, which share the machine with whatever else it does.
_REAL = ("clients", "docs", "e2e", "integration", "jepsen", "wire")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One more run, in CI, for what failed among real processes; the summary lists it (docs/decisions/0011)."""
    if not os.environ.get("CI"):
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in _REAL or item.get_closest_marker("real_time"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    real = pyfuncitem.get_closest_marker("real_time") is not None
    factory: Any = asyncio.new_event_loop if real else VirtualLoop

    async def body() -> None:
        before = asyncio.all_tasks()
        await function(**arguments)
        await asyncio.sleep(0)
        left = {t for t in asyncio.all_tasks() - before if not t.done()}
        assert not left, f"the test left tasks behind: {sorted(t.get_name() for t in left)}"

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(body())
    return True
