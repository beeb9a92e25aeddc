"""How full a cluster gets before the first allocation finds no room, and how few nodes it needs on the way.

Nodes of four shapes, and a fixed mix of jobs of one to eight tasks until one does not fit; the figures stand beside a lower
bound: the fewest nodes that could hold what was placed, the largest first. In-process on the real scheduler; with
`--against` the same jobs go over plain HTTP to another server of the same API, with fields that Nomad knows only.

    ./run bench packing
    ./run bench packing --algorithms binpack,balanced --seeds 11,21,22 --against http://127.0.0.1:4646
"""

from __future__ import annotations

import argparse
import json
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bench.in_process import Cluster, one_group
from nomadpy.entropy import SeededEntropy
from nomadpy.simulator.nodes import simulated

AGAINST = """\
The other server must have empty nodes of its own, as many and of the same shape for figures that compare: nothing is
started for it. It packs as it is configured to. For a server of ours:

    nomadpy simulate nodes -count 300 -shape hetero -mode static -address HOST:4647

They must have the driver that tasks ask for (--against-driver). Its jobs are purged after each seed.
"""

COLLECT_S = 120.0

MIX = (
    (100, 256, 30),
    (250, 512, 20),
    (500, 1024, 15),
    (500, 2048, 10),
    (1000, 4096, 8),
    (2000, 2048, 5),
    (2000, 8192, 5),
    (3500, 7168, 4),
    (6000, 24576, 3),
)
"""MHz, MiB, weight: tasks that want CPU and memory in the proportion of the nodes, in all."""
MOST_TASKS = 8
MARKS = (0.3, 0.5, 0.7, 0.8)
SEEDS = (11, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30)
"""Of the tables in docs/performance.md. What was tuned was tuned on seeds from 101."""

Used = dict[str, tuple[int, int]]
"""By node: MHz and MiB that allocations take."""


class Figures(NamedTuple):
    """Shares of the whole at the first failure, and (nodes used, lower bound) at each mark that was reached."""

    cpu: float
    memory: float
    nodes: dict[float, tuple[int, int]]
    seconds: float


def asks(seed: int) -> Iterator[tuple[int, int, int]]:
    """MHz, MiB and number of tasks of one job after the other, for ever."""
    chance = random.Random(seed)
    shapes, weights = [(cpu, memory) for cpu, memory, _ in MIX], [weight for *_, weight in MIX]
    while True:
        cpu, memory = chance.choices(shapes, weights)[0]
        yield cpu, memory, chance.randint(1, MOST_TASKS)


def fill(
    capacity: Used, seed: int, place: Callable[[str, int, int, int], bool], used: Callable[[], Used]
) -> Figures:
    """place: register one job, False when not all of it found a node. used: what is on the nodes now."""
    began = time.perf_counter()
    total = [sum(sizes) for sizes in zip(*capacity.values(), strict=True)]
    wanted = [0, 0]
    marks, reached = list(MARKS), {}
    for number, (cpu, memory, count) in enumerate(asks(seed)):
        if not place(f"pack-{seed}-{number:05}", count, cpu, memory):
            break
        wanted[0] += cpu * count
        wanted[1] += memory * count
        if marks and max(wanted[0] / total[0], wanted[1] / total[1]) >= marks[0]:
            reached[marks.pop(0)] = (len(used()), lower_bound(capacity, wanted))
    taken = [sum(sizes) for sizes in zip(*used().values(), strict=True)]
    return Figures(taken[0] / total[0], taken[1] / total[1], reached, time.perf_counter() - began)


def lower_bound(capacity: Used, wanted: list[int]) -> int:
    """The fewest nodes that have as much in all, for the dimension that needs more of them."""
    most = 0
    for dimension, need in enumerate(wanted):
        covered = nodes = 0
        for size in sorted((one[dimension] for one in capacity.values()), reverse=True):
            if covered >= need:
                break
            covered += size
            nodes += 1
        most = max(most, nodes)
    return most


def in_process(algorithm: str, seed: int, number: int, kind: str) -> Figures:
    """One run on a new cluster."""
    members = simulated("hetero", number, datacenter="dc1", entropy=SeededEntropy(1))
    capacity = {
        node.id: (node.node_resources.cpu.cpu_shares, node.node_resources.memory.memory_mb)
        for node in members
        if node.node_resources
    }
    cluster = Cluster(members, algorithm)

    def place(job_id: str, count: int, cpu: int, memory: int) -> bool:
        decision = cluster.run(one_group(job_id, count, cpu, memory, kind=kind))
        return not decision.failed_tg_allocs

    def used() -> Used:
        rows = {node_id: cluster.table.row(node_id) for node_id in capacity}
        return {name: (row.cpu, row.memory_mb) for name, row in rows.items() if row and row.count}

    figures = fill(capacity, seed, place, used)
    cluster.check()
    return figures


def ask(base: str, method: str, path: str, body: object = None) -> Any:
    """One HTTP request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{base}{path}", data, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = answer.read()
    # Some answers of Nomad have no body.
    return json.loads(text) if text else None


def over_http(base: str, seed: int, kind: str, driver: str) -> Figures:
    """One run on a server whose nodes are empty; its jobs are purged afterwards."""
    capacity = {}
    for node in ask(base, "GET", "/v1/nodes?resources=true"):
        if node["Status"] != "ready":
            continue
        have = node["NodeResources"]
        capacity[node["ID"]] = (have["Cpu"]["CpuShares"], have["Memory"]["MemoryMB"])
    registered: list[str] = []

    def place(job_id: str, count: int, cpu: int, memory: int) -> bool:
        task = {
            "Name": "task",
            "Driver": driver,
            "Config": {"command": "/bin/sleep", "args": ["3600"]},
            "Resources": {"CPU": cpu, "MemoryMB": memory},
            "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1},
        }
        group = {"Name": "group", "Count": count, "EphemeralDisk": {"SizeMB": 10}, "Tasks": [task]}
        job = {"ID": job_id, "Type": kind, "Datacenters": ["*"], "TaskGroups": [group]}
        evaluation = ask(base, "PUT", "/v1/jobs", {"Job": job})["EvalID"]
        registered.append(job_id)
        while True:
            found = ask(base, "GET", f"/v1/evaluation/{evaluation}")
            if found["Status"] in ("complete", "failed", "canceled", "blocked"):
                return not found.get("FailedTGAllocs")
            time.sleep(0.002)

    def used() -> Used:
        taken: Used = {}
        for alloc in ask(base, "GET", "/v1/allocations?resources=true"):
            if alloc["DesiredStatus"] != "run":
                continue
            cpu, memory = taken.get(alloc["NodeID"], (0, 0))
            for task in alloc["AllocatedResources"]["Tasks"].values():
                cpu += task["Cpu"]["CpuShares"]
                memory += task["Memory"]["MemoryMB"]
            taken[alloc["NodeID"]] = cpu, memory
        return taken

    try:
        return fill(capacity, seed, place, used)
    finally:
        for job_id in registered:
            ask(base, "DELETE", f"/v1/job/{job_id}?purge=true")
        end = time.monotonic() + COLLECT_S
        while any(one["JobID"] in registered for one in ask(base, "GET", "/v1/allocations")):
            if time.monotonic() > end:
                raise RuntimeError(f"{base} still has allocations of jobs that were purged")
            ask(base, "PUT", "/v1/system/gc", {})
            time.sleep(0.5)


def row(name: str, runs: dict[int, Figures]) -> str:
    """A line of the table: the first seed on its own, then the mean of the others."""
    first, *others = runs.values()
    cells = [f"{first.cpu:.1%} / {first.memory:.1%}"]
    cells.append(
        f"{sum(one.cpu for one in others) / len(others):.1%} / {sum(one.memory for one in others) / len(others):.1%}"
        f" ({min(one.cpu for one in others):.1%}-{max(one.cpu for one in others):.1%})"
        if others
        else "-"
    )
    for mark in MARKS:
        reached = [one.nodes[mark] for one in runs.values() if mark in one.nodes]
        at_first = first.nodes.get(mark)
        cells.append(
            f"{at_first[0]} ({at_first[1]}); {sum(one[0] for one in reached) / len(reached):.0f}"
            if at_first
            else "-"
        )
    cells.append(f"{sum(one.seconds for one in runs.values()) / len(runs):.1f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=AGAINST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--kind", default="service", choices=("service", "batch"))
    parser.add_argument("--algorithms", default="binpack,spread,balanced")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--against", default="", help="another server's http://HOST:PORT")
    parser.add_argument("--against-driver", default="raw_exec", help="the driver its nodes have")
    options = parser.parse_args()
    if options.against and not options.against.startswith("http://"):
        parser.error("--against takes http://HOST:PORT")

    seeds = [int(one) for one in options.seeds.split(",")]
    print(f"{options.nodes} nodes of shape hetero, {options.kind} jobs, seeds {options.seeds}\n")
    marks = " | ".join(f"nodes at {mark:.0%}" for mark in MARKS)
    print(
        f"| algorithm | first failure, CPU / memory, seed {seeds[0]} | mean of the others (range) | {marks} | s |"
    )
    print("|---|---|---|" + "---|" * (len(MARKS) + 1))
    for algorithm in filter(None, options.algorithms.split(",")):
        runs = {seed: in_process(algorithm, seed, options.nodes, options.kind) for seed in seeds}
        print(row(algorithm, runs), flush=True)
    if options.against:
        base = options.against.rstrip("/")
        driver = options.against_driver
        print(row(base, {seed: over_http(base, seed, options.kind, driver) for seed in seeds}))
    print("\nnodes: of the first seed (in brackets the lower bound); mean of all seeds")


if __name__ == "__main__":
    main()
