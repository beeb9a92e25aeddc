"""The same log gives the same state whatever Python's hash seed is: nothing depends on the order of a set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent

PROGRAM = """
from fsm.command_samples import COMMANDS
from fsm.test_fsm_properties import begun
m = begun()
for turn in range(3):
    for command in COMMANDS[turn:] + COMMANDS[:turn]:
        m.try_run(command)
print(m.machine.checksum())
"""


def test_servers_with_different_hash_seeds_reach_the_same_state() -> None:
    sums = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(TESTS)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "2")
    ]
    assert len(sums[0].strip()) == 32
    assert len(set(sums)) == 1
