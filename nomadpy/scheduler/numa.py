"""Cores and devices of a task from one NUMA node, where the task asks for that (`resources.numa.devices`).

With `require` the named devices and all cores of the task come from one NUMA node or it is not placed there; with `prefer`
they do where that is possible, and else cores and devices are chosen as if nothing had been said.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

from nomadpy.models.node import Node
from nomadpy.scheduler import cores, devices
from nomadpy.scheduler.cores import PREFER, CoreRequest
from nomadpy.scheduler.devices import Chosen, DeviceGroup, DeviceKey, DeviceRequest

APART = "devices: none beside free cores"

_MOST_TRIALS = 4096
"""A group of many such tasks on a node of many NUMA nodes has more ways than are worth a look."""

_Pins = dict[str, int]
"""Task to the NUMA node that it is to have; those left out take what they get."""


def bus_nodes(node: Node, places: Mapping[int, int]) -> Mapping[str, int] | int:
    """The NUMA node of each PCI bus id; one number where the node has only one NUMA node, and all is on it.

    places: the NUMA node of each core.
    """
    resources = node.node_resources
    topology = resources.processors.topology if resources is not None else None
    there = set((topology.nodes if topology else None) or ()) or set(places.values())
    if len(there) < 2:
        return min(there, default=0)
    found = (topology.bus_associativity if topology else None) or {}
    return {devices.bus_key(bus): number for bus, number in found.items()}


def assign(
    asked_cores: Sequence[CoreRequest],
    asked_devices: tuple[DeviceRequest, ...],
    *,
    free: Collection[int],
    places: Mapping[int, int],
    groups: tuple[DeviceGroup, ...],
    taken: Mapping[DeviceKey, int],
) -> tuple[dict[str, list[int]], Chosen] | None:
    """Return the cores and the devices of each task, or None when not all can be met.

    free: cores that nobody has. places: the NUMA node of each core; cores that are not named there belong to node 0.
    Of the NUMA nodes that suffice the one with the fewest free cores is taken, as for cores alone.
    """

    def attempt(
        wanted: Sequence[CoreRequest], on: tuple[DeviceRequest, ...], pins: _Pins
    ) -> tuple[dict[str, list[int]], Chosen] | None:
        given = cores.assign(wanted, free, places, pins)
        if given is None:
            return None
        # Who needs a certain NUMA node chooses first; the answer has the order of the question.
        order = sorted(
            range(len(on)), key=lambda place: not (on[place].beside and on[place].task in pins)
        )
        chosen = devices.assign(tuple(on[place] for place in order), groups, taken, pins)
        if chosen is None:
            return None
        placed = dict(zip(order, chosen, strict=True))
        return given, [placed[place] for place in range(len(on))]

    linked = {one.task: one.beside for one in asked_devices if one.beside}
    room = {number: 0 for group in groups for number in group.nodes if number >= 0}
    for core in free:
        number = places.get(core, 0)
        room[number] = room.get(number, 0) + 1
    order = sorted(room, key=lambda number: (room[number], number))
    choices: list[list[int | None]] = []
    for task, affinity in linked.items():
        own_cores = [one for one in asked_cores if one.task == task]
        own_devices = tuple(one for one in asked_devices if one.task == task)
        # What a task could not have on an empty node it cannot have beside the others.
        alone: list[int | None] = [
            number for number in order if attempt(own_cores, own_devices, {task: number})
        ]
        if affinity == PREFER:
            alone.append(None)
        if not alone:
            return None
        choices.append(alone)
    for pins in _pins(list(linked), choices):
        found = attempt(asked_cores, asked_devices, pins)
        if found is not None:
            return found
    return None


def _pins(tasks: Sequence[str], choices: Sequence[Sequence[int | None]]) -> Iterator[_Pins]:
    """Every way to give the tasks a NUMA node, those first in which fewer go without."""
    ways = list(itertools.islice(itertools.product(*choices), _MOST_TRIALS))
    without = tuple(None for _ in tasks)
    if len(ways) == _MOST_TRIALS and all(None in choice for choice in choices):
        ways.append(without)
    for way in sorted(ways, key=lambda one: one.count(None)):
        yield {task: number for task, number in zip(tasks, way, strict=True) if number is not None}
