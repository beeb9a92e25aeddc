"""How many GPUs of a cluster find work, when jobs of a trace arrive in random order until more has come than there is.

The trace is openb (Alibaba, 2023): 1,213 nodes with 6,212 GPUs of several models, and 8,152 jobs that want nothing, a share
of a GPU, or up to eight. It is not part of this repository: https://github.com/alibaba/clusterdata, folder
`cluster-trace-gpu-v2023/csv`; `--trace` is that folder. The figures to compare with are those of "Beware of
Fragmentation" (USENIX ATC 2023), figure 9(a): GPUs allocated when 100 % (130 %) of them have been asked for, mean of ten
orders. In-process, on the real scheduler; a job that finds no room is not tried again.

    ./run bench fragmentation --trace PATH
    ./run bench fragmentation --trace PATH --jobs openb_pod_list_multigpu50.csv --seeds 1-3
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.in_process import Cluster, one_group
from nomadpy.entropy import SeededEntropy
from nomadpy.models.constraint import Constraint
from nomadpy.models.resources import RequestedDevice
from nomadpy.simulator.nodes import simulated

NODES = "openb_node_list_gpu_node.csv"
JOBS = "openb_pod_list_default.csv"
MARKS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
"""GPUs that have been asked for, as a share of those that there are."""
SEEDS = "1-10"
"""Of the table in docs/benchmarks.md. What was tuned was tuned on seeds from 101."""


class Ask(NamedTuple):
    """A job of the trace. milli: thousandths of a GPU, of each of `gpus`. models: "" takes any, else `A|B`."""

    cpu: int
    memory_mb: int
    gpus: int
    milli: int
    models: str

    def devices(self) -> list[RequestedDevice] | None:
        """What it asks for, as a job says it."""
        if not self.gpus:
            return None
        constraints = (
            [
                Constraint(
                    l_target="${device.model}", operand="regexp", r_target=f"^({self.models})$"
                )
            ]
            if self.models
            else None
        )
        share = self.milli if self.milli < 1000 else None
        return [
            RequestedDevice(
                name="nvidia/gpu", count=self.gpus, share=share, constraints=constraints
            )
        ]


class Run(NamedTuple):
    """GPUs in use at each mark, as a share of all; jobs that came and that were placed."""

    allocated: dict[float, float]
    arrived: int
    placed: int
    seconds: float


def read_jobs(path: Path) -> list[Ask]:
    """The jobs of a trace file, in its order."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Ask(
                max(1, int(row["cpu_milli"])),
                int(row["memory_mib"]),
                int(row["num_gpu"]),
                int(row["gpu_milli"]),
                row.get("gpu_spec") or "",
            )
            for row in csv.DictReader(file)
        ]


def arrivals(asks: list[Ask], seed: int) -> Iterator[Ask]:
    """The jobs in random order, over and over."""
    chance = random.Random(seed)
    while True:
        order = list(asks)
        chance.shuffle(order)
        yield from order


def fill(algorithm: str, trace: Path, jobs: str, seed: int) -> Run:
    """One run on a new cluster."""
    members = simulated(f"openb:{trace / NODES}", None, datacenter="dc1", entropy=SeededEntropy(1))
    total = 1000 * sum(
        len(group.instances or [])
        for node in members
        if node.node_resources
        for group in node.node_resources.devices or []
    )
    cluster = Cluster(members, algorithm)
    began = time.perf_counter()
    marks, allocated = list(MARKS), {}
    asked = used = placed = 0
    for number, ask in enumerate(arrivals(read_jobs(trace / jobs), seed)):
        wanted = ask.gpus * ask.milli
        job = one_group(
            f"job-{number:05}", 1, ask.cpu, ask.memory_mb, kind="batch", devices=ask.devices()
        )
        asked += wanted
        if not cluster.run(job).failed_tg_allocs:
            used += wanted
            placed += 1
        while marks and asked >= marks[0] * total:
            allocated[marks.pop(0)] = used / total
        if not marks:
            break
    cluster.check()
    return Run(allocated, number + 1, placed, time.perf_counter() - began)


def parse_seeds(text: str) -> list[int]:
    """`1-3,7` as numbers."""
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        found.extend(range(int(low), int(high or low) + 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trace", type=Path, required=True, help="folder with the trace's files")
    parser.add_argument("--jobs", default=JOBS, help="which of its lists of jobs")
    parser.add_argument("--algorithms", default="binpack")
    parser.add_argument("--seeds", default=SEEDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--against", default="", help="not possible: it says why")
    options = parser.parse_args()
    if options.against:
        parser.error(
            "--against: many of the trace's jobs ask for a share of a device, which only this product's jobs can say, "
            "and another server would be given other work. What it does with whole tasks: ./run bench packing --against"
        )
    if not (options.trace / NODES).is_file():
        parser.error(f"{options.trace} has no {NODES}")

    seeds = parse_seeds(options.seeds)
    print(f"{options.jobs}, seeds {options.seeds}; GPUs allocated when so many were asked for\n")
    heads = " | ".join(f"{mark:.0%}" for mark in MARKS)
    print(f"| algorithm | {heads} | range at 100% | s a run | jobs/s |")
    print("|---|" + "---|" * (len(MARKS) + 3))
    with concurrent.futures.ProcessPoolExecutor(options.processes) as pool:
        for algorithm in options.algorithms.split(","):
            runs = list(
                pool.map(
                    fill,
                    [algorithm] * len(seeds),
                    [options.trace] * len(seeds),
                    [options.jobs] * len(seeds),
                    seeds,
                )
            )
            means = [sum(run.allocated[mark] for run in runs) / len(runs) for mark in MARKS]
            whole = [run.allocated[1.0] for run in runs]
            seconds = sum(run.seconds for run in runs)
            rate = sum(run.arrived for run in runs) / seconds
            cells = " | ".join(f"{mean:.2%}" for mean in means)
            print(
                f"| {algorithm} | {cells} | {min(whole):.2%}-{max(whole):.2%} |"
                f" {seconds / len(runs):.0f} | {rate:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
