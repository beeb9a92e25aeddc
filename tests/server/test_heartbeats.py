"""How long a node may be silent, and what happens when it was silent for longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from server_world import World, job, running

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import NotFoundError, PermissionDeniedError
from nomadpy.models.calls import NodeHeartbeat
from nomadpy.models.node import Node
from nomadpy.server.leader.heartbeats import Heartbeats
from nomadpy.server.settings import ServerSettings
from nomadpy.simulator.loop import SimClock


class Watched:
    """Heartbeats and the nodes that they reported, with the moment."""

    def __init__(self, **settings: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.reported: list[tuple[float, list[str]]] = []
        self.beats = Heartbeats(
            ServerSettings(id="s", name="s", rpc_address="s:1", **settings),  # type: ignore[arg-type]
            self._expired,
            clock=SimClock(self.loop),
            entropy=SeededEntropy("beats"),
        )

    async def _expired(self, nodes: list[str]) -> None:
        self.reported.append((self.loop.time(), nodes))


async def test_the_time_to_live_grows_with_the_cluster_and_is_spread_over_its_double() -> None:
    few = Watched().beats
    assert all(10.0 <= few.reset(f"n{number}") <= 20.0 for number in range(100))
    many = Watched().beats
    for number in range(5000):
        many.reset(f"n{number}")
    ttls = [many.reset(f"n{number}") for number in range(200)]
    assert 100.0 <= min(ttls) < 110.0
    assert 190.0 < max(ttls) <= 200.0


async def test_a_node_that_is_heard_again_is_counted_once() -> None:
    beats = Watched(heartbeats_per_second=1.0, heartbeat_min_ttl_s=0.0).beats
    ttls = [beats.reset("only") for _ in range(50)]
    assert len(beats) == 1
    assert all(1.0 <= ttl <= 2.0 for ttl in ttls)


async def test_a_node_is_reported_once_after_its_time_and_the_grace() -> None:
    world = Watched(heartbeat_grace_s=5.0)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(world.beats.run())
        ttl = world.beats.reset("n")
        await asyncio.sleep(ttl + 4.9)
        assert world.reported == []
        await asyncio.sleep(100.0)
        task.cancel()
    ((moment, nodes),) = world.reported
    assert nodes == ["n"]
    assert moment == pytest.approx(ttl + 5.0)


async def test_heartbeats_keep_a_node_alive_and_a_forgotten_one_is_never_reported() -> None:
    world = Watched()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(world.beats.run())
        world.beats.reset("forgotten")
        world.beats.forget("forgotten")
        for _ in range(30):
            await asyncio.sleep(world.beats.reset("alive"))
        assert world.reported == []
        task.cancel()
    assert len(world.beats) == 1


async def test_a_new_leader_gives_every_node_the_failover_time_until_it_is_heard() -> None:
    world = Watched(heartbeat_failover_ttl_s=300.0)
    world.beats.restore(["a", "b"])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(world.beats.run())
        await asyncio.sleep(250.0)
        # One is heard, and is back to the usual time, which is over sooner.
        ttl = world.beats.reset("a")
        await asyncio.sleep(200.0)
        task.cancel()
    found = {nodes[0]: moment for moment, nodes in world.reported}
    assert found == {"a": pytest.approx(260.0 + ttl), "b": pytest.approx(300.0)}


async def test_many_nodes_that_fall_silent_together_are_all_reported() -> None:
    world = Watched()
    for number in range(350):
        world.beats.reset(f"n{number:03}")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(world.beats.run())
        await asyncio.sleep(60.0)
        task.cancel()
    names = [name for _, nodes in world.reported for name in nodes]
    assert sorted(names) == [f"n{number:03}" for number in range(350)]


# -- on a cluster -----------------------------------------------------------------------------------------

SHORT: dict[str, Any] = {
    "heartbeat_min_ttl_s": 2.0,
    "heartbeat_grace_s": 3.0,
    "heartbeat_failover_ttl_s": 30.0,
}


def node_of(world: World, node_id: str) -> Node:
    node = world.state.node(node_id)
    assert node is not None
    return node


async def test_a_silent_node_goes_down_and_its_work_moves() -> None:
    async with running(**SHORT) as world:
        one = await world.node("n0")
        await world.register(job())
        await world.settled()
        await one.obey()
        (lost,) = one.wanted()
        two = await world.node("n1")
        loop = asyncio.get_running_loop()
        start = loop.time()
        while node_of(world, one.id).status != "down":
            assert loop.time() - start < 8.0
            await two.heartbeat()
            await asyncio.sleep(0.5)
        assert loop.time() - start > 4.0
        events = node_of(world, one.id).events or []
        assert events[-1].message == "Node heartbeat missed"
        await world.settled()
        assert world.state.alloc(lost.id).client_status == "lost"  # type: ignore[union-attr]
        (moved,) = two.wanted()
        assert (moved.previous_allocation, moved.name) == (lost.id, lost.name)


async def test_a_node_that_comes_back_is_ready_again_and_its_system_jobs_are_placed() -> None:
    async with running(**SHORT) as world:
        node = await world.node()
        await world.until(lambda: node_of(world, node.id).status == "down", "the node's end")
        await world.register(job("everywhere", Type="system"))
        await world.settled()
        assert node.wanted() == []
        reply = await node.heartbeat()
        assert reply.eval_ids
        assert reply.ttl_ns >= 2e9
        assert node_of(world, node.id).status == "ready"
        await world.settled()
        assert len(node.wanted()) == 1


async def test_an_agent_that_leaves_is_down_at_once_and_not_reported_later() -> None:
    async with running(**SHORT) as world:
        node = await world.node()
        reply = await node.heartbeat("down")
        assert reply.ttl_ns == 0
        assert node_of(world, node.id).status == "down"
        events = node_of(world, node.id).events
        await asyncio.sleep(30)
        assert node_of(world, node.id).events == events


async def test_after_an_election_nodes_have_the_failover_time_to_be_heard() -> None:
    async with running(3, **SHORT) as world:
        node = await world.node()
        await world.caught_up()
        await world.leading.crash(power=False)
        await world.has_leader()
        await asyncio.sleep(20)
        assert node_of(world, node.id).status == "ready"
        await world.until(lambda: node_of(world, node.id).status == "down", "its end")


async def test_a_heartbeat_needs_the_secret_of_a_node_that_is_known() -> None:
    async with running() as world:
        node = await world.node()
        for secret in ("", "wrong"):
            request = NodeHeartbeat(node_id=node.id, secret_id=secret, status="ready")
            with pytest.raises(PermissionDeniedError):
                await world.call("Node.Heartbeat", request)
        request = NodeHeartbeat(node_id="x" * 36, secret_id="s", status="ready")
        with pytest.raises(NotFoundError):
            await world.call("Node.Heartbeat", request)


async def test_a_node_whose_work_may_outlive_a_disconnection_is_disconnected_and_reconciled() -> (
    None
):
    async with running(**SHORT) as world:
        one = await world.node("n0")
        await world.register(job(group={"Disconnect": {"LostAfter": 600_000_000_000}}))
        await world.settled()
        await one.obey()
        (kept,) = one.wanted()
        two = await world.node("n1")
        while node_of(world, one.id).status == "ready":
            await two.heartbeat()
            await asyncio.sleep(0.5)
        assert node_of(world, one.id).status == "disconnected"
        await world.settled()
        assert world.state.alloc(kept.id).client_status == "unknown"  # type: ignore[union-attr]
        assert len(two.wanted()) == 1
        await two.obey()
        # It is back, and says that its task never stopped.
        await one.heartbeat()
        await one.report(kept, status="running")
        await world.settled()
        assert node_of(world, one.id).status == "ready"
        assert len(one.wanted() + two.wanted()) == 1
