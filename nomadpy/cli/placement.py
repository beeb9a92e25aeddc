"""Why something could not be placed, as text."""

from __future__ import annotations

from typing import Any


def failure_lines(metrics: dict[str, Any], indent: str = "  ") -> list[str]:
    """One line for each reason of an allocation's metrics."""
    lines: list[str] = []
    if not metrics.get("NodesEvaluated"):
        lines.append("* No nodes were eligible for evaluation")
    for datacenter, count in sorted((metrics.get("NodesAvailable") or {}).items()):
        if count == 0:
            lines.append(f'* No nodes are available in datacenter "{datacenter}"')
    for name, count in sorted((metrics.get("ClassFiltered") or {}).items()):
        lines.append(f'* Class "{name}": {count} nodes excluded by filter')
    for name, count in sorted((metrics.get("ConstraintFiltered") or {}).items()):
        lines.append(f'* Constraint "{name}": {count} nodes excluded by filter')
    if exhausted := metrics.get("NodesExhausted"):
        lines.append(f"* Resources exhausted on {exhausted} nodes")
    for name, count in sorted((metrics.get("ClassExhausted") or {}).items()):
        lines.append(f'* Class "{name}" exhausted on {count} nodes')
    for name, count in sorted((metrics.get("DimensionExhausted") or {}).items()):
        lines.append(f'* Dimension "{name}" exhausted on {count} nodes')
    lines += [f'* Quota limit hit "{name}"' for name in metrics.get("QuotaExhausted") or []]
    return [indent + line for line in lines]


def failures(groups: dict[str, Any] | None, indent: str = "") -> list[str]:
    """What could not be placed of each group, with reasons."""
    lines: list[str] = []
    for name, metrics in sorted((groups or {}).items()):
        count = metrics.get("CoalescedFailures", 0) + 1
        noun = "allocation" if count == 1 else "allocations"
        lines.append(f'{indent}Task Group "{name}" (failed to place {count} {noun}):')
        lines += failure_lines(metrics, indent + "  ")
    return lines
