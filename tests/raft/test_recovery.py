"""Learners, removed servers, empty entries, and the recovery from a lost majority by peers.json."""

from __future__ import annotations

import asyncio
import json

import pytest
from raft_members import Cluster, Member, cluster, until

from nomadpy.errors import ConfigError, InvalidRequestError, NomadError
from nomadpy.raft import PeerSpec
from nomadpy.raft.configuration import (
    Add,
    Begin,
    Configuration,
    ConfigurationHistory,
    Override,
    Replace,
)
from nomadpy.raft.files import write_atomically

PATH = "/raft/peers.json"


def give(member: Member, *servers: Member, text: bytes = b"") -> None:
    """Put a peers.json into a stopped member's raft directory."""
    listed = [{"id": s.peer.id, "address": s.peer.address, "non_voter": False} for s in servers]
    write_atomically(member.files, PATH, text or json.dumps(listed).encode(), fsync=True)


def voters(member: Member) -> set[str]:
    return {peer.id for peer, votes in member.node.peers() if votes}


async def lost_majority(c: Cluster, count: int = 5) -> tuple[list[Member], list[Member]]:
    """A cluster with a committed value that every server has, all stopped: (those left, those lost)."""
    group = await c.started(count)
    leader = await c.leader()
    index, _ = await leader.node.propose(b"kept")
    await asyncio.gather(*(m.node.wait_applied(index, timeout_s=10) for m in group))
    for member in group:
        await member.stop()
    keep = count // 2
    return group[:keep], group[keep:]


async def test_a_learner_gets_the_log_and_counts_nowhere() -> None:
    async with cluster() as c:
        group = await c.started(1)
        leader = await c.leader()
        learner = c.member("new")
        learner.start()
        await leader.node.add_learner(learner.peer)
        index, _ = await leader.node.propose(b"one")
        await learner.node.wait_applied(index, timeout_s=10)
        assert learner.machine.values == [b"one"]
        assert leader.node.peers() == [(learner.peer, False), (group[0].peer, True)]
        with pytest.raises(InvalidRequestError):
            await leader.node.transfer_leadership(learner.peer.id)
        await learner.stop()
        await leader.node.propose(b"two")
        assert await leader.node.read_index() > index
        await leader.stop()
        learner.start()
        await asyncio.sleep(20)
        assert not learner.node.is_leader
        assert learner.node.term == leader.node.term


async def test_a_learner_that_was_made_a_voter_counts_at_once() -> None:
    async with cluster() as c:
        await c.started(1)
        leader = await c.leader()
        other = c.member("new")
        other.start()
        await leader.node.add_learner(other.peer)
        await leader.node.add_server(other.peer)
        await leader.node.propose(b"both", timeout_s=2)
        await until(lambda: other.machine.values == [b"both"])
        assert voters(other) == {"id-s0", "id-new"}


async def test_a_removed_server_is_remembered_unless_it_left_by_itself() -> None:
    async with cluster() as c:
        group = await c.started(4)
        leader = await c.leader()
        first, second = [m for m in group if m is not leader][:2]
        await leader.node.remove_server(first.peer.id)
        await leader.node.remove_server(second.peer.id, final=False)
        assert leader.node.removed == (first.peer.id,)


async def test_the_log_is_lengthened_by_empty_entries() -> None:
    async with cluster() as c:
        group = await c.started(3, snapshot_entries=500, trailing_entries=100)
        leader = await c.leader()
        await leader.node.raise_log(7000)
        assert leader.node.last_index == 7000
        index, _ = await leader.node.propose(b"x")
        assert index == 7001
        for member in group:
            await member.node.wait_applied(index, timeout_s=20)
            assert member.machine.values == [b"x"]


async def test_the_rest_goes_on_by_peers_json_and_grows_again() -> None:
    async with cluster() as c:
        left, lost = await lost_majority(c)
        for member in left:
            give(member, *left)
            member.start()
        leader = await c.leader()
        assert leader.machine.values == [b"kept"]
        index, _ = await leader.node.propose(b"after")
        assert voters(leader) == {m.peer.id for m in left}
        assert set(leader.node.removed) == {m.peer.id for m in lost}
        with pytest.raises(FileNotFoundError):
            left[0].files.read(PATH)
        assert left[0].files.read(PATH + ".applied")
        # One who knows nothing of the recovery learns the configuration from the log.
        new = c.member("new")
        new.start()
        await leader.node.add_learner(new.peer)
        await leader.node.add_server(new.peer)
        await new.node.wait_applied(index, timeout_s=20)
        assert voters(new) == {m.peer.id for m in (*left, new)}
        # A restart without the file stays with what was recovered.
        for member in (*left, new):
            await member.stop()
        for member in (*left, new):
            member.start()
        leader = await c.leader()
        assert voters(leader) == {m.peer.id for m in (*left, new)}
        await leader.node.propose(b"again")


async def test_lost_servers_that_come_back_cannot_mix_in() -> None:
    async with cluster() as c:
        left, lost = await lost_majority(c)
        for member in left:
            give(member, *left)
            member.start()
        leader = await c.leader()
        await leader.node.propose(b"new world")
        for member in lost:
            member.start()
        await asyncio.sleep(20)
        old_leader = next((m for m in lost if m.node.is_leader), None)
        if old_leader is not None:
            await old_leader.node.propose(b"old world")
        await leader.node.propose(b"still")
        for member in left:
            assert b"old world" not in member.machine.values
        assert leader.node.is_leader


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{", "is not a list"),
        (b"[]", "no server that votes"),
        (b'[{"id": "id-s0", "address": "s0"}]', "host:port"),
        (b'[{"id": "other", "address": "o:1"}]', "does not name this server"),
        (b'[{"id": "id-s0", "address": "s0:1"}, {"id": "id-s0", "address": "s0:1"}]', "twice"),
        (b'[{"id": "id-s0", "address": "s0:1", "non_voter": true}]', "no server that votes"),
    ],
)
async def test_a_file_that_is_no_good_keeps_the_server_from_starting(
    text: bytes, told: str
) -> None:
    async with cluster() as c:
        left, _ = await lost_majority(c, 3)
        give(left[0], text=text)
        with pytest.raises(ConfigError, match=told):
            left[0].start()
        left[0].files.remove(PATH)
        left[0].start()
        assert voters(left[0]) == {"id-s0", "id-s1", "id-s2"}


async def test_a_server_without_a_log_has_nothing_to_recover() -> None:
    async with cluster() as c:
        member = c.member("s0")
        member.files.make_directory("/raft")
        give(member, member)
        with pytest.raises(NomadError, match="no log to recover"):
            member.start()


def test_an_override_stands_in_for_all_that_older_terms_say() -> None:
    a, b, c = (PeerSpec(n, n, f"{n}:1") for n in "abc")
    override = Override(5, Configuration("new", (a,)))
    history = ConfigurationHistory(override)
    history.append(2, Begin("old", (a, b, c)), 0)
    history.append(9, Add(b), 5)
    assert history.current == override.configuration
    assert history.unstated == override.configuration
    history.append(10, Replace(override.configuration), 7)
    assert history.unstated is None
    history.append(11, Add(c), 7)
    assert [p.id for p in history.current.peers] == ["a", "c"]
    history.truncate_from(10)
    assert history.unstated == override.configuration
    history.reset(8, Configuration("old", (a, b, c)), 5)
    assert history.current == override.configuration
    history.reset(20, Configuration("new", (a, b)), 7)
    assert [p.id for p in history.current.peers] == ["a", "b"]
    assert history.unstated is None
