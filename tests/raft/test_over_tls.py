"""Three RaftNodes on the real loop: mutual TLS over loopback, real files, threads for the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nomadpy.clock import SystemClock
from nomadpy.entropy import SystemEntropy
from nomadpy.pki.ca import write_ca, write_certificate
from nomadpy.pki.tls import TLSMaterial, load_material
from nomadpy.raft import PeerSpec, RaftConfig, RaftNode, RealFiles
from nomadpy.rpc.network import ByteStream
from nomadpy.rpc.tls_network import TLSNetwork


class Values:
    def __init__(self) -> None:
        self.values: list[bytes] = []

    def apply(self, index: int, data: bytes) -> object:
        self.values.append(data)
        return len(self.values)

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        values = list(self.values)
        return lambda: iter(values)

    def restore(self, chunks: Iterator[bytes]) -> None:
        self.values = list(chunks)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> TLSMaterial:
    folder = tmp_path_factory.mktemp("certificates")
    now_ns = SystemClock().now_ns()
    ca, ca_key = write_ca(folder, now_ns=now_ns)
    return load_material(ca, *write_certificate(folder, ca, ca_key, "server", now_ns=now_ns))


class Server:
    """A node whose port is open before its address is known to the others."""

    def __init__(self, number: int, folder: Path, material: TLSMaterial) -> None:
        self.number = number
        self.folder = folder
        self.network = TLSNetwork(material)
        self.node: RaftNode | None = None
        self.task: asyncio.Task[None] | None = None
        self.machine = Values()
        self.address = "127.0.0.1:0"

    @property
    def peer(self) -> PeerSpec:
        return PeerSpec(f"id-{self.number}", f"server-{self.number}", self.address)

    async def open(self) -> None:
        async def accept(stream: ByteStream) -> None:
            if await stream.read(1) == b"R" and self.node is not None:
                await self.node.serve(stream)

        self.listening = await self.network.listen(self.address, accept)
        self.address = self.listening.address

    def start(self) -> RaftNode:
        self.machine = Values()
        self.node = RaftNode(
            RaftConfig(
                server_id=self.peer.id,
                name=self.peer.name,
                address=self.address,
                data_dir=str(self.folder / f"server-{self.number}"),
                election_min_s=0.4,
                election_max_s=0.8,
                snapshot_entries=300,
                trailing_entries=50,
            ),
            self.machine,
            network=self.network,
            files=RealFiles(),
            clock=SystemClock(),
            entropy=SystemEntropy(),
        )
        self.task = asyncio.get_running_loop().create_task(self.node.run())
        return self.node

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            self.task, self.node = None, None


async def leader_of(servers: list[Server]) -> Server:
    async with asyncio.timeout(20):
        while True:
            for server in servers:
                if server.node is not None and server.node.is_leader:
                    return server
            await asyncio.sleep(0.01)


@pytest.mark.real_time
async def test_three_servers_on_real_disks_survive_the_leader_and_a_restart(
    tmp_path: Path, material: TLSMaterial
) -> None:
    servers = [Server(number, tmp_path, material) for number in range(3)]
    try:
        for server in servers:
            await server.open()
        for server in servers:
            await server.start().bootstrap([s.peer for s in servers])
        leader = await leader_of(servers)
        assert leader.node is not None
        await asyncio.gather(*(leader.node.propose(b"%d" % n) for n in range(1000)))
        await leader.stop()
        new = await leader_of(servers)
        assert new.node is not None
        index, count = await new.node.propose(b"after the leader died")
        assert count == 1001
        assert await new.node.read_index() >= index
        leader.start()
        assert leader.node is not None
        assert leader.node.initialized
        await leader.node.wait_applied(index, timeout_s=10)
        assert leader.machine.values == new.machine.values
        assert leader.node.snapshots.latest is not None
        # A server that comes empty gets a snapshot through TLS.
        late = Server(3, tmp_path, material)
        servers.append(late)
        await late.open()
        late.start()
        await (await leader_of(servers)).node.add_server(late.peer)  # type: ignore[union-attr]
        assert late.node is not None
        await late.node.wait_applied(index, timeout_s=10)
        assert late.machine.values == new.machine.values
    finally:
        for server in servers:
            await server.stop()
            await server.listening.close()


@pytest.mark.real_time
async def test_a_single_server_leads_at_once_and_its_cancelled_run_leaves_nothing_behind(
    tmp_path: Path, material: TLSMaterial
) -> None:
    server = Server(0, tmp_path, material)
    await server.open()
    try:
        node = server.start()
        began = asyncio.get_running_loop().time()
        await node.bootstrap([server.peer])
        await leader_of([server])
        assert asyncio.get_running_loop().time() - began < 0.5
        await node.propose(b"x")
        await server.stop()
        server.start()
        await leader_of([server])
        assert server.machine.values == [b"x"]
    finally:
        await server.stop()
        await server.listening.close()
