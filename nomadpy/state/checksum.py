"""A digest of a whole state, so that two servers can be compared at one index.

Equal content gives equal digests, whichever way it came about: by entries or by a snapshot. Jobs that allocations
carry are digested once per object.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.job import Job

if TYPE_CHECKING:
    from nomadpy.state.store import Snapshot


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
