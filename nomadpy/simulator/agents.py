"""Agents that run no tasks: they do what an agent does over the rpc, on virtual time.

They register, heartbeat, fetch their allocations and report them running, healthy, complete or failed. What a task
does is in its mock_driver config: run_for (seconds; absent: until stopped), exit_code.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from agent.link import Attachments
from agent.server_list import ServerList
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.errors import NomadError, NotFoundError, UnreachableError
from nomadpy.models.allocation import Allocation, AllocDeploymentStatus, TaskState
from nomadpy.models.calls import (
    AllocsGetReply,
    AllocsGetRequest,
    ClientAllocsReply,
    ClientAllocsRequest,
    NodeHeartbeat,
    NodeRegister,
    NodeReply,
    UpdateAllocsRequest,
)
from nomadpy.models.envelope import QueryOptions
from nomadpy.models.gotime import from_ns
from nomadpy.models.node import Node
from nomadpy.rpc.dispatch import Dispatcher
from nomadpy.rpc.network import Network
from nomadpy.rpc.pool import Pool
from nomadpy.simulator.node_volumes import NodeVolumes

START_S = 0.3
STOP_S = 0.2
STEP_S = 0.1
CALL_TIMEOUT_S = 10.0


class Work(msgspec.Struct):
    """One allocation as it lives on a node. status: pending | running | complete | failed."""

    alloc: Allocation
    status: str = "pending"
    healthy: bool | None = None
    reported: tuple[str, bool | None] = ("", None)
    changed_at: float = 0.0


class SimAgent:
    """One node. `run` is one life of its agent process; `works` outlive it, as tasks outlive an agent."""

    def __init__(
        self,
        node: Node,
        servers: list[str],
        *,
        network: Network,
        clock: Clock,
        entropy: Entropy,
        pool: Pool | None = None,
        step_s: float = STEP_S,
        volumes: NodeVolumes | None = None,
    ) -> None:
        """pool: connections that are shared with others, who close them. step_s: how often tasks are looked at.
        volumes: those of the node, for one that servers may call and that has connections of its own."""
        self.node = node
        self.works: dict[str, Work] = {}
        self._servers = list(servers)
        self._shares_pool = pool is not None
        self._node_changed = asyncio.Event()
        self._told: tuple[Node, int] | None = None  # the node, and after which restore
        self._volumes = volumes
        dispatcher = None
        if volumes is not None:
            dispatcher = Dispatcher()
            volumes.serve(dispatcher, entropy, self._node_changed.set)
        self._pool = pool or Pool(network, dispatcher, entropy)
        self._step_s = step_s
        self._clock = clock
        self._entropy = entropy
        self._wake = asyncio.Event()
        self._restored = 0

    async def run(self) -> None:
        """Live until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._heartbeat(), name="heartbeat")
                tasks.create_task(self._sync(), name="alloc-sync")
                tasks.create_task(self._live(), name="tasks")
                tasks.create_task(self._report(), name="alloc-report")
                if self._volumes is not None:
                    servers = ServerList(self._servers, self._entropy)
                    attachments = Attachments(
                        self._pool, servers, lambda: (self.node.id, self.node.secret_id)
                    )
                    tasks.create_task(attachments.run(), name="attach")
        finally:
            if not self._shares_pool:
                await self._pool.close()

    def running(self) -> list[Allocation]:
        """Allocations whose tasks run here now."""
        return [w.alloc for w in self.works.values() if w.status == "running"]

    def power_cut(self) -> None:
        """The machine lost power: nothing runs any more, and nobody has said so."""
        for work in self.works.values():
            if work.status in ("pending", "running"):
                work.status = "failed"
                work.healthy = False if work.healthy is None else work.healthy

    async def _call(self, method: str, request: msgspec.Struct, timeout_s: float) -> object:
        last: NomadError = UnreachableError("no server was asked")
        for address in list(self._servers):
            try:
                return await self._pool.call(address, method, request, timeout_s=timeout_s)
            except NotFoundError:
                raise
            except NomadError as error:
                last = error
                self._servers.remove(address)
                self._servers.append(address)
        raise last

    def _node_now(self) -> Node:
        ready = msgspec.structs.replace(self.node, status="ready")
        return ready if self._volumes is None else self._volumes.told(ready)

    async def _heartbeat(self) -> None:
        while True:
            ttl_s = 2.0
            self._node_changed.clear()
            node, restored = self._node_now(), self._restored
            try:
                if self._told == (node, restored):
                    request: msgspec.Struct = NodeHeartbeat(
                        node_id=self.node.id, secret_id=self.node.secret_id, status="ready"
                    )
                    reply = await self._call("Node.Heartbeat", request, CALL_TIMEOUT_S)
                else:
                    reply = await self._call(
                        "Node.Register", NodeRegister(node=node), CALL_TIMEOUT_S
                    )
                    self._told = (node, restored)
                assert isinstance(reply, NodeReply)
                ttl_s = reply.ttl_ns / 1e9
            except NotFoundError:
                self._told = None
            except NomadError:
                ttl_s = 2.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.2, ttl_s * self._entropy.uniform(0.3, 0.6))):
                    await self._node_changed.wait()

    async def _sync(self) -> None:
        index = 0
        known: dict[str, int] = {}
        while True:
            options = QueryOptions(min_index=index, wait_ns=20_000_000_000, allow_stale=True)
            request = ClientAllocsRequest(
                node_id=self.node.id, secret_id=self.node.secret_id, options=options
            )
            try:
                reply = await self._call("Node.ClientAllocs", request, 40.0)
                assert isinstance(reply, ClientAllocsReply)
                if reply.index < index:
                    # A server that lags behind what we have seen: its answer is older than ours.
                    await asyncio.sleep(0.2)
                    continue
                if reply.restored > self._restored:
                    # The servers' state went back: what was said before may be forgotten.
                    self._restored = reply.restored
                    self._node_changed.set()
                    known = {k: v for k, v in known.items() if k in self.works}
                    for work in self.works.values():
                        work.reported = ("", None)
                    self._wake.set()
                changed = [k for k, v in reply.allocs.items() if known.get(k, -1) != v]
                if changed:
                    fetched = await self._call(
                        "Alloc.GetMany",
                        AllocsGetRequest(
                            node_id=self.node.id,
                            secret_id=self.node.secret_id,
                            ids=changed,
                            min_index=reply.index,
                        ),
                        CALL_TIMEOUT_S,
                    )
                    assert isinstance(fetched, AllocsGetReply)
                    for alloc in fetched.allocs:
                        known[alloc.id] = alloc.alloc_modify_index
                        self._take(alloc)
                for gone in [k for k in self.works if k not in reply.allocs]:
                    del self.works[gone]
                index = reply.index
            except NomadError:
                await asyncio.sleep(self._entropy.uniform(0.2, 1.0))

    def _take(self, alloc: Allocation) -> None:
        work = self.works.get(alloc.id)
        if work is None:
            if alloc.client_status in ("complete", "failed", "lost"):
                return
            self.works[alloc.id] = Work(alloc, changed_at=self._clock.monotonic())
        else:
            if work.alloc.deployment_id != alloc.deployment_id:
                work.healthy = None
            if alloc.client_status == "unknown":
                # Servers had given the node up; what it last said counts no longer.
                work.reported = ("", None)
            work.alloc = alloc
        self._wake.set()

    async def _live(self) -> None:
        """Move every task on: start it, notice that it is healthy, end it."""
        while True:
            now = self._clock.monotonic()
            for work in list(self.works.values()):
                self._step(work, now)
            await asyncio.sleep(self._step_s)

    def _step(self, work: Work, now: float) -> None:
        since = now - work.changed_at
        before = work.status
        config = task_config(work.alloc)
        if work.status in ("pending", "running") and work.alloc.desired_status != "run":
            if work.status == "pending" or since >= STOP_S:
                work.status = "complete"
        elif work.status == "pending" and since >= START_S:
            work.status = "running"
        elif work.status == "running":
            run_for = config.get("run_for")
            if run_for is not None and since >= float(run_for):
                work.status = "failed" if config.get("exit_code") else "complete"
            elif (
                work.healthy is None
                and work.alloc.deployment_id
                and since >= min_healthy_s(work.alloc)
            ):
                work.healthy = True
                self._wake.set()
        if work.status == "failed" and work.healthy is None and work.alloc.deployment_id:
            work.healthy = False
        if work.status != before:
            work.changed_at = now
            self._wake.set()

    async def _report(self) -> None:
        while True:
            due = [w for w in self.works.values() if w.reported != (w.status, w.healthy)]
            if not due:
                self._wake.clear()
                try:
                    async with asyncio.timeout(1.0):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                continue
            restored = self._restored
            marks = [(w, (w.status, w.healthy)) for w in due]
            request = UpdateAllocsRequest(
                node_id=self.node.id,
                secret_id=self.node.secret_id,
                allocs=[self._update(w) for w in due],
            )
            try:
                await self._call("Node.UpdateAllocs", request, CALL_TIMEOUT_S)
            except NomadError:
                await asyncio.sleep(self._entropy.uniform(0.2, 1.0))
                continue
            if restored == self._restored:
                # Else it may have been said to a state that is gone.
                for work, mark in marks:
                    work.reported = mark
            await asyncio.sleep(0.2)

    def _update(self, work: Work) -> Allocation:
        now_ns = self._clock.now_ns()
        state = {"pending": "pending", "running": "running"}.get(work.status, "dead")
        health = None
        if work.healthy is not None:
            health = AllocDeploymentStatus(healthy=work.healthy, timestamp=from_ns(now_ns))
        return Allocation(
            id=work.alloc.id,
            client_status=work.status,
            client_description=work.status,
            task_states={
                task.name: TaskState(
                    state=state, failed=work.status == "failed", finished_at=from_ns(now_ns)
                )
                for task in tasks_of(work.alloc)
            },
            deployment_status=health,
        )


def tasks_of(alloc: Allocation) -> list:  # type: ignore[type-arg]
    """The tasks of the allocation's group."""
    for group in (alloc.job.task_groups if alloc.job else None) or []:
        if group.name == alloc.task_group:
            return group.tasks or []
    return []


def task_config(alloc: Allocation) -> dict:  # type: ignore[type-arg]
    """The first task's driver config."""
    tasks = tasks_of(alloc)
    return (tasks[0].config or {}) if tasks else {}


def min_healthy_s(alloc: Allocation) -> float:
    """How long the group's tasks must run to count as healthy."""
    for group in (alloc.job.task_groups if alloc.job else None) or []:
        if group.name == alloc.task_group and group.update is not None:
            return group.update.min_healthy_time / 1e9
    return 0.0
