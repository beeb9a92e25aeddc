"""Service and batch jobs: counts, stops, updates, lost and moved allocations, disconnected nodes."""

from typing import Any

import msgspec
import pytest
from scheduling_world import (
    SECOND,
    World,
    constraint,
    dynamic_ports,
    make_group,
    make_job,
    make_node,
    make_task,
    rolling,
)

from nomadpy.errors import InvalidRequestError
from nomadpy.models.annotations import DesiredUpdates
from nomadpy.models.job import DisconnectStrategy, EphemeralDisk, Job
from nomadpy.models.resources import Resources
from nomadpy.models.service import Service
from nomadpy.models.task_blocks import LogConfig, RestartPolicy
from nomadpy.scheduler.decision import failed
from nomadpy.scheduler.schedule import schedule


def cluster(*names: str) -> World:
    world = World()
    world.add_nodes(*[make_node(name) for name in names or ("a", "b", "c")])
    return world


def updates(world_decision: Any) -> DesiredUpdates:
    wanted = world_decision.annotations.desired_tg_updates
    return wanted["group"]


def test_a_job_gets_its_count_with_indexed_names() -> None:
    world = cluster()
    job = make_job("web", make_group(count=3))
    decision = world.deploy(job)
    assert world.names(job) == ["web.group[0]", "web.group[1]", "web.group[2]"]
    assert updates(decision) == DesiredUpdates(place=3)
    (ended,) = decision.evaluations
    assert (ended.status, ended.queued_allocations) == ("complete", {"group": 0})
    alloc = world.live(job)[0]
    assert (alloc.node_name, alloc.eval_id, alloc.client_status) == (
        alloc.node_id,
        ended.id,
        "pending",
    )


def test_nothing_to_do_makes_no_plan() -> None:
    world = cluster()
    job = make_job("web", make_group(count=3))
    world.deploy(job)
    again = world.run(job)
    assert again.plan is None
    assert updates(again) == DesiredUpdates(ignore=3)


def test_scaling_down_stops_the_highest_indexes_first() -> None:
    world = cluster()
    job = make_job("web", make_group(count=4))
    world.deploy(job)
    decision = world.deploy(make_job("web", make_group(count=2)))
    assert world.names(job) == ["web.group[0]", "web.group[1]"]
    assert updates(decision).stop == 2
    stopped = [alloc for alloc in world.allocs(job) if alloc.desired_status == "stop"]
    assert {alloc.desired_description for alloc in stopped} == {
        "alloc not needed due to job update"
    }


def test_scaling_down_stops_what_failed_before_what_runs() -> None:
    world = cluster()
    job = make_job("web", make_group(count=3, reschedule_policy=None))
    world.deploy(job)
    first = world.live(job)[0]
    world.report(*world.live(job)[1:])
    world.report(first, status="failed")
    world.deploy(make_job("web", make_group(count=2, reschedule_policy=None)))
    assert world.names(job) == ["web.group[1]", "web.group[2]"]


def test_scaling_up_reuses_the_lowest_free_index() -> None:
    world = cluster()
    job = make_job("web", make_group(count=3))
    world.deploy(job)
    # A service task that ends is not wanted ended: its place is filled anew.
    world.report(world.live(job)[1], status="complete")
    world.deploy(make_job("web", make_group(count=4)))
    assert world.names(job) == [f"web.group[{i}]" for i in range(4)]
    assert len(world.allocs(job)) == 5


@pytest.mark.parametrize("purge", [False, True])
def test_a_stopped_job_loses_everything(purge: bool) -> None:
    world = cluster()
    job = make_job("web", make_group(count=2), make_group("other", count=1))
    world.deploy(job)
    world.stop(job, purge=purge)
    decision = world.run(job, "job-deregister")
    assert world.live(job) == []
    assert decision.annotations.desired_tg_updates == {
        "group": DesiredUpdates(stop=2),
        "other": DesiredUpdates(stop=1),
    }
    assert world.run(job).plan is None


def test_a_removed_group_is_stopped() -> None:
    world = cluster()
    job = make_job("web", make_group(), make_group("old"))
    world.deploy(job)
    world.deploy(make_job("web", make_group()))
    assert world.names(job) == ["web.group[0]"]


def with_task(**fields: Any) -> Job:
    return make_job("web", make_group(count=2, tasks=[make_task(**fields)]))


@pytest.mark.parametrize(
    "changed",
    [
        with_task(config={"command": "/bin/false"}),
        with_task(driver="docker"),
        with_task(user="nobody"),
        with_task(env={"A": "1"}),
        with_task(meta={"a": "1"}),
        with_task(kill_signal="SIGINT"),
        with_task(resources=Resources(cpu=501, memory_mb=256)),
        with_task(resources=Resources(cpu=500, memory_mb=257)),
        with_task(log_config=LogConfig(disabled=True)),
        with_task(restart_policy=RestartPolicy(render_templates=True)),
        make_job("web", make_group(count=2, networks=[dynamic_ports("http")])),
        make_job("web", make_group(count=2, meta={"a": "1"})),
        make_job("web", make_group(count=2), meta={"a": "1"}),
        make_job("web", make_group(count=2, ephemeral_disk=EphemeralDisk(size_mb=301))),
        make_job("web", make_group(count=2, tasks=[make_task(), make_task("second")])),
        # No node of those in use may run it any more.
        make_job(
            "web", make_group(count=2), constraints=[constraint("${node.unique.id}", "=", "c")]
        ),
        make_job("web", make_group(count=2), datacenters=["dc2"]),
    ],
)
def test_what_a_running_task_cannot_take_over_replaces_it(changed: Job) -> None:
    world = cluster("a", "b")
    job = make_job("web", make_group(count=2))
    world.deploy(job)
    before = world.live(job)
    world.add_nodes(make_node("c"), make_node("d", datacenter="dc2"))
    decision = world.deploy(changed)
    assert updates(decision) == DesiredUpdates(destructive_update=2)
    after = world.live(job)
    assert {alloc.previous_allocation for alloc in after} == {alloc.id for alloc in before}
    assert [alloc.name for alloc in after] == [alloc.name for alloc in before]
    old = [alloc for alloc in world.allocs(job) if alloc.desired_status == "stop"]
    assert {alloc.desired_description for alloc in old} == {
        "alloc is being updated due to job update"
    }
    assert {alloc.next_allocation for alloc in old} == {alloc.id for alloc in after}
    assert world.run(job).plan is None


@pytest.mark.parametrize(
    "changed",
    [
        with_task(kill_timeout=9 * SECOND),
        with_task(restart_policy=RestartPolicy(attempts=9)),
        with_task(log_config=LogConfig(max_files=3)),
        with_task(services=[Service(name="web")]),
        with_task(constraints=[constraint("${attr.kernel.name}", "=", "linux")]),
        make_job("web", make_group(count=2, services=[Service(name="web")])),
        make_job("web", make_group(count=2, shutdown_delay=SECOND)),
        make_job("web", make_group(count=2, update=rolling())),
        make_job("web", make_group(count=2), priority=80),
        make_job("web", make_group(count=2), datacenters=["dc1"]),
    ],
)
def test_what_a_running_task_can_take_over_keeps_it(changed: Job) -> None:
    world = cluster()
    job = make_job("web", make_group(count=2))
    world.deploy(job)
    before = world.live(job)
    world.report(*before)
    decision = world.deploy(changed)
    assert updates(decision) == DesiredUpdates(in_place_update=2)
    after = world.live(job)
    assert [alloc.id for alloc in after] == [alloc.id for alloc in before]
    for alloc in after:
        assert alloc.job is not None
        assert alloc.job.version == 1
        assert alloc.client_status == "running"
    assert world.run(job).plan is None


def test_an_update_in_place_keeps_its_ports() -> None:
    world = cluster()
    group = make_group(networks=[dynamic_ports("http")])
    job = make_job("web", group)
    world.deploy(job)
    (before,) = world.live(job)
    world.deploy(make_job("web", msgspec.structs.replace(group, shutdown_delay=SECOND)))
    (after,) = world.live(job)
    assert after.allocated_resources == before.allocated_resources
    assert after.resources == before.resources


def test_a_replacement_may_use_the_room_that_it_frees() -> None:
    world = World()
    world.add_nodes(make_node("a", cpu=500))
    job = make_job("web", make_group())
    world.deploy(job)
    assert world.deploy(with_task_one(env={"A": "1"})).failed_tg_allocs == {}
    world.check()
    assert len(world.live(job)) == 1


def with_task_one(**fields: Any) -> Job:
    return make_job("web", make_group(tasks=[make_task(**fields)]))


def test_without_room_for_its_replacement_an_allocation_runs_on() -> None:
    world = World()
    world.add_nodes(make_node("a", cpu=500))
    job = make_job("web", make_group())
    world.deploy(job)
    before = world.live(job)
    decision = world.deploy(with_task_one(resources=Resources(cpu=501, memory_mb=1)))
    assert [alloc.id for alloc in world.live(job)] == [alloc.id for alloc in before]
    assert decision.queued == {"group": 1}
    assert decision.evaluations[1].status == "blocked"


def test_a_woken_evaluation_that_still_finds_no_room_waits_on_under_its_own_id() -> None:
    world = World()
    job = make_job("web", make_group(count=2))
    blocked = world.deploy(job).evaluations[1]
    world.add_nodes(make_node("a", cpu=500))
    decision = world.decide(blocked)
    world.apply(decision)
    (still,) = decision.evaluations
    assert (still.id, still.status, still.triggered_by) == (blocked.id, "blocked", "queued-allocs")
    assert still.queued_allocations == {"group": 1}
    assert len(world.live(job)) == 1
    world.add_nodes(make_node("b", cpu=500))
    decision = world.decide(still)
    world.apply(decision)
    assert [one.status for one in decision.evaluations] == ["complete"]
    assert len(world.live(job)) == 2


def test_a_migration_stops_here_and_starts_elsewhere() -> None:
    world = cluster("a", "b")
    job = make_job("web", make_group(count=2))
    world.deploy(job)
    moving = next(alloc for alloc in world.live(job) if alloc.node_id == "a")
    world.change_node("a", drain=True, scheduling_eligibility="ineligible")
    # Draining alone moves nothing: the drainer says when.
    assert world.run(job, "node-drain").plan is None
    world.transition([moving], migrate=True)
    decision = world.run(job, "node-drain")
    assert updates(decision) == DesiredUpdates(migrate=1, ignore=1)
    assert {alloc.node_id for alloc in world.live(job)} == {"b"}
    stopped = world.snapshot.alloc(moving.id)
    assert stopped is not None
    assert stopped.desired_description == "alloc is being migrated"
    replacement = next(a for a in world.live(job) if a.previous_allocation)
    assert (replacement.name, replacement.previous_allocation) == (moving.name, moving.id)


def test_allocations_of_a_dead_node_are_lost_and_replaced() -> None:
    world = cluster("a", "b")
    job = make_job("web", make_group(count=2))
    world.deploy(job)
    world.report(*world.live(job))
    world.change_node("a", status="down")
    decision = world.run(job, "node-update")
    assert updates(decision) == DesiredUpdates(place=1, stop=1, ignore=1)
    lost = next(alloc for alloc in world.allocs(job) if alloc.client_status == "lost")
    assert (lost.desired_status, lost.desired_description) == (
        "stop",
        "alloc is lost since its node is down",
    )
    assert [alloc.node_id for alloc in world.live(job)] == ["b", "b"]
    assert lost.id in {alloc.previous_allocation for alloc in world.live(job)}


def test_a_sticky_disk_draws_the_replacement_to_its_node() -> None:
    world = cluster("a", "b")
    disk = EphemeralDisk(size_mb=300, sticky=True)
    job = make_job("web", make_group(ephemeral_disk=disk))
    world.deploy(job)
    (before,) = world.live(job)
    other = "b" if before.node_id == "a" else "a"
    # The other node would win by bin packing.
    world.deploy(make_job("filler", constraints=[constraint("${node.unique.id}", "=", other)]))
    world.deploy(make_job("web", make_group(ephemeral_disk=disk), meta={"v": "2"}))
    assert [alloc.node_id for alloc in world.live(job)] == [before.node_id]


def test_a_batch_job_that_is_done_stays_done() -> None:
    world = cluster()
    job = make_job("once", make_group(count=2), type="batch")
    world.deploy(job)
    world.report(*world.live(job), status="complete")
    assert world.run(job).plan is None
    # Even when its node goes away.
    world.change_node("a", status="down")
    world.change_node("b", status="down")
    assert world.run(job, "node-update").plan is None
    # A new version is new work.
    world.deploy(make_job("once", make_group(count=2), type="batch", meta={"v": "2"}))
    assert len(world.live(job)) == 2


def test_batch_updates_replace_all_at_once_without_a_deployment() -> None:
    world = cluster()
    job = make_job("once", make_group(count=3), type="batch")
    world.deploy(job)
    decision = world.deploy(make_job("once", make_group(count=3), type="batch", meta={"v": "2"}))
    assert updates(decision).destructive_update == 3
    assert decision.plan is not None
    assert decision.plan.deployment is None


def disconnecting(**fields: Any) -> Job:
    return make_job(
        "web", make_group(disconnect=DisconnectStrategy(lost_after=60 * SECOND, **fields))
    )


def disconnected(job: Job) -> tuple[World, Any]:
    world = cluster("a", "b")
    world.deploy(job)
    world.report(*world.live(job))
    (original,) = world.live(job)
    world.change_node(original.node_id, status="disconnected")
    return world, original


def test_a_disconnected_allocation_is_unknown_and_replaced() -> None:
    job = disconnecting()
    world, original = disconnected(job)
    decision = world.run(job, "node-update")
    assert updates(decision) == DesiredUpdates(place=1, disconnect=1)
    now = world.snapshot.alloc(original.id)
    assert now is not None
    assert (now.client_status, now.desired_status) == ("unknown", "run")
    assert now.desired_description == "alloc is unknown since its node is disconnected"
    timeout = decision.evaluations[1]
    assert (timeout.triggered_by, timeout.id) == ("max-disconnect-timeout", now.followup_eval_id)
    assert world.run(job, "node-update").plan is None
    world.now += 60 * SECOND
    world.apply(world.decide(timeout))
    lost = world.snapshot.alloc(original.id)
    assert lost is not None
    assert (lost.client_status, lost.desired_status) == ("lost", "stop")
    assert len(world.live(job)) == 1


@pytest.mark.parametrize(
    ("strategy", "keeps_original"),
    [
        ("best_score", True),
        ("keep_original", True),
        ("longest_running", True),
        ("keep_replacement", False),
    ],
)
def test_when_a_node_returns_one_of_two_stays(strategy: str, keeps_original: bool) -> None:
    job = disconnecting(reconcile=strategy)
    world, original = disconnected(job)
    world.run(job, "node-update")
    replacement = next(a for a in world.live(job) if a.id != original.id)
    world.report(replacement)
    world.change_node(original.node_id, status="ready")
    # Until the client has spoken, nothing is decided.
    assert world.run(job, "node-update").plan is None
    world.report(original)
    world.run(job, "reconnect")
    (stays,) = world.live(job)
    assert (stays.id == original.id) is keeps_original
    loser = world.snapshot.alloc(replacement.id if keeps_original else original.id)
    assert loser is not None
    assert loser.desired_description == "alloc not needed due to disconnected client reconnect"
    assert world.run(job).plan is None


def test_without_replace_a_disconnected_allocation_keeps_its_place() -> None:
    job = disconnecting(replace=False)
    world, original = disconnected(job)
    decision = world.run(job, "node-update")
    assert updates(decision).place == 0
    assert [alloc.id for alloc in world.live(job)] == [original.id]
    assert world.run(job, "node-update").plan is None
    world.change_node(original.node_id, status="ready")
    world.report(original)
    assert world.run(job, "reconnect").plan is None


def test_without_a_disconnect_block_a_disconnected_node_is_lost() -> None:
    job = make_job()
    world, original = disconnected(job)
    world.run(job, "node-update")
    lost = world.snapshot.alloc(original.id)
    assert lost is not None
    assert lost.client_status == "lost"


def test_a_dry_run_tells_the_same_and_names_no_snapshot() -> None:
    world = cluster()
    job = make_job("web", make_group(count=2))
    world.deploy(job)
    world.register(make_job("web", make_group(count=3)))
    dry = schedule(
        world.evaluation(job), world.snapshot, now_ns=world.now, entropy=world.entropy, dry_run=True
    )
    assert updates(dry) == DesiredUpdates(place=1, in_place_update=2)
    assert dry.evaluations[0].snapshot_index == 0
    assert updates(world.run(job)) == updates(dry)


def test_an_unknown_type_has_no_scheduler() -> None:
    world = cluster()
    evaluation = msgspec.structs.replace(world.evaluation(make_job()), type="_core")
    with pytest.raises(InvalidRequestError, match="_core"):
        world.decide(evaluation)


def test_an_evaluation_whose_plans_were_refused_fails_and_blocks() -> None:
    world = cluster()
    evaluation = world.evaluation(make_job())
    ended, again = failed(
        evaluation,
        "maximum attempts reached (5)",
        snapshot_index=9,
        now_ns=5,
        entropy=world.entropy,
    )
    assert (ended.status, ended.blocked_eval) == ("failed", again.id)
    assert (again.status, again.triggered_by) == ("blocked", "max-plan-attempts")
    assert (again.previous_eval, again.escaped_computed_class) == (evaluation.id, True)


def test_an_evaluation_delivered_too_often_fails_and_is_followed_up() -> None:
    world = cluster()
    ended, again = failed(
        world.evaluation(make_job()),
        "evaluation reached delivery limit (3)",
        snapshot_index=9,
        now_ns=world.now,
        entropy=world.entropy,
        follow_up_wait_ns=60 * SECOND,
    )
    assert (ended.status, ended.next_eval) == ("failed", again.id)
    assert (again.status, again.triggered_by, again.wait) == (
        "pending",
        "failed-follow-up",
        60 * SECOND,
    )
