"""Requests that were applied, and what they gave, so that a repeated one changes nothing.

Bounded by number and by age in the entries' own time; both are the same on every server, for entries alone decide them.
A caller that gives up must not try again with the same id later than MAX_AGE_NS, which is far above every timeout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from nomadpy.errors import NomadError
from nomadpy.fsm.commands import Applied

MAX_REQUESTS = 16_384
MAX_AGE_NS = 15 * 60 * 1_000_000_000

_PIECE = 512


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One request that was applied at `index`, at the time `now_ns`; error is an error's wire form."""

    request_id: str
    index: int
    now_ns: int
    value: Any = None
    error: dict[str, Any] | None = None

    def result(self) -> Applied | NomadError:
        """What it gave."""
        if self.error is not None:
            return NomadError.from_wire(self.error)
        return Applied(index=self.index, value=self.value)


class Requests:
    """The table of requests, oldest first."""

    def __init__(self) -> None:
        self._by_id: dict[str, Request] = {}
        # The latest time of any entry: a leader whose clock is behind does not make requests older or younger.
        self._latest_ns = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, request_id: str) -> Request | None:
        """The request with this id; None for an empty one."""
        return self._by_id.get(request_id) if request_id else None

    def remember(
        self, request_id: str, index: int, now_ns: int, result: Applied | NomadError
    ) -> None:
        """Keep a result, and forget what is beyond the bounds."""
        self._latest_ns = max(self._latest_ns, now_ns)
        if request_id:
            self._by_id[request_id] = Request(
                request_id,
                index,
                now_ns,
                result.value if isinstance(result, Applied) else None,
                result.to_wire() if isinstance(result, NomadError) else None,
            )
        while self._by_id:
            oldest = next(iter(self._by_id.values()))
            aged = self._latest_ns - oldest.now_ns > MAX_AGE_NS
            if not aged and len(self._by_id) <= MAX_REQUESTS:
                return
            del self._by_id[oldest.request_id]

    def capture(self) -> tuple[int, list[Request]]:
        """The table as it is now; not touched by what comes later."""
        return self._latest_ns, list(self._by_id.values())

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Take over what `encode` wrote. Raises msgspec.DecodeError."""
        self._by_id = {}
        self._latest_ns = 0
        for piece in pieces:
            latest_ns, requests = msgspec.msgpack.decode(piece, type=tuple[int, list[Request]])
            self._latest_ns = latest_ns
            self._by_id.update((request.request_id, request) for request in requests)


def encode(captured: tuple[int, list[Request]]) -> Iterator[bytes]:
    """A captured table in pieces, for a snapshot."""
    latest_ns, requests = captured
    for start in range(0, max(1, len(requests)), _PIECE):
        yield msgspec.msgpack.encode((latest_ns, requests[start : start + _PIECE]))
