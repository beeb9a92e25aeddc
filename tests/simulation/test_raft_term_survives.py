"""The sequence that loses acknowledged writes when term and vote do not survive a restart.

Raise the term by cutting leaders off; power off all servers; start two of them and write; start the third, which was
up to date in the old high term, with a cut link to the new leader; the new leader fails; heal. With terms that begin
at 0 again, the third server's old log looks newer than the new writes, it wins an election and they are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raft_world import BrokenPromiseError, Server, WatchedCore, WatchedNode, World

from nomadpy.simulator.loop import run


async def until(condition: Callable[[], bool], *, timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.05)


async def write(world: World, count: int) -> None:
    for _ in range(count):
        leading = [n for _, n in world.leading() if n.is_leader]
        if leading:
            await world.write(leading[-1])


async def sequence(world: World) -> None:
    world.disk_delay_s = 0.0
    servers = list(world.servers.values())
    hosts = {s.peer.id: s.peer.address.split(":")[0] for s in servers}

    def ready() -> list[Server]:
        return [s for s, n in world.leading() if n.is_leader]

    for server in servers:
        world.start(server)
    await until(lambda: len(ready()) == 1)
    await write(world, 5)
    for _ in range(4):
        old = ready()[-1]
        world.net.partition([hosts[old.peer.id]], [h for i, h in hosts.items() if i != old.peer.id])
        await until(lambda old=old: any(s is not old for s in ready()))  # type: ignore[misc]
        world.net.heal()
        await until(lambda: len(world.leading()) == 1 and bool(ready()))
    high = max(n.term for _, n in world.running())
    for server in servers:
        world.stop(server, power=True)
    await asyncio.sleep(1)
    a, b, c = servers
    world.start(a)
    world.start(c)
    await until(lambda: bool(ready()) or len(world.running()) < 2 or bool(world.violations))
    before = len(world.acked)
    await write(world, 10)
    leader = ready()
    if leader:
        world.net.partition([hosts[b.peer.id]], [hosts[leader[0].peer.id]])
    world.start(b)
    await asyncio.sleep(1)
    if leader:
        world.stop(leader[0], power=True)
        await asyncio.sleep(4)
        world.start(leader[0])
    await asyncio.sleep(4)
    world.net.heal()
    await asyncio.sleep(6)
    await world.finish()
    assert len(world.acked) >= before + 10
    assert min(n.term for _, n in world.running()) > high


def play_sequence(
    seed: int, node_class: type[WatchedNode] = WatchedNode, *, check_votes: bool = True
) -> None:
    async def main() -> None:
        world = World(seed, faults=False, node_class=node_class, check_votes=check_votes)
        try:
            await sequence(world)
        finally:
            await world.close()

    run(main)


def test_term_and_vote_survive_a_power_cut_of_all_servers() -> None:
    for seed in range(5):
        play_sequence(seed)


class StartsFromTermZero(WatchedCore):
    """Term and vote are not kept, nor learned from the log; nothing guards the order of terms."""

    def __init__(self, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self.journal.term, self.journal.vote = 0, None
        self._SyncObj__raftCurrentTerm = 0
        self._SyncObj__votedForNodeId = None

        def append(command: bytes, index: int, term: int) -> None:
            self.journal.entries.append((command, index, term))
            self.journal._record(0, index, term, command)

        self.journal.append = append  # type: ignore[method-assign]


class StartsFromTermZeroNode(WatchedNode):
    core_class = StartsFromTermZero


def test_control_the_sequence_catches_servers_that_forget_term_and_vote() -> None:
    """Even when nobody watches votes and leaders, what the clients saw gives it away."""
    found = []
    for seed in range(20):
        try:
            play_sequence(seed, StartsFromTermZeroNode, check_votes=False)
        except (BrokenPromiseError, AssertionError, TimeoutError) as caught:
            found.append(str(caught))
    assert any("is acknowledged" in text or "writes are lost" in text for text in found), found
