"""The agent's database: what was put is there after any death of the process, and damage is survived."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from agent_world import allocation

from agent.drivers.base import TaskHandle
from agent.local_state import AllocRecord, LocalState, MemoryState, NodeIdentity, SQLiteState
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


def test_a_secret_does_not_show_in_the_repr_of_an_identity() -> None:
    assert "topsecret" not in repr(NodeIdentity(id="n", secret="topsecret"))
