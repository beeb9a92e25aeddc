"""How much of the cluster each namespace has: its dominant share, the largest of its shares of cpu, memory and disk.

Kept current from the change feed; only asked for when evaluations are ordered by it (`fair_share { mode = "dominant" }`).
"""

from __future__ import annotations

from nomadpy.models.allocation import Allocation
from nomadpy.models.node import Node
from nomadpy.scheduler.fit import capacity, terminal, usage
from nomadpy.state.changes import ChangeSet
from nomadpy.state.store import Snapshot


class Shares:
    """Sums over live allocations by namespace, and over all nodes."""

    def __init__(self) -> None:
        self._used: dict[str, list[int]] = {}
        self._have = [0, 0, 0]

    def restore(self, snapshot: Snapshot) -> None:
        """Begin anew from a state."""
        self._used.clear()
        self._have = [0, 0, 0]
        for node in snapshot.nodes():
            self._node(node, 1)
        for alloc in snapshot.allocs():
            self._alloc(alloc, 1)

    def note(self, changes: ChangeSet) -> None:
        """Follow one entry."""
        for change in changes.changes:
            if change.table == "allocs":
                self._alloc(change.before, -1)
                self._alloc(change.after, 1)
            elif change.table == "nodes":
                self._node(change.before, -1)
                self._node(change.after, 1)

    def dominant(self, namespace: str) -> float:
        """Return the largest share that the namespace has of any resource, 0 to 1."""
        used = self._used.get(namespace)
        if used is None:
            return 0.0
        shares = [mine / all_ for mine, all_ in zip(used, self._have, strict=True) if all_ > 0]
        return min(1.0, max(shares, default=0.0))

    def _alloc(self, alloc: Allocation | None, by: int) -> None:
        if alloc is None or terminal(alloc):
            return
        amount = usage(alloc)
        used = self._used.setdefault(alloc.namespace, [0, 0, 0])
        for place, value in enumerate((amount.cpu, amount.memory_mb, amount.disk_mb)):
            used[place] += by * value
        if not any(used):
            del self._used[alloc.namespace]

    def _node(self, node: Node | None, by: int) -> None:
        if node is None or node.status == "down":
            return
        have = capacity(node)
        for place, value in enumerate((have.cpu, have.memory_mb, have.disk_mb)):
            self._have[place] += by * value
