"""RaftNode as the server uses it, on virtual time: what each call promises and which error it raises."""

from __future__ import annotations

import asyncio
import errno

import pytest
from raft_members import Values, cluster, inline, until

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import (
    ConflictError,
    CorruptionError,
    DeadlineError,
    DefiniteError,
    InvalidRequestError,
    NomadError,
    NotLeaderError,
    ProposalTimeoutError,
    TooLargeError,
    UnreachableError,
)
from nomadpy.raft import PeerSpec, RaftNode
from nomadpy.raft.messages import Hello, encode_frame
from nomadpy.simulator.loop import SimClock


async def test_a_single_server_leads_within_half_a_second_and_again_after_a_restart() -> None:
    async with cluster() as c:
        member = c.member("dev")
        node = member.start()
        assert not node.initialized
        await node.bootstrap([member.peer])
        await asyncio.sleep(0.5)
        assert node.is_leader
        assert node.leader == member.peer
        assert node.last_contact_s == 0
        index, result = await node.propose(b"one")
        assert result == (index, b"one")
        assert await node.read_index() >= index
        await member.stop()
        node = member.start()
        assert node.initialized
        await asyncio.sleep(0.5)
        assert node.is_leader
        assert member.machine.values == [b"one"]


async def test_bootstrap_works_before_run_and_is_durable() -> None:
    async with cluster() as c:
        member = c.member("dev")
        node = member.start()
        assert member.task is not None
        member.task.cancel()
        await asyncio.wait([member.task])
        other = RaftNode(
            node.config,
            Values(),
            network=c.net.host("x"),
            files=member.files,
            clock=SimClock(c.loop),
            entropy=SeededEntropy(1),
            run_blocking=inline,
        )
        await other.bootstrap([member.peer])
        member.files = member.files.power_cut(SeededEntropy(2))
        member.task = None
        assert member.start().initialized


async def test_the_first_configuration_is_given_once_and_must_make_sense() -> None:
    async with cluster() as c:
        member = c.member("a")
        node = member.start()
        with pytest.raises(InvalidRequestError):
            await node.bootstrap([PeerSpec("other", "other", "other:1")])
        with pytest.raises(InvalidRequestError):
            await node.bootstrap([member.peer, member.peer])
        await node.bootstrap([member.peer])
        with pytest.raises(ConflictError):
            await node.bootstrap([member.peer])


async def test_a_server_without_a_configuration_never_campaigns() -> None:
    async with cluster() as c:
        node = c.member("alone").start()
        await asyncio.sleep(20)
        assert node.term == 0
        assert node.leader is None
        assert node.last_contact_s == 20
        assert node.stats()["last_contact"] == "never"
        with pytest.raises(NotLeaderError):
            await node.propose(b"x")


async def test_writes_reach_every_server_and_followers_name_the_leader() -> None:
    async with cluster() as c:
        group = await c.started(3)
        leader, follower = await c.leader(), await c.follower()
        results = await asyncio.gather(*(leader.node.propose(b"%d" % n) for n in range(50)))
        last = max(index for index, _ in results)
        for member in group:
            await member.node.wait_applied(last, timeout_s=5)
            assert sorted(member.machine.values) == sorted(b"%d" % n for n in range(50))
        with pytest.raises(NotLeaderError) as caught:
            await follower.node.propose(b"x")
        assert caught.value.details["leader_address"] == leader.peer.address
        assert caught.value.details["leader_id"] == leader.peer.id
        with pytest.raises(NotLeaderError):
            await follower.node.read_index()
        assert follower.node.leader == leader.peer
        assert follower.node.last_contact_s < 0.3
        assert [peer for peer, votes in follower.node.peers() if votes] == [m.peer for m in group]
        assert leader.node.stats()["state"] == "Leader"
        assert leader.node.stats()["num_peers"] == "2"
        with pytest.raises(DeadlineError):
            await follower.node.wait_applied(last + 100, timeout_s=1)


async def test_leadership_is_told_once_the_state_is_complete_and_when_it_ends() -> None:
    async with cluster() as c:
        await c.started(3)
        leader = await c.leader()
        await leader.node.propose(b"x")
        assert leader.leadership == [(True, leader.node.term)]
        term = leader.node.term
        c.net.partition([leader.peer.name], [m.peer.name for m in c.members if m is not leader])
        await until(lambda: not leader.node.is_leader)
        await asyncio.sleep(0)
        assert leader.leadership == [(True, term), (False, term)]
        others = [m for m in c.members if m is not leader]
        await until(lambda: any(m.node.is_leader for m in others))
        new = next(m for m in others if m.node.is_leader)
        assert new.machine.values == [b"x"]
        assert new.leadership[-1] == (True, new.node.term)


async def test_without_a_majority_a_write_is_indefinite_and_a_read_fails() -> None:
    async with cluster() as c:
        await c.started(3)
        leader = await c.leader()
        for member in c.members:
            if member is not leader:
                await member.stop()
        with pytest.raises(ProposalTimeoutError):
            await leader.node.propose(b"x", timeout_s=0.5)
        with pytest.raises((DeadlineError, NotLeaderError)):
            await leader.node.read_index(timeout_s=0.5)
        await asyncio.sleep(5)
        assert not leader.node.is_leader
        with pytest.raises(NotLeaderError):
            await leader.node.propose(b"y")


async def test_a_write_overwritten_by_a_new_leader_is_definitely_not_done() -> None:
    async with cluster() as c:
        await c.started(3)
        old = await c.leader()
        rest = [m for m in c.members if m is not old]
        c.net.partition([old.peer.name], [m.peer.name for m in rest])
        lost = asyncio.get_running_loop().create_task(old.node.propose(b"lost", timeout_s=60))
        await until(lambda: any(m.node.is_leader for m in rest))
        new = next(m for m in rest if m.node.is_leader)
        await new.node.propose(b"kept")
        c.net.heal()
        with pytest.raises(NotLeaderError):
            await lost
        await until(lambda: old.machine.values == [b"kept"])


async def test_limits_are_kept() -> None:
    async with cluster() as c:
        await c.started(1, max_command_bytes=100, max_pending=5)
        node = (await c.leader()).node
        with pytest.raises(TooLargeError):
            await node.propose(b"x" * 101)
        results = await asyncio.gather(
            *(node.propose(b"%d" % n) for n in range(10)), return_exceptions=True
        )
        refused = [r for r in results if isinstance(r, DefiniteError)]
        assert len(refused) == 5
        assert {r.status for r in refused} == {503}


async def test_a_state_machine_that_raises_answers_an_error_and_the_log_goes_on() -> None:
    async with cluster() as c:
        group = await c.started(3)
        leader = await c.leader()
        _, result = await leader.node.propose(b"boom")
        assert isinstance(result, NomadError)
        index, _ = await leader.node.propose(b"fine")
        for member in group:
            await member.node.wait_applied(index, timeout_s=5)
            assert member.machine.values == [b"fine"]


async def test_a_failed_sync_is_fatal_and_nothing_is_acknowledged() -> None:
    async with cluster() as c:
        await c.started(1)
        member = await c.leader()
        member.files.fail("sync", errno.EIO)
        with pytest.raises(ProposalTimeoutError):
            await member.node.propose(b"x", timeout_s=1)
        assert len(member.fatal) == 1
        assert "OSError" in member.fatal[0]
        assert member.machine.values == []


@pytest.mark.parametrize(
    ("error", "advice"),
    [(errno.EIO, "look at the disk"), (errno.ENOSPC, "make room on the disk and start it again")],
)
async def test_a_failed_disk_is_said_in_one_line_with_what_to_do(
    error: int, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as c:
        await c.started(1)
        member = await c.leader()
        member.files.fail("write", error)
        with pytest.raises(ProposalTimeoutError):
            await member.node.propose(b"x", timeout_s=1)
        (said,) = [r for r in caplog.records if "the disk failed" in r.getMessage()]
        assert not said.exc_info
        assert advice in str(said.__dict__)


async def test_a_snapshot_that_does_not_fit_is_tried_again_and_the_server_goes_on() -> None:
    async with cluster() as c:
        await c.started(1, snapshot_entries=10, trailing_entries=5)
        member = await c.leader()
        for _ in range(3):
            member.files.fail("write", errno.ENOSPC, where=lambda path: "local-" in path)
        for n in range(30):
            await member.node.propose(b"%d" % n)
        await until(lambda: bool(member.node.snapshots.headers))
        assert member.fatal == []
        assert not [p for p in member.files.paths() if p.endswith(".partial")]


async def test_a_server_joins_behind_a_compacted_log_by_snapshot() -> None:
    async with cluster() as c:
        await c.started(
            3, snapshot_entries=20, trailing_entries=10, snapshot_chunk_bytes=100, append_bytes=300
        )
        leader = await c.leader()
        for n in range(120):
            await leader.node.propose(b"value %d" % n)
        joiner = c.member("late", snapshot_entries=20, trailing_entries=10)
        joiner.start()
        await leader.node.add_server(joiner.peer)
        await until(lambda: joiner.machine.values == leader.machine.values)
        assert joiner.node.initialized
        assert joiner.node.peers() == leader.node.peers()
        assert len(joiner.node.peers()) == 4
        assert joiner.node.snapshots.latest is not None
        await joiner.stop()
        joiner.start()
        assert joiner.node.initialized
        await until(lambda: joiner.machine.values == leader.machine.values)


async def test_large_commands_bring_a_snapshot_before_their_number_does() -> None:
    async with cluster() as c:
        await c.started(1, snapshot_bytes=10_000, trailing_bytes=3_000)
        member = await c.leader()
        for n in range(30):
            await member.node.propose(b"%03d" % n + b"x" * 1000)
        await asyncio.sleep(0.5)
        latest = member.node.snapshots.latest
        assert latest is not None
        assert latest.index < 33
        assert member.node.journal.command_bytes < 15_000
        values = list(member.machine.values)
        await member.stop()
        member.start()
        await until(lambda: member.machine.values == values)


async def test_members_come_and_go_one_at_a_time() -> None:
    async with cluster() as c:
        group = await c.started(3)
        leader = await c.leader()
        with pytest.raises(UnreachableError):
            await leader.node.add_server(PeerSpec("ghost", "ghost", "ghost:1"))
        follower = await c.follower()
        with pytest.raises(NotLeaderError):
            await follower.node.remove_server(leader.peer.id)
        await leader.node.remove_server(follower.peer.id)
        assert follower.peer not in [peer for peer, _ in leader.node.peers()]
        await leader.node.propose(b"two are enough")
        await asyncio.sleep(10)
        assert leader.node.is_leader, "a removed server disturbs nobody"
        await leader.node.add_server(follower.peer)
        await until(lambda: follower.machine.values == [b"two are enough"])
        moved = PeerSpec(follower.peer.id, follower.peer.name, f"{follower.peer.name}:9999")
        with pytest.raises(UnreachableError):
            await leader.node.add_server(moved)
        assert len(group) == len(leader.node.peers())


async def test_two_membership_changes_at_once_are_refused() -> None:
    async with cluster() as c:
        await c.started(3)
        leader = await c.leader()
        new = [c.member("x"), c.member("y")]
        for member in new:
            member.start()
        results = await asyncio.gather(
            *(leader.node.add_server(m.peer) for m in new), return_exceptions=True
        )
        assert sorted(type(r).__name__ for r in results) == ["ConflictError", "NoneType"]
        refused = new[0] if isinstance(results[0], ConflictError) else new[1]
        await leader.node.add_server(refused.peer)
        assert len(leader.node.peers()) == 5


async def test_a_server_that_was_cut_off_does_not_disturb_the_others_when_it_returns() -> None:
    async with cluster() as c:
        await c.started(3)
        leader, follower = await c.leader(), await c.follower()
        term = leader.node.term
        c.net.partition([follower.peer.name], [m.peer.name for m in c.members if m is not follower])
        await asyncio.sleep(60)
        assert follower.node.term == term, "pre-votes change nothing"
        assert follower.node.leader is None
        index, _ = await leader.node.propose(b"meanwhile")
        c.net.heal()
        await follower.node.wait_applied(index, timeout_s=10)
        assert leader.node.is_leader
        assert leader.node.term == term


async def test_a_leader_that_hears_nobody_steps_down_and_reads_fail_before_that() -> None:
    async with cluster() as c:
        await c.started(3)
        leader = await c.leader()
        names = [m.peer.name for m in c.members if m is not leader]
        for name in names:
            c.net.block(name, leader.peer.name)  # it can speak, but hears no answer
        with pytest.raises((DeadlineError, NotLeaderError)):
            await leader.node.read_index(timeout_s=1)
        await until(lambda: not leader.node.core.is_leader())
        c.net.heal()
        await c.leader()


async def test_a_leader_that_shall_be_removed_hands_over_first() -> None:
    async with cluster() as c:
        await c.started(3)
        leader = await c.leader()
        await leader.node.propose(b"x")
        with pytest.raises(NotLeaderError):
            await leader.node.remove_server(leader.peer.id)
        new = await c.leader()
        assert new is not leader
        await new.node.remove_server(leader.peer.id)
        await new.node.propose(b"y")
        await asyncio.sleep(10)
        assert new.node.is_leader
        assert not leader.node.is_leader


async def test_the_last_server_stays() -> None:
    async with cluster() as c:
        await c.started(1)
        node = (await c.leader()).node
        with pytest.raises(InvalidRequestError):
            await node.remove_server(node.config.server_id)
        with pytest.raises(InvalidRequestError):
            await node.transfer_leadership(None)


async def test_leadership_moves_to_the_named_server_within_a_second() -> None:
    async with cluster() as c:
        await c.started(3)
        leader, follower = await c.leader(), await c.follower()
        await leader.node.propose(b"x")
        began = c.loop.time()
        await leader.node.transfer_leadership(follower.peer.id)
        await until(lambda: follower.node.is_leader)
        assert c.loop.time() - began < 1
        with pytest.raises(NotLeaderError):
            await leader.node.transfer_leadership(None)


async def test_proposals_wait_while_leadership_moves_and_are_refused_definitely() -> None:
    async with cluster() as c:
        await c.started(3)
        leader = await c.leader()
        moving = c.loop.create_task(leader.node.transfer_leadership(None))
        await asyncio.sleep(0)
        with pytest.raises(NotLeaderError):
            await leader.node.propose(b"x")
        await moving
        new = await c.leader()
        await new.node.propose(b"y")
        assert new.machine.values == [b"y"]


async def test_clusters_bootstrapped_apart_from_each_other_do_not_mix() -> None:
    async with cluster() as c:
        one, other = c.member("one"), c.member("other")
        await one.start().bootstrap([one.peer])
        await other.start().bootstrap([other.peer])
        await asyncio.sleep(1)
        with pytest.raises(UnreachableError, match="bootstrapped apart"):
            await one.node.add_server(other.peer)
        assert one.node.is_leader
        assert other.node.is_leader


async def test_a_client_certificate_may_not_speak_raft() -> None:
    async with cluster() as c:
        await c.started(1)
        member = await c.leader()
        agent = c.net.host("agent", role="client")
        stream = await agent.dial(member.peer.address, role="server")
        hello = Hello(1, "x", "x", "agent:1", "global", "", member.peer.id)
        stream.write(b"R" + encode_frame(hello))
        assert b"may not speak raft" in await stream.read(1000)
        assert await stream.read(1000) == b""


async def test_a_server_restarts_from_an_older_snapshot_when_the_newest_is_damaged() -> None:
    async with cluster() as c:
        await c.started(1, snapshot_entries=10, trailing_entries=40)
        member = await c.leader()
        for n in range(35):
            await member.node.propose(b"%d" % n)
        await asyncio.sleep(0.5)
        headers = member.node.snapshots.headers
        assert len(headers) == 2
        path = member.node.snapshots.path(headers[-1])
        values = list(member.machine.values)
        await member.stop()
        member.files.damage(path, 30, b"?")
        member.start()
        assert member.node.snapshots.latest == headers[0]
        await until(lambda: member.machine.values == values)


async def test_a_server_without_any_usable_state_refuses_to_start() -> None:
    async with cluster() as c:
        await c.started(1, snapshot_entries=10, trailing_entries=1, segment_bytes=100)
        member = await c.leader()
        for n in range(60):
            await member.node.propose(b"%d" % n)
        await asyncio.sleep(0.5)
        paths = [member.node.snapshots.path(h) for h in member.node.snapshots.headers]
        await member.stop()
        for path in paths:
            member.files.damage(path, 30, b"?")
        with pytest.raises(CorruptionError, match="damaged"):
            member.start()


async def test_an_idle_cluster_sends_little_and_keeps_its_term() -> None:
    async with cluster() as c:
        await c.started(3)
        leader = await c.leader()
        await asyncio.sleep(1)
        term, sent = leader.node.term, c.net.bytes_sent
        rounds = int(leader.node.stats()["rounds"])
        await asyncio.sleep(60)
        assert leader.node.term == term
        assert (c.net.bytes_sent - sent) / 60 < 2000
        assert (int(leader.node.stats()["rounds"]) - rounds) / 60 < 40
