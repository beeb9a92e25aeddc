"""Taking the ephemeral disk along to another node: the old node gives it as a stream, the new one fetches it before its tasks start.

Best effort, as in Nomad: what goes wrong is said in the tasks' events, and the tasks start without the data. The old
node has it as long as it keeps the ended allocation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from agent.disk_archive import CHUNK_BYTES, ArchiveError, Unpacker, is_end, pack
from agent.task_dir import TaskDirectories
from nomadpy import logs
from nomadpy.errors import NomadError
from nomadpy.models.allocation import Allocation
from nomadpy.models.calls import NodeRead, Read
from nomadpy.models.envelope import QueryOptions
from nomadpy.models.job import EphemeralDisk
from nomadpy.rpc.caller import Caller, Stream

log = logs.get(__name__)

END_WAIT_S = 600.0
IDLE_S = 60.0

_POLL_S = 1.0
_CALL_TIMEOUT_S = 15.0
_MEGABYTE = 1024 * 1024
_BATCH_BYTES = 4 * CHUNK_BYTES
_BATCH_MOST = 1000
_ENDED = ("complete", "failed")
_GONE = ("lost", "unknown")


class BringsDisk(Protocol):
    """Fetches an ephemeral disk from another node."""

    async def bring(
        self, alloc: Allocation, disk: EphemeralDisk, tasks: list[str], say: Callable[[str], None]
    ) -> None:
        """Put the disk of `alloc.previous_allocation` in place. Never raises NomadError: `say` tells what became of it."""
        ...


class DiskMigration:
    """BringsDisk over the connections to the servers."""

    def __init__(
        self, caller: Caller, directories: TaskDirectories, node_id: Callable[[], str]
    ) -> None:
        self._caller = caller
        self._directories = directories
        self._node_id = node_id

    async def bring(
        self, alloc: Allocation, disk: EphemeralDisk, tasks: list[str], say: Callable[[str], None]
    ) -> None:
        """See BringsDisk."""
        previous_id = alloc.previous_allocation
        try:
            if await self._has_ended(previous_id, say):
                size = await self._fetch(alloc.id, previous_id, disk, tasks)
                say(f"Took over {size} bytes of ephemeral disk from allocation {previous_id}")
        except NomadError as cause:
            log.warning("ephemeral disk not migrated", alloc_id=alloc.id, error=cause.message)
            say(f"Ephemeral disk of allocation {previous_id} not taken over: {cause.message}")

    async def _has_ended(self, previous_id: str, say: Callable[[str], None]) -> bool:
        """Wait for its end; False when there is nothing to fetch from another node."""
        said = False
        try:
            async with asyncio.timeout(END_WAIT_S):
                while True:
                    previous = await self._look(previous_id)
                    if previous.node_id == self._node_id():
                        return False
                    if previous.client_status in _ENDED:
                        return True
                    if previous.client_status in _GONE:
                        raise ArchiveError("its node does not answer")
                    if previous.desired_status == "run":
                        return False
                    if not said:
                        say(f"Waiting for allocation {previous_id} to end on its node")
                        said = True
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as cause:
            raise ArchiveError(f"it has not ended within {END_WAIT_S:.0f} seconds") from cause

    async def _look(self, alloc_id: str) -> Allocation:
        request = Read(id=alloc_id, options=QueryOptions(allow_stale=True))
        answer = await self._caller.call("Alloc.Get", request, timeout_s=_CALL_TIMEOUT_S)
        return msgspec.json.decode(answer.body, type=Allocation)

    async def _fetch(
        self, alloc_id: str, previous_id: str, disk: EphemeralDisk, tasks: list[str]
    ) -> int:
        root = Path(self._directories.root(alloc_id))
        unpacker = await asyncio.to_thread(
            Unpacker, root, tasks, most_bytes=disk.size_mb * _MEGABYTE
        )
        try:
            request = NodeRead(alloc_id=previous_id)
            async with self._caller.open("FS.Disk", request) as stream:
                await _receive(stream, unpacker)
            await asyncio.to_thread(unpacker.commit)
        finally:
            await asyncio.to_thread(unpacker.discard)
        return unpacker.bytes


async def send_disk(stream: Stream, root: str, tasks: list[str]) -> None:
    """Give the disk of an ended allocation. Raises ArchiveError."""
    chunks = pack(Path(root), tasks)
    while batch := await asyncio.to_thread(_next, chunks):
        for chunk in batch:
            await stream.send(chunk)
    await stream.finish()


async def _receive(stream: Stream, unpacker: Unpacker) -> None:
    batch: list[bytes] = []
    size = 0
    while not unpacker.complete:
        try:
            async with asyncio.timeout(IDLE_S):
                chunk = await stream.receive()
        except TimeoutError as cause:
            raise ArchiveError(f"nothing came for {IDLE_S:.0f} seconds") from cause
        if chunk is not None:
            batch.append(chunk)
            # Small files are many chunks: one step into a thread for some of them, and for the last, which may end it.
            size += len(chunk)
        if chunk is None or size >= _BATCH_BYTES or len(batch) >= _BATCH_MOST or is_end(chunk):
            await asyncio.to_thread(unpacker.take, batch)
            batch, size = [], 0
        if chunk is None:
            return


def _next(chunks: Iterator[bytes]) -> list[bytes]:
    """The next chunks, about a megabyte of them."""
    batch: list[bytes] = []
    size = 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_MOST:
            break
    return batch
