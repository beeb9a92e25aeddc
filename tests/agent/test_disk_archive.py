"""Ephemeral disks on their way: what is packed is what is unpacked, and nothing that a strange node sends leaves its place."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import disk_archive
from agent.disk_archive import ArchiveError, Entry, Unpacker, pack

MOST = 10 * 1024 * 1024


def disk(root: Path) -> Path:
    """An allocation's directory with a disk worth moving."""
    for part in ("alloc/data/deep/er", "alloc/logs", "web/local", "web/secrets", "api/local"):
        (root / part).mkdir(parents=True)
    (root / "alloc/data/deep/er/db").write_bytes(os.urandom(3 * disk_archive.CHUNK_BYTES + 17))
    (root / "alloc/data/empty").write_bytes(b"")
    (root / "alloc/data/tool").write_text("#!/bin/sh\n")
    (root / "alloc/data/tool").chmod(0o4755)
    (root / "alloc/data/deep").chmod(0o500)
    (root / "web/local/link").symlink_to("/etc/passwd")
    (root / "web/local/folder-link").symlink_to("..")
    (root / "web/local" / os.fsdecode(b"odd \xff name")).write_text("odd")
    (root / "web/secrets/key").write_text("secret")
    (root / "alloc/logs/web.stdout.0").write_text("log")
    os.mkfifo(root / "api/local/pipe")
    os.chown(root / "alloc/data/empty", 4242, 4343)
    os.chown(root / "api/local", 4242, 4343)
    os.utime(root / "alloc/data/empty", ns=(1_000_000_000, 1_500_000_000))
    return root


def unpacked(chunks: Iterable[bytes], root: Path, tasks: Any = ("web", "api")) -> Path:
    unpacker = Unpacker(root, tasks, most_bytes=MOST)
    try:
        for chunk in chunks:
            unpacker.take([chunk])
        unpacker.commit()
    finally:
        unpacker.discard()
    return root


def sealed(*chunks: bytes) -> list[bytes]:
    total = hashlib.sha256(b"".join(chunks)).digest()
    return [*chunks, b"Z" + total]


def entry(path: str, kind: str = "f", **more: Any) -> bytes:
    fields = {"mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0, **more}
    return b"E" + msgspec.msgpack.encode(Entry(kind=kind, path=path.encode(), **fields))


TOP = entry("alloc/data", "d")


def test_what_was_packed_is_unpacked_with_modes_owners_and_times(tmp_path: Path) -> None:
    old = disk(tmp_path / "old")
    new = unpacked(pack(old, ["web", "api"]), tmp_path / "new")
    assert sorted(os.listdir(new)) == ["alloc", "api", "web"]
    assert sorted(os.listdir(new / "alloc")) == ["data"]
    assert sorted(os.listdir(new / "web")) == ["local"]
    data = new / "alloc/data"
    original = old / "alloc/data/deep/er/db"
    assert (data / "deep/er/db").read_bytes() == original.read_bytes()
    assert stat.S_IMODE((data / "deep").stat().st_mode) == 0o500
    status = (data / "empty").stat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (4242, 4343, 1_500_000_000)
    assert (new / "api/local").stat().st_uid == 4242
    assert os.listdir(new / "api/local") == []
    assert os.readlink(new / "web/local/link") == "/etc/passwd"
    assert os.readlink(new / "web/local/folder-link") == ".."
    assert (new / "web/local" / os.fsdecode(b"odd \xff name")).read_text() == "odd"


def test_a_file_comes_without_the_right_to_become_its_owner(tmp_path: Path) -> None:
    new = unpacked(pack(disk(tmp_path / "old"), ["web", "api"]), tmp_path / "new")
    assert stat.S_IMODE((new / "alloc/data/tool").stat().st_mode) == 0o755


def test_what_was_there_before_is_replaced_only_by_a_whole_disk(tmp_path: Path) -> None:
    chunks = list(pack(disk(tmp_path / "old"), ["web", "api"]))
    new = tmp_path / "new"
    (new / "alloc/data").mkdir(parents=True)
    (new / "alloc/data/mine").write_text("mine")
    with pytest.raises(ArchiveError, match="too early"):
        unpacked(chunks[:-1], new)
    assert (new / "alloc/data/mine").read_text() == "mine"
    assert os.listdir(new) == ["alloc"]
    unpacked(chunks, new)
    assert not (new / "alloc/data/mine").exists()


def test_any_changed_bit_is_found(tmp_path: Path) -> None:
    root = tmp_path / "old"
    (root / "alloc/data").mkdir(parents=True)
    (root / "alloc/data/db").write_text("precious rows")
    chunks = list(pack(root, []))
    for number, chunk in enumerate(chunks):
        for place in range(len(chunk)):
            broken = bytearray(chunk)
            broken[place] ^= 1
            with pytest.raises(ArchiveError):
                unpacked(
                    [*chunks[:number], bytes(broken), *chunks[number + 1 :]], tmp_path / "new", []
                )
    assert not (tmp_path / "new/alloc").exists()


@pytest.mark.parametrize(
    "path",
    [
        "alloc/data/../../../etc/x",
        "../x",
        "/etc/x",
        "alloc/data//x",
        "alloc/data/./x",
        "alloc/logs/x",
        "alloc/data",
        "other/local/x",
        "web/secrets/x",
        "web",
        ".migrating/x",
        "alloc/data/x\0y",
        "",
        "alloc/data/" + "x/" * 3000 + "x",
    ],
)
def test_paths_that_leave_the_disk_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ArchiveError):
        unpacked(sealed(TOP, entry(path)), tmp_path / "new")


def test_no_file_is_put_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = entry("alloc/data/link", "l", target=str(outside).encode())
    for next_ in (entry("alloc/data/link/x"), entry("alloc/data/link/d", "d")):
        with pytest.raises(ArchiveError):
            unpacked(sealed(TOP, link, next_), tmp_path / "new")
    # Nor is the link itself opened, or the owner of what it leads to changed.
    with pytest.raises(ArchiveError):
        unpacked(sealed(TOP, link, entry("alloc/data/link")), tmp_path / "new")
    assert os.listdir(outside) == []


def test_a_top_that_is_a_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError):
        unpacked(sealed(entry("alloc/data", "l", target=b"/etc")), tmp_path / "new")


@pytest.mark.parametrize(
    "chunks",
    [
        [TOP, entry("alloc/data/x", size=MOST + 1)],
        [TOP, entry("alloc/data/x", size=-1)],
        [TOP, entry("alloc/data/x", size=3), b"Dabcd"],
        [TOP, entry("alloc/data/x", size=3), b"Dab", entry("alloc/data/y")],
        [TOP, b"Dabc"],
        [TOP, entry("alloc/data/x", "c")],
        [TOP, entry("alloc/data/x"), entry("alloc/data/x")],
        [TOP, b"E\xff\xff"],
        [TOP, b"?"],
        [TOP, b""],
        [TOP, b"D" * (disk_archive.CHUNK_BYTES + 1)],
        [entry("alloc/data/x")],
        [TOP, entry("alloc/data/x", uid=2**40)],
        [b"Z" + b"0" * 32],
    ],
)
def test_what_is_no_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, chunks: list[bytes]
) -> None:
    with pytest.raises(ArchiveError):
        unpacked(sealed(*chunks), tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_archive, "MOST_ENTRIES", 3)
    files = [entry(f"alloc/data/{n}") for n in range(3)]
    with pytest.raises(ArchiveError, match="more than 3"):
        unpacked(sealed(TOP, *files), tmp_path / "new")
    unpacked(sealed(TOP, *files[:2]), tmp_path / "new")


def test_nothing_may_follow_the_end(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError):
        unpacked([*sealed(TOP), TOP], tmp_path / "new")


def test_a_disk_behind_a_link_is_not_packed(tmp_path: Path) -> None:
    root = tmp_path / "old"
    (root / "web").mkdir(parents=True)
    (root / "web/local").symlink_to("/etc")
    (root / "alloc").symlink_to("/usr")
    assert len(list(pack(root, ["web"]))) == 1


@given(st.lists(st.binary(max_size=60).map(lambda b: b"E" + b) | st.binary(max_size=60)))
def test_no_bytes_do_more_than_be_refused(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    root = tmp_path_factory.mktemp("new")
    with pytest.raises(ArchiveError):
        unpacked(chunks, root)
    assert os.listdir(root) == []
