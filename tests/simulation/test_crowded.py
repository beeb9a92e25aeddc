"""Too little room: jobs of every type and priority evict each other while nodes fail, drain and come back.

NOMADPY_CROWDED_SEEDS is the number of seeds (default 60). Replay one with
`python -m nomadpy.simulator --seeds SEED --crowded --log debug`.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os

import pytest

from nomadpy.simulator.scenario import run_seed

SEEDS = int(os.environ.get("NOMADPY_CROWDED_SEEDS", "60"))


@pytest.mark.slow
def test_nobody_waits_who_could_be_placed_and_no_node_is_overfilled() -> None:
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(functools.partial(run_seed, crowded=True), range(1, 1 + SEEDS)))
    bad = [f"seed {v.seed}: {v.violation} (faults: {v.faults})" for v in verdicts if v.violation]
    assert not bad, "\n".join(bad)
    assert sum(v.evicted for v in verdicts) > 5 * SEEDS


def test_one_crowded_seed_is_one_world() -> None:
    first, again = (run_seed(3, trouble_s=10.0, crowded=True) for _ in range(2))
    assert first == again
    assert first.violation == ""
