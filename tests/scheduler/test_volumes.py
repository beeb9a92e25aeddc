"""Dynamic host volumes in the scheduler: who may have which, one for each allocation, and sticky ones."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from scheduling_world import (
    NAMESPACE,
    SECOND,
    World,
    constraint,
    make_group,
    make_job,
    make_node,
    rolling,
)

from nomadpy.models.explanation import GroupExplanation
from nomadpy.models.host_volume import HostVolume, HostVolumeCapability
from nomadpy.models.job import EphemeralDisk, Job, VolumeRequest
from nomadpy.models.node import HostVolumeInfo, Node
from nomadpy.models.what_if import RebalanceRequest
from nomadpy.scheduler.explain import explain_job
from nomadpy.scheduler.rebalance import rebalance
from nomadpy.server.leader.plan_applier import check_plan
from nomadpy.state import plan_results

ALL = (
    "single-node-reader-only",
    "single-node-writer",
    "single-node-single-writer",
    "single-node-multi-writer",
)


def volume(
    node: str, name: str = "data", *, modes: tuple[str, ...] = ALL, **more: Any
) -> HostVolume:
    capabilities = [
        HostVolumeCapability(attachment_mode="file-system", access_mode=mode) for mode in modes
    ]
    fields: dict[str, Any] = {"namespace": NAMESPACE, "state": "ready"}
    return HostVolume(
        **{
            **fields,
            "id": f"{node}-{name}",
            "name": name,
            "node_id": node,
            "requested_capabilities": capabilities,
            **more,
        }
    )


def holder(name: str, *volumes: str, **fields: Any) -> Node:
    """A node that tells of these volumes."""
    there = {one: HostVolumeInfo(name=one, path="/v", id=f"{name}-{one}") for one in volumes}
    return make_node(name, host_volumes=there, **fields)


def user(name: str = "db", count: int = 1, **more: Any) -> Job:
    group = {k: more.pop(k) for k in ("update", "ephemeral_disk") if k in more}
    request = VolumeRequest(**{"name": "v", "type": "host", "source": "data", **more})
    return make_job(name, make_group(count=count, volumes={"v": request}, **group))


def world_of(*nodes: str, **more: Any) -> World:
    """Nodes with a volume `data` each, in a cluster that makes claims."""
    world = World()
    world.claim_volumes()
    world.add_nodes(*(holder(node, "data") for node in nodes))
    world.add_volumes(*(volume(node, **more) for node in nodes))
    return world


def homes(world: World, job: Job) -> list[str]:
    return sorted(alloc.node_id for alloc in world.live(job))


def waits(world: World, job: Job) -> dict[str, int]:
    """Why the job is not placed."""
    world.run(job)
    assert not world.live(job)
    evaluations = world.snapshot.evals_by_job(NAMESPACE, job.id)
    (blocked,) = [one for one in evaluations if one.status == "blocked"]
    (metric,) = (blocked.failed_tg_allocs or {}).values()
    return dict(metric.constraint_filtered or {})


def explained(world: World, job: Job) -> GroupExplanation:
    found = explain_job(job, world.snapshot, world.entropy).groups
    assert found
    return found[0]


def test_a_volume_that_nobody_has_is_told_with_those_that_are_named_like_it() -> None:
    world = World()
    world.add_nodes(holder("n1", "data1"), holder("n2", "data1", "logs"))
    job = world.register(user())
    assert waits(world, job) == {"missing compatible host volumes": 2}
    (said,) = explained(world, job).suggestions or []
    assert said == (
        'no node has host volume "data"; there are: data1 (n1, n2), logs (n2). Did you mean "data1"?'
    )


# -- who may have it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "asked", "said"),
    [
        ({"state": "pending"}, {}, 'its volume "data" is pending'),
        ({"state": "unavailable"}, {}, 'its volume "data" is unavailable'),
        (
            {"modes": ("single-node-single-writer",)},
            {},
            "does not offer single-node-writer file-system, only single-node-single-writer file-system",
        ),
        (
            {"modes": ("single-node-writer",)},
            {"read_only": True},
            "does not offer single-node-reader-only",
        ),
        ({}, {"attachment_mode": "block-device"}, "does not offer single-node-writer block-device"),
        ({}, {"access_mode": "single-node-reader-only"}, "would be written"),
    ],
)
def test_a_volume_that_is_not_ready_or_does_not_offer_what_is_asked_will_not_do(
    wrong: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    world = world_of("n1", **wrong)
    job = world.register(user(**asked))
    assert waits(world, job) == {"missing compatible host volumes": 1}
    found = explained(world, job)
    (verdict,) = found.nodes or []
    (obstacle,) = verdict.obstacles or []
    assert obstacle.kind == "host volume"
    assert said in obstacle.text
    assert any(said in one for one in found.suggestions or [])


def test_a_volume_that_the_state_does_not_know_will_not_do() -> None:
    world = World()
    world.add_nodes(holder("n1", "data"))
    job = world.register(user())
    assert waits(world, job) == {"missing compatible host volumes": 1}
    (verdict,) = explained(world, job).nodes or []
    assert 'not one of namespace "default"' in (verdict.obstacles or [])[0].text


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ({}, {}, True),
        ({"access_mode": ALL[3]}, {"access_mode": ALL[3]}, True),
        ({"access_mode": ALL[2]}, {"access_mode": ALL[2]}, False),
        ({"access_mode": ALL[2]}, {}, False),
        ({}, {"access_mode": ALL[2]}, False),
        ({"access_mode": ALL[2]}, {"read_only": True}, True),
        ({"read_only": True}, {"access_mode": ALL[2]}, True),
    ],
)
def test_who_must_write_alone_writes_alone(
    first: dict[str, Any], second: dict[str, Any], both: bool
) -> None:
    world = world_of("n1")
    one, other = user("one", **first), user("other", **second)
    world.deploy(one)
    world.deploy(other)
    assert homes(world, one) == ["n1"]
    assert homes(world, other) == (["n1"] if both else [])
    if not both:
        (verdict,) = explained(world, other).nodes or []
        assert "is written by allocation" in (verdict.obstacles or [])[0].text
        # When the first has ended, the volume is free.
        world.stop(one)
        world.run(one)
        world.run(other)
        assert homes(world, other) == ["n1"]


def test_of_a_group_that_writes_alone_each_gets_a_volume_of_its_own_or_waits() -> None:
    world = world_of("n1", "n2")
    job = user(count=3, access_mode="single-node-single-writer")
    world.deploy(job)
    assert homes(world, job) == ["n1", "n2"]


def test_the_allocation_that_is_replaced_does_not_stand_in_the_way() -> None:
    world = world_of("n1")
    job = user(access_mode="single-node-single-writer", update=rolling())
    world.deploy(job)
    (before,) = world.live(job)
    group = (job.task_groups or [])[0]
    changed = msgspec.structs.replace(group, meta={"version": "2"})
    world.deploy(msgspec.structs.replace(job, task_groups=[changed]))
    (after,) = world.live(job)
    assert (after.previous_allocation, after.node_id) == (before.id, "n1")


def test_two_plans_of_one_snapshot_do_not_both_get_a_volume_that_is_written_alone() -> None:
    world = world_of("n1")
    one, other = (user(name, access_mode="single-node-single-writer") for name in ("one", "other"))
    for job in (one, other):
        world.register(job)
    decisions = [world.decide(world.evaluation(job)) for job in (one, other)]
    world.apply(decisions[0])
    late = decisions[1].plan
    assert late is not None
    committed, rejected = check_plan(world.snapshot, late)
    assert (committed.placements, rejected) == ([], ["n1"])


def test_a_plan_for_a_volume_that_is_gone_meanwhile_is_refused() -> None:
    world = world_of("n1")
    job = world.register(user())
    plan = world.decide(world.evaluation(job)).plan
    assert plan is not None
    assert check_plan(world.snapshot, plan)[1] == []
    world.add_volumes(volume("n1", state="unavailable"))
    assert check_plan(world.snapshot, plan)[1] == ["n1"]


def test_a_static_volume_needs_no_record_and_has_no_claims() -> None:
    world = World()
    world.claim_volumes()
    world.add_nodes(make_node("n1", host_volumes={"data": HostVolumeInfo(name="data", path="/d")}))
    job = user(count=2, sticky=True, access_mode="single-node-single-writer")
    world.deploy(job)
    assert homes(world, job) == ["n1", "n1"]
    assert list(world.snapshot.volume_claims()) == []


def test_a_system_job_runs_where_the_volume_is() -> None:
    world = world_of("n1", "n3")
    world.add_nodes(make_node("n2"))
    job = msgspec.structs.replace(user(sticky=True), type="system")
    world.deploy(job)
    assert homes(world, job) == ["n1", "n3"]


# -- one for each allocation ----------------------------------------------------------------------------------


def test_with_per_alloc_the_allocation_of_an_index_goes_to_the_volume_of_that_index() -> None:
    world = World()
    nodes = {"n1": ["data[1]"], "n2": ["data[0]", "data[3]"], "n3": ["data"]}
    world.add_nodes(*(holder(node, *names) for node, names in nodes.items()))
    world.add_volumes(*(volume(node, name) for node, names in nodes.items() for name in names))
    job = user(count=4, per_alloc=True, update=rolling(4))
    world.deploy(job)
    placed = {alloc.name: alloc.node_id for alloc in world.live(job)}
    assert placed == {"db.group[0]": "n2", "db.group[1]": "n1", "db.group[3]": "n2"}
    found = explained(world, job)
    assert any('no node has host volume "data[2]"' in one for one in found.suggestions or [])
    # What is made later is found by the one that waits for it.
    world.add_nodes(holder("n4", "data[2]"))
    world.add_volumes(volume("n4", "data[2]"))
    world.run(job)
    assert {a.name: a.node_id for a in world.live(job)}["db.group[2]"] == "n4"


def test_a_change_that_keeps_an_allocation_looks_at_the_volume_of_its_index() -> None:
    world = World()
    world.add_nodes(holder("n1", "data[0]"), holder("n2", "data[1]"))
    world.add_volumes(volume("n1", "data[0]"), volume("n2", "data[1]"))
    job = user(count=2, per_alloc=True)
    world.deploy(job)
    before = {alloc.id for alloc in world.live(job)}
    world.deploy(msgspec.structs.replace(job, priority=60))
    assert {alloc.id for alloc in world.live(job)} == before


# -- sticky ---------------------------------------------------------------------------------------------------


def test_a_replacement_goes_where_the_volume_is_even_if_it_failed_there() -> None:
    world = world_of("n1", "n2", "n3")
    job = user(sticky=True)
    world.deploy(job)
    (home,) = homes(world, job)
    for _ in range(4):
        world.report(*world.live(job), status="failed")
        world.now += 4000 * SECOND
        world.run(job, "alloc-failure")
        assert homes(world, job) == [home]
    (claim,) = world.snapshot.volume_claims()
    (alloc,) = world.live(job)
    assert (claim.alloc_id, claim.volume_id) == (alloc.id, f"{home}-data")


def test_a_replacement_waits_when_the_node_of_its_volume_is_away() -> None:
    world = world_of("n1", "n2")
    job = user(sticky=True)
    world.deploy(job)
    (home,) = homes(world, job)
    world.change_node(home, status="down")
    decision = world.run(job, "node-update")
    assert homes(world, job) == []
    found = explained(world, job)
    (claim,) = world.snapshot.volume_claims()
    assert any(
        f'the group holds volume "data" on node {home}' in one and claim.id in one
        for one in found.suggestions or []
    ), found.suggestions
    assert decision.queued == {"group": 1}
    world.change_node(home, status="ready")
    world.run(job, "node-update")
    assert homes(world, job) == [home]


def test_first_placements_prefer_volumes_that_nobody_holds() -> None:
    world = world_of("n1", "n2", "n3")
    job = user(count=3, sticky=True)
    world.deploy(job)
    assert homes(world, job) == ["n1", "n2", "n3"]
    # With none left, one that is held will do: the mode allows it.
    other = user("other", sticky=True)
    world.deploy(other)
    assert len(homes(world, other)) == 1


def test_more_of_a_group_get_more_volumes_and_who_comes_back_gets_one_that_was_left() -> None:
    world = world_of("n1", "n2", "n3")
    job = user(count=2, sticky=True)
    world.deploy(job)
    first = homes(world, job)
    grown = user(count=3, sticky=True)
    world.deploy(grown)
    assert homes(world, job) == ["n1", "n2", "n3"]
    world.deploy(user(count=1, sticky=True))
    world.deploy(grown)
    assert homes(world, job) == ["n1", "n2", "n3"]
    assert len(first) == 2


def test_a_job_that_was_stopped_finds_its_volume_again_and_one_that_was_purged_begins_anew() -> (
    None
):
    world = world_of("n1", "n2")
    job = user(sticky=True)
    world.deploy(job)
    (home,) = homes(world, job)
    other = "n2" if home == "n1" else "n1"
    world.stop(job)
    world.run(job)
    # The other node is now the one that the scheduler likes better.
    world.deploy(
        make_job(
            "filler",
            make_group(count=1, constraints=[constraint("${node.unique.name}", "=", other)]),
        )
    )
    world.deploy(job)
    assert homes(world, job) == [home]
    world.stop(job, purge=True)
    world.run(job)
    world.deploy(job)
    assert homes(world, job) == [other]


def test_what_writes_into_a_volume_is_not_moved_for_balance() -> None:
    world = World()
    nodes = [holder(name, "data", cpu=2000) for name in ("n1", "n2")]
    world.add_nodes(*nodes)
    world.add_volumes(volume("n1"), volume("n2"))
    world.configure(scheduler_algorithm="spread")
    request = RebalanceRequest(max_moves=5, goal="pack")
    # What only reads, or has no volume, would move.
    for job, moves in ((user(), 0), (user("reader", read_only=True), 1)):
        world.configure(scheduler_algorithm="spread")
        world.deploy(make_job("filler", make_group(count=1)))
        world.deploy(job)
        world.report(*world.live(job))
        assert len({alloc.node_id for alloc in world.snapshot.allocs()}) == 2
        world.configure(scheduler_algorithm="binpack")
        asked = msgspec.structs.replace(request, job_id=job.id)
        assert len(rebalance(world.snapshot, asked, entropy=world.entropy).moves) == moves
        world.stop(job)
        world.run(job)


@settings(max_examples=120, deadline=None)
@given(
    held=st.lists(st.sampled_from(["data", "both", "none"]), min_size=1, max_size=5),
    count=st.integers(1, 3),
    disk=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["fail", "down", "up", "update", "scale", "stop", "drain"]),
            st.integers(0, 9),
        ),
        max_size=10,
    ),
)
def test_who_comes_after_a_holder_goes_to_its_volume_or_nowhere(
    held: list[str], count: int, disk: bool, steps: list[tuple[str, int]]
) -> None:
    world = World()
    world.claim_volumes()
    names = {f"n{n}": ["data"] if kind == "data" else [] for n, kind in enumerate(held)}
    names = {
        n: names[n] or (["data", "logs"] if held[i] == "both" else []) for i, n in enumerate(names)
    }
    world.add_nodes(*(holder(node, *volumes) for node, volumes in names.items()))
    world.add_volumes(*(volume(node, one) for node, volumes in names.items() for one in volumes))

    def wanted(count: int, version: int) -> Job:
        job = user(count=count, sticky=True, ephemeral_disk=EphemeralDisk(size_mb=300, sticky=disk))
        (group,) = job.task_groups or []
        changed = msgspec.structs.replace(group, meta={"version": str(version)})
        return msgspec.structs.replace(job, task_groups=[changed])

    version = 0
    job = wanted(count, version)
    world.register(job)

    def decide() -> None:
        before = {claim.alloc_id: claim.volume_id for claim in world.snapshot.volume_claims()}
        known = {alloc.id for alloc in world.snapshot.allocs()}
        world.run(job)
        world.check()
        held_by = [claim.volume_id for claim in world.snapshot.volume_claims()]
        assert len(held_by) == len(set(held_by))
        for alloc in world.allocs(job):
            if alloc.id in known or not alloc.previous_allocation:
                continue
            volume_id = before.get(alloc.previous_allocation)
            if volume_id is not None:
                event("it came after a holder")
                assert volume_id == f"{alloc.node_id}-data"
                assert any(
                    claim.volume_id == volume_id and claim.alloc_id == alloc.id
                    for claim in world.snapshot.volume_claims()
                )

    decide()
    for kind, pick in steps:
        node = f"n{pick % len(held)}"
        live = world.live(job)
        if kind == "fail" and live:
            world.report(live[pick % len(live)], status="failed")
            world.now += 4000 * SECOND
        elif kind in ("down", "up"):
            world.change_node(node, status="ready" if kind == "up" else "down")
        elif kind == "drain" and live:
            world.transition([live[pick % len(live)]], migrate=True)
        elif kind == "stop":
            world.stop(job)
            world.run(job)
            world.register(job)
        elif kind in ("update", "scale"):
            version += kind == "update"
            job = wanted(pick % 3 + 1 if kind == "scale" else count, version)
            world.register(job)
        decide()
    for alloc in world.live(job):
        assert "data" in names[alloc.node_id]


@settings(max_examples=60, deadline=None)
@given(
    nodes=st.integers(1, 3),
    made=st.lists(
        st.tuples(st.sampled_from(ALL[1:]), st.booleans(), st.integers(1, 3)),
        min_size=2,
        max_size=5,
    ),
)
def test_plans_of_one_snapshot_never_give_a_volume_to_two_where_one_must_write_alone(
    nodes: int, made: list[tuple[str, bool, int]]
) -> None:
    world = world_of(*(f"n{number}" for number in range(nodes)))
    jobs = [
        world.register(user(f"job{number}", count=count, access_mode=mode, sticky=held))
        for number, (mode, held, count) in enumerate(made)
    ]
    plans = [world.decide(world.evaluation(job)).plan for job in jobs]
    for plan in plans:
        if plan is not None:
            committed, rejected = check_plan(world.snapshot, plan)
            event("a late plan is refused in part" if rejected else "a plan holds")
            with world.transaction() as tx:
                assert plan_results.upsert(tx, [committed]) == [""]
    for number in range(nodes):
        modes = [
            request.access_mode
            for alloc in world.snapshot.allocs_by_node(f"n{number}")
            if alloc.job is not None
            for group in alloc.job.task_groups or []
            for request in (group.volumes or {}).values()
        ]
        assert len(modes) < 2 or "single-node-single-writer" not in modes
