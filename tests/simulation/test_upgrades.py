"""Servers of two versions in one cluster: the log's format rises when all can read it, and never before, and never falls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from nomadpy.errors import LogFormatError
from nomadpy.fsm.commands import Checkpoint
from nomadpy.fsm.formats import HIGHEST, OWN
from nomadpy.server.log_format import LogFormats
from nomadpy.simulator import loop as virtual
from nomadpy.simulator.cluster import SimCluster, SimServer
from nomadpy.simulator.scenario import OLD, run_seed


async def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.1)


def log_format(server: SimServer) -> int:
    return 0 if server.process is None else server.process.store.snapshot().log_format()


def established(cluster: SimCluster) -> bool:
    metadata = [s.process.store.snapshot().cluster_metadata() for s in cluster.servers if s.process]
    return len(metadata) == len(cluster.servers) and all(metadata)


def play(story: Callable[[SimCluster], Awaitable[None]], *, old: bool = False) -> None:
    async def main() -> None:
        cluster = SimCluster(11, servers=3, clients=1, formats=OLD if old else OWN)
        try:
            await cluster.start()
            await until(lambda: established(cluster))
            await story(cluster)
        finally:
            await cluster.close()

    virtual.run(main)


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """What was logged with `text` in its message or one of its fields."""
    lines = [f"{r.getMessage()} {getattr(r, 'fields', {})}" for r in caplog.records]
    return [line for line in lines if text in line]


def test_a_new_cluster_has_the_newest_format_at_once() -> None:
    async def story(cluster: SimCluster) -> None:
        assert {log_format(s) for s in cluster.servers} == {HIGHEST}

    play(story)


def test_the_format_rises_after_the_last_server_and_not_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(cluster: SimCluster) -> None:
        for server in cluster.servers:
            await asyncio.sleep(5)
            assert {log_format(s) for s in cluster.servers} == {1}
            leader = cluster.leader()
            if leader is not None and leader.process is not None and not leader.old:
                with pytest.raises(LogFormatError, match="waits until every server is upgraded"):
                    await leader.process.server.core.propose(Checkpoint())
            await server.upgrade()
            await until(lambda: cluster.leader() is not None)
        await until(lambda: {log_format(s) for s in cluster.servers} == {HIGHEST})
        leader = cluster.leader()
        assert leader is not None
        assert leader.process is not None
        await leader.process.server.core.propose(Checkpoint())
        assert not cluster.broken

    with caplog.at_level(logging.INFO):
        play(story, old=True)
    assert said(caplog, "log format raised")


def test_a_server_that_goes_back_to_an_older_version_takes_no_part_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(cluster: SimCluster) -> None:
        leader = cluster.leader()
        back = next(s for s in cluster.servers if s is not leader)
        await back.upgrade(OLD)
        await asyncio.sleep(10)
        assert cluster.leader() is not back
        others = [s for s in cluster.servers if s is not back]
        assert {log_format(s) for s in others} == {HIGHEST}
        at = max(s.process.store.index for s in others if s.process)
        assert back.process is None or back.process.store.index < at
        await back.upgrade(OWN)
        await until(lambda: back.process is not None and back.process.store.index >= at)

    with caplog.at_level(logging.INFO):
        play(story)
    assert said(caplog, "this server reads 1 to 1: it takes no part until the version")
    assert said(caplog, "reads formats up to 1 only")


def test_a_whole_cluster_that_goes_back_stops_in_plain_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(cluster: SimCluster) -> None:
        for server in cluster.servers:
            await server.crash(power=False)
            server.formats = OLD
        for server in cluster.servers:
            await server.start()
        await until(lambda: bool(cluster.broken))
        assert "reads 1 to 1. Install the version" in cluster.broken[0]

    play(story)


def test_a_new_server_that_is_too_old_is_not_let_in_and_both_sides_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(cluster: SimCluster) -> None:
        leader = cluster.leader()
        assert leader is not None
        lost = next(s for s in cluster.servers if s is not leader)
        gone = lost.id
        await lost.lose_disk()
        lost.formats = OLD
        await lost.start()
        await asyncio.sleep(30)
        leader = cluster.leader()
        assert leader is not None
        assert leader.process is not None
        ids = {peer.id for peer, _ in leader.process.raft.peers()}
        assert lost.id not in ids
        assert gone not in ids
        await lost.upgrade()
        await until(lambda: log_format(lost) == HIGHEST)

    with caplog.at_level(logging.INFO):
        play(story)
    assert said(caplog, "this server takes no part in the cluster")
    assert said(caplog, "server not changed")


def test_control_a_leader_that_writes_what_others_cannot_read_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LogFormats, "common", lambda self: HIGHEST)
    monkeypatch.setattr(LogFormats, "too_old", lambda self, hello: "")
    found = [run_seed(seed, trouble_s=10.0).violation for seed in (3, 6, 9)]
    assert any("LogFormatError" in text or "log" in text for text in found), found
