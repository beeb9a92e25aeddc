"""Which whole cores of a node the tasks of an allocation get, by id and by NUMA node.

Without NUMA affinity the lowest free ids. With `require`, all cores of a task from one NUMA node or none at all; with
`prefer`, from one if that is possible. Of the NUMA nodes that suffice the one with the fewest free cores is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from nomadpy.models.node import Node
from nomadpy.models.task import Task

PREFER = "prefer"
REQUIRE = "require"


class CoreRequest(msgspec.Struct, frozen=True):
    """What one task asks for. affinity: none | prefer | require."""

    task: str
    count: int
    affinity: str


def requests(tasks: Iterable[Task]) -> tuple[CoreRequest, ...]:
    """Return what the tasks of a group ask for."""
    return tuple(
        CoreRequest(
            task.name,
            task.resources.cores,
            task.resources.numa.affinity if task.resources.numa is not None else "none",
        )
        for task in tasks
        if task.resources is not None and task.resources.cores
    )


def numa_nodes(node: Node) -> dict[int, int]:
    """Return the NUMA node of each core; empty when the node does not tell."""
    resources = node.node_resources
    topology = resources.processors.topology if resources is not None else None
    return {core.id: core.node_id for core in (topology.cores if topology else None) or ()}


def assign(
    asked: Sequence[CoreRequest],
    free: Iterable[int],
    places: Mapping[int, int],
    pins: Mapping[str, int] | None = None,
) -> dict[str, list[int]] | None:
    """Return the cores of each task, ascending, or None when not all can be met.

    places: the NUMA node of each core; cores that are not named there belong to node 0. pins: the NUMA node that some tasks
    must have.
    """
    left = sorted(free)
    given: dict[str, list[int]] = {}
    pins = pins or {}
    # Who needs a certain NUMA node chooses first, then who needs any one, the largest first; the others take what remains.
    order = sorted(
        asked,
        key=lambda one: (
            one.task not in pins,
            one.affinity != REQUIRE,
            one.affinity != PREFER,
            -one.count,
        ),
    )
    for request in order:
        cores = _cores(request, left, places, pins.get(request.task))
        if cores is None:
            return None
        taken = set(cores)
        left = [core for core in left if core not in taken]
        given[request.task] = cores
    return {request.task: given[request.task] for request in asked}


def count(taken: dict[int, int], cores: Iterable[int], by: int) -> None:
    """Count how many hold each core: one more (by 1) or one less (-1)."""
    for core in cores:
        left = taken.get(core, 0) + by
        if left:
            taken[core] = left
        else:
            taken.pop(core, None)


def _cores(
    request: CoreRequest, left: list[int], places: Mapping[int, int], pin: int | None
) -> list[int] | None:
    if pin is not None:
        there = [core for core in left if places.get(core, 0) == pin]
        return there[: request.count] if len(there) >= request.count else None
    if request.affinity in (PREFER, REQUIRE):
        by_node: dict[int, list[int]] = {}
        for core in left:
            by_node.setdefault(places.get(core, 0), []).append(core)
        fitting = [
            (len(cores), node) for node, cores in by_node.items() if len(cores) >= request.count
        ]
        if fitting:
            return by_node[min(fitting)[1]][: request.count]
        if request.affinity == REQUIRE:
            return None
    return left[: request.count] if len(left) >= request.count else None
