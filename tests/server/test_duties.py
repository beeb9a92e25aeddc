"""What a server does only while it leads: it finds all of it in the state when it wins, and stops all of it when it loses."""

from __future__ import annotations

import asyncio

from server_world import World, WorldServer, job, rolling, running

from nomadpy.models.calls import JobDeregister, NodeDrainWrite
from nomadpy.models.node import DrainSpec


async def change_leader(world: World) -> None:
    """The leader dies and comes back as a follower of another."""
    old = world.leading
    process = old.process
    await world.caught_up()
    await old.crash(power=False)
    await world.has_leader(not_=process)
    await old.start()


async def test_a_new_cluster_gets_its_id_its_settings_and_a_key_once() -> None:
    async with running(3, scheduler_algorithm="spread") as world:
        await world.until(lambda: world.state.cluster_metadata() is not None)
        config = world.state.scheduler_config()
        assert config.scheduler_algorithm == "spread"
        assert config.preemption_config.system_scheduler_enabled
        assert world.state.autopilot_config().cleanup_dead_servers
        keys = list(world.state.root_keys())
        assert [key.state for key in keys] == ["active"]
        cluster = world.state.cluster_metadata()
        await change_leader(world)
        await asyncio.sleep(3)
        assert list(world.state.root_keys()) == keys
        assert world.state.cluster_metadata() == cluster


async def test_the_next_leader_works_on_what_the_last_one_left() -> None:
    async with running(3, schedulers=0) as world:
        node = await world.node()
        answer = await world.register(job())
        await asyncio.sleep(2)
        assert world.state.eval(answer["EvalID"]).status == "pending"  # type: ignore[union-attr]
        for server in world.servers:
            assert isinstance(server, WorldServer)
            server.changes["schedulers"] = 1
        for server in world.servers:
            await server.crash(power=True)
        for server in world.servers:
            await server.start()
        await world.has_leader()
        assert (await world.evaluated(answer["EvalID"])).status == "complete"
        assert len(node.wanted()) == 1


async def test_the_next_leader_knows_what_waits_for_room() -> None:
    async with running(3) as world:
        answer = await world.register(job())
        waiting = (await world.evaluated(answer["EvalID"])).blocked_eval
        await change_leader(world)
        node = await world.node()
        await world.until(lambda: node.wanted(), "the placement")
        assert world.state.eval(waiting).status == "complete"  # type: ignore[union-attr]


async def test_a_server_that_lost_the_lead_does_none_of_its_duties() -> None:
    async with running(3) as world:
        old = world.leading
        assert old.process is not None
        duties = old.process.server.duties
        assert duties.active
        assert duties.broker.enabled
        world.cluster.network.partition([old.name], [s.name for s in world.servers if s is not old])
        await world.has_leader(not_=old.process)
        await world.until(lambda: not duties.active, "the old leader to notice")
        assert not duties.broker.enabled
        assert not duties.blocked.enabled
        world.cluster.network.heal()
        answer = await world.register(job())
        await world.evaluated(answer["EvalID"])
        await world.caught_up()
        assert duties.broker.stats().ready == 0
        assert len(duties.blocked) == 0
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert names.count("plan-applier") == 1
        assert names.count("worker-0") == 1


async def test_a_single_server_that_starts_again_takes_up_its_duties() -> None:
    async with running(1) as world:
        server = world.leading
        await server.crash(power=True)
        await server.start()
        await world.has_leader()
        node = await world.node()
        answer = await world.register(job())
        await world.evaluated(answer["EvalID"])
        assert len(node.wanted()) == 1


async def test_a_drain_goes_on_under_the_next_leader() -> None:
    async with running(3) as world:
        nodes = [await world.node(f"n{number}") for number in range(2)]
        await world.register(job(count=2, cpu=900))
        await world.settled()
        for node in nodes:
            await node.obey()
        drained = next(n for n in nodes if n.wanted())
        spec = DrainSpec(deadline=3600 * 10**9)
        await world.call("Node.Drain", NodeDrainWrite(node_id=drained.id, spec=spec))
        await change_leader(world)
        await world.obeyed(
            nodes,
            lambda: world.state.node(drained.id).drain_strategy is None,  # type: ignore[union-attr]
            "the drain to end",
        )
        assert drained.wanted() == []


async def test_a_deployment_goes_on_under_the_next_leader() -> None:
    async with running(3) as world:
        node = await world.node()
        await world.register(job(count=3, Update=rolling()))
        await world.settled()
        await change_leader(world)
        await world.obeyed(
            [node],
            lambda: (
                (d := world.state.latest_deployment("default", "web")) is not None
                and d.status == "successful"
            ),
            "the deployment",
        )


async def test_what_an_earlier_leader_did_not_finish_of_a_purge_the_next_one_does() -> None:
    async with running(3) as world:
        node = await world.node()
        await world.register(job())
        await world.settled()
        await node.obey()
        await world.call("Job.Deregister", JobDeregister(job_id="web", purge=True))
        await world.settled()
        # Its task has not ended yet, so its allocation must stay.
        await asyncio.sleep(3)
        assert len(world.state.allocs_by_job("default", "web")) == 1
        await change_leader(world)
        await node.obey()
        await world.until(lambda: not world.state.allocs_by_job("default", "web"), "the end")
        assert world.state.evals_by_job("default", "web") == []
