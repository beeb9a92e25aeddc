"""Nodes that were refused and why, counted by reason and by node class as allocation metrics tell it."""

from __future__ import annotations

from nomadpy.models.node import Node


class GrantError(Exception):
    """What is asked cannot be had on this node; the text is the exhausted dimension."""


class Refusals:
    """Refusals by the place of the node. Made upon others, it starts with theirs and leaves them as they are."""

    __slots__ = ("_base", "_own", "by_class", "by_reason", "changes", "count")

    def __init__(self, base: Refusals | None = None) -> None:
        """base: must not change while this one is in use."""
        self._base = base
        # "" hides what the base says of the place.
        self._own: dict[int, str] = {}
        self.by_reason: dict[str, int] = {} if base is None else dict(base.by_reason)
        self.by_class: dict[str, int] = {} if base is None else dict(base.by_class)
        self.count: int = 0 if base is None else base.count
        self.changes = 0  # rises with every change, so that sums can be kept until then

    def reason(self, place: int) -> str:
        """Why the node was refused, or ""."""
        if not self.count:
            return ""
        found = self._own.get(place)
        if found is None and self._base is not None:
            return self._base.reason(place)
        return found or ""

    def places(self) -> list[int]:
        """Where refused nodes are, ascending."""
        found = [] if self._base is None else [p for p in self._base.places() if p not in self._own]
        return sorted([*found, *(place for place, reason in self._own.items() if reason)])

    def add(self, place: int, node: Node, reason: str) -> None:
        """Note a refusal; an earlier one of the same node is replaced."""
        self.discard(place, node)
        self._own[place] = reason
        self._count(node, reason, 1)

    def discard(self, place: int, node: Node) -> None:
        """Forget the refusal of a node, if any."""
        reason = self.reason(place)
        if not reason:
            return
        if self._base is None:
            del self._own[place]
        else:
            self._own[place] = ""
        self._count(node, reason, -1)

    def _count(self, node: Node, reason: str, by: int) -> None:
        self.count += by
        self.changes += 1
        self.by_reason[reason] = self.by_reason.get(reason, 0) + by
        if node.node_class:
            self.by_class[node.node_class] = self.by_class.get(node.node_class, 0) + by


def summed(tallies: list[dict[str, int]]) -> dict[str, int] | None:
    """Return the sums of several counts by word, in the order of the words; None when nothing counts."""
    counts: dict[str, int] = {}
    for tally in tallies:
        for word, number in tally.items():
            if number:
                counts[word] = counts.get(word, 0) + number
    return dict(sorted(counts.items())) or None
