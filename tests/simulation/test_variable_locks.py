"""Leases of variable locks under crashed and cut-off leaders: no two clients ever believe in the same lock at once.

Clients count their lease from before they sent the request that gave it, as `nomadpy var lock` does. They renew when
they please, sometimes too late, and sometimes leave without a word. Time is the simulator's.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from server.server_world import World, running

from nomadpy.daemon.server_process import ServerProcess
from nomadpy.errors import NomadError
from nomadpy.models.calls import VariableApply, VariableReply

SECOND = 1_000_000_000
TTL_S = 10.0
RUN_S = 400.0


class Lease(msgspec.Struct):
    """What one client believed: from when its acquisition was answered to when its time was over."""

    client: int
    begins: float
    ends: float


class Holder:
    """A client that takes the lock again and again."""

    def __init__(self, world: World, number: int, seed: int, leases: list[Lease]) -> None:
        self._world = world
        self._number = number
        self._random = random.Random(f"{seed}-{number}")
        self._leases = leases
        self.tokens: list[int] = []

    async def run(self) -> None:
        """Contend until cancelled."""
        while True:
            await asyncio.sleep(self._random.uniform(0.2, 2.0))
            began = self._now()
            reply = await self._ask("lock-acquire", ttl=int(TTL_S * SECOND), delay=SECOND // 2)
            if reply is None or reply.conflict:
                continue
            answer = msgspec.json.decode(reply.body)
            self.tokens.append(answer["ModifyIndex"])
            lease = Lease(self._number, self._now(), began + TTL_S)
            self._leases.append(lease)
            await self._hold(lease, answer["Lock"]["ID"])

    async def _hold(self, lease: Lease, lock_id: str) -> None:
        while self._now() < lease.ends:
            await asyncio.sleep(self._random.uniform(0.5, 9.0))
            began = self._now()
            if began >= lease.ends:
                return
            choice = self._random.random()
            if choice < 0.15:
                return  # gone without a word: it believes until the end
            if choice < 0.25:
                lease.ends = began
                await self._ask("lock-release", lock_id=lock_id)
                return
            reply = await self._ask("lock-renew", lock_id=lock_id)
            if reply is not None and not reply.conflict:
                lease.ends = max(lease.ends, began + TTL_S)
            elif reply is not None:
                lease.ends = min(lease.ends, self._now())
                return

    async def _ask(self, op: str, **more: Any) -> VariableReply | None:
        """Any server that runs, also one that is cut off; None when there was no answer."""
        servers = [s.process for s in self._world.cluster.live() if s.process is not None]
        if not servers:
            return None
        server: ServerProcess = self._random.choice(servers)
        request = VariableApply(path="lock", op=op, **more)
        try:
            reply: VariableReply = await server.server.call(
                "Variables.Apply", request, timeout_s=5.0
            )
        except (NomadError, TimeoutError):
            return None
        return reply

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def disturb(world: World, seed: int) -> None:
    """Crash or cut off leaders, mostly, until cancelled."""
    chance = random.Random(f"{seed}-faults")
    while True:
        await asyncio.sleep(chance.uniform(3.0, 12.0))
        leading = world.cluster.leader()
        victim = (
            leading
            if leading is not None and chance.random() < 0.8
            else chance.choice(world.servers)
        )
        if chance.random() < 0.5:
            await victim.crash(power=chance.random() < 0.5)
            await asyncio.sleep(chance.uniform(0.5, 8.0))
            await victim.start()
        else:
            others = [s.name for s in world.servers if s is not victim]
            world.cluster.network.partition([victim.name], others)
            await asyncio.sleep(chance.uniform(2.0, 15.0))
            world.cluster.network.heal()


@pytest.mark.parametrize("seed", range(1, 7))
async def test_no_two_clients_believe_in_the_lock_at_once(seed: int) -> None:
    async with running(3) as world:
        leases: list[Lease] = []
        holders = [Holder(world, number, seed, leases) for number in range(4)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(holder.run()) for holder in holders]
            tasks.append(group.create_task(disturb(world, seed)))
            await asyncio.sleep(RUN_S)
            for task in tasks:
                task.cancel()
        leases.sort(key=lambda lease: lease.begins)
        overlaps = [
            (one, other)
            for place, one in enumerate(leases)
            for other in leases[place + 1 :]
            if other.begins < one.ends
        ]
        assert overlaps == [], f"seed {seed}"
        assert len({lease.client for lease in leases}) >= 3, "the lock went round"
        assert len(leases) >= 8
        tokens = [token for holder in holders for token in holder.tokens]
        assert len(set(tokens)) == len(tokens)
        assert world.cluster.broken == []
