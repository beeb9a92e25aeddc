"""Where a group may go, and what is told when it can go nowhere."""

import json
from pathlib import Path
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
    static_port,
)

from nomadpy.models.constraint import Affinity, Spread, SpreadTarget
from nomadpy.models.job import TaskGroup, VolumeRequest
from nomadpy.models.node import DriverInfo, HostVolumeInfo
from nomadpy.models.resources import NetworkResource, RequestedDevice, Resources
from nomadpy.scheduler.feasibility import in_datacenters

RECORDINGS = Path(__file__).parents[1] / "wire" / "reference"


def recorded(scenario: str, name: str) -> Any:
    for line in (RECORDINGS / f"{scenario}.jsonl").read_text().splitlines():
        exchange = json.loads(line)
        if exchange["name"] == name:
            return exchange["response"]["body"]
    raise AssertionError(f"no recording {scenario}/{name}")


def like_the_recorded_node() -> Any:
    node = make_node("vm", cpu=5192, memory=24_105)
    return msgspec.structs.replace(node, computed_class="")


@pytest.mark.parametrize(
    ("datacenter", "patterns", "expected"),
    [
        ("dc1", ["*"], True),
        ("dc1", ["dc1"], True),
        ("dc1", ["dc2"], False),
        ("eu-west-1", ["us-*", "eu-*"], True),
        ("eu-west-1", ["eu-*-2"], False),
        ("dc1", None, True),
        ("dc.1", ["dc?1"], False),
    ],
)
def test_datacenters_are_globs(datacenter: str, patterns: list[str] | None, expected: bool) -> None:
    assert in_datacenters(datacenter, patterns) is expected


def nodes_of(world: World, job: Any) -> list[str]:
    return sorted(alloc.node_id for alloc in world.live(job))


def test_pools_keep_apart_and_all_means_all() -> None:
    world = World()
    world.add_nodes(make_node("a"), make_node("b", node_pool="gpu"))
    for pool, expected in (("default", ["a"]), ("gpu", ["b"]), ("all", ["a", "b"])):
        job = make_job(f"in-{pool}", node_pool=pool, type="system")
        world.deploy(job)
        assert nodes_of(world, job) == expected


def test_a_driver_must_be_detected_and_healthy() -> None:
    world = World()
    world.add_nodes(
        make_node("sick", drivers={"raw_exec": DriverInfo(detected=True, healthy=False)}),
        make_node("none", drivers={}),
    )
    job = make_job()
    metric = world.deploy(job).failed_tg_allocs["group"]
    assert metric.constraint_filtered == {"missing drivers": 2}
    assert metric.nodes_filtered == 2
    world.add_nodes(make_node("good"))
    world.run(job)
    assert nodes_of(world, job) == ["good"]


@pytest.mark.parametrize(
    "wanted",
    [
        constraint("${node.unique.id}", "=", "b"),
        constraint("${node.unique.name}", "=", "b"),
        constraint("${node.datacenter}", "=", "dc2"),
        constraint("${node.class}", "=", "big"),
        constraint("${attr.cpu.arch}", "=", "arm64"),
        constraint("${meta.rack}", "=", "r2"),
        constraint("${meta.rack}", "is_set"),
        constraint("${meta.rack}", "=", "${meta.copy}"),
        constraint("${attr.nomad.version}", "version", ">= 1.5, < 3.0"),
        constraint("${attr.nomad.version}", "semver", ">= 1.5.0"),
        constraint("${meta.rack}", "regexp", "^r[0-9]$"),
        constraint("${meta.features}", "set_contains", "ssd,fast"),
        constraint("${meta.features}", "set_contains_any", "gpu,ssd"),
        constraint("${attr.cpu.numcores}", ">=", "4"),
        constraint("${meta.gone}", "is_not_set"),
    ],
)
def test_constraints_choose_the_node(wanted: Any) -> None:
    world = World()
    world.add_nodes(
        make_node(
            "a", attributes={"cpu.numcores": "2", "nomad.version": "1.0.0"}, meta={"gone": "x"}
        ),
        make_node(
            "b",
            datacenter="dc2",
            node_class="big",
            attributes={"cpu.arch": "arm64", "cpu.numcores": "16", "nomad.version": "2.0.0"},
            meta={"rack": "r2", "copy": "r2", "features": "fast,ssd"},
        ),
    )
    for level in ("job", "group", "task"):
        group, fields = make_group(), {}
        if level == "job":
            fields = {"constraints": [wanted]}
        elif level == "group":
            group = make_group(constraints=[wanted])
        else:
            group = make_group(tasks=[make_task(constraints=[wanted])])
        job = make_job(f"at-{level}", group, **fields)
        world.deploy(job)
        assert nodes_of(world, job) == ["b"]


def test_distinct_hosts_puts_one_on_each_node() -> None:
    world = World()
    world.add_nodes(make_node("a"), make_node("b"))
    job = make_job("web", make_group(count=3), constraints=[constraint("", "distinct_hosts")])
    metric = world.deploy(job).failed_tg_allocs["group"]
    assert nodes_of(world, job) == ["a", "b"]
    assert metric.constraint_filtered == {"distinct_hosts": 2}


def test_distinct_hosts_of_a_job_counts_all_its_groups() -> None:
    world = World()
    world.add_nodes(make_node("a"), make_node("b"))
    groups = [make_group("one"), make_group("two")]
    job = make_job("web", *groups, constraints=[constraint("", "distinct_hosts", "true")])
    world.deploy(job)
    assert nodes_of(world, job) == ["a", "b"]


def test_distinct_property_limits_what_shares_a_value() -> None:
    world = World()
    world.add_nodes(*[make_node(f"n{i}", meta={"rack": f"r{i % 2}"}) for i in range(6)])
    world.add_nodes(make_node("bare"))
    job = make_job(
        "web",
        make_group(count=6, constraints=[constraint("${meta.rack}", "distinct_property", "2")]),
    )
    decision = world.deploy(job)
    racks = nodes_of(world, job)
    assert len(racks) == 4
    assert "bare" not in racks
    assert decision.queued == {"group": 2}
    # A place that is given back can be taken again.
    world.report(world.live(job)[0], status="complete")
    assert world.run(job).queued == {"group": 2}
    assert len(world.live(job)) == 4


def test_a_host_volume_must_be_there_and_writable() -> None:
    world = World()
    world.add_nodes(
        make_node("none"),
        make_node("fixed", host_volumes={"data": HostVolumeInfo(name="data", read_only=True)}),
    )
    request = VolumeRequest(name="data", type="host", source="data")
    job = make_job("web", make_group(volumes={"data": request}))
    metric = world.deploy(job).failed_tg_allocs["group"]
    assert metric.constraint_filtered == {"missing compatible host volumes": 2}
    world.add_nodes(make_node("good", host_volumes={"data": HostVolumeInfo(name="data")}))
    world.run(job)
    assert nodes_of(world, job) == ["good"]


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (
            make_group(
                tasks=[make_task(resources=Resources(cpu=1, devices=[RequestedDevice(name="gpu")]))]
            ),
            "missing devices",
        ),
        (
            make_group(volumes={"v": VolumeRequest(name="v", type="csi", source="data")}),
            "missing CSI Volume data",
        ),
    ],
)
def test_what_cannot_be_assigned_is_placed_nowhere(group: TaskGroup, reason: str) -> None:
    world = World()
    world.add_nodes(make_node("a"))
    job = make_job("web", group)
    assert world.deploy(job).failed_tg_allocs["group"].constraint_filtered == {reason: 1}


def test_bridge_networks_need_a_node_with_a_bridge() -> None:
    world = World()
    world.add_nodes(make_node("n1"))
    job = make_job("web", make_group(networks=[NetworkResource(mode="bridge")]))
    assert world.deploy(job).failed_tg_allocs["group"].constraint_filtered == {"missing network": 1}


def test_static_ports_spread_and_then_run_out() -> None:
    world = World()
    world.add_nodes(make_node("a"), make_node("b"))
    job = make_job("web", make_group(count=3, networks=[static_port("http", 8080)]))
    metric = world.deploy(job).failed_tg_allocs["group"]
    assert nodes_of(world, job) == ["a", "b"]
    assert metric.dimension_exhausted == {"network: reserved port collision http=8080": 2}


def test_a_group_network_is_written_as_the_wire_has_it() -> None:
    recording = recorded("services_and_search", "alloc")
    world = World()
    world.add_nodes(make_node("vm"))
    job = make_job("svc", make_group(networks=[dynamic_ports("http")]))
    world.deploy(job)
    (alloc,) = world.live(job)
    mine, theirs = msgspec.to_builtins(alloc), recording
    port = mine["AllocatedResources"]["Shared"]["Ports"][0]
    assert 20_000 <= port["Value"] <= 32_000
    for shared in (
        mine["AllocatedResources"]["Shared"],
        mine["SharedResources"],
        mine["Resources"],
    ):
        (network,) = shared["Networks"]
        assert network["DynamicPorts"][0]["Value"] == port["Value"]
        assert network["Mode"] == "host"
    assert port.keys() == theirs["AllocatedResources"]["Shared"]["Ports"][0].keys()
    assert (
        mine["AllocatedResources"]["Shared"]["Networks"][0].keys()
        == theirs["AllocatedResources"]["Shared"]["Networks"][0].keys()
    )
    assert mine["AllocatedResources"]["TaskLifecycles"] == {"task": None}


def test_a_placement_is_scored_and_summed_as_recorded() -> None:
    """The recorded node has 5192 MHz and 24105 MiB; the task asks for 20 and 10."""
    recording = recorded("batch", "alloc-read")
    world = World()
    world.add_nodes(like_the_recorded_node())
    task = make_task(resources=Resources(cpu=20, memory_mb=10))
    job = make_job("once", make_group(tasks=[task]), type="batch", datacenters=["dc1"])
    world.deploy(job)
    (alloc,) = world.live(job)
    mine = msgspec.to_builtins(alloc)
    for name in (
        "AllocatedResources",
        "Resources",
        "SharedResources",
        "TaskResources",
        "Name",
        "DesiredStatus",
    ):
        assert mine[name] == recording[name], name
    theirs = recording["Metrics"] | {"AllocationTime": 0}
    theirs["ScoreMetaData"][0]["NodeID"] = "vm"
    (score,) = mine["Metrics"]["ScoreMetaData"]
    assert score["NormScore"] == pytest.approx(theirs["ScoreMetaData"][0]["NormScore"])
    score["NormScore"] = score["Scores"]["binpack"] = theirs["ScoreMetaData"][0]["NormScore"]
    assert mine["Metrics"] == theirs


@pytest.mark.parametrize(
    ("recording", "fields"),
    [
        ("blocked-evaluations", {"cpu": 900_000}),
        (
            "filtered-evaluations",
            {"constraints": [constraint("${attr.kernel.name}", "=", "plan9")]},
        ),
    ],
)
def test_an_unplaceable_job_blocks_as_recorded(recording: str, fields: dict[str, Any]) -> None:
    blocked_there, ended_there = recorded("batch", recording)
    cpu = fields.pop("cpu", 20)
    world = World()
    world.add_nodes(like_the_recorded_node())
    task = make_task(resources=Resources(cpu=cpu, memory_mb=10))
    job = make_job(
        blocked_there["JobID"],
        make_group(tasks=[task]),
        type="batch",
        datacenters=["dc1"],
        **fields,
    )
    world.register(job)
    decision = world.run(job, job_modify_index=1)
    assert decision.plan is None
    ended, blocked = (msgspec.to_builtins(one) for one in decision.evaluations)
    (eligible,) = blocked["ClassEligibility"].values()
    assert [eligible] == list(blocked_there["ClassEligibility"].values())
    assert blocked["PreviousEval"] == ended["ID"]
    assert ended["BlockedEval"] == blocked["ID"]
    for mine, theirs in ((ended, ended_there), (blocked, blocked_there)):
        indexes = {"CreateIndex", "ModifyIndex"}
        assert mine.keys() == theirs.keys() - indexes
        theirs["FailedTGAllocs"]["group"]["AllocationTime"] = 0
        for name in (
            "FailedTGAllocs",
            "PlanAnnotations",
            "QueuedAllocations",
            "Status",
            "StatusDescription",
            "TriggeredBy",
            "Type",
            "Priority",
        ):
            assert mine.get(name) == theirs.get(name), name


def test_a_unique_constraint_escapes_classes() -> None:
    world = World()
    world.add_nodes(make_node("a"))
    job = make_job(constraints=[constraint("${attr.unique.hostname}", "=", "b")])
    _, blocked = world.deploy(job).evaluations
    assert blocked.escaped_computed_class
    assert blocked.class_eligibility is None


def test_failures_of_one_group_are_counted_together() -> None:
    world = World()
    job = make_job("web", make_group(count=5))
    decision = world.deploy(job)
    assert decision.queued == {"group": 5}
    assert decision.failed_tg_allocs["group"].coalesced_failures == 4
    assert decision.failed_tg_allocs["group"].nodes_evaluated == 0


def test_bin_packing_fills_a_node_and_the_spread_algorithm_does_not() -> None:
    for algorithm, expected in (("binpack", {"a"}), ("spread", {"b", "c"})):
        world = World()
        world.add_nodes(
            make_node("a", cpu=8000, memory=16_000),
            make_node("b", cpu=8000, memory=16_000),
            make_node("c", cpu=8000, memory=16_000),
        )
        world.configure(scheduler_algorithm=algorithm)
        first = make_job("first", constraints=[constraint("${node.unique.id}", "=", "a")])
        world.deploy(first)
        second = make_job("second")
        world.deploy(second)
        assert set(nodes_of(world, second)) <= expected


def test_a_group_spreads_itself_over_equal_nodes() -> None:
    world = World()
    world.add_nodes(*[make_node(name) for name in "abcd"])
    job = make_job("web", make_group(count=4))
    world.deploy(job)
    assert nodes_of(world, job) == ["a", "b", "c", "d"]


def test_affinity_draws_and_repels() -> None:
    for weight, expected in ((100, "b"), (-100, "a")):
        world = World()
        world.add_nodes(make_node("a"), make_node("b", meta={"ssd": "yes"}))
        job = make_job(
            affinities=[
                Affinity(l_target="${meta.ssd}", operand="=", r_target="yes", weight=weight)
            ]
        )
        world.deploy(job)
        assert nodes_of(world, job) == [expected]


def test_spread_targets_are_met_by_percentage() -> None:
    world = World()
    world.add_nodes(*[make_node(f"n{i}", datacenter=f"dc{i % 2 + 1}") for i in range(10)])
    targets = [SpreadTarget(value="dc1", percent=70), SpreadTarget(value="dc2", percent=30)]
    job = make_job(
        "web",
        make_group(count=10),
        spreads=[Spread(attribute="${node.datacenter}", weight=100, spread_target=targets)],
    )
    world.deploy(job)
    counts = [sum(int(n[1:]) % 2 == k for n in nodes_of(world, job)) for k in (0, 1)]
    assert counts == [7, 3]


def test_even_spread_alternates_between_racks() -> None:
    world = World()
    racks = {f"n{i}": "r1" if i < 8 else "r2" for i in range(10)}
    world.add_nodes(*[make_node(name, meta={"rack": rack}) for name, rack in racks.items()])
    job = make_job(
        "web", make_group(count=6, spreads=[Spread(attribute="${meta.rack}", weight=100)])
    )
    world.deploy(job)
    assert sorted(racks[node] for node in nodes_of(world, job)) == ["r1"] * 3 + ["r2"] * 3


def test_memory_oversubscription_is_given_only_when_enabled() -> None:
    task = make_task(resources=Resources(cpu=100, memory_mb=100, memory_max_mb=500))
    for enabled, expected in ((False, 0), (True, 500)):
        world = World()
        world.add_nodes(make_node("a"))
        world.configure(memory_oversubscription_enabled=enabled)
        job = make_job("web", make_group(tasks=[task]))
        world.deploy(job)
        (alloc,) = world.live(job)
        assert alloc.allocated_resources is not None
        assert alloc.allocated_resources.tasks is not None
        memory = alloc.allocated_resources.tasks["task"].memory
        assert (memory.memory_mb, memory.memory_max_mb) == (100, expected)


def test_a_failed_allocation_does_not_return_to_a_node_that_the_new_version_may_not_use() -> None:
    world = World()
    world.add_nodes(make_node("old", attributes={"cores": "2"}))
    job = make_job()
    world.deploy(job)
    newer = make_job(constraints=[constraint("${attr.cores}", ">=", "4")])
    world.deploy(newer)
    world.report(*world.live(newer), status="failed")
    world.now += 60 * SECOND
    decision = world.run(newer)
    assert decision.queued == {"group": 1}
    assert world.live(newer) == []
