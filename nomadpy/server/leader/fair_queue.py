"""Whose turn it is among ready evaluations: fair between namespaces, by priority and age within one.

Each namespace has a clock of its own that moves on with every evaluation handed out, the slower the greater its weight and
the evaluation's priority; the namespace whose clock would stand lowest is next. A namespace that was idle begins at the
others' time, so it can neither save up turns nor be made to wait behind a thousand of somebody else's.

Pure. Source: start-time fair queueing (Goyal, Vin, Cheng, 1996); dominant shares (Ghodsi and others, NSDI 2011).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

Entry = tuple[int, int, str]
"""Minus the priority, the age (less is older), the evaluation's id."""

Cost = Callable[[str, int], float]
"""Namespace and priority to how far one evaluation moves the namespace's clock."""

_CLOCKS_KEPT = 10_000


def weighted(weights: dict[str, float], share: Callable[[str], float] | None = None) -> Cost:
    """Return the cost for namespaces of these weights (1 where none is given).

    share: how much of the cluster a namespace has, 0 to 1: one with twice the share has its turn half as often. Even at
    share 0 a turn costs something, or who can place nothing would starve the others.
    """

    def cost(namespace: str, priority: int) -> float:
        paid = 1.0 if share is None else 0.01 + share(namespace)
        return paid / (weights.get(namespace, 1.0) * max(priority, 1))

    return cost


class FairQueue:
    """Ready evaluations by kind of scheduler and namespace. Without a cost: by priority and age over all namespaces."""

    def __init__(self, cost: Cost | None = None) -> None:
        self.cost = cost
        self._heaps: dict[str, dict[str, list[Entry]]] = {}  # kind -> namespace -> heap
        self._clocks: dict[str, float] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return sum(len(heap) for queues in self._heaps.values() for heap in queues.values())

    def push(self, kind: str, namespace: str, entry: Entry) -> None:
        """Add an evaluation."""
        if not any(queues.get(namespace) for queues in self._heaps.values()):
            if len(self._clocks) >= _CLOCKS_KEPT:
                self._clocks = {n: at for n, at in self._clocks.items() if at > self._now}
            self._clocks[namespace] = max(self._clocks.get(namespace, 0.0), self._now)
        heapq.heappush(self._heaps.setdefault(kind, {}).setdefault(namespace, []), entry)

    def pop(self, kinds: Iterable[str]) -> str | None:
        """Take out the next evaluation of these kinds and return its id."""
        heads: dict[str, tuple[Entry, str]] = {}
        for kind in kinds:
            for namespace, heap in self._heaps.get(kind, {}).items():
                if namespace not in heads or heap[0] < heads[namespace][0]:
                    heads[namespace] = (heap[0], kind)
        if not heads:
            return None
        if self.cost is None:
            namespace = min(heads, key=lambda name: heads[name][0])
        else:
            ends = {
                name: self._clocks.get(name, self._now) + self.cost(name, -entry[0])
                for name, (entry, _) in heads.items()
            }
            namespace = min(heads, key=lambda name: (ends[name], heads[name][0]))
            self._now = max(self._now, self._clocks.get(namespace, self._now))
            self._clocks[namespace] = ends[namespace]
        (_, _, eval_id), kind = heads[namespace]
        heap = self._heaps[kind][namespace]
        heapq.heappop(heap)
        if not heap:
            del self._heaps[kind][namespace]
        return eval_id

    def discard(self, kind: str, namespace: str, eval_id: str) -> None:
        """Take an evaluation out, if it is in."""
        queues = self._heaps.get(kind, {})
        kept = [entry for entry in queues.get(namespace, ()) if entry[2] != eval_id]
        heapq.heapify(kept)
        if kept:
            queues[namespace] = kept
        else:
            queues.pop(namespace, None)

    def has(self, kinds: Iterable[str]) -> bool:
        """Whether `pop` would return something."""
        return any(self._heaps.get(kind) for kind in kinds)

    def clear(self) -> None:
        """Forget everything."""
        self._heaps.clear()
        self._clocks.clear()
        self._now = 0.0
