"""Score how well a node suits a task group, higher is better.

The parts are averaged: bin packing always counts; anti-affinity, reschedule penalty, affinity and spread only when
they are not zero. Not here: whether the node can run it (feasibility.py, fit.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from nomadpy.models import operator

PackScore = Callable[[int, int, int, int], float]
"""cpu and memory used, cpu and memory in all, to a score from 0 to 1."""

BINPACK = "binpack"
JOB_ANTI_AFFINITY = "job-anti-affinity"
NODE_AFFINITY = "node-affinity"
RESCHEDULE_PENALTY = "node-reschedule-penalty"
ALLOCATION_SPREAD = "allocation-spread"
DEVICES = "devices"
PREEMPTION = "preemption"

_MAX_FIT = 18.0
_IMBALANCE = 6.0
_DEVICES = 2.0
_LN10 = math.log(10)
_exp = math.exp


def pack_score(cpu: int, memory_mb: int, cpu_total: int, memory_total: int) -> float:
    """Return how tightly a node is packed: 0 empty, 1 full.

    cpu, memory_mb: used, the new allocation included; at most the totals.
    Source: best fit v3, as Nomad's `binpack` algorithm scores it, scaled from 18 to 1.
    """
    free_cpu = 1 - cpu / cpu_total if cpu_total > 0 else 0.0
    free_memory = 1 - memory_mb / memory_total if memory_total > 0 else 0.0
    score = 20.0 - _exp(free_cpu * _LN10) - _exp(free_memory * _LN10)
    return min(max(score, 0.0), _MAX_FIT) / _MAX_FIT


def empty_score(cpu: int, memory_mb: int, cpu_total: int, memory_total: int) -> float:
    """Return how empty a node stays: the inverse of `pack_score`, for the `spread` algorithm."""
    free_cpu = 1 - cpu / cpu_total if cpu_total > 0 else 0.0
    free_memory = 1 - memory_mb / memory_total if memory_total > 0 else 0.0
    score = _exp(free_cpu * _LN10) + _exp(free_memory * _LN10) - 2.0
    return min(max(score, 0.0), _MAX_FIT) / _MAX_FIT


def balanced_score(cpu: int, memory_mb: int, cpu_total: int, memory_total: int) -> float:
    """Return how little a node has left, 0 to 1, where what is left of one kind alone counts as the worst.

    Memory without cpu, or cpu without memory, can be given to nobody. With six times the weight of what is left, a
    lopsided remainder is avoided before anything else; `./run bench packing` shows what that is worth.
    """
    free_cpu = 1 - cpu / cpu_total if cpu_total > 0 else 0.0
    free_memory = 1 - memory_mb / memory_total if memory_total > 0 else 0.0
    left = free_cpu + free_memory + _IMBALANCE * abs(free_cpu - free_memory)
    return max(0.0, 1 - left / (2 + _IMBALANCE))


def with_devices(score: float, full: float, pack: PackScore) -> float:
    """Return the score of a node that has devices: how full these are (0 to 1) counts twice as much as the rest.

    Devices are what such a node is bought for. A task without any would strand them as well, by taking the cpu beside
    them; so it counts for every task, and they go to nodes without devices first. `./run bench fragmentation` shows
    what that is worth.
    """
    wanted = 1 - full if pack is empty_score else full
    return (score + _DEVICES * wanted) / (1 + _DEVICES)


PACK_SCORES: dict[str, PackScore] = {
    operator.BINPACK: pack_score,
    operator.SPREAD: empty_score,
    operator.BALANCED: balanced_score,
}
"""By scheduler algorithm."""


def anti_affinity(same_group: int, desired: int) -> float:
    """Return the penalty for a node that already has `same_group` allocations of this job and group; 0 for none."""
    if same_group <= 0:
        return 0.0
    return -(same_group + 1) / max(desired, 1)


def combine(scores: dict[str, float]) -> float:
    """Return the average of the parts that count."""
    total, parts = scores[BINPACK], 1
    for name, value in scores.items():
        if name != BINPACK and value != 0.0:
            total += value
            parts += 1
    return total / parts
