"""A world for server tests: whole servers on the simulator's network and disks, nodes that do only what a test says."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from nomadpy.clock import SystemClock
from nomadpy.daemon.server_process import ServerProcess
from nomadpy.entropy import SeededEntropy
from nomadpy.models.allocation import Allocation, AllocDeploymentStatus
from nomadpy.models.base import ZERO_TIME
from nomadpy.models.calls import (
    IndexReply,
    JobWrite,
    NodeAttach,
    NodeHeartbeat,
    NodeRegister,
    NodeReply,
    Read,
    UpdateAllocsRequest,
    Write,
)
from nomadpy.models.envelope import Answer, QueryOptions, WriteOptions
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.node import Node
from nomadpy.models.root_key import RootKey
from nomadpy.pki.keys import create_root_key, with_new_id
from nomadpy.rpc.dispatch import Dispatcher
from nomadpy.rpc.pool import Pool
from nomadpy.simulator.cluster import SimCluster, SimServer, make_node
from nomadpy.state.store import Snapshot

SECOND = 1_000_000_000
FOREVER_S = 1e7


@functools.cache
def root_key_material() -> RootKey:
    """One real key for the whole run; making it costs more than most tests."""
    return create_root_key("global", SeededEntropy("root"), SystemClock())


class WorldServer(SimServer):
    """A simulated server whose settings a test may change, with a root key that really signs."""

    def __init__(self, cluster: SimCluster, number: int, changes: dict[str, Any]) -> None:
        super().__init__(cluster, number)
        self.changes = changes

    def _build(self, *parts: Any) -> ServerProcess:
        settings, *more, _make_key = parts
        entropy = SeededEntropy(f"keys-{self.name}-{self.boots}")

        async def make_root_key() -> RootKey:
            return with_new_id(root_key_material(), entropy)

        settings = msgspec.structs.replace(settings, **self.changes)
        return super()._build(*[settings, *more, make_root_key])


class FakeNode:
    """A node that registers and reports when told to; it never heartbeats by itself."""

    def __init__(self, world: World, node: Node) -> None:
        self.world = world
        self.node = node

    @property
    def id(self) -> str:
        return self.node.id

    async def register(self, status: str = "ready", **changes: Any) -> NodeReply:
        self.node = msgspec.structs.replace(self.node, status=status, **changes)
        reply = await self.world.call("Node.Register", NodeRegister(node=self.node))
        assert isinstance(reply, NodeReply)
        return reply

    async def heartbeat(self, status: str = "ready") -> NodeReply:
        request = NodeHeartbeat(node_id=self.id, secret_id=self.node.secret_id, status=status)
        reply = await self.world.call("Node.Heartbeat", request)
        assert isinstance(reply, NodeReply)
        return reply

    def allocs(self) -> list[Allocation]:
        return self.world.state.allocs_by_node(self.id)

    def wanted(self) -> list[Allocation]:
        return [a for a in self.allocs() if a.desired_status == "run"]

    async def report(
        self, *allocs: Allocation, status: str = "running", healthy: bool | None = None
    ) -> IndexReply:
        health = None if healthy is None else AllocDeploymentStatus(healthy=healthy)
        updates = [
            Allocation(id=a.id, client_status=status, deployment_status=health) for a in allocs
        ]
        request = UpdateAllocsRequest(
            node_id=self.id, secret_id=self.node.secret_id, allocs=updates
        )
        reply = await self.world.call("Node.UpdateAllocs", request)
        assert isinstance(reply, IndexReply)
        return reply

    async def obey(self) -> None:
        """Report what a good agent would: what is wanted runs and is healthy, what is not wanted has ended."""
        for alloc in self.allocs():
            final = alloc.client_status in ("complete", "failed", "lost")
            health = alloc.deployment_status
            unsaid = bool(alloc.deployment_id) and (health is None or health.healthy is None)
            starts = alloc.client_status == "pending" or (unsaid and not final)
            if alloc.desired_status == "run" and starts:
                await self.report(alloc, status="running", healthy=True)
            elif alloc.desired_status != "run" and not final:
                await self.report(alloc, status="complete")

    @asynccontextmanager
    async def attached(self, dispatcher: Dispatcher, *addresses: str) -> AsyncIterator[None]:
        """Connect to these servers and serve what they ask of the node."""
        network = self.world.cluster.network.host(f"agent-{self.node.name}", role="client")
        pool = Pool(network, dispatcher, SeededEntropy(self.id))
        try:
            for address in addresses:
                request = NodeAttach(node_id=self.id, secret_id=self.node.secret_id)
                await pool.call(address, "Node.Attach", request, timeout_s=5)
            yield
        finally:
            await pool.close()


class World:
    """A running cluster."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.entropy = SeededEntropy("world")

    @property
    def servers(self) -> list[SimServer]:
        return self.cluster.servers

    @property
    def leader(self) -> ServerProcess:
        """The process that leads; its absence fails the test."""
        leader = self.cluster.leader()
        assert leader is not None, "no leader"
        assert leader.process is not None
        return leader.process

    @property
    def leading(self) -> SimServer:
        leader = self.cluster.leader()
        assert leader is not None, "no leader"
        return leader

    @property
    def followers(self) -> list[ServerProcess]:
        return [
            p for s in self.cluster.live() if (p := s.process) is not None and p is not self.leader
        ]

    @property
    def state(self) -> Snapshot:
        return self.leader.store.snapshot()

    async def call(
        self,
        method: str,
        request: msgspec.Struct,
        *,
        at: ServerProcess | None = None,
        timeout_s: float | None = 60.0,
    ) -> Any:
        server = at or self.leader
        return await server.server.call(method, request, timeout_s=timeout_s)

    async def read(
        self,
        method: str,
        identity: str = "",
        *,
        at: ServerProcess | None = None,
        flags: dict[str, str] | None = None,
        **options: Any,
    ) -> Answer:
        request = Read(id=identity, flags=flags or {}, options=QueryOptions(**options))
        answer = await self.call(method, request, at=at, timeout_s=None)
        assert isinstance(answer, Answer)
        return answer

    async def get(self, method: str, identity: str = "", **more: Any) -> Any:
        """The decoded body of a read."""
        return body(await self.read(method, identity, **more))

    async def write(
        self, method: str, identity: str = "", *, flags: dict[str, str] | None = None
    ) -> Any:
        answer = await self.call(method, Write(id=identity, flags=flags or {}))
        return body(answer)

    async def register(
        self, spec: dict[str, Any], *, at: ServerProcess | None = None, **more: Any
    ) -> Any:
        """Register a job and return the decoded answer."""
        options = WriteOptions(
            request_id=more.pop("request_id", ""), namespace=more.pop("namespace", "default")
        )
        return body(
            await self.call("Job.Register", JobWrite(job=spec, options=options, **more), at=at)
        )

    async def node(self, name: str = "n0", *, status: str = "ready", **changes: Any) -> FakeNode:
        """Register a node of 2000 MHz and 2048 MiB that has the mock driver."""
        made = make_node(name, self.entropy.uuid(), self.entropy.uuid(), _Smallest(name))
        node = FakeNode(self, msgspec.structs.replace(made, **changes))
        await node.register(status)
        return node

    async def until(self, look: Callable[[], Any], what: str = "", *, seconds: float = 30.0) -> Any:
        """Wait until `look` gives something true, and return it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not (found := _tried(look)):
            assert loop.time() < deadline, f"waited {seconds} virtual seconds for {what or look}"
            await asyncio.sleep(0.05)
        return found

    async def settled(self) -> None:
        """Wait until no evaluation is pending (those that wait for a time excepted)."""
        await self.until(
            lambda: all(
                e.status != "pending" or e.wait_until != ZERO_TIME for e in self.state.evals()
            ),
            "evaluations to be done",
        )

    async def evaluated(self, eval_id: str) -> Evaluation:
        """Wait until an evaluation is done and return it."""

        def done() -> Evaluation | None:
            found = self.state.eval(eval_id)
            return found if found is not None and found.status != "pending" else None

        found = await self.until(done, f"evaluation {eval_id}")
        assert isinstance(found, Evaluation)
        return found

    async def has_leader(self, *, not_: ServerProcess | None = None) -> ServerProcess:
        """Wait until some server leads."""

        def look() -> ServerProcess | None:
            leader = self.cluster.leader()
            process = leader.process if leader is not None else None
            return process if process is not not_ else None

        found = await self.until(look, "a leader")
        assert isinstance(found, ServerProcess)
        return found

    async def caught_up(self) -> None:
        """Wait until every live server has applied what the leader has."""
        index = self.leader.raft.applied_index
        for server in self.cluster.live():
            assert server.process is not None
            await server.process.raft.wait_applied(index, timeout_s=20)

    async def obeyed(self, nodes: list[FakeNode], look: Callable[[], Any], what: str = "") -> None:
        """Let the nodes report like good agents until `look` is true."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 120.0
        while not _tried(look):
            assert loop.time() < deadline, f"waited for {what or look}"
            for node in nodes:
                await node.obey()
            await asyncio.sleep(0.25)


@asynccontextmanager
async def running(servers: int = 1, *, form: bool = True, **changes: Any) -> AsyncIterator[World]:
    """A cluster whose servers have these settings; fake nodes live for ever unless heartbeat_min_ttl_s is given."""
    cluster = SimCluster(1, servers=servers, clients=0)
    settings = {
        "heartbeat_min_ttl_s": FOREVER_S,
        "heartbeat_failover_ttl_s": FOREVER_S,
        **changes,
    }
    cluster.servers = [WorldServer(cluster, number, settings) for number in range(servers)]
    world = World(cluster)
    try:
        if form:
            await cluster.start()
            await world.has_leader()
            await world.until(
                lambda: world.state.active_root_key() is not None, "leadership to be established"
            )
        yield world
    finally:
        await cluster.close()


class _Smallest(SeededEntropy):
    """Draws the first of every choice, so that nodes are alike."""

    def choice(self, items: Any) -> Any:
        return items[0]


def _tried(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except AssertionError:
        # No leader at this moment.
        return None


def body(answer: Any) -> Any:
    """The decoded JSON of an answer, None for an empty one."""
    assert isinstance(answer, Answer)
    return msgspec.json.decode(answer.body) if answer.body else None


def job(name: str = "web", *, count: int = 1, **fields: Any) -> dict[str, Any]:
    """A job of one group as a request brings it; cpu, memory, group, update change their parts."""
    group: dict[str, Any] = {
        "Name": "group",
        "Count": count,
        "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
        "EphemeralDisk": {"SizeMB": 110},
        "Tasks": [
            {
                "Name": "task",
                "Driver": "mock_driver",
                "Config": fields.pop("config", {}),
                "Resources": {"CPU": fields.pop("cpu", 100), "MemoryMB": fields.pop("memory", 64)},
            }
        ],
        **fields.pop("group", {}),
    }
    made = {
        "ID": name,
        "Name": name,
        "Type": "service",
        "Datacenters": ["dc1"],
        "TaskGroups": [group],
        # No deployments unless asked for: they need health reports to move on.
        "Update": {"MaxParallel": 0},
        **fields,
    }
    return {k: v for k, v in made.items() if v is not None}


def rolling(**fields: Any) -> dict[str, Any]:
    """An update block that makes deployments."""
    return {
        "MaxParallel": 1,
        "MinHealthyTime": SECOND,
        "HealthCheck": "task_states",
        "HealthyDeadline": 60 * SECOND,
        "ProgressDeadline": 120 * SECOND,
        **fields,
    }


Handler = Callable[..., Awaitable[Any]]
