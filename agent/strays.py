"""Ends what runs of allocations that this agent knows nothing of any more, because its local state was damaged or lost.

Servers count such tasks as lost and start them anew, here or elsewhere; what still runs of them would be a second copy
that nobody watches.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from agent.drivers.base import Driver, DriverError, EndsStrays
from agent.task_dir import TaskDirectories
from nomadpy import logs

log = logs.get(__name__)


async def end_strays(
    drivers: Mapping[str, Driver], directories: TaskDirectories, known: Container[str]
) -> None:
    """Look through all directories of allocations that are not `known`; the directories themselves stay."""
    able = {name: driver for name, driver in drivers.items() if isinstance(driver, EndsStrays)}
    if not able:
        return
    for alloc_id in await directories.known():
        if alloc_id not in known:
            await end_stray(able, directories, alloc_id)


async def end_stray(
    drivers: Mapping[str, Driver], directories: TaskDirectories, alloc_id: str
) -> bool:
    """End what runs of one allocation. False when a driver could not tell."""
    sure = True
    for name, driver in drivers.items():
        if not isinstance(driver, EndsStrays):
            continue
        try:
            ended = await driver.end_strays(alloc_id, directories.root(alloc_id))
        except DriverError as cause:
            log.warning(
                "tasks of an unknown allocation may still run",
                alloc_id=alloc_id,
                driver=name,
                error=cause.message,
            )
            sure = False
            continue
        if ended:
            log.warning(
                "tasks of an unknown allocation ended",
                alloc_id=alloc_id,
                driver=name,
                tasks=ended,
            )
    return sure
