"""The nodes of one scheduling pass, with what is used on each as the pass plans stops and placements.

Belongs to one pass and changes with it. Every change is noted in `log`, so that the placers of several groups each
refresh only the nodes that changed since they last looked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nomadpy.models.allocation import Allocation
from nomadpy.models.node import Node
from nomadpy.scheduler.fit import (
    Amount,
    Capacity,
    capacity,
    client_terminal,
    server_terminal,
    usage,
)
from nomadpy.scheduler.ports import NodePorts
from nomadpy.scheduler.snapshot import Snapshot


class Change(NamedTuple):
    """An allocation came to a node (1) or left it (-1). place: the node's index in `Cluster.states`, or -1."""

    place: int
    node: Node
    group: str
    by: int


class NodeUsage:
    """What the live allocations of a node take, summed once for an unchanged list of allocations."""

    __slots__ = ("allocs", "amount", "have", "live", "node", "stopping")

    def __init__(self, node: Node, allocs: list[Allocation]) -> None:
        self.node = node
        self.allocs = allocs
        self.have = capacity(node)
        self.live: list[Allocation] = []
        self.stopping: list[Allocation] = []
        cpu = memory = disk = 0
        for alloc in allocs:
            if client_terminal(alloc):
                continue
            if server_terminal(alloc):
                self.stopping.append(alloc)
                continue
            self.live.append(alloc)
            amount = usage(alloc)
            cpu += amount.cpu
            memory += amount.memory_mb
            disk += amount.disk_mb
        self.amount = (cpu, memory, disk)


class UsageCache:
    """Sums per node, kept between passes. Only a speed-up: a node or list that differs is summed anew."""

    def __init__(self) -> None:
        self._known: dict[str, NodeUsage] = {}

    def get(self, node: Node, allocs: list[Allocation]) -> NodeUsage:
        """Return the sums of the node with these allocations."""
        known = self._known.get(node.id)
        if known is None or known.node is not node or known.allocs != allocs:
            known = self._known[node.id] = NodeUsage(node, allocs)
        return known

    def keep_only(self, node_ids: set[str]) -> None:
        """Forget nodes that are gone."""
        for node_id in self._known.keys() - node_ids:
            del self._known[node_id]


class NodeState:
    """One node in a pass: capacity, what is used, and how many allocations of the job each group has there."""

    __slots__ = (
        "_live",
        "_ports",
        "_usage",
        "count",
        "cpu",
        "disk_mb",
        "groups",
        "have",
        "index",
        "memory_mb",
        "node",
    )

    def __init__(self, index: int, use: NodeUsage) -> None:
        self.index = index
        self.node = use.node
        self.have: Capacity = use.have
        self.cpu, self.memory_mb, self.disk_mb = use.amount
        self.count = len(use.live)
        self.groups: dict[str, int] = {}
        self._usage = use
        self._live: dict[str, Allocation] | None = None
        self._ports: NodePorts | None = None

    def live(self) -> dict[str, Allocation]:
        """The allocations that count on the node, by id."""
        if self._live is None:
            self._live = {alloc.id: alloc for alloc in self._usage.live}
        return self._live

    def ports(self) -> NodePorts:
        """The node's ports as they are now; assigning takes from it."""
        if self._ports is None:
            self._ports = NodePorts(self.node)
            for alloc in self.live().values():
                self._ports.add(alloc)
            for alloc in self._usage.stopping:
                self._ports.add_stopping(alloc)
        return self._ports

    def forget_ports(self) -> None:
        """Undo assignments that no allocation came to hold."""
        self._ports = None

    def free_cores(self) -> list[int]:
        """The ids of cores that no allocation holds, ascending."""
        taken: set[int] = set()
        for alloc in self.live().values():
            taken |= usage(alloc).cores
        return sorted(self.have.cores - taken)

    def change(self, alloc: Allocation, amount: Amount, by: int) -> None:
        """Add an allocation (by 1; its ports have been assigned already) or take it away (by -1)."""
        self.cpu += by * amount.cpu
        self.memory_mb += by * amount.memory_mb
        self.disk_mb += by * amount.disk_mb
        self.count += by
        if by > 0:
            self.live()[alloc.id] = alloc
        else:
            del self.live()[alloc.id]
            self._ports = None


class Cluster:
    """The ready nodes of a job, by id, and the job's live allocations."""

    def __init__(
        self,
        snapshot: Snapshot,
        nodes: Iterable[Node],
        job_allocs: Iterable[Allocation],
        cache: UsageCache,
    ) -> None:
        self._snapshot = snapshot
        self._cache = cache
        self.log: list[Change] = []
        self.states = [NodeState(index, self._use(node)) for index, node in enumerate(nodes)]
        self._by_id = {state.node.id: state for state in self.states}
        self.job_allocs: dict[str, tuple[Node, str]] = {}
        for alloc in job_allocs:
            state = self._by_id.get(alloc.node_id)
            node = state.node if state else snapshot.node(alloc.node_id)
            if node is None:
                continue
            self.job_allocs[alloc.id] = (node, alloc.task_group)
            if state is not None:
                state.groups[alloc.task_group] = state.groups.get(alloc.task_group, 0) + 1

    def get(self, node_id: str) -> NodeState | None:
        """The state of a ready node."""
        return self._by_id.get(node_id)

    def any_node(self, node_id: str) -> NodeState | None:
        """The state of a node that need not be ready; a fresh one when it is not."""
        state = self._by_id.get(node_id)
        if state is None:
            node = self._snapshot.node(node_id)
            if node is not None:
                state = NodeState(-1, self._use(node))
        return state

    def place(self, state: NodeState, alloc: Allocation, amount: Amount) -> None:
        """Count a new allocation on a node."""
        state.change(alloc, amount, 1)
        self.job_allocs[alloc.id] = (state.node, alloc.task_group)
        state.groups[alloc.task_group] = state.groups.get(alloc.task_group, 0) + 1
        self.log.append(Change(state.index, state.node, alloc.task_group, 1))

    def remove(self, alloc: Allocation) -> None:
        """Free what an allocation of the job holds; one that is not counted is ignored."""
        held = self.job_allocs.pop(alloc.id, None)
        if held is None:
            return
        node, group = held
        state = self._by_id.get(node.id)
        if state is not None:
            state.groups[group] -= 1
            if alloc.id in state.live():
                state.change(alloc, usage(alloc), -1)
        self.log.append(Change(state.index if state else -1, node, group, -1))

    def restore(self, alloc: Allocation) -> None:
        """Undo `remove`: the allocation stays after all."""
        node = self._snapshot.node(alloc.node_id)
        if node is None:
            return
        state = self._by_id.get(node.id)
        self.job_allocs[alloc.id] = (node, alloc.task_group)
        if state is not None:
            state.groups[alloc.task_group] = state.groups.get(alloc.task_group, 0) + 1
            state.change(alloc, usage(alloc), 1)
            state.forget_ports()
        self.log.append(Change(state.index if state else -1, node, alloc.task_group, 1))

    def _use(self, node: Node) -> NodeUsage:
        return self._cache.get(node, list(self._snapshot.allocs_by_node(node.id)))
