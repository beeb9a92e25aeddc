"""Variables on whole servers: what is written where, locks in time and over a change of leaders, rotation of keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from server.server_world import World, running

from nomadpy.daemon.server_process import ServerProcess
from nomadpy.errors import (
    ConfigError,
    InvalidRequestError,
    NomadError,
    NotFoundError,
    UnreachableError,
)
from nomadpy.fsm.commands import RootKeyUpsert
from nomadpy.models.calls import VariableApply, VariableReply, Write
from nomadpy.models.envelope import WriteOptions
from nomadpy.models.root_key import RootKey
from nomadpy.pki.keyring import Keyring
from nomadpy.server.endpoints.variables import path_fault

SECOND = 1_000_000_000
ZERO = {
    "Namespace": "default",
    "Path": "p",
    "CreateIndex": 0,
    "ModifyIndex": 0,
    "CreateTime": 0,
    "ModifyTime": 0,
}


class Client:
    """Writes one path, at one server."""

    def __init__(self, world: World, path: str = "p", at: ServerProcess | None = None) -> None:
        self.world = world
        self.path = path
        self.at = at

    async def raw(self, op: str, **more: Any) -> VariableReply:
        options = WriteOptions(
            namespace=more.pop("namespace", "default"), request_id=more.pop("request_id", "")
        )
        request = VariableApply(path=self.path, op=op, options=options, **more)
        reply = await self.world.call("Variables.Apply", request, at=self.at)
        assert isinstance(reply, VariableReply)
        return reply

    async def do(self, op: str, **more: Any) -> Any:
        """The decoded answer of a write that must be done."""
        reply = await self.raw(op, **more)
        assert not reply.conflict, reply.body
        return msgspec.json.decode(reply.body) if reply.body else None

    async def conflict(self, op: str, **more: Any) -> Any:
        """The decoded body of a write that must be refused by a check or a lock."""
        reply = await self.raw(op, **more)
        assert reply.conflict, reply.body
        return msgspec.json.decode(reply.body)

    async def get(self, **options: Any) -> Any:
        return await self.world.get("Variables.Get", self.path, at=self.at, **options)

    async def lock(self, ttl_s: int = 10, delay_s: int = 1, **more: Any) -> str:
        more.setdefault("items", {"who": "a"})
        answer = await self.do("lock-acquire", ttl=ttl_s * SECOND, delay=delay_s * SECOND, **more)
        lock_id = answer["Lock"]["ID"]
        assert isinstance(lock_id, str)
        return lock_id


async def until(look: Any, *, seconds: float = 60.0) -> float:
    """Wait until the coroutine function gives something true; return how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not await look():
        assert loop.time() < began + seconds, f"waited {seconds} virtual seconds"
        await asyncio.sleep(0.1)
    return loop.time() - began


# -- reads and writes -----------------------------------------------------------------------------------


async def test_what_one_server_wrote_every_server_reads_at_once() -> None:
    async with running(3) as world:
        for number, server in enumerate([world.leader, *world.followers]):
            client = Client(world, at=server)
            await client.do("set", items={"n": str(number)})
            for other in [world.leader, *world.followers]:
                found = await Client(world, at=other).get()
                assert found["Items"] == {"n": str(number)}


async def test_a_write_to_a_new_cluster_waits_for_its_first_key() -> None:
    seconds = 3.0

    def slow(server: Any) -> None:
        keys = server.process.server.duties.keys
        make = keys._make_root_key

        async def later() -> RootKey:
            await asyncio.sleep(seconds)
            key: RootKey = await make()
            return key

        keys._make_root_key = later

    async with running(form=False) as world:
        world.cluster.wire = slow
        await world.cluster.start()
        await world.has_leader()
        assert world.state.active_root_key() is None
        await Client(world).do("set", items={"a": "b"})
        assert (await Client(world).get())["Items"] == {"a": "b"}


async def test_a_write_does_not_wait_for_ever_for_a_key() -> None:
    async def never() -> RootKey:
        raise UnreachableError("no key today")

    def broken(server: Any) -> None:
        server.process.server.duties.keys._make_root_key = never

    async with running(form=False) as world:
        world.cluster.wire = broken
        await world.cluster.start()
        await world.has_leader()
        with pytest.raises(NomadError, match="no root key yet"):
            await Client(world).do("set", items={"a": "b"})


async def test_a_stale_read_says_how_old_it_may_be() -> None:
    async with running(3) as world:
        await Client(world).do("set", items={"a": "b"})
        await world.caught_up()
        (follower, *_) = world.followers
        answer = await world.read("Variables.Get", "p", at=follower, allow_stale=True)
        assert answer.last_contact_ms >= 0
        assert msgspec.json.decode(answer.body)["Items"] == {"a": "b"}


async def test_a_missing_variable_is_not_found_and_can_be_waited_for() -> None:
    async with running() as world:
        with pytest.raises(NotFoundError) as error:
            await world.read("Variables.Get", "p")
        assert error.value.message == "variable not found"
        index = error.value.details["index"]
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(
                world.get("Variables.Get", "p", min_index=index, wait_ns=60 * SECOND)
            )
            await asyncio.sleep(1)
            await Client(world, "other").do("set", items={"x": "y"})
            await asyncio.sleep(1)
            assert not waiting.done()
            await Client(world).do("set", items={"a": "b"})
        assert waiting.result()["Items"] == {"a": "b"}


async def test_a_list_shows_neither_items_nor_lock_ids_and_goes_by_pages() -> None:
    async with running() as world:
        for path in ("b", "a/1", "a/2", "a-/3", "c"):
            await Client(world, path).do("set", items={"secret": "value"})
        lock_id = await Client(world, "c").lock()
        answer = await world.read("Variables.List")
        rows = msgspec.json.decode(answer.body)
        assert [row["Path"] for row in rows] == ["a-/3", "a/1", "a/2", "b", "c"]
        assert b"value" not in answer.body
        assert lock_id.encode() not in answer.body
        assert rows[-1]["Lock"] == {"TTL": "10s", "LockDelay": "1s"}
        assert set(rows[0]) == set(ZERO)
        assert [r["Path"] for r in await world.get("Variables.List", prefix="a/")] == ["a/1", "a/2"]
        filtered = await world.get("Variables.List", filter='Path matches "^a"', namespace="*")
        assert len(filtered) == 3
        seen: list[str] = []
        token = ""
        while True:
            page = await world.read("Variables.List", per_page=2, next_token=token)
            seen += [row["Path"] for row in msgspec.json.decode(page.body)]
            token = page.next_token
            if not token:
                break
        assert seen == ["a-/3", "a/1", "a/2", "b", "c"]
        assert await world.get("Variables.List", namespace="other") == []


async def test_paths_are_found_by_a_search() -> None:
    async with running() as world:
        for path in ("app/one", "app/two", "other"):
            await Client(world, path).do("set", items={"a": "b"})
        found = await world.get("Search.Prefix", "app/", flags={"context": "vars"})
        assert found["Matches"] == {"vars": ["app/one", "app/two"]}
        found = await world.get("Search.Prefix", "app/", flags={"context": "all"}, namespace="none")
        assert found["Matches"]["vars"] == []


async def test_check_and_set_tells_what_is_in_the_way() -> None:
    async with running() as world:
        client = Client(world)
        assert await client.conflict("set", items={"a": "b"}, cas=5) == ZERO
        first = await client.do("set", items={"a": "b"}, cas=0)
        reply = await client.raw("set", items={"a": "c"}, cas=0)
        assert (reply.conflict, reply.index) == (True, first["ModifyIndex"])
        assert msgspec.json.decode(reply.body) == first
        second = await client.do("set", items={"a": "c"}, cas=first["ModifyIndex"])
        assert second["CreateIndex"] == first["CreateIndex"]
        assert await client.conflict("delete", cas=first["ModifyIndex"]) == second
        assert await client.do("delete", cas=second["ModifyIndex"]) is None
        assert await client.do("delete") is None
        assert await client.conflict("delete", cas=7) == ZERO


async def test_of_many_who_check_the_same_index_one_wins() -> None:
    async with running(3) as world:
        first = await Client(world).do("set", items={"n": "0"})
        servers = [world.leader, *world.followers]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    Client(world, at=servers[n % 3]).raw(
                        "set", items={"n": str(n)}, cas=first["ModifyIndex"]
                    )
                )
                for n in range(12)
            ]
        assert sum(not task.result().conflict for task in tasks) == 1


async def test_a_repeated_request_is_one_write() -> None:
    async with running() as world:
        client = Client(world)
        one = await client.do("set", items={"a": "b"}, request_id="same")
        two = await client.do("set", items={"a": "b"}, request_id="same")
        assert one == two
        taken = await client.lock(request_id="lock")
        assert await client.lock(request_id="lock") == taken


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"op": "set", "items": {}}, "RPC Error:: 400,empty variables are invalid"),
        (
            {"op": "set", "items": {"a": "x" * 65536}},
            "RPC Error:: 400,variables are limited to 64KiB in total size",
        ),
        (
            {"op": "set", "items": {"a": "é" * 32768}},
            "RPC Error:: 400,variables are limited to 64KiB in total size",
        ),
        (
            {"op": "set", "items": {"a": "b"}, "namespace": "*"},
            'RPC Error:: 400,can not target wildcard ("*")namespace',
        ),
        (
            {"op": "set", "items": {"a": "b"}, "namespace": "none"},
            'variable "p" is in nonexistent namespace "none"',
        ),
        (
            {"op": "lock-acquire", "ttl": 9 * SECOND},
            "RPC Error:: 400,TTL must be between 10 seconds and 24 hours",
        ),
        (
            {"op": "lock-acquire", "ttl": 86_401 * SECOND},
            "RPC Error:: 400,TTL must be between 10 seconds and 24 hours",
        ),
        ({"op": "lock-acquire", "ttl": -1}, "RPC Error:: 400,Lock delay and TTL must be positive"),
        (
            {"op": "lock-acquire", "delay": 86_401 * SECOND},
            "RPC Error:: 400,LockDelay must not be above 24 hours",
        ),
        ({"op": "lock-release"}, "RPC Error:: 400,missing lock information"),
        (
            {"op": "lock-release", "items": {}, "lock_id": "x"},
            "RPC Error:: 400,lock release operation doesn't take variable items",
        ),
        ({"op": "lock-renew"}, "RPC Error:: 400,missing lock information"),
        ({"op": "lock-renew", "lock_id": "x"}, "RPC Error:: 404,variable doesn't exist"),
        ({"op": "nonsense"}, "RPC Error:: 400,unknown operation 'nonsense'"),
    ],
)
async def test_a_write_that_breaks_a_rule_is_refused(request_: dict[str, Any], text: str) -> None:
    async with running() as world:
        before = world.state.table_index("variables")
        with pytest.raises(InvalidRequestError) as error:
            await Client(world).raw(**request_)
        assert error.value.message == text
        assert world.state.table_index("variables") == before


async def test_just_64_kibibytes_fit() -> None:
    async with running() as world:
        client = Client(world)
        await client.do("set", items={"a": "x" * 65535})
        assert len((await client.get())["Items"]["a"]) == 65535


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("a", True),
        ("a/b-c_d~e/F9", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ("a.b", False),
        ("a@b", False),
        ("ä", False),
        ("a\n", False),
        ("nomad", False),
        ("nomads/x", True),
        ("nomad/other", False),
        ("nomad/jobs", True),
        ("nomad/jobs/web/group/task", True),
        ("nomad/job-templates", False),
        ("nomad/job-templates/one", True),
        ("nomad/job-templates/one/two", False),
    ],
)
def test_paths(path: str, good: bool) -> None:
    assert (path_fault(path) == "") is good


# -- secrets --------------------------------------------------------------------------------------------


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level("DEBUG"):
        yield caplog


async def test_secrets_are_in_no_log_entry_no_snapshot_no_line_and_no_repr(
    logged: pytest.LogCaptureFixture,
) -> None:
    secret = "correct-horse-battery-staple"
    async with running(3) as world:
        client = Client(world)
        await client.do("set", items={"password": secret})
        await client.conflict("set", items={"password": secret}, cas=0)
        lock_id = await client.lock(items={"password": secret})
        await client.do("set", items={"password": secret}, lock_id=lock_id)
        await world.call("Keyring.Rotate", Write(flags={"full": "true"}))
        await world.until(lambda: _states(world) == ["active", "inactive"])
        for server in world.servers:
            assert server.process is not None
            snapshot = b"".join(server.process.state_machine.snapshot()())
            assert secret.encode() not in snapshot
            assert b"PRIVATE KEY" not in snapshot
            disk = b"".join(_disk(server))
            assert len(disk) > 1000
            assert secret.encode() not in disk
            assert b"PRIVATE KEY" not in disk
        row = world.state.variable("default", "p")
        request = VariableApply(path="p", op="set", items={"a": secret}, lock_id=lock_id)
        reply = await client.raw("set", items={"password": secret}, lock_id=lock_id)
        shown = f"{row!r} {request!r} {reply!r} {world.state.root_keys()!r}"
        assert secret not in shown
        assert lock_id not in shown
        assert secret not in logged.text
        assert lock_id not in logged.text


def _disk(server: Any) -> Iterator[bytes]:
    for content in server.files._names.values():
        yield bytes(content.data)


async def test_moved_ciphertext_is_an_error_that_says_so() -> None:
    async with running() as world:
        await Client(world, "a").do("set", items={"x": "y"})
        row = world.state.variable("default", "a")
        assert row is not None
        endpoint_ring = Keyring()
        key = world.state.root_key(row.sealed.key_id)
        assert key is not None
        opened = endpoint_ring.open(key)
        assert endpoint_ring.decrypt(opened, "default", "a", row.sealed) == {"x": "y"}
        with pytest.raises(NomadError, match="moved from another path"):
            endpoint_ring.decrypt(opened, "default", "b", row.sealed)


# -- locks ----------------------------------------------------------------------------------------------


async def test_a_lock_is_taken_kept_and_released() -> None:
    async with running() as world:
        client = Client(world)
        taken = await client.do(
            "lock-acquire", items={"who": "a"}, ttl=15 * SECOND, delay=1 * SECOND
        )
        lock = taken["Lock"]
        assert (lock["TTL"], lock["LockDelay"]) == ("15s", "1s")
        assert await client.conflict("lock-acquire", items={"who": "b"}) == ZERO
        assert await client.conflict("set", items={"who": "c"}) == ZERO
        assert await client.conflict("delete") == ZERO
        assert await client.conflict("lock-renew", lock_id="other") == ZERO
        assert await client.conflict("lock-release", lock_id="other") == ZERO
        renewed = await client.do("lock-renew", lock_id=lock["ID"])
        assert renewed == {k: v for k, v in taken.items() if k != "Items"}
        released = await client.do("lock-release", lock_id=lock["ID"])
        assert released["ModifyIndex"] > taken["ModifyIndex"]
        assert (released["ModifyTime"], "Lock" in released) == (taken["ModifyTime"], False)
        assert (await client.get())["Items"] == {"who": "a"}
        assert await client.conflict("lock-renew", lock_id=lock["ID"]) == ZERO
        # No delay follows a release.
        await client.lock()


async def test_times_have_defaults_and_a_lock_without_items_keeps_them() -> None:
    async with running() as world:
        client = Client(world)
        await client.do("set", items={"a": "b"})
        taken = await client.do("lock-acquire")
        assert taken["Items"] == {"a": "b"}
        assert (taken["Lock"]["TTL"], taken["Lock"]["LockDelay"]) == ("15s", "15s")
        assert "Items" not in await Client(world, "q").do("lock-acquire")
        assert "Items" not in await Client(world, "q").get()


async def test_a_lock_expires_a_ttl_after_its_last_renewal_and_then_its_delay_runs() -> None:
    async with running() as world:
        client = Client(world)
        lock_id = await client.lock(ttl_s=10, delay_s=20)
        for _ in range(5):
            await asyncio.sleep(8)
            await client.do("lock-renew", lock_id=lock_id)
        await asyncio.sleep(9.5)
        await client.do("set", items={"who": "still a"}, lock_id=lock_id)
        await asyncio.sleep(1)
        # The holder has lost it, and nobody else has it yet.
        assert await client.conflict("set", items={"who": "late"}, lock_id=lock_id) == ZERO
        assert await client.conflict("lock-renew", lock_id=lock_id) == ZERO
        assert await client.conflict("lock-acquire", lock_id=lock_id) == ZERO
        assert await client.conflict("set", items={"who": "other"}) == ZERO

        async def free() -> bool:
            return not (await client.raw("lock-acquire", items={"who": "b"})).conflict

        took = await until(free)
        assert 18.5 < took < 21
        assert (await client.get())["Items"] == {"who": "b"}


async def test_many_locks_expire_each_in_its_time() -> None:
    async with running() as world:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(20):
            await Client(world, f"p{number}").lock(ttl_s=10 + number % 4, delay_s=1)
        await world.until(lambda: not world.state.locked_variables(), seconds=20)
        assert 13.5 < loop.time() - began < 16
        assert len(world.leader.server.duties.locks) == 0


async def test_a_new_leader_gives_every_lock_its_full_time_again() -> None:
    async with running(3) as world:
        loop = asyncio.get_running_loop()
        held = Client(world, "held")
        lock_id = await held.lock(ttl_s=20, delay_s=10)
        delayed = Client(world, "delayed")
        await delayed.lock(ttl_s=10, delay_s=15)
        await asyncio.sleep(15)  # the second is in its delay, the first has 5 seconds left
        old = world.leader
        await world.leading.crash(power=True)
        await world.has_leader(not_=old)
        begun = loop.time()
        client = Client(world, "held")
        await asyncio.sleep(10)
        assert await client.conflict("set", items={"who": "thief"}) == ZERO | {"Path": "held"}
        await client.do("lock-renew", lock_id=lock_id)
        await client.do("set", items={"who": "holder"}, lock_id=lock_id)

        async def free() -> bool:
            reply = await Client(world, "delayed").raw("lock-acquire", items={"who": "b"})
            return not reply.conflict

        await until(free)
        assert loop.time() - begun > 14

        async def gone() -> bool:
            return not (await client.raw("lock-acquire", items={"who": "b"})).conflict

        await until(gone)
        # The renewal, a full TTL after it, and the delay.
        assert 39 < loop.time() - begun < 43


async def test_a_leader_cut_off_renews_nothing_though_it_still_believes() -> None:
    async with running(3) as world:
        client = Client(world, at=world.leader)
        lock_id = await client.lock(ttl_s=10, delay_s=1)
        old = world.leading
        others = [s.name for s in world.servers if s is not old]
        world.cluster.network.partition([old.name], others)
        stale = asyncio.ensure_future(client.raw("lock-renew", lock_id=lock_id))
        await asyncio.sleep(0)

        def new_leader() -> Any:
            leader = world.cluster.leader()
            return leader if leader is not None and leader is not old else None

        await world.until(new_leader)
        second = Client(world, at=world.leader)

        async def free() -> bool:
            return not (await second.raw("lock-acquire", items={"who": "b"})).conflict

        await until(free)
        world.cluster.network.heal()
        (outcome,) = await asyncio.gather(stale, return_exceptions=True)
        assert isinstance(outcome, NomadError) or outcome.conflict
        assert (await second.get())["Items"] == {"who": "b"}


async def test_a_lock_outlives_snapshots_and_restarts_of_all_servers() -> None:
    async with running(3) as world:
        client = Client(world)
        lock_id = await client.lock(ttl_s=30, delay_s=1)
        for number in range(150):
            await Client(world, f"x{number}").do("set", items={"n": str(number)})
        for server in world.servers:
            await server.crash(power=True)
        for server in world.servers:
            await server.start()
        await world.has_leader()
        assert await client.conflict("set", items={"who": "thief"}) == ZERO
        await client.do("set", items={"who": "holder"}, lock_id=lock_id)
        assert (await Client(world, "x149").get())["Items"] == {"n": "149"}


async def test_a_restored_state_has_its_locks_for_their_full_time() -> None:
    async with running() as world:
        client = Client(world)
        lock_id = await client.lock(ttl_s=10, delay_s=1)
        await asyncio.sleep(8)
        world.leader.store.replace(world.state)
        await asyncio.sleep(8)
        await client.do("set", items={"who": "holder"}, lock_id=lock_id)
        await world.until(lambda: not world.state.locked_variables(), seconds=5)


# -- keys -----------------------------------------------------------------------------------------------


def _states(world: World) -> list[str]:
    return sorted(key.state for key in world.state.root_keys())


async def test_keys_are_wrapped_in_the_state_and_carry_a_data_key() -> None:
    async with running() as world:
        (key,) = world.state.root_keys()
        assert key.wrapped is not None
        assert (key.data_key, key.signing_key_pem, key.ca_key_pem) == (b"", b"", b"")
        assert len(Keyring().open(key).data_key) == 32
        keys = await world.get("Keyring.JWKS")
        assert [k["kid"] for k in keys["keys"]] == [key.key_id]
        listed = await world.get("Keyring.List")
        assert set(listed[0]) == {
            "KeyID",
            "Algorithm",
            "CreateTime",
            "CreateIndex",
            "ModifyIndex",
            "State",
            "PublishTime",
        }


async def test_a_rotation_keeps_old_variables_readable_and_uses_the_new_key() -> None:
    async with running() as world:
        await Client(world, "old").do("set", items={"a": "1"})
        (first,) = world.state.root_keys()
        answer = await world.write("Keyring.Rotate")
        new_id = answer["Key"]["KeyID"]
        assert answer["Key"]["State"] == "active"
        await Client(world, "new").do("set", items={"a": "2"})
        row = world.state.variable("default", "new")
        assert row is not None
        assert row.sealed.key_id == new_id
        assert (await Client(world, "old").get())["Items"] == {"a": "1"}
        with pytest.raises(NomadError, match="root key in use, cannot delete"):
            await world.write("Keyring.Delete", first.key_id)
        with pytest.raises(NomadError, match="active root key cannot be deleted"):
            await world.write("Keyring.Delete", new_id)
        await Client(world, "old").do("set", items={"a": "3"})
        await world.write("Keyring.Delete", first.key_id)
        assert _states(world) == ["active"]


async def test_a_full_rotation_encrypts_everything_anew_and_changes_no_index() -> None:
    async with running(3) as world:
        for number in range(230):
            await Client(world, f"p{number}").do("set", items={"n": str(number)})
        lock_id = await Client(world, "locked").lock(ttl_s=600)
        before = {v.path: v for v in world.state.variables()}
        answer = await world.write("Keyring.Rotate", flags={"full": "true"})
        await world.until(lambda: _states(world) == ["active", "inactive"])
        for variable in world.state.variables():
            was = before[variable.path]
            assert variable.sealed.key_id == answer["Key"]["KeyID"]
            assert msgspec.structs.replace(variable, sealed=was.sealed) == was
            assert variable.sealed.data != was.sealed.data
        assert (await Client(world, "p229").get())["Items"] == {"n": "229"}
        await Client(world, "locked").do("set", items={"a": "b"}, lock_id=lock_id)
        await world.caught_up()
        sums = {s.process.state_machine.checksum() for s in world.servers if s.process is not None}
        assert len(sums) == 1


async def test_writes_go_on_during_a_full_rotation() -> None:
    async with running(3) as world:
        for number in range(120):
            await Client(world, f"p{number}").do("set", items={"n": "old"})
        stop = False

        async def write(name: int) -> int:
            count = 0
            client = Client(world, f"p{name}", at=world.followers[name % 2])
            while not stop:
                await client.do("set", items={"n": str(count)})
                count += 1
            return count

        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(write(n)) for n in range(6)]
            await asyncio.sleep(0.2)
            for _ in range(3):
                await world.write("Keyring.Rotate", flags={"full": "true"})
            await world.until(lambda: _states(world) == ["active", *["inactive"] * 3])
            stop = True
        active = world.state.active_root_key()
        assert active is not None
        assert all(v.sealed.key_id == active.key_id for v in world.state.variables())
        for number, writer in enumerate(writers):
            found = await Client(world, f"p{number}").get()
            assert found["Items"] == {"n": str(writer.result() - 1)}


async def test_a_new_leader_finishes_a_rotation() -> None:
    async with running(3) as world:
        for number in range(60):
            await Client(world, f"p{number}").do("set", items={"n": str(number)})
        old = world.leader
        await world.write("Keyring.Rotate", flags={"full": "true"})
        await world.leading.crash(power=True)
        await world.has_leader(not_=old)
        await world.until(lambda: _states(world) == ["active", "inactive"], seconds=60)
        assert (await Client(world, "p59").get())["Items"] == {"n": "59"}


async def test_a_published_key_becomes_active_in_its_time() -> None:
    async with running() as world:
        now_ns = world.leader.server.core.clock.now_ns()
        flags = {"publish_time": str(now_ns + 60 * SECOND)}
        answer = await world.write("Keyring.Rotate", flags=flags)
        assert answer["Key"]["State"] == "prepublished"
        assert _states(world) == ["active", "prepublished"]
        assert len((await world.get("Keyring.JWKS"))["keys"]) == 2
        await asyncio.sleep(50)
        assert _states(world) == ["active", "prepublished"]
        await asyncio.sleep(20)
        active = world.state.active_root_key()
        assert active is not None
        assert active.key_id == answer["Key"]["KeyID"]


async def test_a_key_is_rotated_by_age_and_removed_when_nothing_needs_it() -> None:
    async with running(
        root_key_rotation_s=1000.0,
        root_key_gc_interval_s=10.0,
        root_key_gc_s=100.0,
        task_certificate_ttl_s=200.0,
    ) as world:
        (first,) = world.state.root_keys()
        await Client(world).do("set", items={"a": "b"})
        await world.until(lambda: _states(world) == ["active", "prepublished"], seconds=700)
        await world.until(lambda: _states(world) == ["active", "inactive"], seconds=700)
        # It encrypts a variable, so it stays, whatever its age.
        await asyncio.sleep(400)
        assert world.state.root_key(first.key_id) is not None
        await Client(world).do("set", items={"a": "c"})
        await world.until(lambda: world.state.root_key(first.key_id) is None, seconds=30)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"algo": "rot13"}, 'root keys have the algorithm "aes256-gcm"'),
        ({"full": "true", "publish_time": "5"}, "at the same time"),
        ({"publish_time": "tomorrow"}, "nanoseconds since 1970"),
    ],
)
async def test_a_rotation_that_makes_no_sense_is_refused(flags: dict[str, str], words: str) -> None:
    async with running() as world:
        with pytest.raises(InvalidRequestError, match=words):
            await world.write("Keyring.Rotate", flags=flags)
        assert len(world.state.root_keys()) == 1


async def test_a_variable_whose_key_was_removed_by_force_says_so() -> None:
    async with running() as world:
        await Client(world).do("set", items={"a": "b"})
        (first,) = world.state.root_keys()
        await world.write("Keyring.Rotate")
        await world.write("Keyring.Delete", first.key_id, flags={"force": "true"})
        with pytest.raises(NotFoundError, match="removed by force"):
            await Client(world).get()
        # It can be written anew, or removed.
        await Client(world).do("set", items={"a": "b"})
        assert (await Client(world).get())["Items"] == {"a": "b"}


def _with_file(world: World, key: bytes | None) -> None:
    """Give every server's process the key of a file, as its next boot would."""
    for server in world.servers:
        assert server.process is not None
        ring = server.process.server.duties.keys._keyring
        ring.__init__(key)  # type: ignore[misc]


async def test_a_file_given_later_takes_every_key_out_of_the_state() -> None:
    kek = bytes(range(32))
    async with running(3) as world:
        await Client(world).do("set", items={"a": "b"})
        await world.write("Keyring.Rotate")
        _with_file(world, kek)
        world.leader.server.duties.keys.keys_changed()
        await world.until(
            lambda: all(k.wrapped and k.wrapped.provider == "file" for k in world.state.root_keys())
        )
        assert kek not in b"".join(world.leader.state_machine.snapshot()())
        assert (await Client(world).get())["Items"] == {"a": "b"}
        assert len((await world.get("Keyring.JWKS"))["keys"]) == 2
        # A server without the file can neither read nor write, and says which it lacks.
        _with_file(world, None)
        with pytest.raises(ConfigError, match="every server needs the same file"):
            await Client(world).get()
        with pytest.raises(ConfigError, match="every server needs the same file"):
            await Client(world).do("set", items={"a": "c"})
        _with_file(world, b"x" * 32)
        with pytest.raises(ConfigError, match="this server's file has the key"):
            await Client(world).get()
        # Nothing was made worse by trying.
        _with_file(world, kek)
        assert (await Client(world).get())["Items"] == {"a": "b"}


async def test_a_key_that_was_stored_before_keys_were_wrapped_is_wrapped_by_the_leader() -> None:
    async with running() as world:
        old = RootKey(key_id="old", signing_key_pem=b"PRIVATE KEY", state="inactive")
        await world.leader.server.core.propose(RootKeyUpsert(key=old))

        def wrapped() -> bool:
            key = world.state.root_key("old")
            return key is not None and key.wrapped is not None

        await world.until(wrapped)
        assert b"PRIVATE KEY" not in b"".join(world.leader.state_machine.snapshot()())
