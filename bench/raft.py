"""Raft alone: three server processes on one machine, real disks, mutual TLS, commands proposed in the leader's process.

    python -m bench.raft [--seconds 5] [--proposers 1,64,256] [--size 200] [--no-fsync] [--data DIR]

Prints for each number of proposers: commands a second, latency, CPU time a command on leader and on one follower;
then linearizable reads, the CPU share of the idle cluster, and the time from killing the leader to the next write.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from nomadpy import logs
from nomadpy.clock import SystemClock
from nomadpy.entropy import SystemEntropy
from nomadpy.errors import NomadError
from nomadpy.pki.ca import write_ca, write_certificate
from nomadpy.pki.tls import load_material
from nomadpy.raft import PeerSpec, RaftConfig, RaftNode, RealFiles
from nomadpy.rpc.network import ByteStream
from nomadpy.rpc.tls_network import TLSNetwork

SERVERS = 3
_LAG_SAMPLE_S = 0.005


class Table:
    """A state machine of the cheapest kind: the last value of each key (the first 8 bytes)."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def apply(self, index: int, data: bytes) -> object:
        self.values[data[:8]] = data
        return index

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        values = list(self.values.values())
        return lambda: iter(values)

    def restore(self, chunks: Iterator[bytes]) -> None:
        self.values = {chunk[:8]: chunk for chunk in chunks}


# ---- one server


async def serve(number: int, ports: list[int], folder: Path, *, fsync: bool) -> None:
    peers = [PeerSpec(f"id-{n}", f"server-{n}", f"127.0.0.1:{p}") for n, p in enumerate(ports)]
    me = peers[number]
    material = load_material(
        folder / "nomad-agent-ca.pem",
        folder / "global-server-nomad.pem",
        folder / "global-server-nomad-key.pem",
    )
    network = TLSNetwork(material)
    node = RaftNode(
        RaftConfig(
            server_id=me.id,
            name=me.name,
            address=me.address,
            data_dir=str(folder / me.name),
            fsync=fsync,
        ),
        Table(),
        network=network,
        files=RealFiles(),
        clock=SystemClock(),
        entropy=SystemEntropy(),
    )

    async def accept(stream: ByteStream) -> None:
        if await stream.read(1) == b"R":
            await node.serve(stream)

    listening = await network.listen(me.address, accept)
    gc.collect()
    gc.freeze()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.run())
            if not node.initialized:
                await node.bootstrap(peers)
            await _obey(node)
    finally:
        await listening.close()


async def _obey(node: RaftNode) -> None:
    """Read one JSON request a line, answer with one line."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        request = json.loads(line)
        answer: dict[str, Any]
        if request["do"] == "status":
            answer = {"leader": node.is_leader, "applied": node.applied_index, **node.stats()}
        elif request["do"] == "write":
            answer = await _load(node, request, _write_once)
        elif request["do"] == "read":
            answer = await _load(node, request, _read_once)
        else:
            answer = await _one_write(node)
        print(json.dumps(answer), flush=True)


async def _write_once(node: RaftNode, payload: bytes) -> None:
    await node.propose(payload)


async def _read_once(node: RaftNode, _payload: bytes) -> None:
    await node.read_index()


async def _one_write(node: RaftNode) -> dict[str, Any]:
    try:
        await node.propose(b"failover", timeout_s=2)
    except NomadError as cause:
        return {"ok": False, "why": cause.code}
    return {"ok": True}


async def _load(node: RaftNode, request: dict[str, Any], once: Any) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    lags: list[float] = []
    errors = 0
    end = loop.time() + request["seconds"]

    async def proposer(number: int) -> None:
        nonlocal errors
        count = 0
        body = os.urandom(request["size"] - 8)
        while (began := loop.time()) < end:
            payload = b"%04d%04d" % (number, count % 100) + body
            count += 1
            try:
                await once(node, payload)
            except NomadError:
                errors += 1
                await asyncio.sleep(0.01)
            else:
                latencies.append(loop.time() - began)

    async def lag() -> None:
        while (due := loop.time() + _LAG_SAMPLE_S) < end:
            await asyncio.sleep(_LAG_SAMPLE_S)
            lags.append(loop.time() - due)

    began, syncs, rounds = loop.time(), node.journal.syncs, int(node.stats()["rounds"])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(lag())
        for number in range(request["proposers"]):
            tasks.create_task(proposer(number))
    elapsed = loop.time() - began
    return {
        "count": len(latencies),
        "rate": len(latencies) / elapsed,
        "p50_ms": _percentile(latencies, 0.5) * 1000,
        "p99_ms": _percentile(latencies, 0.99) * 1000,
        "lag_p99_ms": _percentile(lags, 0.99) * 1000,
        "syncs": node.journal.syncs - syncs,
        "rounds": int(node.stats()["rounds"]) - rounds,
        "errors": errors,
    }


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


# ---- the measurement


class Server:
    """A child process."""

    def __init__(self, number: int, ports: list[int], folder: Path, *, fsync: bool) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bench.raft",
                "--serve",
                str(number),
                "--ports",
                ",".join(map(str, ports)),
                "--data",
                str(folder),
                *([] if fsync else ["--no-fsync"]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.usage = psutil.Process(self.process.pid)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def cpu_s(self) -> float:
        times = self.usage.cpu_times()
        return times.user + times.system

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def leader_of(servers: list[Server]) -> Server:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for server in servers:
            if server.process.poll() is None and server.ask(do="status")["leader"]:
                return server
        time.sleep(0.02)
    raise SystemExit("no leader within 20 s")


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    now_ns = SystemClock().now_ns()
    write_certificate(folder, *write_ca(folder, now_ns=now_ns), "server", now_ns=now_ns)
    ports = free_ports(SERVERS)
    servers = [Server(n, ports, folder, fsync=arguments.fsync) for n in range(SERVERS)]
    try:
        leader = leader_of(servers)
        follower = next(s for s in servers if s is not leader)
        print(f"{SERVERS} servers, {arguments.size}-byte commands, fsync {arguments.fsync}, mTLS")
        print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")
        header = "what    proposers      per s   p50 ms   p99 ms  CPU us leader/follower  batch  loop lag p99 ms  errors"
        print(header)
        for what in ("write", "read"):
            for proposers in map(int, arguments.proposers.split(",")):
                before = leader.cpu_s(), follower.cpu_s()
                found = leader.ask(
                    do=what,
                    proposers=proposers,
                    seconds=arguments.seconds,
                    size=arguments.size,
                )
                count = max(1, found["count"])
                cpu = [
                    1e6 * (now - then) / count
                    for now, then in zip((leader.cpu_s(), follower.cpu_s()), before, strict=True)
                ]
                print(
                    f"{what:6} {proposers:10} {found['rate']:10.0f} {found['p50_ms']:8.2f} {found['p99_ms']:8.2f}"
                    f" {cpu[0]:10.0f} / {cpu[1]:<9.0f} {count / max(1, found['syncs']):6.1f}"
                    f" {found['lag_p99_ms']:15.1f} {found['errors']:8}"
                )
        before = leader.cpu_s(), follower.cpu_s()
        time.sleep(5)
        idle = [
            100 * (now - then) / 5
            for now, then in zip((leader.cpu_s(), follower.cpu_s()), before, strict=True)
        ]
        print(f"idle: leader {idle[0]:.2f} % CPU, follower {idle[1]:.2f} %")
        began = time.monotonic()
        leader.stop()
        servers.remove(leader)
        while not leader_of(servers).ask(do="one")["ok"]:
            time.sleep(0.01)
        print(
            f"kill -9 of the leader to the next committed write: {time.monotonic() - began:.2f} s"
        )
    finally:
        for server in servers:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--proposers", default="1,64,256")
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--data", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--no-fsync", dest="fsync", action="store_false")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ports", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        logs.configure("warn")
        ports = [int(port) for port in arguments.ports.split(",")]
        asyncio.run(serve(arguments.serve, ports, arguments.data, fsync=arguments.fsync))
        return
    with tempfile.TemporaryDirectory(dir=arguments.data) as folder:
        measure(arguments, Path(folder))


if __name__ == "__main__":
    main()
