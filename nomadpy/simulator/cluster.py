"""Servers and agents in one thread on virtual time, over a network and disks that fail on command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nomadpy import __version__
from nomadpy.daemon.server_process import ServerProcess
from nomadpy.entropy import SeededEntropy
from nomadpy.errors import CorruptionError, LogFormatError
from nomadpy.fsm.formats import OWN, Formats
from nomadpy.models.node import (
    DriverInfo,
    Node,
    NodeCpuResources,
    NodeDevice,
    NodeDeviceResource,
    NodeDiskResources,
    NodeMemoryResources,
    NodeNetworkAddress,
    NodeNetworkResource,
    NodeReservedResources,
    NodeResources,
)
from nomadpy.models.resources import NetworkResource
from nomadpy.models.root_key import RootKey
from nomadpy.raft.config import RaftConfig
from nomadpy.rpc.tasks import Tasks
from nomadpy.server.settings import ServerSettings
from nomadpy.simulator.agents import SimAgent
from nomadpy.simulator.disk import MemoryFiles
from nomadpy.simulator.loop import SimClock
from nomadpy.simulator.network import SimNetwork
from nomadpy.simulator.node_volumes import NodeVolumes

RPC_PORT = 4647


class SimServer:
    """One server host. Its disk outlives its process."""

    def __init__(self, cluster: SimCluster, number: int) -> None:
        self.name = f"s{number}"
        self.number = number
        self._cluster = cluster
        self.files = MemoryFiles(lying=cluster.lying_disks)
        self.process: ServerProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self.boots = 0
        self.lives = 0  # how often its disk was lost, and its id with it
        self.formats: Formats = cluster.first_formats  # of the log that its software reads

    @property
    def id(self) -> str:
        """Its raft id."""
        return f"00000000-0000-4000-8000-{self.lives:06d}{self.number:06d}"

    @property
    def address(self) -> str:
        """host:port of its rpc."""
        return f"{self.name}:{RPC_PORT}"

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None

    @property
    def old(self) -> bool:
        """Whether its software is of an earlier version."""
        return self.formats != OWN

    async def upgrade(self, formats: Formats = OWN) -> None:
        """Stop it, replace its software, start it."""
        await self.crash(power=False)
        self.formats = formats
        await self.start()

    async def start(self) -> None:
        """Boot on what the disk has."""
        cluster = self._cluster
        self.boots += 1
        entropy = SeededEntropy(f"{cluster.seed}-{self.name}-{self.boots}")
        clock = SimClock(asyncio.get_running_loop())
        settings = ServerSettings(
            id=self.id,
            name=self.name,
            rpc_address=self.address,
            bootstrap_expect=cluster.server_count,
            retry_join=[f"s{i}:{RPC_PORT}" for i in range(cluster.server_count)],
            heartbeat_min_ttl_s=2.0,
            heartbeat_grace_s=3.0,
            heartbeat_failover_ttl_s=10.0,
            leader_wait_s=6.0,
            gc_interval_s=3600.0,
            state_check_interval_s=4.0,
            log_formats=self.formats,
            build=f"{__version__}-format-{self.formats[1]}",
        )
        raft = RaftConfig(
            server_id=settings.id,
            name=self.name,
            address=self.address,
            data_dir="/raft",
            snapshot_entries=cluster.snapshot_entries,
            trailing_entries=40,
        )

        async def run_disk(work: Callable[[], None]) -> None:
            await asyncio.sleep(entropy.uniform(0.0002, 0.004))
            work()

        async def run_scheduler(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
            await asyncio.sleep(entropy.uniform(0.0005, 0.003))
            return work(*args, **named)

        async def make_root_key() -> RootKey:
            return RootKey(
                key_id=entropy.uuid(),
                state="active",
                create_time=clock.now_ns(),
                signing_key_pem=b"simulated",
                ca_certificate_pem=b"simulated",
                ca_key_pem=b"simulated",
            )

        try:
            self.process = self._build(
                settings, raft, clock, entropy, run_disk, run_scheduler, make_root_key
            )
        except (CorruptionError, LogFormatError) as error:
            # No fault of the plan damages what was synced: a disk that is refused has lost a promise.
            cluster.broken.append(f"{self.name} refuses its disk: {error.message}")
            return
        cluster.wire(self)
        await self.process.open()
        self._task = cluster.tasks.start(self.process.run(), name=f"{self.name}-{self.boots}")

    def _build(
        self,
        settings: ServerSettings,
        raft: RaftConfig,
        clock: SimClock,
        entropy: SeededEntropy,
        run_disk: Any,
        run_scheduler: Any,
        make_root_key: Any,
    ) -> ServerProcess:
        return ServerProcess(
            settings,
            raft,
            network=self._cluster.network.host(self.name, role="server"),
            listen=self.address,
            files=self.files,
            clock=clock,
            entropy=entropy,
            make_root_key=make_root_key,
            run_scheduler=run_scheduler,
            run_disk=run_disk,
            fatal=self._die,
        )

    def _die(self, reason: str) -> None:
        self._cluster.broken.append(f"{self.name} stopped itself: {reason}")
        raise RuntimeError(f"{self.name} stopped itself: {reason}")

    async def crash(self, *, power: bool) -> None:
        """The process is gone; with power, so is what the disk had not synced."""
        if self.process is None:
            return
        self._cluster.network.crash(self.name, silent=power)
        if power:
            self.files = self.files.power_cut(self._cluster.entropy)
        else:
            self.files = self.files.killed()
        self.process = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def lose_disk(self) -> None:
        """The host burns down; one with the same name and address takes its place, and is not started yet."""
        await self.crash(power=True)
        self.files = MemoryFiles(lying=self._cluster.lying_disks)
        self.lives += 1


class SimClient:
    """One agent host. Its tasks outlive its agent's process, but not its power."""

    def __init__(self, cluster: SimCluster, number: int) -> None:
        self.name = f"c{number}"
        self._cluster = cluster
        self.boots = 0
        entropy = SeededEntropy(f"{cluster.seed}-{self.name}")
        self.node = make_node(self.name, entropy.uuid(), entropy.uuid(), cluster.entropy)
        self.agent: SimAgent | None = None
        self.volumes = NodeVolumes()
        self._works: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the agent's process; the tasks of its last life are found again."""
        self.boots += 1
        cluster = self._cluster
        addresses = [server.address for server in cluster.servers]
        entropy = SeededEntropy(f"{cluster.seed}-{self.name}-{self.boots}")
        entropy.shuffle(addresses)
        self.agent = SimAgent(
            self.node,
            addresses,
            network=cluster.network.host(self.name, role="client"),
            clock=SimClock(asyncio.get_running_loop()),
            entropy=entropy,
            volumes=self.volumes,
        )
        self.agent.works = self._works
        self._task = cluster.tasks.start(self.agent.run(), name=f"{self.name}-{self.boots}")

    async def crash(self, *, power: bool) -> None:
        """The agent's process is gone; with power, so are its tasks."""
        if self.agent is None:
            return
        self._cluster.network.crash(self.name, silent=power)
        if power:
            self.agent.power_cut()
        self._works = self.agent.works
        for work in self._works.values():
            # A new process does not know what the old one had reported.
            work.reported = ("", None)
        self.agent = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    @property
    def running(self) -> list[str]:
        """Ids of the allocations whose tasks run on this host, agent or no agent."""
        works = self.agent.works if self.agent is not None else self._works
        return [k for k, work in works.items() if work.status == "running"]


class SimCluster:
    """The world of one seed. `close` ends every task in it."""

    def __init__(
        self,
        seed: int,
        *,
        servers: int = 3,
        clients: int = 5,
        snapshot_entries: int = 60,
        lying_disks: bool = False,
        formats: Formats = OWN,
        wire: Callable[[SimServer], None] | None = None,
    ) -> None:
        """formats: what the software reads that the servers begin with. wire: may change a server's process between its
        making and its start, to break it on purpose."""
        self.seed = seed
        self.entropy = SeededEntropy(f"{seed}-world")
        self.server_count = servers
        self.snapshot_entries = snapshot_entries
        self.lying_disks = lying_disks
        self.first_formats = formats
        self.wire: Callable[[SimServer], None] = wire or (lambda _server: None)
        self.network = SimNetwork(SeededEntropy(f"{seed}-network"))
        self.tasks = Tasks()
        self.broken: list[
            str
        ] = []  # servers that stopped themselves or refused to start, with the reason
        self.servers = [SimServer(self, number) for number in range(servers)]
        self.clients = [SimClient(self, number) for number in range(clients)]

    async def start(self) -> None:
        """Boot everything."""
        for server in self.servers:
            await server.start()
        for client in self.clients:
            client.start()

    async def close(self) -> None:
        """End every process."""
        await self.tasks.close()

    def live(self) -> list[SimServer]:
        """Servers whose process runs."""
        return [s for s in self.servers if s.process is not None]

    def leader(self) -> SimServer | None:
        """The live server that leads in the highest term."""
        leading = [s for s in self.live() if s.process is not None and s.process.raft.is_leader]
        return max(
            leading,
            key=lambda s: s.process.raft.term if s.process is not None else 0,
            default=None,
        )


def make_node(name: str, node_id: str, secret_id: str, entropy: SeededEntropy) -> Node:
    """A node with the mock driver; with a device; every other one is twice as large."""
    size = entropy.choice([1, 2])
    address = f"10.0.0.{int(name[1:]) + 1}"
    driver = DriverInfo(detected=True, healthy=True, health_description="Healthy")
    return Node(
        id=node_id,
        secret_id=secret_id,
        name=name,
        datacenter="dc1",
        node_pool="default",
        http_addr=f"{name}:4646",
        attributes={
            "driver.mock_driver": "1",
            "kernel.name": "linux",
            "cpu.arch": "amd64",
            "nomad.version": "2.0.0",
            "unique.hostname": name,
        },
        drivers={"mock_driver": driver},
        node_resources=NodeResources(
            cpu=NodeCpuResources(cpu_shares=2000 * size, total_cpu_cores=2),
            memory=NodeMemoryResources(memory_mb=2048 * size),
            disk=NodeDiskResources(disk_mb=20_000),
            min_dynamic_port=20_000,
            max_dynamic_port=32_000,
            networks=[NetworkResource(mode="host", device="eth0", ip=address)],
            node_networks=[
                NodeNetworkResource(
                    mode="host",
                    device="eth0",
                    addresses=[NodeNetworkAddress(family="ipv4", alias="default", address=address)],
                )
            ],
            devices=[
                NodeDeviceResource(
                    vendor="nomadpy",
                    type="gpu",
                    name="sim",
                    instances=[NodeDevice(id=f"gpu-{n}", healthy=True) for n in range(size)],
                )
            ],
        ),
        reserved_resources=NodeReservedResources(),
        scheduling_eligibility="eligible",
        status="initializing",
    )
