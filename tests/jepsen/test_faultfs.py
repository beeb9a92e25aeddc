"""The faulty disk: what is durable, against a model, with and without FUSE; errors, delays, lies, a full disk; its undoing."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jepsen_style import undo
from jepsen_style.disk.mount import KIT, Disks, Mount
from jepsen_style.disk.rules import Rule, Rules, Space
from jepsen_style.disk.unsynced import SECTOR, Unsynced
from jepsen_style.undo import UndoList

from nomadpy.entropy import SeededEntropy

MISSING = Disks.missing()
needs_fuse = pytest.mark.skipif(bool(MISSING), reason=MISSING)


# -- a model of a disk: each node has what it is and what of it is durable --------------------------------------


class File:
    def __init__(self) -> None:
        self.data = b""
        self.durable = b""


class Directory:
    def __init__(self) -> None:
        self.names: dict[str, File | Directory] = {}
        self.durable: dict[str, File | Directory] = {}
        self.with_: set[Directory] = set()


def made_durable(directory: Directory) -> None:
    group = {directory}
    while True:
        more = set().union(*(d.with_ for d in group)) - group
        if not more:
            break
        group |= more
    for one in group:
        one.durable = dict(one.names)
        one.with_ = set()


def together(*directories: Directory) -> None:
    for one in directories:
        one.with_ |= set(directories)


def tree_of(directory: Directory, *, durable: bool) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, node in (directory.durable if durable else directory.names).items():
        if isinstance(node, Directory):
            found[name] = tree_of(node, durable=durable)
        else:
            found[name] = node.durable if durable else node.data
    return found


def tree_on_disk(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            found[entry.name] = tree_on_disk(Path(entry.path))
        else:
            found[entry.name] = Path(entry.path).read_bytes()
    return found


OPERATIONS = (
    "create write write append truncate fsync fsync fsyncdir unlink rename rename mkdir rmdir link rewrite"
).split()


class World:
    """Random operations on a folder and on the model at once."""

    def __init__(self, folder: Path, seed: int, disk: Unsynced | None = None) -> None:
        self.folder = folder
        self.root = Directory()
        self.chance = random.Random(seed)
        self.disk = disk

    def everything(self) -> list[tuple[str, str, Directory, File | Directory]]:
        found = []
        waiting = [("", self.root)]
        while waiting:
            path, directory = waiting.pop()
            for name, node in directory.names.items():
                found.append((f"{path}/{name}", name, directory, node))
                if isinstance(node, Directory):
                    waiting.append((f"{path}/{name}", node))
        return found

    def directories(self) -> list[tuple[str, Directory]]:
        rows = self.everything()
        return [("", self.root), *((p, n) for p, _, _, n in rows if isinstance(n, Directory))]

    def step(self) -> None:
        chance = self.chance
        rows = self.everything()
        files = [row for row in rows if isinstance(row[3], File)]
        what = chance.choice(OPERATIONS)
        where, directory = chance.choice(self.directories())
        name = chance.choice("abcdef")
        target = f"{where}/{name}"
        if what == "create" and name not in directory.names:
            directory.names[name] = File()
            self.create(target)
        elif what == "mkdir" and name not in directory.names and len(rows) < 30:
            directory.names[name] = Directory()
            self.mkdir(target)
        elif what == "fsyncdir":
            made_durable(directory)
            self.fsyncdir(where)
        elif what == "rmdir":
            empty = [r for r in rows if isinstance(r[3], Directory) and not r[3].names]
            if empty:
                path, name, parent, node = chance.choice(empty)
                del parent.names[name]
                together(parent, node)
                self.rmdir(path)
        elif what == "rename" and rows:
            self.rename_one(rows, where, directory, name)
        elif files:
            self.change(what, chance.choice(files), directory, name, target)

    def rename_one(self, rows, where: str, directory: Directory, name: str) -> None:
        path, old_name, parent, node = self.chance.choice(rows)
        there = directory.names.get(name)
        target = f"{where}/{name}"
        if target == path or target.startswith(f"{path}/") or there is node:
            return
        involved = [parent, directory]
        if there is not None:
            if isinstance(there, Directory) != isinstance(node, Directory):
                return
            if isinstance(there, Directory):
                if there.names:
                    return
                involved.append(there)
        directory.names[name] = node
        del parent.names[old_name]
        together(*involved)
        self.rename(path, target)

    def change(self, what: str, row, directory: Directory, name: str, target: str) -> None:
        path, own_name, parent, file = row
        chance = self.chance
        if what in ("write", "append", "rewrite"):
            data = chance.randbytes(chance.choice([1, 10, 511, 512, 513, 1500]))
            offset = len(file.data)
            if what == "write":
                offset = chance.randrange(len(file.data) + 700)
            if what == "rewrite":
                file.data = data
                self.rewrite(path, data)
                return
            grown = file.data.ljust(offset, b"\0")
            file.data = grown[:offset] + data + grown[offset + len(data) :]
            self.write(path, offset, data)
        elif what == "truncate":
            size = chance.randrange(len(file.data) + 600)
            file.data = file.data[:size].ljust(size, b"\0")
            self.truncate(path, size)
        elif what == "fsync":
            file.durable = file.data
            self.fsync(path)
        elif what == "unlink":
            del parent.names[own_name]
            self.unlink(path)
        elif what == "link" and name not in directory.names:
            directory.names[name] = file
            self.link(target, path)

    # -- through a mount

    def at(self, path: str) -> str:
        return f"{self.folder}{path}"

    def create(self, path: str) -> None:
        os.close(os.open(self.at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def mkdir(self, path: str) -> None:
        os.mkdir(self.at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self.at(old), self.at(new))

    def link(self, path: str, existing: str) -> None:
        os.link(self.at(existing), self.at(path))

    def write(self, path: str, offset: int, data: bytes) -> None:
        append = offset == os.stat(self.at(path)).st_size and self.chance.random() < 0.5
        handle = os.open(self.at(path), os.O_WRONLY | (os.O_APPEND if append else 0))
        try:
            done = os.write(handle, data) if append else os.pwrite(handle, data, offset)
            assert done == len(data)
        finally:
            os.close(handle)

    def rewrite(self, path: str, data: bytes) -> None:
        handle = os.open(self.at(path), os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def fsync(self, path: str) -> None:
        handle = os.open(self.at(path), os.O_WRONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def fsyncdir(self, path: str) -> None:
        handle = os.open(self.at(path) or "/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class DirectWorld(World):
    """The same without FUSE: the calls that faultfs makes of Unsynced."""

    disk: Unsynced

    def create(self, path: str) -> None:
        os.close(self.disk.create(path, os.O_EXCL | os.O_RDWR, 0o600))

    def mkdir(self, path: str) -> None:
        self.disk.mkdir(path, 0o700)

    def rmdir(self, path: str) -> None:
        self.disk.rmdir(path)

    def unlink(self, path: str) -> None:
        self.disk.unlink(path)

    def rename(self, old: str, new: str) -> None:
        self.disk.rename(old, new)

    def link(self, path: str, existing: str) -> None:
        self.disk.link(path, existing)

    def opened(self, path: str, work) -> None:
        handle = os.open(self.at(path), os.O_RDWR)
        try:
            work(handle)
        finally:
            os.close(handle)

    def write(self, path: str, offset: int, data: bytes) -> None:
        def work(handle: int) -> None:
            self.disk.before_write(handle, offset, len(data))
            os.pwrite(handle, data, offset)

        self.opened(path, work)

    def rewrite(self, path: str, data: bytes) -> None:
        self.truncate(path, 0)
        self.write(path, 0, data)

    def truncate(self, path: str, size: int) -> None:
        def work(handle: int) -> None:
            self.disk.before_truncate(handle, size)
            os.ftruncate(handle, size)

        self.opened(path, work)

    def fsync(self, path: str) -> None:
        self.opened(path, self.disk.file_synced)

    def fsyncdir(self, path: str) -> None:
        self.disk.directory_synced(path)


def fresh(folder: Path) -> Unsynced:
    for name in ("tree", "spare"):
        (folder / name).mkdir()
    return Unsynced(folder / "tree", folder / "spare")


@pytest.mark.parametrize("seed", range(40))
def test_a_cut_leaves_exactly_what_was_made_durable(tmp_path: Path, seed: int) -> None:
    disk = fresh(tmp_path)
    world = DirectWorld(disk.tree, seed, disk)
    for number in range(250):
        world.step()
        if number % 50 == 0:
            assert tree_on_disk(disk.tree) == tree_of(world.root, durable=False)
    assert tree_on_disk(disk.tree) == tree_of(world.root, durable=False)
    disk.cut(SeededEntropy(seed))
    assert tree_on_disk(disk.tree) == tree_of(world.root, durable=True)
    assert (disk.files, disk.names) == (0, 0)
    assert list((tmp_path / "spare").iterdir()) == []


@pytest.mark.parametrize("seed", range(30))
def test_a_torn_cut_keeps_what_is_durable_and_mixes_the_rest_by_sectors(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    disk = fresh(tmp_path)
    handle = disk.create("/file", os.O_RDWR, 0o600)
    disk.directory_synced("")
    durable = chance.randbytes(chance.randrange(6000))
    disk.before_write(handle, 0, len(durable))
    os.pwrite(handle, durable, 0)
    disk.file_synced(handle)
    now = bytearray(durable)
    for _ in range(chance.randrange(1, 6)):
        offset = chance.randrange(len(now) + 1)
        data = chance.randbytes(chance.randrange(1, 1500))
        disk.before_write(handle, offset, len(data))
        os.pwrite(handle, data, offset)
        now[offset : offset + len(data)] = data
    os.close(handle)
    disk.cut(SeededEntropy(seed), torn=0.5)
    found = (disk.tree / "file").read_bytes()
    assert len(durable) <= len(found) <= len(now)
    old = durable.ljust(len(now), b"\0")
    for start in range(0, len(found), SECTOR):
        piece = found[start : start + SECTOR]
        assert piece in (old[start : start + len(piece)], bytes(now[start : start + len(piece)]))


@pytest.mark.parametrize("seed", range(20))
def test_of_names_a_torn_cut_keeps_the_first_changes(tmp_path: Path, seed: int) -> None:
    disk = fresh(tmp_path)
    for number in range(20):
        os.close(disk.create(f"/{number:02}", os.O_RDWR, 0o600))
    disk.cut(SeededEntropy(seed), torn=0.5)
    kept = sorted(os.listdir(disk.tree))
    assert kept == [f"{n:02}" for n in range(len(kept))]


def test_a_file_behind_a_name_survives_until_its_replacement_is_durable(tmp_path: Path) -> None:
    disk = fresh(tmp_path)
    for name, data in (("/config", b"old"), ("/config.new", b"new")):
        handle = disk.create(name, os.O_RDWR, 0o600)
        disk.before_write(handle, 0, len(data))
        os.write(handle, data)
        disk.file_synced(handle)
        os.close(handle)
    disk.directory_synced("")
    disk.rename("/config.new", "/config")
    disk.cut(SeededEntropy(1))
    assert tree_on_disk(disk.tree) == {"config": b"old", "config.new": b"new"}
    disk.rename("/config.new", "/config")
    disk.directory_synced("")
    disk.cut(SeededEntropy(1))
    assert tree_on_disk(disk.tree) == {"config": b"new"}


def test_rules_choose_by_operation_path_and_chance() -> None:
    rules = Rules(SeededEntropy(1))
    rules.add(Rule(operations=["write"], pattern="log$", error="EIO"))
    rules.add(Rule(operations=["fsync"], probability=0.5, error="ENOSPC"))
    rules.add(Rule(operations=["*"], pattern="liar", lie=True))
    with pytest.raises(OSError) as found:
        rules.meet("write", "/a.log")
    assert found.value.errno == errno.EIO
    assert rules.meet("write", "/a.txt") is False
    assert rules.meet("fsyncdir", "/liar") is True
    failed = 0
    for _ in range(400):
        try:
            rules.meet("fsync", "/a")
        except OSError as error:
            failed += error.errno == errno.ENOSPC
    assert 120 < failed < 280
    rules.clear()
    assert rules.meet("write", "/a.log") is False


@pytest.mark.parametrize("rule", [{"operations": ["wash"]}, {"operations": [], "error": "EPERM"}])
def test_a_rule_that_makes_no_sense_is_refused(rule) -> None:
    with pytest.raises(ValueError, match="no such operation or error"):
        Rules(SeededEntropy(1)).add(Rule(**rule))


def test_an_operation_that_waits_goes_on_when_the_rules_are_cleared() -> None:
    rules = Rules(SeededEntropy(1))
    rules.add(Rule(operations=["fsync"], delay_s=600))
    over = threading.Event()

    def work() -> None:
        rules.meet("fsync", "/a")
        over.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not rules.counts.get("faults"):
        time.sleep(0.001)
    assert not over.is_set()
    rules.clear()
    assert over.wait(30)
    thread.join()


def test_a_full_disk_takes_what_fits_and_then_nothing() -> None:
    space = Space()
    assert space.take(1 << 40) == 1 << 40
    space.free = 100
    assert space.take(60) == 60
    assert space.take(60) == 40
    with pytest.raises(OSError) as found:
        space.take(1)
    assert found.value.errno == errno.ENOSPC
    assert space.take(0) == 0
    space.give(10)
    assert space.take(20) == 10


# -- through FUSE -------------------------------------------------------------------------------------------------


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    notes = UndoList(tmp_path / "undo")
    mount = Mount(tmp_path / "disk", notes)
    try:
        mount.mount()
        yield mount
    finally:
        mount.unmount()
        notes.undo_all()


@needs_fuse
@pytest.mark.parametrize("seed", range(6))
def test_a_mounted_disk_behaves_like_the_model_and_a_cut_leaves_what_is_durable(
    mount: Mount, seed: int
) -> None:
    world = World(mount.mounted_at, seed)
    for round_ in range(3):
        for _ in range(200):
            world.step()
        assert tree_on_disk(mount.mounted_at) == tree_of(world.root, durable=False)
        mount.cut(0.0)
        assert tree_on_disk(mount.mounted_at) == tree_of(world.root, durable=True), round_
        # From here on all of it is durable.
        world = World(mount.mounted_at, seed + 1000 * (round_ + 1))
        _adopt(world.root, mount.mounted_at)


def _adopt(directory: Directory, folder: Path) -> None:
    seen: dict[int, File] = {}
    waiting = [(directory, folder)]
    while waiting:
        node, path = waiting.pop()
        for entry in os.scandir(path):
            if entry.is_dir():
                child = Directory()
                node.names[entry.name] = child
                waiting.append((child, Path(entry.path)))
            else:
                file = seen.setdefault(_backing(Path(entry.path)), File())
                file.data = file.durable = Path(entry.path).read_bytes()
                node.names[entry.name] = file
        node.durable = dict(node.names)


def _backing(path: Path) -> int:
    """The inode behind a mounted file, which two names may share."""
    mounted = str(path)
    return os.stat(mounted.replace("/mount/", "/backing/tree/")).st_ino


@needs_fuse
def test_errors_by_operation_and_path_reach_the_process_and_go_away(mount: Mount) -> None:
    log, other = mount.mounted_at / "a.log", mount.mounted_at / "b"
    log.write_bytes(b"one")
    mount.ask("fault", operations=["write", "fsync"], pattern=r"\.log$", error="EIO")
    other.write_bytes(b"two")
    with pytest.raises(OSError) as found, log.open("ab", buffering=0) as file:
        file.write(b"more")
    assert found.value.errno == errno.EIO
    with pytest.raises(OSError) as found, log.open("ab", buffering=0) as file:
        os.fsync(file)
    assert found.value.errno == errno.EIO
    mount.ask("clear")
    mount.ask("fault", operations=["create", "rename"], error="EROFS")
    with pytest.raises(OSError) as found:
        (mount.mounted_at / "c").write_bytes(b"")
    assert found.value.errno == errno.EROFS
    mount.ask("clear")
    log.write_bytes(b"again")
    assert log.read_bytes() == b"again"
    with pytest.raises(RuntimeError, match="no such operation"):
        mount.ask("fault", operations=["wash"])


@needs_fuse
def test_a_full_disk_is_full_until_there_is_space(mount: Mount) -> None:
    file = mount.mounted_at / "a"
    file.write_bytes(b"x" * 1000)
    mount.ask("space", free=500)
    with file.open("ab", buffering=0) as opened:
        assert opened.write(b"y" * 800) == 500
        with pytest.raises(OSError) as found:
            opened.write(b"y")
        assert found.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as found:
        (mount.mounted_at / "b").write_bytes(b"")
    assert found.value.errno == errno.ENOSPC
    assert os.statvfs(mount.mounted_at).f_bavail == 0
    file.unlink()
    (mount.mounted_at / "b").write_bytes(b"z" * 1500)
    mount.ask("clear")
    (mount.mounted_at / "c").write_bytes(b"z" * 100_000)


@needs_fuse
def test_a_lying_disk_says_yes_and_forgets(mount: Mount) -> None:
    honest, lied = mount.mounted_at / "honest", mount.mounted_at / "lied"

    def write(file: Path, data: bytes) -> None:
        with file.open("ab", buffering=0) as opened:
            opened.write(data)
            os.fsync(opened)
        handle = os.open(file.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    write(honest, b"true")
    mount.ask("fault", operations=["fsync", "fsyncdir"], lie=True)
    write(honest, b" and false")
    write(lied, b"false")
    assert honest.read_bytes() == b"true and false"
    mount.cut(0.0)
    assert tree_on_disk(mount.mounted_at) == {"honest": b"true"}


@needs_fuse
def test_a_disk_that_lies_no_more_has_written_what_it_lied_about(mount: Mount) -> None:
    mount.ask("fault", operations=["fsync", "fsyncdir"], lie=True)
    (mount.mounted_at / "gone").write_bytes(b"x")
    (mount.mounted_at / "gone").unlink()
    (mount.mounted_at / "a").write_bytes(b"x")
    mount.ask("clear")
    (mount.mounted_at / "b").write_bytes(b"x")
    mount.cut(0.0)
    assert tree_on_disk(mount.mounted_at) == {"a": b"x"}


@needs_fuse
def test_a_slow_disk_is_slow_and_others_do_not_wait_for_it(mount: Mount) -> None:
    slow, quick = mount.mounted_at / "slow", mount.mounted_at / "quick"
    for file in (slow, quick):
        file.write_bytes(b"x")
    mount.ask("fault", operations=["fsync"], pattern="slow", delay_s=0.4)

    def sync(file: Path) -> float:
        with file.open("ab", buffering=0) as opened:
            began = time.monotonic()
            os.fsync(opened)
            return time.monotonic() - began

    assert sync(slow) >= 0.4
    thread = threading.Thread(target=sync, args=(slow,))
    thread.start()
    assert sync(quick) < 0.4
    thread.join()


@needs_fuse
def test_a_process_that_outlives_the_power_can_do_nothing(mount: Mount) -> None:
    file = mount.mounted_at / "a"
    file.write_bytes(b"x")
    mount.ask("cut")
    for work in (lambda: file.write_bytes(b"y"), lambda: file.read_bytes(), file.stat):
        with pytest.raises(OSError) as found:
            work()
        assert found.value.errno == errno.EIO


@needs_fuse
def test_sqlite_keeps_every_commit_over_power_cuts(mount: Mount) -> None:
    # A program that is known to be careful, as a check of the check.
    commits = 0
    for torn in (0.0, 0.3, 0.7, 0.0, 0.5):
        program = (
            "import sqlite3, sys, os\n"
            "d = sqlite3.connect('t.db', isolation_level=None)\n"
            "d.execute('PRAGMA journal_mode=DELETE'); d.execute('PRAGMA synchronous=EXTRA')\n"
            "d.execute('CREATE TABLE IF NOT EXISTS t (n INTEGER)')\n"
            "for n in range(int(sys.argv[1]), int(sys.argv[1]) + 30):\n"
            "    d.execute('INSERT INTO t VALUES (?)', (n,))\n"
            "d.execute('BEGIN'); d.execute('INSERT INTO t VALUES (-1)'); os._exit(9)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(commits)],
            cwd=mount.mounted_at, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 9, done.stderr
        commits += 30
        mount.cut(torn)
        look = "import sqlite3; print([r[0] for r in sqlite3.connect('t.db').execute('SELECT n FROM t ORDER BY n')])"
        seen = subprocess.run(
            [sys.executable, "-c", look], cwd=mount.mounted_at, capture_output=True, text=True
        )
        assert seen.stdout.strip() == str(list(range(commits))), seen.stderr


@needs_fuse
def test_what_a_killed_kit_left_mounted_is_healed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(KIT)!r})\n"
        "from pathlib import Path\n"
        "from jepsen_style.disk.mount import Mount\n"
        "from jepsen_style.undo import UndoList\n"
        f"notes = UndoList(Path({str(tmp_path / 'undo')!r}))\n"
        f"notes.note('folder', {str(tmp_path / 'disk')!r})\n"
        f"mount = Mount(Path({str(tmp_path / 'disk')!r}), notes)\n"
        "mount.mount()\n"
        "(mount.mounted_at / 'a').write_bytes(b'x')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    at = tmp_path / "disk" / "mount"
    assert (at / "a").read_bytes() == b"x"
    healed = undo.heal(tmp_path / "undo")
    assert [h.kind for h in healed] == ["folder", "mount"]
    assert not at.exists()
    assert str(at) not in Path("/proc/self/mounts").read_text(encoding="utf-8")
