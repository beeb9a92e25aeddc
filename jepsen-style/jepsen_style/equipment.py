"""What a run needs besides processes: hosts of their own, a faulty disk, a clock that jumps. Each kind can say why it cannot be had.

A nemesis or a workload names its needs; the cluster brings the equipment up before any node is configured, asks it for
what a node's process needs, and takes it down at the end. The list of all is equipment_registry.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jepsen_style.undo import UndoList

if TYPE_CHECKING:
    from jepsen_style.cluster import HostDaemon, OwnCluster


class Equipment(ABC):
    """One kind. In order: up, then for every node configure, data_dir; for every start of its process before_start,
    environment, inside, after_start; after_stop whenever the process has ended; heal as often as one likes; down.

    Only `missing` and `up` must be written. `down` and `heal` may be called though `up` failed half way. What would
    outlive a killed kit is noted in `undo` before it is made.
    """

    need: ClassVar[str]
    about: ClassVar[str]
    gives: ClassVar[frozenset[str]] = frozenset()
    """Other needs that this one serves as well, in the place of their own equipment."""

    def __init__(self, folder: Path, undo: UndoList) -> None:
        """folder: for its own files; made by whoever needs it, removed with the cluster."""
        self.folder = folder
        self.undo = undo

    @classmethod
    @abstractmethod
    def missing(cls) -> str:
        """Why it cannot be had on this machine, in words; "" when it can."""

    @abstractmethod
    def up(self, cluster: OwnCluster) -> None:
        """Make it, for the nodes `cluster.all_names`. Raises RuntimeError or OSError with the reason."""

    def configure(self, node: HostDaemon) -> None:  # noqa: B027
        """Change a node's address, or add lines to its configuration (`node.extra`), before that is written."""

    def data_dir(self, name: str, folder: Path) -> Path:  # noqa: ARG002
        """Where a node keeps its data; `folder` is where it would without this."""
        return folder

    def environment(self, name: str) -> dict[str, str]:  # noqa: ARG002
        """Variables for a node's process."""
        return {}

    def inside(self, name: str) -> list[str]:  # noqa: ARG002
        """What to put before a node's command. It must become the command (exec), so that signals reach it."""
        return []

    def before_start(self, name: str) -> None:  # noqa: B027
        """A node's process is about to be started."""

    def after_start(self, name: str, pid: int) -> None:  # noqa: B027
        """It was."""

    def after_stop(self, name: str) -> None:  # noqa: B027
        """A node's process was ended by the kit, and is gone."""

    def heal(self) -> None:  # noqa: B027
        """Undo all of its faults; nodes may be running or not."""

    def down(self) -> None:  # noqa: B027
        """Take it away; no node runs any more."""
