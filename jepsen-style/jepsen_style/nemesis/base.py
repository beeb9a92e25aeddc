"""What every nemesis has: a beginning and an end, and whom it strikes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

from jepsen_style.cluster import OwnCluster
from nomadpy.entropy import Entropy

Target = Literal["leader", "one", "majority", "all"]
TARGETS: tuple[Target, ...] = ("leader", "one", "majority", "all")

Note = Callable[[str, str], None]
"""Records an event: what, and of which node."""


class Nemesis(ABC):
    """One fault. `end` may be called though `begin` failed half way, and undoes whatever was done."""

    def __init__(self, cluster: OwnCluster, note: Note) -> None:
        self.cluster = cluster
        self.note = note

    @abstractmethod
    def begin(self, source: Entropy) -> str:
        """Strike; return in words what was done."""

    @abstractmethod
    def end(self) -> None:
        """Undo it."""


def targets(cluster: OwnCluster, target: Target, source: Entropy) -> list[str]:
    """The nodes that are meant; one of them by chance when nobody leads."""
    names = list(cluster.names)
    source.shuffle(names)
    if target == "leader":
        return [cluster.leader() or names[0]]
    count = {"one": 1, "majority": len(names) // 2 + 1, "all": len(names)}[target]
    return sorted(names[:count])
