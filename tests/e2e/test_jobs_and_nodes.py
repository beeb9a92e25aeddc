"""Jobs and nodes through their lives on real agents: updates, drains, lost nodes, stops, restarts, signals, logs.

One server and three clients with short heartbeats serve all tests; the last ones take nodes away.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

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

from nomadpy.demo.client import until
from nomadpy.demo.dockerd import Docker
from nomadpy.demo.leftovers import is_alive

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

HEARTBEATS = 'server {\n  min_heartbeat_ttl = "1s"\n  heartbeat_grace = "1s"\n}\n'
# TTL up to twice the least, grace, an agent's start of the countdown, and a slow machine.
DOWN_LIMIT_S = 20.0
SLEEP = "echo pid $$; exec sleep 600"
MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def cluster(docker: Docker) -> Iterator[RealCluster]:
    """One server and three clients over mutual TLS; nodes are down soon after they fall silent."""
    with real_cluster(docker, servers=1, clients=3, server_extra=HEARTBEATS) as running:
        yield running


def pid_of(cluster: RealCluster, alloc: Json) -> int:
    return int(cluster.wait_log(alloc, "pid ").split()[1])


def event_types(cluster: RealCluster, alloc: Json, task: str = "main") -> list[str]:
    return [e["Type"] for e in cluster.alloc(alloc["ID"])["TaskStates"][task]["Events"]]


def wait_deployment(cluster: RealCluster, job_id: str, version: int, status: str) -> Json:
    def look() -> Json | None:
        found: Json | None = cluster.any_api.get(f"/v1/job/{job_id}/deployment")
        right = found and found["JobVersion"] == version and found["Status"] == status
        return found if right else None

    found: Json = until(look, seconds=40, what=f"{status} deployment of version {version}")
    return found


# -- jobs ------------------------------------------------------------------------------------------------------


def test_an_update_rolls_by_max_parallel_and_its_deployment_succeeds(cluster: RealCluster) -> None:
    update = {"MaxParallel": 1, "MinHealthyTime": SECOND, "HealthCheck": "task_states"}
    wanted = job("rolling", group(shell(SLEEP), count=3, Update=update))
    cluster.run(wanted)
    assert wait_deployment(cluster, "rolling", 0, "successful")["StatusDescription"] == (
        "Deployment completed successfully"
    )
    task = shell(SLEEP, Env={"VERSION": "two"})
    cluster.any_api.put("/v1/jobs", {"Job": job("rolling", group(task, count=3, Update=update))})
    most_new_and_unhealthy, least_running = 0, 3

    def look() -> bool:
        nonlocal most_new_and_unhealthy, least_running
        allocs = cluster.allocs("rolling")
        new = [a for a in allocs if a["JobVersion"] == 1]
        waiting = [a for a in new if not (a["DeploymentStatus"] or {}).get("Healthy")]
        most_new_and_unhealthy = max(most_new_and_unhealthy, len(waiting))
        running = [a for a in allocs if a["DesiredStatus"] == "run"]
        least_running = min(least_running, len(running))
        found = cluster.any_api.get("/v1/job/rolling/deployment")
        return found["JobVersion"] == 1 and found["Status"] == "successful"

    until(look, seconds=40, what="the update")
    assert most_new_and_unhealthy == 1
    assert least_running == 3
    state = wait_deployment(cluster, "rolling", 1, "successful")["TaskGroups"]["group"]
    assert (state["DesiredTotal"], state["PlacedAllocs"], state["HealthyAllocs"]) == (3, 3, 3)
    running = cluster.wait_allocs("rolling", "running", 3)
    assert {a["JobVersion"] for a in running} == {1}
    versions = cluster.any_api.get("/v1/job/rolling/versions")["Versions"]
    assert [(v["Version"], v["Stable"]) for v in versions] == [(1, True), (0, True)]
    cluster.stop_job("rolling")


def test_a_count_goes_up_and_down_and_what_stays_is_not_touched(cluster: RealCluster) -> None:
    first = {a["ID"] for a in cluster.run(job("counted", group(shell(SLEEP), count=1)))}
    wait_deployment(cluster, "counted", 0, "successful")
    body = {"Count": 4, "Target": {"Group": "group"}, "Message": "more"}
    cluster.any_api.put("/v1/job/counted/scale", body)
    more = {a["ID"] for a in cluster.wait_allocs("counted", "running", 4)}
    assert first < more
    cluster.any_api.put("/v1/jobs", {"Job": job("counted", group(shell(SLEEP), count=2))})
    fewer = cluster.wait_allocs("counted", "running", 2)
    assert {a["Name"] for a in fewer} == {"counted.group[0]", "counted.group[1]"}
    assert {a["ID"] for a in fewer} < more
    cluster.stop_job("counted")


def test_a_batch_job_completes_and_a_failing_one_fails_after_its_restarts(
    cluster: RealCluster, image: str
) -> None:
    policy = {"Attempts": 2, "Interval": 600 * SECOND, "Delay": SECOND // 10, "Mode": "fail"}
    never = {"Attempts": 0, "Unlimited": False}
    good = job(
        "good",
        group(shell("echo done"), name="plain", count=3),
        group(contained(image, "echo done"), name="boxed"),
        kind="batch",
    )
    bad = job(
        "bad",
        group(shell("echo try; exit 3"), RestartPolicy=policy, ReschedulePolicy=never),
        kind="batch",
    )
    for wanted in (good, bad):
        cluster.any_api.put("/v1/jobs", {"Job": wanted})
    for alloc in cluster.wait_allocs("good", "complete", 4):
        assert cluster.logs(alloc) == "done\n"
        assert cluster.alloc(alloc["ID"])["TaskStates"]["main"]["Failed"] is False
    (failed,) = cluster.wait_allocs("bad", "failed", 1)
    assert cluster.logs(failed) == "try\n" * 3
    state = cluster.alloc(failed["ID"])["TaskStates"]["main"]
    assert (state["State"], state["Failed"], state["Restarts"]) == ("dead", True, 2)
    types = event_types(cluster, failed)
    assert (types.count("Terminated"), types.count("Restarting")) == (3, 2)
    assert types[-1] == "Not Restarting"
    until(
        lambda: (
            {cluster.any_api.get(f"/v1/job/{j}")["Status"] for j in ("good", "bad")} == {"dead"}
        ),
        seconds=10,
        what="dead jobs",
    )


def test_a_system_job_runs_once_on_every_node(cluster: RealCluster) -> None:
    allocs = cluster.run(job("everywhere", group(shell(SLEEP)), kind="system"), count=3)
    assert {a["NodeName"] for a in allocs} == {"client-1", "client-2", "client-3"}
    cluster.stop_job("everywhere")


@pytest.mark.parametrize("driver", ["raw_exec", "docker"])
def test_kill_signal_and_kill_timeout_are_kept(
    cluster: RealCluster, image: str, driver: str
) -> None:
    polite = 'trap "echo goodbye; exit 0" USR1; echo ready; while true; do sleep 0.1; done'
    stubborn = 'trap "" USR1; echo ready; while true; do sleep 0.1; done'

    def task(script: str, name: str) -> Json:
        fields = {"name": name, "KillSignal": "SIGUSR1", "KillTimeout": 2 * SECOND}
        return (
            shell(script, **fields) if driver == "raw_exec" else contained(image, script, **fields)
        )

    job_id = f"signals-{driver}"
    (alloc,) = cluster.run(job(job_id, group(task(polite, "polite"), task(stubborn, "stubborn"))))
    for name in ("polite", "stubborn"):
        cluster.wait_log(alloc, "ready", task=name)
    began = time.monotonic()
    cluster.stop_job(job_id)
    took_s = time.monotonic() - began
    assert cluster.logs(alloc, task="polite") == "ready\ngoodbye\n"
    assert cluster.logs(alloc, task="stubborn") == "ready\n"
    assert 2.0 <= took_s < 8.0
    states = cluster.alloc(alloc["ID"])["TaskStates"]
    ended = {
        n: next(e for e in s["Events"] if e["Type"] == "Terminated") for n, s in states.items()
    }
    assert ended["polite"]["ExitCode"] == 0
    assert ended["stubborn"]["ExitCode"] == 137 or ended["stubborn"]["Signal"] == 9


# -- allocations -----------------------------------------------------------------------------------------------


def test_an_allocation_is_signalled_restarted_and_stopped(cluster: RealCluster) -> None:
    script = 'trap "echo got usr2" USR2; echo pid $$; while true; do sleep 0.1; done'
    (alloc,) = cluster.run(job("handled", group(shell(script))))
    pid = pid_of(cluster, alloc)
    api, path = cluster.any_api, f"/v1/client/allocation/{alloc['ID']}"
    api.put(f"{path}/signal", {"Signal": "SIGUSR2", "Task": "main"})
    cluster.wait_log(alloc, "got usr2")
    assert is_alive(pid)
    until(lambda: "Signaling" in event_types(cluster, alloc), seconds=5, what="the event")
    api.put(f"{path}/restart", {"TaskName": "main"})
    until(lambda: cluster.logs(alloc).count("pid") == 2, seconds=15, what="the second process")
    assert not is_alive(pid)
    again = int(cluster.logs(alloc).splitlines()[-1].split()[1])
    assert again != pid
    until(lambda: "Restart Signaled" in event_types(cluster, alloc), seconds=5, what="the event")
    stopped = api.put(f"/v1/allocation/{alloc['ID']}/stop")
    assert api.get(f"/v1/evaluation/{stopped['EvalID']}")["TriggeredBy"] == "alloc-stop"
    (replacement,) = cluster.wait_allocs("handled", "running", 1)
    until(
        lambda: cluster.allocs("handled", status="complete"), seconds=15, what="the old one's end"
    )
    (replacement,) = cluster.wait_allocs("handled", "running", 1)
    assert replacement["ID"] != alloc["ID"]
    assert not is_alive(again)
    path = f"/v1/client/allocation/{replacement['ID']}"
    refused = api.send("PUT", f"{path}/signal", {"Signal": "SIGUSR2", "Task": "nobody"})
    assert (refused.status, refused.body) == (
        500,
        "Could not find task runner for task: nobody",
    )
    cluster.stop_job("handled")


def test_logs_rotate_and_no_more_than_max_files_remain(cluster: RealCluster, image: str) -> None:
    lines = 60_000  # of 64 bytes: four files of a mebibyte
    script = f"busybox=$(command -v busybox); exec $busybox awk 'BEGIN {{ for (i = 1; i <= {lines}; i++) printf \"%063d\\n\", i }}'"
    log = {"MaxFiles": 2, "MaxFileSizeMB": 1}
    wanted = job(
        "talkative",
        group(shell(script, LogConfig=log), name="plain"),
        group(contained(image, script, LogConfig=log), name="boxed"),
        kind="batch",
    )
    cluster.any_api.put("/v1/jobs", {"Job": wanted})
    allocs = cluster.wait_allocs("talkative", "complete", 2)
    for alloc in allocs:
        folder = cluster.shared(alloc) / "logs"
        until(
            lambda f=folder, a=alloc: cluster.logs(a).endswith(f"{lines:063d}\n"),
            seconds=15,
            what="the last line",
        )
        files = sorted(folder.glob("main.stdout.*"))
        assert len(files) == 2, alloc["TaskGroup"]
        assert all(f.stat().st_size <= MEBIBYTE for f in files)
        text = "".join(f.read_text() for f in sorted(files, key=lambda f: int(f.suffix[1:])))
        numbers = [int(line) for line in text.splitlines()[1:]]
        assert numbers == list(range(numbers[0], lines + 1)), alloc["TaskGroup"]
        assert len(text) > MEBIBYTE


# -- bodies ----------------------------------------------------------------------------------------------------


def test_an_agent_refuses_a_body_too_large_and_json_too_deep_and_lives_on(
    cluster: RealCluster,
) -> None:
    for daemon in (cluster.servers[0], cluster.clients[0]):
        api = cluster.api(daemon)
        large = {"Job": {"ID": "large", "Meta": {"x": "y" * (33 * MEBIBYTE)}}}
        assert api.send("PUT", "/v1/jobs", large, timeout_s=60).status == 413
        deep: object = "bottom"
        for _ in range(900):  # json.dumps itself would fail deeper
            deep = [deep]
        reply = api.send("PUT", "/v1/jobs", {"Job": {"ID": "deep", "Meta": deep}})
        assert reply.status == 400
        assert api.get("/v1/status/leader")
    assert cluster.any_api.send("GET", "/v1/job/large").status == 404


# -- nodes -----------------------------------------------------------------------------------------------------


def node(cluster: RealCluster, name: str) -> Json:
    found: Json = next(n for n in cluster.any_api.get("/v1/nodes") if n["Name"] == name)
    return found


def test_a_drain_with_a_deadline_moves_everything_off_the_node(cluster: RealCluster) -> None:
    migrate = {
        "MaxParallel": 1,
        "HealthCheck": "task_states",
        "MinHealthyTime": SECOND // 2,
        "HealthyDeadline": 60 * SECOND,
    }
    allocs = cluster.run(job("moved", group(shell(SLEEP), count=4, Migrate=migrate)))
    system = cluster.run(job("agents", group(shell(SLEEP)), kind="system"), count=3)
    name = allocs[0]["NodeName"]
    node_id = allocs[0]["NodeID"]
    pids = [pid_of(cluster, a) for a in [*allocs, *system] if a["NodeName"] == name]
    assert len(pids) >= 2
    api = cluster.any_api
    api.put(f"/v1/node/{node_id}/drain", {"DrainSpec": {"Deadline": 60 * SECOND}})
    assert node(cluster, name)["SchedulingEligibility"] == "ineligible"
    least = 4

    def look() -> bool:
        nonlocal least
        least = min(least, len([a for a in cluster.allocs("moved") if a["DesiredStatus"] == "run"]))
        return not node(cluster, name)["Drain"]

    until(look, seconds=60, what="the end of the drain")
    running = cluster.wait_allocs("moved", "running", 4)
    assert name not in {a["NodeName"] for a in running}
    assert least >= 3
    until(lambda: not any(is_alive(p) for p in pids), seconds=15, what="the old tasks to end")
    here = api.get(f"/v1/node/{node_id}/allocations")
    assert {a["ClientStatus"] for a in here if a["JobID"] in ("moved", "agents")} <= {"complete"}
    assert node(cluster, name)["LastDrain"]["Status"] == "complete"
    api.put(f"/v1/node/{node_id}/eligibility", {"Eligibility": "eligible"})
    back = cluster.wait_allocs("agents", "running", 3)
    assert name in {a["NodeName"] for a in back}
    for job_id in ("moved", "agents"):
        cluster.stop_job(job_id)


def test_a_forced_drain_does_not_wait_for_replacements(cluster: RealCluster) -> None:
    only = [on_node("client-2")]
    (alloc,) = cluster.run(job("forced", group(shell(SLEEP), Constraints=only)))
    pid = pid_of(cluster, alloc)
    path = f"/v1/node/{alloc['NodeID']}"
    cluster.any_api.put(f"{path}/drain", {"DrainSpec": {"Deadline": -1}})
    until(lambda: not is_alive(pid), seconds=20, what="the task to end")
    until(lambda: not node(cluster, "client-2")["Drain"], seconds=20, what="the end of the drain")
    # There is nowhere else to go: the job waits, and runs again as soon as the node may be used.
    assert cluster.allocs("forced", status="running") == []
    statuses = {e["Status"] for e in cluster.any_api.get("/v1/job/forced/evaluations")}
    assert "blocked" in statuses
    cluster.any_api.put(f"{path}/eligibility", {"Eligibility": "eligible"})
    cluster.wait_allocs("forced", "running", 1)
    cluster.stop_job("forced")


def test_tasks_of_a_lost_node_run_elsewhere_soon_and_the_node_comes_back(
    cluster: RealCluster,
) -> None:
    reschedule = {
        "Attempts": 0,
        "Unlimited": True,
        "Delay": 5 * SECOND,
        "DelayFunction": "constant",
    }
    allocs = cluster.run(job("survivor", group(shell(SLEEP), count=3, ReschedulePolicy=reschedule)))
    name = allocs[0]["NodeName"]
    lost = [a for a in allocs if a["NodeName"] == name]
    pids = {a["ID"]: pid_of(cluster, a) for a in allocs}
    # The machine goes: the agent, and the tasks with it.
    daemon = cluster.daemon(name)
    daemon.kill()
    for alloc in lost:
        os.kill(pids[alloc["ID"]], signal.SIGKILL)
    began = time.monotonic()
    until(lambda: node(cluster, name)["Status"] == "down", seconds=DOWN_LIMIT_S, what="down")
    down_s = time.monotonic() - began
    running = cluster.wait_allocs("survivor", "running", 3)
    print(
        f"\n{name} was marked down {down_s:.1f} s after its death, and its tasks ran elsewhere {time.monotonic() - began:.1f} s after it"
    )
    assert name not in {a["NodeName"] for a in running}
    for alloc in lost:
        found = cluster.alloc(alloc["ID"])
        assert (found["DesiredStatus"], found["ClientStatus"]) == ("stop", "lost")
        assert found["NextAllocation"] in {a["ID"] for a in running}
    for alloc in allocs:
        if alloc not in lost:
            assert is_alive(pids[alloc["ID"]])
            assert alloc["ID"] in {a["ID"] for a in running}
    daemon.start()
    until(lambda: node(cluster, name)["Status"] == "ready", seconds=30, what="the node's return")
    time.sleep(1)
    assert {a["ID"] for a in cluster.allocs("survivor", status="running")} == {
        a["ID"] for a in running
    }
    cluster.stop_job("survivor")


def test_a_node_that_was_only_silent_stops_what_was_replaced(cluster: RealCluster) -> None:
    (alloc,) = cluster.run(job("silent", group(shell(SLEEP))))
    pid = pid_of(cluster, alloc)
    daemon = cluster.daemon(alloc["NodeName"])
    daemon.kill()

    def replaced() -> bool:
        return any(a["ID"] != alloc["ID"] for a in cluster.allocs("silent", status="running"))

    until(replaced, seconds=DOWN_LIMIT_S, what="the replacement")
    assert is_alive(pid)
    daemon.start()
    until(lambda: not is_alive(pid), seconds=30, what="the replaced task to be stopped")
    (present,) = cluster.wait_allocs("silent", "running", 1)
    assert present["ID"] != alloc["ID"]
    cluster.stop_job("silent")
