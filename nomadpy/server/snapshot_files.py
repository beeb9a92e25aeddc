"""Snapshots in a folder: taken, written aside, read back as a whole, then given their names; the oldest make room.

    PREFIX-20261123T094558.123Z-INDEX.snap      the archive of state/archive.py, the same that `operator snapshot save` gives

Everything here but `meta_of` blocks on the disk and belongs in a thread.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from nomadpy.errors import CorruptionError
from nomadpy.models.gotime import from_ns
from nomadpy.server.core import Core
from nomadpy.state import archive
from nomadpy.state.store import Snapshot

UNVERIFIED = ".unverified"
_STAMP = "%Y%m%dT%H%M%S"


def meta_of(core: Core, snapshot: Snapshot) -> archive.Meta:
    """What a snapshot that is taken now says of itself."""
    now_ns, term = core.clock.now_ns(), core.raft.term
    return archive.Meta(
        id=f"{term}-{snapshot.index}-{now_ns // 1_000_000}",
        index=snapshot.index,
        term=term,
        created=from_ns(now_ns),
        by=core.settings.member_name,
        servers=[
            archive.Server(p.id, p.address, "Voter" if votes else "Nonvoter")
            for p, votes in core.raft.peers()
        ],
    )


class SnapshotFolder:
    """The snapshots with one prefix in one folder."""

    def __init__(self, path: str, prefix: str) -> None:
        self._path = Path(path)
        self._ours = re.compile(
            rf"{re.escape(prefix)}-(\d{{8}}T\d{{6}})\.(\d{{3}})Z-\d+\.snap({re.escape(UNVERIFIED)})?"
        )
        self._prefix = prefix

    def newest_ms(self) -> int | None:
        """When the newest was taken, milliseconds since 1970; None when there is none. Raises OSError."""
        names = self._names()
        if not names:
            return None
        found = self._ours.fullmatch(names[-1])
        assert found is not None
        taken = datetime.strptime(found[1], _STAMP).replace(tzinfo=UTC)
        return int(taken.timestamp()) * 1000 + int(found[2])

    def write(self, meta: archive.Meta, now_ns: int, chunks: Iterable[bytes]) -> Path:
        """Write a snapshot, whole and checked or not at all; returns its path. Raises OSError, CorruptionError."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
        millis = now_ns // 1_000_000 % 1000
        name = f"{self._prefix}-{taken.strftime(_STAMP)}.{millis:03d}Z-{meta.index}.snap"
        path, aside = self._path / name, self._path / (name + UNVERIFIED)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
            with open(os.open(aside, flags, 0o600), "w+b") as file:
                archive.write(file, meta, chunks)
                file.flush()
                os.fsync(file.fileno())
            # What the disk gives back, not what was meant to be on it.
            with aside.open("rb") as file:
                read = archive.read(file)
            read.state.close()
            if read.meta != meta:
                raise CorruptionError(f"{aside}: what was read back is another snapshot")
            aside.rename(path)
            _sync_folder(self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        return path

    def keep(self, count: int) -> list[str]:
        """Remove all but the newest `count`, and what a crash left unverified; returns their names. Raises OSError."""
        names = self._names()
        gone = names[: max(0, len(names) - count)] + self._names(unverified=True)
        for name in gone:
            (self._path / name).unlink(missing_ok=True)
        return gone

    def _names(self, *, unverified: bool = False) -> list[str]:
        try:
            found = [self._ours.fullmatch(name) for name in os.listdir(self._path)]
        except FileNotFoundError:
            return []
        return sorted(m[0] for m in found if m is not None and bool(m[3]) == unverified)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
