"""Faults of disks: errors, no room, slowness, lies. A server whose disk fails stops; it is started again when the disk is well."""

from __future__ import annotations

from collections.abc import Callable

from jepsen_style.checker.monotonic import RESTARTS
from jepsen_style.cluster import OwnCluster
from jepsen_style.disk.mount import Disks, Mount
from jepsen_style.nemesis.base import Nemesis, Note, Target, targets
from nomadpy.entropy import Entropy

SYNCS = ["fsync", "fsyncdir"]
CHANGES = ["write", "truncate", "create", "rename", "unlink", "mkdir"]

Fault = Callable[[Mount, Entropy], str]
"""Puts a fault into force at one disk and returns it in words."""


def disks(cluster: OwnCluster) -> Disks:
    """The disks of a cluster that has some."""
    found = cluster.equipment[Disks.need]
    assert isinstance(found, Disks)
    return found


def eio(mount: Mount, source: Entropy) -> str:
    """Input and output errors, now and then or always."""
    operations = source.choice((["write"], SYNCS, ["write", "create", "rename", *SYNCS]))
    probability = source.choice((1.0, 0.1))
    mount.ask("fault", operations=operations, probability=probability, error="EIO")
    return f"EIO of {' '.join(operations)}, probability {probability:g}"


def enospc(mount: Mount, source: Entropy) -> str:
    """No room but for a few kilobytes."""
    free = int(source.uniform(0, 32768))
    mount.ask("space", free=free)
    return f"{free} bytes left"


def readonly(mount: Mount, source: Entropy) -> str:  # noqa: ARG001
    """Read-only, as after an error that the kernel found."""
    mount.ask("fault", operations=CHANGES, error="EROFS")
    return "read-only"


def slow(mount: Mount, source: Entropy) -> str:
    """Every fsync takes its time."""
    delay_s = round(source.uniform(0.05, 1.5), 2)
    mount.ask("fault", operations=SYNCS, delay_s=delay_s)
    return f"fsync takes {delay_s:g} s"


def lie(mount: Mount, source: Entropy) -> str:  # noqa: ARG001
    """fsync says yes and does nothing; harmless as long as the power stays."""
    mount.ask("fault", operations=SYNCS, lie=True)
    return "fsync lies"


FAULTS: dict[str, Fault] = {
    "eio": eio,
    "enospc": enospc,
    "readonly": readonly,
    "slow": slow,
    "lie": lie,
}


class DiskFault(Nemesis):
    """Some servers' disks do not do what they should."""

    def __init__(self, cluster: OwnCluster, note: Note, target: Target, fault: Fault) -> None:
        super().__init__(cluster, note)
        self._target = target
        self._fault = fault
        self._struck: list[str] = []

    def begin(self, source: Entropy) -> str:
        self._struck = targets(self.cluster, self._target, source)
        mounts = disks(self.cluster).mounts
        return "; ".join(f"{n}: {self._fault(mounts[n], source)}" for n in self._struck)

    def end(self) -> None:
        for name in self._struck:
            disks(self.cluster).mounts[name].ask("clear")
        for name in self._struck:
            if self.cluster.start_node(name):
                self.note(RESTARTS, name)
        self._struck = []
