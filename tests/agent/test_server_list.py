"""Which server is asked, and what is never asked twice."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.server_list import Backoff, FailoverCaller, ServerList
from nomadpy.entropy import SeededEntropy
from nomadpy.errors import (
    ConnectionLostError,
    NoLeaderError,
    NomadError,
    NotFoundError,
    UnreachableError,
)
from nomadpy.models.calls import Empty, ServerAddress


class One:
    """A server that answers with its address, or fails."""

    def __init__(self, address: str, asked: list[str], error: NomadError | None) -> None:
        self.address, self.asked, self.error = address, asked, error

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        self.asked.append(self.address)
        if self.error is not None:
            raise self.error
        return self.address

    def open(self, method: str, request: msgspec.Struct) -> Any:
        raise NotImplementedError


def caller(errors: dict[str, NomadError], servers: ServerList) -> tuple[FailoverCaller, list[str]]:
    asked: list[str] = []
    return FailoverCaller(servers, lambda a: One(a, asked, errors.get(a))), asked


def servers(*addresses: str) -> ServerList:
    return ServerList(addresses, SeededEntropy(2))


def test_agents_spread_over_the_configured_servers() -> None:
    addresses = [f"s{n}:4647" for n in range(5)]
    firsts = {ServerList(addresses, SeededEntropy(seed)).ordered()[0] for seed in range(40)}
    assert firsts == set(addresses)


def test_known_servers_keep_their_place_and_listeners_hear_of_changes() -> None:
    known = servers("a", "b")
    heard: list[list[str]] = []
    known.subscribe(heard.append)
    known.failed(known.ordered()[0])
    before = known.ordered()
    known.update([ServerAddress(name=n, rpc=n) for n in ("a", "b")])
    assert known.ordered() == before
    assert heard == []
    known.update([ServerAddress(name=n, rpc=n) for n in ("b", "c")])
    assert known.ordered() == ["b", "c"]
    known.update([])
    assert known.ordered() == ["b", "c"]
    assert heard == [["b", "c"]]


def test_configured_servers_come_back_when_a_told_one_fails() -> None:
    known = servers("a")
    known.update([ServerAddress(name="x", rpc="x")])
    known.failed("x")
    assert known.ordered() == ["x", "a"]


async def test_the_next_server_is_asked_when_the_request_did_not_happen() -> None:
    known = servers("a", "b", "c")
    first, second, third = known.ordered()
    it, asked = caller({first: UnreachableError("down"), second: NoLeaderError()}, known)
    assert await it.call("Status.Leader", Empty()) == third
    assert asked == [first, second, third]
    # The one that answered is asked first from now on.
    assert await it.call("Status.Leader", Empty()) == third
    assert len(asked) == 4


async def test_a_request_that_may_have_happened_is_not_repeated() -> None:
    known = servers("a", "b")
    first, second = known.ordered()
    it, asked = caller({first: ConnectionLostError("cut")}, known)
    with pytest.raises(ConnectionLostError):
        await it.call("Node.Register", Empty())
    assert asked == [first]
    assert await it.call("Node.Register", Empty()) == second


async def test_an_answer_that_is_an_error_is_the_answer() -> None:
    known = servers("a", "b")
    first = known.ordered()[0]
    it, asked = caller({first: NotFoundError("node not found")}, known)
    with pytest.raises(NotFoundError):
        await it.call("Node.Heartbeat", Empty())
    assert asked == [first]


async def test_without_any_server_the_last_error_tells() -> None:
    known = servers("a", "b")
    it, _ = caller({"a": UnreachableError("a down"), "b": UnreachableError("b down")}, known)
    with pytest.raises(UnreachableError):
        await it.call("Status.Leader", Empty())
    with pytest.raises(UnreachableError, match="no servers are known"):
        await caller({}, servers())[0].call("Status.Leader", Empty())


def test_pauses_grow_to_a_limit_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(SeededEntropy(1), first_s=1.0, most_s=8.0)
    pauses = [backoff.next_s() for _ in range(10)]
    assert 0.5 <= pauses[0] <= 1.0
    assert all(4.0 <= p <= 8.0 for p in pauses[4:])
    backoff.reset()
    assert backoff.next_s() <= 1.0
