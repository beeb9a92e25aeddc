"""Volumes of the node in real tasks: bind mounts of containers, links of plain processes."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from docker_daemon import IMAGE

from agent.drivers.base import DriverError, TaskConfig, TaskPaths, TaskVolume
from agent.drivers.docker import DockerDriver
from agent.drivers.docker_config import ConfigRefusedError, container_spec
from agent.drivers.docker_policy import DockerPolicy, VolumesPolicy
from agent.drivers.raw_exec import RawExecDriver, RawExecPolicy
from agent.drivers.volume_links import link_volumes
from nomadpy.clock import SystemClock
from nomadpy.entropy import SystemEntropy

pytestmark = pytest.mark.real_time

ROOT = "/allocs/a1"


def make_task(root: Path, config: dict[str, Any], *volumes: TaskVolume, **more: Any) -> TaskConfig:
    alloc_id = SystemEntropy().uuid()
    folder = root / alloc_id
    for part in ("alloc/logs", "web/local", "web/secrets"):
        (folder / part).mkdir(parents=True)
    return TaskConfig(
        id=f"{alloc_id}/web",
        alloc_id=alloc_id,
        task="web",
        namespace="default",
        job_id="j",
        group="g",
        config=config,
        paths=paths_of(str(folder)),
        volumes=list(volumes),
        **more,
    )


def paths_of(root: str) -> TaskPaths:
    return TaskPaths(
        alloc=f"{root}/alloc",
        task=f"{root}/web",
        local=f"{root}/web/local",
        secrets=f"{root}/web/secrets",
        logs=f"{root}/alloc/logs",
    )


def volume(path: Path | str, target: str = "/data", **more: Any) -> TaskVolume:
    return TaskVolume(name="data", path=str(path), target=target, **more)


def contained(script: str) -> dict[str, Any]:
    return {"image": IMAGE, "command": "sh", "args": ["-c", script]}


def plain(script: str) -> dict[str, Any]:
    return {"command": "/bin/sh", "args": ["-c", script]}


async def exit_code(driver: DockerDriver | RawExecDriver, task: TaskConfig) -> int:
    await driver.start(task)
    async with asyncio.timeout(60):
        result = await driver.wait(task.id)
    await driver.destroy(task.id)
    return result.exit_code


# -- containers ---------------------------------------------------------------------------------------------


async def test_what_a_container_writes_into_a_volume_the_next_one_reads(
    docker_host: str, tmp_path: Path
) -> None:
    driver = DockerDriver(SystemClock(), DockerPolicy(endpoint=docker_host))
    shared = tmp_path / "volume"
    shared.mkdir()
    write = make_task(tmp_path, contained("echo rows > /data/db"), volume(shared))
    assert await exit_code(driver, write) == 0
    assert (shared / "db").read_text() == "rows\n"
    read = contained("test $(cat /srv/deep/db) = rows && ! echo more > /srv/deep/db")
    only = volume(shared, "/srv/deep", read_only=True)
    assert await exit_code(driver, make_task(tmp_path, read, only)) == 0
    assert (shared / "db").read_text() == "rows\n"
    await driver.close()


async def test_a_containers_user_may_write_where_the_volume_is_its_own(
    docker_host: str, tmp_path: Path
) -> None:
    driver = DockerDriver(SystemClock(), DockerPolicy(endpoint=docker_host))
    shared = tmp_path / "volume"
    shared.mkdir(mode=0o700)
    script = contained("echo rows > /data/db")
    refused = make_task(tmp_path, script, volume(shared), user="4242")
    assert await exit_code(driver, refused) != 0
    os.chown(shared, 4242, 4242)
    assert await exit_code(driver, make_task(tmp_path, script, volume(shared), user="4242")) == 0
    assert (shared / "db").stat().st_uid == 4242
    await driver.close()


async def test_a_volume_can_lie_in_the_tasks_own_folder(docker_host: str, tmp_path: Path) -> None:
    driver = DockerDriver(SystemClock(), DockerPolicy(endpoint=docker_host))
    shared = tmp_path / "volume"
    shared.mkdir()
    task = make_task(tmp_path, contained("echo rows > /local/data/db"))
    inside = volume(shared, f"{task.paths.local}/data")
    task = msgspec.structs.replace(task, volumes=[inside])
    assert await exit_code(driver, task) == 0
    assert (shared / "db").read_text() == "rows\n"
    await driver.close()


def spec(*volumes: TaskVolume, label: str = "") -> dict[str, Any]:
    task = TaskConfig(
        id="a1/web",
        alloc_id="a1",
        task="web",
        namespace="default",
        job_id="j",
        group="g",
        config={"image": "i"},
        paths=paths_of(ROOT),
        volumes=list(volumes),
    )
    policy = DockerPolicy(volumes=VolumesPolicy(selinuxlabel=label))
    host: dict[str, Any] = container_spec(task, policy, image="i").body["HostConfig"]
    return host


@pytest.mark.parametrize(
    ("mode", "propagation"),
    [("private", "rprivate"), ("host-to-task", "rslave"), ("bidirectional", "rshared")],
)
def test_a_volume_needs_no_permission_beyond_its_name(mode: str, propagation: str) -> None:
    assert spec(volume("/srv/v", propagation=mode, read_only=True))["Mounts"] == [
        {
            "Type": "bind",
            "Source": "/srv/v",
            "Target": "/data",
            "ReadOnly": True,
            "BindOptions": {"Propagation": propagation},
        }
    ]


@pytest.mark.parametrize(
    ("target", "inside"),
    [
        ("/data", "/data"),
        ("data", "/data"),
        ("/data/../x", "/x"),
        (f"{ROOT}/web/local/d", "/local/d"),
        (f"{ROOT}/alloc/data", "/alloc/data"),
    ],
)
def test_destinations_are_the_containers_paths(target: str, inside: str) -> None:
    assert spec(volume("/srv/v", target))["Mounts"][0]["Target"] == inside


def test_a_label_is_given_to_the_directory() -> None:
    asked = spec(volume("/srv/v", selinux_label="Z", read_only=True))
    assert asked["Binds"][-1] == "/srv/v:/data:ro,rprivate,Z"
    assert "Mounts" not in asked
    assert spec(volume("/srv/v"), label="z")["Binds"][-1] == "/srv/v:/data:rw,rprivate,z"
    with pytest.raises(ConfigRefusedError, match="colon"):
        spec(volume("/srv/v:w", selinux_label="z"))


# -- plain processes ----------------------------------------------------------------------------------------


async def test_what_a_process_writes_into_a_volume_the_next_one_reads(tmp_path: Path) -> None:
    driver = RawExecDriver(SystemClock(), RawExecPolicy(enabled=True))
    shared = tmp_path / "volume"
    shared.mkdir()
    write = make_task(tmp_path, plain("echo rows > data/db"), volume(shared, "data"))
    assert await exit_code(driver, write) == 0
    read = make_task(tmp_path, plain("test $(cat local/deep/db) = rows"))
    inside = volume(shared, f"{read.paths.task}/local/deep")
    read = msgspec.structs.replace(read, volumes=[inside])
    assert await exit_code(driver, read) == 0
    await driver.close()


async def test_a_process_cannot_be_given_a_volume_read_only_or_anywhere_on_the_host(
    tmp_path: Path,
) -> None:
    driver = RawExecDriver(SystemClock(), RawExecPolicy(enabled=True))
    for wrong, complaint in (
        (volume(tmp_path, "data", read_only=True), "'data'.*read-only"),
        (volume(tmp_path, "/data"), "'data'.*not inside the task's directory"),
        (volume(tmp_path, "../other"), "'data'.*not inside"),
        (volume(tmp_path, "."), "'data'.*not inside"),
        (volume(tmp_path, "local"), "'data'.*File exists"),
    ):
        with pytest.raises(DriverError, match=complaint) as caught:
            await driver.start(make_task(tmp_path, plain("true"), wrong))
        assert not caught.value.recoverable
    await driver.close()


def test_a_link_of_an_earlier_start_is_put_right(tmp_path: Path) -> None:
    task = make_task(tmp_path, {}, volume("/srv/new", "a/b/data"))
    place = Path(task.paths.task, "a/b/data")
    place.parent.mkdir(parents=True)
    place.symlink_to("/srv/old")
    link_volumes(task)
    link_volumes(task)
    assert os.readlink(place) == "/srv/new"


def test_a_link_that_a_task_laid_does_not_lead_the_volume_elsewhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    task = make_task(tmp_path, {}, volume("/srv/v", "a/data"))
    Path(task.paths.task, "a").symlink_to(outside)
    with pytest.raises(DriverError, match="cannot lead to it"):
        link_volumes(task)
    assert list(outside.iterdir()) == []
    assert stat.S_ISLNK(os.lstat(Path(task.paths.task, "a")).st_mode)
