"""The benches that take --against do the same work on a second server, and print both; real servers, tiny figures."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nomadpy.demo.client import until
from nomadpy.demo.cluster import HOST, Daemon, free_ports

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@contextmanager
def other_server(folder: Path, shape: str, count: int) -> Iterator[Daemon]:
    """A server that no bench has started, with simulated nodes that are registered already."""
    http, rpc = free_ports(2)
    daemon = Daemon("other", "server", folder / "other", http, rpc)
    daemon.folder.mkdir()
    daemon.config_file.write_text(
        f'data_dir = "{daemon.folder / "data"}"\nbind_addr = "{HOST}"\nlog_level = "WARN"\n'
        f"ports {{\n  http = {http}\n  rpc  = {rpc}\n}}\n"
        "server {\n  enabled          = true\n  bootstrap_expect = 1\n}\n",
        encoding="utf-8",
    )
    daemon.start()
    nodes: subprocess.Popen[str] | None = None
    try:
        until(lambda: _leads(daemon), seconds=60, what="the other server")
        line = [sys.executable, "-m", "nomadpy", "simulate", "nodes", f"-count={count}"]
        line += [f"-shape={shape}", "-mode=static", f"-address={HOST}:{rpc}"]
        nodes = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        assert nodes.stdout is not None
        assert f"{count} nodes registered" in nodes.stdout.readline()
        yield daemon
    finally:
        if nodes is not None:
            nodes.terminate()
            nodes.communicate()
        daemon.stop()


def _leads(daemon: Daemon) -> bool:
    try:
        with urllib.request.urlopen(f"http://{daemon.http}/v1/status/leader", timeout=2) as answer:
            return len(answer.read()) > len('""')
    except OSError:
        return False


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
            f"--against=http://{other.http}",
        )
    heads, *rows = table(text)
    assert heads == ["workload", "figure", "nomadpy", f"http://{other.http}"]
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
            *(f"--against=http://{other.http}", f"--against-pid={other.pid}"),
        )
    memory = [row[3] for row in table(text) if row[1] == "server RSS MB"]
    assert len(memory) == 3
    assert all(float(one) > 1 for one in memory)


def test_packing_is_measured_on_both_servers_in_one_run(tmp_path: Path) -> None:
    with other_server(tmp_path, "hetero", 4) as other:
        text = bench(
            *("packing", "--nodes=4", "--seeds=11,21", "--algorithms=binpack"),
            f"--against=http://{other.http}",
        )
    heads, ours, theirs = table(text)
    assert [ours[0], theirs[0]] == ["binpack", f"http://{other.http}"]
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
