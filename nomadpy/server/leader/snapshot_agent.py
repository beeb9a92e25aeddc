"""Saves the state into files as often as the operator says, on the leader alone, and lets go of the oldest.

The files lie where each server's own configuration says; after a change of leader the next ones are on another machine. When the
next is due is told by the newest file, so neither a restart nor an election makes it earlier or later.
"""

from __future__ import annotations

import asyncio

from nomadpy import logs
from nomadpy.errors import NomadError
from nomadpy.models.gotime import from_ns
from nomadpy.server.core import Core
from nomadpy.server.settings import SnapshotSettings
from nomadpy.server.snapshot_files import SnapshotFolder, meta_of
from nomadpy.server.worker import RunBlocking
from nomadpy.state import persist

log = logs.get(__name__)

SETTLE_S = 5.0
"""A leadership that has just begun may end again."""
RETRY_S = 60.0


class SnapshotAgent:
    """`run` lasts as long as one leadership. What it says of itself stays."""

    def __init__(self, core: Core, settings: SnapshotSettings, run_blocking: RunBlocking) -> None:
        self._core = core
        self._settings = settings
        self._run_blocking = run_blocking
        self._folder = SnapshotFolder(settings.path, settings.prefix)
        self.saved = 0
        self.failed = 0
        self.failures_in_a_row = 0
        self.last_path = ""
        self.last_at = ""
        self.last_error = ""

    async def run(self) -> None:
        """Save whenever it is time, until cancelled."""
        await asyncio.sleep(SETTLE_S)
        while True:
            try:
                wait_s = await self._wait_s()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                    continue
                await self.save()
            except (OSError, NomadError) as error:
                self._note_failure(str(error))
                await asyncio.sleep(min(RETRY_S, self._settings.interval_s))

    async def save(self) -> None:
        """Save once, now. Raises OSError, NomadError."""
        core = self._core
        began_s = core.metrics.monotonic()
        # With a majority's word for it: a leader that was deposed unnoticed must not write old snapshots.
        await core.raft.read_index()
        snapshot, now_ns = core.snapshot(), core.clock.now_ns()
        meta = meta_of(core, snapshot)
        path = await self._run_blocking(self._folder.write, meta, now_ns, persist.write(snapshot))
        self.saved += 1
        self.failures_in_a_row = 0
        self.last_path, self.last_at, self.last_error = str(path), from_ns(now_ns), ""
        core.metrics.observe_since("nomad.nomad.snapshot_agent.save", began_s)
        gone = await self._run_blocking(self._folder.keep, self._settings.retain)
        log.info("snapshot saved on schedule", path=str(path), index=meta.index, removed=len(gone))

    async def _wait_s(self) -> float:
        newest_ms: int | None = await self._run_blocking(self._folder.newest_ms)
        if newest_ms is None:
            return 0.0
        age_s = self._core.clock.now_ns() / 1e9 - newest_ms / 1e3
        # A clock that was set back must not stop it for as long.
        return min(self._settings.interval_s - age_s, self._settings.interval_s)

    def _note_failure(self, error: str) -> None:
        self.failed += 1
        self.failures_in_a_row += 1
        self.last_error = error
        self._core.metrics.count("nomad.nomad.snapshot_agent.failed")
        log.error(
            "scheduled snapshot failed",
            path=self._settings.path,
            error=error,
            failures_in_a_row=self.failures_in_a_row,
        )

    def stats(self) -> dict[str, str]:
        """What /v1/agent/self shows of it."""
        return {
            "interval": f"{self._settings.interval_s:g}s",
            "retain": str(self._settings.retain),
            "path": self._settings.path,
            "saved": str(self.saved),
            "failed": str(self.failed),
            "last_snapshot": self.last_path,
            "last_snapshot_at": self.last_at,
            "last_error": self.last_error,
        }
