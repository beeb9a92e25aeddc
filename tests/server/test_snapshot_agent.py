"""Snapshots on a schedule: by the leader alone, whole or not at all, the oldest removed, failures told, and good for a restore."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from server_world import World, job, running

from nomadpy.errors import CorruptionError
from nomadpy.models.calls import Write
from nomadpy.server.leader.snapshot_agent import SnapshotAgent
from nomadpy.server.settings import SnapshotSettings
from nomadpy.server.snapshot_files import UNVERIFIED, SnapshotFolder
from nomadpy.state import archive, persist


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.snap"))


def scheduled(folder: Path, *, interval_s: float = 60.0, retain: int = 3) -> SnapshotSettings:
    return SnapshotSettings(path=str(folder), interval_s=interval_s, retain=retain)


def agent_of(world: World) -> SnapshotAgent:
    agent = world.leader.server.snapshots
    assert agent is not None
    return agent


async def test_the_leader_saves_at_once_and_then_on_schedule_and_keeps_the_newest(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "snapshots"
    async with running(3, snapshots=scheduled(folder)) as world:
        await world.register(job("web"))
        await world.until(lambda: len(files(folder)) == 1, "the first snapshot")
        assert files(folder)[0].stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
        await asyncio.sleep(50)
        assert len(files(folder)) == 1
        await world.until(lambda: len(files(folder)) == 2, "the second snapshot")
        first = files(folder)[0]
        await world.until(lambda: not first.exists(), "the first to make room", seconds=200)
        assert len(files(folder)) == 3
        assert [s.process.server.snapshots.saved for s in world.servers if s.process].count(0) == 2  # type: ignore[union-attr]
        stats = agent_of(world).stats()
        assert stats["saved"] == "4"
        assert stats["last_error"] == ""
        assert stats["last_snapshot"] == str(files(folder)[-1])


async def test_a_change_of_leader_makes_the_next_one_neither_earlier_nor_later(
    tmp_path: Path,
) -> None:
    async with running(3, snapshots=scheduled(tmp_path)) as world:
        await world.until(lambda: len(files(tmp_path)) == 1, "the first snapshot")
        old = world.leading
        leader = world.leader
        await asyncio.sleep(20)
        await old.crash(power=False)
        await world.has_leader(not_=leader)
        await asyncio.sleep(20)
        assert len(files(tmp_path)) == 1
        await world.until(lambda: len(files(tmp_path)) == 2, "the second", seconds=40)


async def test_a_scheduled_snapshot_restores_what_it_holds(tmp_path: Path) -> None:
    async with running(3, snapshots=scheduled(tmp_path)) as world:
        await world.register(job("kept"))
        await world.settled()
        count = len(files(tmp_path))
        await world.until(lambda: len(files(tmp_path)) > count, "a snapshot", seconds=90)
        data = files(tmp_path)[-1].read_bytes()
        await world.register(job("lost"))
        async with world.leader.server.open("Operator.SnapshotRestore", Write()) as stream:
            await stream.send(data)
            await stream.finish()
            assert await stream.receive() is None
        assert [j.id for j in world.state.jobs(None)] == ["kept"]


async def test_a_folder_that_cannot_be_written_is_told_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.INFO):
        async with running(1, snapshots=scheduled(blocked)) as world:
            agent = agent_of(world)
            await world.until(lambda: agent.failures_in_a_row == 2, "two failures", seconds=200)
            assert "file" in agent.stats()["last_error"]
            assert agent.stats()["failed"] == "2"
            blocked.unlink()
            await world.until(lambda: agent.saved == 1, "a snapshot", seconds=100)
            assert agent.failures_in_a_row == 0
            assert agent.stats()["last_error"] == ""
    assert "scheduled snapshot failed" in caplog.text


async def test_a_snapshot_that_does_not_read_back_leaves_no_file(tmp_path: Path) -> None:
    async with running(1) as world:
        snapshot = world.state
        folder = SnapshotFolder(str(tmp_path), "nomad")
        meta = archive.Meta(id="x", index=snapshot.index, term=1)
        chunks = list(persist.write(snapshot))
        with pytest.raises(CorruptionError):
            folder.write(meta, 1_795_393_293_000_000_000, chunks[:-1])
        assert not list(tmp_path.iterdir())
        path = folder.write(meta, 1_795_393_293_000_000_000, chunks)
        assert path.name == f"nomad-20261123T002133.000Z-{snapshot.index}.snap"
        assert folder.newest_ms() == 1_795_393_293_000


def test_only_the_prefixs_own_files_make_room(tmp_path: Path) -> None:
    names = [f"nomad-20261123T00000{n}.000Z-7.snap" for n in range(5)]
    others = ["nomad.snap", "by-hand-20261123T000000.000Z-7.snap", "nomad-2026.snap", "notes.txt"]
    torn = "nomad-20261123T000009.000Z-9.snap" + UNVERIFIED
    for name in (*names, *others, torn):
        (tmp_path / name).write_text("")
    assert sorted(SnapshotFolder(str(tmp_path), "nomad").keep(2)) == [*names[:3], torn]
    assert {p.name for p in tmp_path.iterdir()} == {*names[3:], *others}
