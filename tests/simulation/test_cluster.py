"""The whole server core under faults, on virtual time: every promise made to a user holds once the world is healed.

NOMADPY_SEEDS is the number of seeds (default 300), NOMADPY_FIRST_SEED the first of them. A failure names its seed; replay it
with `./run sim --seeds SEED --log debug`.
"""

from __future__ import annotations

import concurrent.futures
import os

import pytest

from nomadpy.simulator.scenario import Verdict, run_seed

SEEDS = int(os.environ.get("NOMADPY_SEEDS", "300"))
FIRST = int(os.environ.get("NOMADPY_FIRST_SEED", "1"))


@pytest.mark.slow
def test_acknowledged_jobs_reach_their_count_and_no_node_is_overfilled() -> None:
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(run_seed, range(FIRST, FIRST + SEEDS)))
    bad = [f"seed {v.seed}: {v.violation} (faults: {v.faults})" for v in verdicts if v.violation]
    assert not bad, "\n".join(bad)
    # The schedules must have been worth their name.
    assert sum(v.acknowledged for v in verdicts) > 30 * SEEDS
    kinds = {kind for v in verdicts for kind in v.faults}
    assert SEEDS < 50 or kinds >= {
        "kill-leader",
        "power-all-servers",
        "isolate-leader",
        "one-way",
        "cut-agent",
        "power-agent",
        "drain-node",
        "replace-server",
        "upgrade-server",
    }
    assert SEEDS < 50 or sum(v.restores for v in verdicts) > SEEDS // 10


def test_one_seed_is_one_world() -> None:
    first, again = run_seed(7, trouble_s=15.0), run_seed(7, trouble_s=15.0)
    assert first == again
    assert run_seed(8, trouble_s=15.0) != first


def _lying(seed: int) -> Verdict:
    return run_seed(seed, lying_disks=True)


@pytest.mark.slow
def test_control_disks_that_lie_about_sync_are_caught() -> None:
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(_lying, range(1, 13)))
    assert any(v.violation for v in verdicts), "twelve seeds with lying disks lost nothing"
