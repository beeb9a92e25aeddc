"""The equipment for faults of clocks: every node lives by a wall clock of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jepsen_style.clock.skew import FaultyClock, build, compiler, environment
from jepsen_style.equipment import Equipment
from jepsen_style.undo import UndoList

if TYPE_CHECKING:
    from jepsen_style.cluster import OwnCluster


class Clocks(Equipment):
    """A clock for each node, right at first. What a node starts, such as tasks, lives by its clock too."""

    need: ClassVar[str] = "skew"
    about: ClassVar[str] = "a wall clock of its own for every node"

    def __init__(self, folder: Path, undo: UndoList) -> None:
        super().__init__(folder, undo)
        self._clocks: dict[str, FaultyClock] = {}
        self._library = Path()

    @classmethod
    def missing(cls) -> str:
        return "" if compiler() else "needs a C compiler"

    def up(self, cluster: OwnCluster) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._library = build(self.folder)
        for name in cluster.all_names:
            self._clocks[name] = FaultyClock(self.folder / f"{name}.clock")

    def environment(self, name: str) -> dict[str, str]:
        return environment(self._library, self._clocks[name].file)

    def of(self, name: str) -> FaultyClock:
        """A node's clock."""
        return self._clocks[name]

    def heal(self) -> None:
        for clock in self._clocks.values():
            clock.heal()

    def down(self) -> None:
        for clock in self._clocks.values():
            clock.close()
        self._clocks = {}
