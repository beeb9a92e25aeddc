"""Pieces of a snapshot that an operator restores, on their way through the log.

Each is decoded as it comes, so that the entry which puts the state in place has little left to do. The pieces themselves are
kept as well: a server that takes a raft snapshot meanwhile must hand them on.
"""

from __future__ import annotations

import hashlib

import msgspec

from nomadpy.errors import CorruptionError, InvalidRequestError, NomadError
from nomadpy.fsm import commands
from nomadpy.state import persist
from nomadpy.state.store import Snapshot


class Restoring:
    """At most one restore at a time; the newest wins."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._id = ""
        self._parts: list[bytes] = []
        self._reader = persist.Reader()
        self._failure = ""

    @classmethod
    def captured(cls, pieces: list[bytes]) -> Restoring:
        """Take over what `capture` gave. Raises msgspec.DecodeError."""
        restoring = cls()
        for number, piece in enumerate(pieces[1:]):
            name = msgspec.msgpack.decode(pieces[0], type=str)
            restoring.take(commands.RestorePart(restore_id=name, number=number, data=piece))
        return restoring

    def capture(self) -> list[bytes]:
        """All of it, for a raft snapshot."""
        return [msgspec.msgpack.encode(self._id), *self._parts] if self._parts else []

    def take(self, part: commands.RestorePart) -> NomadError | None:
        """Set a piece aside; an error is returned."""
        if part.number == 0:
            self._clear()
            self._id = part.restore_id
        if part.restore_id != self._id or part.number != len(self._parts):
            return InvalidRequestError(
                "the restore was overtaken by another one, or by a piece that was lost; begin it again"
            )
        self._parts.append(part.data)
        if not self._failure:
            try:
                self._reader.feed(part.data)
            except (*persist.UNREADABLE, CorruptionError) as error:
                self._failure = f"snapshot cannot be decoded: {error}"
        return None

    def finish(self, command: commands.Restore) -> Snapshot | NomadError:
        """What the pieces hold; they are dropped. An error is returned."""
        parts, reader, failure, name = self._parts, self._reader, self._failure, self._id
        if command.restore_id != name or command.parts != len(parts):
            return InvalidRequestError(
                "the restore was overtaken by another one, or lacks pieces; begin it again"
            )
        self._clear()
        digest = hashlib.sha256()
        for piece in parts:
            digest.update(piece)
        if digest.hexdigest() != command.sha256:
            failure = "the snapshot's pieces are not what was announced"
        if failure:
            return InvalidRequestError(failure)
        try:
            return reader.finish().snapshot
        except (*persist.UNREADABLE, CorruptionError) as error:
            return InvalidRequestError(f"snapshot cannot be decoded: {error}")
