"""Real servers on the kit's disks: a full one, one that fails, and what is said; whole runs that must be valid or refuted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jepsen_style.cluster import OwnCluster
from jepsen_style.disk.mount import Disks, Mount
from jepsen_style.nemesis.corrupt import CorruptServer
from jepsen_style.nemesis.power import cut_power
from jepsen_style.nemesis.voters import Voters, raft_folder
from jepsen_style.undo import UndoList

from nomadpy.demo.client import until
from nomadpy.entropy import SeededEntropy
from nomadpy.raft.node import EXIT_CODE

MISSING = Disks.missing()
pytestmark = [
    pytest.mark.real_time,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
]
LIMIT_S = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="nomadpy-disks-"))
    notes = UndoList(made / "undo")
    try:
        yield made
    finally:
        notes.undo_all()
        shutil.rmtree(made)


def started(folder: Path, servers: int) -> OwnCluster:
    notes = UndoList(folder / "undo")
    cluster = OwnCluster(folder / "nodes", servers, equipment=[Disks(folder / "disk", notes)])
    cluster.equip()
    cluster.prepare()
    cluster.start()
    cluster.await_leader(seconds=LIMIT_S)
    return cluster


def written(cluster: OwnCluster, name: str, value: str) -> bool:
    return bool(Voters(cluster).ask("PUT", f"/v1/var/{name}", {"Items": {"value": value}}))


def value_of(cluster: OwnCluster, name: str) -> str | None:
    found = Voters(cluster).ask("GET", f"/v1/var/{name}")
    return None if found is None else str(found["Items"]["value"])


def mount_of(cluster: OwnCluster, name: str) -> Mount:
    disks = cluster.equipment["disk"]
    assert isinstance(disks, Disks)
    return disks.mounts[name]


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ({"do": "space", "free": 0}, "make room on the disk and start it again"),
        ({"do": "fault", "operations": ["write"], "error": "EIO"}, "look at the disk"),
        ({"do": "fault", "operations": ["fsync"], "error": "EIO"}, "look at the disk"),
    ],
)
def test_a_server_whose_disk_fails_stops_says_so_and_comes_back_with_all_it_acknowledged(
    folder: Path, fault: dict[str, object], advice: str
) -> None:
    with started(folder, 1) as cluster:
        (name,) = cluster.names
        host = cluster.hosts[name]
        until(lambda: written(cluster, "kept", "yes"), seconds=LIMIT_S, what="a first write")
        arguments = {k: v for k, v in fault.items() if k != "do"}
        mount_of(cluster, name).ask(str(fault["do"]), **arguments)
        assert not written(cluster, "refused", "no")
        until(lambda: not host.alive, seconds=LIMIT_S, what="the server to stop")
        assert host.process is not None
        assert host.process.returncode == EXIT_CODE
        text = host.log_text()
        assert "the disk failed, this server stops" in text
        assert advice in text
        assert "Traceback" not in text

        # While the disk is as it is, it does not start, and says why.
        cluster.start_node(name)
        until(lambda: not host.alive, seconds=LIMIT_S, what="the server to refuse")
        assert host.process.returncode not in (0, None)
        said = host.log_text()[len(text) :]
        assert "a file or directory of the node cannot be used" in said
        assert "Traceback" not in said
        assert "Internal error" not in said

        mount_of(cluster, name).ask("clear")
        cluster.start_node(name)
        cluster.await_leader(seconds=LIMIT_S)
        until(lambda: value_of(cluster, "kept") == "yes", seconds=LIMIT_S, what="what was kept")
        assert value_of(cluster, "refused") in (None, "no")


def test_a_power_cut_of_a_new_cluster_leaves_its_identity_and_its_writes(folder: Path) -> None:
    with started(folder, 1) as cluster:
        (name,) = cluster.names
        until(lambda: written(cluster, "kept", "yes"), seconds=LIMIT_S, what="a first write")
        identity = (raft_folder(cluster, name) / "server-id").read_text(encoding="ascii")
        for torn in (0.0, 0.5):
            cut_power(cluster, [name], torn)
            cluster.start_node(name)
            cluster.await_leader(seconds=LIMIT_S)
            until(lambda: value_of(cluster, "kept") == "yes", seconds=LIMIT_S, what="the write")
            again = (raft_folder(cluster, name) / "server-id").read_text(encoding="ascii")
            assert again == identity


def test_a_server_with_a_shortened_log_refuses_and_joins_as_a_new_one(folder: Path) -> None:
    notes: list[tuple[str, str]] = []
    with started(folder, 3) as cluster:
        until(lambda: written(cluster, "kept", "yes"), seconds=LIMIT_S, what="a first write")
        nemesis = CorruptServer(
            cluster,
            lambda what, node: notes.append((what, node)),
            "log/segment-*.log",
            ("truncate",),
            "one",
        )
        before = {p["ID"] for p in Voters(cluster).peers().values()}
        nemesis.begin(SeededEntropy(3))
        nemesis.end()
        assert "emptied, as it said" in [what for what, _ in notes]
        after = {p["ID"] for p in Voters(cluster).peers().values()}
        assert len(before & after) == 2
        assert len(after) == 3
        assert value_of(cluster, "kept") == "yes"
