"""The task machine alone: events in, instructions and wire events out; and what holds for any sequence of events."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drivers.base import ExitResult, TaskHandle
from agent.runner import events
from agent.runner import task_machine as machine
from agent.runner.task_machine import Phase, TaskMachine, TaskSpec
from nomadpy.entropy import SeededEntropy
from nomadpy.models.allocation import TaskEvent, TaskState
from nomadpy.models.task_blocks import RestartPolicy

SECOND = 1_000_000_000
NOW = 1_795_393_324_245_142_842
HANDLE = TaskHandle(driver="x", task_id="a/t")


def new(attempts: int = 0, mode: str = "fail", **spec: Any) -> TaskMachine:
    policy = RestartPolicy(attempts=attempts, delay=15 * SECOND, interval=1800 * SECOND, mode=mode)
    spec.setdefault("restart_policy", policy)
    return TaskMachine(TaskSpec(**spec), TaskMachine.fresh(NOW), SeededEntropy(1))


def running(**spec: Any) -> TaskMachine:
    it = new(**spec)
    for event in (machine.Allowed(), machine.Prepared(), machine.Launched(handle=HANDLE)):
        it.handle(event, NOW)
    return it


def exited(code: int = 0, signal: int = 0) -> machine.Exited:
    return machine.Exited(result=ExitResult(exit_code=code, signal=signal))


def shape(it: TaskMachine) -> list[str]:
    return [event.type for event in it.state.events or []]


def test_a_start_goes_through_preparing_and_launching() -> None:
    it = new()
    assert it.handle(machine.Allowed(), NOW) == [machine.Prepare()]
    assert it.handle(machine.Prepared(), NOW) == [machine.Launch()]
    assert it.record.launching
    assert it.record.attempt == 1
    assert it.handle(machine.Launched(handle=HANDLE), NOW) == [machine.Watch()]
    assert it.state.state == "running"
    assert it.state.started_at == "2026-11-23T00:22:04.245142842Z"
    assert not it.record.launching


def test_an_exit_without_restarts_fails_the_task_in_the_recorded_words() -> None:
    it = running()
    assert it.handle(exited(3), NOW) == [machine.Discard()]
    assert it.state.state == "dead"
    assert it.state.failed
    terminated, last = (it.state.events or [])[-2:]
    assert terminated.display_message == "Exit Code: 3"
    assert terminated.details == {"exit_code": "3", "oom_killed": "false", "signal": "0"}
    assert last.display_message == "Policy allows no restarts"
    assert last.details == {"fails_task": "true", "restart_reason": "Policy allows no restarts"}
    assert last.fails_task


def test_a_batch_task_that_ends_well_is_dead_and_has_not_failed() -> None:
    it = running(restart_on_success=False)
    it.handle(exited(0), NOW)
    assert (it.state.state, it.state.failed) == ("dead", False)
    assert shape(it)[-1] == "Terminated"


def test_a_restart_waits_for_its_delay_and_a_quarter_at_most() -> None:
    it = running(attempts=2)
    discard, timer = it.handle(exited(1), NOW)
    assert discard == machine.Discard()
    assert isinstance(timer, machine.StartTimer)
    assert 15 * SECOND <= timer.delay_ns <= 18.75 * SECOND
    assert (it.state.state, it.state.restarts) == ("pending", 1)
    assert it.handle(machine.TimerFired(), NOW) == [machine.Prepare()]


def test_a_user_restart_leaves_the_recorded_trail() -> None:
    it = running()
    stop = it.handle(machine.Restart(reason="User requested task to restart"), NOW)
    assert stop == [machine.Stop(signal="SIGINT", timeout_ns=5 * SECOND)]
    assert it.handle(exited(130, 2), NOW) == [machine.Discard(), machine.Prepare()]
    it.handle(machine.Prepared(), NOW)
    it.handle(machine.Launched(handle=HANDLE), NOW)
    tail = (it.state.events or [])[-4:]
    assert [e.type for e in tail] == ["Restart Signaled", "Terminated", "Restarting", "Started"]
    assert tail[1].display_message == "Exit Code: 130, Signal: 2"
    assert tail[2].display_message == "Task restarting in 0s"
    assert tail[2].details == {"restart_reason": "", "start_delay": "0"}
    assert it.state.restarts == 1


def test_a_kill_leaves_the_recorded_trail() -> None:
    it = running()
    assert it.handle(machine.Kill(), NOW) == [machine.Stop(signal="SIGINT", timeout_ns=5 * SECOND)]
    it.handle(exited(130, 2), NOW)
    killing, _, killed = (it.state.events or [])[-3:]
    assert killing.display_message == "Sent interrupt. Waiting 5s before force killing"
    assert killing.details == {"kill_timeout": "5s"}
    assert killed.display_message == "Task successfully killed"
    assert (it.state.state, it.state.failed) == ("dead", False)


def test_a_kill_while_the_driver_starts_the_task_is_carried_out_when_it_runs() -> None:
    it = new()
    it.handle(machine.Allowed(), NOW)
    it.handle(machine.Prepared(), NOW)
    assert it.handle(machine.Kill(), NOW) == []
    watch, stop = it.handle(machine.Launched(handle=HANDLE), NOW)
    assert watch == machine.Watch()
    assert isinstance(stop, machine.Stop)


def test_a_kill_while_preparing_cancels_it() -> None:
    it = new()
    it.handle(machine.Allowed(), NOW)
    assert it.handle(machine.Kill(), NOW) == [machine.CancelPrepare()]
    assert it.phase is Phase.DEAD
    assert it.handle(machine.Prepared(), NOW) == []


def test_a_kill_during_a_restart_ends_the_task() -> None:
    it = running()
    it.handle(machine.Restart(reason="r"), NOW)
    assert it.handle(machine.Kill(), NOW) == []
    it.handle(exited(130, 2), NOW)
    assert it.phase is Phase.DEAD


def test_shutdown_delay_holds_the_signal_back_until_it_is_skipped() -> None:
    it = running(shutdown_delay_ns=30 * SECOND)
    assert it.handle(machine.Kill(), NOW) == [machine.StartTimer(delay_ns=30 * SECOND)]
    assert it.phase is Phase.DRAINING
    cancel, stop = it.handle(machine.Kill(no_delay=True), NOW)
    assert cancel == machine.CancelTimer()
    assert isinstance(stop, machine.Stop)
    assert "Skipping shutdown delay" in shape(it)


def test_an_unrecoverable_start_error_fails_at_once_and_a_recoverable_one_is_tried_again() -> None:
    for recoverable, phase in ((False, Phase.DEAD), (True, Phase.BACKOFF)):
        it = new(attempts=2)
        it.handle(machine.Allowed(), NOW)
        it.handle(machine.Prepared(), NOW)
        it.handle(machine.LaunchFailed(message="no such image", recoverable=recoverable), NOW)
        assert it.phase is phase
        assert "Driver Failure" in shape(it)
        assert it.state.failed is not recoverable
    reasons = [e.restart_reason for e in it.state.events or []]
    assert "Restart within policy" in reasons


def test_a_restored_task_is_recovered_and_keeps_its_start_time() -> None:
    before = running()
    it = TaskMachine(before.spec, before.record, SeededEntropy(1))
    assert it.begin() == [machine.Recover(handle=HANDLE)]
    assert it.handle(machine.Recovered(handle=HANDLE), NOW + SECOND) == [machine.Watch()]
    assert it.state.started_at == before.state.started_at


def test_a_restored_task_that_is_gone_waits_for_its_turn_again() -> None:
    before = running()
    it = TaskMachine(before.spec, before.record, SeededEntropy(1))
    it.begin()
    assert it.handle(machine.RecoverFailed(message="gone"), NOW) == [machine.Discard()]
    assert it.phase is Phase.WAITING
    assert it.record.handle is None
    assert it.state.restarts == 0


def test_a_start_that_nobody_saw_through_is_asked_for_by_id_and_taken_over() -> None:
    before = new()
    before.handle(machine.Allowed(), NOW)
    before.handle(machine.Prepared(), NOW)
    it = TaskMachine(before.spec, before.record, SeededEntropy(1))
    assert it.begin() == [machine.Recover(handle=None)]
    assert it.handle(machine.Recovered(handle=HANDLE), NOW) == [machine.Watch()]
    assert (it.state.state, it.record.handle, it.record.launching) == ("running", HANDLE, False)
    assert shape(it)[-1] == "Started"
    gone = TaskMachine(before.spec, before.record, SeededEntropy(1))
    gone.begin()
    assert gone.handle(machine.RecoverFailed(message="unknown"), NOW) == []
    assert (gone.phase, gone.record.launching) == (Phase.WAITING, False)
    assert "Driver" not in shape(gone)


def test_a_dead_task_is_revived_only_when_all_are_restarted() -> None:
    it = running(restart_on_success=False)
    it.handle(exited(0), NOW)
    it.handle(machine.Restart(reason="one"), NOW)
    assert it.phase is Phase.DEAD
    it.handle(machine.Restart(reason="all", revive=True), NOW)
    assert it.phase is Phase.WAITING
    assert it.state.state == "pending"
    assert it.state.finished_at is None


def test_events_are_ten_at_most_and_the_newest_stay() -> None:
    it = running()
    for number in range(30):
        it.handle(machine.Note(event=events.setup(NOW + number, str(number))), NOW)
    assert [e.message for e in it.state.events or []] == [str(n) for n in range(20, 30)]


@pytest.mark.parametrize(
    ("event", "display"),
    [
        (events.killing(1, 0), "Sent interrupt"),
        (events.killing(1, 5, "because"), "Killing task: because"),
        (events.restarting(1, 15 * SECOND, "Restart within policy"), "Task restarting in 15s"),
        (events.restarting(1, 90 * SECOND, "why"), "why - Task restarting in 1m30s"),
        (
            events.terminated(1, ExitResult(exit_code=137, signal=9, oom_killed=True)),
            'Exit Code: 137, Signal: 9, Exit Message: "OOM Killed"',
        ),
        (events.sibling_failed(1, "db"), 'Task\'s sibling "db" failed'),
        (events.driver_failure(1, ""), "Failed to start task"),
    ],
)
def test_events_speak_the_words_that_clients_know(event: TaskEvent, display: str) -> None:
    assert event.display_message == display


ANY_EVENT = st.one_of(
    st.just(machine.Allowed()),
    st.just(machine.Prepared()),
    st.builds(machine.PrepareFailed, message=st.just("x"), recoverable=st.booleans()),
    st.just(machine.Launched(handle=HANDLE)),
    st.builds(machine.LaunchFailed, message=st.just("x"), recoverable=st.booleans()),
    st.just(machine.Recovered(handle=HANDLE)),
    st.just(machine.RecoverFailed(message="x")),
    st.builds(exited, st.sampled_from([0, 1]), st.sampled_from([0, 9])),
    st.just(machine.StopFailed(message="x")),
    st.just(machine.TimerFired()),
    st.builds(machine.Kill, no_delay=st.booleans()),
    st.builds(machine.Restart, reason=st.just("r"), revive=st.booleans()),
)


@given(
    sequence=st.lists(ANY_EVENT, max_size=40),
    attempts=st.integers(0, 3),
    mode=st.sampled_from(["fail", "delay"]),
    on_success=st.booleans(),
    delay=st.sampled_from([0, SECOND]),
)
def test_no_sequence_of_events_breaks_what_a_task_promises(
    sequence: list[machine.Event], attempts: int, mode: str, on_success: bool, delay: int
) -> None:
    it = new(attempts, mode, restart_on_success=on_success, shutdown_delay_ns=delay)
    now = NOW
    for event in sequence:
        now += SECOND
        was: TaskState = it.state
        phase = it.phase
        out = it.handle(event, now)
        # A task is launched only out of preparing, so never twice at the same time.
        assert (machine.Launch() in out) == (
            phase is Phase.PREPARING and it.phase is Phase.LAUNCHING
        )
        # What the state says is what the phase means.
        live = it.phase in (Phase.RUNNING, Phase.DRAINING, Phase.STOPPING)
        assert (it.state.state == "running") == live
        assert (it.state.state == "dead") == (it.phase is Phase.DEAD)
        assert live == (it.record.handle is not None)
        assert it.record.launching == (it.phase is Phase.LAUNCHING)
        # The dead stay dead unless someone revives them.
        if was.state == "dead" and it.state.state != "dead":
            assert isinstance(event, machine.Restart)
            assert event.revive
        assert len(it.state.events or []) <= events.MAX_EVENTS
        # Whoever is stored now can be taken up by the next agent process.
        again = TaskMachine(it.spec, it.record, SeededEntropy(2))
        assert again.phase in (Phase.WAITING, Phase.RECOVERING, Phase.DEAD)
