"""Bring the sources of an exec session (its outputs, its end) together into one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from agent.drivers.base import ExecInput, ExecOutput

Put = Callable[[ExecOutput], Awaitable[None]]
_BUFFERED = 64


async def merge(produce: Callable[[Put], Awaitable[None]]) -> AsyncIterator[ExecOutput]:
    """Yield what `produce` puts until it puts an exit or fails; an early end of the reader cancels it.

    A slow reader slows `put` down, and so the program. An error of `produce` is raised to the reader as itself.
    """
    queue: asyncio.Queue[ExecOutput | BaseException] = asyncio.Queue(_BUFFERED)

    async def run() -> None:
        try:
            await produce(queue.put)
        except Exception as error:  # noqa: BLE001 - the task's life ends here, the reader gets it
            await queue.put(_innermost(error))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run(), name="exec-session")
        failure: BaseException | None = None
        try:
            while True:
                item = await queue.get()
                if isinstance(item, BaseException):
                    failure = item
                    break
                yield item
                if item.channel == "exit":
                    break
        except GeneratorExit:
            # Leaving the group with it would wrap it into an exception group.
            failure = None
        task.cancel()
    if failure is not None:
        raise failure


def _innermost(error: Exception) -> Exception:
    """What went wrong first, out of the groups that task groups make."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def pump_inputs(
    inputs: AsyncIterator[ExecInput],
    *,
    write: Callable[[bytes], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    resize: Callable[[int, int], Awaitable[None]],
) -> None:
    """Hand the user's events on until they end. resize takes (height, width)."""
    async for event in inputs:
        if event.height and event.width:
            await resize(event.height, event.width)
        if event.data:
            await write(event.data)
        if event.closed:
            await close()
