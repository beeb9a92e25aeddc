"""Host volumes at the servers: what is refused and why, where one is made, and what happens when the node does not do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from server_world import SECOND, FakeNode, World, body, job, running

from nomadpy.errors import DefiniteError, IndefiniteError, LogFormatError, NomadError, NotFoundError
from nomadpy.models import calls
from nomadpy.models.constraint import Constraint
from nomadpy.models.envelope import WriteOptions
from nomadpy.models.host_volume import HostVolume, HostVolumeCapability, TaskGroupHostVolumeClaim
from nomadpy.models.node import DrainSpec, HostVolumeInfo, NodePool
from nomadpy.rpc.dispatch import CallContext, Dispatcher

MKDIR = {"plugins.host_volume.mkdir.version": "0.0.1"}
WRITER = HostVolumeCapability(attachment_mode="file-system", access_mode="single-node-writer")


def asked(name: str = "data", **more: Any) -> HostVolume:
    fields: dict[str, Any] = {"plugin_id": "mkdir", "requested_capabilities": [WRITER]}
    return HostVolume(**{**fields, "name": name, **more})


class VolumeNode:
    """A node that makes volumes as it is told, and tells of them when it registers."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.calls: list[tuple[str, Any]] = []
        self.failure: NomadError | None = None
        self.hold: asyncio.Event | None = None
        self.dispatcher = Dispatcher()
        for method in ("Create", "Register", "Delete"):
            self.dispatcher.register(f"ClientHostVolume.{method}", self._handler(method))

    def _handler(self, method: str) -> Any:
        async def handle(_: CallContext, request: Any) -> Any:
            self.calls.append((method, request))
            if self.hold is not None:
                await self.hold.wait()
            if self.failure is not None:
                raise self.failure
            if method == "Create":
                return calls.ClientHostVolumeCreateReply(
                    volume_name=request.name,
                    volume_id=request.id,
                    host_path=f"/volumes/{request.id}",
                    capacity_bytes=request.requested_capacity_max_bytes,
                )
            if method == "Register":
                return calls.Empty()
            return calls.ClientHostVolumeDeleteReply(volume_name=request.name, volume_id=request.id)

        return handle

    async def tell(self, *volumes: HostVolume) -> None:
        """Register with these volumes."""
        there = {v.name: HostVolumeInfo(name=v.name, path=v.host_path, id=v.id) for v in volumes}
        await self.node.register(host_volumes=there)


@asynccontextmanager
async def volume_node(world: World, **changes: Any) -> AsyncIterator[VolumeNode]:
    node = await world.node(f"n{sum(1 for _ in world.state.nodes())}")
    attributes = {**(node.node.attributes or {}), **MKDIR}
    await node.register(**{"attributes": attributes, **changes})
    made = VolumeNode(node)
    async with node.attached(made.dispatcher, *(s.address for s in world.servers)):
        yield made


async def create(world: World, volume: HostVolume, **options: Any) -> HostVolume:
    return await _written(world, "HostVolume.Create", volume, **options)


async def register(world: World, volume: HostVolume, **options: Any) -> HostVolume:
    return await _written(world, "HostVolume.Register", volume, **options)


async def _written(world: World, method: str, volume: HostVolume, **options: Any) -> HostVolume:
    request = calls.HostVolumeWrite(volume=volume, options=WriteOptions(**options))
    found = body(await world.call(method, request))
    assert set(found) == {"Volume", "Warnings", "Index"}
    return msgspec.convert(found["Volume"], HostVolume)


async def refused(world: World, volume: HostVolume, method: str = "HostVolume.Create") -> str:
    with pytest.raises(NomadError) as caught:
        await _written(world, method, volume)
    assert caught.value.status == 400
    return caught.value.message


async def delete(world: World, volume: HostVolume, *, force: bool = False) -> Any:
    request = calls.Write(id=volume.id, flags={"force": "true"} if force else {})
    return body(await world.call("HostVolume.Delete", request))


def stored(world: World) -> list[HostVolume]:
    return list(world.state.host_volumes())


# -- create ---------------------------------------------------------------------------------------------------


async def test_a_volume_is_made_on_a_node_and_is_ready_with_what_the_node_answered() -> None:
    async with running() as world, volume_node(world) as node:
        parameters = {"mode": "0750"}
        made = await create(
            world,
            asked(
                requested_capacity_min_bytes=1,
                requested_capacity_max_bytes=1 << 30,
                parameters=parameters,
            ),
        )
        ((method, request),) = node.calls
        assert (method, request.name, request.plugin_id) == ("Create", "data", "mkdir")
        assert (request.id, request.node_id) == (made.id, node.node.id)
        assert request.parameters == parameters
        assert (made.state, made.host_path) == ("ready", f"/volumes/{made.id}")
        assert (made.capacity_bytes, made.node_pool) == (1 << 30, "default")
        assert made.modify_index > made.create_index > 0
        assert stored(world) == [made]
        assert await world.get("HostVolume.Get", made.id) == msgspec.to_builtins(made)
        (row,) = await world.get("HostVolume.List")
        assert (row["ID"], row["Name"], row["State"]) == (made.id, "data", "ready")
        assert "HostPath" not in row


async def test_a_volume_is_pending_while_its_node_makes_it() -> None:
    async with running() as world, volume_node(world) as node:
        node.hold = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(create(world, asked()))
            while not node.calls:
                await asyncio.sleep(0.01)
            (known,) = stored(world)
            assert (known.state, known.host_path) == ("pending", "")
            node.hold.set()
        assert task.result().state == "ready"


async def test_what_the_node_could_not_make_is_not_left_behind() -> None:
    async with running() as world, volume_node(world) as node:
        node.failure = DefiniteError("disk on fire")
        with pytest.raises(NomadError, match=r'volume "data" was not made: node .* disk on fire'):
            await create(world, asked())
        assert stored(world) == []
        node.failure = IndefiniteError("no answer")
        with pytest.raises(IndefiniteError, match=r"no answer.*delete volume"):
            await create(world, asked())
        # It may have been made: who forgot it could never have it removed.
        (left,) = stored(world)
        assert left.state == "pending"
        node.failure = None
        await delete(world, left)
        assert (await create(world, asked())).state == "ready"


async def test_a_node_without_a_connection_makes_nothing_and_the_error_says_so() -> None:
    async with running() as world:
        node = await world.node()
        await node.register(attributes=MKDIR)
        message = await refused(world, asked())
        assert f"node {node.id} said: No path to node" in message
        assert stored(world) == []


async def test_a_request_that_is_sent_again_makes_one_volume() -> None:
    async with running() as world, volume_node(world) as node:
        first = await create(world, asked(), request_id="r1")
        again = await create(world, asked(), request_id="r1")
        assert again == first
        assert len(node.calls) == 1


async def test_a_plugin_may_take_a_minute_whichever_server_is_asked() -> None:
    async with running(3) as world, volume_node(world) as node:
        node.hold = asyncio.Event()
        asyncio.get_running_loop().call_later(55, node.hold.set)
        request = calls.HostVolumeWrite(volume=asked(), options=WriteOptions())
        answer = await world.call("HostVolume.Create", request, at=world.followers[0], timeout_s=90)
        assert body(answer)["Volume"]["State"] == "ready"
        assert len(node.calls) == 1


@pytest.mark.parametrize("power", [False, True])
async def test_a_volume_outlives_the_leader_that_was_making_it(power: bool) -> None:
    async with running(3) as world, volume_node(world) as node:
        node.hold = asyncio.Event()
        old, asked_of = world.leading, world.followers[0]
        request = calls.HostVolumeWrite(volume=asked(), options=WriteOptions())
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(world.call("HostVolume.Create", request, at=asked_of))
            while not node.calls:
                await asyncio.sleep(0.01)
            await old.crash(power=power)
            await world.has_leader(not_=old.process)
            node.hold.set()
        made = msgspec.convert(body(answer.result())["Volume"], HostVolume)
        # The same volume was asked for again, and the node answers for what it has.
        assert {request.id for _, request in node.calls} == {made.id}
        assert len(node.calls) > 1
        assert stored(world) == [made]
        assert made.state == "ready"


async def test_the_node_with_the_fewest_volumes_is_chosen_of_those_that_will_do() -> None:
    async with (
        running() as world,
        volume_node(world) as one,
        volume_node(world) as other,
        volume_node(world, attributes={}),
    ):
        made = [await create(world, asked(f"v{number}")) for number in range(4)]
        nodes = [volume.node_id for volume in made]
        assert sorted(nodes) == sorted([one.node.id, other.node.id] * 2)
        assert len(set(nodes[:2])) == 2
        # One of a name on each node, then there is none left.
        same = [await create(world, asked("same")) for _ in range(2)]
        assert {volume.node_id for volume in same} == {one.node.id, other.node.id}
        message = await refused(world, asked("same"))
        assert "2 nodes" in message
        assert 'it has a volume "same" in namespace "default" already' in message
        assert 'it has no host volume plugin "mkdir"' in message


async def test_constraints_pool_capacity_and_plugin_decide_about_a_node() -> None:
    async with running() as world:
        await world.call("NodePool.Upsert", calls.NodePoolWrite(pool=NodePool(name="gpu")))
        async with volume_node(world) as node:
            rack = Constraint(l_target="${meta.rack}", operand="=", r_target="r9")
            for volume, reason in (
                (asked(constraints=[rack]), "constraint ${meta.rack} = r9 does not hold"),
                (asked(node_pool="gpu"), 'its node pool is "default", not "gpu"'),
                (
                    asked(plugin_id="zfs"),
                    'it has no host volume plugin "zfs"; plugins that nodes have: mkdir',
                ),
                (asked(requested_capacity_min_bytes=1 << 60), "bytes left on its disk"),
            ):
                message = await refused(world, volume)
                assert message.startswith(
                    f'no node for volume "data": 1 node ({node.node.node.name}): '
                )
                assert reason in message
                named = msgspec.structs.replace(volume, node_id=node.node.id)
                message = await refused(world, named)
                assert message.startswith(f'volume "data" cannot be on node {node.node.node.name}')
            assert 'node pool "zz" does not exist' in await refused(world, asked(node_pool="zz"))
            message = await refused(world, asked(node_id="f" * 36))
            assert f'node "{"f" * 36}" does not exist' in message
            await node.node.heartbeat("down")
            assert "is not ready for placements" in await refused(world, asked())
            assert node.calls == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": ""}, "missing name"),
        ({"id": "nothing"}, 'invalid ID "nothing"'),
        ({"name": "x" * 129}, "a name has at most 128 characters"),
        ({"name": "a\x00b"}, "all of them printable"),
        ({"plugin_id": ""}, "missing plugin_id"),
        ({"requested_capabilities": None}, "at least one capability block"),
        (
            {"requested_capabilities": [HostVolumeCapability(access_mode="mine")]},
            'invalid attachment mode: ""; there are file-system, block-device',
        ),
        (
            {"requested_capabilities": [HostVolumeCapability(access_mode="mine")]},
            'invalid access mode: "mine"; there are single-node-reader-only',
        ),
        (
            {"requested_capacity_min_bytes": 9, "requested_capacity_max_bytes": 8},
            "capacity_max (8) must not be less than capacity_min (9)",
        ),
        ({"requested_capacity_min_bytes": -1}, "capacities are not negative"),
        (
            {"constraints": [Constraint(operand="distinct_hosts", r_target="true")]},
            "constraint distinct_hosts is not allowed",
        ),
        ({"host_path": "/srv"}, "host_path is the plugin's to choose"),
        ({"id": "f" * 36}, f"no volume {'f' * 36} in namespace"),
    ],
)
async def test_a_volume_that_makes_no_sense_is_refused_with_the_reason(
    wrong: dict[str, Any], said: str
) -> None:
    async with running() as world, volume_node(world) as node:
        assert said in await refused(world, asked(**wrong))
        assert node.calls == []
        assert stored(world) == []


async def test_all_that_is_wrong_is_said_at_once() -> None:
    async with running() as world:
        message = await refused(world, HostVolume())
        assert "3 errors occurred" in message


async def test_a_volume_that_exists_is_changed_by_its_plugin_and_not_made_anew() -> None:
    async with running() as world, volume_node(world) as node:
        made = await create(world, asked())
        more = msgspec.structs.replace(made, requested_capacity_max_bytes=4096, host_path="")
        grown = await create(world, more)
        assert (grown.id, grown.create_index, grown.capacity_bytes) == (
            made.id,
            made.create_index,
            4096,
        )
        assert [request.id for _, request in node.calls] == [made.id] * 2
        message = await refused(world, msgspec.structs.replace(more, name="other"))
        assert 'name cannot change once the volume exists: it is "data", not "other"' in message
        message = await refused(
            world, msgspec.structs.replace(more, requested_capacity_max_bytes=9)
        )
        assert "capacity_max (9) must not be less than what the volume has (4096)" in message
        node.failure = DefiniteError("cannot grow")
        with pytest.raises(NomadError, match="The volume is as it was"):
            await create(world, msgspec.structs.replace(more, requested_capacity_max_bytes=1 << 20))
        assert stored(world) == [grown]


async def test_volumes_wait_until_every_server_can_read_them() -> None:
    async with running(log_formats=(1, 2)) as world, volume_node(world) as node:
        with pytest.raises(LogFormatError, match="until every server is upgraded"):
            await create(world, asked())
        assert node.calls == []


async def test_a_request_does_not_say_what_only_servers_know() -> None:
    async with running() as world, volume_node(world):
        more = {"deleting": True, "state": "unavailable", "create_index": 7, "modify_time": 7}
        made = await create(world, asked(**more))
        assert (made.deleting, made.state) == (False, "ready")
        assert made.create_index != 7
        assert made.modify_time > 7


# -- register -------------------------------------------------------------------------------------------------


async def test_a_directory_that_exists_is_registered_where_it_is() -> None:
    async with running() as world, volume_node(world, attributes={}) as node:
        there = asked(
            "old", plugin_id="", node_id=node.node.id, host_path="/srv/old", capacity_bytes=9
        )
        made = await register(world, there)
        ((method, request),) = node.calls
        assert (method, request.host_path, request.capacity_bytes) == ("Register", "/srv/old", 9)
        assert (made.state, made.host_path, made.capacity_bytes) == ("ready", "/srv/old", 9)
        assert made.node_pool == "default"
        node.failure = DefiniteError("no such directory")
        with pytest.raises(NomadError, match="no such directory"):
            await register(world, msgspec.structs.replace(there, name="older"))
        assert stored(world) == [made]


async def test_a_registration_says_where_the_directory_is() -> None:
    async with running() as world:
        message = await refused(world, asked(plugin_id=""), "HostVolume.Register")
        assert "missing node_id" in message
        assert "host_path must be the absolute path" in message


# -- delete ---------------------------------------------------------------------------------------------------


async def test_a_volume_is_removed_from_its_node_and_forgotten() -> None:
    async with running() as world, volume_node(world) as node:
        made = await create(world, asked())
        assert (await delete(world, made))["Index"] > made.modify_index
        assert stored(world) == []
        method, request = node.calls[-1]
        assert (method, request.id, request.plugin_id) == ("Delete", made.id, "mkdir")
        with pytest.raises(NotFoundError, match="volume not found"):
            await delete(world, made)


async def test_a_volume_whose_node_does_not_remove_it_stays_unless_forced() -> None:
    async with running() as world, volume_node(world) as node:
        made = await create(world, asked())
        node.failure = DefiniteError("device is busy")
        with pytest.raises(
            NomadError, match=r"was not deleted: .* device is busy.* delete with force"
        ):
            await delete(world, made)
        (left,) = stored(world)
        assert left.state == "ready"
        await delete(world, made, force=True)
        assert stored(world) == []


async def test_a_volume_that_allocations_use_is_not_deleted_even_by_force() -> None:
    async with running() as world, volume_node(world) as node:
        made = await create(world, asked())
        await node.tell(made)
        await world.register(job_with_volume())
        await world.settled()
        (alloc,) = node.node.wanted()
        for force in (False, True):
            with pytest.raises(NomadError, match=f"in use by allocations: {alloc.id}") as caught:
                await delete(world, made, force=force)
            assert caught.value.status == 400
        assert [method for method, _ in node.calls] == ["Create"]
        shown = await world.get("HostVolume.Get", made.id)
        assert [one["ID"] for one in shown["Allocations"]] == [alloc.id]


# -- what follows ---------------------------------------------------------------------------------------------


def job_with_volume(name: str = "db", **more: Any) -> dict[str, Any]:
    volume = {"Name": "v", "Type": "host", "Source": "data", **more}
    found: dict[str, Any] = job(name)
    found["TaskGroups"][0]["Volumes"] = {"v": volume}
    found["TaskGroups"][0]["Count"] = 1
    return found


async def test_a_job_that_waits_for_a_volume_is_placed_when_it_is_there() -> None:
    async with running() as world, volume_node(world) as node:
        await world.register(job_with_volume())
        await world.settled()
        assert node.node.wanted() == []
        made = await create(world, asked())
        await world.settled()
        assert node.node.wanted() == []
        await node.tell(made)
        (alloc,) = await world.until(node.node.wanted, "the job to be placed")
        assert alloc.job_id == "db"


async def test_a_system_job_comes_to_a_node_that_gets_its_volume() -> None:
    async with running() as world, volume_node(world) as one, volume_node(world) as other:
        wanted = {**job_with_volume(), "Type": "system"}
        await one.tell(await create(world, asked(node_id=one.node.id)))
        await world.register(wanted)
        await world.settled()
        assert (len(one.node.wanted()), len(other.node.wanted())) == (1, 0)
        await other.tell(await create(world, asked(node_id=other.node.id)))
        await world.until(other.node.wanted, "the system job to be placed")


async def test_a_drain_stops_what_holds_a_sticky_volume_and_it_comes_back_after() -> None:
    async with running() as world, volume_node(world) as one, volume_node(world) as other:
        await one.tell(await create(world, asked(node_id=one.node.id)))
        await world.register(job_with_volume(Sticky=True))
        await world.settled()
        await other.tell(await create(world, asked(node_id=other.node.id)))
        nodes = [one.node, other.node]
        await world.obeyed(nodes, lambda: one.node.allocs()[0].client_status == "running")
        drain = calls.NodeDrainWrite(node_id=one.node.id, spec=DrainSpec(deadline=3600 * SECOND))
        await world.call("Node.Drain", drain)
        await world.obeyed(nodes, lambda: one.node.allocs()[0].client_status == "complete")
        await world.until(
            lambda: world.state.node(one.node.id).drain_strategy is None, "the drain to end"
        )
        assert one.node.wanted() == other.node.wanted() == []
        again = calls.NodeEligibilityWrite(node_id=one.node.id, eligibility="eligible")
        await world.call("Node.Eligibility", again)
        await world.until(one.node.wanted, "the job to be placed again")
        assert other.node.wanted() == []


async def test_a_node_that_goes_down_takes_its_volumes_with_it_and_brings_them_back() -> None:
    async with running() as world, volume_node(world) as node:
        made = await create(world, asked())
        await node.tell(made)
        await node.node.heartbeat("down")
        assert stored(world)[0].state == "unavailable"
        await node.node.heartbeat("ready")
        assert stored(world)[0].state == "ready"


async def test_lists_are_filtered_and_come_in_pages() -> None:
    async with running() as world, volume_node(world) as one, volume_node(world):
        made = sorted([(await create(world, asked(f"v{n}"))) for n in range(4)], key=lambda v: v.id)
        rows = await world.get("HostVolume.List", flags={"node_id": one.node.id})
        assert [r["ID"] for r in rows] == [v.id for v in made if v.node_id == one.node.id]
        assert await world.get("HostVolume.List", flags={"node_pool": "gpu"}) == []
        assert await world.get("HostVolume.List", namespace="elsewhere") == []
        assert len(await world.get("HostVolume.List", namespace="*")) == 4
        (row,) = await world.get("HostVolume.List", prefix=made[2].id[:8])
        assert row["ID"] == made[2].id
        first = await world.read("HostVolume.List", per_page=3)
        assert [r["ID"] for r in body(first)] == [v.id for v in made[:3]]
        assert first.next_token == f"default.{made[3].id}"
        (row,) = await world.get("HostVolume.List", per_page=3, next_token=first.next_token)
        assert row["ID"] == made[3].id
        found = await world.get("HostVolume.List", filter='Name == "v2"')
        assert [r["Name"] for r in found] == ["v2"]
        matches = await world.get(
            "Search.Prefix", made[0].id[:6], flags={"context": "host_volumes"}
        )
        assert matches["Matches"]["host_volumes"] == [made[0].id]


async def test_a_read_waits_for_a_volume_to_change() -> None:
    async with running() as world, volume_node(world):
        made = await create(world, asked())
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(
                world.get("HostVolume.Get", made.id, min_index=made.modify_index, wait_ns=10**12)
            )
            await asyncio.sleep(1)
            assert not waiting.done()
            more = msgspec.structs.replace(made, parameters={"a": "b"}, host_path="")
            await create(world, more)
        assert waiting.result()["Parameters"] == {"a": "b"}


async def test_claims_are_listed_filtered_and_forgotten() -> None:
    async with running() as world, volume_node(world) as node:
        made = await create(world, asked())
        await node.tell(made)
        await world.register(job_with_volume(Sticky=True))
        await world.settled()
        (alloc,) = node.node.wanted()
        (row,) = await world.get("TaskGroupHostVolumeClaim.List")
        claim = msgspec.convert(row, TaskGroupHostVolumeClaim)
        assert (claim.alloc_id, claim.volume_id, claim.volume_name) == (alloc.id, made.id, "data")
        for flags, there in (
            ({"job_id": "db"}, True),
            ({"job_id": "web"}, False),
            ({"task_group": claim.task_group_name, "volume_name": "data"}, True),
            ({"volume_name": "logs"}, False),
        ):
            assert (await world.get("TaskGroupHostVolumeClaim.List", flags=flags) == [row]) is there
        assert await world.get("TaskGroupHostVolumeClaim.List", prefix=claim.id[:4]) == [row]
        await world.call("TaskGroupHostVolumeClaim.Delete", calls.Write(id=claim.id))
        assert await world.get("TaskGroupHostVolumeClaim.List") == []
        with pytest.raises(NotFoundError, match="volume claim not found"):
            await world.call("TaskGroupHostVolumeClaim.Delete", calls.Write(id=claim.id))


async def test_a_group_whose_claim_is_forgotten_may_go_elsewhere() -> None:
    async with running() as world, volume_node(world) as one, volume_node(world) as other:
        first = await create(world, asked(node_id=one.node.id))
        await one.tell(first)
        await world.register(job_with_volume(Sticky=True))
        await world.settled()
        await one.node.obey()
        second = await create(world, asked(node_id=other.node.id))
        await other.tell(second)
        await one.node.heartbeat("down")
        await world.settled()
        assert other.node.wanted() == []
        (row,) = await world.get("TaskGroupHostVolumeClaim.List")
        assert row["VolumeID"] == first.id
        await world.call("TaskGroupHostVolumeClaim.Delete", calls.Write(id=row["ID"]))
        (alloc,) = await world.until(other.node.wanted, "the job to be placed")
        (row,) = await world.get("TaskGroupHostVolumeClaim.List")
        assert (row["VolumeID"], row["AllocID"]) == (second.id, alloc.id)
