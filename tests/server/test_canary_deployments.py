"""Canaries on a running server: placed, reported, promoted, and never failed for waiting."""

from __future__ import annotations

import asyncio

import pytest
from server_world import SECOND, World, body, job, rolling, running

from nomadpy.errors import NomadError
from nomadpy.models.calls import DeploymentPromoteWrite
from nomadpy.models.deployment import Deployment, DeploymentState
from nomadpy.server.leader.deployment_watcher import review


def spec(style: str, **fields):
    update = rolling(Canary=1, ProgressDeadline=70 * SECOND)
    return job("web", count=3, config={"style": style}, Update=update, **fields)


def latest(world: World) -> Deployment:
    found = world.state.latest_deployment("default", "web")
    assert found is not None
    return found


async def canaries_are_healthy(world: World, node) -> None:
    await world.register(spec("a"))
    await world.obeyed([node], lambda: latest(world).status == "successful")
    await world.register(spec("b"))
    await world.obeyed(
        [node],
        lambda: (
            latest(world).job_version == 1
            and latest(world).task_groups["group"].healthy_allocs == 1
        ),
    )


async def test_a_canary_waits_past_the_deadline_and_is_then_promoted() -> None:
    async with running() as world:
        node = await world.node()
        await canaries_are_healthy(world, node)
        await asyncio.sleep(100)
        assert latest(world).status == "running"
        assert len(node.wanted()) == 4
        answer = body(
            await world.call(
                "Deployment.Promote", DeploymentPromoteWrite(deployment_id=latest(world).id)
            )
        )
        assert answer["EvalID"]
        await world.obeyed([node], lambda: latest(world).status == "successful")
        assert [a.job.version for a in node.wanted()] == [1, 1, 1]
        with pytest.raises(NomadError, match="can't promote terminal deployment"):
            await world.call(
                "Deployment.Promote", DeploymentPromoteWrite(deployment_id=latest(world).id)
            )


async def test_canaries_that_are_not_healthy_are_not_promoted() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(spec("a"))
        await world.obeyed([node], lambda: latest(world).status == "successful")
        await world.register(spec("b"))
        await world.until(lambda: latest(world).job_version == 1)
        await world.settled()
        with pytest.raises(NomadError, match="0/1 healthy"):
            await world.call(
                "Deployment.Promote", DeploymentPromoteWrite(deployment_id=latest(world).id)
            )


def test_the_deadline_holds_for_canaries_that_never_become_healthy() -> None:
    state = DeploymentState(
        desired_canaries=1,
        desired_total=3,
        progress_deadline=SECOND,
        require_progress_by="2026-01-01T00:00:00Z",
    )
    deployment = Deployment(status="running", task_groups={"g": state})
    assert review(deployment, now_ns=1 << 62, seen=(0, 0)).fail
