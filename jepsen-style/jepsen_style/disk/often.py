"""Servers that write a snapshot every few hundred entries, so that a short run has some."""

from __future__ import annotations

from typing import ClassVar

from jepsen_style.cluster import HostDaemon, OwnCluster
from jepsen_style.equipment import Equipment

LINES = "server {\n  raft_snapshot_threshold = 150\n  raft_trailing_logs = 50\n}\n"


class OftenSnapshots(Equipment):
    """No tool but a setting."""

    need: ClassVar[str] = "snapshots"
    about: ClassVar[str] = "servers that write a snapshot every 150 entries"

    @classmethod
    def missing(cls) -> str:
        return ""

    def up(self, cluster: OwnCluster) -> None:
        pass

    def configure(self, node: HostDaemon) -> None:
        if node.role == "server":
            node.extra += LINES
