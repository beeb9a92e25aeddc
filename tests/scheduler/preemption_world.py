"""Worlds where jobs may evict each other."""

from __future__ import annotations

from typing import Any

from scheduling_world import World, make_group, make_job, make_node, make_task

from nomadpy.models.job import Job
from nomadpy.models.operator import PreemptionConfig

ALL = PreemptionConfig(
    system_scheduler_enabled=True,
    sys_batch_scheduler_enabled=True,
    batch_scheduler_enabled=True,
    service_scheduler_enabled=True,
)
NONE = PreemptionConfig()


def sized(
    name: str, priority: int, cpu: int, memory: int = 100, count: int = 1, **fields: Any
) -> Job:
    """A job of one group that asks for this much."""
    kind = fields.pop("type", "service")
    group = make_group(count=count, tasks=[make_task(cpu=cpu, memory=memory)], **fields)
    return make_job(name, group, priority=priority, type=kind)


def a_world(*nodes: str, allowed: PreemptionConfig = ALL, **fields: Any) -> World:
    """Nodes of 4000 MHz and 8 GiB, unless fields say otherwise, under these switches."""
    world = World()
    world.add_nodes(*(make_node(name, **fields) for name in nodes))
    world.configure(scheduler_algorithm="binpack", preemption_config=allowed)
    return world


def evicted(world: World) -> list[str]:
    """The names of what was evicted."""
    return sorted(a.name for a in world.snapshot.allocs() if a.desired_status == "evict")
