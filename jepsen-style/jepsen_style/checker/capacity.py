"""No node ever promises more than it has, and no port twice: at every state that a poller saw, not only at the end."""

from __future__ import annotations

import collections
from typing import Any

import msgspec

from jepsen_style.checker.result import Result
from jepsen_style.history import Call, History


class Has(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has for allocations: MHz and MiB, what it reserves for itself taken off."""

    cpu: int
    memory_mb: int


class Takes(msgspec.Struct, frozen=True, kw_only=True):
    """What a live allocation takes from its node; ports as address and number."""

    id: str
    name: str
    node: str
    cpu: int
    memory_mb: int
    ports: list[str] = []


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The completion's value: all live allocations at one index."""

    index: int
    nodes: dict[str, Has]
    allocs: list[Takes]


def check_capacity(history: History) -> Result:
    """`look` (value: State)."""
    seen = [c for c in history.calls("look") if c.done.type == "ok"]
    fullest = 0.0
    indexes: set[int] = set()
    placed: set[str] = set()
    for call in seen:
        state = msgspec.convert(call.done.value, State)
        indexes.add(state.index)
        placed.update(alloc.id for alloc in state.allocs)
        fault, full = _judge(state)
        fullest = max(fullest, full)
        if fault is not None:
            reason, allocs = fault
            return Result(
                checker="capacity",
                valid=False,
                summary=f"at index {state.index}: {reason}",
                offending=[_told(call, alloc) for alloc in allocs],
                moments=[call.start_ns],
            )
    facts: dict[str, Any] = {
        "states": len(indexes),
        "allocations": len(placed),
        "fullest_percent": round(100 * fullest),
    }
    if not placed:
        return Result(checker="capacity", valid=None, summary="nothing was placed", facts=facts)
    return Result(
        checker="capacity",
        valid=True,
        summary=f"{len(indexes)} states with {len(placed)} allocations; the fullest node was at {100 * fullest:.0f} %",
        facts=facts,
    )


def _judge(state: State) -> tuple[tuple[str, list[Takes]] | None, float]:
    by_node: dict[str, list[Takes]] = collections.defaultdict(list)
    for alloc in state.allocs:
        by_node[alloc.node].append(alloc)
    fullest = 0.0
    for node, allocs in by_node.items():
        has = state.nodes.get(node)
        if has is None:
            return (f"node {node[:8]} does not exist and has allocations", allocs), fullest
        cpu = sum(a.cpu for a in allocs)
        memory = sum(a.memory_mb for a in allocs)
        if cpu > has.cpu:
            return (f"node {node[:8]} promised {cpu} of {has.cpu} MHz", allocs), fullest
        if memory > has.memory_mb:
            return (f"node {node[:8]} promised {memory} of {has.memory_mb} MiB", allocs), fullest
        fullest = max(fullest, cpu / has.cpu, memory / has.memory_mb)
        owners: dict[str, Takes] = {}
        for alloc in allocs:
            for port in alloc.ports:
                other = owners.setdefault(port, alloc)
                if other is not alloc:
                    reason = f"port {port} of node {node[:8]} was given twice"
                    return (reason, [other, alloc]), fullest
    return None, fullest


def _told(call: Call, alloc: Takes) -> str:
    when = f"{call.start_ns / 1e9:9.4f} .. {call.done.time / 1e9:9.4f} s"
    ports = f", ports {' '.join(alloc.ports)}" if alloc.ports else ""
    return f"{when}  {alloc.name} ({alloc.id[:8]}): {alloc.cpu} MHz, {alloc.memory_mb} MiB{ports}"
