"""Directories on a real disk: layout, modes, secrets, links that lead away, removal."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.task_dir import (
    DirectoryError,
    HostDirectories,
    MemoryDirectories,
    TaskDirectories,
    _inside,
)
from nomadpy.errors import InvalidRequestError

pytestmark = pytest.mark.real_time

ALLOC = "00000001-0000-4000-8000-000000000000"
OTHER = "00000002-0000-4000-8000-000000000000"


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


async def test_the_layout_and_modes_are_nomads(tmp_path: Path) -> None:
    directories = HostDirectories(tmp_path / "alloc")
    paths = await directories.build(ALLOC, "web", "")
    await directories.build(ALLOC, "web", "")
    root = Path(directories.root(ALLOC))
    assert sorted(p.name for p in root.iterdir()) == ["alloc", "web"]
    assert sorted(p.name for p in (root / "alloc").iterdir()) == ["data", "logs", "tmp"]
    assert sorted(p.name for p in (root / "web").iterdir()) == ["local", "secrets", "tmp"]
    assert mode(root / "alloc") == mode(root / "web") == 0o777
    assert mode(paths.secrets) == 0o700
    assert await directories.known() == [ALLOC]
    await directories.remove(ALLOC)
    await directories.remove(ALLOC)
    assert not root.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
async def test_secrets_are_in_memory_where_the_agent_may_mount(tmp_path: Path) -> None:
    directories = HostDirectories(tmp_path)
    paths = await directories.build(ALLOC, "web", "")
    await directories.write(ALLOC, "web", "secrets/t", b"x", mode=0o600, user="")
    await directories.remove(ALLOC)
    assert not os.path.exists(paths.secrets)
    assert f" {paths.secrets} " not in Path("/proc/self/mountinfo").read_text()


async def test_files_are_written_whole_with_their_mode_and_read_back(tmp_path: Path) -> None:
    for directories in (HostDirectories(tmp_path), MemoryDirectories()):
        assert isinstance(directories, HostDirectories | MemoryDirectories)
        await put(directories, "secrets/task-key.pem", b"one")
        await put(directories, "secrets/task-key.pem", b"two")
        assert await directories.read(ALLOC, "web", "secrets/task-key.pem") == b"two"
        assert await directories.read(ALLOC, "web", "secrets/none") is None
        for name in ("", "../x", "local/../../x", "a\0b"):
            with pytest.raises(InvalidRequestError):
                await put(directories, name, b"x")
        await directories.remove(ALLOC)


async def put(directories: TaskDirectories, name: str, data: bytes) -> None:
    await directories.build(ALLOC, "web", "")
    await directories.write(ALLOC, "web", name, data, mode=0o600, user="")
    if isinstance(directories, HostDirectories):
        assert mode(f"{directories.paths(ALLOC, 'web').task}/{name}") == 0o600


async def test_a_link_that_a_task_laid_does_not_lead_us_away(tmp_path: Path) -> None:
    directories = HostDirectories(tmp_path / "alloc", mount_secrets=False)
    paths = await directories.build(ALLOC, "web", "")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"precious")
    os.symlink(outside, f"{paths.local}/away")
    with pytest.raises(DirectoryError):
        await directories.write(ALLOC, "web", "local/away/f", b"x", mode=0o644, user="")
    assert await directories.read(ALLOC, "web", "local/away/f") is None
    # A link in the file's own place is replaced, not followed.
    os.symlink(outside / "f", f"{paths.local}/f")
    await directories.write(ALLOC, "web", "local/f", b"x", mode=0o644, user="")
    os.rmdir(paths.secrets)
    os.symlink(outside, paths.secrets)
    with pytest.raises(DirectoryError):
        await directories.build(ALLOC, "web", "")
    await directories.remove(ALLOC)
    assert (outside / "f").read_bytes() == b"precious"


async def test_what_a_task_protected_against_writing_is_removed(tmp_path: Path) -> None:
    directories = HostDirectories(tmp_path, mount_secrets=False)
    paths = await directories.build(ALLOC, "web", "")
    os.makedirs(f"{paths.local}/a/b")
    Path(f"{paths.local}/a/b/f").write_text("x")
    os.chmod(f"{paths.local}/a/b", 0o500)
    os.chmod(f"{paths.local}/a", 0o500)
    await directories.remove(ALLOC)
    assert await directories.known() == []


async def test_sticky_data_moves_to_the_next_allocation(tmp_path: Path) -> None:
    directories = HostDirectories(tmp_path, mount_secrets=False)
    old = await directories.build(ALLOC, "web", "")
    Path(f"{old.alloc}/data/db").write_text("rows")
    Path(f"{old.local}/cache").write_text("warm")
    new = await directories.build(OTHER, "web", "")
    await directories.adopt(OTHER, ALLOC, ["web"])
    assert Path(f"{new.alloc}/data/db").read_text() == "rows"
    assert Path(f"{new.local}/cache").read_text() == "warm"
    await directories.adopt(OTHER, "00000003-0000-4000-8000-000000000000", ["web"])


@given(name=st.text(alphabet="ab./\0", max_size=12))
def test_no_name_leaves_the_tasks_directory(name: str) -> None:
    try:
        clean = _inside(name)
    except InvalidRequestError:
        return
    top = "/top"
    assert os.path.normpath(f"{top}/{clean}").startswith(f"{top}/")
