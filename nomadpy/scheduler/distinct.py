"""What a job's other allocations forbid: distinct_hosts and distinct_property; and the spread score.

Counts are of live allocations, the ones already planned in this pass included.
"""

from __future__ import annotations

from collections.abc import Iterable

from nomadpy.models.constraint import Spread
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.node import Node
from nomadpy.scheduler.feasibility import resolve
from nomadpy.scheduler.operators import DISTINCT_HOSTS, DISTINCT_PROPERTY


class PropertyLimit:
    """At most `limit` allocations on nodes with one value of a property; of the job, or of one group only."""

    def __init__(self, target: str, limit: int, group: str) -> None:
        self.target = target
        self.limit = limit
        self.group = group
        self.counts: dict[str, int] = {}

    def count(self, node: Node, group: str, change: int) -> None:
        """Add an allocation (change 1) or take one away (-1)."""
        if self.group and self.group != group:
            return
        value = resolve(self.target, node)
        if value is not None:
            self.counts[value] = self.counts.get(value, 0) + change

    def problem(self, node: Node) -> str:
        """Why no further allocation may go to the node, or ""."""
        value = resolve(self.target, node)
        if value is None:
            return f"missing property {self.target}"
        used = self.counts.get(value, 0)
        if used < self.limit:
            return ""
        return f"distinct_property: {self.target}={value} used by {used} allocs"


class DistinctRules:
    """The distinct_* constraints that one group of a job is under."""

    def __init__(self, job: Job, group: TaskGroup) -> None:
        job_constraints = job.constraints or []
        own = [*(group.constraints or ())]
        for task in group.tasks or ():
            own.extend(task.constraints or ())
        self._group = group.name
        self._job_hosts = any(_wants_hosts(one.operand, one.r_target) for one in job_constraints)
        self._group_hosts = any(_wants_hosts(one.operand, one.r_target) for one in own)
        self.limits = [
            PropertyLimit(one.l_target, _limit(one.r_target), "")
            for one in job_constraints
            if one.operand == DISTINCT_PROPERTY
        ]
        self.limits += [
            PropertyLimit(one.l_target, _limit(one.r_target), group.name)
            for one in own
            if one.operand == DISTINCT_PROPERTY
        ]

    def __bool__(self) -> bool:
        return self._job_hosts or self._group_hosts or bool(self.limits)

    def count(self, node: Node, group: str, change: int) -> None:
        """Add an allocation of the job (change 1) or take one away (-1)."""
        for limit in self.limits:
            limit.count(node, group, change)

    def problem(self, node: Node, job_allocs: dict[str, int]) -> str:
        """Why no further allocation may go to the node, or ""; job_allocs: group name to how many are there."""
        if self._job_hosts and any(job_allocs.values()):
            return DISTINCT_HOSTS
        if self._group_hosts and job_allocs.get(self._group):
            return DISTINCT_HOSTS
        for limit in self.limits:
            found = limit.problem(node)
            if found:
                return found
        return ""


class SpreadScore:
    """How much an allocation on a node helps to spread a group, -1 to 1, over all spread blocks by weight."""

    def __init__(self, job: Job, group: TaskGroup) -> None:
        self._group = group.name
        spreads: list[Spread] = [*(group.spreads or ()), *(job.spreads or ())]
        self._rules = [_SpreadRule(one, group.count) for one in spreads]
        self._total_weight = sum(rule.weight for rule in self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules) and self._total_weight > 0

    def count(self, node: Node, group: str, change: int) -> None:
        """Add an allocation of the job (change 1) or take one away (-1)."""
        if group != self._group:
            return
        for rule in self._rules:
            value = resolve(rule.attribute, node)
            if value is not None:
                rule.counts[value] = rule.counts.get(value, 0) + change

    def values(self, node: Node) -> tuple[str | None, ...]:
        """The node's value of each spread attribute: nodes with equal values score alike."""
        return tuple(resolve(rule.attribute, node) for rule in self._rules)

    def score(self, values: Iterable[str | None]) -> float:
        """The boost of one more allocation on a node with these values."""
        return sum(
            rule.boost(value) * rule.weight / self._total_weight
            for rule, value in zip(self._rules, values, strict=True)
        )


class _SpreadRule:
    def __init__(self, spread: Spread, count: int) -> None:
        self.attribute = spread.attribute
        self.weight = 50 if spread.weight is None else spread.weight
        self.counts: dict[str, int] = {}
        targets = spread.spread_target or []
        self._desired = {one.value: one.percent / 100 * count for one in targets}
        rest = 100 - sum(one.percent for one in targets)
        # Values that no target names share what the targets leave.
        self._rest = rest / 100 * count if targets and rest > 0 else None

    def boost(self, value: str | None) -> float:
        if value is None:
            return -1.0
        if self._desired:
            desired = self._desired.get(value, self._desired.get("*", self._rest))
            if not desired:
                return -1.0
            return (desired - (self.counts.get(value, 0) + 1)) / desired
        return self._even(value)

    def _even(self, value: str) -> float:
        """Without targets every value is wanted equally often."""
        used = [number for number in self.counts.values() if number > 0]
        if not used:
            return 0.0
        low, high, own = min(used), max(used), self.counts.get(value, 0)
        if own != low:
            return (low - own) / low
        if low == high:
            return -1.0
        return (high - low) / low


def _wants_hosts(operand: str, value: str) -> bool:
    return operand == DISTINCT_HOSTS and value.lower() != "false"


def _limit(text: str) -> int:
    """How many allocations may share a value: 1 unless the constraint says another number."""
    return int(text) if text.isdigit() and int(text) > 0 else 1
