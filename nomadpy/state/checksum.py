"""Digests of a state, so that two servers can be compared at one index: of all of it, or of each table.

Equal content gives equal digests, whichever way it came about: by entries or by a snapshot. Jobs that allocations
carry are digested once per object. The whole digest is made in one go, for tests; those of tables are made in small
steps, by whoever holds an event loop that others need.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.job import Job
from nomadpy.state.schema import TABLES

if TYPE_CHECKING:
    from nomadpy.state.store import Snapshot


STEP_ROWS = 32
STEP_BYTES = 64 << 10
INDEXES = "indexes"
"""What the sum of the tables' indexes is called."""

_MODULUS = 1 << 128

Sums = dict[str, str]
"""Table to digest, 32 hexadecimal characters; besides tables, what the state machine keeps beside the state."""


@functools.cache
def shape() -> str:
    """A digest of the fields that rows have here. Servers whose rows differ in shape must not compare their sums."""
    _, parts = msgspec.json.schema_components([spec.row_type for spec in TABLES.values()])
    described = msgspec.json.encode((sorted(TABLES), parts), order="sorted")
    return hashlib.blake2b(described, digest_size=8).hexdigest()


def table_sums(
    snapshot: Snapshot, extras: Mapping[str, Iterable[bytes]]
) -> Generator[None, None, Sums]:
    """Sum up every table and the extras; each step takes STEP_ROWS rows or STEP_BYTES bytes, whichever comes first.

    The rows of a table are digested one by one and their digests added up, so that they need no order.
    """
    encoder = msgspec.msgpack.Encoder(order="deterministic")
    jobs: dict[int, tuple[Job, bytes]] = {}
    sums = {INDEXES: _digest(encoder.encode((snapshot.index, snapshot.table_indexes))).hex()}
    rows = size = 0
    for name, table in snapshot.tables.items():
        total = 0
        for key, row in table.items():
            data = encoder.encode((key, _without_job(row)))
            job = _job_of(row)
            if job is not None:
                known = jobs.get(id(job))
                if known is None:
                    encoded = encoder.encode(job)
                    size += len(encoded)
                    known = jobs[id(job)] = (job, _digest(encoded))
                data += known[1]
            total += int.from_bytes(_digest(data), "big")
            rows, size = rows + 1, size + len(data)
            if rows >= STEP_ROWS or size >= STEP_BYTES:
                yield
                rows = size = 0
        sums[name] = _digest(encoder.encode((len(table), f"{total % _MODULUS:x}"))).hex()
    for name, pieces in extras.items():
        digest = hashlib.blake2b(digest_size=16)
        for piece in pieces:
            digest.update(piece)
            yield
        sums[name] = digest.hexdigest()
    return sums


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _job_of(row: Any) -> Job | None:
    return row.job if isinstance(row, Allocation) else None


def _without_job(row: Any) -> Any:
    if isinstance(row, Allocation) and row.job is not None:
        return msgspec.structs.replace(row, job=None)
    return row


def checksum(snapshot: Snapshot) -> str:
    """Return 32 hexadecimal characters."""
    encoder = msgspec.msgpack.Encoder(order="deterministic")
    digest = hashlib.blake2b(digest_size=16)
    jobs: dict[int, tuple[Job, bytes]] = {}

    def job_digest(job: Job) -> bytes:
        known = jobs.get(id(job))
        if known is None:
            known = (job, hashlib.blake2b(encoder.encode(job), digest_size=16).digest())
            jobs[id(job)] = known
        return known[1]

    digest.update(encoder.encode((snapshot.index, snapshot.table_indexes)))
    for name in sorted(snapshot.tables):
        table = snapshot.tables[name]
        digest.update(encoder.encode((name, len(table))))
        for key in table.keys():  # noqa: SIM118 - in order, by name
            row = table.get(key)
            digest.update(encoder.encode(key))
            if isinstance(row, Allocation) and row.job is not None:
                digest.update(job_digest(row.job))
                row = msgspec.structs.replace(row, job=None)
            digest.update(encoder.encode(row))
    return digest.hexdigest()
