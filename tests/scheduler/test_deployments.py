"""Rolling updates of service jobs by deployments."""

from typing import Any

import pytest
from scheduling_world import SECOND, World, make_group, make_job, make_node, make_task, rolling

from nomadpy.models.annotations import DesiredUpdates
from nomadpy.models.deployment import Deployment
from nomadpy.models.gotime import from_ns
from nomadpy.models.job import Job
from nomadpy.state import deployments


def rolled(version: str = "", count: int = 3, max_parallel: int = 1, **fields: Any) -> Job:
    env = {"VERSION": version} if version else None
    return make_job(
        "web",
        make_group(count=count, update=rolling(max_parallel), tasks=[make_task(env=env)]),
        **fields,
    )


def cluster() -> World:
    world = World()
    world.add_nodes(*[make_node(name) for name in "abcde"])
    return world


def latest(world: World) -> Deployment:
    found = world.snapshot.latest_deployment("default", "web")
    assert found is not None
    return found


def set_status(world: World, status: str) -> None:
    with world.transaction() as tx:
        deployments.set_status(tx, latest(world).id, status, f"Deployment {status}")


def finish(world: World, job: Job) -> None:
    for _ in range(20):
        world.healthy(*[a for a in world.live(job) if a.deployment_id == latest(world).id])
        world.run(job, "deployment-watcher")
        if latest(world).status == "successful":
            return
    raise AssertionError(f"the deployment did not finish: {latest(world)}")


def versions(world: World, job: Job) -> list[int]:
    return [alloc.job.version for alloc in world.live(job) if alloc.job]


def test_the_first_version_is_deployed_at_once() -> None:
    world = cluster()
    job = rolled()
    decision = world.deploy(job)
    deployment = latest(world)
    assert decision.evaluations[0].deployment_id == deployment.id
    assert (deployment.status, deployment.status_description) == (
        "running",
        "Deployment is running",
    )
    assert deployment.task_groups is not None
    state = deployment.task_groups["group"]
    assert (state.desired_total, state.placed_allocs, state.healthy_allocs) == (3, 3, 0)
    assert state.require_progress_by == from_ns(world.now + 600 * SECOND)
    assert {alloc.deployment_id for alloc in world.live(job)} == {deployment.id}
    finish(world, job)
    assert latest(world).status_description == "Deployment completed successfully"
    assert world.run(job).plan is None


def test_an_update_replaces_max_parallel_at_a_time_and_waits_for_health() -> None:
    world = cluster()
    job = rolled()
    world.deploy(job)
    finish(world, job)
    decision = world.deploy(rolled("2"))
    assert decision.annotations.desired_tg_updates == {
        "group": DesiredUpdates(destructive_update=1, ignore=2)
    }
    assert versions(world, job).count(1) == 1
    # Nothing more until the new one is healthy.
    assert world.run(job, "deployment-watcher").plan is None
    for done in (2, 3):
        world.healthy(*[a for a in world.live(job) if a.deployment_id == latest(world).id])
        world.run(job, "deployment-watcher")
        assert versions(world, job).count(1) == done
    finish(world, job)
    assert versions(world, job) == [1, 1, 1]


def test_new_places_come_out_of_the_same_limit() -> None:
    """As recorded: count 2 to 3 and a changed task, with max_parallel 1, places one and replaces none yet."""
    world = cluster()
    job = rolled(count=2)
    world.deploy(job)
    finish(world, job)
    decision = world.deploy(rolled("2", count=3))
    assert decision.annotations.desired_tg_updates == {"group": DesiredUpdates(place=1, ignore=2)}
    finish(world, job)
    assert versions(world, job) == [1, 1, 1]


def test_an_unhealthy_allocation_halts_the_update() -> None:
    world = cluster()
    job = rolled()
    world.deploy(job)
    finish(world, job)
    world.deploy(rolled("2"))
    world.healthy(
        *[a for a in world.live(job) if a.deployment_id == latest(world).id], healthy=False
    )
    assert world.run(job, "deployment-watcher").plan is None
    assert versions(world, job).count(1) == 1


@pytest.mark.parametrize("status", ["failed", "paused"])
def test_a_halted_deployment_replaces_only_what_is_lost(status: str) -> None:
    world = cluster()
    job = rolled()
    world.deploy(job)
    finish(world, job)
    world.deploy(rolled("2"))
    set_status(world, status)
    world.healthy(*world.live(job))
    assert world.run(job).plan is None
    old = next(a for a in world.live(job) if a.job and a.job.version == 0)
    world.change_node(old.node_id, status="down")
    world.run(job, "node-update")
    assert len(world.live(job)) == 3


def test_a_newer_version_cancels_the_deployment_before_it() -> None:
    world = cluster()
    job = rolled()
    world.deploy(job)
    first = latest(world)
    world.deploy(rolled("2"))
    cancelled = world.snapshot.deployment(first.id)
    assert cancelled is not None
    assert (cancelled.status, cancelled.status_description) == (
        "cancelled",
        "Cancelled due to newer version of job",
    )
    assert latest(world).id != first.id
    assert latest(world).job_version == 1


def test_stopping_the_job_cancels_its_deployment() -> None:
    world = cluster()
    job = rolled()
    world.deploy(job)
    world.stop(job)
    world.run(job, "job-deregister")
    assert (latest(world).status, latest(world).status_description) == (
        "cancelled",
        "Cancelled because job is stopped",
    )


def test_registering_the_same_again_starts_no_deployment() -> None:
    world = cluster()
    job = rolled()
    world.deploy(job)
    finish(world, job)
    done = latest(world)
    world.deploy(rolled())
    assert latest(world).id == done.id


def test_an_update_in_place_is_deployed_too() -> None:
    world = cluster()
    job = rolled()
    world.deploy(job)
    finish(world, job)
    decision = world.deploy(rolled(priority=70))
    assert decision.annotations.desired_tg_updates == {"group": DesiredUpdates(in_place_update=3)}
    deployment = latest(world)
    assert deployment.job_version == 1
    assert {alloc.deployment_id for alloc in world.live(job)} == {deployment.id}
    assert {alloc.deployment_status for alloc in world.live(job)} == {None}
    finish(world, job)


def test_what_fails_while_it_is_deployed_is_the_deployments_to_judge() -> None:
    world = cluster()
    job = rolled()
    world.deploy(job)
    broken = world.live(job)[0]
    world.report(broken, status="failed")
    world.now += 3600 * SECOND
    assert world.run(job, "alloc-failure").plan is None
    world.transition([broken], reschedule=True)
    world.run(job, "alloc-failure")
    assert len(world.live(job)) == 3


def test_batch_jobs_have_no_deployment() -> None:
    world = cluster()
    job = rolled(type="batch")
    decision = world.deploy(job)
    assert decision.plan is not None
    assert decision.plan.deployment is None


def test_a_job_that_fits_nowhere_is_deployed_none_the_less() -> None:
    world = World()
    job = rolled()
    decision = world.deploy(job)
    assert decision.plan is not None
    assert latest(world).status == "running"
    world.add_nodes(make_node("a"))
    world.apply(world.decide(decision.evaluations[1]))
    assert len(world.live(job)) == 3
    assert {alloc.deployment_id for alloc in world.live(job)} == {latest(world).id}
    finish(world, job)
