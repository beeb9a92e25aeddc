"""Reading rotated logs while they grow, rotate and disappear."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.logs import FILE_DELETED, FILE_TRUNCATED, RotatedLogs
from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.models.stats import StreamFrame


def write(folder: Path, *parts: bytes, first: int = 0) -> None:
    for number, part in enumerate(parts, first):
        (folder / f"t.stdout.{number}").write_bytes(part)


async def read(folder: Path, origin: str = "start", offset: int = 0) -> list[StreamFrame]:
    frames = RotatedLogs().frames(
        str(folder), "t", "stdout", offset=offset, origin=origin, follow=False
    )
    return [frame async for frame in frames]


@given(
    parts=st.lists(st.binary(max_size=5), min_size=1, max_size=5),
    offset=st.integers(min_value=0, max_value=30),
    origin=st.sampled_from(["start", "end"]),
    first=st.integers(min_value=0, max_value=12),
)
def test_an_offset_counts_over_all_files_from_either_end(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[bytes],
    offset: int,
    origin: str,
    first: int,
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    write(folder, *parts, first=first)
    frames = asyncio.run(read(folder, origin, offset))
    whole = b"".join(parts)
    expected = whole[offset:] if origin == "start" else whole[max(0, len(whole) - offset) :]
    assert b"".join(f.data or b"" for f in frames) == expected


@pytest.mark.real_time
async def test_a_frame_names_its_file_and_the_offset_after_its_data(tmp_path: Path) -> None:
    write(tmp_path, b"err\n", b"x" * 100_000)
    frames = await read(tmp_path)
    assert frames[0] == StreamFrame(file="alloc/logs/t.stdout.0", data=b"err\n", offset=4)
    assert [(f.file[-1], f.offset) for f in frames[1:]] == [("1", 65536), ("1", 100_000)]


@pytest.mark.real_time
async def test_a_follower_goes_from_file_to_file_and_hears_of_truncation_and_removal(
    tmp_path: Path,
) -> None:
    write(tmp_path, b"one\n")
    frames = RotatedLogs().frames(
        str(tmp_path), "t", "stdout", offset=0, origin="start", follow=True
    )

    async def take() -> StreamFrame:
        async with asyncio.timeout(5):
            while not (frame := await anext(frames)).file:
                pass
            return frame

    assert (await take()).data == b"one\n"
    with open(tmp_path / "t.stdout.0", "ab") as file:
        file.write(b"two\n")
        file.flush()
        frame = await take()
        assert (frame.data, frame.offset) == (b"two\n", 8)
        file.write(b"late\n")
    write(tmp_path, b"three\n", first=1)
    assert (await take()).data == b"late\n"
    assert (await take()).data == b"three\n"
    os.truncate(tmp_path / "t.stdout.1", 0)
    assert (await take()).file_event == FILE_TRUNCATED
    (tmp_path / "t.stdout.1").unlink()
    frame = await take()
    assert (frame.file, frame.file_event) == ("alloc/logs/t.stdout.1", FILE_DELETED)
    write(tmp_path, b"four\n", first=2)
    assert (await take()).data == b"four\n"
    await frames.aclose()  # type: ignore[attr-defined]


async def test_a_silent_follower_sends_an_empty_frame_each_second(tmp_path: Path) -> None:
    frames = RotatedLogs().frames(str(tmp_path), "t", "stderr", offset=0, origin="end", follow=True)
    started = asyncio.get_running_loop().time()
    for _ in range(3):
        assert await anext(frames) == StreamFrame()
    assert asyncio.get_running_loop().time() - started == pytest.approx(3.0)
    await frames.aclose()  # type: ignore[attr-defined]


@pytest.mark.real_time
async def test_a_link_or_pipe_that_a_task_left_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "t.stdout.0").symlink_to(secret)
    os.mkfifo(logs / "t.stdout.1")
    with pytest.raises(NotFoundError):
        await read(logs)


@pytest.mark.real_time
async def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match='log entry for task "t"'):
        await read(tmp_path)
    with pytest.raises(InvalidRequestError, match=r"must provide log type \(stdout/stderr\)"):
        await anext(
            RotatedLogs().frames(str(tmp_path), "t", "x", offset=0, origin="start", follow=False)
        )
    with pytest.raises(InvalidRequestError):
        await read(tmp_path, origin="middle")
    with pytest.raises(InvalidRequestError):
        await read(tmp_path, offset=-1)
