"""A scheduler that keeps its nodes between passes decides as one that reads them anew each time."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_world import (
    NAMESPACE,
    World,
    constraint,
    make_group,
    make_job,
    make_node,
    make_task,
)
from test_schedule_properties import clusters, groups

from nomadpy.entropy import SeededEntropy
from nomadpy.models.constraint import Affinity
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.node import Node, NodeDevice, NodeDeviceResource
from nomadpy.models.resources import RequestedDevice, Resources
from nomadpy.scheduler import node_table
from nomadpy.scheduler.decision import Decision
from nomadpy.scheduler.fit import node_plan_fits, plan_by_node
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.scheduler.schedule import schedule, schedule_batch

ALGORITHMS = ("spread", "binpack", "gpu-aware")
STEPS = ("deploy", "stop", "fail", "node", "drop node", "new node", "scale", *ALGORITHMS)


def small_jobs() -> list[Job]:
    """Jobs of few shapes, so that they share what is kept."""
    shapes: list[tuple[str, dict[str, Any]]] = [
        ("plain", {}),
        ("racked", {"constraints": [constraint("${meta.rack}", "=", "r1")]}),
        ("fond", {"affinities": [Affinity(l_target="${meta.rack}", r_target="r2", weight=50)]}),
        ("apart", {"constraints": [constraint("", "distinct_hosts")]}),
    ]
    devices = {"apart": [RequestedDevice(name="gpu", count=1, share=300)]}
    return [
        make_job(
            f"{name}-{number}",
            make_group(
                "group",
                count=count,
                tasks=[
                    make_task(
                        resources=Resources(cpu=cpu, memory_mb=100, devices=devices.get(name))
                    )
                ],
                **fields,
            ),
            type=kind,
        )
        for name, fields in shapes
        for number, (kind, count, cpu) in enumerate(
            [("service", 3, 200), ("batch", 2, 200), ("service", 4, 450)]
        )
    ]


def with_gpus(node: Node, number: int) -> Node:
    """The node with so many devices besides."""
    gpus = NodeDeviceResource(
        vendor="nvidia",
        type="gpu",
        name="T4",
        instances=[NodeDevice(id=f"T4-{n}", healthy=True) for n in range(number)],
    )
    resources = msgspec.structs.replace(node.node_resources, devices=[gpus])
    return msgspec.structs.replace(node, node_resources=resources)


def both(world: World, job: Job, seed: int) -> Decision:
    """The decision with the kept table, which is that without one, down to the bytes."""
    evaluation = world.evaluation(job)
    warm, cold = (
        schedule(
            evaluation,
            world.snapshot,
            now_ns=world.now,
            entropy=SeededEntropy(seed),
            table=table,
        )
        for table in (world.table, None)
    )
    assert msgspec.msgpack.encode(warm) == msgspec.msgpack.encode(cold)
    return warm


def step(world: World, what: str, job: Job, number: int, seed: int) -> None:
    """One thing that happens to the cluster."""
    found = list(world.snapshot.nodes())
    if what == "deploy":
        world.register(job)
    elif what == "scale":
        group = (job.task_groups or [])[0]
        job = msgspec.structs.replace(
            job, task_groups=[msgspec.structs.replace(group, count=number % 7)]
        )
        world.register(job)
    elif what == "stop":
        if world.snapshot.job(NAMESPACE, job.id) is not None:
            world.stop(job)
    elif what == "fail":
        world.report(*world.live(job)[: number % 3], status="failed")
    elif what == "node" and found:
        node = found[number % len(found)]
        fields: list[dict[str, Any]] = [
            {"status": "down"},
            {"status": "ready"},
            {"scheduling_eligibility": "ineligible"},
            {"meta": {"rack": "r1"}, "computed_class": f"v1:{number}"},
        ]
        world.change_node(node.id, **fields[number % len(fields)])
    elif what == "new node":
        world.add_nodes(make_node(f"later-{number}", cpu=1000, memory=1024, meta={"rack": "r1"}))
    elif what in ALGORITHMS:
        world.configure(scheduler_algorithm=what)
    if world.snapshot.job(NAMESPACE, job.id) is not None:
        world.apply(both(world, job, seed))


@settings(max_examples=100, deadline=None)
@given(
    nodes=clusters(),
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 11), st.integers(0, 20)), max_size=25
    ),
    seed=st.integers(0, 3),
)
def test_kept_nodes_never_change_a_decision(
    nodes: list[Node], steps: list[tuple[str, int, int]], seed: int
) -> None:
    world = World(seed)
    world.add_nodes(
        *(node if number % 3 else with_gpus(node, number + 1) for number, node in enumerate(nodes))
    )
    jobs = small_jobs()
    for at, (what, which, number) in enumerate(steps):
        step(world, what, jobs[which], number, seed + at)
    world.check()


@settings(max_examples=60, deadline=None)
@given(nodes=clusters(), made=st.lists(groups("group"), min_size=1, max_size=5))
def test_a_batch_decides_as_one_evaluation_after_the_other(
    nodes: list[Node], made: list[TaskGroup]
) -> None:
    jobs = [make_job(f"job-{n}", group, type="batch") for n, group in enumerate(made)]
    together, apart = World(1), World(1)
    for world in (together, apart):
        world.add_nodes(*nodes)
        for job in jobs:
            world.register(job)
    evaluations = [together.evaluation(job) for job in jobs]
    decisions = schedule_batch(
        evaluations,
        together.snapshot,
        now_ns=together.now,
        entropy=SeededEntropy(5),
        table=together.table,
    )
    entropy = SeededEntropy(5)
    for evaluation, decision in zip(evaluations, decisions, strict=True):
        assert isinstance(decision, Decision)
        alone = schedule(evaluation, apart.snapshot, now_ns=apart.now, entropy=entropy)
        apart.apply(alone)
        assert _places(decision) == _places(alone)
        assert decision.queued == alone.queued
    for decision in decisions:
        assert isinstance(decision, Decision)
        together.apply(decision)
    together.check()
    assert both(together, jobs[0], 1).plan is None


def _places(decision: Decision) -> list[Any]:
    placements = decision.plan.placements if decision.plan else []
    return [(a.name, a.node_id, a.allocated_resources, a.metrics) for a in placements]


def test_one_job_that_cannot_be_decided_leaves_the_others_of_its_batch_alone() -> None:
    world = World()
    world.add_nodes(make_node("a"))
    good = make_job("good", make_group("group", count=1))
    world.register(good)
    odd = msgspec.structs.replace(world.evaluation(good), type="no such")
    first, second = schedule_batch(
        [odd, world.evaluation(good)],
        world.snapshot,
        now_ns=world.now,
        entropy=world.entropy,
        table=world.table,
    )
    assert isinstance(first, Exception)
    assert isinstance(second, Decision)
    assert second.plan is not None


def test_a_table_that_missed_changes_reads_the_state_anew() -> None:
    world = World()
    world.add_nodes(make_node("a", cpu=1000, memory=1000))
    job = make_job("one", make_group("group", count=2))
    deaf = NodeTable()
    assert deaf.catch_up(world.snapshot)
    before = deaf.view(job)
    world.deploy(job)
    assert deaf.catch_up(world.snapshot)
    row = deaf.row("a")
    assert row is not None
    assert row.count == 2
    assert deaf.view(job) is not before


def test_a_table_is_not_taken_back_to_an_older_snapshot() -> None:
    world = World()
    world.add_nodes(make_node("a"))
    old = world.snapshot
    world.add_nodes(make_node("b"))
    assert world.table.catch_up(world.snapshot)
    assert not world.table.catch_up(old)
    world.table.clear()
    assert world.table.catch_up(old)


def test_more_changes_than_are_kept_cost_a_reading_and_nothing_else(monkeypatch: Any) -> None:
    monkeypatch.setattr(node_table, "FEED_LIMIT", 2)
    world = World()
    world.add_nodes(make_node("a", cpu=4000, memory=4000))
    jobs = [make_job(f"job-{n}", make_group("group", count=1)) for n in range(6)]
    assert world.table.catch_up(world.snapshot)
    for job in jobs:
        world.register(job)
        world.apply(
            schedule(world.evaluation(job), world.snapshot, now_ns=1, entropy=world.entropy)
        )
    both(world, jobs[0], 1)
    row = world.table.row("a")
    assert row is not None
    assert row.count == 6


def test_a_restored_state_is_read_anew() -> None:
    world = World()
    world.add_nodes(make_node("a"))
    job = make_job("one", make_group("group", count=1))
    assert world.table.catch_up(world.snapshot)
    assert len(world.table.view(job).rows) == 1
    other = World()
    other.add_nodes(make_node("b"), make_node("c"))
    other.add_nodes(make_node("d"))
    world.store.replace(other.snapshot)
    assert world.table.catch_up(world.snapshot)
    assert [row.node.id for row in world.table.view(job).rows] == ["b", "c", "d"]


@settings(max_examples=80, deadline=None)
@given(nodes=clusters(), one=groups("one"), other=groups("two"))
def test_the_quick_check_of_a_plan_agrees_with_the_whole_one(
    nodes: list[Node], one: TaskGroup, other: TaskGroup
) -> None:
    world = World(3)
    world.add_nodes(*nodes)
    first, second = make_job("first", one), make_job("second", other)
    world.register(first)
    world.register(second)
    early = world.decide(world.evaluation(second))
    world.run(first)
    if early.plan is None:
        return
    assert world.table.catch_up(world.snapshot)
    known = {a.id for a in early.plan.placements if world.snapshot.alloc(a.id) is not None}
    for node_id, wanted in plan_by_node(early.plan).items():
        assert world.table.plan_fits(node_id, wanted, known) == node_plan_fits(
            world.snapshot.node(node_id), world.snapshot.allocs_by_node(node_id), wanted
        )
