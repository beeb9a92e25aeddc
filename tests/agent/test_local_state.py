"""The agent's database: what was put is there after any death of the process, and damage is survived."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from agent_world import allocation

from agent.drivers.base import TaskHandle
from agent.local_state import (
    AllocRecord,
    LocalState,
    MemoryState,
    NodeIdentity,
    SQLiteState,
    VolumeRecord,
)
from agent.runner.task_machine import TaskMachine, TaskRecord
from nomadpy.models.allocation import AllocDeploymentStatus

pytestmark = pytest.mark.real_time

WRITER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from agent_world import allocation
from agent.local_state import SQLiteState
from agent.runner.task_machine import TaskMachine

async def main():
    state = SQLiteState(Path(sys.argv[1]))
    number = 0
    while True:
        number += 1
        alloc = allocation(number=number)
        await state.put_alloc(alloc, since_ns=number)
        await asyncio.gather(*(
            state.put_task(alloc.id, name, TaskMachine.fresh(number)) for name in ("task", "other")
        ))
        if number % 3 == 0:
            await state.delete_alloc(alloc.id)
        print(number, flush=True)

asyncio.run(main())
"""


async def exercise(state: LocalState) -> None:
    assert await state.node() is None
    identity = NodeIdentity(id="n", secret="s")
    await state.put_node(identity)
    assert await state.node() == identity
    await state.put_meta({"a": "b", "c": None})
    assert await state.meta() == {"a": "b", "c": None}
    volumes = [VolumeRecord(id=i, name=f"v{i}", parameters={"mode": "0755"}) for i in "ab"]
    for volume in reversed(volumes):
        await state.put_volume(volume)
    assert await state.volumes() == volumes
    await state.delete_volume("a")
    await state.delete_volume("none")
    assert await state.volumes() == volumes[1:]
    alloc = allocation(number=2)
    record = TaskRecord(
        state=TaskMachine.fresh(5).state,
        handle=TaskHandle(driver="d", task_id="t", state={"pid": 7}),
    )
    await state.put_alloc(alloc, since_ns=11)
    await state.put_task(alloc.id, "task", record)
    health = AllocDeploymentStatus(healthy=True)
    await state.put_health(alloc.id, health)
    await state.put_alloc(alloc, since_ns=99)
    await state.put_task("gone", "task", record)
    await state.put_alloc(allocation(number=1), since_ns=12)
    found = await state.allocs()
    assert [r.alloc.id for r in found] == sorted(r.alloc.id for r in found)
    assert found[1] == AllocRecord(alloc=alloc, tasks={"task": record}, health=health, since_ns=11)
    await state.delete_alloc(alloc.id)
    assert [r.alloc.id for r in await state.allocs()] == [allocation(number=1).id]


async def test_both_stores_keep_the_same_promises(tmp_path: Path) -> None:
    await exercise(MemoryState())
    state = SQLiteState(tmp_path / "client" / "state.db")
    await exercise(state)
    await state.close()
    again = SQLiteState(tmp_path / "client" / "state.db")
    assert len(await again.allocs()) == 1
    assert (await again.node()) is not None
    await again.close()
    assert (tmp_path / "client" / "state.db").stat().st_mode & 0o077 == 0


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    for round_ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), os.path.dirname(__file__)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        acknowledged = 0
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged >= 15 + 7 * round_:
                break
        writer.send_signal(signal.SIGKILL)
        # What the pipe still holds was acknowledged too.
        acknowledged = max(
            [acknowledged, *(int(line) for line in writer.stdout if line.endswith("\n"))]
        )
        writer.wait()
        state = SQLiteState(path)
        found = {record.since_ns: record for record in await state.allocs()}
        await state.close()
        for number in range(1, acknowledged + 1):
            if number % 3 == 0:
                assert number not in found
            else:
                assert set(found[number].tasks) == {"task", "other"}
        path.unlink()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 100, None])
async def test_a_damaged_file_is_moved_aside_and_the_agent_starts_empty(
    tmp_path: Path, damage: bytes | None
) -> None:
    path = tmp_path / "state.db"
    state = SQLiteState(path)
    await state.put_node(NodeIdentity(id="n", secret="s"))
    for number in range(1, 30):
        await state.put_alloc(allocation(number=number), since_ns=number)
    await state.close()
    if damage is None:
        raw = bytearray(path.read_bytes())
        raw[100:3000] = os.urandom(2900)
        damage = bytes(raw)
    path.write_bytes(damage)
    again = SQLiteState(path)
    assert await again.node() is None
    await again.put_node(NodeIdentity(id="m", secret="s"))
    await again.close()
    if damage:
        assert path.with_name("state.db.damaged").read_bytes() == damage


async def test_a_row_from_another_world_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    state = SQLiteState(path)
    await state.put_alloc(allocation(number=1), since_ns=1)
    await state.put_alloc(allocation(number=2), since_ns=2)
    await state.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE allocs SET alloc = x'c1' WHERE since_ns = 1")
    database.close()
    again = SQLiteState(path)
    assert [record.since_ns for record in await again.allocs()] == [2]
    await again.close()


async def filled(path: Path) -> None:
    state = SQLiteState(path)
    await exercise(state)
    await state.put_alloc(allocation(number=3), since_ns=13)
    await state.put_task(
        allocation(number=3).id, "task", TaskRecord(state=TaskMachine.fresh(5).state)
    )
    await state.put_health(allocation(number=3).id, AllocDeploymentStatus(healthy=True))
    await state.close()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE allocs SET alloc = flipped(alloc)", "the checksum of alloc"),
        ("UPDATE allocs SET since_ns = since_ns + 1", "the checksum of alloc"),
        ("UPDATE allocs SET health = flipped(health)", "the checksum of health"),
        ("UPDATE tasks SET record = flipped(record)", "the checksum of task"),
        ("UPDATE tasks SET task = 'tusk' WHERE task = 'task'", "the checksum of task"),
        (
            "UPDATE facts SET value = flipped(value) WHERE name = 'meta'",
            "the checksum of fact meta",
        ),
    ],
)
async def test_a_changed_bit_in_a_value_is_found_and_said(
    tmp_path: Path, statement: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.db"
    await filled(path)
    whole = {r.alloc.id: r for r in await reopened(path)}
    for bit in range(0, 160, 7):

        def flipped(value: bytes | None, bit: int = bit) -> bytes | None:
            if value is None:
                return None
            data = bytearray(value)
            data[bit // 8 % len(data)] ^= 1 << bit % 8
            return bytes(data)

        with sqlite3.connect(path, isolation_level=None) as database:
            before = list(database.iterdump())
            database.create_function("flipped", 1, flipped)
            database.execute(statement)
        database.close()
        caplog.clear()
        found = {r.alloc.id: r for r in await reopened(path)}
        assert said in " ".join(str(r.__dict__) for r in caplog.records)
        for alloc_id, record in found.items():
            # What is left is what was written.
            assert record.alloc == whole[alloc_id].alloc
            assert record.since_ns == whole[alloc_id].since_ns
            assert all(whole[alloc_id].tasks[n] == t for n, t in record.tasks.items())
        path.unlink()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        with sqlite3.connect(path, isolation_level=None) as database:
            database.executescript("\n".join(before))
            database.execute("PRAGMA user_version = 2")
        database.close()


async def reopened(path: Path) -> list[AllocRecord]:
    state = SQLiteState(path)
    try:
        await state.meta()
        return await state.allocs()
    finally:
        await state.close()


async def test_a_damaged_identity_is_worth_as_much_as_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await filled(path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE facts SET value = x'00' || value WHERE name = 'node'")
    database.close()
    state = SQLiteState(path)
    assert await state.node() is None
    assert await state.allocs() == []
    await state.close()
    assert path.with_name("state.db.damaged").exists()


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_byte_is_damaged_nothing_false_is_read(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "state.db"
    await filled(path)
    whole = {r.alloc.id: r for r in await reopened(path)}
    chance = random.Random(seed)
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    if seed % 3 == 0:
        data = data[:place]
    elif seed % 3 == 1:
        data[place] ^= 1 << chance.randrange(8)
    else:
        data[place : place + 512] = bytes(len(data[place : place + 512]))
    path.write_bytes(data)
    state = SQLiteState(path)
    identity = await state.node()
    assert identity in (None, NodeIdentity(id="n", secret="s"))
    for record in await state.allocs():
        assert record.alloc == whole[record.alloc.id].alloc
        assert all(whole[record.alloc.id].tasks[n] == t for n, t in record.tasks.items())
    await state.put_node(NodeIdentity(id="n2", secret="s"))
    await state.put_alloc(allocation(number=9), since_ns=1)
    await state.close()


async def test_a_file_of_the_version_before_checksums_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await filled(path)
    whole = await reopened(path)
    with sqlite3.connect(path) as database:
        for table, column in (("facts", "value"), ("allocs", "alloc"), ("allocs", "health"), ("tasks", "record")):  # fmt: skip
            database.execute(f"UPDATE {table} SET {column} = CAST(substr({column}, 5) AS BLOB)")
        database.execute("PRAGMA user_version = 1")
    database.close()
    assert await reopened(path) == whole
    state = SQLiteState(path)
    assert await state.node() == NodeIdentity(id="n", secret="s")
    await state.close()


def test_a_secret_does_not_show_in_the_repr_of_an_identity() -> None:
    assert "topsecret" not in repr(NodeIdentity(id="n", secret="topsecret"))
