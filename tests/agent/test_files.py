"""Reading an allocation's files: the recorded answers, and every way out that a task or a user may try."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.files import (
    FILE_DELETED,
    FILE_TRUNCATED,
    AllocFiles,
    FileAccessError,
    content_type_of,
    go_mode,
)
from nomadpy.errors import InvalidRequestError, NomadError, NotFoundError
from nomadpy.models.stats import StreamFrame

pytestmark = pytest.mark.real_time


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "allocs" / "a1"
    for part in ("alloc/logs", "task/local/d", "task/secrets", ".nomadpy"):
        (base / part).mkdir(parents=True)
    (base / "task/local/f").write_text("data\n")
    (base / "task/secrets/task-key.pem").write_text("SECRET")
    (base / ".nomadpy/sock").write_text("ours")
    (tmp_path / "allocs/a2").mkdir()
    (tmp_path / "allocs/a2/f").write_text("another's")
    return base


async def read(files: AllocFiles, path: str, *, offset: int = 0, limit: int = 0) -> bytes:
    return b"".join([data async for data in files.read(path, offset=offset, limit=limit)])


async def test_listing_stat_and_reading_answer_as_recorded(root: Path) -> None:
    files = AllocFiles(str(root))
    assert [(i.name, i.is_dir) for i in await files.entries("/")] == [
        ("alloc", True),
        ("task", True),
    ]
    os.chmod(root / "task/local/f", 0o644)
    found = await files.stat("/task/local/f")
    assert (found.name, found.size, found.file_mode) == ("f", 5, "-rw-r--r--")
    assert found.content_type == "text/plain; charset=utf-8"
    assert [i.content_type for i in await files.entries("/task/local")] == ["", ""]
    assert await read(files, "/task/local/f") == b"data\n"
    assert await read(files, "/task/local/f", offset=1, limit=2) == b"at"
    frames = [
        f async for f in files.stream("/task/local/f", offset=0, origin="start", follow=False)
    ]
    assert frames == [StreamFrame(data=b"data\n", file="/task/local/f", offset=5)]
    frames = [f async for f in files.stream("task/local/f", offset=2, origin="end", follow=False)]
    assert [f.data for f in frames] == [b"a\n"]


async def test_missing_and_escaping_paths_answer_as_recorded(root: Path) -> None:
    files = AllocFiles(str(root))
    with pytest.raises(NotFoundError) as missing:
        await files.entries("/nope")
    assert missing.value.message == f"open {root}/nope: no such file or directory"
    assert missing.value.status == 404
    with pytest.raises(FileAccessError) as escaping:
        await files.entries("/../../../etc")
    assert (escaping.value.message, escaping.value.status) == (
        "Path escapes the alloc directory",
        500,
    )
    with pytest.raises(NotFoundError, match=r"^stat .*no such file or directory$"):
        await read(files, "/nope")
    with pytest.raises(InvalidRequestError, match="is a directory"):
        await read(files, "/task/local")


async def test_names_of_secrets_may_be_listed_and_contents_not_read(root: Path) -> None:
    files = AllocFiles(str(root))
    assert [i.name for i in await files.entries("/task/secrets")] == ["task-key.pem"]
    os.symlink("../secrets/task-key.pem", root / "task/local/link")
    for path in (
        "/task/secrets/task-key.pem",
        "task/local/../secrets/task-key.pem",
        "/task/local/link",
    ):
        with pytest.raises(FileAccessError, match="Reading secret file prohibited"):
            await read(files, path)
        assert (await files.stat(path)).content_type == ""


async def test_links_may_lead_inside_and_never_outside(root: Path) -> None:
    files = AllocFiles(str(root))
    os.symlink("f", root / "task/local/inside")
    assert await read(files, "/task/local/inside") == b"data\n"
    os.symlink("/etc/passwd", root / "task/local/passwd")
    os.symlink("../../../a2", root / "task/local/a2")
    os.symlink("../../.nomadpy", root / "task/local/ours")
    os.symlink("loop", root / "task/local/loop")
    for path in ("passwd", "a2/f", "a2", "ours", "ours/sock", "loop"):
        with pytest.raises(NomadError):
            await read(files, f"/task/local/{path}")
        with pytest.raises(NomadError):
            await files.entries(f"/task/local/{path}")
    with pytest.raises(NomadError):
        await files.stat("/.nomadpy/sock")


async def test_pipes_sockets_and_devices_are_not_read(root: Path) -> None:
    files = AllocFiles(str(root))
    os.mkfifo(root / "task/local/pipe")
    server = socket.socket(socket.AF_UNIX)
    os.chdir(root / "task/local")
    try:
        server.bind("sock")
    finally:
        os.chdir("/")
    for name in ("pipe", "sock"):
        with pytest.raises(InvalidRequestError, match="not a regular file"):
            async with asyncio.timeout(5):
                await read(files, f"/task/local/{name}")
    server.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "..",
                ".",
                "",
                "task",
                "local",
                "secrets",
                "task-key.pem",
                "f",
                "a2",
                "%2e%2e",
                "~",
                "\0",
            ]
        ),
        max_size=8,
    )
)
def test_no_path_reads_a_secret_or_another_allocation(root: Path, parts: list[str]) -> None:
    files = AllocFiles(str(root))
    try:
        data = asyncio.run(read(files, "/" + "/".join(parts)))
    except NomadError:
        return
    assert data == b"data\n"


async def test_following_sees_growth_heartbeats_truncation_and_deletion(root: Path) -> None:
    files = AllocFiles(str(root))
    path = root / "task/local/f"
    seen: list[StreamFrame] = []

    async def follow() -> None:
        async for frame in files.stream("/task/local/f", offset=0, origin="start", follow=True):
            seen.append(frame)  # noqa: PERF401 - the list is read meanwhile

    async def until(count: int) -> None:
        async with asyncio.timeout(10):
            while len(seen) < count:
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        group.create_task(follow())
        await until(1)
        with path.open("a") as file:
            file.write("more")
        await until(2)
        assert (seen[1].data, seen[1].offset) == (b"more", 9)
        await until(3)
        assert seen[2] == StreamFrame()
        path.write_text("new")
        async with asyncio.timeout(10):
            while not any(f.file_event == FILE_TRUNCATED for f in seen) or seen[-1].data != b"new":
                await asyncio.sleep(0.02)
        path.unlink()
        async with asyncio.timeout(10):
            while seen[-1].file_event != FILE_DELETED:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (stat.S_IFDIR | 0o755, "drwxr-xr-x"),
        (stat.S_IFREG | 0o644, "-rw-r--r--"),
        (stat.S_IFSOCK | 0o666, "Srw-rw-rw-"),
        (stat.S_IFDIR | 0o1777, "dtrwxrwxrwx"),
        (stat.S_IFLNK | 0o777, "Lrwxrwxrwx"),
        (stat.S_IFREG | 0o4755, "urwxr-xr-x"),
        (stat.S_IFCHR | 0o600, "Dcrw-------"),
    ],
)
def test_modes_are_written_as_go_writes_them(mode: int, text: str) -> None:
    assert go_mode(mode) == text


def test_content_types_are_recognised() -> None:
    assert content_type_of(b"") == "text/plain; charset=utf-8"
    assert content_type_of(b"\x00\x01") == "application/octet-stream"
    assert content_type_of(b"\x1f\x8b\x08\x00") == "application/x-gzip"
    assert content_type_of(b"<html><body>") == "text/html; charset=utf-8"
