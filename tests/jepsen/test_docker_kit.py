"""The kit's own Docker daemon: it is killed, paused and robbed, and nothing of it stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jepsen_style.docker import PrivateDaemon
from jepsen_style.undo import UndoList

from nomadpy.demo.client import until
from nomadpy.demo.leftovers import is_alive

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.slow,
    pytest.mark.skipif(PrivateDaemon.missing() != "", reason=PrivateDaemon.missing()),
]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[PrivateDaemon]:
    notes = UndoList(tmp_path / "notes")
    # As a run does: what is mounted below its folder goes with it.
    notes.note("folder", str(tmp_path / "docker"))
    made = PrivateDaemon(tmp_path / "docker", notes)
    try:
        made.begin()
        yield made
    finally:
        made.down()
        notes.undo_all()
    left = [p for p in Path("/run").iterdir() if p.name == f"nomadpy-jepsen-{os.getpid()}"]
    left += Path("/sys/fs/cgroup").glob(f"**/nomadpy-jepsen-docker-{os.getpid()}")
    assert left == []
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    assert str(tmp_path) not in mounts


def start(daemon: PrivateDaemon) -> tuple[str, int]:
    """Start a container that stays; its id and process."""
    with daemon.client() as client:
        made = client.containers.run(
            daemon.image, ["/bin/sleep", "1000"], detach=True, network_mode="none"
        )
        return made.id, int(client.api.inspect_container(made.id)["State"]["Pid"])


def test_containers_outlive_a_killed_daemon_and_are_its_own_again(daemon: PrivateDaemon) -> None:
    container, pid = start(daemon)
    daemon.kill_daemon()
    assert not daemon.answers()
    assert is_alive(pid)
    daemon.start_daemon()
    assert daemon.containers() == [container]
    daemon.pause_daemon()
    daemon.heal()
    assert daemon.answers()
    assert is_alive(pid)


def test_containers_and_the_image_vanish_behind_its_users_backs(daemon: PrivateDaemon) -> None:
    killed, removed = start(daemon)[0], start(daemon)[0]
    kept, pid = start(daemon)
    daemon.kill_container(killed)
    daemon.remove_container(removed)
    until(lambda: daemon.containers() == [kept], seconds=30, what="one container")
    daemon.kill_container(killed)
    daemon.remove_container(removed)
    daemon.remove_image()
    with daemon.client() as client:
        assert not client.images.list(daemon.image)
    assert is_alive(pid)
    daemon.remove_image()
    daemon.restore_image()
    assert len(daemon.containers()) == 1
    start(daemon)
