"""Real runs: clusters under faults are valid; one that is broken on purpose is found invalid; nothing is left behind.

The kit runs in a process of its own with a temporary folder of its own, so that whatever is left can be seen, and is undone
though the test itself is cut short.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
import pytest
from jepsen_style import suites
from jepsen_style.undo import Undo

from nomadpy.demo.client import until
from nomadpy.demo.leftovers import is_alive, processes_of

RUN = Path(__file__).parents[2] / "jepsen-style" / "run.py"

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


class Kit:
    """The kit's command line. Its clusters are below `folder`, its runs in `store`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.environment = {**os.environ, "TMPDIR": str(folder), "PYTHONHASHSEED": "0"}

    @contextlib.contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """It runs; what it still has when the block is left, however that is, is ended and undone."""
        command = [sys.executable, str(RUN), *words]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.communicate(timeout=40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
            self.heal()

    def heal(self) -> str:
        """Undo what was left; say what it was."""
        return subprocess.run(
            [sys.executable, str(RUN), "heal"],
            capture_output=True,
            text=True,
            check=True,
            env=self.environment,
        ).stdout

    def run(self, *words: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        with self.started(*words, "--out", str(self.store)) as process:
            out, _ = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(words, process.returncode, out)

    def results(self) -> dict[str, object]:
        """The verdicts of the latest run by checker."""
        found = msgspec.json.decode((self.store / "latest" / "results.json").read_bytes())
        return {r["checker"]: r["valid"] for r in found["results"]}

    def left(self) -> list[str]:
        """Folders and notes of clusters, and processes that belong to them."""
        notes = self.folder / f"nomadpy-jepsen-{os.getuid()}"
        found = [p.name for p in self.folder.glob("nomadpy-jepsen-*") if p != notes]
        return [*found, *(p.name for p in notes.glob("*.json"))]


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    """A kit with nothing in its folder yet."""
    return Kit(tmp_path)


def test_registers_are_linearizable_while_leaders_are_killed(kit: Kit) -> None:
    done = kit.run("--nemesis", "kill-leader", "--time-limit", "20")
    assert done.returncode == 0, done.stdout
    assert set(kit.results().values()) == {True}
    page = (kit.store / "latest" / "report.html").read_text()
    assert "kill-leader server-" in page
    assert "leads" in page
    assert "term 2" in page
    assert kit.left() == []


def test_a_server_that_answers_reads_without_asking_the_leader_is_found_out(kit: Kit) -> None:
    done = kit.run("--mutation", "stale-reads", "--time-limit", "6", "--liveness", "2")
    assert done.returncode == 1, done.stdout
    assert kit.results()["register"] is False
    assert "was the answer to a request that began after" in done.stdout
    assert "BROKEN ON PURPOSE" in (kit.store / "latest" / "server-1.log").read_text()
    assert "About these moments" in (kit.store / "latest" / "report.html").read_text()


def _until_a_fault(output: IO[str]) -> None:
    for line in output:
        if ": server-" in line or "-/->" in line:
            return
    raise AssertionError("the kit ended before any fault")


def _cluster(kit: Kit) -> tuple[Path, list[int], list[str]]:
    """Its folder, its processes, its network namespaces."""
    [note] = kit.folder.glob("nomadpy-jepsen-*/*.json")
    entries = msgspec.json.decode(note.read_bytes(), type=list[Undo])
    [folder] = [Path(e.name) for e in entries if e.kind == "folder"]
    return folder, processes_of(folder), [e.name for e in entries if e.kind == "netns"]


# Pauses leave processes that do not hear SIGTERM; partitions leave namespaces.
_FAULTS = "combined,pause,partition"


def test_what_a_killed_kit_leaves_is_undone_by_heal(kit: Kit) -> None:
    with kit.started(
        "--nemesis", _FAULTS, "--time-limit", "120", "--out", str(kit.store)
    ) as process:
        assert process.stdout is not None
        _until_a_fault(process.stdout)
        process.kill()
        process.wait()
        folder, pids, namespaces = _cluster(kit)
        assert len(pids) >= 3
        assert all(Path(f"/run/netns/{name}").exists() for name in namespaces)
        said = kit.heal()
        assert f"folder {folder}" in said
        assert not folder.exists()
        assert [pid for pid in pids if is_alive(pid)] == []
        assert not any(Path(f"/run/netns/{name}").exists() for name in namespaces)
        assert kit.left() == []
        assert kit.heal() == "0 things undone\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_kit_leaves_nothing(kit: Kit, number: signal.Signals) -> None:
    with kit.started(
        "--nemesis", "pause-majority", "--time-limit", "120", "--out", str(kit.store)
    ) as process:
        assert process.stdout is not None
        _until_a_fault(process.stdout)
        _, pids, _ = _cluster(kit)
        process.send_signal(number)
        # A second one, as of somebody impatient, does not stop the cleaning up.
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 3, out
        assert "interrupted" in out
        until(lambda: not any(map(is_alive, pids)), seconds=5, what="the end of all nodes")
        assert kit.left() == []


def test_a_reader_who_goes_away_is_no_failure(kit: Kit) -> None:
    for _ in range(3):
        done = subprocess.run(
            ["sh", "-c", f"{sys.executable} {RUN} --list | head -n 1"],
            capture_output=True,
            text=True,
            env=kit.environment,
        )
        assert done.stdout == "workloads\n"
        assert done.stderr == ""


def test_seeds_of_the_simulator_are_run_by_the_kit_too(kit: Kit) -> None:
    with kit.started("sim", "--seeds", "1-2", "--servers", "3") as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "0 bad of 2 seeds" in out


def test_the_ci_suite_is_valid(kit: Kit) -> None:
    """Six runs of a minute each under faults. What this machine cannot do, such as namespaces without root, is left out."""
    done = kit.run("test-all", "--suite", "ci", timeout_s=1500)
    assert done.returncode == 0, done.stdout
    table = done.stdout.partition("\nverdict ")[2].splitlines()[1:]
    assert len(table) >= len(suites.SUITES["ci"])
    for line, plan in zip(table, suites.SUITES["ci"], strict=False):
        assert line.startswith("valid "), done.stdout
        assert plan.workload in line
    assert kit.left() == []
