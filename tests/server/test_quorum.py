"""Servers come and go while the cluster works: who is let in, who votes, who is let go, who may not come back."""

from __future__ import annotations

import asyncio
import json

import pytest
from server_world import World, WorldServer, job, running

from nomadpy.errors import ConflictError, InvalidRequestError, NotFoundError
from nomadpy.models.calls import AutopilotConfigWrite, Write
from nomadpy.models.operator import AutopilotConfiguration

QUICK = AutopilotConfiguration(
    cleanup_dead_servers=True, max_trailing_logs=250, server_stabilization_time="3s"
)


async def settings(world: World, config: AutopilotConfiguration = QUICK) -> None:
    await world.call("Operator.SetAutopilotConfiguration", AutopilotConfigWrite(config=config))


async def grown(world: World) -> WorldServer:
    """Start one more server."""
    server = WorldServer(world.cluster, len(world.servers), {})
    world.cluster.servers.append(server)
    await server.start()
    return server


def voters(world: World) -> set[str]:
    return {peer.name for peer, votes in world.leader.raft.peers() if votes}


def learners(world: World) -> set[str]:
    return {peer.name for peer, votes in world.leader.raft.peers() if not votes}


async def everyone_knows(world: World, names: set[str]) -> None:
    def look() -> bool:
        return all(
            {p.name for p, votes in s.process.raft.peers() if votes} == names
            for s in world.cluster.live()
            if s.process is not None
        )

    await world.until(look, f"{names} to vote", seconds=120)


async def test_a_server_that_comes_later_learns_first_and_votes_then() -> None:
    async with running(3) as world:
        await settings(world)
        await world.register(job("web"))
        server = await grown(world)
        await world.until(lambda: learners(world) == {"s3"}, "the learner")
        assert voters(world) == {"s0", "s1", "s2"}
        await everyone_knows(world, {"s0", "s1", "s2", "s3"})
        assert learners(world) == set()
        await world.caught_up()
        assert server.process is not None
        assert server.process.store.snapshot().job("default", "web") is not None
        shown = await world.get("Operator.RaftConfiguration")
        assert [s["Voter"] for s in shown["Servers"]] == [True] * 4
        assert shown["Index"] > 0


async def test_a_single_server_grows_to_three() -> None:
    async with running(1) as world:
        await settings(world)
        await grown(world)
        await grown(world)
        await everyone_knows(world, {"s0", "s1", "s2"})
        first = world.leading
        await first.crash(power=True)
        await world.has_leader()
        await world.register(job("after"))


async def test_a_removed_server_is_not_let_in_again_before_it_is_a_new_one() -> None:
    async with running(3) as world:
        await settings(world)
        victim = next(s for s in world.servers if s is not world.leading)
        await world.call("Operator.RemovePeer", Write(id=victim.id))
        assert victim.name not in voters(world)
        await victim.crash(power=False)
        await victim.start()
        before = world.leader.raft.configuration_index
        await asyncio.sleep(30.0)
        assert world.leader.raft.configuration_index == before
        await victim.lose_disk()
        await victim.start()
        await everyone_knows(world, {"s0", "s1", "s2"})


async def test_a_host_that_lost_its_disk_takes_its_own_place_again() -> None:
    async with running(3) as world:
        await settings(world)
        lost = next(s for s in world.servers if s is not world.leading)
        old = lost.id
        await lost.lose_disk()
        await lost.start()
        await everyone_knows(world, {"s0", "s1", "s2"})
        assert old in world.leader.raft.removed


async def test_the_leader_can_be_removed_and_another_one_carries_it_out() -> None:
    async with running(3) as world:
        victim = world.leading
        await world.call("Operator.RemovePeer", Write(flags={"address": victim.address}))
        await world.has_leader(not_=victim.process)
        assert voters(world) == {"s0", "s1", "s2"} - {victim.name}


async def test_a_removal_that_would_leave_no_live_majority_is_refused() -> None:
    async with running(3) as world:
        await settings(world, AutopilotConfiguration(cleanup_dead_servers=False))
        dead, alive = (s for s in world.servers if s is not world.leading)
        await dead.crash(power=False)
        await asyncio.sleep(8.0)
        with pytest.raises(ConflictError, match="no majority"):
            await world.call("Operator.RemovePeer", Write(id=alive.id))
        await world.call("Operator.RemovePeer", Write(id=dead.id))
        assert dead.name not in voters(world)


async def test_a_peer_is_named_once_and_must_be_there() -> None:
    async with running(1) as world:
        with pytest.raises(InvalidRequestError):
            await world.call("Operator.RemovePeer", Write())
        with pytest.raises(NotFoundError, match="nobody"):
            await world.call("Operator.RemovePeer", Write(id="nobody"))
        with pytest.raises(InvalidRequestError, match="last server"):
            await world.call("Server.Leave", Write(id=world.servers[0].id))


async def test_leadership_goes_where_the_operator_wants_it() -> None:
    async with running(3) as world:
        to = next(s for s in world.servers if s is not world.leading)
        answer = await world.call("Operator.TransferLeadership", Write(id=to.id))
        assert json.loads(answer.body)["To"]["ID"] == to.id
        await world.until(lambda: world.leading is to, "the new leader")


async def test_a_dead_server_is_cleaned_up_while_a_majority_stays() -> None:
    async with running(3) as world:
        await settings(world)
        dead = next(s for s in world.servers if s is not world.leading)
        await dead.crash(power=False)
        await world.until(lambda: dead.name not in voters(world), "the clean-up", seconds=120)
        await dead.start()
        await everyone_knows(world, {"s0", "s1", "s2"})


async def test_min_quorum_keeps_dead_servers() -> None:
    async with running(3) as world:
        await settings(
            world,
            AutopilotConfiguration(
                cleanup_dead_servers=True, min_quorum=3, server_stabilization_time="3s"
            ),
        )
        dead = next(s for s in world.servers if s is not world.leading)
        await dead.crash(power=False)
        await asyncio.sleep(200.0)
        assert dead.name in voters(world)


async def test_a_server_that_leaves_may_come_back_as_the_same() -> None:
    async with running(3) as world:
        await settings(world)
        leaver = next(s for s in world.servers if s is not world.leading)
        assert leaver.process is not None
        await leaver.process.server.leave()
        assert leaver.name not in voters(world)
        await leaver.crash(power=False)
        await leaver.start()
        await everyone_knows(world, {"s0", "s1", "s2"})


async def test_a_leader_that_leaves_hands_over_first() -> None:
    async with running(3) as world:
        leaver = world.leading
        assert leaver.process is not None
        await leaver.process.server.leave()
        await world.has_leader(not_=leaver.process)
        assert voters(world) == {"s0", "s1", "s2"} - {leaver.name}
