"""Servers compare what their states add up to: equal ones are silent, and one changed row makes every server shout."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec
import pytest

from nomadpy.models.calls import Read
from nomadpy.server.state_check import Verdict
from nomadpy.simulator import loop as virtual
from nomadpy.simulator.cluster import SimCluster, SimServer
from nomadpy.state.schema import NODES
from nomadpy.state.store import Snapshot


async def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.1)


def verdict(server: SimServer) -> Verdict:
    assert server.process is not None
    return server.process.server.state_check.verdict


async def formed(cluster: SimCluster) -> None:
    await cluster.start()
    await until(lambda: all(verdict(s).compared == len(cluster.servers) for s in cluster.servers))


def corrupt(server: SimServer) -> str:
    """Change one row of one server's state behind the log's back; returns the node's id."""
    assert server.process is not None
    store = server.process.store
    state = store.snapshot()
    node = next(iter(state.nodes()))
    writer = state.tables[NODES.name].writer()
    writer.put(node.id, msgspec.structs.replace(node, name="another"))
    tables = {**state.tables, NODES.name: writer.commit()}
    store._current = Snapshot(state.index, tables, state.table_indexes)
    return node.id


def test_equal_servers_compare_again_and_again_and_say_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        cluster = SimCluster(3, servers=3, clients=2)
        try:
            await formed(cluster)
            first = verdict(cluster.servers[0]).index
            await until(lambda: all(verdict(s).index > first + 10 for s in cluster.servers))
            assert not any(verdict(s).odd for s in cluster.servers)
        finally:
            await cluster.close()

    with caplog.at_level(logging.ERROR):
        virtual.run(main)
    assert not caplog.records


@pytest.mark.parametrize("whose", ["follower", "leader"])
def test_one_changed_row_is_found_and_named_by_every_server(
    whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        cluster = SimCluster(4, servers=3, clients=2)
        try:
            await formed(cluster)
            leader = cluster.leader()
            assert leader is not None
            victim = next(s for s in cluster.servers if (s is leader) == (whose == "leader"))
            corrupt(victim)
            await until(lambda: all(verdict(s).odd for s in cluster.servers))
            for server in cluster.servers:
                assert list(verdict(server).odd) == [victim.id]
                assert verdict(server).odd[victim.id] == ["nodes"]
                assert server.process is not None
                shown = server.process.server.state_check.stats()
                assert shown["differing_servers"] == f"{victim.name}:nodes"
            asked = leader.process
            assert asked is not None
            answer = await asked.server.call("Operator.AutopilotHealth", Read())
            health = {s["ID"]: s["Healthy"] for s in msgspec.json.decode(answer.body)["Servers"]}
            assert health == {s.id: s is not victim for s in cluster.servers}
        finally:
            await cluster.close()

    with caplog.at_level(logging.ERROR):
        virtual.run(main)
    shouts = [r for r in caplog.records if "differs from the others'" in r.getMessage()]
    assert len(shouts) >= 3
    for shout in shouts:
        fields = shout.fields  # type: ignore[attr-defined]
        assert fields["tables"] == "nodes"
        assert fields["index"] > 0
        assert len(fields["sums"]) == len(fields["others"]) == 32
        assert fields["sums"] != fields["others"]


def test_a_server_that_joins_anew_is_equal_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cluster = SimCluster(5, servers=3, clients=2)
        try:
            await formed(cluster)
            leader = cluster.leader()
            victim = next(s for s in cluster.servers if s is not leader)
            corrupt(victim)
            await until(lambda: all(verdict(s).odd for s in cluster.servers))
            # What the message advises.
            await victim.lose_disk()
            await victim.start()
            await until(
                lambda: all(
                    verdict(s).compared == 3 and not verdict(s).odd for s in cluster.servers
                ),
                timeout_s=180,
            )
        finally:
            await cluster.close()

    with caplog.at_level(logging.INFO):
        virtual.run(main)
    assert "states are equal again" in caplog.text
