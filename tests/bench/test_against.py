"""The benches that take --against do the same work on a second server, and print both; real servers, tiny figures."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.placement import Target, servers, simulated_nodes

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@contextmanager
def other_server(folder: Path, shape: str, count: int) -> Iterator[Target]:
    """A server that no bench has started, with simulated nodes that are registered already."""
    nodes = argparse.Namespace(nodes=count, shape=shape, mode="static")
    with (
        servers(folder, 1) as (target, addresses, flags),
        simulated_nodes(nodes, addresses, flags),
    ):
        yield target


def bench(name: str, *arguments: str, status: int = 0) -> str:
    """Run a bench and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def table(text: str) -> list[list[str]]:
    """The rows of the one table, as cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not re.fullmatch("-+", row[0])]


def test_placement_is_measured_on_both_servers_in_one_run(tmp_path: Path) -> None:
    with other_server(tmp_path, "big", 3) as other:
        text = bench(
            *("placement", "--nodes=3", "--big=20", "--jobs=4", "--count=2", "--clients=2"),
            f"--against={other.base}",
        )
    heads, *rows = table(text)
    assert heads == ["workload", "figure", "nomadpy", other.base]
    assert {row[0] for row in rows} == {
        "1 batch job x 20",
        "1 service job x 20",
        "4 jobs x 2, 2 clients",
    }
    for _, figure, ours, theirs in rows:
        assert float(ours.replace(",", "")) >= 0
        if figure.startswith("server "):
            # Nobody said which process it is.
            assert theirs == "-"
        else:
            assert float(theirs.replace(",", "")) > 0


def test_the_other_servers_process_is_measured_when_it_is_named(tmp_path: Path) -> None:
    with other_server(tmp_path, "big", 2) as other:
        text = bench(
            *("placement", "--nodes=2", "--big=5", "--jobs=2", "--count=1", "--clients=1"),
            *(f"--against={other.base}", f"--against-pid={other.pids[0]}"),
        )
    memory = [row[3] for row in table(text) if row[1] == "server RSS MB"]
    assert len(memory) == 3
    assert all(float(one) > 1 for one in memory)


def test_packing_is_measured_on_both_servers_in_one_run(tmp_path: Path) -> None:
    with other_server(tmp_path, "hetero", 4) as other:
        text = bench(
            *("packing", "--nodes=4", "--seeds=11,21", "--algorithms=binpack"),
            f"--against={other.base}",
        )
    heads, ours, theirs = table(text)
    assert [ours[0], theirs[0]] == ["binpack", other.base]
    assert len(heads) == len(ours) == len(theirs)
    # The same jobs on the same shapes; which of two equal nodes comes first is another matter on so few.
    for row in (ours, theirs):
        cpu, memory = (float(share) for share in re.findall(r"([\d.]+)%", row[1]))
        assert 10 < cpu <= 100
        assert 10 < memory <= 100
        assert re.fullmatch(r"\d \(\d\); \d", row[3])


def test_what_cannot_be_asked_of_another_server_is_refused_with_the_reason(tmp_path: Path) -> None:
    text = bench("fragmentation", f"--trace={tmp_path}", "--against=http://x:1", status=2)
    assert "only this product's jobs can say" in text
    for name in ("placement", "packing"):
        assert "takes http://HOST:PORT" in bench(name, "--against=https://x:1", status=2)
