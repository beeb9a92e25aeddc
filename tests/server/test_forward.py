"""Where calls run: writes on the leader, exactly once; calls about a node on that node, whichever server was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from server_world import FakeNode, World, body, job, rolling, running

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import (
    DeadlineError,
    IndefiniteError,
    NoLeaderError,
    NomadError,
    NotFoundError,
    NotLeaderError,
    ValidationError,
)
from nomadpy.models.calls import (
    ExecStart,
    FileRead,
    JobScale,
    JobWrite,
    LogsRead,
    NodeRead,
    Write,
)
from nomadpy.models.envelope import Answer, WriteOptions
from nomadpy.rpc.caller import Stream
from nomadpy.rpc.dispatch import CallContext, Dispatcher
from nomadpy.rpc.pool import Pool
from nomadpy.server.forward import ConnectedNodes

# -- writes ---------------------------------------------------------------------------------------------


async def test_a_write_to_any_server_is_done_by_the_leader_and_answered() -> None:
    async with running(3) as world:
        for number, follower in enumerate(world.followers):
            answer = await world.register(job(f"web-{number}"), at=follower)
            stored = world.state.job("default", f"web-{number}")
            assert stored is not None
            assert answer["JobModifyIndex"] == stored.job_modify_index
            assert world.state.eval(answer["EvalID"]) is not None


async def test_the_leaders_refusal_reaches_the_caller_as_it_is() -> None:
    async with running(3) as world:
        with pytest.raises(ValidationError, match="nonexistent namespace") as caught:
            await world.register(job("web"), at=world.followers[0], namespace="zz")
        assert caught.value.status == 500


@asynccontextmanager
async def answer_lost(world: World, *, power: bool) -> AsyncIterator[Any]:
    """Within the block a write to `follower` is done by the leader, who dies before its answer arrives."""
    old, follower = world.leading, world.followers[0]
    name = follower.server.settings.name
    # What the leader does is slow to reach this follower only: the other one makes the majority.
    world.cluster.network.slow(old.name, name, (0.6, 0.61))
    await asyncio.sleep(1.0)
    before = world.state.index

    async def kill() -> None:
        await world.until(lambda: old.process.store.index > before, "the write")  # type: ignore[union-attr]
        await old.crash(power=power)

    async with asyncio.TaskGroup() as group:
        group.create_task(kill())
        yield follower
    await world.has_leader()


@pytest.mark.parametrize("power", [False, True])
async def test_a_write_whose_answer_died_with_the_leader_happens_once_and_is_answered(
    power: bool,
) -> None:
    async with running(3) as world:
        await world.register(job("web", Meta={"n": "1"}))
        await world.settled()
        async with answer_lost(world, power=power) as follower:
            answer = await world.register(job("web", Meta={"n": "2"}), at=follower)
        stored = world.state.job("default", "web")
        assert stored is not None
        assert (stored.version, stored.meta) == (1, {"n": "2"})
        assert answer["JobModifyIndex"] == stored.job_modify_index
        made = [e for e in world.state.evals_by_job("default", "web") if e.create_index > 0]
        assert len([e for e in made if e.triggered_by == "job-register"]) == 2
        assert answer["EvalID"] in {e.id for e in made}


async def test_the_answer_of_a_repeated_write_names_what_the_first_one_made() -> None:
    async with running(3) as world:
        node = await world.node()
        answer = await world.register(job("web", count=2))
        await world.evaluated(answer["EvalID"])
        alloc = node.allocs()[0]
        async with answer_lost(world, power=False) as follower:
            stopped = body(await world.call("Alloc.Stop", Write(id=alloc.id), at=follower))
        found = world.state.eval(stopped["EvalID"])
        assert found is not None, "the answer names an evaluation that does not exist"
        assert found.triggered_by == "alloc-stop"
        assert sum(e.triggered_by == "alloc-stop" for e in world.state.evals()) == 1


async def test_the_key_that_a_repeated_rotation_names_is_the_one_that_was_stored() -> None:
    async with running(3) as world:
        async with answer_lost(world, power=False) as follower:
            answer = body(await world.call("Keyring.Rotate", Write(), at=follower))
        keys = {key.key_id: key.state for key in world.state.root_keys()}
        assert len(keys) == 2
        assert keys[answer["Key"]["KeyID"]] == "active"


async def test_a_repeat_that_finds_its_own_work_done_does_not_claim_that_nothing_happened() -> None:
    async with running(3) as world:
        await world.node()
        answer = await world.register(job("web", Update=rolling()))
        await world.evaluated(answer["EvalID"])
        deployment = world.state.latest_deployment("default", "web")
        assert deployment is not None
        async with answer_lost(world, power=False) as follower:
            with pytest.raises(NomadError) as caught:
                await world.call("Deployment.Fail", Write(id=deployment.id), at=follower)
        assert world.state.deployment(deployment.id).status == "failed"  # type: ignore[union-attr]
        assert isinstance(caught.value, IndefiniteError)
        assert caught.value.message == "can't fail terminal deployment"


async def test_a_write_that_was_sent_to_a_leader_cut_off_is_done_by_the_next_one() -> None:
    async with running(3, leader_wait_s=8.0) as world:
        old = world.leading
        follower = world.followers[0]
        others = [s.name for s in world.servers if s is not old]
        world.cluster.network.partition([old.name], others)
        answer = await world.register(job("web"), at=follower)
        assert world.state.eval(answer["EvalID"]) is not None
        world.cluster.network.heal()
        await asyncio.sleep(5.0)
        await world.caught_up()
        assert all(
            p.store.snapshot().job("default", "web").version == 0  # type: ignore[union-attr]
            for s in world.cluster.live()
            if (p := s.process) is not None
        )


async def test_without_a_leader_a_write_fails_definitely_within_its_limit() -> None:
    async with running(3, leader_wait_s=4.0) as world:
        last = world.followers[0]
        for server in world.servers:
            if server.process is not last:
                await server.crash(power=False)
        await asyncio.sleep(3.0)
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(NoLeaderError, match="No cluster leader"):
            await world.register(job("web"), at=last)
        assert 4.0 <= loop.time() - start < 5.0


async def test_a_write_waits_for_the_election_to_be_over() -> None:
    async with running(3) as world:
        follower = world.followers[0]
        await world.leading.crash(power=False)
        answer = await world.register(job("web"), at=follower)
        assert answer["EvalID"]


async def test_a_leader_that_lost_its_majority_cannot_say_what_became_of_a_write() -> None:
    async with running(3, leader_wait_s=4.0) as world:
        old = world.leading
        world.cluster.network.partition([old.name], [s.name for s in world.servers if s is not old])
        with pytest.raises(IndefiniteError):
            await world.register(job("web"), at=old.process)


async def test_between_servers_a_call_takes_one_hop() -> None:
    async with running(3) as world:
        network = world.cluster.network.host("third", role="server")
        pool = Pool(network, None, SeededEntropy("third"))
        follower = world.followers[0].server.settings.rpc_address
        request = JobWrite(job=job("web"), options=WriteOptions(request_id="r"))
        with pytest.raises(NotLeaderError) as caught:
            await pool.call(follower, "Job.Register", request, timeout_s=5)
        assert caught.value.details["leader_address"] == world.leading.address
        await pool.close()
        assert world.state.job("default", "web") is None


async def test_a_call_of_this_node_that_takes_too_long_is_a_deadline_error() -> None:
    async with running() as world:
        node = await world.node()

        async def never(_: CallContext, __: NodeRead) -> Answer:
            await asyncio.sleep(1000)
            return Answer()

        async with node.attached(_serving("Client.Stats", never), world.leading.address):
            with pytest.raises(DeadlineError):
                await world.call("Client.Stats", NodeRead(node_id=node.id), timeout_s=2)


async def test_a_count_that_was_set_twice_under_one_name_is_set_once() -> None:
    async with running() as world:
        await world.register(job("web", count=1))
        await world.settled()
        request = JobScale(
            job_id="web", group="group", count=3, options=WriteOptions(request_id="same")
        )
        first = body(await world.call("Job.Scale", request))
        again = body(await world.call("Job.Scale", request))
        assert first["EvalID"] == again["EvalID"]
        assert len(world.state.scaling_events("default", "web")["group"]) == 1


# -- nodes ------------------------------------------------------------------------------------------------


def _serving(method: str, handler: Callable[..., Awaitable[Any]]) -> Dispatcher:
    dispatcher = Dispatcher()
    dispatcher.register(method, handler)
    return dispatcher


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


async def _stats(_: CallContext, request: NodeRead) -> Answer:
    return Answer(body=_encoded({"node": request.node_id}))


async def placed(world: World) -> tuple[FakeNode, str]:
    """A node with one allocation, which every server knows."""
    node = await world.node()
    answer = await world.register(job("web"))
    await world.evaluated(answer["EvalID"])
    await world.caught_up()
    return node, node.allocs()[0].id


async def test_any_server_reaches_a_node_that_is_connected_to_any_other() -> None:
    async with running(3) as world:
        node, _ = await placed(world)
        holder = world.servers[1]
        async with node.attached(_serving("Client.Stats", _stats), holder.address):
            for server in world.servers:
                answer = await world.call(
                    "Client.Stats", NodeRead(node_id=node.id), at=server.process
                )
                assert body(answer) == {"node": node.id}
        # The agent is gone, and with it the way to its node.
        await asyncio.sleep(0.1)
        for server in world.servers:
            with pytest.raises(NotFoundError, match=f"No path to node {node.id}"):
                await world.call("Client.Stats", NodeRead(node_id=node.id), at=server.process)


async def test_the_agent_in_this_process_answers_without_a_connection() -> None:
    class Local:
        async def call(self, method: str, request: Any, *, timeout_s: float | None = None) -> Any:
            return Answer(body=_encoded(method))

    async with running(3) as world:
        node, alloc_id = await placed(world)
        server = world.followers[0]
        server.server.attach_local(node.id, Local())  # type: ignore[arg-type]
        request = NodeRead(alloc_id=alloc_id)
        assert (
            body(await world.call("ClientAlloc.Stats", request, at=server)) == "ClientAlloc.Stats"
        )
        # And the other servers reach it through this one.
        assert body(await world.call("ClientAlloc.Stats", request)) == "ClientAlloc.Stats"


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (NodeRead(node_id="f" * 36), "Unknown node " + "f" * 36),
        (NodeRead(alloc_id="a" * 36), 'Unknown allocation "' + "a" * 36 + '"'),
        (NodeRead(alloc_id="short"), 'Unknown allocation "short"'),
        (NodeRead(), "Node lookup failed"),
    ],
)
async def test_a_node_or_allocation_that_is_not_known_is_named(
    request_: NodeRead, text: str
) -> None:
    async with running() as world:
        with pytest.raises(NotFoundError) as caught:
            await world.call("Client.Stats", request_)
        assert text in caught.value.message


async def test_a_server_that_lags_finds_an_allocation_that_was_just_placed() -> None:
    async with running(3) as world:
        node = await world.node()
        slow = world.followers[0]
        async with node.attached(_serving("ClientAlloc.Stats", _stats), world.leading.address):
            await world.caught_up()
            world.cluster.network.slow(world.leading.name, slow.server.settings.name, (0.3, 0.4))
            answer = await world.register(job("web"))
            await world.evaluated(answer["EvalID"])
            alloc_id = node.allocs()[0].id
            assert slow.store.snapshot().alloc(alloc_id) is None
            assert await world.call("ClientAlloc.Stats", NodeRead(alloc_id=alloc_id), at=slow)


async def test_a_new_connection_of_a_node_outlives_the_end_of_its_old_one() -> None:
    nodes = ConnectedNodes()
    old: Any = object()
    new: Any = object()
    nodes.attach("n", old)
    nodes.attach("n", new)
    nodes.detach(old)
    assert (nodes.get("n"), nodes.get("other")) == (new, None)
    nodes.detach(new)
    assert nodes.get("n") is None


# -- streams ------------------------------------------------------------------------------------------------


async def _echo(_: CallContext, request: ExecStart, stream: Stream) -> None:
    while (chunk := await stream.receive()) is not None:
        await stream.send(b"echo " + chunk)
    await stream.send(b"exit 0")
    await stream.finish()


async def test_a_call_waits_a_moment_for_a_node_that_is_ready_and_not_connected_yet() -> None:
    async def cat(_: CallContext, request: FileRead, stream: Stream) -> None:
        await stream.send(b"found")
        await stream.finish()

    async with running(1) as world:
        node, alloc_id = await placed(world)
        server = world.servers[0].process
        assert server is not None
        await node.heartbeat("ready")

        async def asked() -> bytes | None:
            async with server.server.open("FS.Cat", FileRead(alloc_id=alloc_id)) as stream:
                return await stream.receive()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(asked())
            await asyncio.sleep(0.5)
            async with node.attached(_serving("FS.Cat", cat), world.servers[0].address):
                assert await task == b"found"
        await asyncio.sleep(0.1)
        # One that does not come is not waited for long.
        began = asyncio.get_running_loop().time()
        with pytest.raises(NotFoundError, match=f"No path to node {node.id}"):
            await asked()
        assert asyncio.get_running_loop().time() - began < 5


def exec_on(alloc_id: str) -> ExecStart:
    return ExecStart(alloc_id=alloc_id, task="task", command=["cat"])


@pytest.mark.parametrize("asked", [0, 1, 2])
@pytest.mark.parametrize("holder", [0, 1, 2])
async def test_an_interactive_stream_runs_through_any_server(asked: int, holder: int) -> None:
    async with running(3) as world:
        node, alloc_id = await placed(world)
        server = world.servers[asked].process
        assert server is not None
        address = world.servers[holder].address
        async with (
            asyncio.timeout(30),
            node.attached(_serving("ClientAlloc.Exec", _echo), address),
            server.server.open("ClientAlloc.Exec", exec_on(alloc_id)) as stream,
        ):
            # Sent before anything is known of the other end: it must not get lost on the way to find it.
            for number in range(3):
                await stream.send(f"line {number}".encode())
            for number in range(3):
                assert await stream.receive() == f"echo line {number}".encode()
            await stream.finish()
            assert await stream.receive() == b"exit 0"
            assert await stream.receive() is None


async def test_an_error_of_the_node_ends_the_stream_after_what_was_sent() -> None:
    async def fails(_: CallContext, request: LogsRead, stream: Stream) -> None:
        await stream.send(b"some logs")
        raise NotFoundError(f"task {request.task!r} has no logs")

    async with running(3) as world:
        node, alloc_id = await placed(world)
        request = LogsRead(alloc_id=alloc_id, task="zz", type="stdout")
        async with node.attached(_serving("FS.Logs", fails), world.servers[0].address):
            for server in world.servers:
                assert server.process is not None
                async with server.process.server.open("FS.Logs", request) as stream:
                    assert await stream.receive() == b"some logs"
                    with pytest.raises(NotFoundError, match="task 'zz' has no logs"):
                        await stream.receive()


async def test_much_data_passes_whole_and_in_order_to_a_slow_reader() -> None:
    chunks = [bytes([number % 256]) * 60_000 for number in range(100)]

    async def cat(_: CallContext, request: FileRead, stream: Stream) -> None:
        for chunk in chunks:
            await stream.send(chunk)
        await stream.finish()

    async with running(3) as world:
        node, alloc_id = await placed(world)
        async with node.attached(_serving("FS.Cat", cat), world.servers[0].address):
            server = world.servers[2].process
            assert server is not None
            got = []
            async with server.server.open("FS.Cat", FileRead(alloc_id=alloc_id)) as stream:
                while (chunk := await stream.receive()) is not None:
                    got.append(chunk)
                    await asyncio.sleep(0.01)
            assert got == chunks


async def test_leaving_a_stream_ends_the_work_on_the_node() -> None:
    ended = asyncio.Event()

    async def follow(_: CallContext, request: LogsRead, stream: Stream) -> None:
        try:
            while True:
                await stream.send(b"{}")
                await asyncio.sleep(1.0)
        finally:
            ended.set()

    async with running(3) as world:
        node, alloc_id = await placed(world)
        request = LogsRead(alloc_id=alloc_id, task="task", type="stdout", follow=True)
        async with node.attached(_serving("FS.Logs", follow), world.servers[0].address):
            server = world.servers[1].process
            assert server is not None
            async with server.server.open("FS.Logs", request) as stream:
                assert await stream.receive() == b"{}"
            async with asyncio.timeout(5):
                await ended.wait()


async def test_a_stream_breaks_with_an_error_when_the_node_dies() -> None:
    async with running(3) as world:
        node, alloc_id = await placed(world)
        holder = world.servers[0]
        server = world.servers[1].process
        assert server is not None
        async with (
            node.attached(_serving("ClientAlloc.Exec", _echo), holder.address),
            server.server.open("ClientAlloc.Exec", exec_on(alloc_id)) as stream,
        ):
            await stream.send(b"x")
            assert await stream.receive() == b"echo x"
            world.cluster.network.crash(f"agent-{node.node.name}")
            with pytest.raises(NomadError):
                await stream.receive()


async def test_a_stream_to_a_node_that_nobody_holds_says_so() -> None:
    async with running(3) as world:
        node, alloc_id = await placed(world)
        for server in world.servers:
            assert server.process is not None
            async with server.process.server.open("ClientAlloc.Exec", exec_on(alloc_id)) as stream:
                with pytest.raises(NotFoundError, match=f"No path to node {node.id}"):
                    await stream.receive()


async def test_a_node_that_does_not_serve_the_method_says_so() -> None:
    async with running(3) as world:
        node, alloc_id = await placed(world)
        async with node.attached(Dispatcher(), world.servers[0].address):
            for server in world.servers:
                with pytest.raises(NomadError, match="not served by this node"):
                    await world.call("FS.List", FileRead(alloc_id=alloc_id), at=server.process)
