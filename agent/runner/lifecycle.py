"""The order in which the tasks of a group start and end; pure.

Order: prestart tasks; main tasks when those have ended well (sidecars: run); poststart tasks when every main task has
started; poststop tasks when all others are dead. A failed task, a dead leader, or main tasks that are all dead end
what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from nomadpy.models.allocation import TaskState
from nomadpy.models.base import ZERO_TIME
from nomadpy.models.task import Task

PENDING = "pending"
RUNNING = "running"
DEAD = "dead"

SIBLING_FAILED = "sibling"
LEADER_DEAD = "leader"
MAIN_DEAD = "main"


class KillCause(msgspec.Struct, frozen=True, kw_only=True):
    """Why the live tasks of a group must end. kind: sibling | leader | main; task: the one that died."""

    kind: str
    task: str = ""


def hook(task: Task) -> str:
    """prestart | poststart | poststop, or "" for a main task."""
    return task.lifecycle.hook if task.lifecycle is not None else ""


def is_sidecar(task: Task) -> bool:
    """Whether the task runs beside the main tasks until they are dead."""
    return task.lifecycle is not None and task.lifecycle.sidecar


def may_start(tasks: Sequence[Task], states: Mapping[str, TaskState]) -> list[str]:
    """Names of the tasks whose turn has come (those that run or are dead among them), in the group's order."""
    prestart_done = all(
        _has_started(states[t.name]) if is_sidecar(t) else _ended_well(states[t.name])
        for t in tasks
        if hook(t) == "prestart"
    )
    main_started = prestart_done and all(_has_started(states[t.name]) for t in tasks if not hook(t))
    rest_dead = all(states[t.name].state == DEAD for t in tasks if hook(t) != "poststop")
    turn = {
        "prestart": True,
        "": prestart_done,
        "poststart": main_started,
        "poststop": rest_dead,
    }
    return [t.name for t in tasks if turn.get(hook(t), False)]


def kill_cause(tasks: Sequence[Task], states: Mapping[str, TaskState]) -> KillCause | None:
    """Why the live tasks must end, or None when they may go on. A dead leader goes before a failed sibling."""
    others = [t for t in tasks if hook(t) != "poststop"]
    live = [t for t in others if states[t.name].state != DEAD]
    if not live:
        return None
    dead = [t for t in others if states[t.name].state == DEAD]
    for task in dead:
        if task.leader and not states[task.name].failed:
            return KillCause(kind=LEADER_DEAD, task=task.name)
    for task in dead:
        if states[task.name].failed:
            return KillCause(kind=SIBLING_FAILED, task=task.name)
    if all(is_sidecar(t) for t in live):
        return KillCause(kind=MAIN_DEAD)
    return None


def kill_waves(tasks: Sequence[Task]) -> list[list[str]]:
    """Who is killed together, and in which order: the leader, then the rest, then sidecars; poststop tasks never."""
    others = [t for t in tasks if hook(t) != "poststop"]
    leaders = [t.name for t in others if t.leader]
    sidecars = [t.name for t in others if is_sidecar(t) and not t.leader]
    rest = [t.name for t in others if t.name not in leaders and t.name not in sidecars]
    return [wave for wave in (leaders, rest, sidecars) if wave]


def client_status(states: Mapping[str, TaskState]) -> tuple[str, str]:
    """The allocation's client status and description.

    It is terminal only when no task lives any more: a server may give the resources away from then on.
    """
    kinds = {state.state for state in states.values()}
    if RUNNING in kinds:
        return "running", "Tasks are running"
    if PENDING in kinds:
        return "pending", "No tasks have started"
    if any(state.failed for state in states.values()):
        return "failed", "Failed tasks"
    return "complete", "All tasks have completed"


def _has_started(state: TaskState) -> bool:
    return state.started_at != ZERO_TIME


def _ended_well(state: TaskState) -> bool:
    return state.state == DEAD and not state.failed
