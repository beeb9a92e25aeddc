"""Placement: real servers, simulated nodes, jobs over the HTTP API; how fast allocations come to exist.

    python -m bench.placement [--nodes 1000] [--shape big] [--servers 1|3] [--jobs 1000] [--count 10] [--clients 16]
                              [--big 10000] [--runs 1] [--idle SECONDS]
                              [--against http://HOST:PORT [--against-pid PID] [--against-driver NAME]]

Three workloads: one batch job of --big allocations, one such service job, and --jobs jobs of --count allocations each
registered by --clients concurrent clients. A placement counts when the job's summary shows it. One server speaks plain
HTTP; three speak TLS, and the leader is asked. --idle first measures what the nodes alone cost: with `--mode live`, their
heartbeats and blocking queries. --against then does the same work on another server of the same API over plain HTTP, and
prints both; only fields that Nomad knows are sent. Everything started here is stopped and removed at the end; jobs put
on the other server are purged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from nomadpy.demo.client import until
from nomadpy.demo.cluster import HOST, Daemon, LocalCluster, free_ports

AGAINST = """\
The other server must have its nodes already, as many and as large: nothing is started for it. Whatever keeps them
registered will do; for a server of ours:

    nomadpy simulate nodes -count 1000 -shape big -mode static -address HOST:4647

They must have the driver that tasks ask for (--against-driver). Figures that only its processes could tell stand as `-`,
unless --against-pid names one of this machine.
"""

START_S = 60.0
PLACE_S = 300.0
SETTLE_S = 5.0
COLLECT_S = 120.0
"""How long the other server may take to forget a purged job."""

Figures = dict[str, float | None]
"""By name; None is what cannot be known."""


class Target:
    """A server under load: its API, and the processes whose time and memory are counted."""

    def __init__(
        self,
        name: str,
        base: str,
        pids: list[int],
        tls: ssl.SSLContext | None,
        *,
        driver: str = "raw_exec",
        ours: bool = True,
    ) -> None:
        """driver: of the tasks. ours: it forgets a purged job by itself."""
        self.name = name
        self.base = base
        self.pids = pids
        self.tls = tls
        self.driver = driver
        self.ours = ours

    def cpu_s(self) -> float | None:
        """CPU seconds that the processes and their children have used; None when there is none to look at."""
        if not self.pids:
            return None
        return sum(sum(process.cpu_times()[:2]) for process in self._processes())

    def cpu_since(self, before: float | None) -> float | None:
        """CPU seconds used since `cpu_s` was `before`."""
        now = self.cpu_s()
        return None if now is None or before is None else now - before

    def rss_mb(self) -> float | None:
        """Their resident memory, MiB; None as for `cpu_s`."""
        if not self.pids:
            return None
        return sum(process.memory_info().rss for process in self._processes()) / 2**20

    def _processes(self) -> list[psutil.Process]:
        found = [psutil.Process(pid) for pid in self.pids]
        return [*found, *(child for one in found for child in one.children(recursive=True))]


class Api:
    """As much of the HTTP API as the work needs."""

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session = session
        self._target = target

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """One request; RuntimeError when it is refused."""
        options: dict[str, Any] = {"ssl": self._target.tls} if self._target.tls else {}
        url = f"{self._target.base}{path}"
        async with self._session.request(method, url, json=body, **options) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise RuntimeError(f"{method} {url}: {answer.status} {text[:300]}")
            # Some answers of Nomad have no body.
            return json.loads(text) if text else None

    async def placed(self, job_id: str) -> int:
        """How many allocations of the job exist."""
        summary = await self.ask("GET", f"/v1/job/{job_id}/summary")
        return _placed(summary["Summary"])


def _placed(summary: dict[str, dict[str, int]] | None) -> int:
    return sum(
        number
        for group in (summary or {}).values()
        for name, number in group.items()
        if name != "Queued"
    )


def job(job_id: str, count: int, kind: str, driver: str) -> dict[str, Any]:
    """A registration of one group with one small task."""
    task = {
        "Name": "task",
        "Driver": driver,
        "Config": {"command": "/bin/sleep", "args": ["3600"]},
        "Resources": {"CPU": 10, "MemoryMB": 10},
        "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1},
    }
    group = {"Name": "group", "Count": count, "EphemeralDisk": {"SizeMB": 10}, "Tasks": [task]}
    return {"Job": {"ID": job_id, "Type": kind, "Datacenters": ["*"], "TaskGroups": [group]}}


async def idle(target: Target, seconds: float) -> Figures:
    """What the nodes cost when nothing else happens, once their registration is over."""
    await asyncio.sleep(SETTLE_S)
    cpu_s = target.cpu_s()
    await asyncio.sleep(seconds)
    used_s = target.cpu_since(cpu_s)
    return {
        "cores": None if used_s is None else used_s / seconds,
        "server RSS MB": target.rss_mb(),
    }


async def one_large(api: Api, target: Target, job_id: str, count: int, kind: str) -> Figures:
    """One job; the time from its registration until all its allocations exist."""
    cpu_s, began = target.cpu_s(), time.perf_counter()
    await api.ask("PUT", "/v1/jobs", job(job_id, count, kind, target.driver))
    submitted = time.perf_counter() - began
    while await api.placed(job_id) < count:
        if time.perf_counter() - began > PLACE_S:
            raise RuntimeError(f"{job_id}: not all of {count} placed in {PLACE_S:.0f} s")
        await asyncio.sleep(0.02)
    elapsed = time.perf_counter() - began
    return _figures(target, count, elapsed, cpu_s, [submitted])


async def many_small(
    api: Api, target: Target, prefix: str, jobs: int, count: int, clients: int
) -> Figures:
    """Many jobs from concurrent clients; the time until the allocations of all exist."""
    numbers = iter(range(jobs))
    latencies: list[float] = []
    cpu_s, began = target.cpu_s(), time.perf_counter()

    async def client() -> None:
        for number in numbers:
            asked = time.perf_counter()
            wanted = job(f"{prefix}{number:05}", count, "service", target.driver)
            await api.ask("PUT", "/v1/jobs", wanted)
            latencies.append(time.perf_counter() - asked)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    while True:
        asked = time.perf_counter()
        stubs = await api.ask("GET", f"/v1/jobs?prefix={prefix}")
        if sum(_placed(stub["JobSummary"]["Summary"]) for stub in stubs) >= jobs * count:
            break
        if time.perf_counter() - began > PLACE_S:
            raise RuntimeError(f"not all of {jobs} jobs placed in {PLACE_S:.0f} s")
        # A long list is asked for seldom, so that asking is not what is measured.
        await asyncio.sleep(max(0.05, 5 * (time.perf_counter() - asked)))
    elapsed = time.perf_counter() - began
    return _figures(target, jobs * count, elapsed, cpu_s, latencies)


def _figures(
    target: Target, placed: int, elapsed: float, cpu_s: float | None, latencies: list[float]
) -> Figures:
    ordered = sorted(latencies)
    return {
        "placements/s": placed / elapsed,
        "register p50 ms": ordered[len(ordered) // 2] * 1000,
        "register p99 ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000,
        "server CPU s": target.cpu_since(cpu_s),
        "server RSS MB": target.rss_mb(),
    }


async def measure(target: Target, options: argparse.Namespace) -> dict[str, list[Figures]]:
    """All workloads on one server; each workload's figures, run by run."""
    results: dict[str, list[Figures]] = {}
    connector = aiohttp.TCPConnector(limit=options.clients + 2)
    timeout = aiohttp.ClientTimeout(total=PLACE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        api = Api(session, target)
        await _wait_nodes(api, options.nodes)
        if options.idle:
            results[f"{options.nodes:,} nodes, no work"] = [await idle(target, options.idle)]
        for run in range(options.runs):
            own = f"placement-{os.getpid()}-{run}"
            for kind in ("batch", "service"):
                name = f"1 {kind} job x {options.big:,}"
                found = await one_large(api, target, f"{own}-{kind}", options.big, kind)
                results.setdefault(name, []).append(found)
                await _purge(api, target, [f"{own}-{kind}"])
            name = f"{options.jobs:,} jobs x {options.count}, {options.clients} clients"
            found = await many_small(
                api, target, f"{own}-small-", options.jobs, options.count, options.clients
            )
            results.setdefault(name, []).append(found)
            small = [f"{own}-small-{number:05}" for number in range(options.jobs)]
            await _purge(api, target, small)
    return results


async def _wait_nodes(api: Api, wanted: int) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(RuntimeError, aiohttp.ClientError):
            nodes = await api.ask("GET", "/v1/nodes")
            if sum(node["Status"] == "ready" for node in nodes) >= wanted:
                return
        await asyncio.sleep(0.3)
    raise RuntimeError(f"not {wanted} ready nodes within {START_S:.0f} s")


async def _purge(api: Api, target: Target, job_ids: list[str]) -> None:
    """Purge jobs, and wait until all they left is gone: removing it is not what is measured next."""
    for job_id in job_ids:
        await api.ask("DELETE", f"/v1/job/{job_id}?purge=true")
    end = time.monotonic() + COLLECT_S
    left = True
    while left:
        await asyncio.sleep(0.5)
        if not target.ours:
            await api.ask("PUT", "/v1/system/gc", {})
            if time.monotonic() > end:
                print(f"{target.name} still has allocations of {job_ids[0]}", flush=True)
                return
        left = bool(await api.ask("GET", "/v1/evaluations?status=pending&per_page=1")) or any(
            [await api.ask("GET", f"/v1/job/{job_id}/allocations") for job_id in job_ids[:1]]
        )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return len(answer.read()) > len('""')
    except OSError:
        return False


@contextlib.contextmanager
def servers(folder: Path, number: int) -> Iterator[tuple[Target, list[str], list[str]]]:
    """Running servers: the one to ask, their rpc addresses, and the flags of whoever dials them."""
    if number == 1:
        http, rpc = free_ports(2)
        daemon = Daemon("server-1", "server", folder / "server-1", http, rpc)
        daemon.folder.mkdir()
        daemon.config_file.write_text(
            f'data_dir = "{daemon.folder / "data"}"\nbind_addr = "{HOST}"\nlog_level = "WARN"\n'
            f"ports {{\n  http = {http}\n  rpc  = {rpc}\n}}\n"
            "server {\n  enabled          = true\n  bootstrap_expect = 1\n}\n",
            encoding="utf-8",
        )
        daemon.start()
        try:
            until(
                lambda: _answers(f"http://{daemon.http}/v1/status/leader"),
                seconds=START_S,
                what="a leader",
            )
            yield (
                Target("nomadpy", f"http://{daemon.http}", [daemon.pid], None),
                [f"{HOST}:{rpc}"],
                [],
            )
        finally:
            daemon.stop()
        return
    with LocalCluster(folder, servers=number, clients=0) as cluster:
        cluster.prepare()
        cluster.start()
        leader = cluster.wait_leader()
        files = cluster.certificates
        tls = ssl.create_default_context(cafile=str(files / "nomad-agent-ca.pem"))
        tls.check_hostname = False
        tls.load_cert_chain(files / "global-cli-nomad.pem", files / "global-cli-nomad-key.pem")
        target = Target(
            f"nomadpy x{number}", f"https://{leader.http}", [d.pid for d in cluster.servers], tls
        )
        flags = [f"-ca={files / 'nomad-agent-ca.pem'}"]
        flags += [f"-cert={files / 'global-client-nomad.pem'}"]
        flags += [f"-key={files / 'global-client-nomad-key.pem'}"]
        yield target, [f"{HOST}:{leader.rpc_port}"], flags


@contextlib.contextmanager
def simulated_nodes(
    options: argparse.Namespace, addresses: list[str], flags: list[str]
) -> Iterator[None]:
    """Nodes of their own process; they are registered when the block begins."""
    line = [sys.executable, "-m", "nomadpy", "simulate", "nodes", f"-count={options.nodes}"]
    line += [f"-shape={options.shape}", f"-mode={options.mode}", *flags]
    line += [f"-address={address}" for address in addresses]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        print(process.stdout.readline().strip() or "the nodes were not registered", flush=True)
        yield
    finally:
        process.terminate()
        process.wait()


def table(columns: dict[str, dict[str, list[Figures]]]) -> str:
    """The figures, a median over runs each, one row for each workload and figure; `-` for what is not known."""
    names = list(columns)
    lines = ["| workload | figure | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    first = columns[names[0]]
    for workload, runs in first.items():
        for figure in runs[0]:
            cells = []
            for results in columns.values():
                values = sorted(
                    value for run in results[workload] if (value := run[figure]) is not None
                )
                if not values:
                    cells.append("-")
                    continue
                middle = values[len(values) // 2]
                cells.append(f"{middle:,.0f}" if middle >= 100 else f"{middle:.2f}")
            lines.append(f"| {workload} | {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=AGAINST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--shape", default="big")
    parser.add_argument("--mode", default="static", choices=("static", "live"))
    parser.add_argument("--servers", type=int, default=1, choices=(1, 3, 5))
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--big", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--idle", type=float, default=0.0, help="seconds to measure without work")
    parser.add_argument("--against", default="", help="another server's http://HOST:PORT")
    parser.add_argument("--against-pid", type=int, default=0, help="its process, on this machine")
    parser.add_argument("--against-driver", default="raw_exec", help="the driver its nodes have")
    options = parser.parse_args()
    if options.against and not options.against.startswith("http://"):
        parser.error("--against takes http://HOST:PORT")

    columns: dict[str, dict[str, list[Figures]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="nomadpy-placement-") as folder,
        servers(Path(folder), options.servers) as (target, addresses, flags),
        simulated_nodes(options, addresses, flags),
    ):
        columns[target.name] = asyncio.run(measure(target, options))
    if options.against:
        pids = [options.against_pid] if options.against_pid else []
        base = options.against.rstrip("/")
        other = Target(base, base, pids, None, driver=options.against_driver, ours=False)
        columns[other.name] = asyncio.run(measure(other, options))
    load = os.getloadavg()[0]
    print(f"{options.nodes:,} nodes of shape {options.shape}, load average at the end {load:.1f}\n")
    print(table(columns))


if __name__ == "__main__":
    main()
