"""Operator.SnapshotSave and Operator.SnapshotRestore: the whole state as a file, and back while the cluster runs.

A restore goes through the log like every other change: the file is checked as a whole and decoded once by the server that is
given it, its pieces are replicated, and one last entry puts them in the place of the state, at the same index on every server.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator
from typing import IO

import msgspec

from nomadpy import logs
from nomadpy.errors import CorruptionError, InvalidRequestError
from nomadpy.fsm import commands
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.rpc.caller import Stream
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server.endpoints.base import Services
from nomadpy.server.snapshot_files import meta_of
from nomadpy.server.worker import RunBlocking
from nomadpy.state import archive, persist

log = logs.get(__name__)

PIECE = 256 << 10
"""Bytes of a piece in one log entry."""
SENT = 512 << 10
LENGTHEN = 20_000
"""So many empty entries a step, so that each step is done long before its caller loses patience."""
STEP_TIMEOUT_S = 60.0


class Snapshots:
    """Handlers."""

    def __init__(self, services: Services, run_blocking: RunBlocking) -> None:
        self._core = services.core
        self._queries = services.queries
        self._router = services.router
        self._run_blocking = run_blocking
        register = services.router.register
        register("Operator.SnapshotSave", self.save)
        register("Operator.SnapshotRestore", self.restore)
        register("Server.RestoreStep", self.step)

    async def save(self, _: CallContext, request: calls.Read, stream: Stream) -> None:
        """Send a head (JSON: Index, Term, Size, Digest) and then the archive of the state as applied here.

        Unless stale reads are allowed it has every write that was acknowledged before the call.
        """
        core = self._core
        if not request.options.allow_stale:
            await self._queries.consistent()
        snapshot = core.snapshot()
        meta = meta_of(core, snapshot)
        with tempfile.TemporaryFile() as file:

            def write() -> tuple[int, bytes]:
                archive.write(file, meta, persist.write(snapshot))
                size = file.tell()
                file.seek(0)
                digest = hashlib.sha256()
                while data := file.read(SENT):
                    digest.update(data)
                file.seek(0)
                return size, digest.digest()

            size, digest = await self._run_blocking(write)
            head = {
                "Index": meta.index,
                "Term": meta.term,
                "Size": size,
                "Digest": f"sha-256={base64.b64encode(digest).decode()}",
            }
            await stream.send(msgspec.json.encode(head))
            while data := file.read(SENT):
                await stream.send(data)
        await stream.finish()
        log.info("snapshot saved", index=meta.index, bytes=size)

    async def restore(self, _: CallContext, _request: calls.Write, stream: Stream) -> None:
        """Take an archive until the sender has finished, and put it in the place of the state.

        Raises InvalidRequestError when it is no good; nothing has been changed then.
        """
        async with self._received(stream) as contents:
            await self._replicate(contents)
        await stream.finish()

    @contextlib.asynccontextmanager
    async def _received(self, stream: Stream) -> AsyncIterator[archive.Contents]:
        with tempfile.TemporaryFile() as file:
            while (chunk := await stream.receive()) is not None:
                file.write(chunk)
            if not file.tell():
                raise InvalidRequestError("Request body is empty")
            file.seek(0)
            source: IO[bytes] = file

            def check() -> archive.Contents:
                return archive.read(source)

            try:
                contents: archive.Contents = await self._run_blocking(check)
            except CorruptionError as error:
                raise InvalidRequestError(error.message) from error
        try:
            self._check_fit(contents)
            yield contents
        finally:
            contents.state.close()

    def _check_fit(self, contents: archive.Contents) -> None:
        """Raise InvalidRequestError for a snapshot that is whole and would break the cluster all the same."""
        if contents.redacted:
            raise InvalidRequestError(
                "the snapshot was redacted: without its root keys no variable could be read and no task be given an identity; "
                "restore one that was not"
            )
        common = self._core.common_format()
        if contents.log_format > common:
            raise InvalidRequestError(
                f"the snapshot was saved with log format {contents.log_format}, and not every server reads more than {common}: "
                "upgrade all servers first"
            )

    async def _replicate(self, contents: archive.Contents) -> None:
        meta = contents.meta
        log.warning(
            "snapshot is restored", index=meta.index, taken_by=meta.by, created=meta.created
        )
        while self._core.raft.last_index <= meta.index:
            # The snapshot is of a longer log, another cluster's: this one's index must be above all that it holds.
            answer = await self._ask(calls.RestoreStep(reach=meta.index + 1))
            if answer.index > meta.index:
                break
        restore_id = self._core.entropy.uuid()
        parts = 0
        while data := contents.state.read(PIECE):
            await self._ask(
                calls.RestoreStep(restore_id=restore_id, number=parts, parts=parts + 1, data=data)
            )
            parts += 1
        answer = await self._ask(
            calls.RestoreStep(
                restore_id=restore_id, number=parts, parts=parts, sha256=contents.sha256
            )
        )
        log.warning("snapshot restored", of_index=meta.index, at_index=answer.index)

    async def _ask(self, step: calls.RestoreStep) -> Answer:
        answer = await self._router.call("Server.RestoreStep", step, timeout_s=STEP_TIMEOUT_S)
        assert isinstance(answer, Answer)
        return answer

    async def step(self, _: CallContext, request: calls.RestoreStep) -> Answer:
        """On the leader: one step of a restore."""
        core = self._core
        if request.reach:
            await core.raft.raise_log(min(request.reach, core.raft.last_index + LENGTHEN))
            return Answer(index=core.raft.last_index)
        command: commands.Command
        if request.number < request.parts:
            command = commands.RestorePart(
                restore_id=request.restore_id, number=request.number, data=request.data
            )
        else:
            command = commands.Restore(
                restore_id=request.restore_id, parts=request.parts, sha256=request.sha256
            )
        applied = await core.propose(command, request_id=request.options.request_id)
        return Answer(index=applied.index)
