"""Plugins of host volumes: real directories with real owners, and real scripts that work, fail, hang and talk too much."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import host_volume_plugins
from agent.host_volume_plugins import (
    ExternalPlugin,
    MkdirParameters,
    MkdirPlugin,
    VolumePluginError,
    execute,
    find_plugins,
    leftovers,
    remove_leftovers,
)
from agent.local_state import VolumeRecord
from nomadpy.errors import InvalidRequestError

pytestmark = pytest.mark.real_time

ID = "11111111-2222-4333-8444-555555555555"

WORKS = """
case "$1" in
  fingerprint) echo '{"version": "0.1.2"}' ;;
  create) mkdir -p "$DHV_VOLUMES_DIR/$DHV_VOLUME_ID"; env | grep ^DHV_ | sort > "$DHV_PLUGIN_DIR/seen"
          echo making >&2; printf '{"path": "%s", "bytes": 4096}' "$DHV_VOLUMES_DIR/$DHV_VOLUME_ID" ;;
  delete) env | grep ^DHV_ | sort > "$DHV_PLUGIN_DIR/seen"; rm -rf "$DHV_CREATED_PATH" ;;
esac
"""


def volume(**more: object) -> VolumeRecord:
    fields: dict[str, object] = {"id": ID, "name": "data", "plugin_id": "mkdir"}
    return VolumeRecord(**{**fields, **more})  # type: ignore[arg-type]


def script(folder: Path, text: str, name: str = "plug") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def external(tmp_path: Path, text: str) -> ExternalPlugin:
    (tmp_path / "volumes").mkdir(exist_ok=True)
    path = script(tmp_path / "plugins", text)
    return ExternalPlugin(path, tmp_path / "volumes", "pool", "1")


# -- mkdir --------------------------------------------------------------------------------------------------


async def test_mkdir_makes_a_directory_that_only_the_agent_may_enter(tmp_path: Path) -> None:
    made = await MkdirPlugin(tmp_path).create(volume(), "n", anew=True)
    assert made.path == f"{tmp_path}/{ID}"
    assert made.capacity_bytes == 0
    assert stat.S_IMODE(os.stat(made.path).st_mode) == 0o700


@pytest.mark.parametrize(("text", "mode"), [("0755", 0o755), ("2770", 0o2770), ("0o1777", 0o1777)])
async def test_mode_and_owner_are_those_of_the_parameters_whatever_the_umask_says(
    tmp_path: Path, text: str, mode: int
) -> None:
    old = os.umask(0o077)
    try:
        wanted = volume(parameters={"mode": text, "uid": "12345", "gid": "23456"})
        made = await MkdirPlugin(tmp_path).create(wanted, "n", anew=True)
    finally:
        os.umask(old)
    status = os.stat(made.path)
    assert stat.S_IMODE(status.st_mode) == mode
    assert (status.st_uid, status.st_gid) == (12345, 23456)


async def test_a_repeated_create_keeps_the_data_and_puts_the_mode_right(tmp_path: Path) -> None:
    plugin = MkdirPlugin(tmp_path)
    made = await plugin.create(volume(), "n", anew=True)
    Path(made.path, "rows").write_text("precious")
    again = await plugin.create(volume(parameters={"mode": "0750"}), "n", anew=True)
    assert again == made
    assert Path(made.path, "rows").read_text() == "precious"
    assert stat.S_IMODE(os.stat(made.path).st_mode) == 0o750


async def test_a_restart_does_not_make_an_empty_directory_of_lost_data(tmp_path: Path) -> None:
    with pytest.raises(VolumePluginError, match="No such file"):
        await MkdirPlugin(tmp_path).create(volume(), "n", anew=False)
    assert list(tmp_path.iterdir()) == []


async def test_mkdir_does_not_follow_a_link_in_its_place(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    home = tmp_path / "volumes"
    home.mkdir()
    (home / ID).symlink_to(outside)
    with pytest.raises(VolumePluginError):
        await MkdirPlugin(home).create(volume(parameters={"mode": "0777"}), "n", anew=True)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755


async def test_delete_removes_all_and_a_second_one_is_no_error(tmp_path: Path) -> None:
    plugin = MkdirPlugin(tmp_path)
    made = await plugin.create(volume(), "n", anew=True)
    Path(made.path, "a/b").mkdir(parents=True)
    other = tmp_path / "other"
    other.mkdir()
    (Path(made.path) / "link").symlink_to(other)
    await plugin.delete(volume(), "n")
    await plugin.delete(volume(), "n")
    assert not Path(made.path).exists()
    assert other.is_dir()


async def test_what_an_interrupted_delete_left_is_found_and_removed(tmp_path: Path) -> None:
    plugin = MkdirPlugin(tmp_path)
    await plugin.create(volume(), "n", anew=True)
    (tmp_path / ".removed").mkdir()
    os.rename(tmp_path / ID, tmp_path / ".removed" / ID)
    assert leftovers(tmp_path) == [tmp_path / ".removed" / ID]
    remove_leftovers(leftovers(tmp_path))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"mode": "rwx"}, "octal"),
        ({"mode": "0888"}, "octal"),
        ({"mode": "17777"}, "octal"),
        ({"uid": "root"}, "uid"),
        ({"gid": "-1"}, "gid"),
        ({"uid": "4294967295"}, "uid"),
        ({"owner": "1"}, "owner"),
    ],
)
def test_parameters_that_mkdir_cannot_use_are_refused(
    parameters: dict[str, str], complaint: str
) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        MkdirParameters.parse(parameters)


@given(st.dictionaries(st.sampled_from(["mode", "uid", "gid"]), st.text(max_size=8)))
def test_whatever_is_taken_can_be_applied(parameters: dict[str, str]) -> None:
    try:
        wanted = MkdirParameters.parse(parameters)
    except InvalidRequestError:
        return
    assert 0 <= wanted.mode <= 0o7777
    assert all(one is None or 0 <= one < 2**32 - 1 for one in (wanted.uid, wanted.gid))


# -- executables --------------------------------------------------------------------------------------------


async def test_a_plugin_is_told_everything_and_its_answer_counts(tmp_path: Path) -> None:
    plugin = external(tmp_path, WORKS)
    wanted = volume(
        namespace="prod", capacity_min_bytes=5, capacity_max_bytes=10, parameters={"key": "val"}
    )
    made = await plugin.create(wanted, "node-1", anew=True)
    assert made.path == f"{tmp_path}/volumes/{ID}"
    assert made.capacity_bytes == 4096
    seen = (tmp_path / "plugins/seen").read_text().splitlines()
    assert seen == [
        "DHV_CAPACITY_MAX_BYTES=10",
        "DHV_CAPACITY_MIN_BYTES=5",
        "DHV_NAMESPACE=prod",
        "DHV_NODE_ID=node-1",
        "DHV_NODE_POOL=pool",
        "DHV_OPERATION=create",
        'DHV_PARAMETERS={"key":"val"}',
        f"DHV_PLUGIN_DIR={tmp_path}/plugins",
        f"DHV_VOLUMES_DIR={tmp_path}/volumes",
        f"DHV_VOLUME_ID={ID}",
        "DHV_VOLUME_NAME=data",
    ]
    await plugin.delete(msgspec.structs.replace(wanted, path=made.path), "node-1")
    seen = (tmp_path / "plugins/seen").read_text().splitlines()
    assert f"DHV_CREATED_PATH={made.path}" in seen
    assert "DHV_CAPACITY_MIN_BYTES=5" not in seen
    assert not Path(made.path).exists()


async def test_a_plugin_does_not_get_the_agents_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOMAD_TOKEN", "abc")
    out = await execute(script(tmp_path, "env"), "fingerprint", {}, 10)
    assert b"NOMAD_TOKEN" not in out
    assert b"PATH=" in out


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("echo no disk left >&2; exit 3", "code 3: no disk left"),
        ("""echo '{"error": "quota is used up"}'; echo noise >&2; exit 1""", "quota is used up"),
        ("echo this is no json", "cannot be read"),
        ("printf '\\377\\376'", "cannot be read"),
        ("""echo '{"bytes": 5}'""", "cannot be read"),
        ("""echo '{"path": "relative", "bytes": 5}'""", "no directory"),
        ("""echo '{"path": "/does/not/exist", "bytes": 5}'""", "no directory"),
        ("""echo '{"path": "/", "bytes": -1}'""", "-1 bytes"),
        ("exec cat /dev/zero", "wrote more than"),
        ("exec cat /dev/zero >&2", "wrote more than"),
        ("true", "cannot be read"),
    ],
)
async def test_a_plugin_that_does_not_work_is_an_error_with_its_words(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(VolumePluginError, match=complaint):
        await external(tmp_path, text).create(volume(), "n", anew=True)


async def test_a_plugin_that_hangs_is_killed_with_all_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_volume_plugins, "WORK_TIMEOUT_S", 0.5)
    plugin = external(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait")
    began = time.monotonic()
    with pytest.raises(VolumePluginError, match=r"not done within 0\.5 seconds"):
        await plugin.create(volume(), "n", anew=True)
    assert time.monotonic() - began < 20
    child = int((tmp_path / "child").read_text())
    async with asyncio.timeout(20):
        while _is_alive(child):
            await asyncio.sleep(0.02)


async def test_cancelling_ends_the_plugin(tmp_path: Path) -> None:
    plugin = external(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    async with asyncio.TaskGroup() as group:
        work = group.create_task(plugin.create(volume(), "n", anew=True))
        async with asyncio.timeout(20):
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                await asyncio.sleep(0.02)
        work.cancel()
    assert work.cancelled()
    assert not _is_alive(int((tmp_path / "pid").read_text()))


async def test_plugins_are_the_executables_that_answer_with_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_volume_plugins, "FINGERPRINT_TIMEOUT_S", 2.0)
    folder = tmp_path / "plugins"
    script(folder, WORKS, "good")
    script(folder, """echo '{"version": "no"}'""", "odd-version")
    script(folder, "exit 1", "broken")
    script(folder, "exec sleep 60", "slow")
    script(folder, WORKS, "mkdir")
    script(folder, WORKS, ".hidden")
    (folder / "notes.txt").write_text("not executable")
    (folder / "directory").mkdir()
    found = await find_plugins(tmp_path / "volumes", folder, "default")
    assert {name: plugin.version for name, plugin in found.items()} == {
        "mkdir": "0.0.1",
        "good": "0.1.2",
    }
    assert isinstance(found["mkdir"], MkdirPlugin)


async def test_without_a_plugin_directory_there_is_mkdir(tmp_path: Path) -> None:
    assert list(await find_plugins(tmp_path, tmp_path / "none", "default")) == ["mkdir"]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
