"""The rotated log files of a task."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drivers.supervisor.rotation import PENDING_LIMIT, RotatingLog, indexes


def contents(folder: Path) -> bytes:
    prefix = str(folder / "t.stdout")
    return b"".join(Path(f"{prefix}.{n}").read_bytes() for n in indexes(prefix))


@given(
    chunks=st.lists(st.binary(max_size=40), max_size=60),
    max_bytes=st.integers(min_value=1, max_value=50),
)
def test_every_byte_is_kept_in_order_and_no_file_is_too_long(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], max_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    for part in range(0, len(chunks), 7):
        log = RotatingLog(str(folder / "t.stdout"), max_files=10_000, max_bytes=max_bytes)
        for chunk in chunks[part : part + 7]:
            log.write(chunk)
        log.close()
    assert contents(folder) == b"".join(chunks)
    assert all(file.stat().st_size <= max_bytes for file in folder.iterdir())


@given(lines=st.lists(st.text("ab", max_size=9), min_size=1, max_size=40))
def test_lines_that_fit_a_file_are_never_cut(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    log = RotatingLog(str(folder / "t.stdout"), max_files=1000, max_bytes=10)
    for line in lines:
        log.write(f"{line}\n".encode())
    log.close()
    assert all(f.read_bytes().endswith(b"\n") for f in folder.iterdir())


def test_only_the_newest_files_stay(tmp_path: Path) -> None:
    prefix = str(tmp_path / "t.stdout")
    log = RotatingLog(prefix, max_files=3, max_bytes=4)
    for number in range(10):
        log.write(f"{number:03}\n".encode())
    log.close()
    assert indexes(prefix) == [7, 8, 9]
    assert contents(tmp_path) == b"007\n008\n009\n"


def test_bytes_wait_for_the_disk_and_a_long_outage_leaves_one_note(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.write_text("a file where the folder should be")
    log = RotatingLog(str(folder / "t.stdout"), max_files=3, max_bytes=1 << 20)
    log.write(b"first\n")
    assert log.has_pending
    log.write(b"x" * PENDING_LIMIT)
    log.write(b"lost too\n")
    assert log.lost_bytes == PENDING_LIMIT + 9
    folder.unlink()
    log.write(b"after\n")
    log.close()
    text = contents(folder)
    assert text.startswith(b"first\n[log: ")
    assert b"bytes lost: " in text
    assert text.endswith(b"after\n")
    assert not log.has_pending


def test_a_link_for_the_folder_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "logs").symlink_to(elsewhere)
    log = RotatingLog(str(tmp_path / "logs/t.stdout"), max_files=3, max_bytes=100)
    log.write(b"secret\n")
    assert log.has_pending
    assert os.listdir(elsewhere) == []
    log.close()
