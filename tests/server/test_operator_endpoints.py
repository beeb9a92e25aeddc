"""Settings, health, pools and searches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from server_world import World, body, job, rolling, running

from nomadpy.errors import InvalidRequestError, NomadError, NotFoundError, ValidationError
from nomadpy.models import calls
from nomadpy.models.node import NodePool
from nomadpy.models.operator import AutopilotConfiguration, SchedulerConfiguration


async def set_scheduler(world: World, cas: int | None = None, **fields: Any) -> Any:
    config = SchedulerConfiguration(**fields)
    request = calls.SchedulerConfigWrite(config=config, cas=cas)
    return body(await world.call("Operator.SetSchedulerConfiguration", request))


async def test_scheduler_settings_are_stored_and_told() -> None:
    async with running() as world:
        shown = await world.get("Operator.SchedulerConfiguration")
        assert shown["SchedulerConfig"]["SchedulerAlgorithm"] == "binpack"
        answer = await set_scheduler(world, scheduler_algorithm="spread")
        assert answer["Updated"] is True
        shown = await world.get("Operator.SchedulerConfiguration")
        assert shown["SchedulerConfig"]["SchedulerAlgorithm"] == "spread"
        assert shown["Index"] == answer["Index"]
        await set_scheduler(world)
        assert world.state.scheduler_config().scheduler_algorithm == "binpack"
        with pytest.raises(InvalidRequestError, match="invalid scheduler algorithm: fastest"):
            await set_scheduler(world, scheduler_algorithm="fastest")


async def test_scheduler_settings_are_set_only_at_the_index_that_was_named() -> None:
    async with running() as world:
        index = world.state.scheduler_config().modify_index
        assert (await set_scheduler(world, index + 1, scheduler_algorithm="spread"))[
            "Updated"
        ] is False
        assert world.state.scheduler_config().scheduler_algorithm == "binpack"
        assert (await set_scheduler(world, index, scheduler_algorithm="spread"))["Updated"] is True


async def test_autopilot_settings_are_set_and_told_in_the_same_way() -> None:
    async with running() as world:
        shown = await world.get("Operator.AutopilotConfiguration")
        assert shown["CleanupDeadServers"] is True
        config = AutopilotConfiguration(cleanup_dead_servers=False, max_trailing_logs=7)
        index = world.state.autopilot_config().modify_index
        request = calls.AutopilotConfigWrite(config=config, cas=index + 5)
        assert body(await world.call("Operator.SetAutopilotConfiguration", request)) is False
        request = calls.AutopilotConfigWrite(config=config, cas=index)
        assert body(await world.call("Operator.SetAutopilotConfiguration", request)) is True
        assert (await world.get("Operator.AutopilotConfiguration"))["MaxTrailingLogs"] == 7


async def test_every_server_tells_the_same_leader_peers_and_configuration() -> None:
    async with running(3) as world:
        for server in world.servers:
            read = calls.Read()
            told = {
                method: body(await world.call(method, read, at=server.process))
                for method in ("Status.Leader", "Status.Peers", "Operator.RaftConfiguration")
            }
            assert told["Status.Leader"] == world.leading.address
            assert sorted(told["Status.Peers"]) == [s.address for s in world.servers]
            rows = told["Operator.RaftConfiguration"]["Servers"]
            assert [r["Address"] for r in rows if r["Leader"]] == [world.leading.address]
            assert all(r["Voter"] for r in rows)


async def test_health_counts_how_many_servers_may_still_be_lost() -> None:
    async with running(3) as world:
        await asyncio.sleep(5)
        shown = await world.get("Operator.AutopilotHealth")
        assert (shown["Healthy"], shown["FailureTolerance"]) == (True, 1)
        gone = next(s for s in world.servers if s is not world.leading)
        await gone.crash(power=False)
        await asyncio.sleep(10)
        shown = await world.get("Operator.AutopilotHealth")
        assert (shown["Healthy"], shown["FailureTolerance"]) == (False, 0)
        sick = [s["Address"] for s in shown["Servers"] if not s["Healthy"]]
        assert sick == [gone.address]


# -- pools ----------------------------------------------------------------------------------------------------


async def upsert(world: World, **fields: Any) -> None:
    await world.call("NodePool.Upsert", calls.NodePoolWrite(pool=NodePool(**fields)))


async def test_a_pool_holds_its_nodes_and_jobs_and_cannot_go_while_it_does() -> None:
    async with running() as world:
        await upsert(world, name="gpu", description="fast")
        node = await world.node(node_pool="gpu")
        await world.register(job("train", NodePool="gpu"))
        await world.register(job("web"))
        await world.settled()
        assert [r["ID"] for r in await world.get("NodePool.Nodes", "gpu")] == [node.id]
        assert [r["ID"] for r in await world.get("NodePool.Nodes", "all")] == [node.id]
        assert [r["ID"] for r in await world.get("NodePool.Jobs", "gpu")] == ["train"]
        with pytest.raises(ValidationError, match='node pool "gpu" has nodes'):
            await world.write("NodePool.Delete", "gpu")
        await world.write("Node.Purge", node.id)
        with pytest.raises(ValidationError, match="non-terminal jobs"):
            await world.write("NodePool.Delete", "gpu")
        await world.call("Job.Deregister", calls.JobDeregister(job_id="train", purge=True))
        await world.write("NodePool.Delete", "gpu")
        with pytest.raises(NotFoundError, match="node pool not found"):
            await world.read("NodePool.Get", "gpu")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "bad name"}, "invalid name"),
        ({"name": ""}, "invalid name"),
        ({"name": "x" * 129}, "invalid name"),
        ({"name": "ok", "description": "x" * 257}, "description longer than 256"),
        ({"name": "all"}, 'modifying node pool "all" is not allowed'),
        ({"name": "default"}, 'modifying node pool "default" is not allowed'),
    ],
)
async def test_a_pool_that_breaks_a_rule_is_refused(fields: dict[str, str], text: str) -> None:
    async with running() as world:
        with pytest.raises(InvalidRequestError) as caught:
            await upsert(world, **fields)
        assert text in caught.value.message


async def test_built_in_pools_and_unknown_ones_cannot_be_deleted() -> None:
    async with running() as world:
        for name in ("all", "default"):
            with pytest.raises(NomadError):
                await world.write("NodePool.Delete", name)
            assert (await world.get("NodePool.Get", name))["Name"] == name
        with pytest.raises(NotFoundError):
            await world.write("NodePool.Delete", "zz")


# -- search, and reads of many kinds ----------------------------------------------------------------------------


async def test_a_search_finds_by_prefix_in_every_kind_and_says_when_there_is_more() -> None:
    async with running() as world:
        node = await world.node()
        for number in range(25):
            await world.register(job(f"web-{number:02}", cpu=10))
        await world.settled()
        found = await world.get("Search.Prefix", "web")
        assert len(found["Matches"]["jobs"]) == 20
        assert found["Truncations"]["jobs"] is True
        assert found["Truncations"]["nodes"] is False
        found = await world.get("Search.Prefix", node.id[:7], flags={"context": "nodes"})
        assert found["Matches"] == {"nodes": [node.id]}
        alloc = node.wanted()[0]
        found = await world.get("Search.Prefix", alloc.id[:9])
        assert found["Matches"]["allocs"] == [alloc.id]
        with pytest.raises(ValidationError, match='got "zzz"'):
            await world.read("Search.Prefix", "x", flags={"context": "zzz"})


async def test_a_search_that_waits_is_woken_by_any_change() -> None:
    async with running() as world:
        first = await world.read("Search.Prefix", "web")
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(
                world.read("Search.Prefix", "web", min_index=first.index, wait_ns=60 * 10**9)
            )
            await asyncio.sleep(1)
            await world.register(job("web"))
        assert loop.time() - start < 5.0
        assert body(waiting.result())["Matches"]["jobs"] == ["web"]


async def test_reads_of_one_job_show_what_belongs_to_it() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=2, Update=rolling()))
        await world.register(job("other"))
        await world.settled()
        allocs = await world.get("Job.Allocations", "web")
        assert sorted(a["Name"] for a in allocs) == ["web.group[0]", "web.group[1]"]
        assert {e["JobID"] for e in await world.get("Job.Evaluations", "web")} == {"web"}
        (deployment,) = await world.get("Job.Deployments", "web")
        assert (await world.get("Job.LatestDeployment", "web"))["ID"] == deployment["ID"]
        assert await world.get("Job.LatestDeployment", "other") is None
        summary = await world.get("Job.Summary", "web")
        assert summary["Summary"]["group"]["Starting"] == 2
        (row,) = (r for r in await world.get("Job.Statuses") if r["ID"] == "web")
        assert (row["GroupCountSum"], len(row["Allocs"])) == (2, 2)
        of_deployment = await world.get("Deployment.Allocations", deployment["ID"])
        assert sorted(a["ID"] for a in of_deployment) == sorted(a["ID"] for a in allocs)
        evaluation = world.state.alloc(allocs[0]["ID"]).eval_id  # type: ignore[union-attr]
        assert len(await world.get("Eval.Allocations", evaluation)) == 2
        assert len(await world.get("Node.Allocations", node.id)) == 3
        assert (await world.get("Eval.Count"))["Count"] == len(list(world.state.evals()))


async def test_a_job_of_the_same_name_as_a_purged_one_does_not_show_its_past() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(Update=rolling()))
        await world.settled()
        old = node.wanted()[0].id
        await world.call("Job.Deregister", calls.JobDeregister(job_id="web", purge=True))
        await world.register(job(Update=rolling(), Meta={"again": "1"}))
        await world.settled()
        ids = [a["ID"] for a in await world.get("Job.Allocations", "web")]
        assert old not in ids
        everything = await world.get("Job.Allocations", "web", flags={"all": "true"})
        assert old in [a["ID"] for a in everything]
        assert len(await world.get("Job.Deployments", "web")) == 1


async def test_related_evaluations_are_those_of_one_chain() -> None:
    async with running() as world:
        answer = await world.register(job())
        done = await world.evaluated(answer["EvalID"])
        shown = await world.get("Eval.Get", done.id, flags={"related": "true"})
        assert [e["ID"] for e in shown["RelatedEvals"]] == [done.blocked_eval]
        plain = await world.get("Eval.Get", done.id)
        assert "RelatedEvals" not in plain


async def test_a_filter_beside_other_narrowing_of_evaluations_is_refused() -> None:
    async with running() as world:
        await world.register(job())
        await world.settled()
        rows = await world.get("Eval.List", flags={"job": "web", "status": "blocked"})
        assert [r["Status"] for r in rows] == ["blocked"]
        with pytest.raises(InvalidRequestError, match="cannot be used with other filter"):
            await world.read("Eval.List", filter='JobID == "web"', flags={"job": "web"})


async def test_a_row_of_an_allocation_holds_resources_and_states_only_when_asked() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job())
        await world.settled()
        await node.obey()
        (plain,) = await world.get("Alloc.List")
        assert plain.get("AllocatedResources") is None
        (full,) = await world.get("Alloc.List", flags={"resources": "true"})
        assert full["AllocatedResources"]
        (bare,) = await world.get("Alloc.List", flags={"task_states": "false"})
        assert bare["TaskStates"] is None
