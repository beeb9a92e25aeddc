"""What agents and operators may do to nodes, and what a node may say of allocations."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from server_world import SECOND, FakeNode, World, body, job, running

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import (
    InvalidRequestError,
    NomadError,
    NotFoundError,
    PermissionDeniedError,
    ValidationError,
)
from nomadpy.models import calls
from nomadpy.models.allocation import Allocation
from nomadpy.models.gotime import to_ns
from nomadpy.models.node import DrainSpec, Node, NodePool
from nomadpy.server import new_evaluations


def node_of(world: World, node: FakeNode) -> Node:
    found = world.state.node(node.id)
    assert found is not None
    return found


# -- register -------------------------------------------------------------------------------------------------


async def test_the_first_registration_binds_the_secret() -> None:
    async with running() as world:
        node = await world.node()
        stranger = msgspec.structs.replace(node.node, secret_id="another", name="evil")
        with pytest.raises(PermissionDeniedError, match="node secret ID does not match"):
            await world.call("Node.Register", calls.NodeRegister(node=stranger))
        assert node_of(world, node).name == node.node.name
        shown = await world.get("Node.Get", node.id)
        assert shown["SecretID"] == ""
        assert node.node.secret_id not in str(await world.get("Node.List"))


@pytest.mark.parametrize("missing", ["id", "secret_id", "name", "datacenter"])
async def test_a_node_that_does_not_say_who_it_is_is_refused(missing: str) -> None:
    async with running() as world:
        node = await world.node()
        bad = msgspec.structs.replace(node.node, **{missing: ""})
        with pytest.raises(InvalidRequestError, match="needs ID, SecretID, Name and Datacenter"):
            await world.call("Node.Register", calls.NodeRegister(node=bad))


async def test_a_node_of_another_region_or_an_unknown_pool_is_told_what_to_do() -> None:
    async with running() as world:
        node = await world.node()
        with pytest.raises(InvalidRequestError, match='node is of region "mars"'):
            await world.call("Node.Register", calls.NodeRegister(node=node.node, region="mars"))
        bad = msgspec.structs.replace(node.node, id="f" * 36, node_pool="zz")
        with pytest.raises(NomadError, match='node pool "zz" does not exist'):
            await world.call("Node.Register", calls.NodeRegister(node=bad))


async def test_a_ready_node_gets_the_system_jobs_that_may_run_there_and_no_others() -> None:
    async with running() as world:
        await world.call("NodePool.Upsert", calls.NodePoolWrite(pool=NodePool(name="gpu")))
        await world.register(job("all", Type="system"))
        await world.register(job("gpu-only", Type="system", NodePool="gpu"))
        await world.register(job("elsewhere", Type="system", Datacenters=["dc2"]))
        await world.register(job("stopped", Type="system"))
        await world.call("Job.Deregister", calls.JobDeregister(job_id="stopped"))
        await world.settled()
        node = await world.node(status="initializing")
        reply = await node.heartbeat("ready")
        assert len(reply.eval_ids) == 1
        await world.settled()
        assert [a.job_id for a in node.wanted()] == ["all"]
        # Saying it again is no news.
        assert (await node.register()).eval_ids == []
        assert (await node.heartbeat()).eval_ids == []


async def test_a_changed_class_of_node_is_new_capacity() -> None:
    async with running() as world:
        node = await world.node()
        constraint = {"LTarget": "${meta.disk}", "RTarget": "fast", "Operand": "="}
        await world.register(job("all", Type="system", Constraints=[constraint]))
        await world.register(job("waits", Constraints=[constraint]))
        await world.settled()
        assert node.wanted() == []
        await node.register(meta={"disk": "fast"})
        await world.settled()
        await world.until(lambda: sorted(a.job_id for a in node.wanted()) == ["all", "waits"])


async def test_the_reply_names_the_servers_with_the_leader_first() -> None:
    async with running(3) as world:
        node = await world.node()
        reply = await node.heartbeat()
        assert reply.servers[0].name == world.leading.name
        assert {s.rpc for s in reply.servers} == {s.address for s in world.servers}
        assert reply.ttl_ns > 0


# -- drain and eligibility --------------------------------------------------------------------------------------


async def eligibility(world: World, node_id: str, word: str) -> Any:
    request = calls.NodeEligibilityWrite(node_id=node_id, eligibility=word)
    return body(await world.call("Node.Eligibility", request))


async def test_an_ineligible_node_takes_nothing_new_and_keeps_what_it_has() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job("first"))
        await world.register(job("everywhere", Type="system"))
        await world.settled()
        await eligibility(world, node.id, "ineligible")
        await world.register(job("second"))
        await world.settled()
        assert sorted(a.job_id for a in node.wanted()) == ["everywhere", "first"]
        answer = await eligibility(world, node.id, "eligible")
        assert len(answer["EvalIDs"]) == 1, "of the system job"
        await world.until(lambda: len(node.wanted()) == 3, "the second job's turn")
        messages = [e.message for e in node_of(world, node).events or []]
        assert messages[-2:] == [
            "Node marked as ineligible for scheduling",
            "Node marked as eligible for scheduling",
        ]


async def test_a_draining_node_cannot_be_made_eligible() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job("work", Type="batch", Update=None))
        await world.settled()
        spec = DrainSpec(deadline=600 * SECOND, ignore_system_jobs=True)
        request = calls.NodeDrainWrite(node_id=node.id, spec=spec, meta={"why": "disk"})
        answer = body(await world.call("Node.Drain", request))
        assert answer["NodeModifyIndex"] == answer["Index"]
        found = node_of(world, node)
        assert found.drain_strategy is not None
        assert found.drain_strategy.ignore_system_jobs
        started = to_ns(found.drain_strategy.started_at)
        assert to_ns(found.drain_strategy.force_deadline) == started + 600 * SECOND
        assert found.last_drain is not None
        assert (found.last_drain.status, found.last_drain.meta) == ("draining", {"why": "disk"})
        with pytest.raises(ValidationError) as caught:
            await eligibility(world, node.id, "eligible")
        assert caught.value.message == (
            "can not set node's scheduling eligibility to eligible while it is draining"
        )
        assert (await world.get("Node.Get", node.id))["Drain"] is True
        await eligibility(world, node.id, "ineligible")


@pytest.mark.parametrize("deadline", [0, -1])
async def test_a_drain_without_a_deadline_and_a_forced_one_have_no_moment(deadline: int) -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job("work", Type="batch", Update=None))
        await world.settled()
        request = calls.NodeDrainWrite(node_id=node.id, spec=DrainSpec(deadline=deadline))
        await world.call("Node.Drain", request)
        strategy = node_of(world, node).drain_strategy
        assert strategy is not None
        assert strategy.force_deadline == "0001-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Node.Drain", calls.NodeDrainWrite(node_id="0" * 36)),
        ("Node.Eligibility", calls.NodeEligibilityWrite(node_id="0" * 36, eligibility="eligible")),
        ("Node.Evaluate", calls.Write(id="0" * 36)),
        ("Node.Purge", calls.Write(id="0" * 36)),
    ],
)
async def test_an_unknown_node_is_not_found_and_half_an_id_is_an_error(
    method: str, request_: Any
) -> None:
    field = "id" if isinstance(request_, calls.Write) else "node_id"
    async with running() as world:
        with pytest.raises(NotFoundError, match="node not found"):
            await world.call(method, request_)
        with pytest.raises(InvalidRequestError, match="UUID must be 36 characters"):
            await world.call(method, msgspec.structs.replace(request_, **{field: "abc"}))


async def test_a_word_that_is_no_eligibility_is_refused() -> None:
    async with running() as world:
        node = await world.node()
        with pytest.raises(ValidationError, match='invalid scheduling eligibility "maybe"'):
            await eligibility(world, node.id, "maybe")


async def test_a_purged_node_is_forgotten_and_its_work_moves() -> None:
    async with running() as world:
        one = await world.node("n0")
        await world.register(job())
        await world.settled()
        two = await world.node("n1")
        answer = await world.write("Node.Purge", one.id)
        assert len(answer["EvalIDs"]) == 1
        await world.settled()
        assert world.state.node(one.id) is None
        assert len(two.wanted()) == 1
        # It still runs, so it registers again.
        with pytest.raises(NotFoundError):
            await one.heartbeat()
        await one.register()


async def test_evaluating_a_node_looks_at_all_that_touches_it() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job("web"))
        await world.register(job("everywhere", Type="system"))
        await world.settled()
        answer = await world.write("Node.Evaluate", node.id)
        made = [world.state.eval(identity) for identity in answer["EvalIDs"]]
        assert sorted(e.job_id for e in made if e is not None) == ["everywhere", "web"]
        assert {e.triggered_by for e in made if e is not None} == {"node-update"}
        assert answer["NumNodes"] == 1


# -- what a node says of allocations ------------------------------------------------------------------------------


async def test_a_node_cannot_speak_of_what_another_one_runs() -> None:
    async with running() as world:
        one = await world.node("n0")
        await world.register(job())
        await world.settled()
        two = await world.node("n1")
        (alloc,) = one.wanted()
        index = world.state.index
        await two.report(alloc, status="failed")
        assert world.state.alloc(alloc.id) == alloc
        assert world.state.index == index
        await two.report(Allocation(id="0" * 36), status="running")
        request = calls.UpdateAllocsRequest(
            node_id=one.id, secret_id=two.node.secret_id, allocs=[Allocation(id=alloc.id)]
        )
        with pytest.raises(PermissionDeniedError):
            await world.call("Node.UpdateAllocs", request)


async def test_a_node_is_given_its_own_allocations_only_and_only_to_its_secret() -> None:
    async with running() as world:
        one = await world.node("n0")
        await world.register(job())
        await world.settled()
        two = await world.node("n1")
        (alloc,) = one.wanted()
        for node, expected in ((one, [alloc.id]), (two, [])):
            request = calls.AllocsGetRequest(
                node_id=node.id, secret_id=node.node.secret_id, ids=[alloc.id, "0" * 36]
            )
            reply = await world.call("Alloc.GetMany", request)
            assert [a.id for a in reply.allocs] == expected
        wrong = calls.AllocsGetRequest(node_id=one.id, secret_id="x", ids=[alloc.id])
        with pytest.raises(PermissionDeniedError):
            await world.call("Alloc.GetMany", wrong)
        with pytest.raises(PermissionDeniedError):
            await world.call(
                "Node.ClientAllocs", calls.ClientAllocsRequest(node_id=one.id, secret_id="")
            )


async def test_what_a_client_may_not_say_is_not_heard() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job())
        await world.settled()
        (alloc,) = node.wanted()
        lie = Allocation(
            id=alloc.id,
            client_status="running",
            desired_status="stop",
            job_id="other",
            namespace="x",
            node_id="other",
        )
        request = calls.UpdateAllocsRequest(
            node_id=node.id, secret_id=node.node.secret_id, allocs=[lie]
        )
        await world.call("Node.UpdateAllocs", request)
        found = world.state.alloc(alloc.id)
        assert found is not None
        assert (found.desired_status, found.job_id, found.namespace) == ("run", "web", "default")
        assert found.client_status == "running"
        # The agent's own report does not look like news from the servers to it.
        assert found.alloc_modify_index == alloc.alloc_modify_index


async def test_a_failure_has_its_job_looked_at_once_and_an_end_does_not() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=3))
        await world.register(job("work", Type="batch", Update=None))
        await world.settled()
        before = len(list(world.state.evals()))
        web = [a for a in node.wanted() if a.job_id == "web"]
        await node.report(*web, status="failed")
        (batch,) = (a for a in node.wanted() if a.job_id == "work")
        await node.report(batch, status="complete")
        await world.settled()
        made = [e for e in world.state.evals() if e.triggered_by == "alloc-failure"]
        assert [e.job_id for e in made] == ["web"]
        assert len(list(world.state.evals())) <= before + 2
        assert world.state.job("default", "work").status == "dead"  # type: ignore[union-attr]


# -- evaluations made for a node ----------------------------------------------------------------------------------


async def test_a_job_with_several_allocations_on_a_node_is_looked_at_once() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=3))
        await world.register(job("over", Type="batch", Update=None))
        await world.settled()
        await node.report(*[a for a in node.wanted() if a.job_id == "over"], status="complete")
        made = new_evaluations.for_node(
            world.state, node_of(world, node), entropy=SeededEntropy("x"), now_ns=1
        )
        assert sorted(e.job_id for e in made) == ["over", "web"]
        assert all(e.node_id == node.id for e in made)
        assert all((e.status, e.type != "") == ("pending", True) for e in made)
