"""The nodes of one scheduling pass, with what is used on each as the pass plans stops and placements.

Belongs to one pass and changes with it, while the node table that it is laid over stays. Every change is noted in `log`, so that the placers of several groups each
refresh only the nodes that changed since they last looked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nomadpy.models.allocation import Allocation
from nomadpy.models.node import Node
from nomadpy.scheduler.cores import count as count_cores
from nomadpy.scheduler.devices import count as count_devices
from nomadpy.scheduler.fit import Amount, Capacity, client_terminal, server_terminal, usage
from nomadpy.scheduler.node_table import NodeRow, NodeTable, NodeView
from nomadpy.scheduler.ports import NodePorts
from nomadpy.scheduler.snapshot import Snapshot


class Change(NamedTuple):
    """An allocation came to a node (1) or left it (-1); one of another job left (0).

    place: the node's place in the view, or -1.
    """

    place: int
    node: Node
    group: str
    by: int


class NodeState:
    """One node in a pass: capacity, what is used, and how many allocations of the job each group has there."""

    __slots__ = (
        "_came",
        "_ports",
        "_table",
        "_went",
        "cores",
        "count",
        "cpu",
        "devices",
        "disk_mb",
        "groups",
        "have",
        "index",
        "memory_mb",
        "node",
    )

    def __init__(self, index: int, row: NodeRow, table: NodeTable) -> None:
        self.index = index
        self.node = row.node
        self.have: Capacity = row.have
        self.cpu, self.memory_mb, self.disk_mb = row.cpu, row.memory_mb, row.disk_mb
        self.count = row.count
        self.cores, self.devices = row.cores, row.devices
        self.groups: dict[str, int] = {}
        self._table = table
        self._came: dict[str, Allocation] = {}
        self._went: set[str] = set()
        self._ports: NodePorts | None = None

    def ports(self) -> NodePorts:
        """The node's ports as they are now; assigning takes from it."""
        if self._ports is None:
            self._ports = NodePorts(self.node)
            for alloc in self._present():
                if not server_terminal(alloc):
                    self._ports.add(alloc)
                else:
                    self._ports.add_stopping(alloc)
        return self._ports

    def forget_ports(self) -> None:
        """Undo assignments that no allocation came to hold."""
        self._ports = None

    def change(self, alloc: Allocation, amount: Amount, by: int) -> None:
        """Add an allocation (by 1; its ports have been assigned already) or take it away (by -1)."""
        self.cpu += by * amount.cpu
        self.memory_mb += by * amount.memory_mb
        self.disk_mb += by * amount.disk_mb
        self.count += by
        if amount.cores:
            # The row's own until the first change.
            self.cores = dict(self.cores)
            count_cores(self.cores, amount.cores, by)
        if amount.devices:
            self.devices = dict(self.devices)
            count_devices(self.devices, amount.devices, by)
        if by > 0:
            self._came[alloc.id] = alloc
            self._went.discard(alloc.id)
        else:
            self._came.pop(alloc.id, None)
            self._went.add(alloc.id)
            self._ports = None

    def wanted(self) -> list[Allocation]:
        """What runs on the node and shall go on, as the pass has it."""
        return [alloc for alloc in self._present() if not server_terminal(alloc)]

    def _present(self) -> list[Allocation]:
        """What runs on the node, or has yet to exit."""
        known = [
            alloc
            for alloc in self._table.allocs(self.node.id)
            if not client_terminal(alloc)
            and alloc.id not in self._went
            and alloc.id not in self._came
        ]
        return [*known, *self._came.values()]


class Cluster:
    """The ready nodes of a job, by id, and the job's live allocations. States are made for the nodes that are asked for."""

    def __init__(
        self,
        snapshot: Snapshot,
        table: NodeTable,
        view: NodeView,
        job_allocs: Iterable[Allocation],
    ) -> None:
        self.snapshot = snapshot
        self._table = table
        self.view = view
        self.log: list[Change] = []
        self._states: dict[int, NodeState] = {}
        self.job_allocs: dict[str, tuple[Node, str]] = {}
        for alloc in job_allocs:
            state = self.get(alloc.node_id)
            node = state.node if state else snapshot.node(alloc.node_id)
            if node is None:
                continue
            self.job_allocs[alloc.id] = (node, alloc.task_group)
            if state is not None:
                state.groups[alloc.task_group] = state.groups.get(alloc.task_group, 0) + 1

    def state(self, index: int) -> NodeState:
        """The state of the node at a place of the view."""
        found = self._states.get(index)
        if found is None:
            found = NodeState(index, self.view.rows[index], self._table)
            self._states[index] = found
        return found

    def get(self, node_id: str) -> NodeState | None:
        """The state of a ready node."""
        index = self.view.place.get(node_id)
        return None if index is None else self.state(index)

    def touched(self) -> list[int]:
        """Places, ascending, of all nodes that may differ from what the view says of them."""
        return sorted(self._states)

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
        state = self.get(node.id)
        if state is not None:
            state.groups[group] -= 1
            state.change(alloc, usage(alloc), -1)
        self.log.append(Change(state.index if state else -1, node, group, -1))

    def evict(self, state: NodeState, alloc: Allocation) -> None:
        """Free what an allocation of another job holds on a node."""
        state.change(alloc, usage(alloc), -1)
        # Counted for no group: what the job's own allocations forbid stays as it is.
        self.log.append(Change(state.index, state.node, "", 0))

    def keep(self, state: NodeState, alloc: Allocation) -> None:
        """Undo `evict`: the allocation stays after all."""
        state.change(alloc, usage(alloc), 1)
        state.forget_ports()
        self.log.append(Change(state.index, state.node, "", 0))

    def restore(self, alloc: Allocation) -> None:
        """Undo `remove`: the allocation stays after all."""
        node = self.snapshot.node(alloc.node_id)
        if node is None:
            return
        state = self.get(node.id)
        self.job_allocs[alloc.id] = (node, alloc.task_group)
        if state is not None:
            state.groups[alloc.task_group] = state.groups.get(alloc.task_group, 0) + 1
            state.change(alloc, usage(alloc), 1)
            state.forget_ports()
        self.log.append(Change(state.index if state else -1, node, alloc.task_group, 1))
