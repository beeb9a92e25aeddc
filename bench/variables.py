"""Variables over HTTP: check-and-set on keys of their own, by one client and by many.

    python -m bench.variables [--seconds 10] [--clients 1,64] [--where dev,cluster] [--json]

Where: a development agent (one server, nothing is synced to disk) and three servers with mutual TLS on loopback, each
its own process, every write synced by two of them. Clients keep a connection each; in the cluster they are spread over
the servers, so two thirds of the writes are forwarded. Every write names the index that the one before gave; one that
is refused counts as an error. The clients share one process, whose own share of the processor is shown: where it is
near 1, the clients are what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil

from nomadpy.demo.client import ApiClient, ApiError, until
from nomadpy.demo.cluster import LocalCluster, free_ports

WARM_S = 1.0


class Target(msgspec.Struct):
    """Something to write to. processes: whose processor time is counted, the leader first."""

    name: str
    addresses: list[str]
    processes: list[int]
    tls: ssl.SSLContext | None = None


class Result(msgspec.Struct):
    """Times in milliseconds. cpu_us: of all servers for one answer; client_share: of one processor."""

    where: str
    clients: int
    answers_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float
    client_share: float
    errors: int


async def measure(target: Target, clients: int, seconds: float) -> Result:
    """Write with `clients` clients for a while, after a warm-up."""
    took: list[float] = []
    errors = 0
    begin = 0.0
    end = 0.0

    async def work(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal errors
        address = target.addresses[number % len(target.addresses)]
        path = f"{address}/v1/var/bench/{target.name}/{clients}/{number}"
        async with session.get(path) as response:
            found = await response.json(content_type=None) if response.status == 200 else {}
        index = found.get("ModifyIndex", 0)
        count = 0
        while (now := time.perf_counter()) < end:
            count += 1
            body = {"Items": {"count": str(count), "text": "x" * 100}}
            async with session.put(path, params={"cas": index}, json=body) as response:
                answer = await response.json(content_type=None)
                if response.status != 200:
                    errors += 1
                index = answer["ModifyIndex"]
            if now >= begin:
                took.append(time.perf_counter() - now)

    connector = aiohttp.TCPConnector(limit=0, ssl=target.tls or False)
    async with aiohttp.ClientSession(connector=connector) as session:
        begin = time.perf_counter() + WARM_S
        end = begin + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(work(session, number))
            await asyncio.sleep(WARM_S)
            before, mine = _processor_s(target.processes), time.process_time()
            await asyncio.sleep(seconds)
            used = _processor_s(target.processes) - before
            client_share = (time.process_time() - mine) / seconds
    took.sort()
    return Result(
        where=target.name,
        clients=clients,
        answers_s=len(took) / seconds,
        p50_ms=took[len(took) // 2] * 1000,
        p99_ms=took[int(len(took) * 0.99)] * 1000,
        max_ms=took[-1] * 1000,
        cpu_us=used / len(took) * 1e6,
        client_share=client_share,
        errors=errors,
    )


@contextlib.contextmanager
def dev_agent(folder: Path) -> Iterator[Target]:
    """A fresh development agent."""
    http, rpc, serf = free_ports(3)
    config = folder / "agent.json"
    config.write_text(
        json.dumps({"ports": {"http": http, "rpc": rpc, "serf": serf}, "log_level": "WARN"})
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NOMAD_")}
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nomadpy", "agent", "-dev", "-config", str(config)],
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        _await_writes(ApiClient(f"127.0.0.1:{http}"))
        yield Target("dev", [f"http://127.0.0.1:{http}"], [process.pid])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Target]:
    """Three servers with mutual TLS."""
    with LocalCluster(folder, servers=3, clients=0) as made:
        made.prepare()
        made.start()
        leader = made.wait_leader()
        _await_writes(made.api(leader))
        files = made.environment(leader)
        tls = ssl.create_default_context(cafile=files["NOMAD_CACERT"])
        tls.load_cert_chain(files["NOMAD_CLIENT_CERT"], files["NOMAD_CLIENT_KEY"])
        servers = [leader, *(s for s in made.servers if s is not leader)]
        yield Target(
            "cluster", [f"https://{s.http}" for s in servers], [s.pid for s in servers], tls
        )


WHERE = {"dev": dev_agent, "cluster": cluster}


def _await_writes(api: ApiClient) -> None:
    def look() -> bool:
        try:
            return api.send("PUT", "/v1/var/bench/ready", {"Items": {"a": "b"}}).status == 200
        except ApiError:
            return False

    until(look, seconds=30, what="the first write")


def _processor_s(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(t.user + t.system for t in times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="variables over HTTP, check-and-set on distinct keys"
    )
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", default="1,64")
    parser.add_argument("--where", default="dev,cluster")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: list[Result] = []
    for where in options.where.split(","):
        with tempfile.TemporaryDirectory() as folder, WHERE[where](Path(folder) / "") as target:
            for clients in map(int, options.clients.split(",")):
                result = asyncio.run(measure(target, clients, options.seconds))
                results.append(result)
                if not options.json:
                    _show(result)
    if options.json:
        rows: list[Any] = [msgspec.to_builtins(r) for r in results]
        print(json.dumps(rows, indent=2))


def _show(r: Result) -> None:
    print(
        f"{r.where:8} {r.clients:3} clients: {r.answers_s:6.0f} answers/s  p50 {r.p50_ms:6.2f} ms  "
        f"p99 {r.p99_ms:6.2f} ms  max {r.max_ms:6.1f} ms  {r.cpu_us:5.0f} us of servers' processor an answer  "
        f"client {r.client_share:.0%}  errors {r.errors}",
        flush=True,
    )


if __name__ == "__main__":
    main()
