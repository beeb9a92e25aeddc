"""Power cuts: the process dies, and with it every byte and every name that no fsync has made durable."""

from __future__ import annotations

from jepsen_style.checker.monotonic import RESTARTS
from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note, targets
from jepsen_style.nemesis.disk import SYNCS, disks
from jepsen_style.nemesis.process import Kill
from nomadpy.entropy import Entropy

TORN = (0.0, 0.3, 0.7)
"""How likely an unsynced sector is on the disk all the same: nothing of it, some, most."""


def cut_power(cluster: OwnCluster, names: list[str], torn: float) -> str:
    """Kill servers at once, and take back what their disks had not made durable; they stay off."""
    for name in names:
        cluster.kill(name)
    said = []
    for name in names:
        lost = disks(cluster).mounts[name].cut(torn)
        said.append(f"{name} lost {lost['sectors']} sectors and {lost['names']} names")
    return ", ".join(said)


class PowerCut(Kill):
    """The power of some servers goes, and comes back at the end."""

    def begin(self, source: Entropy) -> str:
        self._struck = targets(self.cluster, self._target, source)
        torn = source.choice(TORN)
        return f"{cut_power(self.cluster, self._struck, torn)}; torn {torn:g}"


class LyingDisks(Nemesis):
    """All disks lie about fsync for a while, then the power of all goes: what no program can survive.

    It is no test of the servers but of the checkers, which must find what was lost.
    """

    def __init__(self, cluster: OwnCluster, note: Note) -> None:
        super().__init__(cluster, note)
        self._lying = False

    def begin(self, source: Entropy) -> str:  # noqa: ARG002
        self._lying = True
        for mount in disks(self.cluster).mounts.values():
            mount.ask("fault", operations=SYNCS, lie=True)
        return "all disks lie about fsync until the power goes"

    def end(self) -> None:
        if not self._lying:
            return
        self._lying = False
        names = list(self.cluster.names)
        self.note(cut_power(self.cluster, names, 0.0), "")
        for name in names:
            self.cluster.start_node(name)
            self.note(RESTARTS, name)
