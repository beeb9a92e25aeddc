"""Removes ended allocations from this node: the oldest first, when there are too many, too old or the disk is full.

An allocation goes only after servers have acknowledged its end; then nothing is lost but its files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from agent.alloc_sync import AllocSync
from agent.task_dir import DirectoryError, TaskDirectories
from nomadpy import logs
from nomadpy.clock import Clock

log = logs.get(__name__)

_SECOND = 1_000_000_000


class GarbageLimits(msgspec.Struct, frozen=True, kw_only=True):
    """interval_s: how often to look. max_allocs: all allocations on the node. max_age_s: since the end, 0 unlimited.
    disk_percent: use of the disk above which the oldest go."""

    interval_s: float = 60.0
    max_allocs: int = 50
    max_age_s: float = 0.0
    disk_percent: float = 80.0


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """An allocation that may be removed."""

    alloc_id: str
    finished_ns: int


def choose(
    ended: Sequence[Ended], limits: GarbageLimits, *, total: int, disk_percent: float, now_ns: int
) -> list[str]:
    """Who must go now, oldest first. For a full disk only one is named: look again after it is gone."""
    oldest = sorted(ended, key=lambda e: (e.finished_ns, e.alloc_id))
    surplus = max(total - limits.max_allocs, 0)
    chosen = [e.alloc_id for e in oldest[:surplus]]
    if limits.max_age_s > 0:
        before_ns = now_ns - int(limits.max_age_s * _SECOND)
        chosen += [e.alloc_id for e in oldest[surplus:] if e.finished_ns < before_ns]
    if not chosen and oldest and disk_percent > limits.disk_percent:
        chosen = [oldest[0].alloc_id]
    return chosen


class GarbageCollector:
    """Looks after a node's ended allocations."""

    def __init__(
        self, sync: AllocSync, directories: TaskDirectories, clock: Clock, limits: GarbageLimits
    ) -> None:
        self._sync = sync
        self._directories = directories
        self._clock = clock
        self._limits = limits

    async def run(self) -> None:
        """Collect for ever."""
        while True:
            await asyncio.sleep(self._limits.interval_s)
            await self.collect()

    async def collect(self) -> None:
        """Remove what is over the limits now."""
        tried: set[str] = set()
        while True:
            chosen = choose(
                [e for e in self._ended() if e.alloc_id not in tried],
                self._limits,
                total=len(self._sync.runners),
                disk_percent=await self._directories.disk_used_percent(),
                now_ns=self._clock.now_ns(),
            )
            if not chosen:
                break
            for alloc_id in chosen:
                tried.add(alloc_id)
                log.info("allocation collected", alloc_id=alloc_id)
                await self._sync.remove(alloc_id)
        await self._remove_strays()

    async def collect_all(self) -> None:
        """Remove every ended allocation, as an operator asked."""
        for ended in self._ended():
            await self._sync.remove(ended.alloc_id)

    async def collect_one(self, alloc_id: str) -> bool:
        """Remove one ended allocation; False when it still lives."""
        if not self._sync.runner(alloc_id).is_terminal:
            return False
        await self._sync.remove(alloc_id)
        return True

    def _ended(self) -> list[Ended]:
        return [
            Ended(alloc_id=alloc_id, finished_ns=runner.finished_ns)
            for alloc_id, runner in sorted(self._sync.runners.items())
            if runner.is_terminal and self._sync.outbox.has_arrived(alloc_id)
        ]

    async def _remove_strays(self) -> None:
        """Directories that no allocation owns: what an agent left that died while it removed one."""
        if not self._sync.restored.is_set():
            return
        for alloc_id in await self._directories.known():
            if alloc_id not in self._sync.runners:
                try:
                    await self._directories.remove(alloc_id)
                except DirectoryError as cause:
                    log.warning(
                        "stray directory not removed", alloc_id=alloc_id, error=cause.message
                    )
