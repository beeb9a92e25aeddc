"""Virtual time: an event loop that jumps to its next timer, and the clocks that run on it.

Everything a run does follows from its seed, so the loop also removes asyncio's one source of chance: tasks are kept in
sets, whose order depends on memory addresses; here a task's hash is its number.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START_NS = 1_700_000_000_000_000_000
"""The wall clock at virtual second 0."""
_START_MONOTONIC_S = 1000.0


class DeadlockError(Exception):
    """Every task waits, and no timer will wake any of them."""


class _JumpSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise DeadlockError("nothing is scheduled, and no task can go on")
        if timeout > 0:
            self.now += timeout
        return []


class _NumberedTask(asyncio.Task[Any]):
    def __init__(self, work: Any, *, loop: VirtualLoop, **options: Any) -> None:
        self._number = next(loop.task_numbers)
        super().__init__(work, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` stands still while tasks run and jumps when all of them wait.

    It has no sockets, processes or threads: whoever waits for one waits for ever (DeadlockError).
    """

    def __init__(self) -> None:
        self._jump = _JumpSelector()
        self.task_numbers = itertools.count(1)
        super().__init__(self._jump)
        self.set_task_factory(_make_task)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jump.now


def _make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    assert isinstance(loop, VirtualLoop)
    return _NumberedTask(work, loop=loop, **options)


class SimClock:
    """A host's clocks on a loop's virtual time.

    skew_ns: by how much the wall clock is wrong; may be changed at any time. rate: seconds that this host's monotonic
    clock counts in one second of the loop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, skew_ns: int = 0, rate: float = 1.0
    ) -> None:
        self.skew_ns = skew_ns
        self._loop = loop
        self._rate = rate

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970 UTC."""
        return START_NS + round(self._loop.time() * 1e9) + self.skew_ns

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never falls."""
        return _START_MONOTONIC_S + self._loop.time() * self._rate


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main()` to its end on a fresh virtual loop; what it leaves running is cancelled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
