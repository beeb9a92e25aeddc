"""The equipment for starving nodes: every node in a control group of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jepsen_style.equipment import Equipment
from jepsen_style.res.cgroup import CONTROLLERS, Group, hand_down, machine_trees
from jepsen_style.undo import UndoList

if TYPE_CHECKING:
    from jepsen_style.cluster import OwnCluster


class Groups(Equipment):
    """One group for each node. What a node starts, such as tasks, is in it too, unless it goes elsewhere."""

    need: ClassVar[str] = "cgroup"
    about: ClassVar[str] = "a control group for every node"

    def __init__(self, folder: Path, undo: UndoList) -> None:
        super().__init__(folder, undo)
        self._tag = f"nomadpy-jepsen-{os.getpid()}"
        self._groups: dict[str, Group] = {}

    @classmethod
    def missing(cls) -> str:
        if os.geteuid() != 0:
            return "needs root"
        trees = machine_trees()
        reason = trees.missing()
        if reason or trees.is_old:
            return reason
        assert trees.new is not None
        try:
            # What is handed down already stays so: this changes nothing where the groups can be had.
            hand_down([trees.new])
        except OSError as error:
            return f"needs {', '.join(CONTROLLERS)} below {trees.new}: {error.strerror}"
        return ""

    def up(self, cluster: OwnCluster) -> None:
        trees = machine_trees()
        for top in trees.tops(self._tag):
            self.undo.note("cgroup", str(top))
        trees.prepare(self._tag)
        for name in cluster.all_names:
            self._groups[name] = trees.group(self._tag, name)
            self._groups[name].make()

    def inside(self, name: str) -> list[str]:
        return self._groups[name].inside()

    def of(self, name: str) -> Group:
        """A node's group."""
        return self._groups[name]

    def heal(self) -> None:
        for group in self._groups.values():
            group.heal()
