"""An operator's bad week on real servers over mutual TLS, with the commands that docs/operations.md names.

Three servers grow to five, two die and are replaced, a snapshot goes into another cluster, the majority is lost for good
and the rest goes on by peers.json. Three servers of an earlier version are upgraded one by one, and one that goes back is
refused. Writers run meanwhile; nothing that was acknowledged may be missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_cluster import Json, RealCluster, group, job, shell

import nomadpy
from nomadpy.demo.client import ApiError, until
from nomadpy.demo.cluster import Daemon
from nomadpy.fsm.formats import HIGHEST

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

FIRST = 3


class Growing(RealCluster):
    """A cluster that forms of its first three servers; the others are prepared and wait."""

    def configuration(self, daemon: Daemon) -> str:
        text = super().configuration(daemon)
        return text.replace(
            f"bootstrap_expect = {len(self.servers)}",
            f"bootstrap_expect = {min(FIRST, len(self.servers))}",
        )

    def command(self, daemon: Daemon, *words: str) -> str:
        """Run `nomadpy WORDS` against a node and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "nomadpy", *words],
            env={**os.environ, **self.environment(daemon)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def peers(self) -> list[Json]:
        """The raft servers as some running server lists them."""
        found: list[Json] = self.any_api.get("/v1/operator/raft/configuration")["Servers"]
        return found

    def wait_voters(self, count: int) -> list[Json]:
        """The servers, as soon as all of them, `count`, vote and hold the same log."""

        def look() -> list[Json] | None:
            peers = self.peers()
            ready = len(peers) == count and all(p["Voter"] for p in peers)
            return peers if ready else None

        found: list[Json] = until(look, seconds=60, what=f"{count} voters")
        return found


class Writers:
    """Threads that register empty jobs through any server, and remember what was acknowledged."""

    def __init__(self, cluster: Growing, count: int = 4) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(count)]
        self.acknowledged: list[str] = []

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, writer: int) -> None:
        number = 0
        while not self._stop.wait(0.05):
            number += 1
            name = f"write-{id(self)}-{writer}-{number}"
            servers = [d for d in self._cluster.running() if d.role == "server"]
            if not servers:
                continue
            wanted = job(name, group(shell("true"), count=0))
            try:
                self._cluster.api(servers[number % len(servers)]).put("/v1/jobs", {"Job": wanted})
            except ApiError:
                continue
            self.acknowledged.append(name)


def jobs_of(cluster: Growing, daemon: Daemon) -> set[str]:
    return {j["ID"] for j in cluster.api(daemon).get("/v1/jobs")}


@pytest.fixture
def cluster() -> Iterator[Growing]:
    """Seven servers prepared, three started."""
    running = Growing(Path(tempfile.mkdtemp(prefix="nomadpy-drill-")), None, servers=7, clients=0)
    try:
        running.prepare()
        for server in running.servers[:FIRST]:
            server.start()
        running.wait_leader()
        yield running
    finally:
        running.remove()


def test_a_quorum_is_grown_mended_saved_lost_and_recovered(
    cluster: Growing, tmp_path: Path
) -> None:
    servers = cluster.servers
    with Writers(cluster) as writers:
        cluster.command(
            servers[0], "operator", "autopilot", "set-config", "-server-stabilization-time=2s"
        )
        # Grow to five.
        for server in servers[3:5]:
            server.start()
        peers = cluster.wait_voters(5)
        assert {p["Node"] for p in peers} == {f"{s.name}.global" for s in servers[:5]}

        # Two die, one of them perhaps the leader; take them out, and put others in their place.
        for dead in (servers[0], servers[3]):
            dead.kill()
        cluster.wait_leader()
        until(
            lambda: (
                not any(
                    p["Leader"]
                    and p["Address"].endswith(
                        (f":{servers[0].rpc_port}", f":{servers[3].rpc_port}")
                    )
                    for p in cluster.peers()
                )
            ),
            seconds=20,
            what="another leader",
        )
        gone = {p["Node"]: p for p in peers}
        cluster.command(
            servers[1], "operator", "raft", "remove-peer",
            f"-peer-id={gone[f'{servers[0].name}.global']['ID']}",
        )  # fmt: skip
        cluster.command(
            servers[1], "operator", "raft", "remove-peer",
            f"-peer-address={gone[f'{servers[3].name}.global']['Address']}",
        )  # fmt: skip
        assert len(cluster.peers()) == 3
        for server in servers[5:7]:
            server.start()
        peers = cluster.wait_voters(5)
        shown = cluster.command(servers[1], "operator", "raft", "list-peers")
        assert shown.count("true") == 5

        # Leadership goes where it is wanted.
        to = next(p for p in peers if not p["Leader"])
        cluster.command(
            servers[1], "operator", "raft", "transfer-leadership", f"-peer-id={to['ID']}"
        )
        until(
            lambda: any(p["Leader"] and p["ID"] == to["ID"] for p in cluster.peers()),
            seconds=20,
            what="the new leader",
        )

        # Save.
        saved = tmp_path / "cluster.snap"
        acknowledged_before = list(writers.acknowledged)
        cluster.command(servers[1], "operator", "snapshot", "save", str(saved))
        told = json.loads(
            cluster.command(servers[1], "operator", "snapshot", "inspect", "-json", str(saved))
        )
        assert told["Tables"]["jobs"] >= len(acknowledged_before)

    everything = set(writers.acknowledged)
    assert len(everything) > 20
    assert everything <= jobs_of(cluster, servers[1])
    _restored_elsewhere(saved, acknowledged_before)

    # All hold the same; then three of five are gone for good, and the other two are told so.
    _wait_equal(cluster)
    alive, lost = [servers[1], servers[2]], [servers[4], servers[5], servers[6]]
    for server in (*lost, *alive):
        server.kill()
    names = {p["Node"]: p for p in peers}
    listed = [
        {"id": names[f"{s.name}.global"]["ID"], "address": names[f"{s.name}.global"]["Address"], "non_voter": False}
        for s in alive
    ]  # fmt: skip
    for server in alive:
        raft = server.folder / "data" / "server" / "raft"
        (raft / "peers.json").write_text(json.dumps(listed), encoding="utf-8")
        server.start()
    cluster.wait_leader(seconds=40)
    assert not (alive[0].folder / "data" / "server" / "raft" / "peers.json").exists()
    assert {p["ID"] for p in cluster.wait_voters(2)} == {entry["id"] for entry in listed}
    with Writers(cluster) as writers:
        until(lambda: len(writers.acknowledged) > 10, seconds=30, what="writes")
        # Grow again: a lost host comes back empty, and is another server.
        back = lost[0]
        _empty(back.folder / "data" / "server" / "raft")
        back.start()
        cluster.wait_voters(3)
    everything |= set(writers.acknowledged)
    for server in (*alive, back):
        assert everything <= jobs_of(cluster, server), server.name


def _wait_equal(cluster: Growing) -> None:
    def look() -> bool:
        health: Any = cluster.any_api.get("/v1/operator/autopilot/health")
        return len({s["LastIndex"] for s in health["Servers"]}) == 1

    until(look, seconds=30, what="equal logs")


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _restored_elsewhere(saved: Path, expected: list[str]) -> None:
    other = Growing(Path(tempfile.mkdtemp(prefix="nomadpy-drill-")), None, servers=1, clients=0)
    try:
        other.prepare()
        other.start()
        other.wait_leader()
        other.command(other.servers[0], "operator", "snapshot", "restore", str(saved))
        assert set(expected) <= jobs_of(other, other.servers[0])
        told = other.any_api.send("GET", "/v1/jobs")
        other.api(other.servers[0]).put(
            "/v1/jobs", {"Job": job("after", group(shell("true"), count=0))}
        )
        assert other.any_api.send("GET", "/v1/jobs").index > told.index
    finally:
        other.remove()


def test_after_a_restore_an_allocation_that_ended_meanwhile_is_known_to_have_ended(
    tmp_path: Path,
) -> None:
    cluster = Growing(Path(tempfile.mkdtemp(prefix="nomadpy-drill-")), None, servers=3, clients=1)
    gate = tmp_path / "gate"
    try:
        cluster.prepare()
        cluster.start()
        cluster.wait_leader()
        cluster.wait_nodes(1)
        script = f"while ! [ -e {gate} ]; do sleep 0.1; done"
        cluster.run(job("short", group(shell(script)), kind="batch"))
        saved = tmp_path / "cluster.snap"
        cluster.command(cluster.servers[0], "operator", "snapshot", "save", str(saved))
        gate.touch()
        (ended,) = cluster.wait_allocs("short", "complete", 1)
        cluster.command(cluster.servers[0], "operator", "snapshot", "restore", str(saved))
        (again,) = cluster.wait_allocs("short", "complete", 1, seconds=30)
        assert again["ID"] == ended["ID"]
        assert again["ModifyIndex"] > ended["ModifyIndex"]
    finally:
        cluster.remove()


# -- two versions -----------------------------------------------------------------------------------------------

OLD_VERSION = "0.0.9"


def older_version(folder: Path) -> dict[str, str]:
    """The software as an earlier version of itself: it names another version, reads the first format of the log only, and
    stops where it meets more. Returns the environment that runs it.
    """
    source = Path(nomadpy.__file__).parents[1]
    for package in ("nomadpy", "agent"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source / package, folder / package, ignore=ignored)
    for file, was, becomes in (
        ("nomadpy/__init__.py", f'"{nomadpy.__version__}"', f'"{OLD_VERSION}"'),
        ("nomadpy/fsm/formats.py", f"HIGHEST = {HIGHEST}", "HIGHEST = 1"),
    ):
        text = (folder / file).read_text(encoding="utf-8")
        assert was in text
        (folder / file).write_text(text.replace(was, becomes), encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def versions(cluster: Growing) -> dict[str, tuple[str, str]]:
    """Of each server its software's version and the format of its log, as soon as all answer."""

    def look() -> dict[str, tuple[str, str]] | None:
        found = {}
        try:
            for daemon in cluster.servers:
                told = cluster.api(daemon).get("/v1/agent/self")
                version = told["config"]["Version"]["VersionMetadata"].removeprefix("nomadpy-")
                found[daemon.name] = (version, told["stats"]["nomad"]["log_format"])
        except ApiError:
            return None
        return found

    answered: dict[str, tuple[str, str]] = until(look, seconds=40, what="all servers' answers")
    return answered


def wait_caught_up(cluster: Growing, daemon: Daemon) -> None:
    """Until the server holds what others had committed when this was asked."""

    def raft(one: Daemon) -> dict[str, str]:
        try:
            stats: dict[str, str] = cluster.api(one).get("/v1/agent/self")["stats"]["raft"]
        except ApiError:
            return {}
        return stats

    others = [server for server in cluster.running() if server is not daemon]
    index = max(int(raft(server).get("commit_index", "0")) for server in others)
    until(
        lambda: int(raft(daemon).get("applied_index", "-1")) >= index,
        seconds=60,
        what=f"{daemon.name} to hold entry {index}",
    )


def test_servers_are_upgraded_one_by_one_and_do_not_go_back(tmp_path: Path) -> None:
    old = older_version(tmp_path / "older")
    cluster = Growing(Path(tempfile.mkdtemp(prefix="nomadpy-drill-")), None, servers=3, clients=0)
    try:
        cluster.prepare()
        for server in cluster.servers:
            server.start(env=old)
        cluster.wait_leader(seconds=40)
        with Writers(cluster) as writers:
            until(lambda: len(writers.acknowledged) > 10, seconds=60, what="writes")
            for upgraded, server in enumerate(cluster.servers):
                shown = versions(cluster)
                assert [version for version, _ in shown.values()].count(OLD_VERSION) == 3 - upgraded
                # The newest format has to wait for the last one.
                assert {log_format for _, log_format in shown.values()} == {"1"}
                before = len(writers.acknowledged)
                assert server.stop() == 0
                server.start()
                wait_caught_up(cluster, server)
                until(
                    lambda n=before: len(writers.acknowledged) > n + 10, seconds=60, what="writes"
                )  # type: ignore[misc]
            now = (nomadpy.__version__, str(HIGHEST))
            until(lambda: set(versions(cluster).values()) == {now}, seconds=60, what="the format")
            told = cluster.command(cluster.servers[0], "agent-info")
            assert f"log_format = {HIGHEST}" in " ".join(told.split())

            # One goes back: the others go on, and it says what to do.
            back = cluster.servers[2]
            back.stop()
            back.start(env=old)
            until(
                lambda: "this server takes no part in the cluster" in back.log_text(),
                seconds=60,
                what="the refusal",
            )
            assert f"version {OLD_VERSION} on {back.name} reads 1 to 1" in back.log_text()
            before = len(writers.acknowledged)
            until(lambda: len(writers.acknowledged) > before + 10, seconds=60, what="writes")
            back.stop()

            # Nor can it read what the newer one has saved: it does not even start.
            text = back.config_file.read_text(encoding="utf-8")
            back.config_file.write_text(
                text.replace("server {\n", "server {\n  raft_snapshot_threshold = 5\n", 1),
                encoding="utf-8",
            )
            back.start()
            wait_caught_up(cluster, back)
            snapshots = back.folder / "data" / "server" / "raft" / "snapshots"
            until(lambda: any(snapshots.glob("*.snap")), seconds=60, what="a raft snapshot")
            back.stop()
            back.start(env=old)
            assert back.process is not None
            assert back.process.wait(30) == 1
            refusal = f"Error starting the agent: the raft snapshot is of log format {HIGHEST}"
            assert refusal in back.log_text().replace("\n", " ")
            back.start()
            wait_caught_up(cluster, back)
        everything = set(writers.acknowledged)
        for server in cluster.servers:
            wait_caught_up(cluster, server)
            assert everything <= jobs_of(cluster, server), server.name
    finally:
        cluster.remove()
