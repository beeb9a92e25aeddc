"""Simulated client nodes for real servers: registered, kept alive, and if wanted reporting their allocations running.

Many nodes share a few connections, so that one process stands in for thousands of agents. `static` nodes heartbeat and
nothing else; `live` ones also fetch their allocations and say that they run.
"""

from __future__ import annotations

import asyncio
import csv
from bisect import bisect
from collections.abc import Callable
from itertools import accumulate, count, islice
from pathlib import Path

import msgspec

from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy, SeededEntropy
from nomadpy.errors import ConfigError, NomadError, NotFoundError, UnreachableError
from nomadpy.models.calls import NodeHeartbeat, NodeRegister, NodeReply
from nomadpy.models.node import (
    DriverInfo,
    Node,
    NodeCpuResources,
    NodeDevice,
    NodeDeviceResource,
    NodeDiskResources,
    NodeMemoryResources,
    NodeReservedResources,
    NodeResources,
)
from nomadpy.models.resources import NetworkResource
from nomadpy.rpc.network import Network
from nomadpy.rpc.pool import Pool
from nomadpy.simulator.agents import SimAgent

log = logs.get(__name__)

CONNECTIONS = 8
CALLS_AT_ONCE = 16
"""On each connection."""
LIVE_STEP_S = 0.5
RETRY_S = 1.0
SHAPES_SEED = 7


class Shape(msgspec.Struct, frozen=True):
    """What a node has: MHz, MiB, MiB, and whole GPUs of one model."""

    cpu: int
    memory_mb: int
    disk_mb: int
    gpus: int = 0
    gpu_model: str = ""


UNIFORM = Shape(8_000, 16_384, 102_400)
BIG = Shape(64_000, 262_144, 1_024_000)
HETEROGENEOUS = (
    (Shape(4_000, 8_192, 51_200), 40),
    (Shape(8_000, 32_768, 102_400), 30),
    (Shape(16_000, 32_768, 204_800), 20),
    (Shape(32_000, 131_072, 409_600), 10),
)
"""Shapes and how often they are drawn, of a hundred."""


def shapes(name: str, number: int | None) -> list[Shape]:
    """Return the shapes of `number` nodes; None is 100, or every row of a trace.

    name: uniform | big | hetero | openb:FILE (columns cpu_milli, memory_mib, gpu, model). The same name and number give
    the same shapes, always. Raises ConfigError.
    """
    kind, _, path = name.partition(":")
    if kind == "openb" and path:
        return list(islice(_trace(Path(path)), number))
    wanted = 100 if number is None else number
    if name == "hetero":
        # Drawn as random.Random(7).choices would draw them.
        entropy = SeededEntropy(SHAPES_SEED)
        bounds = list(accumulate(weight for _, weight in HETEROGENEOUS))
        return [
            HETEROGENEOUS[bisect(bounds, entropy.uniform(0.0, float(bounds[-1])))][0]
            for _ in range(wanted)
        ]
    fixed = {"uniform": UNIFORM, "big": BIG}.get(name)
    if fixed is None:
        raise ConfigError(
            f"there is no node shape {name!r}; known are uniform, big, hetero and openb:FILE"
        )
    return [fixed] * wanted


def _trace(path: Path) -> list[Shape]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Shape(
                    int(row["cpu_milli"]),
                    int(row["memory_mib"]),
                    BIG.disk_mb,
                    int(row["gpu"]),
                    row["model"] or "",
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, UnicodeDecodeError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: not a list of nodes: {error}") from error


def make_node(number: int, shape: Shape, datacenter: str, entropy: Entropy) -> Node:
    """Return a node as its agent would register it."""
    name = f"simulated-{number:05}"
    devices = None
    if shape.gpus:
        instances = [NodeDevice(id=f"gpu-{n}", healthy=True) for n in range(shape.gpus)]
        devices = [
            NodeDeviceResource(
                vendor="nvidia", type="gpu", name=shape.gpu_model, instances=instances
            )
        ]
    return Node(
        id=entropy.uuid(),
        secret_id=entropy.uuid(),
        name=name,
        datacenter=datacenter,
        node_pool="default",
        # Nobody listens there: a simulated node has no files and no logs.
        http_addr="127.0.0.1:1",
        attributes={
            "cpu.arch": "amd64",
            "driver.mock_driver": "1",
            "driver.raw_exec": "1",
            "kernel.name": "linux",
            "nomad.version": "2.0.0",
            "os.signals": "SIGTERM,SIGINT",
            "unique.hostname": name,
        },
        drivers={
            driver: DriverInfo(detected=True, healthy=True)
            for driver in ("mock_driver", "raw_exec")
        },
        node_resources=NodeResources(
            cpu=NodeCpuResources(cpu_shares=shape.cpu, total_cpu_cores=max(1, shape.cpu // 4_000)),
            memory=NodeMemoryResources(memory_mb=shape.memory_mb),
            disk=NodeDiskResources(disk_mb=shape.disk_mb),
            networks=[NetworkResource(mode="host", device="eth0", ip="10.0.0.1")],
            devices=devices,
            min_dynamic_port=20_000,
            max_dynamic_port=32_000,
        ),
        reserved_resources=NodeReservedResources(),
        status="ready",
    )


class SimulatedNodes:
    """A crowd of nodes. `run` registers them, says so, and keeps them alive until cancelled."""

    def __init__(
        self,
        nodes: list[Node],
        servers: list[str],
        *,
        live: bool,
        network: Network,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        """servers: host:port of their rpc port, one at least. live: report allocations."""
        self._nodes = nodes
        self._servers = servers
        self._live = live
        self._network = network
        self._clock = clock
        self._entropy = entropy

    async def run(self, registered: Callable[[int, float], None]) -> None:
        """registered: called once with the number of nodes and the seconds it took.

        Raises NomadError when no server takes the first node of a connection.
        """
        pools = [Pool(self._network, None, self._entropy) for _ in range(CONNECTIONS)]
        started = self._clock.monotonic()
        shares = [self._nodes[number::CONNECTIONS] for number in range(CONNECTIONS)]
        try:
            async with asyncio.TaskGroup() as tasks:
                joined = [
                    tasks.create_task(self._join(pool, share))
                    for pool, share in zip(pools, shares, strict=True)
                ]
            ttl_s = min(task.result() for task in joined)
            registered(len(self._nodes), self._clock.monotonic() - started)
            async with asyncio.TaskGroup() as tasks:
                for pool, share in zip(pools, shares, strict=True):
                    if self._live:
                        for node in share:
                            tasks.create_task(self._agent(node, pool).run())
                    elif share:
                        tasks.create_task(self._keep_alive(pool, share, ttl_s))
        finally:
            for pool in pools:
                await pool.close()

    def _agent(self, node: Node, pool: Pool) -> SimAgent:
        return SimAgent(
            node,
            self._servers,
            network=self._network,
            clock=self._clock,
            entropy=self._entropy,
            pool=pool,
            step_s=LIVE_STEP_S,
        )

    async def _join(self, pool: Pool, nodes: list[Node]) -> float:
        """Register nodes over one connection; returns the least time they were given, seconds."""
        slots = asyncio.Semaphore(CALLS_AT_ONCE)

        async def one(node: Node) -> float:
            async with slots:
                return _ttl_s(await self._call(pool, NodeRegister(node=node)))

        times = await asyncio.gather(*(one(node) for node in nodes))
        return min(times, default=10.0)

    async def _keep_alive(self, pool: Pool, nodes: list[Node], ttl_s: float) -> None:
        """Heartbeat for each node well within its time, spread over it."""
        while True:
            pause_s = ttl_s / 2 / len(nodes)
            for node in nodes:
                beat: msgspec.Struct = NodeHeartbeat(
                    node_id=node.id, secret_id=node.secret_id, status="ready"
                )
                try:
                    try:
                        reply = await self._call(pool, beat)
                    except NotFoundError:
                        reply = await self._call(pool, NodeRegister(node=node))
                    ttl_s = _ttl_s(reply)
                except NomadError as error:
                    log.warning("heartbeat failed", node=node.name, error=error.message)
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(pause_s)

    async def _call(self, pool: Pool, request: msgspec.Struct) -> object:
        method = "Node.Register" if isinstance(request, NodeRegister) else "Node.Heartbeat"
        last: NomadError = UnreachableError("no server was asked")
        for address in self._servers:
            try:
                return await pool.call(address, method, request, timeout_s=10.0)
            except NotFoundError:
                raise
            except NomadError as error:
                last = error
        raise last


def _ttl_s(reply: object) -> float:
    assert isinstance(reply, NodeReply)
    return max(1.0, reply.ttl_ns / 1e9)


def simulated(shape: str, number: int | None, *, datacenter: str, entropy: Entropy) -> list[Node]:
    """Return the nodes that `shapes` describes, numbered from 0. Raises ConfigError."""
    return [
        make_node(place, one, datacenter, entropy)
        for place, one in zip(count(), shapes(shape, number), strict=False)
    ]
