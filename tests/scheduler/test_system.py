"""System and sysbatch jobs: one on every node."""

from typing import Any

from scheduling_world import (
    SECOND,
    World,
    constraint,
    make_group,
    make_job,
    make_node,
    make_task,
    rolling,
)

from nomadpy.models.annotations import DesiredUpdates
from nomadpy.models.job import Job
from nomadpy.models.resources import Resources


def cluster(*names: str) -> World:
    world = World()
    world.add_nodes(*[make_node(name) for name in names or ("a", "b", "c")])
    return world


def everywhere(*groups: Any, **fields: Any) -> Job:
    return make_job("everywhere", *groups, **{"type": "system", **fields})


def where(world: World, job: Job) -> list[str]:
    return sorted(alloc.node_id for alloc in world.live(job))


def test_a_system_job_runs_once_on_every_node() -> None:
    world = cluster()
    job = everywhere()
    decision = world.deploy(job)
    assert where(world, job) == ["a", "b", "c"]
    assert set(world.names(job)) == {"everywhere.group[0]"}
    assert decision.annotations.desired_tg_updates == {"group": DesiredUpdates(place=3)}
    assert world.run(job).plan is None
    world.add_nodes(make_node("d"))
    world.run(job, "node-update")
    assert where(world, job) == ["a", "b", "c", "d"]


def test_nodes_that_cannot_run_it_are_no_failure() -> None:
    world = cluster()
    job = everywhere(constraints=[constraint("${node.unique.id}", "!=", "b")])
    decision = world.deploy(job)
    assert where(world, job) == ["a", "c"]
    assert decision.failed_tg_allocs == {}


def test_a_full_node_waits_for_room() -> None:
    world = cluster("a")
    world.add_nodes(make_node("small", cpu=100), make_node("tiny", cpu=50))
    job = everywhere()
    decision = world.deploy(job)
    assert where(world, job) == ["a"]
    metric = decision.failed_tg_allocs["group"]
    assert (metric.nodes_exhausted, metric.dimension_exhausted) == (2, {"cpu": 2})
    ended, blocked = decision.evaluations
    assert ended.queued_allocations == {"group": 2}
    assert (blocked.status, ended.blocked_eval) == ("blocked", blocked.id)


def test_a_dead_node_loses_it_and_an_ineligible_one_keeps_it() -> None:
    world = cluster()
    job = everywhere()
    world.deploy(job)
    world.report(*world.live(job))
    world.change_node("a", status="down")
    world.change_node("b", scheduling_eligibility="ineligible")
    world.run(job, "node-update")
    assert where(world, job) == ["b", "c"]
    assert next(a for a in world.allocs(job) if a.node_id == "a").client_status == "lost"
    world.change_node("a", status="ready")
    world.run(job, "node-update")
    assert where(world, job) == ["a", "b", "c"]


def test_a_node_that_the_job_no_longer_fits_loses_it() -> None:
    world = cluster()
    job = everywhere()
    world.deploy(job)
    world.change_node("a", datacenter="dc9")
    world.change_node("b", node_pool="other")
    world.register(everywhere(datacenters=["dc1"]))
    world.run(job)
    assert where(world, job) == ["c"]


def test_a_drain_moves_it_off_only_when_asked() -> None:
    world = cluster()
    job = everywhere()
    world.deploy(job)
    world.change_node("a", drain=True, scheduling_eligibility="ineligible")
    assert world.run(job, "node-drain").plan is None
    world.transition([a for a in world.live(job) if a.node_id == "a"], migrate=True)
    decision = world.run(job, "node-drain")
    assert where(world, job) == ["b", "c"]
    assert decision.annotations.desired_tg_updates == {"group": DesiredUpdates(migrate=1, ignore=2)}
    stopped = next(a for a in world.allocs(job) if a.node_id == "a")
    assert stopped.desired_description == "alloc not needed as node is tainted"


def test_an_update_rolls_in_steps_of_max_parallel() -> None:
    world = cluster()
    job = everywhere(update=rolling(2))
    world.deploy(job)
    decision = world.deploy(everywhere(update=rolling(2), meta={"v": "2"}))
    assert decision.annotations.desired_tg_updates == {
        "group": DesiredUpdates(destructive_update=2, ignore=1)
    }
    _, rest = decision.evaluations
    assert rest.triggered_by == "rolling-update"
    world.now += 30 * SECOND
    world.apply(world.decide(rest))
    assert {a.job.version for a in world.live(job) if a.job} == {1}
    assert where(world, job) == ["a", "b", "c"]
    assert world.run(job).plan is None


def test_an_update_in_place_touches_every_node_at_once() -> None:
    world = cluster()
    job = everywhere(update=rolling(1))
    world.deploy(job)
    before = {a.id for a in world.live(job)}
    world.deploy(everywhere(update=rolling(1), priority=70))
    assert {a.id for a in world.live(job)} == before
    assert {a.job.version for a in world.live(job) if a.job} == {1}


def test_a_replacement_that_does_not_fit_leaves_the_old_one() -> None:
    world = cluster("a")
    job = everywhere()
    world.deploy(job)
    before = where(world, job)
    bigger = everywhere(make_group(tasks=[make_task(resources=Resources(cpu=9999, memory_mb=1))]))
    decision = world.deploy(bigger)
    assert where(world, job) == before
    assert decision.queued == {"group": 1}


def test_a_failed_system_allocation_is_started_again() -> None:
    world = cluster("a")
    job = everywhere()
    world.deploy(job)
    (broken,) = world.live(job)
    world.report(broken, status="failed")
    world.run(job, "alloc-failure")
    (again,) = world.live(job)
    assert again.previous_allocation == broken.id


def test_sysbatch_runs_once_a_node_and_version() -> None:
    world = cluster("a", "b")
    job = make_job("sweep", type="sysbatch")
    world.deploy(job)
    world.report(*world.live(job), status="complete")
    assert world.run(job, "node-update").plan is None
    world.add_nodes(make_node("c"))
    world.run(job, "node-update")
    assert where(world, job) == ["c"]
    world.deploy(make_job("sweep", type="sysbatch", meta={"v": "2"}))
    assert where(world, job) == ["a", "b", "c"]


def test_stopping_a_system_job_stops_it_everywhere() -> None:
    world = cluster()
    job = everywhere()
    world.deploy(job)
    world.stop(job)
    decision = world.run(job, "job-deregister")
    assert world.live(job) == []
    assert decision.annotations.desired_tg_updates == {"group": DesiredUpdates(stop=3)}
