"""Evicting less important allocations: only when allowed and needed, and with the least harm."""

from __future__ import annotations

import msgspec
import pytest
from preemption_world import ALL, NONE, a_world, evicted, sized
from scheduling_world import (
    constraint,
    dynamic_ports,
    make_group,
    make_job,
    make_node,
    make_task,
    static_port,
)

from nomadpy.models.allocation import Allocation
from nomadpy.models.job import EphemeralDisk, MigrateStrategy
from nomadpy.models.resources import Resources


@pytest.mark.parametrize("kind", ["service", "batch", "system", "sysbatch"])
def test_each_type_of_job_evicts_when_its_switch_is_on_and_only_then(kind: str) -> None:
    for allowed in (ALL, NONE):
        world = a_world("n1", allowed=allowed)
        low = sized("low", 20, 3000)
        world.deploy(low)
        high = sized("high", 70, 3000, type=kind)
        decision = world.deploy(high)
        assert evicted(world) == (["low.group[0]"] if allowed is ALL else [])
        assert bool(decision.failed_tg_allocs) == (allowed is NONE)
        world.check()


def test_the_evicted_and_the_evictor_name_each_other() -> None:
    world = a_world("n1")
    low, high = sized("low", 20, 3000), sized("high", 70, 3000)
    world.deploy(low)
    decision = world.deploy(high)
    (victim,), (winner,) = world.allocs(low), world.allocs(high)
    assert victim.desired_status == "evict"
    assert victim.desired_description == f"Preempted by alloc ID {winner.id}"
    assert victim.preempted_by_allocation == winner.id
    assert winner.preempted_allocations == [victim.id]
    assert decision.annotations.desired_tg_updates["group"].preemptions == 1
    (told,) = winner.metrics.score_meta_data
    assert 0.9 < told.scores["preemption"] <= 1
    assert winner.metrics.dimension_exhausted == {"cpu": 1}


def test_a_dry_run_shows_who_would_be_evicted() -> None:
    world = a_world("n1")
    low, high = sized("low", 20, 3000), sized("high", 70, 3000)
    world.deploy(low)
    world.register(high)
    decision = world.decide(world.evaluation(high, annotate_plan=True))
    (stub,) = decision.annotations.preempted_allocs
    assert (stub.name, stub.desired_status) == ("low.group[0]", "evict")


@pytest.mark.parametrize(
    ("priority", "happens"), [(60, False), (61, False), (50, True), (10, True)]
)
def test_a_victim_is_at_least_ten_below(priority: int, happens: bool) -> None:
    world = a_world("n1")
    world.deploy(sized("low", priority, 3000))
    world.deploy(sized("high", 60, 3000))
    assert bool(evicted(world)) == happens


def test_nothing_is_evicted_while_a_node_has_room() -> None:
    world = a_world("n1", "n2")
    world.deploy(sized("low", 20, 3000))
    world.deploy(sized("high", 70, 3000))
    assert evicted(world) == []


def test_nothing_is_evicted_where_it_would_not_help() -> None:
    world = a_world("n1")
    world.deploy(sized("low", 20, 1000))
    world.deploy(sized("peer", 65, 3000))
    assert world.deploy(sized("high", 70, 3500)).failed_tg_allocs
    assert evicted(world) == []


def test_the_least_important_go_first_and_no_more_of_them_than_needed() -> None:
    world = a_world("n1")
    world.deploy(sized("a", 40, 1500))
    world.deploy(sized("b", 20, 1000))
    world.deploy(sized("c", 30, 1500))
    world.deploy(sized("high", 90, 1400))
    assert evicted(world) == ["c.group[0]"]


def test_one_of_the_right_size_goes_rather_than_many_small_ones() -> None:
    world = a_world("n1")
    world.deploy(sized("small", 20, 200, count=10))
    world.deploy(sized("large", 20, 2000))
    world.deploy(sized("high", 90, 1900))
    assert evicted(world) == ["large.group[0]"]


def test_the_node_with_the_least_harm_is_taken() -> None:
    world = a_world("n1", "n2", "n3")
    for number, priority in ((1, 40), (2, 20), (3, 30)):
        job = sized(f"j{number}", priority, 3500)
        job = msgspec.structs.replace(
            job, constraints=[constraint("${node.unique.name}", "=", f"n{number}")]
        )
        world.deploy(job)
    high = sized("high", 90, 3000)
    world.deploy(high)
    assert [a.node_id for a in world.live(high)] == ["n2"]


def test_no_more_of_a_group_goes_at_one_time_than_it_lets_migrate_if_others_will_do() -> None:
    world = a_world("n1")
    shy = MigrateStrategy(max_parallel=1)
    world.deploy(sized("shy", 20, 1000, count=2, migrate=shy))
    world.deploy(sized("bold", 20, 1000, count=2, migrate=shy))
    world.deploy(sized("high", 90, 1900))
    gone = evicted(world)
    assert sorted(name.split(".")[0] for name in gone) == ["bold", "shy"]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (make_group(tasks=[make_task(memory=7000)]), make_group(tasks=[make_task(memory=7000)])),
        (
            make_group(ephemeral_disk=EphemeralDisk(size_mb=90_000)),
            make_group(ephemeral_disk=EphemeralDisk(size_mb=90_000)),
        ),
        (
            make_group(networks=[static_port("http", 8080)]),
            make_group(networks=[static_port("web", 8080)]),
        ),
        (
            make_group(tasks=[make_task(resources=Resources(cores=3, memory_mb=100))]),
            make_group(tasks=[make_task(resources=Resources(cores=3, memory_mb=100))]),
        ),
    ],
    ids=["memory", "disk", "port", "cores"],
)
def test_every_dimension_is_made_room_in(low, high) -> None:
    world = a_world("n1")
    bystander = make_job("bystander", make_group(tasks=[make_task(cpu=100, memory=50)]), priority=1)
    world.deploy(bystander)
    world.deploy(make_job("low", low, priority=20))
    decision = world.deploy(make_job("high", high, priority=70))
    assert not decision.failed_tg_allocs
    assert evicted(world) == ["low.group[0]"]
    world.check()


def test_several_allocations_of_one_pass_evict_one_after_the_other() -> None:
    world = a_world("n1", "n2")
    world.deploy(sized("low", 20, 1000, count=8))
    high = sized("high", 70, 1000, count=3, networks=[dynamic_ports("http")])
    world.deploy(high)
    assert len(world.live(high)) == 3
    assert len(evicted(world)) == 3
    world.check()


def test_the_job_of_the_evicted_finds_another_place_or_waits() -> None:
    world = a_world("n1")
    low = sized("low", 20, 3000)
    world.deploy(low)
    world.deploy(sized("high", 70, 3000))
    decision = world.run(low, "preemption")
    assert decision.queued == {"group": 1}
    assert decision.created[0].status == "blocked"
    world.add_nodes(make_node("n2"))
    world.run(low, "queued-allocs")
    assert [a.node_id for a in world.live(low)] == ["n2"]


def test_a_system_job_evicts_on_each_node_that_lacks_room() -> None:
    world = a_world("n1", "n2", "n3")
    low = sized("low", 20, 3500, count=2)
    world.deploy(low)
    agent = sized("agent", 90, 1000, type="system")
    world.deploy(agent)
    assert len(world.live(agent)) == 3
    assert len(evicted(world)) == 2
    world.check()


def test_evicted_allocations_are_told_apart_from_those_of_the_own_job() -> None:
    world = a_world("n1")
    high = sized("high", 70, 1500, count=2)
    world.deploy(high)
    world.register(sized("high", 90, 1500, count=4))
    world.run(high)
    own: list[Allocation] = world.live(high)
    assert len(own) == 2
    assert evicted(world) == []
