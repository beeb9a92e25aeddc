"""The nodes as the scheduler sees them, kept from pass to pass: who is ready for which jobs, and what is used on each.

Kept current from the change feed, so that a pass on a thousand nodes costs what changed since the last one. The table
only saves time: whenever it cannot know every change up to a snapshot, it reads that snapshot anew, and a pass without
a table chooses the same.

In:      change sets (`note`), from the thread that applies entries; snapshots, from the thread that schedules.
Out:     views of the nodes for a job, and the allocations of a node with what is assumed of it.
Not here: what one pass plans (cluster.py); who may run what (standing.py).
"""

from __future__ import annotations

import collections
from collections.abc import Container, Hashable, Iterable
from typing import Any

from nomadpy.models.allocation import Allocation
from nomadpy.models.job import Job
from nomadpy.models.node import Node
from nomadpy.models.plan import Plan
from nomadpy.models.resources import AllocatedResources
from nomadpy.scheduler.cores import count as count_cores
from nomadpy.scheduler.devices import WHOLE, DeviceKey
from nomadpy.scheduler.devices import count as count_devices
from nomadpy.scheduler.feasibility import ready_nodes
from nomadpy.scheduler.fit import (
    Amount,
    Capacity,
    NodePlan,
    capacity,
    first_shortage,
    node_plan_fits,
    not_ready,
    terminal,
    usage,
)
from nomadpy.scheduler.gpu_aware import Beside, PerDevice, usual
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.state.changes import Change, ChangeSet

FEED_LIMIT = 20_000
"""Change sets that wait for a pass; beyond it the table reads the state anew."""
_LOG_LIMIT = 50_000
_VIEWS_KEPT = 32
_STANDINGS_KEPT = 64


class NodeRow:
    """One node: what it has, and what its live allocations take (MHz, MiB, MiB, cores, devices) and how many they are.

    cores: how many hold each. devices: thousandths that are taken of each. beside: what the holders of devices hold.
    """

    __slots__ = (
        "beside",
        "cores",
        "count",
        "cpu",
        "devices",
        "disk_mb",
        "have",
        "memory_mb",
        "node",
    )

    def __init__(self, node: Node, allocs: Iterable[Allocation]) -> None:
        self.node = node
        self.have: Capacity = capacity(node)
        self.cpu = self.memory_mb = self.disk_mb = self.count = 0
        self.cores: dict[int, int] = {}
        self.devices: dict[DeviceKey, int] = {}
        self.beside = Beside()
        for alloc in allocs:
            if not terminal(alloc):
                self.add(usage(alloc), 1)

    def add(self, amount: Amount, by: int) -> None:
        """Count an allocation (by 1) or no longer (-1)."""
        self.cpu += by * amount.cpu
        self.memory_mb += by * amount.memory_mb
        self.disk_mb += by * amount.disk_mb
        self.count += by
        if amount.cores:
            count_cores(self.cores, amount.cores, by)
        if amount.devices:
            count_devices(self.devices, amount.devices, by)
            self.beside = _with(self.beside, amount, by)


class NodeView:
    """The ready nodes of one pool in some datacenters, by id; a place is an index in `rows`.

    standings: whatever is kept about groups on these nodes, by what it depends on. log: places whose row changed, in
    order; who keeps something of a row remembers how far it has read.
    """

    def __init__(self, rows: list[NodeRow], in_pool: int, by_datacenter: dict[str, int]) -> None:
        self.rows = rows
        self.in_pool = in_pool
        self.by_datacenter = by_datacenter
        self.place = {row.node.id: place for place, row in enumerate(rows)}
        self.log: list[int] = []
        self._held = _summed(row.beside for row in rows)
        self._there = _summed(
            Beside(row.have.cpu, row.have.memory_mb, WHOLE * count)
            for row in rows
            if (count := sum(len(group.keys) for group in row.have.devices))
        )
        self._standings: dict[Hashable, Any] = {}

    def standing(self, key: Hashable) -> Any:
        """Return what is kept under a key, or None."""
        found = self._standings.pop(key, None)
        if found is not None:
            self._standings[key] = found
        return found

    def keep(self, key: Hashable, standing: object) -> None:
        """Keep something; what was not asked for the longest goes."""
        while len(self._standings) >= _STANDINGS_KEPT:
            del self._standings[next(iter(self._standings))]
        self._standings[key] = standing

    def per_device(self) -> PerDevice:
        """Return what is usual beside a device on these nodes."""
        return usual(self._held, self._there)

    def changed(self, node_id: str, amount: Amount, by: int) -> None:
        """Note that an amount came to the row of a node (by 1) or went from it (-1)."""
        place = self.place.get(node_id)
        if place is None:
            return
        if amount.devices:
            self._held = _with(self._held, amount, by)
        if len(self.log) >= _LOG_LIMIT:
            self._standings.clear()
            self.log.clear()
        self.log.append(place)


class NodeTable:
    """All of it, for one scheduler. `note` may be called from another thread than the rest."""

    def __init__(self) -> None:
        self._feed: collections.deque[tuple[int, list[Change]]] = collections.deque()
        self._noted = -1
        self._gap = -1  # the newest change that was not kept
        self._index = -1
        self._snapshot: Snapshot | None = None
        self._rows: dict[str, NodeRow] = {}
        self._views: dict[tuple[str, tuple[str, ...] | None], NodeView] = {}
        self._assumed: list[tuple[Allocation | None, Allocation | None]] = []
        # By node: allocations as assumed, by id; None for one that is assumed to be gone.
        self._instead: dict[str, dict[str, Allocation | None]] = {}
        # What was last looked at, and what was found: allocations of one plan often share their resources.
        self._amount: tuple[AllocatedResources | None, Amount] = (None, Amount())
        self._sums_do: tuple[AllocatedResources | None, bool] = (None, False)

    def note(self, changes: ChangeSet) -> None:
        """Take the changes of one entry; every entry in order, or a later pass reads the state anew."""
        if changes.restored or len(self._feed) >= FEED_LIMIT:
            self._gap = changes.index
        else:
            kept = [one for one in changes.changes if one.table in ("allocs", "nodes")]
            if kept:
                self._feed.append((changes.index, kept))
        self._noted = changes.index

    def clear(self) -> None:
        """Forget everything but what has been noted since."""
        self._gap = max(self._gap, self._index)
        self._index = -1
        self._rows.clear()
        self._views.clear()

    def catch_up(self, snapshot: Snapshot) -> bool:
        """Move on to a snapshot; False, and nothing is done, when the table is past it."""
        index = snapshot.index
        if index < self._index:
            return False
        noted, gap = self._noted, self._gap
        anew = gap > self._index or (index > self._index and noted < index)
        if anew:
            self._rows.clear()
            self._views.clear()
        changed: list[str] = []
        while self._feed and self._feed[0][0] <= index:
            at, changes = self._feed.popleft()
            if at > self._index and not anew:
                changed += self._apply(changes)
        self._index, self._snapshot = index, snapshot
        for node_id in changed:
            # Now rather than in the next pass, which would meet all new nodes at once.
            self.row(node_id)
        return True

    def view(self, job: Job) -> NodeView:
        """Return the nodes that a job may use at all."""
        datacenters = None if job.datacenters is None else tuple(job.datacenters)
        key = (job.node_pool, datacenters)
        view = self._views.get(key)
        if view is None:
            ready = ready_nodes(self._state, job)
            view = NodeView(
                [self._row(node) for node in ready.nodes], ready.in_pool, ready.by_datacenter
            )
            if len(self._views) >= _VIEWS_KEPT:
                self._views.clear()
            self._views[key] = view
        return view

    def row(self, node_id: str) -> NodeRow | None:
        """Return a node, ready or not."""
        node = self._state.node(node_id)
        return None if node is None else self._row(node)

    def plan_fits(self, node_id: str, wanted: NodePlan, known: Container[str]) -> tuple[bool, str]:
        """Whether a plan's part on one node holds with all that is assumed; the reason when not.

        known: ids of the plan's placements that exist already.
        As `fit.node_plan_fits` says it, without adding up what is there where sums are all that counts.
        """
        node = self._state.node(node_id)
        if node is None or not wanted.placements or any(map(self._individual, wanted.placements)):
            return node_plan_fits(node, self.allocs(node_id) if node else (), wanted)
        row = self._row(node)
        cpu, memory_mb, disk_mb, count = row.cpu, row.memory_mb, row.disk_mb, row.count
        gone = {
            stop.alloc_id: self.alloc(node_id, stop.alloc_id)
            for stop in wanted.stops
            if stop.desired_status != "run"
        }
        new = False
        for alloc in wanted.placements:
            present = self.alloc(node_id, alloc.id) if alloc.id in known else None
            if present is None or present.node_id != node_id or terminal(present):
                new = True
            else:
                gone[alloc.id] = present
            if not terminal(alloc):
                amount = self._usage(alloc)
                cpu += amount.cpu
                memory_mb += amount.memory_mb
                disk_mb += amount.disk_mb
                count += 1
        for one in gone.values():
            if one is not None and one.node_id == node_id and not terminal(one):
                amount = usage(one)
                cpu -= amount.cpu
                memory_mb -= amount.memory_mb
                disk_mb -= amount.disk_mb
                count -= 1
        if new and (refused := not_ready(node)):
            return False, refused
        shortage = first_shortage(row.have, cpu, memory_mb, disk_mb)
        if not shortage and row.have.max_allocs and count > row.have.max_allocs:
            shortage = "max allocations exceeded"
        return not shortage, shortage

    def alloc(self, node_id: str, alloc_id: str) -> Allocation | None:
        """Return an allocation of a node with what is assumed of it."""
        instead = self._instead.get(node_id)
        if instead is not None and alloc_id in instead:
            return instead[alloc_id]
        return self._state.alloc(alloc_id)

    def allocs(self, node_id: str) -> list[Allocation]:
        """Return the allocations of a node, terminal ones included, with what is assumed of them."""
        present = list(self._state.allocs_by_node(node_id))
        instead = self._instead.get(node_id)
        if not instead:
            return present
        kept = [alloc for alloc in present if alloc.id not in instead]
        return [*kept, *(alloc for alloc in instead.values() if alloc is not None)]

    def assume(self, plan: Plan) -> None:
        """Count a plan as if it had been applied, until `forget_assumed`."""
        for stop in plan.stops:
            alloc = self.alloc(stop.node_id, stop.alloc_id)
            if stop.desired_status != "run" and alloc is not None:
                self._assume(stop.node_id, stop.alloc_id, alloc, None)
        for alloc in plan.placements:
            self._assume(alloc.node_id, alloc.id, self.alloc(alloc.node_id, alloc.id), alloc)

    def forget_assumed(self) -> None:
        """Take back everything that was assumed."""
        self._instead.clear()
        for before, after in reversed(self._assumed):
            self._count(after, before)
        self._assumed.clear()

    @property
    def _state(self) -> Snapshot:
        assert self._snapshot is not None, "catch_up comes first"
        return self._snapshot

    def _assume(
        self, node_id: str, alloc_id: str, before: Allocation | None, after: Allocation | None
    ) -> None:
        self._instead.setdefault(node_id, {})[alloc_id] = after
        self._assumed.append((before, after))
        self._count(before, after)

    def _apply(self, changes: list[Change]) -> list[str]:
        """Take changes over; returns the nodes whose rows are to be made anew."""
        nodes: list[str] = []
        for change in changes:
            if change.table == "allocs":
                self._count(change.before, change.after)
            else:
                self._rows.pop(change.key, None)
                self._views.clear()
                nodes.append(change.key)
        return nodes

    def _count(self, before: Allocation | None, after: Allocation | None) -> None:
        """Move the sums from one state of an allocation to the next."""
        old = None if before is None or terminal(before) else before
        new = None if after is None or terminal(after) else after
        if (
            old is not None
            and new is not None
            and old.allocated_resources is new.allocated_resources
            and old.node_id == new.node_id
        ):
            return
        if old is not None:
            self._add(old, -1)
        if new is not None:
            self._add(new, 1)

    def _add(self, alloc: Allocation, by: int) -> None:
        row = self._rows.get(alloc.node_id)
        if row is not None:
            amount = self._usage(alloc)
            row.add(amount, by)
            for view in self._views.values():
                view.changed(alloc.node_id, amount, by)

    def _usage(self, alloc: Allocation) -> Amount:
        """What an allocation takes; those of one plan often share one object that says so."""
        resources, amount = self._amount
        if resources is None or alloc.allocated_resources is not resources:
            amount = usage(alloc)
            self._amount = (alloc.allocated_resources, amount)
        return amount

    def _individual(self, alloc: Allocation) -> bool:
        resources, individual = self._sums_do
        if resources is None or alloc.allocated_resources is not resources:
            individual = _is_individual(alloc)
            self._sums_do = (alloc.allocated_resources, individual)
        return individual

    def _row(self, node: Node) -> NodeRow:
        row = self._rows.get(node.id)
        if row is None:
            row = self._rows[node.id] = NodeRow(node, self.allocs(node.id))
        return row


def _with(beside: Beside, amount: Amount, by: int) -> Beside:
    milli = sum(milli for _, milli in amount.devices)
    return beside.plus(by * amount.cpu, by * amount.memory_mb, by * milli)


def _summed(all_of_them: Iterable[Beside]) -> Beside:
    total = Beside()
    for one in all_of_them:
        if one.milli:
            total = total.plus(*one)
    return total


def _is_individual(alloc: Allocation) -> bool:
    """Whether the allocation holds ports, cores or devices, which sums do not tell."""
    resources = alloc.allocated_resources
    if resources is None:
        return False
    if resources.shared.ports or resources.shared.networks:
        return True
    return any(
        task.networks or task.cpu.reserved_cores or task.devices
        for task in (resources.tasks or {}).values()
    )
