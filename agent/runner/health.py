"""Whether an allocation counts as healthy for its deployment or migration; pure.

Healthy: every task that should live has run without a restart for min_healthy_time (tasks that only prepare have ended
well). Unhealthy: a task failed, or the deadline passed first. Decided once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from agent.runner import lifecycle
from nomadpy.jobspec.durations import format_duration
from nomadpy.models.allocation import Allocation, AllocDeploymentStatus, TaskState
from nomadpy.models.job import TaskGroup
from nomadpy.models.task import Task

_SECOND = 1_000_000_000


class HealthRule(msgspec.Struct, frozen=True, kw_only=True):
    """How long tasks must have run, and when it is too late; both from the start of watching."""

    min_healthy_ns: int
    deadline_ns: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """healthy: None is undecided; then look again after wait_s, or when a state changes."""

    healthy: bool | None = None
    reason: str = ""
    wait_s: float = 0.0


def rule_for(alloc: Allocation, group: TaskGroup) -> HealthRule | None:
    """The rule by which this allocation is to be judged, or None when nobody waits for it.

    A deployment uses the group's update block; a service outside one its migrate block, for drains.
    """
    job = alloc.job
    if job is None or job.type in ("batch", "sysbatch") or is_decided(alloc.deployment_status):
        return None
    if alloc.deployment_id and group.update is not None:
        how = group.update.health_check
        rule = HealthRule(
            min_healthy_ns=group.update.min_healthy_time,
            deadline_ns=group.update.healthy_deadline,
        )
    elif not alloc.deployment_id and group.migrate is not None and job.type == "service":
        how = group.migrate.health_check
        rule = HealthRule(
            min_healthy_ns=group.migrate.min_healthy_time,
            deadline_ns=group.migrate.healthy_deadline,
        )
    else:
        return None
    return None if how == "manual" or rule.deadline_ns <= 0 else rule


def is_decided(status: AllocDeploymentStatus | None) -> bool:
    """Whether health is known; a canary has a status before it has health."""
    return status is not None and status.healthy is not None


class HealthWatch:
    """Judges by what it is shown; times are monotonic seconds."""

    def __init__(self, rule: HealthRule, tasks: Sequence[Task], now_s: float) -> None:
        self._rule = rule
        self._tasks = [t for t in tasks if lifecycle.hook(t) != "poststop"]
        self._deadline_s = now_s + rule.deadline_ns / _SECOND
        self._good_since: float | None = None
        self._runs: dict[str, str] = {}

    def observe(self, states: Mapping[str, TaskState], now_s: float) -> Finding:
        """Look at the tasks' states as they are now."""
        failed = [t.name for t in self._tasks if states[t.name].failed]
        if failed:
            return Finding(healthy=False, reason=f"Unhealthy because of failed task {failed[0]}")
        # A restart moves started_at, which begins the healthy time anew.
        runs = {t.name: states[t.name].started_at for t in self._tasks}
        if not all(self._is_good(t, states[t.name]) for t in self._tasks):
            self._good_since = None
        elif self._good_since is None or runs != self._runs:
            self._good_since = now_s
        self._runs = runs
        if self._good_since is not None:
            good_at = self._good_since + self._rule.min_healthy_ns / _SECOND
            if now_s >= good_at:
                return Finding(healthy=True)
            if good_at <= self._deadline_s:
                return Finding(wait_s=good_at - now_s)
        if now_s >= self._deadline_s:
            return Finding(
                healthy=False,
                reason=f"Task not running for min_healthy_time of {format_duration(self._rule.min_healthy_ns)}"
                f" by healthy_deadline of {format_duration(self._rule.deadline_ns)}",
            )
        return Finding(wait_s=self._deadline_s - now_s)

    @staticmethod
    def _is_good(task: Task, state: TaskState) -> bool:
        if state.state == lifecycle.RUNNING:
            return True
        ends = lifecycle.hook(task) in ("prestart", "poststart") and not lifecycle.is_sidecar(task)
        return ends and state.state == lifecycle.DEAD and not state.failed
