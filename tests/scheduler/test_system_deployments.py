"""How a system job's new version goes over its nodes: in steps, by health, canaries first."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_world import World, make_group, make_job, make_node, make_task, rolling

from nomadpy.models.job import Job
from nomadpy.state import deployments


def version(number: int, canary: int = 0, max_parallel: int = 1, **fields) -> Job:
    update = msgspec.structs.replace(rolling(max_parallel), canary=canary)
    task = make_task(cpu=200, env={"VERSION": str(number)})
    return make_job("agent", make_group(tasks=[task], update=update), type="system", **fields)


def a_cluster(count: int = 4) -> World:
    world = World()
    world.add_nodes(*(make_node(f"n{number}") for number in range(count)))
    return world


def latest(world: World):
    return world.snapshot.latest_deployment("default", "agent")


def versions(world: World, job: Job) -> list[int]:
    return sorted(alloc.job.version for alloc in world.live(job))


def unsure(world: World, job: Job):
    return [
        a
        for a in world.live(job)
        if a.deployment_id and (a.deployment_status is None or a.deployment_status.healthy is None)
    ]


def settle(world: World, job: Job, rounds: int = 30) -> None:
    for _ in range(rounds):
        waiting = unsure(world, job)
        if waiting:
            world.healthy(*waiting)
        if world.run(job, "deployment-watcher").plan is None and not waiting:
            return


def deployed(count: int = 4, **fields) -> tuple[World, Job]:
    world = a_cluster(count)
    job = version(0, **fields)
    world.deploy(job)
    settle(world, job)
    return world, job


def test_the_first_version_is_placed_everywhere_at_once_and_becomes_successful() -> None:
    world = a_cluster()
    job = version(0)
    decision = world.deploy(job)
    assert len(world.live(job)) == 4
    deployment = latest(world)
    assert deployment.status == "running"
    assert deployment.task_groups["group"].desired_total == 4
    assert decision.evaluations[0].deployment_id == deployment.id
    assert {a.deployment_id for a in world.live(job)} == {deployment.id}
    settle(world, job)
    assert latest(world).status == "successful"


def test_a_new_version_goes_on_as_the_nodes_before_become_healthy() -> None:
    world, job = deployed(max_parallel=2)
    world.register(version(1, max_parallel=2))
    world.run(job)
    assert versions(world, job) == [0, 0, 1, 1]
    assert world.run(job).plan is None
    world.healthy(unsure(world, job)[0])
    world.run(job, "deployment-watcher")
    assert versions(world, job) == [0, 1, 1, 1]
    settle(world, job)
    assert versions(world, job) == [1, 1, 1, 1]
    assert latest(world).status == "successful"


def test_an_unhealthy_node_halts_the_rollout() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    world.healthy(*unsure(world, job), healthy=False)
    assert world.run(job, "deployment-watcher").plan is None
    assert versions(world, job) == [0, 0, 0, 1]


def test_canaries_are_a_share_of_the_nodes_and_wait_to_be_promoted() -> None:
    world, job = deployed()
    world.register(version(1, canary=50))
    decision = world.run(job)
    (update,) = decision.annotations.desired_tg_updates.values()
    assert (update.canary, update.destructive_update, update.ignore) == (2, 0, 2)
    settle(world, job)
    assert versions(world, job) == [0, 0, 1, 1]
    assert latest(world).status_description.endswith("requires manual promotion")
    with world.transaction() as tx:
        deployments.promote(tx, latest(world).id, None)
    settle(world, job)
    assert versions(world, job) == [1, 1, 1, 1]
    assert latest(world).status == "successful"


def test_a_failed_deployment_stays_where_it_is() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    with world.transaction() as tx:
        deployments.set_status(tx, latest(world).id, "failed", "")
    assert world.run(job, "deployment-watcher").plan is None
    assert versions(world, job) == [0, 0, 0, 1]


def test_a_newer_version_and_a_stop_cancel_the_deployment() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    first = latest(world).id
    world.register(version(2))
    world.run(job)
    assert world.snapshot.deployment(first).status == "cancelled"
    world.stop(job)
    world.run(job)
    assert latest(world).status == "cancelled"


def test_a_node_that_joins_later_needs_no_deployment() -> None:
    world, job = deployed()
    world.add_nodes(make_node("n9"))
    world.run(job, "node-update")
    (new,) = [a for a in world.live(job) if a.node_id == "n9"]
    assert new.deployment_id == ""
    assert latest(world).status == "successful"


def test_a_node_that_fails_meanwhile_does_not_hold_up_the_end() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    old = next(a for a in world.live(job) if a.job.version == 0)
    world.change_node(old.node_id, status="down")
    world.run(job, "node-update")
    settle(world, job)
    assert versions(world, job) == [1, 1, 1]
    assert latest(world).status == "successful"


def test_jobs_of_type_sysbatch_have_no_deployments() -> None:
    world = a_cluster()
    job = msgspec.structs.replace(version(0), type="sysbatch")
    world.deploy(job)
    assert latest(world) is None
    assert len(world.live(job)) == 4


@given(
    count=st.integers(1, 5),
    parallel=st.integers(1, 5),
    canary=st.sampled_from([0, 20, 50, 100]),
    steps=st.lists(
        st.tuples(st.sampled_from(["heal", "lose", "return", "look"]), st.integers(0, 9)),
        max_size=10,
    ),
)
@settings(max_examples=80, deadline=None)
def test_no_more_nodes_change_at_one_time_than_allowed_and_all_of_them_in_the_end(
    count: int, parallel: int, canary: int, steps: list[tuple[str, int]]
) -> None:
    world, job = deployed(count, max_parallel=parallel)
    world.register(version(1, canary=canary, max_parallel=parallel))
    for step, pick in steps:
        if step == "heal" and unsure(world, job):
            waiting = unsure(world, job)
            world.healthy(waiting[pick % len(waiting)])
        elif step == "lose":
            world.change_node(f"n{pick % count}", status="down")
        elif step == "return":
            world.change_node(f"n{pick % count}", status="ready")
        before = {a.id for a in world.live(job)}
        decision = world.run(job, "node-update")
        replaced = [
            stop
            for stop in (decision.plan.stops if decision.plan else [])
            if stop.alloc_id in before and "updated" in stop.description
        ]
        most = max(parallel, -(-count * canary // 100))
        assert len(replaced) <= most
        nodes = [a.node_id for a in world.live(job)]
        assert len(set(nodes)) == len(nodes)
        world.check()
    for number in range(count):
        world.change_node(f"n{number}", status="ready")
    settle(world, job)
    found = latest(world)
    if found.status == "running":
        with world.transaction() as tx:
            deployments.promote(tx, found.id, None)
        settle(world, job)
    assert versions(world, job) == [1] * count
    assert latest(world).status == "successful"
