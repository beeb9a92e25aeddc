"""Real containers on a real daemon. A killed agent is a driver in a process of its own that gets SIGKILL."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from docker_daemon import IMAGE, PrivateDocker

from agent.drivers.base import (
    DriverError,
    ExecInput,
    ExecOutput,
    TaskConfig,
    TaskHandle,
    TaskNotFoundError,
    TaskPaths,
)
from agent.drivers.docker import DockerDriver
from agent.drivers.docker_policy import DockerPolicy
from nomadpy.clock import SystemClock
from nomadpy.entropy import SystemEntropy
from nomadpy.models.resources import (
    AllocatedCpuResources,
    AllocatedMemoryResources,
    AllocatedTaskResources,
    PortMapping,
)

pytestmark = pytest.mark.real_time


def make_driver(endpoint: str, **policy: Any) -> DockerDriver:
    return DockerDriver(SystemClock(), DockerPolicy(endpoint=endpoint, **policy), core_mhz=2000)


def make_task(root: Path, script: str, **changes: Any) -> TaskConfig:
    # Containers of one daemon have one name space, so every test folder has its own allocation.
    file = root / "alloc-id"
    if not file.exists():
        root.mkdir(parents=True, exist_ok=True)
        file.write_text(SystemEntropy().uuid())
    alloc_id = file.read_text()
    for part in ("alloc/logs", "web/local", "web/secrets"):
        (root / part).mkdir(parents=True, exist_ok=True)
    more = changes.pop("more", {})
    values: dict[str, Any] = {
        "id": f"{alloc_id}/web",
        "alloc_id": alloc_id,
        "task": "web",
        "namespace": "default",
        "job_id": "j",
        "group": "g",
        "config": {"image": IMAGE, "command": "sh", "args": ["-c", script], **more},
        "env": {"NOMAD_TASK_DIR": str(root / "web/local"), "GREETING": "hi"},
        "resources": AllocatedTaskResources(
            cpu=AllocatedCpuResources(cpu_shares=100), memory=AllocatedMemoryResources(memory_mb=32)
        ),
        "paths": TaskPaths(
            alloc=str(root / "alloc"),
            task=str(root / "web"),
            local=str(root / "web/local"),
            secrets=str(root / "web/secrets"),
            logs=str(root / "alloc/logs"),
        ),
    }
    values.update(changes)
    return TaskConfig(**values)


def log_text(root: Path, stream: str = "stdout") -> str:
    files = sorted((root / "alloc/logs").glob(f"web.{stream}.*"), key=lambda p: int(p.suffix[1:]))
    return "".join(f.read_text() for f in files)


async def until(condition: Any, timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_container_runs_with_its_folders_environment_and_labels(
    docker_host: str, tmp_path: Path
) -> None:
    driver = make_driver(docker_host)
    script = "echo $NOMAD_TASK_DIR $GREETING; echo oops >&2; echo made > /local/made; ls /secrets /alloc; exit 6"
    task = make_task(tmp_path, script)
    started = await driver.start(task)
    facts = await driver._engine.inspect(started.handle.state["container_id"])
    assert facts["Name"] == f"/web-{task.alloc_id}"
    assert facts["Config"]["Labels"]["com.hashicorp.nomad.alloc_id"] == task.alloc_id
    result = await driver.wait(task.id)
    assert (result.exit_code, result.error) == (6, "")
    assert log_text(tmp_path).splitlines()[0] == "/local hi"
    assert "logs" in log_text(tmp_path)
    assert log_text(tmp_path, "stderr") == "oops\n"
    assert (tmp_path / "web/local/made").read_text() == "made\n"
    await driver.destroy(task.id)
    with pytest.raises(TaskNotFoundError):
        await driver.recover(started.handle, task)
    await driver.close()


async def test_containers_of_a_forgotten_allocation_are_removed_and_others_stay(
    docker_host: str, tmp_path: Path
) -> None:
    driver = make_driver(docker_host)
    task = make_task(tmp_path, "sleep 300")
    started = await driver.start(task)
    other = make_driver(docker_host)
    assert await other.end_strays("another", str(tmp_path)) == 0
    await driver._engine.inspect(started.handle.state["container_id"])
    assert await other.end_strays(task.alloc_id, str(tmp_path)) == 1
    with pytest.raises(TaskNotFoundError):
        await other.recover(started.handle, task)
    assert await other.end_strays(task.alloc_id, str(tmp_path)) == 0
    absent = make_driver(f"unix://{tmp_path}/nothing-here")
    assert await absent.end_strays(task.alloc_id, str(tmp_path)) == 0
    for one in (driver, other, absent):
        await one.close()


async def test_the_daemon_is_described_and_an_absent_one_is_undetected(docker_host: str) -> None:
    driver = make_driver(docker_host, allow_privileged=True)
    found = await driver.fingerprint()
    assert found.healthy
    assert found.attributes["driver.docker.os_type"] == "linux"
    assert "runc" in found.attributes["driver.docker.runtimes"]
    assert found.attributes["driver.docker.privileged.enabled"] == "true"
    assert "driver.docker.volumes.enabled" not in found.attributes
    await driver.close()
    absent = make_driver("unix:///nonexistent/docker.sock")
    assert (await absent.fingerprint()).detected is False
    await absent.close()


async def test_stop_signals_then_kills(docker_host: str, tmp_path: Path) -> None:
    driver = make_driver(docker_host)
    polite = make_task(
        tmp_path, "trap 'echo bye; exit 3' INT; echo up; while :; do sleep 0.1; done"
    )
    await driver.start(polite)
    await until(lambda: "up" in log_text(tmp_path))
    await driver.stop(polite.id, signal="SIGINT", timeout_s=10)
    assert (await driver.wait(polite.id)).exit_code == 3
    assert "bye" in log_text(tmp_path)
    await driver.stop(polite.id, signal="SIGINT", timeout_s=10)
    await driver.destroy(polite.id)
    deaf = make_task(tmp_path, "trap '' INT; echo deaf; while :; do sleep 0.1; done", attempt=1)
    await driver.start(deaf)
    await until(lambda: "deaf" in log_text(tmp_path))
    with pytest.raises(DriverError, match=r"[Ii]nvalid signal"):
        await driver.signal(deaf.id, "SIGNONSENSE")
    await driver.stop(deaf.id, signal="SIGINT", timeout_s=0.3)
    result = await driver.wait(deaf.id)
    assert (result.exit_code, result.signal) == (137, 9)
    await driver.destroy(deaf.id)
    await driver.close()


async def test_a_container_over_its_memory_is_reported_as_out_of_memory(
    docker_host: str, tmp_path: Path
) -> None:
    driver = make_driver(docker_host)
    task = make_task(tmp_path, "exec dd if=/dev/zero of=/dev/null bs=200M count=1")
    await driver.start(task)
    result = await driver.wait(task.id)
    assert result.oom_killed
    assert not result.successful
    await driver.destroy(task.id)
    await driver.close()


async def test_a_missing_image_says_which_and_why(docker_host: str, tmp_path: Path) -> None:
    driver = make_driver(docker_host, image_pull_timeout="20s")
    config = {"image": "127.0.0.1:1/no/such:tag", "command": "true"}
    with pytest.raises(
        DriverError, match=r"Failed to pull `127.0.0.1:1/no/such:tag`: .*refused"
    ) as e:
        await driver.start(make_task(tmp_path, "", config=config))
    assert e.value.recoverable
    await driver.close()


async def test_a_start_that_fails_leaves_no_container(docker_host: str, tmp_path: Path) -> None:
    driver = make_driver(docker_host)
    task = make_task(tmp_path, "", config={"image": IMAGE, "command": "no-such-program"})
    with pytest.raises(DriverError, match="no-such-program"):
        await driver.start(task)
    with pytest.raises(TaskNotFoundError):
        await driver.recover(TaskHandle(driver="docker", task_id=task.id), task)
    await driver.close()


async def test_a_container_left_by_an_unfinished_start_is_found_and_replaced(
    docker_host: str, tmp_path: Path
) -> None:
    first = make_driver(docker_host)
    task = make_task(tmp_path, "sleep 300")
    one = await first.start(task)
    await first.close()
    second = make_driver(docker_host)
    await second.recover(TaskHandle(driver="docker", task_id=task.id), task)
    two = await second.start(task)
    assert one.handle.state["container_id"] != two.handle.state["container_id"]
    await second.stop(task.id, signal="SIGKILL", timeout_s=5)
    await second.destroy(task.id)
    await second.close()


async def test_a_published_port_answers_and_the_driver_tells_its_network(
    private_docker: PrivateDocker, tmp_path: Path
) -> None:
    if not private_docker.has_bridge:
        pytest.fail("this host's docker can have no bridge")
    driver = make_driver(private_docker.endpoint)
    task = make_task(
        tmp_path,
        "echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp",
        ports=[PortMapping(label="http", value=28471, to=8080, host_ip="127.0.0.1")],
        more={"ports": ["http"]},
    )
    started = await driver.start(task)
    assert started.network is not None
    assert started.network.ports == {"http": 8080}
    text = ""
    async with asyncio.timeout(10):
        while not text:
            try:
                text = await asyncio.to_thread(
                    lambda: urllib.request.urlopen("http://127.0.0.1:28471/").read().decode()
                )
            except OSError:
                await asyncio.sleep(0.1)
    assert text == "hello\n"
    await driver.stop(task.id, signal="SIGKILL", timeout_s=5)
    await driver.destroy(task.id)
    await driver.close()


async def test_stats_tell_cpu_and_memory(docker_host: str, tmp_path: Path) -> None:
    driver = make_driver(docker_host)
    task = make_task(tmp_path, "while :; do :; done")
    await driver.start(task)
    await driver.stats(task.id)
    await asyncio.sleep(0.5)
    usage = await driver.stats(task.id)
    assert usage.cpu_stats is not None
    assert usage.cpu_stats.percent > 10
    assert usage.memory_stats is not None
    assert usage.memory_stats.usage > 10_000
    await driver.stop(task.id, signal="SIGKILL", timeout_s=5)
    await driver.destroy(task.id)
    await driver.close()


async def events(*items: ExecInput) -> AsyncIterator[ExecInput]:
    for item in items:
        yield item
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


async def test_exec_runs_inside_on_pipes_and_on_a_terminal(
    docker_host: str, tmp_path: Path
) -> None:
    driver = make_driver(docker_host)
    task = make_task(tmp_path, "sleep 300")
    await driver.start(task)
    piped = driver.exec(
        task.id,
        ["sh", "-c", "cat; echo $GREETING >&2; exit 9"],
        tty=False,
        inputs=events(ExecInput(data=b"hello\n"), ExecInput(closed=True)),
    )
    assert await collect(piped) == (b"hello\n", b"hi\n", 9)
    typed = driver.exec(
        task.id,
        ["sh", "-c", "read line; stty size; echo got $line; exit 4"],
        tty=True,
        inputs=events(ExecInput(height=33, width=77), ExecInput(data=b"word\n")),
    )
    out, _, code = await collect(typed)
    assert b"33 77" in out
    assert b"got word" in out
    assert code == 4
    await driver.stop(task.id, signal="SIGKILL", timeout_s=5)
    await driver.destroy(task.id)
    await driver.close()


_AGENT = """
import asyncio, sys, msgspec
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
from test_docker import make_driver, make_task
async def main():
    task = make_task(Path({root!r}), {script!r})
    started = await make_driver({endpoint!r}).start(task)
    print(msgspec.json.encode(started.handle).decode(), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def agent_killed_after(root: Path, endpoint: str, script: str, lines: int) -> TaskHandle:
    """Start the task in an agent process, kill it when the log has `lines` lines."""
    here = Path(__file__).parent
    source = _AGENT.format(
        tests=str(here.parent.parent),
        here=str(here),
        root=str(root),
        script=script,
        endpoint=endpoint,
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        line = await asyncio.to_thread(agent.stdout.readline)
        try:
            await until(lambda: log_text(root).count("\n") >= lines)
        finally:
            agent.kill()
    return msgspec.json.decode(line, type=TaskHandle)


async def test_a_container_outlives_a_killed_agent_and_no_line_is_lost_or_doubled(
    docker_host: str, tmp_path: Path
) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; [ $((i%3)) = 0 ] && echo err $i >&2; i=$((i+1)); [ $((i%10)) = 0 ] && sleep 0.01; done; exit 5"
    handle = await agent_killed_after(tmp_path, docker_host, script, 300)
    await asyncio.sleep(0.2)
    driver = make_driver(docker_host)
    task = make_task(tmp_path, script)
    await driver.recover(handle, task)
    facts = await driver._engine.inspect(handle.state["container_id"])
    assert facts["State"]["Running"]
    await asyncio.sleep(0.3)
    # A second agent is stopped in order, a third one finishes.
    await driver.close()
    driver = make_driver(docker_host)
    await driver.recover(handle, task)
    assert (await driver.wait(task.id)).exit_code == 5
    assert log_text(tmp_path) == "".join(f"line {i}\n" for i in range(3000))
    assert log_text(tmp_path, "stderr") == "".join(f"err {i}\n" for i in range(0, 3000, 3))
    await driver.destroy(task.id)
    await driver.close()


async def test_an_exit_while_no_agent_ran_is_reported_with_its_log(
    docker_host: str, tmp_path: Path
) -> None:
    script = "echo one; sleep 0.5; echo two; exit 42"
    handle = await agent_killed_after(tmp_path, docker_host, script, 1)
    await asyncio.sleep(1)
    driver = make_driver(docker_host)
    task = make_task(tmp_path, script)
    await driver.recover(handle, task)
    assert (await driver.wait(task.id)).exit_code == 42
    assert log_text(tmp_path) == "one\ntwo\n"
    await driver.destroy(task.id)
    await driver.close()


async def test_a_later_attempt_appends_to_the_log(docker_host: str, tmp_path: Path) -> None:
    driver = make_driver(docker_host)
    for attempt in range(3):
        task = make_task(tmp_path, f"echo attempt {attempt}", attempt=attempt)
        await driver.start(task)
        await driver.wait(task.id)
        await driver.destroy(task.id)
    assert log_text(tmp_path) == "attempt 0\nattempt 1\nattempt 2\n"
    await driver.close()


async def test_a_container_outlives_its_daemon_and_is_waited_for_through_the_restart(
    private_docker: PrivateDocker, tmp_path: Path
) -> None:
    driver = make_driver(private_docker.endpoint)
    script = "i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 7"
    task = make_task(tmp_path, script)
    await driver.start(task)
    waiting = asyncio.ensure_future(driver.wait(task.id))
    await until(lambda: log_text(tmp_path).count("\n") >= 5)
    private_docker.kill()
    assert not (await driver.fingerprint()).healthy
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await asyncio.to_thread(private_docker.start)
    assert (await waiting).exit_code == 7
    assert log_text(tmp_path) == "".join(f"{i}\n" for i in range(60))
    await driver.destroy(task.id)
    await driver.close()


async def test_a_container_removed_behind_our_back_is_an_error(
    docker_host: str, tmp_path: Path
) -> None:
    driver = make_driver(docker_host)
    task = make_task(tmp_path, "sleep 300")
    started = await driver.start(task)
    waiting = asyncio.ensure_future(driver.wait(task.id))
    await asyncio.sleep(0.2)
    await driver._engine.remove(started.handle.state["container_id"])
    result = await waiting
    assert not result.successful
    await driver.destroy(task.id)
    await driver.close()


async def test_host_paths_need_volumes_and_a_symbolic_link_does_not_help(
    docker_host: str, tmp_path: Path
) -> None:
    driver = make_driver(docker_host)
    link = make_task(tmp_path, "ls /x", more={"volumes": ["local/link:/x"]})
    (tmp_path / "web/local/link").symlink_to("/etc")
    with pytest.raises(DriverError, match="volumes are not enabled"):
        await driver.start(link)
    with pytest.raises(DriverError, match="volumes are not enabled"):
        await driver.start(make_task(tmp_path, "", more={"volumes": ["/etc:/x"]}))
    await driver.close()
    inside = make_driver(docker_host)
    (tmp_path / "web/local/data").mkdir()
    (tmp_path / "web/local/data/f").write_text("x")
    task = make_task(tmp_path, "ls /x", more={"volumes": ["local/data:/x:ro"]})
    await inside.start(task)
    assert (await inside.wait(task.id)).successful
    assert log_text(tmp_path) == "f\n"
    await inside.destroy(task.id)
    await inside.close()
