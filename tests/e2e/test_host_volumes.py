"""Dynamic host volumes on real agents: made by the command line, written by jobs, found again by those that come after."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_cluster import Json, RealCluster, group, job, on_node, real_cluster, shell

from nomadpy.demo.client import ApiError, until

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

HEARTBEATS = 'server {\n  min_heartbeat_ttl = "1s"\n  heartbeat_grace = "1s"\n}\n'
SPEC = """
name      = "{name}"
type      = "host"
plugin_id = "mkdir"
node_id   = "{node}"
capability {{
  access_mode     = "{access}"
  attachment_mode = "file-system"
}}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    """One server and two clients over mutual TLS, without Docker."""
    with real_cluster(servers=1, clients=2, server_extra=HEARTBEATS) as running:
        yield running


def command(cluster: RealCluster, *line: str, fails: bool = False) -> str:
    """The output of `nomadpy LINE` against the server."""
    done = subprocess.run(
        [sys.executable, "-m", "nomadpy", *line],
        env={**os.environ, **cluster.environment(cluster.servers[0])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode != 0) is fails, done.stdout
    return done.stdout


def node_id(cluster: RealCluster, name: str) -> str:
    return next(str(n["ID"]) for n in cluster.any_api.get("/v1/nodes") if n["Name"] == name)


def create(
    cluster: RealCluster, folder: Path, name: str, node: str, access: str = "single-node-writer"
) -> Json:
    """Make a volume by the command line, and return it."""
    spec = folder / f"{name}-{node}.hcl"
    spec.write_text(SPEC.format(name=name, node=node_id(cluster, node), access=access))
    said = command(cluster, "volume", "create", str(spec))
    assert f"==> Created host volume {name} with ID " in said
    identity = said.split(" with ID ")[1].split()[0]
    found: Json = cluster.any_api.get(f"/v1/volume/host/{identity}")
    assert found["State"] == "ready"
    assert Path(found["HostPath"]).is_dir()
    return found


def wants(source: str, script: str, *, count: int = 1, job_id: str = "db", **more: object) -> Json:
    """A job that has a volume at `data` in the task's directory."""
    request = {"Name": "v", "Type": "host", "Source": source, **more}
    mount = {"Volume": "v", "Destination": "data"}
    task = shell(f"cd $NOMAD_TASK_DIR/../data && {script}; exec sleep 600", VolumeMounts=[mount])
    return job(job_id, group(task, count=count, Volumes={"v": request}))


def test_what_a_job_writes_into_a_volume_the_next_one_reads(
    cluster: RealCluster, tmp_path: Path
) -> None:
    first, second = cluster.clients
    volume = create(cluster, tmp_path, "shared", second.name)
    assert "shared" in command(cluster, "volume", "status")
    assert "No allocations placed" in command(cluster, "volume", "status", "shared")
    (alloc,) = cluster.run(wants("shared", "echo one > kept; cat kept"))
    assert alloc["NodeName"] == second.name
    assert cluster.wait_log(alloc, "one")
    assert (Path(volume["HostPath"]) / "kept").read_text() == "one\n"
    assert alloc["ID"][:8] in command(cluster, "volume", "status", "shared")
    refused = command(cluster, "volume", "delete", "shared", fails=True)
    assert f"is in use by allocations: {alloc['ID']}" in refused
    cluster.stop_job("db")
    (again,) = cluster.run(wants("shared", "echo found $(cat kept)"), count=1)
    assert again["ID"] != alloc["ID"]
    assert "found one" in cluster.wait_log(again, "found")
    cluster.stop_job("db")
    cluster.any_api.delete("/v1/job/db", purge="true")
    assert "Successfully deleted" in command(cluster, "volume", "delete", volume["ID"])
    assert not Path(volume["HostPath"]).exists()
    with pytest.raises(ApiError, match="volume not found"):
        cluster.any_api.get(f"/v1/volume/host/{volume['ID']}")
    assert first.name != second.name


def test_a_sticky_volume_is_where_the_replacement_goes(
    cluster: RealCluster, tmp_path: Path
) -> None:
    made = {
        client.name: create(cluster, tmp_path, "mine", client.name) for client in cluster.clients
    }
    script = "echo $NOMAD_ALLOC_ID >> owners; cat owners; echo read"
    (alloc,) = cluster.run(wants("mine", script, job_id="sticky", Sticky=True))
    home = made[alloc["NodeName"]]
    (claim,) = cluster.any_api.get("/v1/volumes/claims", job_id="sticky")
    assert (claim["AllocID"], claim["VolumeID"]) == (alloc["ID"], home["ID"])
    owners = [alloc["ID"]]
    for _ in range(2):
        cluster.any_api.put(f"/v1/allocation/{owners[-1]}/stop", {})

        def replaced() -> Json | None:
            running = cluster.allocs("sticky", status="running")
            new = [a for a in running if a["ID"] not in owners]
            return new[0] if len(running) == 1 and new else None

        replacement: Json = until(replaced, seconds=40, what="the replacement")
        owners.append(replacement["ID"])
        assert replacement["NodeName"] == alloc["NodeName"]
        said = cluster.wait_log(replacement, "read").split()
        assert said == [*owners, "read"]
    (claim,) = cluster.any_api.get("/v1/volumes/claims", job_id="sticky")
    assert claim["AllocID"] == owners[-1]
    assert owners[-1][:8] in command(cluster, "volume", "claim", "list", "-job=sticky")
    cluster.stop_job("sticky")
    # Stopped is not forgotten: who comes back finds its volume.
    (back,) = cluster.run(wants("mine", script, job_id="sticky", Sticky=True), count=1)
    assert back["NodeName"] == alloc["NodeName"]
    cluster.stop_job("sticky")
    cluster.any_api.delete("/v1/job/sticky", purge="true")
    assert cluster.any_api.get("/v1/volumes/claims") == []


def test_each_allocation_has_a_volume_of_its_own(cluster: RealCluster, tmp_path: Path) -> None:
    first, second = cluster.clients
    create(cluster, tmp_path, "part[0]", second.name, "single-node-single-writer")
    create(cluster, tmp_path, "part[1]", first.name, "single-node-single-writer")
    wanted = wants(
        "part",
        "echo $NOMAD_ALLOC_INDEX > index; cat index",
        job_id="parts",
        count=2,
        PerAlloc=True,
        AccessMode="single-node-single-writer",
    )
    by_name = {a["Name"]: a for a in cluster.run(wanted)}
    assert by_name["parts.group[0]"]["NodeName"] == second.name
    assert by_name["parts.group[1]"]["NodeName"] == first.name
    for volume in cluster.any_api.get("/v1/volumes", type="host"):
        if volume["Name"].startswith("part["):
            whole = cluster.any_api.get(f"/v1/volume/host/{volume['ID']}")
            index = Path(whole["HostPath"]) / "index"
            until(index.exists, seconds=20, what=f"the file of {volume['Name']}")
            assert f"part[{index.read_text().strip()}]" == volume["Name"]
    cluster.stop_job("parts")


def test_a_volume_is_unavailable_while_its_node_is_down_and_comes_back_with_it(
    cluster: RealCluster, tmp_path: Path
) -> None:
    second = cluster.clients[1]
    volume = create(cluster, tmp_path, "tough", second.name)
    (Path(volume["HostPath"]) / "kept").write_text("yes\n")
    second.kill()

    def state() -> str:
        return str(cluster.any_api.get(f"/v1/volume/host/{volume['ID']}")["State"])

    until(lambda: state() == "unavailable", seconds=30, what="the volume to be unavailable")
    second.start()
    until(lambda: state() == "ready", seconds=40, what="the volume to be ready again")
    wanted = wants("tough", "cat kept", job_id="after")
    (alloc,) = cluster.run({**wanted, "Constraints": [on_node(second.name)]})
    assert "yes" in cluster.wait_log(alloc, "yes")
    cluster.stop_job("after")
