"""How every read is answered: consistent or stale, at once or when something changed, filtered and in pages.

A default read is linearizable on any server: the leader confirms its leadership by a round of messages (raft.read_index),
a follower asks the leader for that index and waits until it has applied it. `stale` answers from what is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from nomadpy.errors import (
    ConnectionLostError,
    DeadlineError,
    InvalidRequestError,
    NoLeaderError,
    NotFoundError,
    NotLeaderError,
    UnreachableError,
)
from nomadpy.models.calls import IndexReply, IndexRequest
from nomadpy.models.envelope import Answer, QueryOptions
from nomadpy.server import filter_expression
from nomadpy.server.core import Core
from nomadpy.state.store import Snapshot
from nomadpy.state.watch import Key

DEFAULT_WAIT_S = 300.0
MAX_WAIT_S = 300.0
CONSISTENT_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 2.0
RETRY_S = 0.1

_NO_ANSWER = (NotLeaderError, NoLeaderError, UnreachableError, ConnectionLostError, DeadlineError)
_LAST = chr(0x10FFFF)

T = TypeVar("T")

Place = str | tuple[int, str] | tuple[str, str]
"""Where an object stands in a list's order; written into a token with a dot between its parts."""

_encoder = msgspec.json.Encoder(order=None)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a read found. index: of the tables or the object. missing: the 404's text when there is nothing.

    value is encoded only when it is sent; next_token goes into its header.
    """

    index: int
    value: Any = None
    missing: str = ""
    next_token: str = ""


class LeaderCalls(Protocol):
    """Calls the leader's own rpc address."""

    async def call_leader(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any: ...


class Queries:
    """Runs reads for the endpoints."""

    def __init__(self, core: Core, leader: LeaderCalls) -> None:
        self._core = core
        self._leader = leader

    async def answer(
        self, options: QueryOptions, watched: list[Key], read: Callable[[Snapshot], Found]
    ) -> Answer:
        """Run `read` by the rules of `options`. `watched` are the keys whose change may change the result."""
        found = await self.find(options, watched, read)
        if found.missing:
            raise NotFoundError(found.missing, **self._headers(options, found.index))
        return Answer(
            body=_encoder.encode(found.value),
            index=found.index,
            next_token=found.next_token,
            **self._headers(options, 0, plain=True),
        )

    async def find(
        self, options: QueryOptions, watched: list[Key], read: Callable[[Snapshot], Found]
    ) -> Found:
        """The same, without encoding."""
        if not options.allow_stale:
            await self.consistent()
        if options.min_index <= 0:
            return read(self._core.snapshot())
        self._core.metrics.count("nomad.nomad.rpc.query")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_s(options)
        while True:
            changed: asyncio.Future[int] = loop.create_future()

            def wake(index: int, changed: asyncio.Future[int] = changed) -> None:
                if not changed.done():
                    changed.set_result(index)

            handle = self._core.store.watch(watched, wake)
            try:
                found = read(self._core.snapshot())
                if found.index > options.min_index:
                    return found
                async with asyncio.timeout_at(deadline):
                    await changed
            except TimeoutError:
                return read(self._core.snapshot())
            finally:
                handle.cancel()

    async def consistent(self) -> None:
        """Return when what is applied here is no older than what was acknowledged anywhere before the call.

        Raises NoLeaderError when no leader confirms in time.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CONSISTENT_TIMEOUT_S
        raft = self._core.raft
        while True:
            left = deadline - loop.time()
            if left <= 0:
                raise NoLeaderError
            try:
                if raft.is_leader:
                    await raft.read_index(timeout_s=left)
                else:
                    reply: IndexReply = await self._leader.call_leader(
                        "Raft.ReadIndex", IndexRequest(), timeout_s=min(left, ASK_TIMEOUT_S)
                    )
                    await raft.wait_applied(reply.index, timeout_s=left)
            except _NO_ANSWER:
                # Asking changes nothing, so whatever became of the question it may be asked again.
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _wait_s(self, options: QueryOptions) -> float:
        wait = options.wait_ns / 1e9
        wait = DEFAULT_WAIT_S if wait <= 0 else min(wait, MAX_WAIT_S)
        # Readers that started together must not come back together.
        return wait + self._core.entropy.uniform(0.0, wait / 16)

    def _headers(self, options: QueryOptions, index: int, *, plain: bool = False) -> dict[str, Any]:
        raft = self._core.raft
        stale = options.allow_stale and not raft.is_leader
        found: dict[str, Any] = {
            "last_contact_ms": int(raft.last_contact_s * 1000) if stale else 0,
            "known_leader": raft.leader is not None,
        }
        if not plain:
            found["index"] = index
        return found


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list."""

    items: list[T]
    next_token: str = ""


def page(
    objects: Iterable[T],
    options: QueryOptions,
    *,
    token: Callable[[T], Place],
    descending: bool = False,
) -> Page[T]:
    """Filter and cut a list that is already in its order. token: the place of an object in that order.

    The next token names the first object of the next page, so a page starts at it, inclusively. Places made of an index
    and an id are compared by number. descending: the order falls unless it is reversed.
    """
    matches = filter_expression.parse(options.filter) if options.filter else None
    if options.per_page < 0:
        raise InvalidRequestError("Expect a number for `per_page` query string parameter")
    if options.reverse:
        objects = reversed(list(objects))
    falls = options.reverse is not descending
    items: list[T] = []
    for obj in objects:
        if options.next_token and not _reached(token(obj), options.next_token, falls=falls):
            continue
        if matches is not None and not matches(obj):
            continue
        if options.per_page and len(items) == options.per_page:
            place = token(obj)
            text = place if isinstance(place, str) else f"{place[0]}.{place[1]}"
            return Page(items, text)
        items.append(obj)
    return Page(items)


def _reached(place: Place, text: str, *, falls: bool) -> bool:
    if isinstance(place, str):
        return place <= text if falls else place >= text
    head, dot, rest = text.partition(".")
    if not dot and falls:
        # A bare index begins with all that have it.
        rest = _LAST
    if isinstance(place[0], int):
        if not (head.isascii() and head.isdigit()):
            raise InvalidRequestError(f"next_token {text!r} is not one of this list's")
        start: tuple[object, str] = (int(head), rest)
    else:
        start = (head, rest)
    return place <= start if falls else place >= start


def check_uuid_prefix(prefix: str, what: str) -> None:
    """Raise the wire's errors for a prefix that cannot begin a UUID: an odd number of digits, or not hexadecimal."""
    digits = prefix.replace("-", "")
    if len(digits) % 2:
        raise _lookup_error(what, "Input (without hyphens) must be even length")
    if len(prefix) > 36:
        raise _lookup_error(what, f"Invalid UUID length: {len(prefix)}")
    for character in digits:
        if character not in "0123456789abcdefABCDEF":
            raise _lookup_error(
                what,
                f"Invalid UUID: encoding/hex: invalid byte: U+{ord(character):04X} {character!r}",
            )


def check_uuid(identity: str, what: str) -> None:
    """Raise the wire's error for an id that is not 36 characters long."""
    if len(identity) != 36:
        raise _lookup_error(what, "UUID must be 36 characters")


def _lookup_error(what: str, reason: str) -> InvalidRequestError:
    # The API answers these with 500, as it does every error of its index.
    return InvalidRequestError(f"{what} lookup failed: index error: {reason}", status=500)
