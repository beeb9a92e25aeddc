"""Real runs: a cluster whose leader is killed is linearizable; one that is broken on purpose is found invalid."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

RUN = Path(__file__).parents[2] / "jepsen-style" / "run.py"

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


def kit(store: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the kit's command line."""
    return subprocess.run(
        [sys.executable, str(RUN), *words, "--out", str(store)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "TMPDIR": str(store)},
    )


def results(store: Path) -> dict[str, object]:
    """The verdicts of the latest run by checker."""
    found = msgspec.json.decode((store / "latest" / "results.json").read_bytes())
    return {r["checker"]: r["valid"] for r in found["results"]}


def test_registers_are_linearizable_while_leaders_are_killed(tmp_path: Path) -> None:
    done = kit(tmp_path, "--nemesis", "kill-leader", "--time-limit", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(results(tmp_path).values()) == {True}
    page = (tmp_path / "latest" / "report.html").read_text()
    assert "kill-leader server-" in page
    assert "leads" in page
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith("nomadpy-jepsen-")]
    assert [n for n in left if not n.endswith(f"-{os.getuid()}")] == []


def test_a_server_that_answers_reads_without_asking_the_leader_is_found_out(tmp_path: Path) -> None:
    done = kit(tmp_path, "--mutation", "stale-reads", "--time-limit", "6", "--liveness", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert results(tmp_path)["register"] is False
    assert "was the answer to a request that began after" in done.stdout
    assert "BROKEN ON PURPOSE" in (tmp_path / "latest" / "server-1.log").read_text()
