"""Real processes. A killed agent is a driver in a process of its own that gets SIGKILL."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agent.drivers.base import (
    DriverError,
    ExecInput,
    ExecOutput,
    TaskConfig,
    TaskHandle,
    TaskNotFoundError,
    TaskPaths,
)
from agent.drivers.raw_exec import RawExecDriver, RawExecPolicy
from agent.drivers.supervisor import process
from nomadpy.clock import SystemClock

pytestmark = pytest.mark.real_time


def make_task(root: Path, script: str, **changes: object) -> TaskConfig:
    alloc = root / "a1"
    for part in ("alloc/logs", "web/local", "web/secrets"):
        (alloc / part).mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "id": "a1/web",
        "alloc_id": "a1",
        "task": "web",
        "namespace": "default",
        "job_id": "j",
        "group": "g",
        "config": {"command": "/bin/sh", "args": ["-c", script]},
        "env": {"NOMAD_TASK_NAME": "web"},
        "paths": TaskPaths(
            alloc=str(alloc / "alloc"),
            task=str(alloc / "web"),
            local=str(alloc / "web/local"),
            secrets=str(alloc / "web/secrets"),
            logs=str(alloc / "alloc/logs"),
        ),
    }
    values.update(changes)
    return TaskConfig(**values)  # type: ignore[arg-type]


def make_driver(**changes: object) -> RawExecDriver:
    return RawExecDriver(SystemClock(), RawExecPolicy(enabled=True), core_mhz=2000, **changes)  # type: ignore[arg-type]


def log_text(root: Path, stream: str = "stdout") -> str:
    files = sorted(
        (root / "a1/alloc/logs").glob(f"web.{stream}.*"), key=lambda p: int(p.suffix[1:])
    )
    return "".join(f.read_text() for f in files)


async def until(condition: object, what: str, timeout_s: float = 15) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def test_a_task_runs_with_its_arguments_environment_and_folder(tmp_path: Path) -> None:
    driver = make_driver()
    task = make_task(tmp_path, 'echo "$NOMAD_TASK_NAME $PWD"; echo oops >&2; exit 7')
    started = await driver.start(task)
    assert started.handle.driver == "raw_exec"
    result = await driver.wait(task.id)
    assert (result.exit_code, result.signal, result.error) == (7, 0, "")
    assert log_text(tmp_path) == f"web {task.paths.task}\n"
    assert log_text(tmp_path, "stderr") == "oops\n"
    await driver.destroy(task.id)
    with pytest.raises(TaskNotFoundError):
        await driver.wait(task.id)


async def test_a_supervisor_is_small_and_leaves_when_it_has_nothing_to_do(
    tmp_path: Path,
) -> None:
    driver = make_driver()
    task = make_task(tmp_path, "sleep 60")
    await driver.start(task)
    client = driver._client(task)
    pid = (await client.request("ping"))["pid"]
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            assert int(line.split()[1]) < 12 * 1024, line
    await driver.stop(task.id, signal="SIGINT", timeout_s=5)
    await driver.destroy(task.id)
    os.kill(pid, signal.SIGTERM)
    await until(lambda: not process.read_stat_alive(pid), "supervisor left")


async def test_stop_signals_then_kills_what_does_not_listen(tmp_path: Path) -> None:
    driver = make_driver()
    polite = make_task(
        tmp_path, "trap 'echo bye; exit 3' INT; echo up; while :; do sleep 0.05; done"
    )
    await driver.start(polite)
    await until(lambda: "up" in log_text(tmp_path), "started")
    await driver.stop(polite.id, signal="SIGINT", timeout_s=5)
    assert (await driver.wait(polite.id)).exit_code == 3
    assert "bye" in log_text(tmp_path)
    stubborn = make_task(
        tmp_path, "trap '' INT; echo deaf; while :; do sleep 0.05; done", attempt=1
    )
    await driver.start(stubborn)
    await until(lambda: "deaf" in log_text(tmp_path), "started")
    await driver.stop(stubborn.id, signal="SIGINT", timeout_s=0.3)
    result = await driver.wait(stubborn.id)
    assert (result.exit_code, result.signal) == (137, 9)
    await driver.destroy(stubborn.id)


@pytest.mark.parametrize("grouped", [True, False])
async def test_children_that_left_the_session_die_with_their_task(
    tmp_path: Path, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not grouped:
        monkeypatch.setattr("agent.drivers.cgroups.task_folders", lambda *_: [])
    driver = make_driver()
    task = make_task(
        tmp_path, "(setsid sh -c 'echo $$ > pid; exec sleep 300' &) ; sleep 0.3; exit 0"
    )
    await driver.start(task)
    await driver.wait(task.id)
    left = int((tmp_path / "a1/web/pid").read_text())
    await until(lambda: not process.read_stat_alive(left), "child died")
    await driver.destroy(task.id)


async def test_a_killed_task_reports_its_signal(tmp_path: Path) -> None:
    driver = make_driver()
    task = make_task(tmp_path, "sleep 60")
    await driver.start(task)
    await driver.signal(task.id, "SIGTERM")
    result = await driver.wait(task.id)
    assert (result.signal, result.successful) == (15, False)
    with pytest.raises(DriverError, match="invalid signal"):
        await driver.signal(task.id, "SIGNONSENSE")
    with pytest.raises(DriverError, match="has ended"):
        await driver.signal(task.id, "SIGHUP")
    await driver.destroy(task.id)


_AGENT = """
import asyncio, sys, msgspec
from pathlib import Path
sys.path.insert(0, {here!r})
from test_raw_exec import make_driver, make_task
async def main():
    task = make_task(Path({root!r}), {script!r})
    started = await make_driver().start(task)
    print(msgspec.json.encode(started.handle).decode(), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def start_then_kill_agent(root: Path, script: str) -> TaskHandle:
    source = _AGENT.format(here=str(Path(__file__).parent), root=str(root), script=script)
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        line = agent.stdout.readline()
        agent.kill()
    return msgspec.json.decode(line, type=TaskHandle)


async def test_a_task_outlives_a_killed_agent_with_pid_and_every_log_line(tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; exit 5"
    handle = start_then_kill_agent(tmp_path, script)
    assert process.read_stat_alive(handle.state["pid"])
    driver = make_driver()
    task = make_task(tmp_path, script)
    await driver.recover(handle, task)
    pids = await driver._client(task).request("pids", key=handle.state["key"])
    assert handle.state["pid"] in pids["pids"]
    result = await driver.wait(task.id)
    assert result.exit_code == 5
    assert log_text(tmp_path) == "".join(f"line {i}\n" for i in range(400))
    await driver.destroy(task.id)


async def test_an_exit_while_no_agent_ran_is_reported(tmp_path: Path) -> None:
    handle = start_then_kill_agent(tmp_path, "sleep 0.2; exit 42")
    pid = handle.state["pid"]
    await until(lambda: not process.read_stat_alive(pid), "task ended")
    driver = make_driver()
    task = make_task(tmp_path, "")
    await driver.recover(handle, task)
    assert (await driver.wait(task.id)).exit_code == 42
    await driver.destroy(task.id)


@pytest.mark.parametrize("grouped", [True, False])
async def test_a_task_whose_supervisor_was_killed_is_lost_and_leaves_no_process(
    tmp_path: Path, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not grouped:
        monkeypatch.setattr("agent.drivers.cgroups.task_folders", lambda *_: [])
    first = make_driver()
    task = make_task(tmp_path, "setsid sleep 300 & sleep 300")
    started = await first.start(task)
    supervisor = (await first._client(task).request("ping"))["pid"]
    pids: list[int] = []
    async with asyncio.timeout(5):
        while len(pids) < 3:
            pids = (await first._client(task).request("pids", key="web.0"))["pids"]
    os.kill(supervisor, signal.SIGKILL)
    result = await first.wait(task.id)
    assert "supervisor died" in result.error
    assert not result.successful
    await until(lambda: not any(process.read_stat_alive(p) for p in pids), "no orphan")
    second = make_driver()
    await second.recover(started.handle, task)
    assert (await second.wait(task.id)).error
    await second.destroy(task.id)
    again = await second.start(make_task(tmp_path, "exit 0", attempt=1))
    assert again.handle.state["key"] == "web.1"
    assert (await second.wait(task.id)).successful
    await second.destroy(task.id)


async def test_what_runs_of_a_forgotten_allocation_is_ended_with_or_without_its_supervisor(
    tmp_path: Path,
) -> None:
    root = str(tmp_path / "a1")
    handle = start_then_kill_agent(tmp_path, "setsid sleep 300 & sleep 300")
    assert process.read_stat_alive(handle.state["pid"])
    driver = make_driver()
    assert await driver.end_strays("a1", root) == 1
    assert not process.read_stat_alive(handle.state["pid"])
    assert await driver.end_strays("a1", root) == 0

    handle = start_then_kill_agent(tmp_path, "sleep 300")
    supervisor = (await driver._client(make_task(tmp_path, "")).request("ping"))["pid"]
    os.kill(supervisor, signal.SIGKILL)
    assert await driver.end_strays("a1", root) == 1
    await until(lambda: not process.read_stat_alive(handle.state["pid"]), "task ended")
    assert await driver.end_strays("other", str(tmp_path / "other")) == 0


async def test_a_reused_pid_is_not_shot(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as bystander:
        record = {
            "pid": bystander.pid,
            "start_ticks": 1,
            "boot_id": process.boot_id(),
            "mark": "",
            "cgroups": [],
        }
        client = make_driver()._client(make_task(tmp_path, ""))
        assert client.kill_orphans(record) == 0
        assert bystander.poll() is None
        bystander.kill()


async def test_a_missing_program_leaves_nothing_behind(tmp_path: Path) -> None:
    driver = make_driver()
    task = make_task(tmp_path, "", config={"command": "no-such-program"})
    with pytest.raises(DriverError, match="'no-such-program' not found"):
        await driver.start(task)
    bad = tmp_path / "a1/web/local/bad"
    bad.write_text("not a program")
    bad.chmod(0o755)
    with pytest.raises(DriverError, match="Exec format error"):
        await driver.start(make_task(tmp_path, "", config={"command": "bad"}))
    assert not list((tmp_path / "a1/.nomadpy").glob("*.json"))
    with pytest.raises(DriverError, match="unknown user"):
        await driver.start(make_task(tmp_path, "", user="nobody-of-that-name"))


async def test_faults_of_a_config_are_all_named() -> None:
    driver = make_driver()
    assert driver.validate({"command": "x", "args": ["a", "b"]}) == []
    found = driver.validate({"args": [{}], "comand": "x", "oom_score_adj": "much"})
    assert len(found) == 4
    assert "command is required" in found
    assert "unknown key 'comand'" in found
    off = RawExecDriver(SystemClock(), RawExecPolicy())
    assert (await off.fingerprint()).detected is False


async def test_a_task_runs_as_its_user_and_without_denied_variables(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.fail("needs root to change the user")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    driver = make_driver(host_env={"MY_TOKEN": "x", "LANG": "C", "PATH": os.environ["PATH"]})
    config = {"command": "sh", "args": ["-c", "id -u; env"], "denied_envvars": ["DENY*"]}
    task = make_task(
        tmp_path, "", config=config, user="nobody", env={"DENY_ME": "1", "KEPT": "yes"}
    )
    await driver.start(task)
    assert (await driver.wait(task.id)).successful
    text = log_text(tmp_path)
    assert text.startswith("65534\n")
    assert "KEPT=yes" in text
    assert "LANG=C" in text
    assert "DENY_ME" not in text
    assert "MY_TOKEN" not in text
    await driver.destroy(task.id)
    denied = RawExecDriver(
        SystemClock(), RawExecPolicy(enabled=True, denied_host_uids="0-10,65534")
    )
    with pytest.raises(DriverError, match="65534 is denied"):
        await denied.start(task)


async def test_logs_rotate_and_no_line_is_lost_across_attempts(tmp_path: Path) -> None:
    driver = make_driver()
    script = "i=0; while [ $i -lt 30000 ]; do echo 0123456789012345678901234567890123456789 $i; i=$((i+1)); done"
    for attempt in range(2):
        task = make_task(tmp_path, script, attempt=attempt, log_max_files=10, log_max_file_mb=1)
        await driver.start(task)
        assert (await driver.wait(task.id)).successful
        await driver.destroy(task.id)
    numbers = [int(line.split()[1]) for line in log_text(tmp_path).splitlines()]
    assert numbers == [*range(30000), *range(30000)]
    files = list((tmp_path / "a1/alloc/logs").glob("web.stdout.*"))
    assert len(files) > 2
    assert all(f.stat().st_size <= 1024 * 1024 for f in files)


async def test_a_full_disk_does_not_stop_the_task(tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 40000 ]; do echo 0123456789 $i; i=$((i+1)); done; exit 4"
    task = make_task(tmp_path, script)
    small = tmp_path / "a1/alloc/logs"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.fail(f"needs a small file system: {mounted.stderr!r}")
    try:
        driver = make_driver()
        await driver.start(task)
        assert (await driver.wait(task.id)).exit_code == 4
        await driver.destroy(task.id)
        text = log_text(tmp_path)
        assert text.startswith("0123456789 0\n0123456789 1\n")
        assert len(text) <= 65536
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


async def test_links_and_pipes_in_the_log_folder_lead_nowhere(tmp_path: Path) -> None:
    task = make_task(tmp_path, "echo secret; exit 4")
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "a1/alloc/logs/web.stdout.0").symlink_to(victim)
    os.mkfifo(tmp_path / "a1/alloc/logs/web.stderr.0")
    driver = make_driver()
    await driver.start(task)
    assert (await driver.wait(task.id)).exit_code == 4
    assert victim.read_text() == "kept"
    await driver.destroy(task.id)


async def test_stats_tell_memory_and_cpu_of_every_process(tmp_path: Path) -> None:
    driver = make_driver()
    task = make_task(tmp_path, "while :; do :; done & while :; do :; done")
    await driver.start(task)
    await driver.usage(task.id)
    await asyncio.sleep(0.5)
    usage = await driver.usage(task.id)
    assert usage.pids is not None
    assert len(usage.pids) == 2
    total = await driver.stats(task.id)
    assert total.memory_stats is not None
    assert total.memory_stats.rss > 100_000
    assert usage.resource_usage is not None
    assert usage.resource_usage.cpu_stats is not None
    assert usage.resource_usage.cpu_stats.percent > 20
    await driver.stop(task.id, signal="SIGKILL", timeout_s=5)
    await driver.destroy(task.id)


async def events(*items: ExecInput, hold: bool = False) -> AsyncIterator[ExecInput]:
    for item in items:
        yield item
    if hold:
        await asyncio.Event().wait()


async def collect(stream: AsyncIterator[ExecOutput]) -> tuple[bytes, bytes, int]:
    out, err, code = b"", b"", -1
    async for event in stream:
        if event.channel == "stdout":
            out += event.data
        elif event.channel == "stderr":
            err += event.data
        else:
            code = event.exit_code
    return out, err, code


async def test_exec_runs_beside_the_task_on_pipes_and_on_a_terminal(tmp_path: Path) -> None:
    driver = make_driver()
    task = make_task(tmp_path, "sleep 60")
    await driver.start(task)
    piped = driver.exec(
        task.id,
        ["sh", "-c", "cat; echo $NOMAD_TASK_NAME >&2; exit 9"],
        tty=False,
        inputs=events(ExecInput(data=b"hello\n"), ExecInput(closed=True), hold=True),
    )
    assert await collect(piped) == (b"hello\n", b"web\n", 9)
    typed = driver.exec(
        task.id,
        ["sh", "-c", "read line; stty size; tty; echo got $line"],
        tty=True,
        inputs=events(ExecInput(height=33, width=77), ExecInput(data=b"word\n"), hold=True),
    )
    out, _, code = await collect(typed)
    assert b"33 77" in out
    assert b"/dev/pts/" in out
    assert b"got word" in out
    assert code == 0
    with pytest.raises(DriverError, match="not found"):
        driver.exec(task.id, ["nope"], tty=False, inputs=events())
    await driver.stop(task.id, signal="SIGKILL", timeout_s=5)
    await driver.destroy(task.id)


async def test_an_abandoned_exec_session_is_killed(tmp_path: Path) -> None:
    driver = make_driver()
    task = make_task(tmp_path, "sleep 60")
    await driver.start(task)
    session = driver.exec(
        task.id, ["sh", "-c", "echo $$; exec sleep 300"], tty=False, inputs=events(hold=True)
    )
    first = await anext(session)
    pid = int(first.data)
    await session.aclose()  # type: ignore[attr-defined]
    await until(lambda: not process.read_stat_alive(pid), "session killed")
    await driver.stop(task.id, signal="SIGKILL", timeout_s=5)
    await driver.destroy(task.id)


async def test_many_tasks_share_one_supervisor(tmp_path: Path) -> None:
    driver = make_driver()
    tasks = [make_task(tmp_path, f"exit {n}", id=f"a1/t{n}", task=f"t{n}") for n in range(8)]
    await asyncio.gather(*(driver.start(t) for t in tasks))
    results = await asyncio.gather(*(driver.wait(t.id) for t in tasks))
    assert [r.exit_code for r in results] == list(range(8))
    answer = await driver._client(tasks[0]).request("ping")
    assert len(answer["tasks"]) == 8
    for task in tasks:
        await driver.destroy(task.id)
    os.kill(answer["pid"], signal.SIGTERM)


async def test_a_task_without_logs_writes_none(tmp_path: Path) -> None:
    driver = make_driver()
    task = make_task(tmp_path, "echo x", log_disabled=True)
    await driver.start(task)
    assert (await driver.wait(task.id)).successful
    assert log_text(tmp_path) == ""
    await driver.destroy(task.id)
