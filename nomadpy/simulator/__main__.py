"""`python -m nomadpy.simulator --seeds 1-300`: run seeds of the simulated cluster; a failing one is told with how to replay it."""

from __future__ import annotations

import argparse
import concurrent.futures
import logging
import os
import sys

from nomadpy.clock import SystemClock
from nomadpy.simulator.scenario import Verdict, run_seed


def main() -> int:
    """Run the seeds; the exit code says whether all held."""
    parser = argparse.ArgumentParser(prog="python -m nomadpy.simulator", description=__doc__)
    parser.add_argument("--seeds", default="1-20", help="one seed, or first-last")
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=45.0, help="virtual seconds of trouble")
    parser.add_argument(
        "--crowded",
        action="store_true",
        help="too little room: every type of job, and priorities that evict each other",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--log", default="error", help="log level of the simulated nodes")
    options = parser.parse_args()
    logging.basicConfig(level=options.log.upper())
    first, _, last = options.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    clock = SystemClock()
    began = clock.monotonic()
    arguments = [
        (seed, options.servers, options.clients, options.seconds, options.crowded) for seed in seeds
    ]
    bad = entries = acknowledged = evicted = restores = 0
    virtual_s = 0.0
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(_one, arguments):
            entries += verdict.entries
            acknowledged += verdict.acknowledged
            evicted += verdict.evicted
            restores += verdict.restores
            virtual_s += verdict.seconds
            if verdict.violation:
                bad += 1
                print(f"seed {verdict.seed}: {verdict.violation}")
                print(f"  faults: {' '.join(verdict.faults)}")
                crowded = " --crowded" if options.crowded else ""
                print(
                    f"  replay: python -m nomadpy.simulator --seeds {verdict.seed}{crowded} --log debug"
                )
    took = clock.monotonic() - began
    print(
        f"{bad} bad of {len(seeds)} seeds; {acknowledged} writes acknowledged, {entries} entries applied, "
        f"{evicted} allocations evicted, {restores} restores, "
        f"{virtual_s:.0f} virtual seconds in {took:.1f} s"
    )
    return 1 if bad else 0


def _one(arguments: tuple[int, int, int, float, bool]) -> Verdict:
    seed, servers, clients, seconds, crowded = arguments
    return run_seed(seed, servers=servers, clients=clients, trouble_s=seconds, crowded=crowded)


if __name__ == "__main__":
    sys.exit(main())
