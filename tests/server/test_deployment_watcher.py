"""Deployments move on as allocations become healthy, and fail when they do not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from server_world import SECOND, FakeNode, World, job, rolling, running

from nomadpy.errors import NotFoundError, ValidationError
from nomadpy.models.calls import Write
from nomadpy.models.deployment import Deployment, DeploymentState
from nomadpy.models.gotime import from_ns
from nomadpy.server.leader.deployment_watcher import review

NOW = 1_795_000_000 * SECOND


def deployment(*groups: DeploymentState, status: str = "running") -> Deployment:
    return Deployment(id="d", status=status, task_groups={str(n): g for n, g in enumerate(groups)})


def group(
    *, healthy: int = 0, unhealthy: int = 0, total: int = 2, by_s: int | None = 60
) -> DeploymentState:
    """by_s: seconds from now to the deadline; None without one."""
    return DeploymentState(
        desired_total=total,
        healthy_allocs=healthy,
        unhealthy_allocs=unhealthy,
        progress_deadline=0 if by_s is None else 60 * SECOND,
        require_progress_by=from_ns(0 if by_s is None else NOW + by_s * SECOND),
    )


def test_news_of_health_calls_for_an_evaluation_once() -> None:
    one = deployment(group(healthy=1))
    assert review(one, now_ns=NOW, seen=(0, 0)).evaluate
    assert not review(one, now_ns=NOW, seen=(1, 0)).evaluate
    assert review(deployment(group(healthy=1, unhealthy=1)), now_ns=NOW, seen=(1, 0)).evaluate


def test_the_nearest_deadline_of_a_group_that_is_not_done_counts() -> None:
    one = deployment(group(by_s=90), group(by_s=30), group(by_s=5, healthy=2))
    verdict = review(one, now_ns=NOW, seen=(0, 0))
    assert verdict.deadline_ns == NOW + 30 * SECOND
    assert not verdict.fail
    late = review(one, now_ns=NOW + 30 * SECOND, seen=(0, 0))
    assert late.fail == "Failed due to progress deadline"


def test_without_a_progress_deadline_the_first_unhealthy_allocation_fails_it() -> None:
    assert not review(deployment(group(by_s=None)), now_ns=NOW, seen=(0, 0)).fail
    verdict = review(deployment(group(by_s=None, unhealthy=1)), now_ns=NOW, seen=(0, 0))
    assert verdict.fail == "Failed due to unhealthy allocations"
    assert not review(deployment(group(unhealthy=1)), now_ns=NOW, seen=(0, 0)).fail


def test_a_paused_deployment_has_no_deadline() -> None:
    verdict = review(
        deployment(group(by_s=-5, unhealthy=1), status="paused"), now_ns=NOW, seen=(0, 0)
    )
    assert (verdict.fail, verdict.evaluate, verdict.deadline_ns) == ("", False, 0)


# -- on a cluster -----------------------------------------------------------------------------------------


def latest(world: World) -> Deployment:
    found = world.state.latest_deployment("default", "web")
    assert found is not None
    return found


def versions(node: FakeNode) -> list[int]:
    return sorted(a.job.version for a in node.wanted() if a.job is not None)


async def test_a_new_version_rolls_out_step_by_step_and_becomes_stable() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=3, Update=rolling(), Meta={"v": "0"}))
        await world.settled()
        await world.obeyed([node], lambda: latest(world).status == "successful")
        await world.register(job(count=3, Update=rolling(), Meta={"v": "1"}))
        await world.settled()
        assert versions(node) == [0, 0, 1]
        # Running is not enough: the next step waits for health.
        for alloc in node.allocs():
            if alloc.desired_status != "run":
                await node.report(alloc, status="complete")
            elif alloc.client_status == "pending":
                await node.report(alloc, status="running")
        await asyncio.sleep(5)
        assert versions(node) == [0, 0, 1]
        await world.obeyed([node], lambda: latest(world).status == "successful")
        assert versions(node) == [1, 1, 1]
        assert latest(world).status_description == "Deployment completed successfully"
        stored = world.state.job("default", "web")
        assert stored is not None
        assert (stored.version, stored.stable) == (1, True)


async def test_a_deployment_without_progress_fails_at_its_deadline() -> None:
    async with running() as world:
        node = await world.node()
        update = rolling(ProgressDeadline=90 * SECOND)
        await world.register(job(count=2, Update=update))
        await world.settled()
        await node.report(*node.wanted(), status="running")
        await asyncio.sleep(80)
        assert latest(world).status == "running"
        await asyncio.sleep(15)
        assert latest(world).status == "failed"
        assert latest(world).status_description == "Failed due to progress deadline"
        assert world.state.job("default", "web").stable is False  # type: ignore[union-attr]


async def test_each_healthy_allocation_buys_more_time() -> None:
    async with running() as world:
        node = await world.node()
        update = rolling(ProgressDeadline=90 * SECOND, MaxParallel=2)
        await world.register(job(count=2, Update=update))
        await world.settled()
        one, two = node.wanted()
        await node.report(one, two, status="running")
        await asyncio.sleep(80)
        await node.report(one, healthy=True)
        await asyncio.sleep(80)
        assert latest(world).status == "running"
        await node.report(two, healthy=True)
        await world.until(lambda: latest(world).status == "successful")


async def test_what_fails_within_a_deployment_is_replaced_while_there_is_time() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=1, Update=rolling()))
        await world.settled()
        (first,) = node.wanted()
        await node.report(first, status="running")
        await node.report(first, status="failed", healthy=False)
        replacement = await world.until(
            lambda: next((a for a in node.wanted() if a.id != first.id), None),
            "a replacement, after the delay of rescheduling",
            seconds=60,
        )
        assert replacement.previous_allocation == first.id
        await node.report(replacement, status="running", healthy=True)
        await world.until(lambda: latest(world).status == "successful")


async def test_without_a_progress_deadline_a_failure_ends_the_deployment() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=2, Update=rolling(ProgressDeadline=0)))
        await world.settled()
        await node.report(node.wanted()[0], status="failed", healthy=False)
        await world.until(lambda: latest(world).status == "failed")
        assert latest(world).status_description == "Failed due to unhealthy allocations"


async def test_a_paused_deployment_takes_no_step_and_a_resumed_one_goes_on() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=2, Update=rolling(), Meta={"v": "0"}))
        await world.obeyed([node], lambda: latest(world).status == "successful")
        await world.register(job(count=2, Update=rolling(), Meta={"v": "1"}))
        await world.settled()
        identity = latest(world).id
        await world.write("Deployment.Pause", identity, flags={"pause": "true"})
        assert latest(world).status == "paused"
        for _ in range(20):
            await node.obey()
            await asyncio.sleep(10)
        assert versions(node) == [0, 1]
        assert latest(world).status == "paused"
        await world.write("Deployment.Pause", identity, flags={"pause": "false"})
        await world.obeyed([node], lambda: latest(world).status == "successful")
        assert versions(node) == [1, 1]


async def test_a_failed_deployment_stops_rolling_until_the_next_version() -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(count=3, Update=rolling(), Meta={"v": "0"}))
        await world.obeyed([node], lambda: latest(world).status == "successful")
        await world.register(job(count=3, Update=rolling(), Meta={"v": "1"}))
        await world.settled()
        answer = await world.write("Deployment.Fail", latest(world).id)
        assert answer["EvalID"]
        for _ in range(10):
            await node.obey()
            await asyncio.sleep(1)
        assert versions(node) == [0, 0, 1]
        assert latest(world).status_description == "Deployment marked as failed"
        await world.register(job(count=3, Update=rolling(), Meta={"v": "2"}))
        await world.obeyed([node], lambda: versions(node) == [2, 2, 2])


async def test_a_newer_version_cancels_the_deployment_before_it() -> None:
    async with running() as world:
        await world.node()
        await world.register(job(count=2, Update=rolling(), Meta={"v": "0"}))
        await world.settled()
        first = latest(world)
        await world.register(job(count=2, Update=rolling(), Meta={"v": "1"}))
        await world.settled()
        ended = world.state.deployment(first.id)
        assert ended is not None
        assert (ended.status, ended.status_description) == (
            "cancelled",
            "Cancelled due to newer version of job",
        )


@pytest.mark.parametrize(
    ("method", "flags", "text"),
    [
        ("Deployment.Fail", {}, "can't fail terminal deployment"),
        ("Deployment.Pause", {"pause": "true"}, "can't pause terminal deployment"),
        ("Deployment.Pause", {"pause": "false"}, "can't resume terminal deployment"),
    ],
)
async def test_a_deployment_that_ended_cannot_be_changed(
    method: str, flags: dict[str, str], text: str
) -> None:
    async with running() as world:
        node = await world.node()
        await world.register(job(Update=rolling()))
        await world.obeyed([node], lambda: latest(world).status == "successful")
        with pytest.raises(ValidationError, match=text):
            await world.call(method, Write(id=latest(world).id, flags=flags))
        with pytest.raises(NotFoundError, match="deployment not found"):
            await world.call(method, Write(id="0" * 36, flags=flags))


async def test_a_failure_to_write_is_not_the_end_of_watching() -> None:
    async with running() as world:
        node = await world.node()
        core = world.leader.server.core
        propose = core.propose
        failures = 0

        async def fails(command: Any, **named: Any) -> Any:
            nonlocal failures
            kind = type(command).__name__
            watched = kind == "EvalUpsert" and command.evals[0].triggered_by == "deployment-watcher"
            if watched and failures < 2 and command.evals[0].status == "pending":
                failures += 1
                raise NotFoundError("made up")
            return await propose(command, **named)

        core.propose = fails  # type: ignore[method-assign]
        await world.register(job(count=2, Update=rolling()))
        await world.obeyed([node], lambda: latest(world).status == "successful")
        assert failures == 2
