"""Devices of a real agent: what it tells of them, what tasks and containers get, and a plugin that dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_cluster import Json, RealCluster, contained, group, job, real_cluster, shell

from nomadpy.demo.client import until
from nomadpy.demo.dockerd import Docker

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

SAMPLE = Path(__file__).parents[2] / "docs/plugins/device_plugin.py"
WAIT_S = 30
SHOW = "env | grep -e DEVICE -e ACME -e EXAMPLE | sort; echo shown; exec sleep 600"
RESOURCES = {"CPU": 20, "MemoryMB": 32}
FOLDER = "example/file/plain"

CONFIGURATION = """
client {{
  device "acme/gpu/T4" {{
    device_nodes = ["/dev/null:/dev/acmectl"]
    attributes {{
      memory = "16 GiB"
    }}
    env {{
      ACME_VISIBLE = "${{device.ids}}"
    }}
    mount "/etc/hostname" {{
      target    = "/etc/acme"
      read_only = true
    }}
    instance "g1" {{
      device_nodes = ["/dev/zero:/dev/acme-g1"]
    }}
    instance "g2" {{
      device_nodes = ["/dev/full:/dev/acme-g2"]
    }}
  }}
  device "acme/half/one" {{
    ids = ["h1"]
  }}
  device_plugin "folder" {{
    command              = "{python}"
    args                 = ["{sample}"]
    fingerprint_interval = "1s"
    config {{
      folder = "{folder}"
    }}
  }}
}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files are the devices of the plugin."""
    made = tmp_path_factory.mktemp("devices")
    (made / "f1").write_text("x" * 10)
    (made / "f2").write_text("broken")
    return made


@pytest.fixture(scope="module")
def cluster(docker: Docker, folder: Path) -> Iterator[RealCluster]:
    """One server and one client with declared devices and a plugin."""
    text = CONFIGURATION.format(python=sys.executable, sample=SAMPLE, folder=folder)
    with real_cluster(docker, servers=1, clients=1, client_extra=text) as running:
        yield running


def asking(name: str, *, share: int = 0, **more: object) -> Json:
    """Resources with one device."""
    device: Json = {"Name": name, **more}
    if share:
        device["Share"] = share
    return {**RESOURCES, "Devices": [device]}


def node_of(cluster: RealCluster) -> Json:
    (stub,) = cluster.any_api.get("/v1/nodes")
    node: Json = cluster.any_api.get(f"/v1/node/{stub['ID']}")
    return node


def devices_of(cluster: RealCluster) -> dict[str, Json]:
    """The node's devices by model and id."""
    return {
        f"{one['Vendor']}/{one['Type']}/{one['Name']}/{instance['ID']}": instance
        for one in node_of(cluster)["NodeResources"]["Devices"] or []
        for instance in one["Instances"]
    }


def ids_of(cluster: RealCluster, alloc: Json) -> list[str]:
    given = cluster.alloc(alloc["ID"])["AllocatedResources"]["Tasks"]["main"]["Devices"]
    return [one for device in given for one in device["DeviceIDs"]]


def waits_for(cluster: RealCluster, job_id: str) -> Json:
    """What the job's evaluation found wanting, as soon as it says so."""

    def look() -> Json | None:
        for one in cluster.any_api.get(f"/v1/job/{job_id}/evaluations"):
            failed = one.get("FailedTGAllocs")
            if failed:
                metric: Json = failed["group"]
                return metric
        return None

    found: Json = until(look, seconds=WAIT_S, what=f"{job_id} to wait")
    return found


def plugin_pids(folder: Path) -> list[int]:
    """Processes of the sample plugin under this test's agent."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                mine = (Path("/proc") / parent / "cmdline").read_bytes()
            except OSError:
                continue
            if str(SAMPLE).encode() in command and b"nomadpy" in mine and folder.exists():
                found.append(int(entry.name))
    return found


def test_the_node_tells_its_devices_and_a_task_gets_the_variables_of_its_own(
    cluster: RealCluster,
) -> None:
    found = devices_of(cluster)
    assert {name: one["Healthy"] for name, one in found.items()} == {
        "acme/gpu/T4/g1": True,
        "acme/gpu/T4/g2": True,
        "acme/half/one/h1": True,
        f"{FOLDER}/f1": True,
        f"{FOLDER}/f2": False,
    }
    assert found[f"{FOLDER}/f2"]["HealthDescription"] == "the file says so"
    large = {"LTarget": "${device.attr.memory}", "Operand": ">=", "RTarget": "8 GiB"}
    (alloc,) = cluster.run(
        job("env", group(shell(SHOW, Resources=asking("gpu", Constraints=[large]))))
    )
    (device,) = ids_of(cluster, alloc)
    assert cluster.wait_log(alloc, "shown\n").splitlines() == [
        f"ACME_VISIBLE={device}",
        f"NOMAD_DEVICE_ACME_GPU_T4={device}",
        "shown",
    ]
    cluster.stop_job("env")


def test_a_job_that_wants_more_than_any_device_has_is_placed_nowhere(cluster: RealCluster) -> None:
    huge = {"LTarget": "${device.attr.memory}", "Operand": ">=", "RTarget": "32 GiB"}
    wanted = job("huge", group(shell(SHOW, Resources=asking("gpu", Constraints=[huge]))))
    cluster.any_api.put("/v1/jobs", {"Job": wanted})
    assert waits_for(cluster, "huge")["ConstraintFiltered"] == {"missing devices": 1}
    cluster.stop_job("huge")


def test_a_container_has_the_device_nodes_and_mounts_of_its_device_and_no_others(
    cluster: RealCluster, image: str
) -> None:
    script = (
        "ls -1 /dev/acme*; head -c 3 /dev/acme-$ACME_VISIBLE | od -An -tx1; cat /etc/acme; "
        "echo x > /dev/acmectl && echo writes; echo x > /etc/acme || echo read-only; sleep 600"
    )
    (alloc,) = cluster.run(job("boxed", group(contained(image, script, Resources=asking("gpu")))))
    (device,) = ids_of(cluster, alloc)
    lines = cluster.wait_log(alloc, "read-only\n").splitlines()
    assert lines[:3] == [f"/dev/acme-{device}", "/dev/acmectl", " 00 00 00"]
    assert lines[3] == Path("/etc/hostname").read_text().strip()
    assert lines[4:] == ["writes", "read-only"]
    host = cluster.container(alloc)["HostConfig"]
    assert [one["PathInContainer"] for one in host["Devices"]] == [
        "/dev/acmectl",
        f"/dev/acme-{device}",
    ]
    assert host["Privileged"] is False
    cluster.stop_job("boxed")


def test_two_halves_of_a_device_run_and_a_third_waits_until_one_ends(cluster: RealCluster) -> None:
    halves = [
        job(name, group(shell(SHOW, Resources=asking("acme/half", share=500))))
        for name in ("half-1", "half-2", "half-3")
    ]
    for half in halves[:2]:
        (alloc,) = cluster.run(half)
        assert ids_of(cluster, alloc) == ["h1"]
        assert "NOMAD_DEVICE_ACME_HALF_ONE_SHARE=500" in cluster.wait_log(alloc, "shown\n")
    cluster.any_api.put("/v1/jobs", {"Job": halves[2]})
    shortage = waits_for(cluster, "half-3")["DimensionExhausted"]
    assert shortage == {"devices: no devices match request": 1}
    cluster.stop_job("half-1")
    (alloc,) = cluster.wait_allocs("half-3", "running", 1)
    assert ids_of(cluster, alloc) == ["h1"]
    for name in ("half-2", "half-3"):
        cluster.stop_job(name)


def test_a_plugin_that_is_killed_leaves_sick_devices_and_running_tasks_and_comes_back(
    cluster: RealCluster, folder: Path
) -> None:
    (alloc,) = cluster.run(job("kept", group(shell(SHOW, Resources=asking("example/file")))))
    assert "EXAMPLE_FILES=f1" in cluster.wait_log(alloc, "shown\n")
    (pid,) = plugin_pids(folder)
    # Stopped, it answers nothing: sick, killed by the agent, started again.
    os.kill(pid, signal.SIGSTOP)
    sick = until(
        lambda: one if not (one := devices_of(cluster)[f"{FOLDER}/f1"])["Healthy"] else None,
        seconds=WAIT_S,
        what="a sick device",
    )
    assert sick["HealthDescription"] in (
        "device plugin folder does not answer",
        "device plugin folder is not running",
    )
    until(
        lambda: devices_of(cluster)[f"{FOLDER}/f1"]["Healthy"],
        seconds=WAIT_S,
        what="a healthy device",
    )
    (again,) = plugin_pids(folder)
    assert again != pid
    assert cluster.alloc(alloc["ID"])["ClientStatus"] == "running"
    assert cluster.alloc(alloc["ID"])["TaskStates"]["main"]["Restarts"] == 0
    cluster.stop_job("kept")


def test_a_job_waits_for_a_device_to_be_healthy_and_is_measured_on_it(
    cluster: RealCluster, folder: Path
) -> None:
    wanted = job("patient", group(shell(SHOW, Resources=asking("example/file", Count=2))))
    cluster.any_api.put("/v1/jobs", {"Job": wanted})
    waits_for(cluster, "patient")
    (folder / "f2").write_text("well")
    (alloc,) = cluster.wait_allocs("patient", "running", 1)
    assert sorted(ids_of(cluster, alloc)) == ["f1", "f2"]
    usage = cluster.any_api.get(f"/v1/client/allocation/{alloc['ID']}/stats")
    (measured,) = usage["ResourceUsage"]["DeviceStats"]
    assert measured["InstanceStats"]["f1"]["Summary"] == {
        "IntNumeratorVal": 10,
        "IntDenominatorVal": 4096,
        "Unit": "B",
        "Desc": "Bytes used",
    }
    host = cluster.any_api.get("/v1/client/stats", node_id=alloc["NodeID"])
    assert [one["Name"] for one in host["DeviceStats"]] == ["plain"]
    cluster.stop_job("patient")


def test_a_device_that_goes_before_the_start_fails_it_with_the_plugins_words(
    cluster: RealCluster, folder: Path
) -> None:
    (alloc,) = cluster.run(job("again", group(shell(SHOW, Resources=asking("example/file")))))
    (device,) = ids_of(cluster, alloc)
    (folder / device).unlink()
    cluster.any_api.put(f"/v1/client/allocation/{alloc['ID']}/restart", {"TaskName": "main"})

    def refused() -> bool:
        events = cluster.alloc(alloc["ID"])["TaskStates"]["main"]["Events"]
        return any(e["DisplayMessage"].startswith("devices cannot be reserved: ") for e in events)

    until(refused, seconds=WAIT_S, what="a refusal")
    (folder / device).write_text("x" * 10)
    cluster.stop_job("again")


def test_a_task_keeps_its_device_over_kill_9_of_the_agent(
    cluster: RealCluster, folder: Path
) -> None:
    (alloc,) = cluster.run(job("outlives", group(shell(SHOW, Resources=asking("example/file")))))
    before = ids_of(cluster, alloc)
    (old,) = plugin_pids(folder)
    agent = cluster.clients[0]
    agent.kill()
    # Its input has ended.
    until(lambda: not Path(f"/proc/{old}").exists(), seconds=WAIT_S, what="the plugin to end")
    agent.start()
    until(lambda: plugin_pids(folder), seconds=WAIT_S, what="a new plugin")
    until(
        lambda: devices_of(cluster).get(f"{FOLDER}/f1", {}).get("Healthy"),
        seconds=WAIT_S,
        what="a healthy device",
    )
    now = cluster.alloc(alloc["ID"])
    assert now["ClientStatus"] == "running"
    assert ids_of(cluster, alloc) == before
    kinds = [e["Type"] for e in now["TaskStates"]["main"]["Events"]]
    assert kinds.count("Started") == 1
    cluster.stop_job("outlives")
