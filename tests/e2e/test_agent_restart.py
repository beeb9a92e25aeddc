"""The agent dies and comes back: its tasks do not notice, no line of theirs is lost or doubled, no ending is missed."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest
from real_cluster import Json, RealCluster, contained, group, job, real_cluster, shell

from nomadpy.demo.client import until
from nomadpy.demo.dockerd import Docker
from nomadpy.demo.leftovers import is_alive

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

AWAY_S = 2.5
COUNT = 'echo "pid $$"; i=0; while true; do i=$((i+1)); echo "line $i"; sleep 0.03; done'
RUNS = itertools.count(1)
# Waits for its order; the order is a file, so that it can be given while the agent is away.
EXIT_7_ONCE = """
if [ -e $NOMAD_ALLOC_DIR/data/ran ]; then echo second run; exec sleep 600; fi
echo first run; echo > $NOMAD_ALLOC_DIR/data/ran
while [ ! -e $NOMAD_ALLOC_DIR/data/go ]; do sleep 0.05; done
exit 7
"""
EXIT_7 = 'while [ ! -e $NOMAD_ALLOC_DIR/data/go ]; do sleep 0.05; done; echo "last words"; exit 7'
EAT_MEMORY = """
while [ ! -e $NOMAD_ALLOC_DIR/data/go ]; do sleep 0.05; done
x=0123456789abcdef; while true; do x=$x$x$x$x; done
"""
ONE_RESTART = {"Attempts": 1, "Interval": 600_000_000_000, "Delay": 100_000_000, "Mode": "fail"}
NO_RESTART = {"Attempts": 0, "Interval": 600_000_000_000, "Delay": 0, "Mode": "fail"}
NO_RESCHEDULE = {"Attempts": 0, "Unlimited": False}


@pytest.fixture(scope="module")
def cluster(docker: Docker) -> Iterator[RealCluster]:
    """One server and one client over mutual TLS."""
    with real_cluster(docker, servers=1, clients=1) as running:
        yield running


def numbers(text: str) -> list[int]:
    """The numbered lines of a log."""
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("line ")]


def away(cluster: RealCluster, orders: list[Json]) -> None:
    """Kill the agent, give orders to tasks, and start it again some seconds later."""
    agent = cluster.clients[0]
    agent.kill()
    for alloc in orders:
        (cluster.shared(alloc) / "data" / "go").write_text("")
    time.sleep(AWAY_S)
    agent.start()


def test_tasks_keep_their_process_their_container_and_every_line_over_kill_9_of_the_agent(
    cluster: RealCluster, image: str
) -> None:
    plain, boxed = sorted(
        cluster.run(
            job(
                "counters",
                group(shell(COUNT), name="plain"),
                group(contained(image, COUNT), name="zboxed"),
            )
        ),
        key=lambda a: str(a["TaskGroup"]),
    )
    pid = int(cluster.wait_log(plain, "line 1\n").split()[1])
    container = cluster.container(boxed)
    cluster.wait_log(boxed, "line 1\n")
    agent = cluster.clients[0]
    # The third kill comes while the agent is still taking its tasks up again.
    for away_s, up_s in ((AWAY_S, 3.0), (0.4, 0.8), (AWAY_S, 0.0)):
        agent.kill()
        assert is_alive(pid)
        time.sleep(away_s)
        agent.start()
        time.sleep(up_s)
    seen = {}
    for alloc in (plain, boxed):
        seen[alloc["ID"]] = max(
            numbers(until(lambda a=alloc: cluster.logs(a), seconds=20, what="log"))
        )

    def goes_on() -> bool:
        return all(max(numbers(cluster.logs(a))) > seen[a["ID"]] + 20 for a in (plain, boxed))

    until(goes_on, seconds=20, what="the logs to go on")
    for alloc in (plain, boxed):
        found = numbers(cluster.logs(alloc))
        assert found == list(range(1, len(found) + 1)), alloc["Name"]
        assert "pid" in cluster.logs(alloc).splitlines()[0]
    assert is_alive(pid)
    now = cluster.container(boxed)
    assert now["Id"] == container["Id"]
    assert now["State"]["Pid"] == container["State"]["Pid"]
    assert now["State"]["StartedAt"] == container["State"]["StartedAt"]
    present = {a["ID"]: a for a in cluster.allocs("counters")}
    assert set(present) == {plain["ID"], boxed["ID"]}, cluster.explain("counters")
    for alloc in present.values():
        assert (alloc["DesiredStatus"], alloc["ClientStatus"]) == ("run", "running")
        state = alloc["TaskStates"]["main"]
        assert state["Restarts"] == 0
        assert [e["Type"] for e in state["Events"]].count("Started") == 1
    cluster.stop_job("counters")
    assert not is_alive(pid)


def test_what_ended_while_the_agent_was_away_is_reported_and_restarted_by_its_policy(
    cluster: RealCluster, image: str
) -> None:
    # Another job each time: what an earlier run of this test left on the cluster is not this one's.
    name = f"endings-{next(RUNS)}"
    again = {"RestartPolicy": ONE_RESTART}
    over = {"RestartPolicy": NO_RESTART, "ReschedulePolicy": NO_RESCHEDULE}
    allocs = cluster.run(
        job(
            name,
            group(shell(EXIT_7_ONCE), name="plain-again", **again),
            group(contained(image, EXIT_7_ONCE), name="boxed-again", **again),
            group(shell(EXIT_7), name="plain-over", **over),
            group(contained(image, EXIT_7), name="boxed-over", **over),
            group(contained(image, EAT_MEMORY), name="boxed-oom", **over),
            kind="batch",
        )
    )
    by_group = {a["TaskGroup"]: a for a in allocs}
    for group_name in ("plain-again", "boxed-again"):
        cluster.wait_log(by_group[group_name], "first run")
    away(cluster, allocs)
    cluster.wait_allocs(name, "failed", 3)
    for group_name in ("plain-again", "boxed-again"):
        assert cluster.wait_log(by_group[group_name], "second run") == "first run\nsecond run\n"
    # While a task waits for its restart, its allocation is pending.
    cluster.wait_allocs(name, "running", 2)
    for group_name, alloc in by_group.items():
        found = cluster.alloc(alloc["ID"])
        state = found["TaskStates"]["main"]
        ended = [e for e in state["Events"] if e["Type"] == "Terminated"]
        assert len(ended) == 1, group_name
        assert ended[0]["Details"]["exit_code"] == ("137" if group_name == "boxed-oom" else "7"), (
            group_name
        )
        assert ended[0]["ExitCode"] == (137 if group_name == "boxed-oom" else 7), group_name
        if group_name.endswith("again"):
            assert state["Restarts"] == 1
            assert state["State"] == "running"
            assert "Restarting" in [e["Type"] for e in state["Events"]]
        else:
            assert found["ClientStatus"] == "failed"
            assert state["Failed"] is True
            assert state["State"] == "dead"
        if group_name.endswith("over"):
            assert cluster.logs(alloc) == "last words\n"
    events = cluster.alloc(by_group["boxed-oom"]["ID"])["TaskStates"]["main"]["Events"]
    told = next(e for e in events if e["Type"] == "Terminated")
    assert told["Details"]["oom_killed"] == "true"
    assert "OOM Killed" in told["DisplayMessage"]
    cluster.stop_job(name)


def test_what_was_stopped_or_changed_while_the_agent_was_away_is_so_after_its_return(
    cluster: RealCluster, image: str
) -> None:
    script = 'echo "pid $$"; while true; do sleep 0.1; done'
    stopped = job(
        "stopped", group(shell(script), name="plain"), group(contained(image, script), name="boxed")
    )
    allocs = cluster.run(stopped)
    (changed,) = cluster.run(job("changed", group(shell(script))))
    plain = next(a for a in allocs if a["TaskGroup"] == "plain")
    pids = [int(cluster.wait_log(a, "pid ").split()[1]) for a in (plain, changed)]
    agent = cluster.clients[0]
    # A stop by the operator, not a crash: it leaves tasks alone too.
    assert agent.stop() == 0
    assert all(is_alive(p) for p in pids)
    cluster.any_api.delete("/v1/job/stopped")
    cluster.any_api.put("/v1/jobs", {"Job": job("changed", group(shell(script, Env={"NEW": "1"})))})
    agent.start()
    cluster.wait_allocs("stopped", "complete", 2)
    until(lambda: not any(is_alive(p) for p in pids), seconds=20, what="the old tasks to end")
    (now,) = cluster.wait_allocs("changed", "running", 1)
    assert now["ID"] != changed["ID"]
    cluster.stop_job("changed")


def test_an_agent_that_finds_its_container_gone_starts_another_and_says_so(
    cluster: RealCluster, image: str
) -> None:
    (alloc,) = cluster.run(job("gone", group(contained(image, COUNT))))
    first = cluster.container(alloc)["Id"]
    cluster.clients[0].kill()
    assert cluster.docker is not None
    with contextlib.closing(cluster.docker.client()) as client:
        client.containers.get(first).remove(force=True)
    cluster.clients[0].start()

    def told() -> list[str]:
        state = cluster.alloc(alloc["ID"])["TaskStates"]["main"]
        return [e["Type"] for e in state["Events"]]

    until(lambda: told().count("Started") == 2, seconds=30, what="a second container")
    assert "Driver" in told()
    assert cluster.container(alloc)["Id"] != first
    (present,) = cluster.wait_allocs("gone", "running", 1)
    assert present["ID"] == alloc["ID"]
    cluster.stop_job("gone")
