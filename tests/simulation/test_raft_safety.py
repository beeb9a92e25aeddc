"""Raft's promises under crashes, power cuts, partitions and bad disks; and that each rule broken on purpose is caught.

NOMADPY_SEEDS sets the number of seeds (default 40). A failure names its seed; replay it with
`NOMADPY_FIRST_SEED=<seed> NOMADPY_SEEDS=1 pytest tests/simulation/test_raft_safety.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections import Counter

import pytest
from raft_world import BrokenPromiseError, WatchedCore, WatchedNode, World, play

from nomadpy.raft.messages import VoteReply, VoteRequest
from nomadpy.raft.replication import Waiter
from nomadpy.raft.snapshots import SnapshotHeader
from nomadpy.simulator.loop import run

SEEDS = int(os.environ.get("NOMADPY_SEEDS", "40"))
FIRST = int(os.environ.get("NOMADPY_FIRST_SEED", "0"))


def play_many(**options: object) -> Counter[str]:
    total: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + SEEDS):
        total += play(seed, **options).stats
    return total


def test_three_servers_keep_every_promise_under_faults() -> None:
    total = play_many()
    if SEEDS >= 40:
        # A quiet run proves nothing: the faults must have happened, and work must have been done in spite of them.
        assert total["acked"] > 100 * SEEDS
        assert total["reads"] > 10 * SEEDS
        assert total["elections"] > 5 * SEEDS
        assert total["power cuts"] > 5 * SEEDS
        assert total["crashes at sync"] > SEEDS
        assert total["snapshots installed"] > SEEDS // 2


def test_five_servers_keep_every_promise_while_members_come_and_go() -> None:
    total = play_many(spare=2)
    if SEEDS >= 40:
        assert total["added"] > SEEDS // 2
        assert total["removed"] > SEEDS // 4


def test_one_server_keeps_every_promise() -> None:
    for seed in range(FIRST, FIRST + max(1, SEEDS // 4)):
        play(seed, servers=1, seconds=15)


def fingerprint(seed: int) -> str:
    world = play(seed, spare=2, seconds=8)
    facts = (world.trace, sorted(world.applied.items()), sorted(world.stats.items()))
    return hashlib.sha256(repr((facts, world.net.bytes_sent)).encode()).hexdigest()


def test_a_seed_decides_everything_whatever_the_hash_seed() -> None:
    here = [fingerprint(seed) for seed in (3, 4)]
    code = "import test_raft_safety as t; print(t.fingerprint(3), t.fingerprint(4))"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        output = subprocess.run(
            [sys.executable, "-c", code],
            cwd=os.path.dirname(__file__),
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert output.split() == here


# ---- controls: each breaks one rule, and the checks above must notice


class CutsAlways(WatchedCore):
    """PySyncObj's own way (rule M2 off): drop whatever follows the previous entry, conflict or not."""

    def _first_difference(self, prev_index: int, entries: list[tuple[int, bytes]]) -> int | None:
        return prev_index + 1 if entries or self.journal.last_index > prev_index else None


class CutsAlwaysNode(WatchedNode):
    core_class = CutsAlways


class PromisesBeforeSync(WatchedNode):
    """Acknowledges and votes before the disk has it."""

    async def persist_and_promise(self, installed: SnapshotHeader | None) -> None:
        self.transport.flush_late()
        await super().persist_and_promise(installed)


class ReadsWithoutAsking(WatchedCore):
    """Serves linearizable reads on the belief of leading."""

    def read_index(self, waiter: Waiter) -> None:
        if self.is_ready_leader():
            waiter.resolve(self.commit_index())
        else:
            waiter.refuse()


class ReadsWithoutAskingNode(WatchedNode):
    core_class = ReadsWithoutAsking


class ForgetsItsVote(WatchedCore):
    """The term survives a restart, the vote does not."""

    def __init__(self, **parts: object) -> None:
        parts["journal"].vote = None  # type: ignore[attr-defined]
        super().__init__(**parts)  # type: ignore[arg-type]


class ForgetsItsVoteNode(WatchedNode):
    core_class = ForgetsItsVote


def caught(limit: int, **options: object) -> str:
    """What is found first within `limit` seeds; "" when nothing is."""
    for seed in range(limit):
        try:
            play(seed, **options)
        except BrokenPromiseError as violation:
            return str(violation)
    return ""


def test_control_a_disk_that_lies_about_sync_is_caught() -> None:
    assert caught(10, lying_disks=True)


def test_control_cutting_the_log_without_a_conflict_is_caught() -> None:
    assert "cut off" in caught(60, node_class=CutsAlwaysNode)


def test_control_promises_before_sync_are_caught_by_the_order_check() -> None:
    assert "before they are on disk" in caught(3, node_class=PromisesBeforeSync)


def test_control_promises_before_sync_are_caught_by_their_consequences() -> None:
    assert caught(60, node_class=PromisesBeforeSync, check_order=False, sync_crashes=0.1)


async def ask_twice_for_a_vote_in_one_term(world: World) -> None:
    """s0 votes for s1, loses its power at once, and is then asked by s2 in the same term."""
    voter = world.servers["s0"]
    world.start(voter)
    assert voter.node is not None
    term = 7
    for number, candidate in enumerate(("s1", "s2")):
        peer = world.servers[candidate].peer
        sent = []
        send = voter.node.core.outbox.send

        def record(target, message, send=send, sent=sent) -> None:  # type: ignore[no-untyped-def]
            sent.append((target, message))
            send(target, message)

        voter.node.core.outbox.send = record  # type: ignore[method-assign]
        await asyncio.sleep(0.1)
        voter.node._post(
            lambda peer=peer: voter.node.core.receive(  # type: ignore[misc,union-attr]
                peer, VoteRequest(term, last_index=50, last_term=3, transfer=True)
            )
        )
        await asyncio.sleep(0.1)
        granted = ("s1", VoteReply(term)) in sent or ("s2", VoteReply(term)) in sent
        assert granted == (number == 0)
        if number == 0:
            world.stop(voter, power=True)
            await asyncio.sleep(0.5)
            world.start(voter)


def ask_twice(node_class: type[WatchedNode]) -> None:
    async def main() -> None:
        world = World(1, faults=False, node_class=node_class)
        try:
            await ask_twice_for_a_vote_in_one_term(world)
            if world.violations:
                raise BrokenPromiseError(world.violations[0])
        finally:
            await world.close()

    run(main)


def test_control_reads_that_ask_nobody_are_caught() -> None:
    assert "misses write" in caught(150, node_class=ReadsWithoutAskingNode)


def test_a_vote_outlives_a_power_cut() -> None:
    ask_twice(WatchedNode)


def test_control_a_forgotten_vote_is_caught() -> None:
    with pytest.raises((BrokenPromiseError, AssertionError)):
        ask_twice(ForgetsItsVoteNode)


@pytest.mark.parametrize("seed", range(3))
def test_peace_has_one_leader_and_loses_nothing(seed: int) -> None:
    stats = play(seed, faults=False, seconds=10).stats
    assert stats["not-leader"] <= 40  # transfers only
    assert stats["acked"] > 150
