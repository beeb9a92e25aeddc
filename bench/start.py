"""What a development agent costs: to start, while it idles, and to be asked once.

    python -m bench.start [--runs 5] [--idle 20]

Every run starts `nomadpy agent -dev` anew on free ports. Wall times depend on what else the machine does, so processor
seconds stand beside them. Bytecode is kept in a directory of its own and made in a first run that does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.raft import free_ports

GIVE_UP_S = 60.0
POLL_S = 0.01
SETTLE_S = 3.0
MB = 1 << 20


class Start(msgspec.Struct):
    """One start. Seconds since the spawn, by the wall and of the processor (the whole process tree)."""

    leader_s: float
    ready_s: float
    cpu_s: float


class Idle(msgspec.Struct):
    """A running agent that nobody asks anything. Bytes of the process tree; cpu_percent of one core."""

    rss: int
    pss: int
    cpu_percent: float
    threads: int


class DevAgent:
    """One `nomadpy agent -dev` on ports of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        http_port, rpc_port = free_ports(2)
        self.address = f"127.0.0.1:{http_port}"
        config = folder / "ports.hcl"
        config.write_text(f"ports {{\n  http = {http_port}\n  rpc  = {rpc_port}\n}}\n")
        self._log = (folder / "agent.log").open("w")
        self.spawned = time.monotonic()
        self.process = subprocess.Popen(
            [nomadpy(), "agent", "-dev", "-config", str(config)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        self.tree = psutil.Process(self.process.pid)

    def get(self, path: str) -> Any:
        """The JSON answer, or None while there is none."""
        connection = http.client.HTTPConnection(self.address, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return json.loads(response.read()) if response.status == 200 else None
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def seconds_until(self, path: str, answered: Any) -> float:
        """Seconds from the spawn to the first answer that `answered` accepts."""
        while time.monotonic() < self.spawned + GIVE_UP_S:
            if answered(self.get(path)):
                return time.monotonic() - self.spawned
            if self.process.poll() is not None:
                break
            time.sleep(POLL_S)
        raise SystemExit(f"the agent did not come up; its log: {self._log.name}")

    def processes(self) -> list[psutil.Process]:
        """The agent and whatever it started."""
        return [self.tree, *self.tree.children(recursive=True)]

    def cpu_s(self) -> float:
        """Processor seconds of the process tree so far, ended children included."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
        return total

    def stop(self) -> None:
        """End it and wait."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def nomadpy() -> str:
    """The command line of the environment that runs this."""
    return str(Path(sys.executable).with_name("nomadpy"))


def start(agent: DevAgent) -> Start:
    """Wait for a leader and a ready node."""
    leader_s = agent.seconds_until("/v1/status/leader", bool)
    ready_s = agent.seconds_until(
        "/v1/nodes", lambda nodes: any(node["Status"] == "ready" for node in nodes or ())
    )
    return Start(leader_s, ready_s, agent.cpu_s())


def idle(agent: DevAgent, seconds: float) -> Idle:
    """Leave it alone for a while."""
    time.sleep(SETTLE_S)
    cpu_before, began = agent.cpu_s(), time.monotonic()
    time.sleep(seconds)
    cpu_s, elapsed_s = agent.cpu_s() - cpu_before, time.monotonic() - began
    memory = [process.memory_full_info() for process in agent.processes()]
    return Idle(
        rss=sum(m.rss for m in memory),
        pss=sum(m.pss for m in memory),
        cpu_percent=100 * cpu_s / elapsed_s,
        threads=sum(process.num_threads() for process in agent.processes()),
    )


def ask(agent: DevAgent, environment: dict[str, str]) -> float:
    """Processor seconds of one `nomadpy job status`."""
    child = subprocess.Popen(
        [nomadpy(), "job", "status"],
        stdout=subprocess.DEVNULL,
        env={**environment, "NOMAD_ADDR": f"http://{agent.address}"},
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit("nomadpy job status failed")
    return usage.ru_utime + usage.ru_stime


def row(name: str, values: list[float], target: float | None, unit: str) -> str:
    """Median and extremes, and whether the median keeps to the target."""
    middle = statistics.median(values)
    verdict = "" if target is None else f"{target:g}  {'ok' if middle <= target else 'OVER'}"
    return f"{name:44} {middle:8.2f} {min(values):8.2f} {max(values):8.2f}  {unit:3} {verdict}"


def measure(folder: Path, runs: int, idle_s: float) -> None:
    """Run everything and print the table."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    starts: list[Start] = []
    idles: list[Idle] = []
    asks: list[float] = []
    for number in range(runs + 1):
        agent = DevAgent(folder, environment)
        try:
            measured = start(agent)
            asked = ask(agent, environment)
            if number == 0:
                continue
            starts.append(measured)
            asks.append(asked)
            if number == runs:
                idles.append(idle(agent, idle_s))
                asks += [ask(agent, environment) for _ in range(runs)]
        finally:
            agent.stop()
    quiet = idles[-1]
    print(
        f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors, {runs} starts, idle for {idle_s:g} s"
    )
    print(f"{'':44} {'median':>8} {'least':>8} {'most':>8}       target")
    print(row("spawn to a leader", [s.leader_s for s in starts], 1.5, "s"))
    print(row("spawn to a ready node", [s.ready_s for s in starts], None, "s"))
    print(row("processor time up to the ready node", [s.cpu_s for s in starts], None, "s"))
    print(row("memory, idle (RSS, process tree)", [quiet.rss / MB], 120, "MB"))
    print(row("memory, idle (PSS, process tree)", [quiet.pss / MB], None, "MB"))
    print(row("processor, idle, of one core", [quiet.cpu_percent], 2, "%"))
    print(row("processor time of `nomadpy job status`", asks, 0.25, "s"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--idle", type=float, default=20)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nomadpy-bench-"))
    try:
        measure(folder, arguments.runs, arguments.idle)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
