"""Score how well devices stay usable, for the `gpu-aware` algorithm. Pure.

A free device is of use as long as the cpu and memory that tasks with devices take beside them are free on its node too. What an
allocation strands is how many devices lose that; where several nodes strand equally much, the fullest is taken. How
much stands beside a device is learned from the allocations that hold some. `./run bench fragmentation` shows
what that is worth; the idea of scoring by what becomes unusable is that of "Beware of Fragmentation" (USENIX ATC 2023),
whose measure asks instead, for each kind of job that may come, whether one more of it would fit.

In:      sums over a view's nodes; a node with what is taken of it.
Out:     what is usual beside a device (`usual`), and a node's score (`score`).
Not here: which devices a task is given (devices.py); keeping the sums (node_table.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from nomadpy.scheduler.devices import WHOLE

_STEPS = 4
"""Steps by which what is usual doubles: so coarse, it seldom changes, and scores that depend on it can be kept."""
_FULLNESS = 0.1
"""Devices that a node may strand more than another whose cpu, memory or devices are empty where the other's are full."""
_NO_DEVICES_WANTED = 2.0
"""How much emptier a node without devices may be and still come first for a task that wants none."""


class PerDevice(NamedTuple):
    """What is usual beside one device: MHz and MiB."""

    cpu: float
    memory_mb: float


class Beside(NamedTuple):
    """A sum over allocations that hold devices, or over nodes that have some: MHz, MiB, thousandths of devices."""

    cpu: int = 0
    memory_mb: int = 0
    milli: int = 0

    def plus(self, cpu: int, memory_mb: int, milli: int) -> Beside:
        """The sum with one more, or, with negative numbers, one less."""
        return Beside(self.cpu + cpu, self.memory_mb + memory_mb, self.milli + milli)


def usual(held: Beside, there: Beside) -> PerDevice:
    """Return what is usual beside a device: as allocations hold it; while none does, as the nodes have it."""
    known = held if held.milli > 0 else there
    if known.milli <= 0:
        return PerDevice(1.0, 1.0)
    return PerDevice(
        _coarse(known.cpu * WHOLE / known.milli), _coarse(known.memory_mb * WHOLE / known.milli)
    )


def _coarse(amount: float) -> float:
    return math.exp2(round(math.log2(max(amount, 1.0)) * _STEPS) / _STEPS)


def stranded(free: float, cpu: int, memory_mb: int, beside: PerDevice) -> float:
    """Return how many of `free` devices no usual task could use for want of free cpu (MHz) or memory (MiB)."""
    return max(0.0, free - min(cpu / beside.cpu, memory_mb / beside.memory_mb))


class Node(NamedTuple):
    """A node: its MHz, MiB and devices, and how much of each is free."""

    cpu: int
    memory_mb: int
    devices: int
    free_cpu: int
    free_memory_mb: int
    free_devices: float


def score(node: Node, cpu: int, memory_mb: int, devices: float, beside: PerDevice) -> float:
    """Return how good it is that a node gives cpu (MHz), memory (MiB) and devices: near 1 very, 0.5 as if nothing
    were lost, near 0 not at all.

    Not more than is free.
    """
    free_cpu, free_memory = node.free_cpu - cpu, node.free_memory_mb - memory_mb
    empty = _share(free_cpu, node.cpu) + _share(free_memory, node.memory_mb)
    harm = 0.0
    if node.devices:
        free = max(0.0, node.free_devices - devices)
        before = stranded(node.free_devices, node.free_cpu, node.free_memory_mb, beside)
        harm = stranded(free, free_cpu, free_memory, beside) - before
        empty += free / node.devices
        if not devices:
            empty += _NO_DEVICES_WANTED
    return 1.0 / (1.0 + math.exp(harm + _FULLNESS * empty))


def _share(free: int, total: int) -> float:
    return free / total if total > 0 else 0.0
