"""How nodes are ranked by the algorithms, in the cluster and in a node pool."""

from __future__ import annotations

import pytest
from scheduling_world import World, make_group, make_job, make_node, make_task

from nomadpy.models.job import Job
from nomadpy.models.node import NodePool, NodePoolSchedulerConfiguration
from nomadpy.models.operator import GPU_AWARE, SCHEDULER_ALGORITHMS
from nomadpy.models.resources import Resources
from nomadpy.scheduler.ranking import PACK_SCORES, balanced_score, empty_score, pack_score
from nomadpy.state import nodes


def add_pool(world: World, **fields: object) -> None:
    """A pool `gpu` with scheduler settings of its own."""
    config = NodePoolSchedulerConfiguration(**fields)  # type: ignore[arg-type]
    with world.transaction() as tx:
        nodes.upsert_pools(tx, [NodePool(name="gpu", scheduler_configuration=config)])


@pytest.mark.parametrize("score", PACK_SCORES.values())
def test_scores_lie_between_0_and_1(score: object) -> None:
    for cpu in range(0, 1001, 100):
        for memory in range(0, 1001, 100):
            assert 0.0 <= score(cpu, memory, 1000, 1000) <= 1.0  # type: ignore[operator]


def test_every_algorithm_has_a_score() -> None:
    assert {*PACK_SCORES, GPU_AWARE} == set(SCHEDULER_ALGORITHMS)


def test_binpack_likes_full_nodes_and_spread_empty_ones() -> None:
    assert pack_score(1000, 1000, 1000, 1000) == 1.0 == empty_score(0, 0, 1000, 1000)
    assert pack_score(0, 0, 1000, 1000) == 0.0 == empty_score(1000, 1000, 1000, 1000)


def test_balanced_would_rather_leave_both_than_one() -> None:
    even, lopsided = balanced_score(500, 500, 1000, 1000), balanced_score(900, 500, 1000, 1000)
    assert even > lopsided
    assert pack_score(500, 500, 1000, 1000) < pack_score(900, 500, 1000, 1000)
    assert balanced_score(1000, 1000, 1000, 1000) == 1.0


def two_nodes(world: World, pool: str = "default") -> None:
    """`full` has some of its cpu taken; on `wide` the next task would take cpu and memory in its proportion."""
    world.add_nodes(
        make_node("full", cpu=1000, memory=4000, node_pool=pool),
        make_node("wide", cpu=4000, memory=4000, node_pool=pool),
    )


def job_in(pool: str, memory_max: int = 0) -> Job:
    task = make_task(resources=Resources(cpu=500, memory_mb=500, memory_max_mb=memory_max))
    return make_job("job", make_group(tasks=[task]), node_pool=pool)


def test_the_cluster_s_algorithm_chooses() -> None:
    chosen = {}
    for algorithm in SCHEDULER_ALGORITHMS[:3]:
        world = World()
        world.configure(scheduler_algorithm=algorithm)
        two_nodes(world)
        job = job_in("default")
        world.deploy(job)
        chosen[algorithm] = [alloc.node_id for alloc in world.live(job)]
    assert chosen == {"binpack": ["full"], "spread": ["wide"], "balanced": ["wide"]}


def test_a_node_pool_s_own_settings_go_before_the_cluster_s() -> None:
    world = World()
    world.configure(scheduler_algorithm="binpack", memory_oversubscription_enabled=False)
    add_pool(world, scheduler_algorithm="balanced", memory_oversubscription_enabled=True)
    two_nodes(world, "gpu")
    job = job_in("gpu", memory_max=900)
    world.deploy(job)
    (alloc,) = world.live(job)
    assert alloc.node_id == "wide"
    assert alloc.allocated_resources is not None
    task = (alloc.allocated_resources.tasks or {})["task"]
    assert task.memory.memory_max_mb == 900


def test_without_oversubscription_a_task_gets_no_more_memory_than_it_reserves() -> None:
    world = World()
    world.configure(scheduler_algorithm="binpack", memory_oversubscription_enabled=True)
    add_pool(world, memory_oversubscription_enabled=False)
    two_nodes(world, "gpu")
    job = job_in("gpu", memory_max=900)
    world.deploy(job)
    (alloc,) = world.live(job)
    assert alloc.node_id == "full"
    assert alloc.allocated_resources is not None
    task = (alloc.allocated_resources.tasks or {})["task"]
    assert task.memory.memory_max_mb == 0


def test_an_algorithm_that_is_not_known_packs() -> None:
    world = World()
    world.configure(scheduler_algorithm="of-a-later-version")
    two_nodes(world)
    job = job_in("default")
    world.deploy(job)
    assert [alloc.node_id for alloc in world.live(job)] == ["full"]
