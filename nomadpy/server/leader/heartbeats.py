"""Which nodes are alive: every heartbeat buys a node a time to live, and a node that lets it pass is down.

TTL = max(min_ttl, nodes / heartbeats_per_second), plus up to the same again by chance, so that nodes do not come in
step. After winning an election the leader knows no node's last heartbeat and gives each the failover TTL.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable

from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.server.settings import ServerSettings

Expired = Callable[[list[str]], Awaitable[None]]
EXPIRED_AT_ONCE = 100


class Heartbeats:
    """Timers of the leader, one a node. `run` waits for the first to pass and reports the nodes."""

    def __init__(
        self, settings: ServerSettings, expired: Expired, *, clock: Clock, entropy: Entropy
    ) -> None:
        self._settings = settings
        self._expired = expired
        self._clock = clock
        self._entropy = entropy
        self._deadline: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._changed = asyncio.Event()

    def restore(self, node_ids: list[str]) -> None:
        """Start with these nodes alive for the failover TTL."""
        self._deadline.clear()
        self._heap.clear()
        for node_id in node_ids:
            self._set(node_id, self._settings.heartbeat_failover_ttl_s)

    def reset(self, node_id: str) -> float:
        """A heartbeat came; returns the TTL in seconds to tell the node."""
        rate = self._settings.heartbeats_per_second
        nodes = len(self._deadline) + (node_id not in self._deadline)
        base = max(self._settings.heartbeat_min_ttl_s, nodes / rate)
        ttl = base + self._entropy.uniform(0.0, base)
        self._set(node_id, ttl + self._settings.heartbeat_grace_s)
        return ttl

    def forget(self, node_id: str) -> None:
        """The node is down or gone; it has no timer until it heartbeats again."""
        self._deadline.pop(node_id, None)

    def is_alive(self, node_id: str) -> bool:
        """Whether the node has time left."""
        return node_id in self._deadline

    def __len__(self) -> int:
        return len(self._deadline)

    async def run(self) -> None:
        """Report nodes whose time has passed, in batches; cancelling ends it."""
        while True:
            now = self._clock.monotonic()
            due: list[str] = []
            while self._heap and len(due) < EXPIRED_AT_ONCE:
                deadline, node_id = self._heap[0]
                current = self._deadline.get(node_id)
                if current != deadline:
                    # Renewed since, or forgotten; the renewed deadline has an entry of its own.
                    heapq.heappop(self._heap)
                    continue
                if deadline > now:
                    break
                heapq.heappop(self._heap)
                del self._deadline[node_id]
                due.append(node_id)
            if due:
                await self._expired(due)
                continue
            self._changed.clear()
            wait = self._heap[0][0] - now if self._heap else None
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _set(self, node_id: str, seconds: float) -> None:
        deadline = self._clock.monotonic() + seconds
        self._deadline[node_id] = deadline
        first = not self._heap or deadline < self._heap[0][0]
        heapq.heappush(self._heap, (deadline, node_id))
        if first:
            self._changed.set()
