"""Control groups: what is written in the old and the new form; and, for root, what the kernel makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jepsen_style import undo
from jepsen_style.res.cgroup import Group, NewGroup, OldGroup, Trees, machine_trees
from jepsen_style.res.groups import Groups

needs_groups = pytest.mark.skipif(Groups.missing() != "", reason=Groups.missing())

OLD = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""


def text(folder: Path, name: str, content: str | None = None) -> str:
    """Write a file of a group, or read it."""
    if content is not None:
        (folder / name).write_text(content)
    return (folder / name).read_text().strip()


# -- forms ------------------------------------------------------------------------------------------------------


def test_the_old_form_is_used_where_all_controllers_are_in_it() -> None:
    trees = Trees(OLD)
    assert trees.is_old
    assert trees.missing() == ""
    assert trees.tops("kit") == [
        Path(f"/sys/fs/cgroup/{c}/kit") for c in ("cpu,cpuacct", "memory", "pids")
    ]
    group = trees.group("kit", "a")
    assert isinstance(group, OldGroup)
    assert len(group.folders) == 3


def test_the_new_form_is_used_where_it_hands_all_controllers_down(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit/cgroup.subtree_control").write_text("")
    trees = Trees(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert trees.missing() == ""
    trees.prepare("kit")
    assert text(tmp_path, "cgroup.subtree_control") == "+cpu +memory +pids"
    assert text(tmp_path / "kit", "cgroup.subtree_control") == "+cpu +memory +pids"
    assert trees.group("kit", "a").folders == [tmp_path / "kit/a"]


def test_what_is_lacking_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu\n")
    trees = Trees(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert trees.missing() == "needs the control group controllers memory, pids"
    assert Trees("").missing() == "needs control groups with cpu, memory, pids"
    half = Trees("\n".join(OLD.splitlines()[:2]))
    assert half.missing() == "needs control groups with cpu, memory, pids"


def test_limits_in_the_new_form(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("cpu.max", "memory.max", "memory.high", "memory.swap.max", "pids.max"):
        text(folder, name, "max\n")
    text(folder, "memory.stat", "anon 5000000\nfile 70000\n")
    text(folder, "memory.events", "low 0\noom 2\noom_kill 1\n")
    text(folder, "pids.current", "12\n")
    group = NewGroup(tmp_path, "a")
    group.limit_cpu(0.1)
    assert text(folder, "cpu.max") == "10000 100000"
    group.choke_memory()
    assert text(folder, "memory.max") == "5000000"
    assert text(folder, "memory.swap.max") == "0"
    group.hold_memory()
    assert text(folder, "memory.high") == "5000000"
    group.limit_tasks(more=3)
    assert text(folder, "pids.max") == "15"
    assert group.killed_for_memory() == 1
    group.heal()
    assert text(folder, "cpu.max") == "max 100000"
    assert {text(folder, n) for n in ("memory.max", "memory.high", "pids.max")} == {"max"}


def test_limits_in_the_old_form(tmp_path: Path) -> None:
    group = OldGroup({"cpu": tmp_path / "1", "memory": tmp_path / "2", "pids": tmp_path / "2"}, "a")
    assert group.folders == [tmp_path / "1/a", tmp_path / "2/a"]
    group.make()
    cpu, rest = group.folders
    text(cpu, "cpu.cfs_period_us", "0")
    text(cpu, "cpu.cfs_quota_us", "-1")
    text(rest, "memory.stat", "cache 1\ntotal_rss 5000000\n")
    text(rest, "memory.limit_in_bytes", "-1")
    text(rest, "memory.swappiness", "6")
    text(rest, "memory.oom_control", "0")
    text(rest, "pids.current", "12")
    text(rest, "pids.max", "max")
    group.limit_cpu(0.5)
    assert text(cpu, "cpu.cfs_quota_us") == "50000"
    group.hold_memory()
    assert text(rest, "memory.limit_in_bytes") == "5000000"
    assert text(rest, "memory.oom_control") == "1"
    with pytest.raises(RuntimeError, match="does not tell oom_kill"):
        group.killed_for_memory()


# -- the kernel -------------------------------------------------------------------------------------------------


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    trees = machine_trees()
    tag = f"nomadpy-test-{os.getpid()}"
    notes = undo.UndoList(tmp_path)
    for top in trees.tops(tag):
        notes.note("cgroup", str(top))
    trees.prepare(tag)
    made = trees.group(tag, "a")
    made.make()
    yield made
    made.heal()
    notes.undo_all()
    assert not any(folder.parent.exists() for folder in made.folders)


def run(group: Group, code: str) -> subprocess.Popen[str]:
    """Start Python code in a group, with pipes to it."""
    return subprocess.Popen(
        [*group.inside(), sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


GROW = """
kept = [bytearray(30 << 20)]
while True:
    kept.append(bytearray(1 << 20))
    print(len(kept), flush=True)
    input()
"""


def grow(process: subprocess.Popen[str]) -> str:
    """Let it take a mebibyte more; how many it has, "" when it is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


@needs_groups
@pytest.mark.real_time
def test_a_process_that_needs_more_than_it_may_have_is_killed(group: Group) -> None:
    with run(group, GROW) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "2\n"
        assert group.members() == [process.pid]
        group.choke_memory()
        for _ in range(80):
            if not grow(process):
                break
        assert process.wait(30) == -signal.SIGKILL
        assert group.killed_for_memory() == 1


@needs_groups
@pytest.mark.real_time
@pytest.mark.skipif(not machine_trees().is_old, reason="the new form delays, and does not stop")
def test_a_process_that_may_wait_for_memory_goes_on_when_there_is_some(group: Group) -> None:
    with run(group, GROW.replace("    input()\n", "")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "2\n"
        group.hold_memory()
        deadline = time.monotonic() + 30
        while state(process.pid) != "D":
            assert time.monotonic() < deadline, "it never came to stand still"
            time.sleep(0.01)
        group.free_memory()
        assert process.stdout.readline()
        process.kill()


def state(pid: int) -> str:
    """A process's state, as ps says it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@needs_groups
@pytest.mark.real_time
def test_no_thread_is_started_beyond_the_limit(group: Group) -> None:
    code = """
import sys, threading, time
for _ in sys.stdin:
    try:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        print("started", flush=True)
    except RuntimeError as error:
        print(error, flush=True)
"""
    with run(group, code) as process:
        assert grow(process) == "started\n"
        group.limit_tasks(more=0)
        assert grow(process) == "can't start new thread\n"
        group.limit_tasks(more=None)
        assert grow(process) == "started\n"
        process.kill()


@needs_groups
@pytest.mark.real_time
def test_a_tenth_of_a_processor_is_a_tenth(group: Group) -> None:
    group.limit_cpu(0.1)
    code = "import time\nbegan = time.monotonic()\nwhile time.process_time() < 0.3: pass\nprint(time.monotonic() - began)"
    with run(group, code) as process:
        took_s = float(process.communicate()[0])
    assert took_s > 2.0
