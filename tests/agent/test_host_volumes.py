"""The volumes of a node: what servers ask for, what survives a restart, what is offered to jobs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import host_volumes
from agent.host_volumes import HostVolumes, VolumeInUseError, VolumeNameTakenError
from agent.local_state import LocalState, MemoryState, SQLiteState
from nomadpy.errors import InvalidRequestError, NomadError, NotFoundError
from nomadpy.models import calls
from nomadpy.models.node import HostVolumeInfo

pytestmark = pytest.mark.real_time

ONE = "11111111-2222-4333-8444-555555555555"
TWO = "22222222-2222-4333-8444-555555555555"

PLUGIN = """#!/bin/sh
case "$1" in
  fingerprint) echo '{"version": "1.0"}' ;;
  create) echo create >> "$DHV_PLUGIN_DIR/calls.log"
          test -e "$DHV_PLUGIN_DIR/refuse" && { echo '{"error": "refused"}'; exit 1; }
          mkdir -p "$DHV_VOLUMES_DIR/$DHV_VOLUME_NAME"
          printf '{"path": "%s", "bytes": %s}' "$DHV_VOLUMES_DIR/$DHV_VOLUME_NAME" "$DHV_CAPACITY_MIN_BYTES" ;;
  delete) echo delete >> "$DHV_PLUGIN_DIR/calls.log"
          test -e "$DHV_PLUGIN_DIR/refuse" && { echo '{"error": "refused"}'; exit 1; }
          rm -rf "$DHV_CREATED_PATH" ;;
esac
"""


class Node:
    """What is left of a node between its agents: disk and local state."""

    def __init__(self, folder: Path, state: LocalState | None = None) -> None:
        self.folder = folder
        self.state = state or MemoryState()
        self.static: dict[str, HostVolumeInfo] = {}
        self.users: dict[str, list[str]] = {}
        self.changes = 0
        (folder / "plugins").mkdir(exist_ok=True)
        plugin = folder / "plugins/plug"
        plugin.write_text(PLUGIN)
        plugin.chmod(0o755)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[HostVolumes]:
        volumes = HostVolumes(
            self.state,
            volumes_dir=str(self.folder / "volumes"),
            plugin_dir=str(self.folder / "plugins"),
            node_pool="default",
            node_id=lambda: "node",
            static=self.static,
            changed=self._changed,
            users=lambda name: self.users.get(name, []),
        )
        await volumes.load()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(volumes.run())
            await volumes.restored.wait()
            yield volumes
            task.cancel()

    def _changed(self) -> None:
        self.changes += 1

    def calls(self) -> list[str]:
        path = self.folder / "plugins/calls.log"
        return path.read_text().split() if path.exists() else []


def create(volume_id: str = ONE, name: str = "data", **more: Any) -> Any:
    fields = {"id": volume_id, "name": name, "node_id": "node", "plugin_id": "mkdir", **more}
    return calls.ClientHostVolumeCreateRequest(**fields)


def register(path: str, volume_id: str = ONE, name: str = "data", **more: Any) -> Any:
    return calls.ClientHostVolumeRegisterRequest(
        id=volume_id, name=name, node_id="node", host_path=path, **more
    )


def delete(volume_id: str = ONE, name: str = "data", plugin_id: str = "mkdir") -> Any:
    return calls.ClientHostVolumeDeleteRequest(
        id=volume_id, name=name, node_id="node", plugin_id=plugin_id
    )


async def test_a_made_volume_is_answered_offered_and_told_of_at_once(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.agent() as volumes:
        before = node.changes
        reply = await volumes.create(None, create())
        path = str(tmp_path / "volumes" / ONE)
        assert (reply.volume_name, reply.volume_id, reply.host_path) == ("data", ONE, path)
        assert volumes.offered() == {"data": HostVolumeInfo(name="data", path=path, id=ONE)}
        assert node.changes > before
        assert volumes.attributes() == {
            "plugins.host_volume.mkdir.version": "0.0.1",
            "plugins.host_volume.plug.version": "1.0",
        }


async def test_create_by_the_same_id_is_answered_again_without_the_plugin(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.agent() as volumes:
        wanted = create(plugin_id="plug", requested_capacity_min_bytes=7)
        first = await volumes.create(None, wanted)
        assert first.capacity_bytes == 7
        assert await volumes.create(None, wanted) == first
        assert node.calls() == ["create"]
        larger = create(plugin_id="plug", requested_capacity_min_bytes=9)
        assert (await volumes.create(None, larger)).capacity_bytes == 9
        assert node.calls() == ["create", "create"]


async def test_two_volumes_of_one_name_are_refused(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.static["fixed"] = HostVolumeInfo(name="fixed", path="/srv")
    async with node.agent() as volumes:
        await volumes.create(None, create())
        with pytest.raises(VolumeNameTakenError, match=f"already exists on this node.*{ONE}"):
            await volumes.create(None, create(TWO))
        with pytest.raises(VolumeNameTakenError):
            await volumes.register(None, register(str(tmp_path), TWO))
        with pytest.raises(VolumeNameTakenError, match="configuration"):
            await volumes.create(None, create(TWO, "fixed"))
        with pytest.raises(InvalidRequestError, match="has the name"):
            await volumes.create(None, create(ONE, "other"))
        assert sorted(os.listdir(tmp_path / "volumes")) == [ONE]


async def test_of_two_that_race_for_a_name_one_gets_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.agent() as volumes:
        results = await asyncio.gather(
            volumes.create(None, create(ONE)),
            volumes.create(None, create(TWO)),
            return_exceptions=True,
        )
        assert [type(r) is VolumeNameTakenError for r in results].count(True) == 1
        assert len(volumes.offered()) == 1


@pytest.mark.parametrize(
    ("volume_id", "name"),
    [("../../etc", "data"), ("", "data"), ("a/b", "data"), (".", "data"), (ONE, ""), (ONE, "a\0b")],
)
async def test_ids_that_lead_elsewhere_and_empty_names_are_refused(
    tmp_path: Path, volume_id: str, name: str
) -> None:
    node = Node(tmp_path)
    async with node.agent() as volumes:
        with pytest.raises(InvalidRequestError):
            await volumes.create(None, create(volume_id, name))
        with pytest.raises(InvalidRequestError):
            await volumes.delete(None, delete(volume_id, name))


async def test_an_unknown_plugin_is_named(tmp_path: Path) -> None:
    async with Node(tmp_path).agent() as volumes:
        with pytest.raises(NotFoundError, match="'zfs'"):
            await volumes.create(None, create(plugin_id="zfs"))


async def test_a_directory_becomes_a_volume_and_stays_when_that_ends(tmp_path: Path) -> None:
    node = Node(tmp_path)
    shared = tmp_path / "shared"
    shared.mkdir()
    async with node.agent() as volumes:
        await volumes.register(None, register(f"{shared}/"))
        assert volumes.offered()["data"].path == str(shared)
        await volumes.delete(None, delete(plugin_id=""))
        assert volumes.offered() == {}
        with pytest.raises(InvalidRequestError, match="not a directory"):
            await volumes.register(None, register(f"{shared}/none"))
        with pytest.raises(InvalidRequestError, match="not absolute"):
            await volumes.register(None, register("shared"))
    assert shared.is_dir()
    assert await node.state.volumes() == []


async def test_delete_removes_it_and_an_unknown_one_is_no_error(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.agent() as volumes:
        await volumes.create(None, create())
        reply = await volumes.delete(None, delete())
        assert (reply.volume_name, reply.volume_id) == ("data", ONE)
        assert volumes.offered() == {}
        assert not (tmp_path / "volumes" / ONE).exists()
        await volumes.delete(None, delete())
        await volumes.delete(None, delete(TWO, plugin_id="gone"))
        # The name is free again.
        await volumes.create(None, create(TWO))


async def test_a_volume_that_was_forgotten_here_is_still_removed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.agent() as volumes:
        await volumes.create(None, create())
    node.state = MemoryState()
    async with node.agent() as volumes:
        assert volumes.offered() == {}
        await volumes.delete(None, delete())
    assert not (tmp_path / "volumes" / ONE).exists()


async def test_a_volume_in_use_is_not_deleted(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.agent() as volumes:
        await volumes.create(None, create())
        node.users["data"] = ["alloc-1"]
        with pytest.raises(VolumeInUseError, match="in use by allocation alloc-1"):
            await volumes.delete(None, delete())
        assert "data" in volumes.offered()


async def test_a_failed_create_leaves_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.agent() as volumes:
        (tmp_path / "plugins/refuse").touch()
        with pytest.raises(NomadError, match="refused"):
            await volumes.create(None, create(plugin_id="plug"))
        assert volumes.offered() == {}
        assert await node.state.volumes() == []
        (tmp_path / "plugins/refuse").unlink()
        await volumes.create(None, create(plugin_id="plug"))
        assert list(volumes.offered()) == ["data"]


async def test_a_volume_whose_delete_failed_is_not_offered_nor_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_volumes, "LOOK_INTERVAL_S", 0.05)
    node = Node(tmp_path)
    async with node.agent() as volumes:
        await volumes.create(None, create(plugin_id="plug"))
        (tmp_path / "plugins/refuse").touch()
        with pytest.raises(NomadError, match="refused"):
            await volumes.delete(None, delete(plugin_id="plug"))
        assert volumes.offered() == {}
        (tmp_path / "plugins/refuse").unlink()
        seen = node.changes
        async with asyncio.timeout(30):
            while node.changes < seen + 3:
                await asyncio.sleep(0.02)
    async with node.agent() as volumes:
        assert volumes.offered() == {}
        assert node.calls() == ["create", "delete"]
        await volumes.delete(None, delete(plugin_id="plug"))
        assert not (tmp_path / "volumes/data").exists()


async def test_a_volume_that_cannot_be_kept_is_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path)

    async def full(_volume: object) -> None:
        raise OSError(28, "No space left on device")

    async with node.agent() as volumes:
        monkeypatch.setattr(node.state, "put_volume", full)
        with pytest.raises(NomadError, match="No space left"):
            await volumes.create(None, create(plugin_id="plug"))
        assert node.calls() == ["create", "delete"]
        assert volumes.offered() == {}


async def test_volumes_outlive_a_restart_with_what_is_in_them(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    three = TWO.replace("2", "3")
    state = SQLiteState(tmp_path / "client.db")
    node = Node(tmp_path, state)
    async with node.agent() as volumes:
        await volumes.create(None, create(parameters={"mode": "0750"}))
        await volumes.create(None, create(TWO, "made", plugin_id="plug"))
        await volumes.register(None, register(str(shared), three, "shared"))
        offered = volumes.offered()
        assert sorted(offered) == ["data", "made", "shared"]
        Path(offered["data"].path, "rows").write_text("precious")
    await state.close()
    node.state = SQLiteState(tmp_path / "client.db")
    async with node.agent() as volumes:
        assert volumes.offered() == offered
        assert Path(offered["data"].path, "rows").read_text() == "precious"
        # The plugin was asked again, for a mount may be gone with the host's last boot.
        assert node.calls() == ["create", "create"]
    await node.state.close()


async def test_a_directory_that_went_missing_is_not_offered_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_volumes, "LOOK_INTERVAL_S", 0.05)
    node = Node(tmp_path)
    async with node.agent() as volumes:
        await volumes.create(None, create())
    os.rename(tmp_path / "volumes" / ONE, tmp_path / "aside")
    async with node.agent() as volumes:
        assert volumes.offered() == {}
        os.rename(tmp_path / "aside", tmp_path / "volumes" / ONE)
        async with asyncio.timeout(30):
            while not volumes.offered():
                await asyncio.sleep(0.02)
        os.rename(tmp_path / "volumes" / ONE, tmp_path / "aside")
        async with asyncio.timeout(30):
            while volumes.offered():
                await asyncio.sleep(0.02)


async def test_a_new_plugin_is_found_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_volumes, "LOOK_INTERVAL_S", 0.05)
    node = Node(tmp_path)
    async with node.agent() as volumes:
        (tmp_path / "plugins/new").write_text(PLUGIN)
        (tmp_path / "plugins/new").chmod(0o755)
        async with asyncio.timeout(30):
            while "plugins.host_volume.new.version" not in volumes.attributes():
                await asyncio.sleep(0.02)


async def test_a_damaged_record_costs_its_volume_only(tmp_path: Path) -> None:
    path = tmp_path / "client.db"
    state = SQLiteState(path)
    node = Node(tmp_path, state)
    async with node.agent() as volumes:
        await volumes.create(None, create())
        await volumes.create(None, create(TWO, "other"))
    await state.close()
    database = sqlite3.connect(path)
    name = f"volume/{ONE}"
    (raw,) = database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    damaged = raw.replace(b"data", b"dada")
    assert damaged != raw
    database.execute("UPDATE facts SET value = ? WHERE name = ?", (damaged, name))
    database.commit()
    database.close()
    node.state = SQLiteState(path)
    async with node.agent() as volumes:
        assert list(volumes.offered()) == ["other"]
    await node.state.close()
    assert (tmp_path / "volumes" / ONE).is_dir()


async def test_a_plugin_that_hangs_at_the_start_does_not_keep_the_node_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_volumes, "RESTORE_WAIT_S", 0.1)
    node = Node(tmp_path)
    async with node.agent() as volumes:
        await volumes.create(None, create(plugin_id="plug"))
    (tmp_path / "plugins/plug").write_text(
        """#!/bin/sh\ntest "$1" = create && exec sleep 60\necho '{"version": "1.0"}'\n"""
    )
    again = HostVolumes(
        node.state,
        volumes_dir=str(tmp_path / "volumes"),
        plugin_dir=str(tmp_path / "plugins"),
        node_pool="default",
        node_id=lambda: "node",
        static={},
        changed=lambda: None,
        users=lambda _name: [],
    )
    await again.load()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(again.run())
        async with asyncio.timeout(30):
            await again.until_restored()
        assert again.offered() == {}
        task.cancel()


CHURN = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from agent.local_state import SQLiteState
from test_host_volumes import Node, create, delete

async def main():
    folder = Path(sys.argv[1])
    node = Node(folder, SQLiteState(folder / "client.db"))
    async with node.agent() as volumes:
        number = int(sys.argv[3])
        while True:
            number += 1
            volume_id, name = f"{number:08d}-0000-4000-8000-000000000000", f"v{number}"
            print("begin", name, flush=True)
            await volumes.create(None, create(volume_id, name))
            print("made", name, flush=True)
            if number % 2:
                await volumes.delete(None, delete(volume_id, name))
                print("deleted", name, flush=True)

asyncio.run(main())
"""


async def test_every_answer_holds_whenever_the_agent_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    for round_ in range(6):
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHURN, str(tmp_path), os.path.dirname(__file__)),
            str(1000 * round_),
            stdout=asyncio.subprocess.PIPE,
        )
        assert agent.stdout is not None
        async with asyncio.timeout(60):
            said += [(await agent.stdout.readline()).decode() for _ in range(9 + round_)]
        agent.kill()
        said += (await agent.stdout.read()).decode().splitlines()
        await agent.wait()
    words = [line.split() for line in said if line.strip()]
    begun, made, deleted = (
        {name for word, name in words if word == which} for which in ("begin", "made", "deleted")
    )
    # Whose deletion may have begun: it may be there or not.
    unsure = {name for name in made if int(name[1:]) % 2} - deleted
    assert len(made) > 12
    state = SQLiteState(tmp_path / "client.db")
    async with Node(tmp_path, state).agent() as volumes:
        offered = volumes.offered()
        assert made - deleted - unsure <= set(offered) <= begun - deleted
        assert all(Path(volume.path).is_dir() for volume in offered.values())
        for record in await state.volumes():
            await volumes.delete(None, delete(record.id, record.name))
        assert volumes.offered() == {}
    await state.close()
    # Directories of creates that nobody heard the end of: at most one for each death.
    left = [path for path in (tmp_path / "volumes").iterdir() if path.name != ".removed"]
    assert len(left) <= 6
