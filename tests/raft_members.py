"""Raft nodes on the simulator's network and disks, for tests that drive them one by one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from nomadpy.entropy import SeededEntropy
from nomadpy.raft import PeerSpec, RaftConfig, RaftNode
from nomadpy.rpc.network import ByteStream
from nomadpy.simulator.disk import MemoryFiles
from nomadpy.simulator.loop import SimClock
from nomadpy.simulator.network import SimNetwork


class Values:
    """Applied values; b"boom" raises, as no state machine should."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.chunks: Callable[[], None] = lambda: None

    def apply(self, index: int, data: bytes) -> object:
        if data == b"boom":
            raise KeyError("a bug")
        self.values.append(data)
        return (index, data)

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        values = list(self.values)
        return lambda: iter(values)

    def restore(self, chunks: Iterator[bytes]) -> None:
        self.values = list(chunks)


class Member:
    """One server: files that outlive its restarts, and the running node."""

    def __init__(self, cluster: Cluster, name: str, **settings: object) -> None:
        self.cluster = cluster
        self.peer = PeerSpec(f"id-{name}", name, f"{name}:4647")
        self.files = MemoryFiles()
        self.settings = settings
        self.fatal: list[str] = []
        self.leadership: list[tuple[bool, int]] = []
        self.task: asyncio.Task[None] | None = None

    def start(self) -> RaftNode:
        host = self.cluster.net.host(self.peer.name)
        self.machine = Values()
        self.node = RaftNode(
            RaftConfig(
                server_id=self.peer.id,
                name=self.peer.name,
                address=self.peer.address,
                data_dir="/raft",
                **self.settings,  # type: ignore[arg-type]
            ),
            self.machine,
            network=host,
            files=self.files,
            clock=SimClock(self.cluster.loop),
            entropy=SeededEntropy(self.peer.id),
            run_blocking=inline,
            fatal=self.fatal.append,
        )
        self.node.on_leadership(lambda leads, term: self.leadership.append((leads, term)))
        node = self.node

        async def accept(stream: ByteStream) -> None:
            assert await stream.read(1) == b"R"
            await node.serve(stream)

        async def serve() -> None:
            listening = await host.listen(self.peer.address, accept)
            try:
                with contextlib.suppress(ExceptionGroup):
                    await node.run()
            finally:
                await listening.close()

        self.task = self.cluster.loop.create_task(serve())
        return self.node

    async def stop(self) -> None:
        if self.task is not None:
            self.cluster.net.crash(self.peer.name)
            self.task.cancel()
            await asyncio.wait([self.task])
            self.files = self.files.killed()
            self.task = None


class Cluster:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.net = SimNetwork(SeededEntropy("net"), dial_s=1.0)
        self.members: list[Member] = []

    def member(self, name: str, **settings: object) -> Member:
        self.members.append(Member(self, name, **settings))
        return self.members[-1]

    async def started(self, count: int, **settings: object) -> list[Member]:
        """`count` running members with a leader."""
        group = [self.member(f"s{n}", **settings) for n in range(count)]
        for member in group:
            member.start()
        await asyncio.gather(*(m.node.bootstrap([x.peer for x in group]) for m in group))
        await self.leader()
        return group

    async def leader(self) -> Member:
        async with asyncio.timeout(30):
            while True:
                for member in self.members:
                    if member.task is not None and member.node.is_leader:
                        return member
                await asyncio.sleep(0.01)

    async def follower(self) -> Member:
        leader = await self.leader()
        return next(m for m in self.members if m is not leader and m.task is not None)


async def inline(work: Callable[[], None]) -> None:
    work()


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        for member in made.members:
            await member.stop()
        await asyncio.sleep(30)  # the silence of cut connections ends


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
