"""Owner of the tasks of an object that is started and closed rather than run.

Where a block can hold the tasks, use a TaskGroup; this is for listeners, pools and local streams, whose tasks come
and go between `start` and `close`. Every task has a name, its unexpected error is logged, and `close` leaves none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from nomadpy import logs

log = logs.get(__name__)


class Tasks:
    """A set of tasks; insertion order, so that a simulation replays."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `work` until it ends or `close` cancels it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel what runs and wait until all of it is over."""
        current = asyncio.current_task()
        waiting = [task for task in self._tasks if task is not current]
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", task=task.get_name(), error=f"{type(error).__name__}: {error}")
