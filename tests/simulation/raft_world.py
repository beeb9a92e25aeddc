"""A handful of real RaftNodes on virtual time, with clients, faults, and the promises of raft checked all the time."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterator

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import CorruptionError, NomadError
from nomadpy.raft import PeerSpec, RaftConfig, RaftNode
from nomadpy.raft import messages as wire
from nomadpy.raft.core import RaftCore
from nomadpy.raft.pysyncobj_seam import LEADER
from nomadpy.raft.snapshots import SnapshotHeader
from nomadpy.rpc.network import ByteStream
from nomadpy.simulator.disk import MemoryFiles
from nomadpy.simulator.loop import SimClock, run
from nomadpy.simulator.network import HostNetwork, SimNetwork


class BrokenPromiseError(Exception):
    """A promise of raft was broken."""


class Register:
    """The state machine: a list of everything applied."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def apply(self, index: int, data: bytes) -> object:
        self.values.append(data)
        return len(self.values)

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        values = list(self.values)

        def chunks() -> Iterator[bytes]:
            for start in range(0, len(values), 7):
                yield b"\n".join(values[start : start + 7])

        return chunks

    def restore(self, chunks: Iterator[bytes]) -> None:
        self.values = [value for chunk in chunks for value in chunk.split(b"\n")]


class WatchedCore(RaftCore):
    """Tells the world what happens."""

    world: World

    def apply_command(self, index: int, term: int, data: bytes) -> object:
        self.world.saw_applied(self.me.peer.id, index, term, data)
        return super().apply_command(index, term, data)

    def install(self, header: SnapshotHeader, leader: PeerSpec | None) -> bool:
        installed = super().install(header, leader)
        self.world.stats["snapshots installed" if installed else "snapshots passed over"] += 1
        return installed

    def snapshot_written(self, header: SnapshotHeader) -> None:
        super().snapshot_written(header)
        self.world.stats["snapshots written"] += 1
        self.world.saw_snapshot(header)

    def on_state_changed(self, before: int, after: int) -> None:
        super().on_state_changed(before, after)
        if after == LEADER:
            self.world.saw_leader(self.me.peer.id, self.term())


class WatchedNode(RaftNode):
    """A node whose core is watched; the controls change `core_class` and rounds."""

    core_class: type[WatchedCore] = WatchedCore
    world: World

    def make_core(self, **parts) -> RaftCore:  # type: ignore[no-untyped-def,override]
        bound = type("BoundCore", (self.core_class,), {"world": self.world})
        return bound(**parts)


class Server:
    def __init__(self, peer: PeerSpec, files: MemoryFiles) -> None:
        self.peer = peer
        self.files = files
        self.node: WatchedNode | None = None
        self.machine = Register()
        self.task: asyncio.Task[None] | None = None
        self.boots = 0


class World:
    """One run. `seed` decides all of it."""

    def __init__(
        self,
        seed: int | str,
        *,
        servers: int = 3,
        spare: int = 0,
        node_class: type[WatchedNode] = WatchedNode,
        lying_disks: bool = False,
        check_order: bool = True,
        check_votes: bool = True,
        faults: bool = True,
        sync_crashes: float | None = None,
        settings: dict[str, object] | None = None,
    ) -> None:
        self.chance = SeededEntropy(f"world-{seed}")
        self.loop = asyncio.get_running_loop()
        most = self.chance.choice([0.002, 0.02, 0.15])
        self.net = SimNetwork(
            SeededEntropy(f"network-{seed}"), delay_s=(0.0003, most), dial_s=1.0, give_up_s=4.0
        )
        self.seed = seed
        self.settings = settings or {}
        self.node_class = type("BoundNode", (node_class,), {"world": self})
        self.check_order = check_order
        self.check_votes = check_votes
        self.disk_delay_s = self.chance.choice([0.0, 0.002, 0.02])
        self.faults = faults
        self.crashing = faults
        self.sync_crashes = sync_crashes or self.chance.choice([0.004, 0.02, 0.06])
        self.servers: dict[str, Server] = {}
        self.founders: list[PeerSpec] = []
        for number in range(servers + spare):
            peer = PeerSpec(f"s{number}", f"server-{number}", f"host{number}:4647")
            self.servers[peer.id] = Server(peer, MemoryFiles(lying=lying_disks))
            if number < servers:
                self.founders.append(peer)
        self.applied: dict[int, tuple[int, bytes]] = {}
        self.acked: dict[bytes, int] = {}
        self.leaders: dict[int, str] = {}
        self.snapshots: dict[int, SnapshotHeader] = {}
        self.votes: dict[tuple[str, int], str] = {}
        self.highest_acked = 0
        self.stats: collections.Counter[str] = collections.Counter()
        self.trace: list[tuple[object, ...]] = []
        self.counter = 0
        self.violations: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    # ---- what the watched nodes tell

    def violate(self, text: str) -> None:
        self.violations.append(f"seed {self.seed} at {self.loop.time():.3f} s: {text}")
        raise BrokenPromiseError(self.violations[-1])

    def saw_applied(self, server: str, index: int, term: int, data: bytes) -> None:
        known = self.applied.setdefault(index, (term, data))
        if known != (term, data):
            self.violate(f"{server} applied {(term, data)} at {index}, another applied {known}")

    def saw_leader(self, server: str, term: int) -> None:
        self.stats["elections"] += 1
        self.trace.append((self.loop.time(), "leader", server, term))
        if self.leaders.setdefault(term, server) != server and self.check_votes:
            self.violate(f"two leaders in term {term}: {server} and {self.leaders[term]}")

    def saw_vote(self, server: str, term: int, vote: str) -> None:
        if self.votes.setdefault((server, term), vote) != vote and self.check_votes:
            self.violate(f"{server} voted for {vote} and {self.votes[server, term]} in term {term}")

    def saw_snapshot(self, header: SnapshotHeader) -> None:
        known = self.snapshots.setdefault(header.index, header)
        if known != header:
            self.violate(f"two snapshots at one index differ: {known} and {header}")

    def saw_ready(self, server: Server, node: WatchedNode) -> None:
        if node.applied_index < self.highest_acked and node.is_leader:
            self.violate(
                f"{server.peer.id} leads with {node.applied_index}, but {self.highest_acked} is acknowledged"
            )

    def died(self, server: Server, node: WatchedNode, reason: str) -> None:
        if server.node is not node:
            return
        self.stats["fatal"] += 1
        if not reason.startswith("OSError"):
            self.violations.append(f"seed {self.seed}: {server.peer.id} stopped itself: {reason}")

    # ---- servers

    def start(self, server: Server) -> None:
        if server.node is not None:
            return
        server.boots += 1
        host = self.net.host(server.peer.address.split(":")[0])
        server.machine = Register()
        settings: dict[str, object] = {
            "election_min_s": 0.5,
            "election_max_s": 1.0,
            "snapshot_entries": 25,
            "trailing_entries": 15,
            "segment_bytes": 4096,
            "append_bytes": 400,
            "window_bytes": 1600,
            "snapshot_chunk_bytes": 300,
            **self.settings,
        }
        config = RaftConfig(
            server_id=server.peer.id,
            name=server.peer.name,
            address=server.peer.address,
            data_dir="/raft",
            **settings,  # type: ignore[arg-type]
        )
        try:
            node = self.boot(server, config, host)
        except CorruptionError as cause:
            self.violations.append(f"seed {self.seed}: {server.peer.id} refuses to start: {cause}")
            return
        except OSError:
            self.loop.call_later(0.5, self.start, server)
            return
        self.watch_promises(node)
        node.on_leadership(lambda leads, term: self.saw_ready(server, node))
        server.node = node
        server.task = self.loop.create_task(
            self.serve(server, node, host), name=f"run-{server.peer.id}"
        )

    def boot(self, server: Server, config: RaftConfig, host: HostNetwork) -> WatchedNode:
        node = self.node_class(
            config,
            server.machine,
            network=host,
            files=server.files,
            clock=SimClock(self.loop, rate=self.chance.uniform(0.98, 1.02)),
            entropy=SeededEntropy(f"{self.seed}-{server.peer.id}-{server.boots}"),
            run_blocking=lambda work: self.blocking(server, node, work),
            fatal=lambda reason: self.died(server, node, reason),
        )
        return node

    async def serve(self, server: Server, node: WatchedNode, host: HostNetwork) -> None:
        async def accept(stream: ByteStream) -> None:
            if await stream.read(1) == wire.FIRST_BYTE:
                await node.serve(stream)

        listening = await host.listen(server.peer.address, accept)
        try:
            if server.peer in self.founders and not node.initialized:
                await node.bootstrap(self.founders)
            await node.run()
        except Exception:
            if server.node is node:
                await asyncio.sleep(0)
                self.restart_later(server, power=self.chance.uniform(0, 1) < 0.5)
        finally:
            await listening.close()

    async def blocking(self, server: Server, node: WatchedNode, work: Callable[[], None]) -> None:
        """The disk: takes its time, and is where the power likes to go, before the sync or after it."""
        draw = self.chance.uniform(0, 1) if self.crashing else 1.0
        if draw < self.sync_crashes:
            # What this round sent is out, nothing of it is on disk; and the leader may not live to repeat it.
            if self.chance.uniform(0, 1) < 0.5:
                self.loop.call_later(self.chance.uniform(0, 0.05), self.crash_leaders)
            self.crash_during_sync(server, node)
        await asyncio.sleep(self.chance.uniform(0, self.disk_delay_s))
        work()
        if draw > 0.999 and self.crashing:
            self.crash_during_sync(server, node)
        await asyncio.sleep(self.chance.uniform(0, self.disk_delay_s))

    def crash_during_sync(self, server: Server, node: WatchedNode) -> None:
        if server.node is node:
            self.stats["crashes at sync"] += 1
            self.restart_later(server, power=True)

    def crash_leaders(self) -> None:
        for server, _ in self.leading():
            if self.crashing:
                self.restart_later(server, power=True)

    def watch_promises(self, node: WatchedNode) -> None:
        flush = node.transport.flush_late
        me = node.config.server_id

        def watched() -> None:
            if self.check_order and node.journal.dirty:
                self.violate(f"{me} sends promises before they are on disk")
            for target, message in node.transport._late:
                if isinstance(message, wire.VoteReply):
                    self.saw_vote(me, message.term, target)
                elif isinstance(message, wire.VoteRequest):
                    self.saw_vote(me, message.term, me)
            flush()

        node.transport.flush_late = watched  # type: ignore[method-assign]

    def stop(self, server: Server, *, power: bool) -> bool:
        node, server.node = server.node, None
        if node is None:
            return False
        self.stats["power cuts" if power else "kills"] += 1
        self.trace.append((self.loop.time(), "stop", server.peer.id))
        server.files = server.files.power_cut(self.chance) if power else server.files.killed()
        silent = power and self.chance.uniform(0, 1) < 0.5
        self.net.crash(server.peer.address.split(":")[0], silent=silent)
        assert server.task is not None
        server.task.cancel()
        return True

    def restart_later(self, server: Server, *, power: bool) -> None:
        if self.stop(server, power=power):
            delay = self.chance.choice(
                [self.chance.uniform(0.02, 0.3), self.chance.uniform(0.1, 3.0)]
            )
            self.loop.call_later(delay, self.start, server)

    def running(self) -> list[tuple[Server, WatchedNode]]:
        return [(s, s.node) for s in self.servers.values() if s.node is not None]

    def leading(self) -> list[tuple[Server, WatchedNode]]:
        return [(s, n) for s, n in self.running() if n.core.is_leader()]

    # ---- clients

    def spawn(self, work: Awaitable[None], name: str) -> None:
        self.tasks = [task for task in self.tasks if not task.done()]
        self.tasks.append(self.loop.create_task(work, name=name))  # type: ignore[arg-type]

    async def clients(self, until: float, a_second: float = 30.0) -> None:
        while self.loop.time() < until:
            await asyncio.sleep(self.chance.uniform(0, 2 / a_second))
            leading = self.leading()
            if not leading:
                continue
            server, node = self.chance.choice(leading)
            draw = self.chance.uniform(0, 1)
            if draw < 0.84:
                self.spawn(self.write(node), "write")
            elif draw < 0.97:
                self.spawn(self.read(server, node), "read")
            elif draw < 0.985:
                self.spawn(self.transfer(node), "transfer")
            elif len(self.servers) > len(self.founders):
                self.spawn(self.change(node), "change")

    async def write(self, node: WatchedNode) -> None:
        self.counter += 1
        value = b"v%d" % self.counter
        try:
            index, _ = await node.propose(value, timeout_s=5)
        except NomadError as cause:
            self.stats[cause.code] += 1
            return
        self.stats["acked"] += 1
        self.acked[value] = index
        self.highest_acked = max(self.highest_acked, index)
        if self.applied.get(index, (0, b""))[1] != value:
            self.violate(
                f"{value!r} was acknowledged at {index}, applied is {self.applied.get(index)}"
            )

    async def read(self, server: Server, node: WatchedNode) -> None:
        wanted = self.highest_acked
        try:
            index = await node.read_index(timeout_s=3)
        except NomadError:
            return
        if server.node is not node:
            return  # the answer died with the process
        self.stats["reads"] += 1
        if index < wanted or node.applied_index < wanted:
            self.violate(f"a read at {index} (applied {node.applied_index}) misses write {wanted}")

    async def transfer(self, node: WatchedNode) -> None:
        with contextlib.suppress(NomadError):
            await node.transfer_leadership(None, timeout_s=2)
            self.stats["transfers"] += 1

    async def change(self, node: WatchedNode) -> None:
        members = [peer for peer, _ in node.peers()]
        outside = [s for s in self.servers.values() if s.peer not in members]
        with contextlib.suppress(NomadError):
            if outside and (len(members) <= 3 or self.chance.uniform(0, 1) < 0.5):
                server = self.chance.choice(outside)
                if server.boots == 0:
                    self.start(server)
                await node.add_server(server.peer, timeout_s=5)
                self.stats["added"] += 1
            elif len(members) > 3:
                await node.remove_server(self.chance.choice(members).id, timeout_s=5)
                self.stats["removed"] += 1

    # ---- faults

    async def nemesis(self, until: float) -> None:
        names = [s.peer.address.split(":")[0] for s in self.servers.values()]
        while self.loop.time() < until:
            await asyncio.sleep(self.chance.uniform(0.05, 2.0))
            draw = self.chance.uniform(0, 1)
            if draw < 0.2:
                group = [name for name in names if self.chance.uniform(0, 1) < 0.5]
                self.net.partition(group, [n for n in names if n not in group])
            elif draw < 0.3:
                one, other = self.chance.choice(names), self.chance.choice(names)
                if one != other:
                    self.net.block(one, other)
            elif draw < 0.55:
                self.net.heal()
            elif draw < 0.65:
                one, other = self.chance.choice(names), self.chance.choice(names)
                self.net.cut(one, other)
            elif draw < 0.8:
                for server, _ in self.leading():
                    self.restart_later(server, power=self.chance.uniform(0, 1) < 0.7)
            elif draw < 0.83:
                server = self.chance.choice(list(self.servers.values()))
                operation = self.chance.choice(["sync", "write", "rename", "sync_directory"])
                server.files.fail(operation, self.chance.choice([errno.EIO, errno.ENOSPC]))
            elif draw < 0.95:
                running = self.running()
                if running:
                    server, _ = self.chance.choice(running)
                    self.restart_later(server, power=self.chance.uniform(0, 1) < 0.7)
            else:
                for server, _ in self.running():
                    self.restart_later(server, power=True)

    # ---- the whole

    async def play(self, seconds: float = 25.0) -> None:
        """Faults and clients, then peace; raises BrokenPromiseError."""
        for peer in self.founders:
            self.start(self.servers[peer.id])
        until = self.loop.time() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self.clients(until))
            if self.faults:
                group.create_task(self.nemesis(until))
        await self.finish()

    async def finish(self) -> None:
        """Heal everything, wait until all agree, check what is left."""
        self.crashing = False
        self.net.heal()
        self.disk_delay_s = 0.0
        self.net.delay_s = (0.0003, 0.002)
        for server in self.servers.values():
            if server.boots:
                self.loop.call_later(3.5, self.start, server)
        deadline = self.loop.time() + 40
        await asyncio.sleep(3.6)
        while (trouble := self.disagreement()) and self.loop.time() < deadline:
            if self.violations:
                break
            await asyncio.sleep(0.25)
        if self.violations:
            raise BrokenPromiseError("; ".join(self.violations))
        if trouble:
            self.violate(f"after healing: {trouble}")
        _, node = self.leading()[0]
        values = self.servers[node.config.server_id].machine.values
        count = collections.Counter(values)
        lost = [v for v in self.acked if not count[v]]
        if lost:
            self.violate(
                f"{len(lost)} of {len(self.acked)} acknowledged writes are lost: {lost[:5]}"
            )
        if len(count) != len(values):
            self.violate("a write was applied twice")

    def disagreement(self) -> str:
        leading = [(s, n) for s, n in self.leading() if n.is_leader]
        if len(leading) != 1:
            return f"{len(leading)} leaders: " + "; ".join(
                f"{s.peer.id} {n.stats()['state']} term {n.term} log {n.last_index} "
                f"members {n.stats()['latest_configuration']}"
                for s, n in self.running()
            )
        leader, node = leading[0]
        for peer, _ in node.peers():
            server = self.servers[peer.id]
            if server.node is None or server.node.applied_index < node.applied_index:
                return f"{peer.id} is behind: {server.node and server.node.stats()} {node.stats()}"
            if server.machine.values != leader.machine.values:
                return f"{peer.id} has another state"
        return ""

    async def close(self) -> None:
        """End every task."""
        for server in self.servers.values():
            if server.task is not None:
                server.task.cancel()
        for task in self.tasks:
            task.cancel()
        pending = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def play(seed: int, *, seconds: float = 25.0, **options) -> World:  # type: ignore[no-untyped-def]
    """Run one world to its end; raises BrokenPromiseError."""

    async def main() -> World:
        world = World(seed, **options)
        try:
            await world.play(seconds)
        finally:
            await world.close()
        return world

    return run(main)
