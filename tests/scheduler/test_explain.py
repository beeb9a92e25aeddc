"""Explanations: every obstacle with the node's value, what comes nearest, and what to do, in words."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preemption_world import NONE, a_world, sized
from scheduling_world import (
    World,
    constraint,
    make_group,
    make_job,
    make_node,
    make_task,
    static_port,
)

from nomadpy.models.explanation import GroupExplanation, JobExplanation
from nomadpy.models.job import Job
from nomadpy.models.node import NodeDevice, NodeDeviceResource, NodePool
from nomadpy.models.resources import RequestedDevice, Resources
from nomadpy.scheduler.explain import explain_job
from nomadpy.state import nodes


def explain(world: World, job: Job, **options) -> JobExplanation:
    return explain_job(
        world.snapshot.job("default", job.id), world.snapshot, world.entropy, **options
    )


def of(world: World, job: Job) -> GroupExplanation:
    (group,) = explain(world, job).groups
    return group


def a_cluster(**fields) -> World:
    world = World()
    world.add_nodes(*(make_node(f"n{number}", **fields) for number in range(3)))
    with world.transaction() as tx:
        nodes.upsert_pools(tx, [NodePool(name="gpus")])
    return world


def unplaced(world: World, job: Job) -> GroupExplanation:
    world.deploy(job)
    return of(world, job)


def test_a_misspelt_driver_is_told_with_what_there_is() -> None:
    job = make_job("web", make_group(tasks=[make_task(driver="dokcer")]))
    found = unplaced(a_cluster(), job)
    assert found.suggestions == [
        'no node has driver "dokcer"; available: docker, raw_exec. Did you mean "docker"?'
    ]
    assert found.summary == "1 of 1 cannot be placed: none of 3 nodes will do"
    assert found.tally == {"driver": 3}
    assert found.nearest.obstacles[0].text == 'it has no driver "dokcer"'


def test_missing_sick_and_taken_devices_are_told_apart() -> None:
    world = World()
    sick = NodeDeviceResource(
        vendor="nvidia",
        type="gpu",
        name="T4",
        instances=[NodeDevice(id="a", healthy=True), NodeDevice(id="b")],
    )
    node = make_node("some")
    assert node.node_resources is not None
    resources = msgspec.structs.replace(node.node_resources, devices=[sick])
    world.add_nodes(make_node("none"), msgspec.structs.replace(node, node_resources=resources))

    def wanting(name: str, count: int) -> Job:
        asked = [RequestedDevice(name="gpu", count=count)]
        task = make_task(resources=Resources(cpu=1, memory_mb=1, devices=asked))
        return make_job(name, make_group(tasks=[task]))

    def told(job: Job) -> dict[str, list[str]]:
        found = unplaced(world, job)
        return {one.node_name: [o.text for o in one.obstacles] for one in found.nodes}

    nothing = "devices: needs 2 gpu, and there are none"
    assert told(wanting("two", 2)) == {
        "none": [nothing],
        "some": ["devices: needs 2 gpu, healthy here are 1 of 2 nvidia/gpu/T4"],
    }
    world.deploy(wanting("one", 1))
    assert told(wanting("late", 1)) == {
        "none": ["devices: needs 1 gpu, and there are none"],
        "some": ["the devices that are asked for are taken"],
    }


def test_all_obstacles_of_a_node_are_told_and_not_only_the_first() -> None:
    world = a_cluster()
    job = make_job(
        "web",
        make_group(tasks=[make_task(cpu=99_999, memory=99_999, driver="java")]),
        constraints=[
            constraint("${attr.kernel.name}", "=", "plan9"),
            constraint("${meta.rack}", "=", "r1"),
        ],
        datacenters=["dc9"],
    )
    found = unplaced(world, job)
    kinds = [one.kind for one in found.nodes[0].obstacles]
    assert kinds == ["datacenter", "driver", "constraint", "constraint", "cpu", "memory"]
    assert found.nodes[0].obstacles[2].text == (
        'constraint ${attr.kernel.name} = plan9: here it is "linux"'
    )
    assert found.nodes[0].obstacles[3].text == "constraint ${meta.rack} = r1: here it is not set"


def test_a_value_no_node_has_is_told_with_those_that_nodes_have() -> None:
    job = make_job(
        "web", make_group(), constraints=[constraint("${attr.kernel.name}", "=", "linx")]
    )
    (text,) = unplaced(a_cluster(), job).suggestions
    assert text == (
        'no node meets constraint ${attr.kernel.name} = linx; nodes have: "linux" (3 nodes).'
        ' Did you mean "linux"?'
    )


def test_an_attribute_no_node_has_is_told_with_the_nearest_name() -> None:
    job = make_job(
        "web", make_group(), constraints=[constraint("${attr.kernel.nam}", "=", "linux")]
    )
    (text,) = unplaced(a_cluster(), job).suggestions
    assert text.startswith("no node has ${attr.kernel.nam}, which constraint")
    assert text.endswith('Did you mean "attr.kernel.name"?')


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"node_pool": "gpus"}, 'no node is in node pool "gpus"; there are: default.'),
        ({"datacenters": ["dc2"]}, "no node is in datacenter dc2; there are: dc1. Did you mean"),
    ],
)
def test_pools_and_datacenters_without_nodes_are_told(fields: dict, start: str) -> None:
    found = unplaced(a_cluster(), make_job("web", make_group(), **fields))
    assert found.suggestions[0].startswith(start)


def test_what_is_larger_than_every_node_is_told_with_what_would_fit() -> None:
    world = a_cluster()
    world.deploy(sized("other", 50, 1000))
    job = make_job("web", make_group(tasks=[make_task(cpu=9_999_999)]))
    (text,) = unplaced(world, job).suggestions
    assert text == (
        "cpu 9,999,999 MHz is more than any node has: the largest, n0, has 4,000. "
        "It would fit with cpu <= 4,000"
    )


def test_what_no_node_has_free_is_told_with_the_roomiest() -> None:
    world = a_cluster()
    world.deploy(sized("other", 50, 2500, count=3))
    job = make_job("web", make_group(tasks=[make_task(cpu=2000)]))
    found = unplaced(world, job)
    assert found.suggestions == [
        "cpu 2,000 MHz is free on no node: n2 has the most, 1,500. It would fit with cpu <= 1,500"
    ]
    assert found.nearest.obstacles[0].text == "cpu: needs 2,000 MHz, 1,500 of 4,000 are free"


def test_a_port_that_is_taken_everywhere_is_told() -> None:
    world = a_cluster()
    world.deploy(make_job("other", make_group(count=3, networks=[static_port("http", 80)])))
    job = make_job("web", make_group(networks=[static_port("http", 80)]))
    found = unplaced(world, job)
    assert found.suggestions[0].startswith("port 80 is taken wherever")
    assert found.nearest.obstacles[0].text == "port 80 is taken"


def test_nodes_that_only_have_to_be_let_in_are_told_with_the_command() -> None:
    world = a_cluster()
    for name in ("n0", "n1"):
        world.change_node(name, scheduling_eligibility="ineligible")
    world.change_node("n2", status="down")
    found = unplaced(world, make_job("web", make_group()))
    assert found.suggestions == [
        "n2 would do, and is down",
        "n0, n1 would do, and are not eligible; let them in: nomadpy node eligibility -enable NODE",
    ]


def test_room_that_evicting_would_make_is_told_when_it_is_not_allowed() -> None:
    world = a_world("n1", allowed=NONE)
    world.deploy(sized("low", 10, 3500))
    found = unplaced(world, sized("high", 90, 3000))
    assert found.suggestions[-1] == (
        "evicting less important allocations would make room, and is switched off for service jobs:"
        " nomadpy operator scheduler set-config -preempt-service-scheduler=true"
    )


def test_other_allocations_of_the_job_are_told_where_they_forbid_a_node() -> None:
    world = a_cluster()
    job = make_job(
        "web", make_group(count=4), constraints=[constraint("", "distinct_hosts", "true")]
    )
    found = unplaced(world, job)
    assert (found.placed, found.missing) == (3, 1)
    assert found.nearest.obstacles[0].text == (
        "distinct_hosts: another allocation of the job is on n0 already"
    )


def test_no_single_culprit_is_said_so() -> None:
    world = World()
    world.add_nodes(
        make_node("n0", drivers={}), make_node("n1", attributes={"kernel.name": "plan9"})
    )
    job = make_job(
        "web", make_group(), constraints=[constraint("${attr.kernel.name}", "=", "linux")]
    )
    assert unplaced(world, job).suggestions == [
        "each requirement is met by some node, and no node meets all of them: see the nodes below"
    ]


def test_an_empty_cluster_says_how_to_start_an_agent() -> None:
    world = World()
    found = unplaced(world, make_job("web", make_group()))
    assert found.summary == "the cluster has no nodes"
    assert "start one" in found.suggestions[0]


def test_what_is_placed_is_told_with_its_scores() -> None:
    world = a_cluster()
    job = make_job("web", make_group(count=2))
    found = unplaced(world, job)
    assert found.summary == "all 2 of 2 are placed; 3 of 3 nodes would take one more"
    assert found.suggestions is None
    first = found.allocs[0]
    assert first.scores["binpack"] > 0
    assert first.score > 0
    assert first.runner_up in ("n0", "n1", "n2")


def test_a_stopped_job_is_told_so() -> None:
    world = a_cluster()
    job = make_job("web", make_group())
    world.deploy(job)
    world.stop(job)
    world.run(job)
    assert of(world, job).summary == "the job is stopped, so nothing of it is to be placed"


def test_a_system_job_is_explained_for_the_nodes_that_lack_it() -> None:
    world = a_cluster()
    world.add_nodes(make_node("tiny", cpu=100))
    job = make_job("agent", make_group(), type="system")
    found = unplaced(world, job)
    assert (found.placed, found.missing) == (3, 1)
    assert found.nearest.node_name == "tiny"


def test_only_so_many_nodes_are_listed_and_the_rest_is_counted() -> None:
    world = World()
    world.add_nodes(*(make_node(f"n{number:03}") for number in range(50)))
    job = make_job("web", make_group(tasks=[make_task(cpu=9000)]))
    world.deploy(job)
    (found,) = explain(world, job, nodes_shown=5).groups
    assert (len(found.nodes), found.left_out, found.total_nodes) == (5, 45, 50)


@given(
    cpu=st.integers(1, 60).map(lambda n: n * 100),
    other=st.integers(0, 35).map(lambda n: n * 100 + 1),
    driver=st.sampled_from(["raw_exec", "docker", "podman"]),
    kernel=st.sampled_from(["linux", "plan9"]),
    pool=st.sampled_from(["default", "all", "gpus"]),
    port=st.booleans(),
    down=st.integers(0, 2),
)
@settings(max_examples=80, deadline=None)
def test_a_node_is_said_to_fit_exactly_when_the_scheduler_would_take_it(
    cpu: int, other: int, driver: str, kernel: str, pool: str, port: bool, down: int
) -> None:
    world = a_cluster()
    filler = sized("filler", 50, other, networks=[static_port("p", 80)])
    world.deploy(filler)
    for number in range(down):
        world.change_node(f"n{number}", status="down")
    group = make_group(
        tasks=[make_task(cpu=cpu, driver=driver)],
        networks=[static_port("p", 80)] if port else None,
    )
    job = make_job(
        "web",
        group,
        constraints=[constraint("${attr.kernel.name}", "=", kernel)],
        node_pool=pool,
    )
    world.register(job)
    verdicts = {one.node_id: one for one in of(world, job).nodes}
    for name, verdict in verdicts.items():
        pinned = msgspec.structs.replace(
            job,
            id=f"pinned-{name}",
            constraints=[*job.constraints, constraint("${node.unique.id}", "=", name)],
        )
        world.register(pinned)
        decision = world.decide(world.evaluation(pinned))
        placed = decision.plan is not None and bool(decision.plan.placements)
        assert placed == verdict.fits
        assert verdict.fits == (not verdict.obstacles)
    if not any(one.fits for one in verdicts.values()):
        assert of(world, job).suggestions
