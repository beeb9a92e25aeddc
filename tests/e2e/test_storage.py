"""Data that outlives its task, on a real cluster over mutual TLS: volumes of a node, and disks that follow their group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_cluster import (
    SECOND,
    Json,
    RealCluster,
    contained,
    group,
    job,
    on_node,
    real_cluster,
    shell,
)

from nomadpy.demo.client import ApiError, until
from nomadpy.demo.dockerd import Docker

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

WRITER = {"AccessMode": "single-node-writer", "AttachmentMode": "file-system"}
MOUNT = {"VolumeMounts": [{"Volume": "data", "Destination": "/data"}]}


@pytest.fixture(scope="module")
def cluster(docker: Docker) -> Iterator[RealCluster]:
    """One server and two clients."""
    with real_cluster(docker, servers=1, clients=2) as running:
        yield running


def node(cluster: RealCluster, name: str) -> Json:
    found: Json = next(n for n in cluster.any_api.get("/v1/nodes") if n["Name"] == name)
    whole: Json = cluster.any_api.get(f"/v1/node/{found['ID']}")
    return whole


def make_volume(cluster: RealCluster, name: str, where: str, **parameters: str) -> Json:
    asked = {
        "Name": name,
        "Type": "host",
        "PluginID": "mkdir",
        "NodeID": node(cluster, where)["ID"],
        "RequestedCapabilities": [WRITER],
        "Parameters": parameters,
    }
    answer: Json = cluster.any_api.put("/v1/volume/host/create", {"Volume": asked})
    made: Json = answer["Volume"]
    return made


def with_volume(task: Json, source: str) -> Json:
    return group(task, Volumes={"data": {"Type": "host", "Source": source, **WRITER}})


def test_a_container_reads_what_another_one_wrote_before_the_agent_died(
    cluster: RealCluster, image: str
) -> None:
    volume = make_volume(cluster, "rows", "client-2", mode="0750", uid="4242", gid="4242")
    assert volume["State"] == "ready"
    path = Path(volume["HostPath"])
    status = path.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o750, 4242, 4242)
    until(
        lambda: "rows" in (node(cluster, "client-2")["HostVolumes"] or {}),
        seconds=20,
        what="the node to tell of its volume",
    )
    write = contained(image, "echo precious > /data/db", User="4242", **MOUNT)
    cluster.any_api.put("/v1/jobs", {"Job": job("write", with_volume(write, "rows"), kind="batch")})
    (alloc,) = cluster.wait_allocs("write", "complete", 1)
    assert alloc["NodeName"] == "client-2"
    agent = cluster.daemon("client-2")
    agent.kill()
    agent.start()
    read = contained(image, "grep -q precious /data/db && ! echo no > /data/db", **MOUNT)
    read["VolumeMounts"] = [{**MOUNT["VolumeMounts"][0], "ReadOnly": True}]
    cluster.any_api.put("/v1/jobs", {"Job": job("read", with_volume(read, "rows"), kind="batch")})
    (alloc,) = cluster.wait_allocs("read", "complete", 1)
    assert alloc["NodeName"] == "client-2"
    assert (path / "db").read_text() == "precious\n"
    with pytest.raises(ApiError):
        make_volume(cluster, "rows", "client-2")
    cluster.any_api.delete(f"/v1/volume/host/{volume['ID']}/delete")
    assert not path.exists()
    until(
        lambda: "rows" not in (node(cluster, "client-2")["HostVolumes"] or {}),
        seconds=20,
        what="the node to tell that its volume is gone",
    )


def test_a_volume_in_use_is_not_deleted_and_goes_when_its_job_has_ended(
    cluster: RealCluster,
) -> None:
    volume = make_volume(cluster, "busy", "client-1")
    task = shell("echo $$ > data/pid; exec sleep 600")
    task["VolumeMounts"] = [{"Volume": "data", "Destination": "data"}]
    cluster.run(job("holder", with_volume(task, "busy")))
    pid = Path(volume["HostPath"]) / "pid"
    until(pid.exists, seconds=20, what="the task to write into its volume")
    with pytest.raises(ApiError):
        cluster.any_api.delete(f"/v1/volume/host/{volume['ID']}/delete")
    assert pid.exists()
    cluster.stop_job("holder")
    cluster.any_api.delete(f"/v1/volume/host/{volume['ID']}/delete")
    assert not Path(volume["HostPath"]).exists()


def test_a_drained_groups_disk_follows_it_to_the_other_node(cluster: RealCluster) -> None:
    script = """
    test -e ../alloc/data/born || { echo once > ../alloc/data/born; head -c 3000000 /dev/zero > local/big; }
    echo born $(cat ../alloc/data/born) $(wc -c < local/big); exec sleep 600
    """
    wanted = group(
        shell(script),
        EphemeralDisk={"SizeMB": 20, "Sticky": True, "Migrate": True},
        Migrate={"MaxParallel": 1, "HealthCheck": "task_states", "MinHealthyTime": SECOND // 2},
    )
    (first,) = cluster.run(job("moving", wanted))
    cluster.wait_log(first, "born once 3000000")
    (cluster.shared(first) / "data/born").write_text("before\n")
    drain = {"DrainSpec": {"Deadline": 60 * SECOND}}
    cluster.any_api.put(f"/v1/node/{first['NodeID']}/drain", drain)
    try:
        until(
            lambda: [
                a for a in cluster.allocs("moving", status="running") if a["ID"] != first["ID"]
            ],
            seconds=40,
            what="the replacement",
        )
        (second,) = cluster.wait_allocs("moving", "running", 1)
        assert second["NodeID"] != first["NodeID"]
        cluster.wait_log(second, "born before 3000000")
        said = [e["DisplayMessage"] for e in second["TaskStates"]["main"]["Events"]]
        assert any("Took over 3000007 bytes" in line for line in said), said
    finally:
        back = {"Eligibility": "eligible"}
        cluster.any_api.put(f"/v1/node/{first['NodeID']}/eligibility", back)
    cluster.stop_job("moving")


def test_a_job_waits_for_its_volume_and_runs_as_soon_as_there_is_one(cluster: RealCluster) -> None:
    task = shell("exec sleep 600")
    task["VolumeMounts"] = [{"Volume": "data", "Destination": "data"}]
    waiting = with_volume(task, "later")
    waiting["Constraints"] = [on_node("client-1")]
    cluster.any_api.put("/v1/jobs", {"Job": job("waiting", waiting)})
    until(
        lambda: any(
            e["Status"] == "blocked" for e in cluster.any_api.get("/v1/job/waiting/evaluations")
        ),
        seconds=20,
        what="the job to wait",
    )
    make_volume(cluster, "later", "client-1")
    cluster.wait_allocs("waiting", "running", 1)
    cluster.stop_job("waiting")
