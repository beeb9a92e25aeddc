"""An agent process on a real disk with real tasks, killed at bad moments: the tasks must not notice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real_time]

AGENT = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from agent_world import SECOND, FakeServers, LoopClock, NoLogs, allocation, task
import msgspec
from agent.agent import Agent, AgentConfig
from agent.drivers.raw_exec import RawExecDriver, RawExecPolicy
from agent.services.certificates import NoCredentials
from nomadpy.clock import SystemClock
from nomadpy.entropy import SystemEntropy
from nomadpy.models.node import Node
from nomadpy.models.stats import HostStats

BASE, PLAN = Path(sys.argv[1]), json.loads(sys.argv[3])

async def main():
    servers = FakeServers()
    servers.index = 100 if PLAN["stop"] else 10
    done = json.loads((BASE / "done.json").read_text()) if (BASE / "done.json").exists() else {}
    for number, (name, script, kind) in enumerate(PLAN["jobs"], start=1):
        it = task(name, config={"command": "/bin/sh", "args": ["-c", script]})
        it = msgspec.structs.replace(it, driver="raw_exec")
        alloc = allocation(it, number=number, kind=kind)
        if PLAN["stop"]:
            alloc = msgspec.structs.replace(alloc, desired_status="stop")
        servers.want(msgspec.structs.replace(alloc, client_status=done.get(alloc.id, "pending")))

    async def fingerprint():
        return Node()

    async def host_stats():
        return HostStats()

    clock = SystemClock()
    agent = Agent(
        AgentConfig(name="n1", data_dir=str(BASE / "data"), alloc_dir=str(BASE / "allocs")),
        caller=servers, drivers={"raw_exec": RawExecDriver(clock, RawExecPolicy(enabled=True))},
        fingerprint=fingerprint, host_stats=host_stats, task_logs=NoLogs(),
        clock=clock, entropy=SystemEntropy(), credentials=NoCredentials(),
    )
    async def tell():
        while True:
            await asyncio.sleep(0.02)
            seen = {i: a.client_status for i, a in servers.reported.items()}
            (BASE / "done.json.new").write_text(json.dumps(seen))
            (BASE / "done.json.new").rename(BASE / "done.json")
            print(json.dumps({
                a.job_id + "/" + next(iter(a.task_states)): a.client_status for a in servers.reported.values()
                if a.task_states
            }), flush=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(agent.run())
        group.create_task(tell())

asyncio.run(main())
"""


class AgentProcess:
    """One agent process; `until` reads what it says of its allocations."""

    def __init__(self, base: Path, jobs: list[tuple[str, str, str]], *, stop: bool = False) -> None:
        plan = json.dumps({"jobs": jobs, "stop": stop})
        self._process = subprocess.Popen(
            [sys.executable, "-c", AGENT, str(base), os.path.dirname(__file__), plan],
            stdout=subprocess.PIPE,
            stderr=(base / "agent.log").open("a"),
            text=True,
        )

    def until(self, condition: Callable[[dict[str, str]], Any], within_s: float = 30.0) -> None:
        end = time.monotonic() + within_s
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if condition(json.loads(line)):
                return
            assert time.monotonic() < end, f"still {line}"
        raise AssertionError("the agent ended")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(autouse=True)
def unmounted(tmp_path: Path) -> Iterator[None]:
    """Unmount what killed agents left mounted."""
    yield
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = line.split()[4]
        if place.startswith(f"{tmp_path}/"):
            subprocess.run(["umount", "-l", place], check=True)


def pid_in(path: Path, within_s: float = 10.0) -> int:
    end = time.monotonic() + within_s
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_task_keeps_its_process_over_kill_9_of_the_agent_and_stops_when_told(
    tmp_path: Path,
) -> None:
    jobs = [("web", f"echo $$ > {tmp_path}/pid; exec sleep 600", "service")]
    first = AgentProcess(tmp_path, jobs)
    first.until(lambda s: s.get("web/web") == "running")
    pid = pid_in(tmp_path / "pid")
    first.kill()
    assert is_alive(pid)
    second = AgentProcess(tmp_path, jobs)
    second.until(lambda s: s.get("web/web") == "running")
    assert is_alive(pid)
    assert pid_in(tmp_path / "pid") == pid
    second.kill()
    third = AgentProcess(tmp_path, jobs, stop=True)
    third.until(lambda s: s.get("web/web") == "complete")
    third.kill()
    assert not is_alive(pid)


@pytest.mark.parametrize("damage", ["zeros", "row"])
def test_when_local_state_is_damaged_a_task_is_ended_and_started_anew_and_never_runs_twice(
    tmp_path: Path, damage: str
) -> None:
    script = f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600"
    jobs = [("web", script, "service")]
    first = AgentProcess(tmp_path, jobs)
    first.until(lambda s: s.get("web/web") == "running")
    pid = pid_in(tmp_path / "pid")
    first.kill()
    (tmp_path / "pid").unlink()
    (tmp_path / "done.json").unlink()
    path = tmp_path / "data" / "client.db"
    if damage == "zeros":
        path.write_bytes(bytes(4096))
        path.with_name("client.db-wal").write_bytes(bytes(4096))
    else:
        with sqlite3.connect(path) as database:
            database.execute("UPDATE allocs SET since_ns = since_ns + 1")
        database.close()
    second = AgentProcess(tmp_path, jobs)
    second.until(lambda s: s.get("web/web") == "running")
    again = pid_in(tmp_path / "pid")
    assert again != pid
    assert not is_alive(pid)
    assert "tasks of an unknown allocation ended" in (tmp_path / "agent.log").read_text()
    second.kill()
    third = AgentProcess(tmp_path, jobs, stop=True)
    third.until(lambda s: s.get("web/web") == "complete")
    third.kill()
    assert not is_alive(again)


def test_an_exit_code_is_not_lost_when_the_agent_is_dead_at_the_end(tmp_path: Path) -> None:
    jobs = [("bad", "sleep 1; exit 7", "batch"), ("good", "sleep 1", "batch")]
    first = AgentProcess(tmp_path, jobs)
    first.until(lambda s: s.get("web/bad") == "running" and s.get("web/good") == "running")
    first.kill()
    time.sleep(1.5)
    second = AgentProcess(tmp_path, jobs)
    second.until(lambda s: s.get("web/bad") == "failed" and s.get("web/good") == "complete")
    second.kill()


@pytest.mark.slow
def test_a_batch_task_runs_once_at_a_time_whenever_the_agent_dies(tmp_path: Path) -> None:
    """Kill the agent at many moments around the start: at no time two copies, and at last it is done."""
    script = (
        f"mkdir {tmp_path}/lock || {{ echo twice >> {tmp_path}/twice; exit 1; }};"
        f" trap 'rmdir {tmp_path}/lock' EXIT; echo run >> {tmp_path}/runs; sleep 0.4"
    )
    jobs = [("once", script, "batch")]
    for moment in (0.35, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 1.0):
        agent = AgentProcess(tmp_path, jobs)
        time.sleep(moment)
        agent.kill()
    last = AgentProcess(tmp_path, jobs)
    last.until(lambda s: s.get("web/once") in ("complete", "failed"))
    last.kill()
    assert not (tmp_path / "twice").exists()
    assert (tmp_path / "runs").read_text() == "run\n"
    assert not (tmp_path / "lock").exists()
