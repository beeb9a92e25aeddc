"""What NumPy columns would save the scheduler: for one large job, and for jobs that all ask for something else.

    pip install --target FOLDER numpy          (it is no dependency)
    PYTHONPATH=FOLDER ./run bench columns [--nodes 1000,5000,10000] [--count 10000]

The first table chooses nodes for --count equal tasks in two ways that choose the same: the score of every node, then a
heap of those. The scores are made with columns, or one by one from lists. Beside them stands what the scheduler itself
takes for such a job, everything included: reconciling, ids, allocations with the scores that they tell. The second
table is jobs of ten tasks: the scheduler's whole decision when all ask for the same and when each of 200 in turn asks
for something else, so that it keeps the order of nodes for none; and one pass of scores with columns. CPU time of one
thread, the best of some runs; decisions on a table that has seen a job before.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import importlib
import math
import time
from typing import Any, NamedTuple

from bench.in_process import START_NS, Cluster, one_group
from nomadpy.entropy import SeededEntropy, SystemEntropy
from nomadpy.models.job import Job
from nomadpy.models.node import Node
from nomadpy.scheduler.ranking import anti_affinity, pack_score
from nomadpy.scheduler.schedule import schedule
from nomadpy.simulator.nodes import simulated

RUNS = 5
KINDS = 200
SMALL_JOBS = 200


class Sizes(NamedTuple):
    """MHz, MiB and MiB of disk."""

    cpu: int
    memory_mb: int
    disk_mb: int


ASK = Sizes(100, 256, 10)


class Timed(NamedTuple):
    """CPU seconds of both steps, and the nodes that were chosen, one for each task."""

    scores_s: float
    heap_s: float
    chosen: list[int]


def by_lists(nodes: list[Sizes], count: int) -> Timed:
    """Scores one by one."""
    began = time.thread_time()
    heap = [
        (-pack_score(ASK.cpu, ASK.memory_mb, have.cpu, have.memory_mb), place)
        for place, have in enumerate(nodes)
        if ASK.cpu <= have.cpu and ASK.memory_mb <= have.memory_mb and ASK.disk_mb <= have.disk_mb
    ]
    scored = time.thread_time()
    chosen = fill(heap, nodes, count)
    return Timed(scored - began, time.thread_time() - scored, chosen)


def by_columns(np: Any, columns: Any, count: int) -> Timed:
    """Scores of all nodes at once; columns: totals of cpu, memory and disk, each a float64 array."""
    began = time.thread_time()
    scores = score_columns(np, columns)
    able = np.flatnonzero(scores > -np.inf)
    heap = list(zip((-scores[able]).tolist(), able.tolist(), strict=True))
    nodes = [Sizes(*sizes) for sizes in zip(*(one.tolist() for one in columns), strict=True)]
    scored = time.thread_time()
    chosen = fill(heap, nodes, count)
    return Timed(scored - began, time.thread_time() - scored, chosen)


def score_columns(np: Any, columns: Any) -> Any:
    """As `pack_score` of each node; minus infinity where the task does not fit."""
    cpu, memory, disk = columns
    free_cpu, free_memory = 1 - ASK.cpu / cpu, 1 - ASK.memory_mb / memory
    scores = 20.0 - np.exp(free_cpu * math.log(10)) - np.exp(free_memory * math.log(10))
    np.clip(scores, 0.0, 18.0, out=scores)
    scores /= 18.0
    scores[(free_cpu < 0) | (free_memory < 0) | (disk < ASK.disk_mb)] = -np.inf
    return scores


def fill(heap: list[tuple[float, int]], nodes: list[Sizes], count: int) -> list[int]:
    """Take the best node, score it anew with the job's own tasks against it, `count` times."""
    heapq.heapify(heap)
    chosen: list[int] = []
    taken: dict[int, int] = {}
    while heap and len(chosen) < count:
        place = heap[0][1]
        chosen.append(place)
        have = nodes[place]
        number = taken[place] = taken.get(place, 0) + 1
        cpu, memory = ASK.cpu * (number + 1), ASK.memory_mb * (number + 1)
        if cpu > have.cpu or memory > have.memory_mb or ASK.disk_mb * (number + 1) > have.disk_mb:
            heapq.heappop(heap)
            continue
        packing = pack_score(cpu, memory, have.cpu, have.memory_mb)
        heapq.heapreplace(heap, (-(packing + anti_affinity(number, count)) / 2, place))
    return chosen


def best(runs: list[Timed]) -> Timed:
    """The quickest run."""
    return min(runs, key=lambda timed: timed.scores_s + timed.heap_s)


def decided_s(cluster: Cluster, job: Job) -> float:
    """CPU seconds of the scheduler's decision about a job; it is not applied."""
    cluster.register(job)
    evaluation, snapshot = cluster.evaluation(job), cluster.store.snapshot()
    began = time.thread_time()
    decision = schedule(
        evaluation, snapshot, now_ns=START_NS, entropy=cluster.entropy, table=cluster.table
    )
    taken = time.thread_time() - began
    assert decision.plan is not None
    return taken


def warm(members: list[Node]) -> Cluster:
    """A cluster that has run a job."""
    cluster = Cluster(members, "binpack")
    cluster.entropy = SystemEntropy()
    cluster.run(one_group("first", 1, ASK.cpu, ASK.memory_mb))
    return cluster


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", default="1000,5000,10000")
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    try:
        np = importlib.import_module("numpy")
    except ImportError:
        parser.error("NumPy is not here: pip install --target FOLDER numpy, and PYTHONPATH=FOLDER")
    gc.disable()
    large: list[str] = []
    small: list[str] = []
    for number in map(int, options.nodes.split(",")):
        members = simulated("big", number, datacenter="dc1", entropy=SeededEntropy(1))
        nodes = [_sizes(node) for node in members]
        columns = [np.array(one, dtype=np.float64) for one in zip(*nodes, strict=True)]
        lists = best([by_lists(nodes, options.count) for _ in range(RUNS)])
        arrays = best([by_columns(np, columns, options.count) for _ in range(RUNS)])
        if sorted(lists.chosen) != sorted(arrays.chosen):
            print(f"{number} nodes: the two ways do not choose the same")
        cluster = warm(members)
        whole = min(
            decided_s(cluster, one_group(f"large-{n}", options.count, ASK.cpu, ASK.memory_mb))
            for n in range(3)
        )
        large.append(
            f"| {number:,} | {_ms(arrays.scores_s)} + {_ms(arrays.heap_s)} | {_ms(lists.scores_s)} +"
            f" {_ms(lists.heap_s)} | {_ms(whole)} |"
        )
        alike, apart = (
            sum(
                decided_s(warmed, one_group(f"small-{n}", 10, 10 + n % kinds, ASK.memory_mb))
                for n in range(SMALL_JOBS)
            )
            / SMALL_JOBS
            for kinds, warmed in ((1, warm(members)), (KINDS, warm(members)))
        )
        began = time.thread_time()
        for _ in range(KINDS):
            score_columns(np, columns).argmax()
        a_pass = (time.thread_time() - began) / KINDS
        small.append(f"| {number:,} | {_ms(alike)} | {_ms(apart)} | {_ms(a_pass)} |")
    print(f"{options.count:,} tasks that ask for the same, ms of CPU; NumPy {np.__version__}\n")
    print("| nodes | scores + heap, columns | scores + heap, lists | whole decision |")
    print("|---|---|---|---|\n" + "\n".join(large))
    print("\na job of ten tasks, ms of CPU\n")
    print(
        "| nodes | decision, same ask | decision, another ask each | one pass of scores, columns |"
    )
    print("|---|---|---|---|\n" + "\n".join(small))


def _sizes(node: Node) -> Sizes:
    have = node.node_resources
    assert have is not None
    return Sizes(have.cpu.cpu_shares, have.memory.memory_mb, have.disk.disk_mb)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}" if seconds < 0.01 else f"{seconds * 1000:.0f}"


if __name__ == "__main__":
    main()
