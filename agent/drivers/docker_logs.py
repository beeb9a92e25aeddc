"""Carry a container's log from the daemon into the task's rotated files, each line once, across agent restarts.

The position file says up to which message of each stream the files hold everything, and how long the files were
then. It may lag behind the files: what they hold beyond it is skipped byte for byte when the messages come again, so
an agent may be killed between any two writes.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from agent.drivers.docker_engine import (
    DockerEngine,
    EngineError,
    EngineUnreachableError,
    LogFrame,
)
from agent.drivers.supervisor.rotation import RotatingLog, indexes
from nomadpy import logs
from nomadpy.clock import Clock

log = logs.get(__name__)

PERSIST_S = 1.0
RETRY_S = 1.0
# The daemon stamps a message before it stores it, so the streams may be stored a little out of order.
OVERLAP_NS = 60 * 10**9
STREAMS = ("stdout", "stderr")


class StreamPosition(msgspec.Struct, kw_only=True):
    """Messages up to number `count` of those stamped `timestamp_ns` are in the files, which end at (index, size)."""

    timestamp_ns: int = 0
    count: int = 0
    index: int = 0
    size: int = 0


class _Stream:
    """One of a container's two outputs on its way to its files."""

    def __init__(self, prefix: str, max_files: int, max_bytes: int, at: StreamPosition) -> None:
        self._prefix = prefix
        self._log = RotatingLog(prefix, max_files=max_files, max_bytes=max_bytes)
        self.position = at
        self.rotated = False
        self.skip = self._beyond(at)
        self._taken = (at.timestamp_ns, at.count)
        self._seen = (0, 0)
        self._replaying = True

    def rewind(self) -> None:
        """Messages come again from some point at or before the last that was taken."""
        self._seen = (0, 0)
        self._replaying = True

    def take(self, frames: list[LogFrame]) -> None:
        """Write what is new of a batch; blocking."""
        data = bytearray()
        for frame in frames:
            if frame.timestamp_ns == self._seen[0]:
                self._seen = (frame.timestamp_ns, self._seen[1] + 1)
            else:
                self._seen = (frame.timestamp_ns, 1)
            if self._replaying and frame.timestamp_ns:
                if self._seen <= self._taken:
                    continue
                self._replaying = False
            self._taken = self._seen
            data += frame.data
        skipped = min(self.skip, len(data))
        self.skip -= skipped
        if len(data) > skipped:
            self._log.write(bytes(data[skipped:]))
        if data:
            self._advance()

    def retry(self) -> None:
        """Try again to write what the disk refused."""
        if self._log.has_pending:
            self._log.write(b"")
            self._advance()

    def close(self) -> None:
        """No more comes."""
        self._log.close()

    def _advance(self) -> None:
        # Until the skipped bytes are all seen again, or while some are not on disk, the old position is the true one.
        if self.skip or self._log.has_pending:
            return
        self.rotated = self.rotated or self._log.index != self.position.index
        stamp, count = self._taken
        self.position = StreamPosition(
            timestamp_ns=stamp, count=count, index=self._log.index, size=self._log.size
        )

    def _beyond(self, at: StreamPosition) -> int:
        total = 0
        for index in indexes(self._prefix):
            if index >= at.index:
                total += os.path.getsize(f"{self._prefix}.{index}")
        return max(0, total - at.size) if total else 0


class LogFollower:
    """Follows one container. prefix: path of the log files up to `.stdout`. position_path: its position file."""

    def __init__(
        self,
        engine: DockerEngine,
        clock: Clock,
        *,
        container: str,
        tty: bool,
        prefix: str,
        max_files: int,
        max_bytes: int,
        position_path: str,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._container = container
        self._tty = tty
        self._prefix = prefix
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._position_path = position_path
        self._persisted_at = 0.0

    @staticmethod
    def begin(prefix: str, position_path: str) -> None:
        """Before a new container starts: what the files hold now is not its own. Blocking; raises OSError."""
        positions = {}
        for name in STREAMS:
            found = indexes(f"{prefix}.{name}")
            index = found[-1] if found else 0
            size = os.path.getsize(f"{prefix}.{name}.{index}") if found else 0
            positions[name] = StreamPosition(index=index, size=size)
        _save(position_path, positions)

    async def run(self) -> None:
        """Follow until the container has ended and all it said is written; survives daemon restarts."""
        streams = await asyncio.to_thread(self._open)
        try:
            while True:
                try:
                    await self._follow(streams)
                    if not await self._is_running():
                        return
                except EngineUnreachableError as error:
                    log.info("log of a container waits for docker", reason=error.message)
                except EngineError as error:
                    if error.answer_status == 404:
                        return
                    log.warning("log of a container cannot be read", reason=error.message)
                await asyncio.sleep(RETRY_S)
                for stream in streams.values():
                    stream.rewind()
        finally:
            # Short and without a wait, so that a cancelled follower is quick too.
            self._persist(streams, force=True)
            for stream in streams.values():
                stream.close()

    async def _follow(self, streams: dict[str, _Stream]) -> None:
        newest = max(stream.position.timestamp_ns for stream in streams.values())
        async for frames in self._engine.logs(
            self._container, since_ns=max(0, newest - OVERLAP_NS), tty=self._tty
        ):
            await asyncio.to_thread(self._take, streams, frames)

    def _take(self, streams: dict[str, _Stream], frames: list[LogFrame]) -> None:
        for name, stream in streams.items():
            stream.retry()
            stream.take([frame for frame in frames if frame.stream == name])
        self._persist(streams)

    def _persist(self, streams: dict[str, _Stream], *, force: bool = False) -> None:
        now = self._clock.monotonic()
        rotated = any(stream.rotated for stream in streams.values())
        if not (force or rotated or now - self._persisted_at >= PERSIST_S):
            return
        try:
            _save(self._position_path, {n: s.position for n, s in streams.items()})
        except OSError as error:
            log.warning("log position not saved", path=self._position_path, error=str(error))
            return
        self._persisted_at = now
        for stream in streams.values():
            stream.rotated = False

    async def _is_running(self) -> bool:
        state = (await self._engine.inspect(self._container))["State"]
        return bool(state.get("Running") or state.get("Restarting"))

    def _open(self) -> dict[str, _Stream]:
        positions = _load(self._position_path)
        return {
            name: _Stream(
                f"{self._prefix}.{name}", self._max_files, self._max_bytes, positions[name]
            )
            for name in STREAMS
        }


def _load(path: str) -> dict[str, StreamPosition]:
    """The saved positions. Without any, everything comes again: twice is better than never."""
    saved: dict[str, StreamPosition] = {}
    try:
        with open(path, "rb") as file:
            saved = msgspec.json.decode(file.read(), type=dict[str, StreamPosition])
    except FileNotFoundError:
        log.info("no position of a container's log", path=path)
    except (OSError, msgspec.DecodeError) as error:
        log.warning("position of a container's log is unreadable", path=path, error=str(error))
    # No file is as long as the default says, so nothing is skipped.
    return {name: saved.get(name) or StreamPosition(size=1 << 62) for name in STREAMS}


def _save(path: str, positions: dict[str, Any]) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(f"{path}.new", "wb") as file:
        file.write(msgspec.json.encode(positions))
    os.replace(f"{path}.new", path)
