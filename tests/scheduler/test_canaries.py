"""Canaries: beside the old version, alone until they are promoted, gone when their deployment fails."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_world import (
    SECOND,
    World,
    make_group,
    make_job,
    make_node,
    make_task,
    rolling,
)

from nomadpy.models.job import Job, UpdateStrategy
from nomadpy.scheduler.alloc_sets import alloc_index
from nomadpy.state import deployments

NODES = ("n1", "n2", "n3", "n4")


def updating(canary: int, max_parallel: int = 1, **fields) -> UpdateStrategy:
    return msgspec.structs.replace(rolling(max_parallel), canary=canary, **fields)


def version(number: int, canary: int = 1, count: int = 3, **fields) -> Job:
    return make_job(
        "web",
        make_group(
            count=count,
            tasks=[make_task(cpu=200, env={"VERSION": str(number)})],
            update=updating(canary, **fields),
        ),
    )


def deployed(canary: int = 1, count: int = 3) -> tuple[World, Job]:
    """A cluster where the first version runs and is healthy."""
    world = World()
    world.add_nodes(*(make_node(name) for name in NODES))
    job = version(0, canary, count)
    world.deploy(job)
    settle(world, job)
    return world, job


def settle(world: World, job: Job, rounds: int = 20) -> None:
    """Everything becomes healthy, and the job is looked at until nothing changes."""
    for _ in range(rounds):
        unsaid = [a for a in world.live(job) if not _healthy(a) and a.client_status != "unknown"]
        if unsaid:
            world.healthy(*unsaid)
        decision = world.run(job, "deployment-watcher")
        if decision.plan is None and not unsaid:
            return


def _healthy(alloc) -> bool:
    status = alloc.deployment_status
    return not alloc.deployment_id or (status is not None and status.healthy is True)


def promote(world: World, job: Job) -> None:
    with world.transaction() as tx:
        deployments.promote(tx, latest(world, job).id, None)


def latest(world: World, job: Job):
    return world.snapshot.latest_deployment("default", job.id)


def versions(world: World, job: Job) -> list[int]:
    return sorted(alloc.job.version for alloc in world.live(job))


def test_the_first_version_has_no_canaries() -> None:
    world, job = deployed()
    assert latest(world, job).task_groups["group"].desired_canaries == 0
    assert latest(world, job).status == "successful"


def test_an_update_places_canaries_beside_what_runs_and_nothing_else() -> None:
    world, job = deployed()
    world.register(version(1))
    decision = world.run(job)
    (update,) = decision.annotations.desired_tg_updates.values()
    assert (update.canary, update.place, update.destructive_update, update.ignore) == (1, 0, 0, 3)
    assert versions(world, job) == [0, 0, 0, 1]
    (canary,) = [a for a in world.live(job) if a.job.version == 1]
    assert canary.name == "web.group[0]"
    assert canary.deployment_status.canary
    assert canary.previous_allocation == ""
    deployment = latest(world, job)
    state = deployment.task_groups["group"]
    assert (state.desired_canaries, state.desired_total, state.promoted) == (1, 3, False)
    assert state.placed_canaries == [canary.id]
    assert deployment.status_description == "Deployment is running but requires manual promotion"


def test_canaries_that_promote_themselves_say_so() -> None:
    world, job = deployed()
    world.register(version(1, auto_promote=True))
    world.run(job)
    assert latest(world, job).status_description == (
        "Deployment is running pending automatic promotion"
    )


def test_healthy_canaries_wait_to_be_promoted() -> None:
    world, job = deployed(canary=2)
    world.register(version(1, canary=2))
    world.run(job)
    settle(world, job)
    assert versions(world, job) == [0, 0, 0, 1, 1]
    assert latest(world, job).status == "running"


def test_promotion_replaces_those_of_the_canaries_names_first_and_then_rolls() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    settle(world, job)
    promote(world, job)
    decision = world.run(job, "deployment-watcher")
    (update,) = decision.annotations.desired_tg_updates.values()
    assert (update.stop, update.destructive_update) == (1, 1)
    assert sorted(world.names(job)) == [f"web.group[{n}]" for n in range(3)]
    settle(world, job)
    assert versions(world, job) == [1, 1, 1]
    assert latest(world, job).status == "successful"


def test_blue_and_green_are_both_there_whole_until_promotion() -> None:
    world, job = deployed(canary=3)
    world.register(version(1, canary=3))
    world.run(job)
    settle(world, job)
    assert versions(world, job) == [0, 0, 0, 1, 1, 1]
    promote(world, job)
    settle(world, job)
    assert versions(world, job) == [1, 1, 1]


def test_more_canaries_than_the_count_have_names_beyond_it() -> None:
    world, job = deployed(count=1)
    world.register(version(1, canary=3, count=1))
    world.run(job)
    names = sorted(a.name for a in world.live(job) if a.job.version == 1)
    assert names == ["web.group[0]", "web.group[1]", "web.group[2]"]
    settle(world, job)
    promote(world, job)
    settle(world, job)
    assert versions(world, job) == [1]


def test_canaries_of_a_failed_deployment_are_stopped_and_the_old_version_stays() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    with world.transaction() as tx:
        deployments.set_status(tx, latest(world, job).id, "failed", "Deployment marked as failed")
    decision = world.run(job, "deployment-watcher")
    assert decision.annotations.desired_tg_updates["group"].stop == 1
    assert versions(world, job) == [0, 0, 0]
    assert world.run(job).plan is None


def test_canaries_of_an_older_version_make_way_for_newer_ones() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    world.register(version(2))
    world.run(job)
    assert versions(world, job) == [0, 0, 0, 2]


def test_what_is_lost_while_canaries_run_comes_back_in_the_old_version() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    lost = next(a for a in world.live(job) if a.job.version == 0)
    stranded = [a for a in world.live(job) if a.node_id == lost.node_id]
    world.change_node(lost.node_id, status="down")
    decision = world.run(job, "node-update")
    assert versions(world, job) == [0, 0, 0, 1]
    for alloc in decision.plan.placements:
        if not alloc.deployment_status:
            assert alloc.job.version == 0
    again = [a for a in world.live(job) if a.previous_allocation in {s.id for s in stranded}]
    assert {a.job.version for a in again} == {0}
    assert {a.deployment_id for a in again} == {lost.deployment_id}


def test_a_canary_whose_node_is_lost_is_followed_by_a_canary() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    (canary,) = [a for a in world.live(job) if a.job.version == 1]
    world.change_node(canary.node_id, status="down")
    world.run(job, "node-update")
    (again,) = [a for a in world.live(job) if a.job.version == 1]
    assert again.id != canary.id
    assert again.deployment_status.canary
    assert versions(world, job) == [0, 0, 0, 1]


def test_a_canary_that_must_move_is_stopped_and_made_anew() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    (canary,) = [a for a in world.live(job) if a.job.version == 1]
    world.transition([canary], migrate=True)
    world.run(job, "node-drain")
    assert versions(world, job) == [0, 0, 0, 1]
    (again,) = [a for a in world.live(job) if a.job.version == 1]
    assert again.id != canary.id


def test_a_failed_canary_is_followed_by_one_that_counts_the_attempt() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    (canary,) = [a for a in world.live(job) if a.job.version == 1]
    world.report(canary, status="failed")
    assert world.run(job, "alloc-failure").plan is None
    world.now += 60 * SECOND
    world.transition([canary], reschedule=True)
    world.run(job, "deployment-watcher")
    (again,) = [a for a in world.live(job) if a.job.version == 1]
    assert again.previous_allocation == canary.id
    assert len(again.reschedule_tracker.events) == 1
    assert again.deployment_status.canary


def test_scaling_down_while_canaries_run_stops_none_of_them() -> None:
    world, job = deployed()
    world.register(version(1))
    world.run(job)
    world.register(version(2, count=2))
    world.run(job)
    assert versions(world, job) == [0, 0, 2]


def test_an_update_in_place_needs_no_canaries() -> None:
    world, job = deployed()
    changed = msgspec.structs.replace(version(0), priority=60)
    world.register(changed)
    decision = world.run(job)
    assert decision.annotations.desired_tg_updates["group"].in_place_update == 3
    assert decision.annotations.desired_tg_updates["group"].canary == 0


STEPS = st.lists(
    st.sampled_from(["update", "promote", "fail", "heal", "lose", "return", "alloc-fails", "look"]),
    max_size=14,
)


@given(
    steps=STEPS,
    canary=st.integers(0, 3),
    count=st.integers(1, 4),
    parallel=st.integers(1, 3),
    picks=st.lists(st.integers(0, 10), min_size=14, max_size=14),
)
@settings(max_examples=120, deadline=None)
def test_whatever_happens_the_group_keeps_its_count_and_canaries_theirs(
    steps: list[str], canary: int, count: int, parallel: int, picks: list[int]
) -> None:
    world, job = deployed(canary, count)
    number = 0
    for step, pick in zip(steps, picks, strict=False):
        live = world.live(job)
        deployment = latest(world, job)
        active = deployment is not None and deployment.status == "running"
        if step == "update":
            number += 1
            world.register(version(number, canary, count, max_parallel=parallel))
        elif step == "promote" and active:
            state = deployment.task_groups["group"]
            sound = [a for a in live if a.id in (state.placed_canaries or []) and _healthy(a)]
            if state.desired_canaries and len(sound) >= state.desired_canaries:
                promote(world, job)
        elif step == "fail" and active:
            with world.transaction() as tx:
                deployments.set_status(tx, deployment.id, "failed", "")
        elif step == "heal":
            waiting = [a for a in live if not _healthy(a)]
            if waiting:
                world.healthy(*waiting)
        elif step == "lose":
            world.change_node(NODES[pick % 3], status="down")
        elif step == "return":
            world.change_node(NODES[pick % 3], status="ready")
        elif step == "alloc-fails" and live:
            world.report(live[pick % len(live)], status="failed")
        world.now += 90 * SECOND
        world.run(job, "node-update")
        after = world.live(job)
        canaries = [a for a in after if a.deployment_status and a.deployment_status.canary]
        assert len(canaries) <= canary
        assert len(after) - len(canaries) <= count
        others = [alloc_index(a) for a in after if a not in canaries]
        assert len(set(others)) == len(others)
        assert all(0 <= index < count for index in others)
        world.check()
    # In the end: a version that is let through is all there is.
    for name in NODES:
        world.change_node(name, status="ready")
    number += 1
    world.register(version(number, canary, count, max_parallel=parallel))
    world.run(job)
    settle(world, job)
    if latest(world, job).status == "running":
        promote(world, job)
        settle(world, job, rounds=30)
    newest = world.snapshot.job("default", "web").version
    assert versions(world, job) == [newest] * count
    assert latest(world, job).status == "successful"
