"""How servers find each other, form one cluster or none, and notice who has gone."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from server_world import World, WorldServer, body, job, running

from nomadpy.errors import ConflictError, NoLeaderError
from nomadpy.models.calls import Read, ServerAddress, ServerHello
from nomadpy.server.members import Members
from nomadpy.server.settings import ServerSettings
from nomadpy.simulator.loop import SimClock


def statuses(world: World, number: int) -> dict[str, str]:
    """What one server thinks of all."""
    process = world.servers[number].process
    assert process is not None
    return {m.hello.name: m.status for m in process.server.members.all()}


def configured(world: World, number: int) -> list[str]:
    process = world.servers[number].process
    assert process is not None
    return sorted(server.name for server in process.configuration())


async def test_three_servers_that_know_each_other_form_one_cluster_of_three() -> None:
    async with running(3, form=False) as world:
        for server in world.servers:
            await server.start()
            # However far apart they start.
            await asyncio.sleep(7)
        await world.has_leader()
        await asyncio.sleep(2)
        for number in range(3):
            assert configured(world, number) == ["s0", "s1", "s2"]
            assert set(statuses(world, number).values()) == {"alive"}
        assert sum(s.process.raft.is_leader for s in world.servers if s.process) == 1


async def test_fewer_servers_than_expected_form_nothing() -> None:
    async with running(3, form=False) as world:
        for server in world.servers[:2]:
            await server.start()
        await asyncio.sleep(30)
        assert world.cluster.leader() is None
        assert configured(world, 0) == []
        process = world.servers[0].process
        assert process is not None
        with pytest.raises(NoLeaderError):
            await world.register(job("web"), at=process)
        # The third one completes them.
        await world.servers[2].start()
        await world.has_leader()


async def test_servers_that_expect_different_numbers_form_nothing() -> None:
    async with running(3, form=False) as world:
        odd = world.servers[2]
        assert isinstance(odd, WorldServer)
        odd.changes = {**odd.changes, "bootstrap_expect": 5}
        for server in world.servers:
            await server.start()
        await asyncio.sleep(20)
        assert world.cluster.leader() is None
        assert [configured(world, number) for number in range(3)] == [[], [], []]


async def test_more_servers_than_expected_form_nothing_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(4, form=False, bootstrap_expect=3) as world:
        with caplog.at_level(logging.ERROR):
            for server in world.servers:
                await server.start()
            await asyncio.sleep(20)
        assert world.cluster.leader() is None
        assert all(configured(world, number) == [] for number in range(4))
        said = [r.getMessage() for r in caplog.records if "bootstrap_expect" in r.getMessage()]
        # Once each, not every second.
        assert 4 <= len(said) <= 8


async def test_a_server_that_missed_the_forming_is_part_of_it() -> None:
    async with running(3, form=False) as world:
        for server in world.servers:
            await server.start()
        late = world.servers[2]
        await world.until(
            lambda: set(statuses(world, 0)) == set(statuses(world, 2)) == {"s0", "s1", "s2"},
            "all to be known",
        )
        # It goes just as the others may start, and comes back when they have.
        await late.crash(power=True)
        await asyncio.sleep(10)
        await late.start()
        await world.has_leader()
        await world.until(lambda: configured(world, 2) == ["s0", "s1", "s2"], "its list")
        await world.register(job("web"))
        await world.caught_up()
        assert late.process is not None
        assert late.process.store.snapshot().job("default", "web") is not None


async def test_a_single_server_forms_a_cluster_by_itself() -> None:
    async with running(1) as world:
        assert configured(world, 0) == ["s0"]
        assert body(await world.call("Status.Leader", Read())) == "s0:4647"
        assert body(await world.call("Status.Peers", Read())) == ["s0:4647"]


async def test_a_server_that_falls_silent_is_failed_and_one_that_returns_is_alive() -> None:
    async with running(3) as world:
        await asyncio.sleep(2)
        gone = world.servers.index(next(s for s in world.servers if s is not world.leading))
        other = next(n for n in range(3) if n != gone)
        await world.servers[gone].crash(power=False)
        await asyncio.sleep(4)
        assert statuses(world, other)[f"s{gone}"] == "alive"
        await asyncio.sleep(4)
        assert statuses(world, other)[f"s{gone}"] == "failed"
        members = body(await world.call("Status.Members", Read()))["Members"]
        assert {m["Name"]: m["Status"] for m in members}[f"s{gone}.global"] == "failed"
        # Agents are told of the living ones only, the leader first.
        known = world.leader.server.members.addresses()
        assert [known[0].name, len(known)] == [world.leading.name, 2]
        await world.servers[gone].start()
        await asyncio.sleep(3)
        assert statuses(world, other)[f"s{gone}"] == "alive"


async def test_a_server_made_to_leave_is_left_until_it_speaks_again() -> None:
    async with running(3) as world:
        await asyncio.sleep(2)
        gone = next(s for s in world.servers if s is not world.leading)
        members = world.leader.server.members
        await gone.crash(power=False)
        await asyncio.sleep(8)
        members.force_leave(f"{gone.name}.global", prune=False)
        members.force_leave("nobody", prune=False)
        found = {m.hello.name: m.status for m in members.all()}
        assert found[gone.name] == "left"
        await asyncio.sleep(3)
        assert {m.hello.name: m.status for m in members.all()}[gone.name] == "left"
        await gone.start()
        await asyncio.sleep(3)
        assert {m.hello.name: m.status for m in members.all()}[gone.name] == "alive"


async def test_a_pruned_server_is_forgotten() -> None:
    async with running(3) as world:
        await asyncio.sleep(2)
        gone = next(s for s in world.servers if s is not world.leading)
        await gone.crash(power=False)
        await asyncio.sleep(8)
        for server in world.cluster.live():
            assert server.process is not None
            server.process.server.members.force_leave(gone.name, prune=True)
        await asyncio.sleep(3)
        names = {m.hello.name for m in world.leader.server.members.all()}
        assert gone.name not in names


async def test_a_server_of_another_region_is_no_member() -> None:
    async with running(1) as world:
        stranger = ServerHello(
            id="x",
            name="far",
            region="elsewhere",
            datacenter="dc1",
            rpc="far:1",
            http="",
            version="1",
        )
        members = world.leader.server.members
        reply = members.heard(stranger)
        assert reply.me.name == "s0"
        assert [m.hello.name for m in members.all()] == ["s0"]


# -- one server with others made up ------------------------------------------------------------------------


class FakeRaft:
    initialized = False
    leader = None
    last_index = 0
    term = 0
    removed: frozenset[str] = frozenset()


class FakeCore:
    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.raft = FakeRaft()


class Silence:
    async def call(self, *_: Any, **__: Any) -> Any:
        raise NoLeaderError("nobody there")


class Lone:
    """One server's members, told of others by hand."""

    def __init__(self, expect: int = 3) -> None:
        self.started: list[list[str]] = []
        self.fails = False
        settings = ServerSettings(
            id="a", name="a", rpc_address="a:1", bootstrap_expect=expect, retry_join=[]
        )
        self.core = FakeCore(settings)
        self.members = Members(
            self.core,  # type: ignore[arg-type]
            Silence(),
            self._bootstrap,
            lambda: [],
            clock=SimClock(asyncio.get_running_loop()),
        )

    async def _bootstrap(self, servers: list[ServerAddress]) -> None:
        if self.fails:
            self.core.raft.initialized = True
            raise ConflictError("raft: this server has a configuration already")
        self.started.append([s.id for s in servers])
        self.core.raft.initialized = True

    def hear(self, name: str, *, known: str = "abc", **fields: Any) -> None:
        self.members.heard(
            ServerHello(
                id=name,
                name=name,
                region="global",
                datacenter="dc1",
                rpc=f"{name}:1",
                http="",
                version="1",
                known=list(known),
                **{"expect": 3, **fields},
            )
        )

    async def live(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.members.run()
        except TimeoutError:
            return


async def test_all_start_from_one_list_in_one_order() -> None:
    lone = Lone()
    lone.hear("c")
    lone.hear("b")
    await lone.live(2)
    assert lone.started == [["a", "b", "c"]]


@pytest.mark.parametrize(
    "other",
    [
        {"known": "ab"},
        {"known": "abcd"},
        {"expect": 1},
        {"initialized": True, "configuration": [ServerAddress(name="c", rpc="c:1", id="c")]},
    ],
)
async def test_nobody_starts_while_another_sees_it_differently(other: dict[str, Any]) -> None:
    lone = Lone()
    lone.hear("b")
    lone.hear("c", **other)
    await lone.live(10)
    assert lone.started == []


async def test_a_server_that_is_to_wait_for_others_never_starts_by_itself() -> None:
    lone = Lone(expect=0)
    await lone.live(10)
    assert lone.started == []


async def test_a_configuration_that_came_in_the_same_moment_is_no_fault() -> None:
    lone = Lone()
    lone.fails = True
    lone.hear("b")
    lone.hear("c")
    await lone.live(5)
    assert lone.core.raft.initialized
