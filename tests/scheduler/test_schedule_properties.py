"""What holds for every cluster and every job."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
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

from nomadpy.entropy import SeededEntropy
from nomadpy.models.allocation import Allocation
from nomadpy.models.constraint import Spread
from nomadpy.models.job import Job, ReschedulePolicy, TaskGroup
from nomadpy.models.node import Node
from nomadpy.models.resources import NetworkResource, Port, Resources
from nomadpy.scheduler.feasibility import failed_constraint, requirements
from nomadpy.scheduler.schedule import schedule

CONSTRAINTS = [
    constraint("${meta.rack}", "=", "r1"),
    constraint("${meta.rack}", "!=", "r0"),
    constraint("${node.datacenter}", "regexp", "dc[12]"),
    constraint("${attr.cores}", ">=", "4"),
    constraint("", "distinct_hosts"),
    constraint("${meta.rack}", "distinct_property", "2"),
]


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    count = draw(st.integers(0, 8))
    return [
        make_node(
            f"n{i}",
            cpu=draw(st.sampled_from([500, 1000, 2000, 4000])),
            memory=draw(st.sampled_from([512, 1024, 4096])),
            datacenter=draw(st.sampled_from(["dc1", "dc2", "eu"])),
            node_class=draw(st.sampled_from(["", "big"])),
            meta={"rack": draw(st.sampled_from(["r0", "r1", "r2"]))},
            attributes={"cores": draw(st.sampled_from(["2", "4", "16"]))},
        )
        for i in range(count)
    ]


@st.composite
def groups(draw: st.DrawFn, name: str = "group") -> TaskGroup:
    networks = draw(
        st.sampled_from(
            [
                None,
                [NetworkResource(mode="host", dynamic_ports=[Port(label="a"), Port(label="b")])],
                [NetworkResource(mode="host", reserved_ports=[Port(label="s", value=8080)])],
            ]
        )
    )
    resources = Resources(
        cpu=draw(st.integers(1, 900)),
        memory_mb=draw(st.integers(10, 600)),
        cores=draw(st.sampled_from([0, 0, 0, 1])),
    )
    return make_group(
        name,
        count=draw(st.integers(0, 6)),
        tasks=[make_task(resources=resources, env=draw(st.sampled_from([None, {"V": "2"}])))],
        networks=networks,
        constraints=draw(st.lists(st.sampled_from(CONSTRAINTS), max_size=2, unique_by=str)),
        update=draw(st.sampled_from([None, rolling(1), rolling(3)])),
        spreads=draw(st.sampled_from([None, [Spread(attribute="${node.datacenter}", weight=50)]])),
    )


@st.composite
def jobs(
    draw: st.DrawFn, kinds: tuple[str, ...] = ("service", "batch", "system", "sysbatch")
) -> Job:
    kind = draw(st.sampled_from(kinds))
    made = [draw(groups("one"))]
    if draw(st.booleans()):
        made.append(draw(groups("two")))
    if kind in ("system", "sysbatch"):
        made = [msgspec.structs.replace(group, count=1, spreads=None) for group in made]
    return make_job(
        "job",
        *made,
        type=kind,
        datacenters=draw(st.sampled_from([["*"], ["dc1"], ["dc*"]])),
        update=rolling(2) if kind == "system" else None,
    )


def prepared(nodes: list[Node], job: Job, seed: int = 1) -> World:
    world = World(seed)
    world.add_nodes(*nodes)
    world.register(job)
    return world


def check_placements(world: World, job: Job) -> None:
    """Constraints hold where the job runs, names are unique, no port is bound twice, no node is over its capacity."""
    world.check()
    live = world.live(job)
    by_name = Counter((a.name, a.node_id if job.type.startswith("sys") else "") for a in live)
    assert not by_name or max(by_name.values()) == 1
    for alloc in live:
        node = world.snapshot.node(alloc.node_id)
        assert node is not None
        assert alloc.job is not None
        group = next(g for g in alloc.job.task_groups or [] if g.name == alloc.task_group)
        assert not failed_constraint(requirements(alloc.job, group).constraints, node)
        operands = {one.operand for one in group.constraints or []}
        same = [a for a in live if a.task_group == alloc.task_group and a.job is alloc.job]
        if "distinct_hosts" in operands:
            assert sum(a.node_id == alloc.node_id for a in same) == 1
        if "distinct_property" in operands:
            racks = Counter(world.snapshot.node(a.node_id).meta["rack"] for a in same)  # type: ignore[union-attr,index]
            assert max(racks.values()) <= 2
    bound = [
        (alloc.node_id, port.value)
        for alloc in live
        if alloc.allocated_resources
        for port in alloc.allocated_resources.shared.ports or []
    ]
    assert len(bound) == len(set(bound))


@settings(max_examples=120, deadline=None)
@given(nodes=clusters(), job=jobs(), seed=st.integers(0, 5))
def test_a_plan_is_sound_settles_and_is_the_same_for_the_same_input(
    nodes: list[Node], job: Job, seed: int
) -> None:
    world = prepared(nodes, job, seed)
    evaluation = world.evaluation(job)
    one, other = (
        schedule(evaluation, world.snapshot, now_ns=world.now, entropy=SeededEntropy(seed))
        for _ in range(2)
    )
    assert one == other
    cached = schedule(
        evaluation,
        world.snapshot,
        now_ns=world.now,
        entropy=SeededEntropy(seed),
        table=world.table,
    )
    assert cached == one
    world.apply(one)
    check_placements(world, job)
    again = world.run(job)
    assert again.plan is None or not (again.plan.placements or again.plan.stops)


@settings(max_examples=120, deadline=None)
@given(nodes=clusters(), job=jobs(kinds=("service", "batch")))
def test_what_is_queued_fits_on_no_node(nodes: list[Node], job: Job) -> None:
    """The slow, obvious check: a refused allocation is tried on every node by one more pass of its own."""
    world = prepared(nodes, job)
    decision = world.run(job)
    placed = Counter(alloc.task_group for alloc in world.live(job))
    for group in job.task_groups or []:
        assert placed[group.name] + decision.queued[group.name] == group.count
        if not decision.queued[group.name]:
            continue
        asked = (group.tasks or [])[0].resources
        assert asked is not None
        metric = decision.failed_tg_allocs[group.name]
        assert metric.nodes_filtered + metric.nodes_exhausted == metric.nodes_evaluated
        if (
            group.networks
            or asked.cores
            or any(one.operand.startswith("distinct") for one in group.constraints or [])
        ):
            continue
        for node in nodes:
            if job.datacenters == ["dc1"] and node.datacenter != "dc1":
                continue
            if job.datacenters == ["dc*"] and not node.datacenter.startswith("dc"):
                continue
            if failed_constraint(requirements(job, group).constraints, node):
                continue
            assert not _has_room(world, node, asked)


def _has_room(world: World, node: Node, asked: Resources) -> bool:
    used = [
        task
        for alloc in world.snapshot.allocs_by_node(node.id)
        if alloc.allocated_resources and alloc.desired_status == "run"
        for task in (alloc.allocated_resources.tasks or {}).values()
    ]
    assert node.node_resources is not None
    cpu = sum(task.cpu.cpu_shares for task in used) + asked.cpu
    memory = sum(task.memory.memory_mb for task in used) + asked.memory_mb
    have = node.node_resources
    return cpu <= have.cpu.cpu_shares and memory <= have.memory.memory_mb


class Steps:
    """Things that happen to a cluster, by number."""

    def __init__(self, world: World, first: Job) -> None:
        self.world = world
        self.job = first

    def do(self, kind: str, pick: int, replacement: Job) -> None:
        world = self.world
        live = world.live(self.job)
        nodes = list(world.snapshot.nodes())
        chosen: list[Allocation] = [live[pick % len(live)]] if live else []
        if kind == "update":
            self.job = msgspec.structs.replace(replacement, type=self.job.type)
            world.register(self.job)
        elif kind == "healthy":
            world.healthy(*[a for a in live if a.deployment_id])
        elif kind in ("running", "failed", "complete"):
            world.report(*chosen, status=kind)
        elif kind == "migrate":
            world.transition(chosen, migrate=True)
        elif kind == "wait":
            world.now += 120 * SECOND
        elif kind in ("down", "ready") and nodes:
            world.change_node(nodes[pick % len(nodes)].id, status=kind)


@settings(max_examples=150, deadline=None)
@given(
    nodes=clusters(),
    first=jobs(kinds=("service", "batch")),
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "update",
                    "healthy",
                    "running",
                    "failed",
                    "complete",
                    "migrate",
                    "wait",
                    "down",
                    "ready",
                ]
            ),
            st.integers(0, 9),
            jobs(kinds=("service",)),
        ),
        max_size=6,
    ),
)
def test_whatever_happens_a_service_or_batch_job_stays_sound_and_settles(
    nodes: list[Node], first: Job, steps: list[tuple[str, int, Job]]
) -> None:
    story = Steps(prepared(nodes, first), first)
    world = story.world
    world.run(first)
    for kind, pick, replacement in steps:
        story.do(kind, pick, replacement)
        world.run(story.job)
        _check_story(world, story.job)
    passes: list[Any] = [world.run(story.job) for _ in range(3)]
    last = passes[-1].plan
    assert last is None or not (last.placements or last.stops)


def _check_story(world: World, job: Job) -> None:
    world.check()
    live = world.live(job)
    wanted = {group.name: group.count for group in job.task_groups or []}
    counts = Counter(alloc.task_group for alloc in live)
    for name, number in counts.items():
        assert number <= wanted.get(name, 0)
    by_name = Counter(alloc.name for alloc in live)
    assert not by_name or max(by_name.values()) == 1
    # A batch job's ended allocations keep their place; nobody runs where there is no node any more.
    for alloc in live:
        node = world.snapshot.node(alloc.node_id)
        assert node is not None
        assert node.status == "ready"


@settings(max_examples=60, deadline=None)
@given(
    nodes=clusters(),
    first=jobs(kinds=("system", "sysbatch")),
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                ["update", "running", "failed", "complete", "migrate", "down", "ready"]
            ),
            st.integers(0, 9),
            jobs(kinds=("system",)),
        ),
        max_size=6,
    ),
)
def test_whatever_happens_a_system_job_has_at_most_one_on_a_node(
    nodes: list[Node], first: Job, steps: list[tuple[str, int, Job]]
) -> None:
    story = Steps(prepared(nodes, first), first)
    world = story.world
    world.run(first)
    for kind, pick, replacement in steps:
        story.do(kind, pick, replacement)
        world.run(story.job)
        world.check()
        places = Counter((a.node_id, a.task_group) for a in world.live(story.job))
        assert not places or max(places.values()) == 1
    for _ in range(10):
        decision = world.run(story.job)
    assert decision.plan is None


@settings(max_examples=60, deadline=None)
@given(
    attempts=st.integers(0, 4),
    interval=st.integers(50, 500),
    gaps=st.lists(st.integers(1, 300), max_size=12),
)
def test_no_interval_sees_more_replacements_than_the_policy_allows(
    attempts: int, interval: int, gaps: list[int]
) -> None:
    policy = ReschedulePolicy(
        attempts=attempts, interval=interval * SECOND, delay=0, delay_function="constant"
    )
    job = make_job("once", make_group(reschedule_policy=policy), type="batch")
    world = prepared([make_node("a"), make_node("b")], job)
    world.run(job)
    moments: list[int] = []
    for gap in gaps:
        world.now += gap * SECOND
        live = world.live(job)
        if live:
            world.report(live[0], status="failed")
        world.run(job, "alloc-failure")
        if world.live(job) and live:
            moments.append(world.now)
    for end in moments:
        assert sum(end - interval * SECOND < at <= end for at in moments) <= attempts
