"""`./run demo` as a user sees it: it tells what it shows, ends well, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nomadpy.demo.client import until
from nomadpy.demo.dockerd import Docker
from nomadpy.demo.leftovers import end_processes_of, processes_of, remove_folder

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

LIMIT_S = 120


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for temporary files of the demo; all that belongs to it is gone after the test."""
    folder = Path(tempfile.mkdtemp(prefix="nomadpy-place-"))
    yield folder
    end_processes_of(folder)
    remove_folder(folder)


def demo(place: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NOMAD_", "DOCKER_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "nomadpy.demo", *options],
        env={**environment, "TMPDIR": str(place), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def containers(docker: Docker) -> set[str]:
    with contextlib.closing(docker.client()) as client:
        return {c.id for c in client.containers.list(all=True)}


def test_the_demo_shows_containers_processes_and_a_failover_and_leaves_nothing(
    place: Path, docker: Docker
) -> None:
    before = containers(docker)
    process = demo(place, "--once", DOCKER_HOST=docker.endpoint)
    said, _ = process.communicate(timeout=LIMIT_S)
    print(said)
    assert process.returncode == 0, said
    assert "3 servers and 3 agents are up" in said
    assert (
        len(re.findall(r"containers on client-\d  container [0-9a-f]{12}  log: container on", said))
        == 2
    )
    assert len(re.findall(r"processes  on client-\d  pid \d+  log: process \d+ on", said)) == 2
    assert re.search(r"server-\d leads now; the next write was accepted \d+\.\d s after", said)
    assert "All 4 tasks kept their pids and containers" in said
    assert said.rstrip().endswith("Everything is stopped and removed.")
    assert containers(docker) == before
    assert list(place.iterdir()) == []
    assert processes_of(place) == []
    for pid in re.findall(r"pid (\d+)", said):
        assert not Path(f"/proc/{pid}").exists()


def test_without_docker_the_demo_uses_processes_and_ctrl_c_ends_all_of_it(place: Path) -> None:
    # A PATH with the tools of the tasks, and without dockerd.
    tools = place / "bin"
    tools.mkdir()
    for name in ("sh", "sleep", "umount"):
        (tools / name).symlink_to(shutil.which(name) or name)
    process = demo(place, PATH=str(tools))
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "Ctrl-C stops everything" in line:
            break
    assert process.poll() is None, "".join(said)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=LIMIT_S)
    text = "".join(said) + rest
    assert process.returncode == 0, text
    assert "Using processes only: no Docker daemon answers" in text
    assert "All 2 tasks kept their pids and containers" in text
    assert "export NOMAD_ADDR=https://127.0.0.1:" in text
    assert "Stopping." in rest.splitlines()
    until(lambda: not processes_of(place), seconds=5, what="the last process to end")
    assert [p.name for p in place.iterdir()] == ["bin"]
