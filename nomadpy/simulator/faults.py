"""What goes wrong, and when: a seeded plan of crashes, power cuts, partitions and lost heartbeats, always healed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import NomadError
from nomadpy.models.calls import NodeDrainWrite, Read, Write
from nomadpy.models.node import DrainSpec
from nomadpy.rpc.caller import Stream
from nomadpy.server.server import Server
from nomadpy.simulator.cluster import SimClient, SimCluster, SimServer

KINDS = (
    "kill-server",
    "kill-leader",
    "power-server",
    "power-all-servers",
    "partition-server",
    "isolate-leader",
    "one-way",
    "kill-agent",
    "power-agent",
    "cut-agent",
    "slow-links",
    "drain-node",
    "replace-server",
    "transfer-leadership",
    "restore-snapshot",
    "restore-snapshot",
)
SAVES = 0.25
"""How often an operator saves a snapshot before a fault."""
UPGRADE = "upgrade-server"
"""Besides KINDS, in worlds that begin with servers of an earlier version."""

SNAPSHOT_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 5.0


class Faults:
    """Injects one fault after the other; `heal` ends all of them."""

    def __init__(self, cluster: SimCluster, entropy: SeededEntropy) -> None:
        self._cluster = cluster
        self._entropy = entropy
        self.done: list[str] = []
        self._saved = b""
        self.unanswered_restore = False

    async def run(self, stop: asyncio.Event) -> None:
        """Inject until `stop` is set. What a fault leaves down comes back after a while."""
        while not stop.is_set():
            await asyncio.sleep(self._entropy.uniform(1.0, 7.0))
            if stop.is_set():
                return
            if not self._saved or self._entropy.uniform(0, 1) < SAVES:
                await self._save()
            old = any(server.old for server in self._cluster.servers)
            kind = self._entropy.choice([*KINDS, *[UPGRADE] * 3] if old else KINDS)
            self.done.append(kind)
            await self._inject(kind)

    async def heal(self) -> None:
        """Everything runs and every link works."""
        self._cluster.network.heal()
        for server in self._cluster.servers:
            if server.process is None:
                await server.start()
        for server in self._cluster.servers:
            # The operator finishes what was begun, one server after the other.
            if server.old:
                await server.upgrade()
                await asyncio.sleep(2.0)
        for client in self._cluster.clients:
            if client.agent is None:
                client.start()

    async def _inject(self, kind: str) -> None:
        cluster, entropy = self._cluster, self._entropy
        leader = cluster.leader() or entropy.choice(cluster.servers)
        server = entropy.choice(cluster.servers)
        client = entropy.choice(cluster.clients)
        if kind in ("kill-server", "kill-leader", "power-server"):
            victim = leader if kind == "kill-leader" else server
            await self._crash_server(victim, power=kind == "power-server")
        elif kind == "power-all-servers":
            for one in cluster.servers:
                await one.crash(power=True)
            await asyncio.sleep(entropy.uniform(0.1, 2.0))
            for one in cluster.servers:
                if one.process is None:
                    await one.start()
        elif kind in ("partition-server", "isolate-leader"):
            lonely = leader if kind == "isolate-leader" else server
            others = [h for h in self._hosts() if h != lonely.name]
            cluster.network.partition([lonely.name], others)
            await asyncio.sleep(entropy.uniform(1.0, 12.0))
            cluster.network.heal()
        elif kind == "one-way":
            other = entropy.choice([h for h in self._hosts() if h != server.name])
            cluster.network.block(server.name, other)
            await asyncio.sleep(entropy.uniform(1.0, 10.0))
            cluster.network.heal()
        elif kind in ("kill-agent", "power-agent"):
            await self._crash_client(client, power=kind == "power-agent")
        elif kind == "cut-agent":
            cluster.network.partition([client.name], [h for h in self._hosts() if h != client.name])
            await asyncio.sleep(entropy.uniform(1.0, 20.0))
            cluster.network.heal()
        elif kind == "drain-node":
            await self._drain(client)
        elif kind == "replace-server":
            await self._replace(server)
        elif kind == "transfer-leadership":
            request = Write(id=server.id)
            await self._ask("Operator.TransferLeadership", request)
        elif kind == UPGRADE:
            await entropy.choice([s for s in cluster.servers if s.old]).upgrade()
        elif kind == "restore-snapshot":
            await self._restore()
        elif kind == "slow-links":
            for one in cluster.servers:
                cluster.network.slow(server.name, one.name, (0.05, 0.4))
            await asyncio.sleep(entropy.uniform(1.0, 6.0))
            cluster.network.heal()

    async def _save(self) -> None:
        """An operator saves the state, and keeps it if it came whole."""
        server = self._any_live()
        if server is None:
            return
        try:
            async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
                async with server.open("Operator.SnapshotSave", Read()) as stream:
                    pieces = [piece async for piece in _received(stream)]
        except (NomadError, TimeoutError, OSError):
            return
        self._saved = b"".join(pieces[1:])

    async def _restore(self) -> None:
        """An operator puts the state back that was saved last; whether it was done may stay unknown."""
        server, leader = self._any_live(), self._cluster.leader()
        if server is None or leader is None or leader.process is None or not self._saved:
            return
        if leader.process.store.snapshot().log_format() < 2:
            # Servers of the first version do not tell agents of a restore.
            return
        try:
            async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
                async with server.open("Operator.SnapshotRestore", Write()) as stream:
                    await stream.send(self._saved)
                    await stream.finish()
                    await stream.receive()
        except (NomadError, TimeoutError, OSError):
            self.done.append("restore-snapshot-unanswered")
            self.unanswered_restore = True

    def _any_live(self) -> Server | None:
        live = self._cluster.live()
        process = self._entropy.choice(live).process if live else None
        return None if process is None else process.server

    async def _drain(self, client: SimClient) -> None:
        """An operator empties a node, or tries to."""
        spec = DrainSpec(deadline=int(self._entropy.uniform(1.0, 20.0) * 1e9))
        await self._ask("Node.Drain", NodeDrainWrite(node_id=client.node.id, spec=spec))

    async def _replace(self, server: SimServer) -> None:
        """A host is lost with its disk while all others are well; the operator removes it, or leaves that to the leader."""
        cluster = self._cluster
        wanted = {s.id for s in cluster.servers}
        for one in cluster.servers:
            votes = {} if one.process is None else dict(one.process.raft.peers())
            if {peer.id for peer, voter in votes.items() if voter} != wanted:
                return
        lost = server.id
        await server.lose_disk()
        await asyncio.sleep(self._entropy.uniform(0.2, 8.0))
        if self._entropy.uniform(0, 1) < 0.5:
            await self._ask("Operator.RemovePeer", Write(id=lost))
        if server.process is None:
            await server.start()

    async def undrain(self) -> str:
        """Every node takes allocations again; returns what is still missing, "" when all do."""
        leader = self._cluster.leader()
        if leader is None or leader.process is None:
            return "no leader"
        for node in leader.process.store.snapshot().nodes():
            if node.drain_strategy is not None or node.scheduling_eligibility != "eligible":
                # A drain that was ended keeps its node out of scheduling until it is said otherwise.
                request = NodeDrainWrite(node_id=node.id, spec=None, mark_eligible=True)
                await self._ask("Node.Drain", request)
                return f"{node.name} is drained"
        return ""

    async def _ask(self, method: str, request: msgspec.Struct) -> None:
        live = self._cluster.live()
        server = self._entropy.choice(live).process if live else None
        if server is None:
            return
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await server.server.call(method, request)
        except (NomadError, TimeoutError):
            # A fault of its own kind: the operator does not know whether it was done.
            self.done.append(f"{method}-unanswered")

    async def _crash_server(self, server: SimServer, *, power: bool) -> None:
        await server.crash(power=power)
        await asyncio.sleep(self._entropy.uniform(0.2, 8.0))
        if server.process is None:
            await server.start()

    async def _crash_client(self, client: SimClient, *, power: bool) -> None:
        await client.crash(power=power)
        await asyncio.sleep(self._entropy.uniform(0.5, 15.0))
        if client.agent is None:
            client.start()

    def _hosts(self) -> list[str]:
        cluster = self._cluster
        return [s.name for s in cluster.servers] + [c.name for c in cluster.clients]


async def _received(stream: Stream) -> AsyncIterator[bytes]:
    while (piece := await stream.receive()) is not None:
        yield piece
