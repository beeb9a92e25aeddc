"""The life of one task: events in, instructions out; pure.

Phases: waiting (for its turn) -> preparing (directories, credentials) -> launching (the driver starts it) -> running
-> backing off (before a restart) or dead. A kill leads through draining (shutdown_delay) and stopping. After an agent
restart a task whose handle is known begins in `recovering`.
The shell (task_runner.py) stores `record` whenever it changed, before it carries out the instructions that came with it.
"""

from __future__ import annotations

import enum

import msgspec

from agent.drivers.base import ExitResult, TaskHandle
from agent.runner import events, restarts
from agent.runner.restarts import RestartHistory
from nomadpy.entropy import Entropy
from nomadpy.models import gotime
from nomadpy.models.allocation import TaskEvent, TaskState
from nomadpy.models.base import ZERO_TIME
from nomadpy.models.task_blocks import RestartPolicy


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine knows of the task's definition. kill_timeout_ns is capped by the agent already."""

    restart_policy: RestartPolicy = RestartPolicy()
    restart_on_success: bool = True
    kill_signal: str = "SIGINT"
    kill_timeout_ns: int = 5_000_000_000
    shutdown_delay_ns: int = 0


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All of a task that survives an agent restart.

    attempt: counts starts. launching: the driver was told to start it and has not answered; after a crash the
    task may or may not run, so the driver is asked for it by its id.
    """

    state: TaskState
    attempt: int = 0
    launching: bool = False
    handle: TaskHandle | None = None
    history: RestartHistory = RestartHistory()


class Phase(enum.Enum):
    """Where in its life the task is."""

    WAITING = "waiting"
    PREPARING = "preparing"
    LAUNCHING = "launching"
    RECOVERING = "recovering"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    DEAD = "dead"


# -- events in ------------------------------------------------------------------------------------


class Allowed(msgspec.Struct, frozen=True):
    """Its turn in the group's order has come."""


class Prepared(msgspec.Struct, frozen=True):
    """Directories, environment and credentials are there."""


class PrepareFailed(msgspec.Struct, frozen=True, kw_only=True):
    """They are not."""

    message: str
    recoverable: bool


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """The driver started it."""

    handle: TaskHandle


class LaunchFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The driver could not, and left nothing behind."""

    message: str
    recoverable: bool


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """The driver holds the task of an earlier agent process again."""

    handle: TaskHandle


class RecoverFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The driver does not know it any more."""

    message: str


class Exited(msgspec.Struct, frozen=True, kw_only=True):
    """The task ended."""

    result: ExitResult


class StopFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The driver could not stop it; the shell goes on trying."""

    message: str


class TimerFired(msgspec.Struct, frozen=True):
    """The delay of the last `StartTimer` is over."""


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """End it for good. reason: shown to users; "" says nothing. no_delay: do not hold the signal back."""

    reason: str = ""
    no_delay: bool = False


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """End it and start it again, outside the restart policy. revive: also when it is dead already."""

    reason: str
    revive: bool = False


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Something for the task's list of events."""

    event: TaskEvent


Event = (
    Allowed
    | Prepared
    | PrepareFailed
    | Launched
    | LaunchFailed
    | Recovered
    | RecoverFailed
    | Exited
    | StopFailed
    | TimerFired
    | Kill
    | Restart
    | Note
)


# -- instructions out -----------------------------------------------------------------------------


class Prepare(msgspec.Struct, frozen=True):
    """Make ready; answer Prepared or PrepareFailed."""


class CancelPrepare(msgspec.Struct, frozen=True):
    """Stop making ready; no answer."""


class Launch(msgspec.Struct, frozen=True):
    """Have the driver start it; answer Launched or LaunchFailed."""


class Recover(msgspec.Struct, frozen=True, kw_only=True):
    """Have the driver take it up; answer Recovered or RecoverFailed. handle: None when its start was not seen through."""

    handle: TaskHandle | None


class Watch(msgspec.Struct, frozen=True):
    """Wait for its end; answer Exited."""


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Have the driver stop it; the end comes as Exited, StopFailed may come before."""

    signal: str
    timeout_ns: int


class StartTimer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer TimerFired after the delay; replaces a timer that runs."""

    delay_ns: int


class CancelTimer(msgspec.Struct, frozen=True):
    """No TimerFired any more."""


class Discard(msgspec.Struct, frozen=True):
    """Have the driver forget the ended task; done before anything that follows."""


Instruction = (
    Prepare | CancelPrepare | Launch | Recover | Watch | Stop | StartTimer | CancelTimer | Discard
)


class TaskMachine:
    """Decides; `record` is the outcome so far, `phase` where it stands."""

    def __init__(self, spec: TaskSpec, record: TaskRecord, entropy: Entropy) -> None:
        """Take up a task new or restored; `begin` gives the first instructions."""
        self.spec = spec
        self.record = record
        self._entropy = entropy
        self._kill: Kill | None = None
        self._kill_error = ""
        self._restart: Restart | None = None
        self.phase = Phase.WAITING
        if record.state.state == "dead":
            self.phase = Phase.DEAD
        elif record.handle is not None or record.launching:
            self.phase = Phase.RECOVERING

    @staticmethod
    def fresh(now_ns: int) -> TaskRecord:
        """The record of a task that the agent has just received."""
        return TaskRecord(state=TaskState(state="pending", events=[events.received(now_ns)]))

    @property
    def state(self) -> TaskState:
        """The task's state as the wire has it."""
        return self.record.state

    @property
    def ending(self) -> bool:
        """Whether a kill was asked for, or the task is dead."""
        return self._kill is not None or self.phase is Phase.DEAD

    def begin(self) -> list[Instruction]:
        """What to do first; only a task with a handle has something."""
        if self.phase is Phase.RECOVERING:
            return [Recover(handle=self.record.handle)]
        if self.phase is Phase.DEAD and self.record.handle is not None:
            return self._forget()
        return []

    def handle(self, event: Event, now_ns: int) -> list[Instruction]:
        """Take one event; an event that means nothing in this phase is ignored."""
        match event:
            case Note(event=note):
                self._add(note)
                return []
            case Kill():
                return self._on_kill(event, now_ns)
            case Restart():
                return self._on_restart(event, now_ns)
            case Exited(result=result):
                return self._on_exit(result, now_ns)
            case StopFailed(message=message):
                self._kill_error = message
                return []
            case TimerFired():
                return self._on_timer(now_ns)
            case _:
                return self._on_progress(event, now_ns)

    def _on_progress(self, event: Event, now_ns: int) -> list[Instruction]:
        match self.phase, event:
            case Phase.WAITING, Allowed():
                return self._prepare()
            case Phase.PREPARING, Prepared():
                self.phase = Phase.LAUNCHING
                self._set(launching=True, attempt=self.record.attempt + 1)
                return [Launch()]
            case Phase.PREPARING, PrepareFailed(message=message, recoverable=recoverable):
                failure = events.hook_failed if recoverable else events.setup_failure
                self._add(failure(now_ns, message))
                return self._decide(now_ns, successful=False, recoverable=recoverable)
            case Phase.LAUNCHING, Launched(handle=handle):
                return self._on_started(handle, now_ns)
            case Phase.LAUNCHING, LaunchFailed(message=message, recoverable=recoverable):
                self._set(launching=False)
                self._add(events.driver_failure(now_ns, message))
                if self._kill is not None:
                    return self._dead_by_kill(now_ns)
                return self._decide(now_ns, successful=False, recoverable=recoverable)
            case Phase.RECOVERING, Recovered(handle=handle):
                if self.record.launching:
                    return self._on_started(handle, now_ns)
                return [Watch(), *self._run_or_stop(now_ns)]
            case Phase.RECOVERING, RecoverFailed(message=message):
                if self.record.launching:
                    # It never came to a start, which is no news to anyone.
                    self._set(launching=False)
                else:
                    self._add(events.driver_message(now_ns, message))
                if self._kill is not None:
                    return self._dead_by_kill(now_ns)
                self.phase = Phase.WAITING
                self._set(state=msgspec.structs.replace(self.state, state="pending"))
                return self._forget()
            case _:
                return []

    def _prepare(self) -> list[Instruction]:
        self.phase = Phase.PREPARING
        return [Prepare()]

    def _on_started(self, handle: TaskHandle, now_ns: int) -> list[Instruction]:
        self._set(launching=False, handle=handle)
        self._state(
            events.started(now_ns),
            state="running",
            started_at=gotime.from_ns(now_ns),
            finished_at=None,
        )
        return [Watch(), *self._run_or_stop(now_ns)]

    def _run_or_stop(self, now_ns: int) -> list[Instruction]:
        # A kill or restart may have been asked for while the driver was busy.
        self.phase = Phase.RUNNING
        if self._kill is not None:
            return self._drain(self._kill, now_ns)
        if self._restart is not None:
            return self._stop()
        return []

    # -- ends -------------------------------------------------------------------------------------

    def _on_exit(self, result: ExitResult, now_ns: int) -> list[Instruction]:
        if self.phase not in (Phase.RUNNING, Phase.DRAINING, Phase.STOPPING):
            return []
        timer: list[Instruction] = [CancelTimer()] if self.phase is Phase.DRAINING else []
        self._add(events.terminated(now_ns, result))
        if self._kill is not None:
            return [*timer, *self._dead_by_kill(now_ns)]
        if self._restart is not None:
            return self._start_over(now_ns)
        return self._decide(now_ns, successful=result.successful, recoverable=True)

    def _decide(self, now_ns: int, *, successful: bool, recoverable: bool) -> list[Instruction]:
        if self._restart is not None:
            return self._start_over(now_ns)
        verdict = restarts.decide(
            self.spec.restart_policy,
            self.record.history,
            now_ns=now_ns,
            successful=successful,
            recoverable=recoverable,
            restart_on_success=self.spec.restart_on_success,
            entropy=self._entropy,
        )
        self._set(history=verdict.history)
        if verdict.action == restarts.RESTART:
            self._note_restart(now_ns, verdict.delay_ns, verdict.reason)
            self.phase = Phase.BACKOFF
            return [*self._forget(), StartTimer(delay_ns=verdict.delay_ns)]
        if verdict.action == restarts.FAIL:
            self._die(now_ns, events.not_restarting(now_ns, verdict.reason), failed=True)
        else:
            self._die(now_ns, None, failed=False)
        return self._forget()

    def _start_over(self, now_ns: int) -> list[Instruction]:
        restart, self._restart = self._restart, None
        self._note_restart(now_ns, 0, "")
        if restart is not None and restart.revive:
            return [*self._forget(), *self._wait_for_turn()]
        return [*self._forget(), *self._prepare()]

    def _wait_for_turn(self) -> list[Instruction]:
        # The whole group starts over in its order, which looks at who has started.
        self.phase = Phase.WAITING
        self._set(state=msgspec.structs.replace(self.state, started_at=ZERO_TIME))
        return []

    def _note_restart(self, now_ns: int, delay_ns: int, reason: str) -> None:
        self._state(
            events.restarting(now_ns, delay_ns, reason),
            state="pending",
            restarts=self.state.restarts + 1,
            last_restart=gotime.from_ns(now_ns),
        )

    def _dead_by_kill(self, now_ns: int) -> list[Instruction]:
        self._die(now_ns, events.killed(now_ns, self._kill_error), failed=False)
        return self._forget()

    def _die(self, now_ns: int, event: TaskEvent | None, *, failed: bool) -> None:
        self.phase = Phase.DEAD
        self._state(event, state="dead", failed=failed, finished_at=gotime.from_ns(now_ns))

    def _forget(self) -> list[Instruction]:
        if self.record.handle is None:
            return []
        self._set(handle=None)
        return [Discard()]

    # -- kill and restart -------------------------------------------------------------------------

    def _on_kill(self, kill: Kill, now_ns: int) -> list[Instruction]:
        if self.phase is Phase.DEAD:
            return []
        again, self._kill = self._kill is not None, kill
        match self.phase:
            case Phase.WAITING:
                return self._dead_by_kill(now_ns)
            case Phase.PREPARING:
                return [CancelPrepare(), *self._dead_by_kill(now_ns)]
            case Phase.BACKOFF:
                return [CancelTimer(), *self._dead_by_kill(now_ns)]
            case Phase.RUNNING:
                return self._drain(kill, now_ns)
            case Phase.STOPPING if not again:
                # It is being stopped for a restart; it will not be started again.
                self._add(events.killing(now_ns, self.spec.kill_timeout_ns, kill.reason))
                return []
            case Phase.DRAINING if kill.no_delay:
                self._add(events.skip_shutdown_delay(now_ns))
                return [CancelTimer(), *self._kill_now(kill, now_ns)]
            case _:
                return []

    def _drain(self, kill: Kill, now_ns: int) -> list[Instruction]:
        if self.spec.shutdown_delay_ns <= 0 or kill.no_delay:
            return self._kill_now(kill, now_ns)
        self.phase = Phase.DRAINING
        self._add(events.shutdown_delay(now_ns, self.spec.shutdown_delay_ns))
        return [StartTimer(delay_ns=self.spec.shutdown_delay_ns)]

    def _kill_now(self, kill: Kill, now_ns: int) -> list[Instruction]:
        self._add(events.killing(now_ns, self.spec.kill_timeout_ns, kill.reason))
        return self._stop()

    def _stop(self) -> list[Instruction]:
        self.phase = Phase.STOPPING
        return [Stop(signal=self.spec.kill_signal, timeout_ns=self.spec.kill_timeout_ns)]

    def _on_timer(self, now_ns: int) -> list[Instruction]:
        if self.phase is Phase.BACKOFF:
            return self._prepare()
        if self.phase is Phase.DRAINING and self._kill is not None:
            return self._kill_now(self._kill, now_ns)
        return []

    def _on_restart(self, restart: Restart, now_ns: int) -> list[Instruction]:
        if self._kill is not None and self.phase is not Phase.DEAD:
            return []
        if self.phase is Phase.DEAD:
            return self._revive(restart, now_ns) if restart.revive else []
        if self.phase is Phase.WAITING:
            return []
        self._add(events.restart_signaled(now_ns, restart.reason))
        match self.phase:
            case Phase.RUNNING:
                self._restart = restart
                return self._stop()
            case Phase.LAUNCHING | Phase.RECOVERING:
                self._restart = restart
                return []
            case Phase.BACKOFF:
                again = self._wait_for_turn() if restart.revive else self._prepare()
                return [CancelTimer(), *again]
            case _:
                return []

    def _revive(self, restart: Restart, now_ns: int) -> list[Instruction]:
        self._kill = None
        self._kill_error = ""
        self._set(history=RestartHistory())
        self._state(events.restart_signaled(now_ns, restart.reason), failed=False, finished_at=None)
        self._note_restart(now_ns, 0, "")
        return self._wait_for_turn()

    # -- the record -------------------------------------------------------------------------------

    def _add(self, event: TaskEvent) -> None:
        self._state(event)

    def _state(self, event: TaskEvent | None, **changes: object) -> None:
        if event is not None:
            changes["events"] = events.appended(self.state.events, event)
        self._set(state=msgspec.structs.replace(self.state, **changes))

    def _set(self, **changes: object) -> None:
        self.record = msgspec.structs.replace(self.record, **changes)
