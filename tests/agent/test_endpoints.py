"""What a node answers, held against the recorded answers of a real Nomad."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from agent_world import Script, World, allocation, task

from agent.agent import Agent
from nomadpy.errors import NomadError
from nomadpy.models import calls
from nomadpy.rpc.dispatch import CallContext, Dispatcher
from nomadpy.rpc.methods import METHODS
from nomadpy.rpc.network import Identity

ME = CallContext(peer=Identity(role="server", region="global"))
ALLOC = allocation()


class Node:
    """A running agent behind a dispatcher."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.dispatcher = Dispatcher()
        agent.register_endpoints(self.dispatcher)

    async def ask(self, method: str, request: msgspec.Struct) -> Any:
        answer = await self.dispatcher.dispatch_local(method, request, ME)
        return msgspec.json.decode(answer.body) if answer.body else ""

    async def refused(self, method: str, request: msgspec.Struct) -> tuple[int, str]:
        with pytest.raises(NomadError) as caught:
            if METHODS[method].stream:
                await self.stream(method, request)
            else:
                await self.ask(method, request)
        return caught.value.status, caught.value.message

    async def stream(
        self, method: str, request: msgspec.Struct, *sent: bytes, finish: bool = True
    ) -> list[bytes]:
        found = []
        async with self.dispatcher.open_local(method, request, ME) as stream:
            for chunk in sent:
                await stream.send(chunk)
            if finish:
                await stream.finish()
            while (chunk_ := await stream.receive()) is not None:
                found.append(chunk_)
        return found


async def until_running(world: World) -> None:
    world.servers.want(ALLOC)
    await world.servers.until(lambda: world.servers.status(ALLOC.id) == "running")


async def test_every_method_of_a_node_is_served() -> None:
    world = World()
    async with world.running() as agent:
        served = set(Node(agent).dispatcher.methods)
        assert served == {name for name, row in METHODS.items() if row.where == "node"}
        await world.servers.until(lambda: world.servers.beats)


async def test_metadata_answers_as_recorded() -> None:
    world = World()
    async with world.running(meta={"rack": "r1", "tier": "gold"}) as agent:
        await world.servers.until(lambda: world.servers.beats)
        node = Node(agent)
        static = {"rack": "r1", "tier": "gold"}
        assert await node.ask("Client.Meta", calls.NodeRead()) == {
            "Dynamic": {},
            "Meta": static,
            "Static": static,
        }
        change = calls.ClientMetaApply(meta={"colour": "green", "rack": None})
        assert await node.ask("Client.MetaApply", change) == {
            "Dynamic": {"colour": "green", "rack": None},
            "Meta": {"colour": "green", "tier": "gold"},
            "Static": static,
        }
        back = calls.ClientMetaApply(meta={"colour": None, "rack": "r2"})
        assert (await node.ask("Client.MetaApply", back))["Dynamic"] == {"rack": "r2"}
        for bad in ({}, {"": "x"}, {"a..b": "x"}):
            status, _ = await node.refused("Client.MetaApply", calls.ClientMetaApply(meta=bad))
            assert status == 400


async def test_signal_and_restart_answer_as_recorded() -> None:
    world = World()
    async with world.running() as agent:
        node = Node(agent)
        await until_running(world)
        signal = calls.AllocSignal(alloc_id=ALLOC.id, signal="SIGUSR1", task="task")
        assert await node.ask("ClientAlloc.Signal", signal) == {"Index": 0}
        restart = calls.AllocRestart(alloc_id=ALLOC.id, task="task")
        assert await node.ask("ClientAlloc.Restart", restart) == {"Index": 0}
        unknown = calls.AllocRestart(alloc_id=ALLOC.id, task="nope")
        assert await node.refused("ClientAlloc.Restart", unknown) == (
            500,
            "Could not find task runner for task: nope",
        )
        await world.servers.until(lambda: len(world.driver.started) == 2)


async def test_stats_cover_all_tasks_or_one() -> None:
    world = World()
    async with world.running() as agent:
        node = Node(agent)
        await until_running(world)
        found = await node.ask("ClientAlloc.Stats", calls.NodeRead(alloc_id=ALLOC.id))
        assert found["ResourceUsage"]["MemoryStats"]["RSS"] == 1000
        assert list(found["Tasks"]) == ["task"]
        one = calls.NodeRead(alloc_id=ALLOC.id, flags={"task": "nope"})
        assert (await node.refused("ClientAlloc.Stats", one))[0] == 500
        assert (await node.ask("Client.Stats", calls.NodeRead()))["Uptime"] == 5
        assert await node.ask("ClientAlloc.Checks", calls.NodeRead(alloc_id=ALLOC.id)) is None


async def test_an_allocation_that_is_not_here_is_not_found() -> None:
    world = World()
    async with world.running() as agent:
        node = Node(agent)
        await world.servers.until(lambda: world.servers.beats)
        for method, request in {
            "ClientAlloc.Stats": calls.NodeRead(alloc_id="x"),
            "ClientAlloc.Checks": calls.NodeRead(alloc_id="x"),
            "ClientAlloc.Signal": calls.AllocSignal(alloc_id="x", signal="SIGINT"),
            "FS.List": calls.FileRead(alloc_id="x"),
            "FS.Logs": calls.LogsRead(alloc_id="x", task="t", type="stdout"),
            "ClientAlloc.Exec": calls.ExecStart(alloc_id="x", task="t", command=["sh"]),
        }.items():
            assert await node.refused(method, request) == (404, 'Unknown allocation "x"')


async def test_logs_come_framed_or_plain_and_unknown_tasks_are_named() -> None:
    world = World()
    world.driver.script("later", Script(start_s=1000.0))
    async with world.running() as agent:
        node = Node(agent)
        await until_running(world)
        logs = calls.LogsRead(alloc_id=ALLOC.id, task="task", type="stdout")
        assert [msgspec.json.decode(f) for f in await node.stream("FS.Logs", logs)] == [
            {"Offset": 6, "Data": "aGVsbG8K", "File": "alloc/logs/task.stdout.0"}
        ]
        plain = msgspec.structs.replace(logs, plain=True)
        assert await node.stream("FS.Logs", plain) == [b"hello\n"]
        unknown = msgspec.structs.replace(logs, task="nope")
        assert await node.refused("FS.Logs", unknown) == (400, 'unknown task name "nope"')
        other = allocation(task("later"), number=5)
        world.servers.want(other)
        await world.servers.until(lambda: other.id in world.servers.reported)
        early = calls.LogsRead(alloc_id=other.id, task="later", type="stdout")
        status, text = await node.refused("FS.Logs", early)
        assert (status, text) == (404, 'task "later" not started yet. No logs available')


async def test_no_exec_session_begins_where_the_operator_forbids_it() -> None:
    world = World()
    async with world.running(remote_exec=False) as agent:
        node = Node(agent)
        await until_running(world)
        start = calls.ExecStart(alloc_id=ALLOC.id, task="task", command=["echo", "hi"])
        assert await node.refused("ClientAlloc.Exec", start) == (403, "Permission denied")


async def test_an_exec_session_speaks_the_messages_of_the_wire() -> None:
    world = World()
    async with world.running() as agent:
        node = Node(agent)
        await until_running(world)
        start = calls.ExecStart(alloc_id=ALLOC.id, task="task", command=["echo", "hi"], tty=True)
        sent = [
            b"{}",
            b'{"tty_size":{"height":24,"width":80}}',
            b'{"stdin":{"data":"YWJj"}}',
            b'{"stdin":{"close":true}}',
        ]
        out = await node.stream("ClientAlloc.Exec", start, *sent, finish=False)
        assert [msgspec.json.decode(message) for message in out] == [
            {"stdout": {"data": "ZWNobyBoaQ=="}},
            {"stdout": {"data": "MjR4ODA="}},
            {"stderr": {"data": "QUJD"}},
            {"exited": True, "result": {"exit_code": 3}},
        ]
        # The end of what the user sends closes the input.
        assert len(await node.stream("ClientAlloc.Exec", start)) == 2
        for task_, status in (("nope", 404), ("", 400)):
            bad = calls.ExecStart(alloc_id=ALLOC.id, task=task_, command=[] if not task_ else ["x"])
            assert (await node.refused("ClientAlloc.Exec", bad))[0] == status
        with pytest.raises(NomadError, match="not understood"):
            await node.stream("ClientAlloc.Exec", start, b"garbage", finish=False)


async def test_only_ended_allocations_are_collected_on_request() -> None:
    world = World()
    world.driver.script("quick", Script(runs_s=0.5))
    quick = allocation(task("quick"), number=9, kind="batch")
    async with world.running() as agent:
        node = Node(agent)
        await until_running(world)
        world.servers.want(quick)
        await world.servers.until(lambda: world.servers.status(quick.id) == "complete")
        status, _ = await node.refused(
            "ClientAlloc.GarbageCollect", calls.NodeRead(alloc_id=ALLOC.id)
        )
        assert status == 500
        await asyncio.sleep(1)
        assert await node.ask("Client.GarbageCollect", calls.NodeRead()) == ""
        assert list(agent.sync.runners) == [ALLOC.id]
