"""The order of a group's tasks, and its status, from states alone."""

from __future__ import annotations

import pytest

from agent.runner.lifecycle import KillCause, client_status, kill_cause, kill_waves, may_start
from nomadpy.models.allocation import TaskState
from nomadpy.models.lifecycle import TaskLifecycle
from nomadpy.models.task import Task

STARTED = "2026-11-23T00:22:04Z"
PENDING = TaskState(state="pending")
RUNNING = TaskState(state="running", started_at=STARTED)
DONE = TaskState(state="dead", started_at=STARTED, finished_at=STARTED)
FAILED = TaskState(state="dead", failed=True, started_at=STARTED, finished_at=STARTED)


def group() -> list[Task]:
    def hooked(name: str, hook: str, sidecar: bool = False) -> Task:
        return Task(name=name, lifecycle=TaskLifecycle(hook=hook, sidecar=sidecar))

    return [
        hooked("init", "prestart"),
        hooked("side", "prestart", sidecar=True),
        Task(name="main"),
        Task(name="lead", leader=True),
        hooked("after", "poststart"),
        hooked("clean", "poststop"),
    ]


def states(**known: TaskState) -> dict[str, TaskState]:
    return {task.name: known.get(task.name, PENDING) for task in group()}


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, ["init", "side"]),
        ({"init": DONE}, ["init", "side"]),
        ({"init": RUNNING, "side": RUNNING}, ["init", "side"]),
        ({"init": FAILED, "side": RUNNING}, ["init", "side"]),
        ({"init": DONE, "side": RUNNING}, ["init", "side", "main", "lead"]),
        (
            {"init": DONE, "side": RUNNING, "main": RUNNING, "lead": DONE},
            ["init", "side", "main", "lead", "after"],
        ),
    ],
)
def test_each_task_starts_when_its_turn_has_come(
    known: dict[str, TaskState], expected: list[str]
) -> None:
    assert may_start(group(), states(**known)) == expected


def test_poststop_tasks_start_when_all_others_are_dead() -> None:
    dead = states(init=DONE, side=DONE, main=FAILED, lead=DONE, after=DONE)
    assert "clean" in may_start(group(), dead)
    assert "clean" not in may_start(group(), {**dead, "side": RUNNING})


def test_a_dead_leader_goes_before_a_failed_sibling() -> None:
    live = states(init=DONE, side=RUNNING, main=FAILED, lead=DONE)
    assert kill_cause(group(), live) == KillCause(kind="leader", task="lead")


def test_a_failed_task_ends_its_siblings_and_mains_that_ended_end_the_sidecars() -> None:
    failed = states(init=DONE, side=RUNNING, main=FAILED, lead=RUNNING)
    assert kill_cause(group(), failed) == KillCause(kind="sibling", task="main")
    tasks = [t for t in group() if t.name in ("side", "main", "clean")]
    done = {"side": RUNNING, "main": DONE, "clean": PENDING}
    assert kill_cause(tasks, done) == KillCause(kind="main")


def test_a_healthy_group_and_a_dead_one_have_no_cause_to_be_killed() -> None:
    assert kill_cause(group(), states(init=DONE, side=RUNNING, main=RUNNING, lead=RUNNING)) is None
    dead = states(init=DONE, side=DONE, main=FAILED, lead=DONE, after=DONE)
    assert kill_cause(group(), dead) is None


def test_the_leader_is_killed_first_and_sidecars_last() -> None:
    assert kill_waves(group()) == [["lead"], ["init", "main", "after"], ["side"]]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([PENDING, PENDING], ("pending", "No tasks have started")),
        ([RUNNING, PENDING], ("running", "Tasks are running")),
        ([DONE, PENDING], ("pending", "No tasks have started")),
        ([DONE, DONE], ("complete", "All tasks have completed")),
        ([FAILED, DONE], ("failed", "Failed tasks")),
        # Not terminal while anything lives: servers would give its resources away.
        ([FAILED, RUNNING], ("running", "Tasks are running")),
    ],
)
def test_the_allocations_status_follows_from_its_tasks(
    known: list[TaskState], expected: tuple[str, str]
) -> None:
    assert client_status({str(n): state for n, state in enumerate(known)}) == expected
