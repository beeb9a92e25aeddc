"""One allocation on this node: its tasks in their order, its status, its health, its end.

The runner lives from the allocation's arrival until servers forget it or it is collected; `run` ends when every task is
dead for good. Cancelling `run` leaves the workloads alone: the next agent process takes them up by what is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agent import task_env
from agent.local_state import AllocRecord
from agent.runner import events, health, lifecycle, task_machine
from agent.runner.context import RunnerContext
from agent.runner.task_runner import TaskNotRunningError, TaskRunner
from agent.task_dir import DirectoryError
from nomadpy import logs
from nomadpy.errors import DefiniteError
from nomadpy.models import gotime
from nomadpy.models.allocation import (
    Allocation,
    AllocDeploymentStatus,
    AllocNetworkStatus,
    TaskEvent,
    TaskState,
)
from nomadpy.models.job import TaskGroup
from nomadpy.models.task import Task

log = logs.get(__name__)

_SECOND = 1_000_000_000

Report = Callable[[Allocation], None]
"""Takes an allocation of which only what the client owns (and the id) is filled in."""

Predecessors = Callable[[list[str]], Awaitable[list[str]]]
"""Waits until the given allocations have ended, as far as they end on this node; returns those that run on here."""


class UnknownTaskError(DefiniteError):
    """The allocation has no such task; Nomad answers 500."""

    code = "unknown-task-runner"


class Pulse:
    """Wakes all who wait for the next change; take `upcoming` before looking, so that no change is missed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def upcoming(self) -> asyncio.Event:
        """Set by the next `beat`."""
        return self._event

    def beat(self) -> None:
        """Something changed."""
        self._event.set()
        self._event = asyncio.Event()


class AllocRunner:
    """Runs one allocation."""

    def __init__(
        self,
        context: RunnerContext,
        record: AllocRecord,
        *,
        report: Report,
        predecessors: Predecessors,
    ) -> None:
        """record: with task records when an earlier agent process ran it. Raises LookupError for a job without the group."""
        self.alloc = record.alloc
        self.since_ns = record.since_ns
        self.restored = asyncio.Event()
        self.finished = asyncio.Event()
        self._context = context
        self._report = report
        self._predecessors = predecessors
        self._group = task_env.group_of(record.alloc)
        self._pulse = Pulse()
        self._health = record.health
        # Records of tasks that never started are no sign that those before us had ended.
        self._may_begin = any(
            task.attempt or task.state.state != "pending" for task in record.tasks.values()
        )
        # What servers or users want, and what was decided with it: once decided, the allocation ends.
        self._stop: task_machine.Kill | None = None
        self._end: task_machine.Kill | None = None
        self._destroying = False
        self._broken = ""
        self._log = log.bind(alloc_id=record.alloc.id)
        self.tasks: dict[str, TaskRunner] = {
            task.name: TaskRunner(
                context, record.alloc, task, record.tasks.get(task.name), self._pulse.beat
            )
            for task in self._group.tasks or []
        }
        self._take_over_desire()

    # -- what others see --------------------------------------------------------------------------

    @property
    def is_terminal(self) -> bool:
        """Whether every task is dead for good."""
        return self.finished.is_set()

    @property
    def is_ending(self) -> bool:
        """Whether it was decided that it must end, or it has."""
        return self._stop is not None or self._end is not None or self.is_terminal

    @property
    def stage(self) -> str:
        """How the node counts it: blocked (others must end first) | pending | running | terminal."""
        status, _ = lifecycle.client_status(self.states())
        if self._broken or status not in ("pending", "running"):
            return "terminal"
        if status == "pending" and self.restored.is_set() and not self._may_begin:
            return "blocked"
        return status

    @property
    def finished_ns(self) -> int:
        """Wall time of the last task's end; 0 before, or when no task ever ended."""
        if not self.is_terminal:
            return 0
        return max((gotime.to_ns(s.finished_at or "") for s in self.states().values()), default=0)

    @property
    def group(self) -> TaskGroup:
        """The task group that it runs."""
        return self._group

    def states(self) -> dict[str, TaskState]:
        """Every task's state."""
        return {name: runner.state for name, runner in self.tasks.items()}

    def client_update(self) -> Allocation:
        """What the servers are to know of it."""
        states = self.states()
        status, description = lifecycle.client_status(states)
        if self._broken:
            status, description = "failed", self._broken
        return Allocation(
            id=self.alloc.id,
            namespace=self.alloc.namespace,
            node_id=self.alloc.node_id,
            job_id=self.alloc.job_id,
            task_group=self.alloc.task_group,
            deployment_id=self.alloc.deployment_id,
            client_status=status,
            client_description=description,
            task_states=states,
            deployment_status=self._health or self.alloc.deployment_status,
            network_status=AllocNetworkStatus(),
        )

    def task(self, name: str) -> TaskRunner:
        """The runner of a task. Raises UnknownTaskError."""
        runner = self.tasks.get(name)
        if runner is None:
            raise UnknownTaskError(f"Could not find task runner for task: {name}")
        return runner

    # -- what others want -------------------------------------------------------------------------

    async def update(self, alloc: Allocation) -> None:
        """Take over what servers changed: the definition in place, the deployment, the wish to stop."""
        reconnected = self.alloc.client_status != "unknown" and alloc.client_status == "unknown"
        new_deployment = alloc.deployment_id != self.alloc.deployment_id
        self.alloc = alloc
        self._group = task_env.group_of(alloc)
        for task in self._tasks():
            self.tasks[task.name].update(alloc, task)
        if new_deployment:
            self._health = None
            await self._context.state.put_health(alloc.id, None)
        await self._context.state.put_alloc(alloc, since_ns=self.since_ns)
        if reconnected:
            now_ns = self._context.clock.now_ns()
            self._note_running(events.reconnected(now_ns))
        self._take_over_desire()
        self._pulse.beat()

    def stop(self, reason: str = "", *, no_delay: bool = False) -> None:
        """End all tasks in order; poststop tasks run. `finished` is set at the end."""
        if self._stop is None or (no_delay and not self._stop.no_delay):
            self._stop = task_machine.Kill(reason=reason, no_delay=no_delay)
            self._pulse.beat()

    async def restart(self, task: str = "", *, all_tasks: bool = False) -> None:
        """Restart one task, all running ones, or all in the group's order, dead ones included.

        Raises UnknownTaskError, TaskNotRunningError.
        """
        if task:
            runner = self.task(task)
            if not runner.is_running:
                raise TaskNotRunningError("Task not running")
            runner.post(task_machine.Restart(reason="User requested task to restart"))
            return
        if self.is_terminal or self._stop is not None:
            raise TaskNotRunningError("Task not running")
        if all_tasks:
            reason = "User requested all tasks to restart"
            for runner in self.tasks.values():
                runner.post(task_machine.Restart(reason=reason, revive=True))
            return
        for runner in self.tasks.values():
            if runner.is_running:
                reason = "User requested running tasks to restart"
                runner.post(task_machine.Restart(reason=reason))

    async def signal(self, signal: str, task: str = "") -> None:
        """Send a signal to one task or to all that run. Raises UnknownTaskError, TaskNotRunningError, DriverError."""
        if task:
            await self.task(task).signal(signal)
            return
        for runner in self.tasks.values():
            if runner.is_running:
                await runner.signal(signal)

    async def destroy(self) -> None:
        """End everything without delays or poststop tasks, then remove directories and stored state; needs `run`."""
        self._destroying = True
        self.stop(no_delay=True)
        await self.finished.wait()
        try:
            await self._context.directories.remove(self.alloc.id)
        except DirectoryError as cause:
            self._log.error("directory of an allocation not removed", error=cause.message)
        await self._context.state.delete_alloc(self.alloc.id)

    async def kill_now(self) -> None:
        """Stop the workloads after `run` was cancelled, and remove everything: a throw-away agent's exit."""
        async with asyncio.TaskGroup() as group:
            for runner in self.tasks.values():
                group.create_task(runner.kill_now(), name=f"kill {runner.task_id}")
        try:
            await self._context.directories.remove(self.alloc.id)
        except DirectoryError as cause:
            self._log.warning("directory of an allocation not removed", error=cause.message)
        await self._context.state.delete_alloc(self.alloc.id)

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """See the allocation through to its end."""
        try:
            if not self._is_over(self.states()):
                await self._live()
                await self._judge_end()
        except Exception as cause:  # noqa: BLE001 - the allocation's life ends here; the agent's must not
            self._log.exception("allocation runner broke; stopping its tasks")
            self._broken = f"Agent error: {cause!r}"
            for runner in self.tasks.values():
                await runner.kill_now()
        finally:
            self.restored.set()
        self.finished.set()
        self._report(self.client_update())

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as group:
            children = [
                group.create_task(runner.run(), name=f"task {runner.task_id}")
                for runner in self.tasks.values()
            ]
            duties = {
                "begin": self._begin(),
                "kill": self._kill_all(),
                "health": self._watch_health(),
            }
            children += [
                group.create_task(duty, name=f"{name} {self.alloc.id}")
                for name, duty in duties.items()
            ]
            await self._coordinate()
            for child in children:
                child.cancel()

    async def _begin(self) -> None:
        """Wait for those we replace on this node, then let the tasks start."""
        for runner in self.tasks.values():
            await runner.restored.wait()
        self.restored.set()
        if not self._may_begin:
            waits_for = [*(self.alloc.preempted_allocations or [])]
            if self.alloc.previous_allocation:
                waits_for.append(self.alloc.previous_allocation)
            alive = await self._predecessors(waits_for) if waits_for else []
            await self._take_over_disk(alive)
            self._may_begin = True
        self._pulse.beat()

    async def _take_over_disk(self, alive: list[str]) -> None:
        """Have the ephemeral disk of the allocation that we follow, if the group's is sticky. Best effort."""
        disk, previous_id = self._group.ephemeral_disk, self.alloc.previous_allocation
        if disk is None or not (disk.sticky or disk.migrate) or not previous_id:
            return
        if previous_id in alive:
            self._log.info("the disk stays with the allocation that uses it", previous=previous_id)
            return
        try:
            was_here = await self._context.directories.adopt(
                self.alloc.id, previous_id, list(self.tasks)
            )
        except DirectoryError as cause:
            self._log.warning("ephemeral disk not taken over", error=cause.message)
            return
        if disk.migrate and not was_here and self._context.migration is not None:
            await self._context.migration.bring(self.alloc, disk, list(self.tasks), self._say)

    def _say(self, message: str) -> None:
        event = events.hook_message(self._context.clock.now_ns(), message)
        for runner in self.tasks.values():
            runner.post(task_machine.Note(event=event))

    async def _coordinate(self) -> None:
        """React to every change of a task until all are dead."""
        while True:
            upcoming = self._pulse.upcoming
            states = self.states()
            self._report(self.client_update())
            if self._is_over(states):
                return
            self._decide_end(states)
            self._let_start(states)
            await upcoming.wait()

    def _decide_end(self, states: dict[str, TaskState]) -> None:
        if self._end is None:
            cause = lifecycle.kill_cause(self._tasks(), states)
            if self._stop is not None:
                self._end = self._stop
            elif cause is not None:
                self._tell_why(cause)
                self._end = task_machine.Kill()
            if self._end is not None:
                # Wakes _kill_all, which may have looked before.
                self._pulse.beat()
        elif self._stop is not None and self._stop.no_delay and not self._end.no_delay:
            self._end = self._stop
            for runner in self.tasks.values():
                if runner.machine.phase is task_machine.Phase.DRAINING:
                    runner.post(self._end)

    def _let_start(self, states: dict[str, TaskState]) -> None:
        """Give their turn to the tasks that have it. After the end is decided only poststop tasks start."""
        if not self._may_begin and self._end is None:
            return
        allowed = lifecycle.may_start(self._tasks(), states)
        worked = any(runner.machine.record.attempt for runner in self.tasks.values())
        for task in self._tasks():
            runner = self.tasks[task.name]
            if lifecycle.hook(task) == "poststop":
                if self._destroying or (self._end is not None and not worked):
                    if not runner.machine.ending:
                        runner.post(task_machine.Kill(no_delay=True))
                    continue
            elif self._end is not None:
                continue
            if task.name in allowed and runner.machine.phase is task_machine.Phase.WAITING:
                runner.post(task_machine.Allowed())

    async def _kill_all(self) -> None:
        """Once the end is decided, kill the tasks wave by wave; the group's shutdown_delay comes first."""
        await self._until(lambda: self._end is not None)
        delay_ns = self._group.shutdown_delay or 0
        if self._stop is not None and delay_ns > 0:
            try:
                async with asyncio.timeout(delay_ns / _SECOND):
                    await self._until(lambda: self._end is not None and self._end.no_delay)
            except TimeoutError:
                self._log.debug("shutdown_delay of the group is over")
        for wave in lifecycle.kill_waves(self._tasks()):
            assert self._end is not None
            runners = [self.tasks[name] for name in wave]
            for runner in runners:
                runner.post(self._end)
            await self._until(lambda: all(r.state.state == lifecycle.DEAD for r in runners))  # noqa: B023 - awaited at once

    async def _until(self, condition: Callable[[], bool]) -> None:
        while True:
            upcoming = self._pulse.upcoming
            if condition():
                return
            await upcoming.wait()

    # -- health -----------------------------------------------------------------------------------

    async def _watch_health(self) -> None:
        """Judge the allocation for each deployment that it becomes part of."""
        while True:
            upcoming = self._pulse.upcoming
            rule = None if self._end else self._health_rule()
            if rule is None:
                await upcoming.wait()
            else:
                await self._judge(rule, self.alloc.deployment_id)

    async def _judge(self, rule: health.HealthRule, deployment_id: str) -> None:
        clock = self._context.clock
        watch = health.HealthWatch(rule, self._tasks(), clock.monotonic())
        while self.alloc.deployment_id == deployment_id and self._end is None:
            upcoming = self._pulse.upcoming
            finding = watch.observe(self.states(), clock.monotonic())
            if finding.healthy is not None:
                await self._set_health(finding.healthy, finding.reason)
                return
            try:
                async with asyncio.timeout(finding.wait_s):
                    await upcoming.wait()
            except TimeoutError:
                continue

    async def _judge_end(self) -> None:
        """An allocation that ended with a failed task, and was not judged yet, is unhealthy."""
        failed = [name for name, state in self.states().items() if state.failed]
        if failed and self._health_rule() is not None:
            await self._set_health(False, f"Unhealthy because of failed task {failed[0]}")

    def _health_rule(self) -> health.HealthRule | None:
        return None if self._health else health.rule_for(self.alloc, self._group)

    async def _set_health(self, healthy: bool, reason: str) -> None:
        known = self.alloc.deployment_status
        self._health = AllocDeploymentStatus(
            healthy=healthy,
            timestamp=gotime.from_ns(self._context.clock.now_ns()),
            canary=known.canary if known is not None else False,
        )
        self._log.info("allocation health decided", healthy=healthy, reason=reason)
        if not healthy:
            now_ns = self._context.clock.now_ns()
            self._note_running(events.unhealthy(now_ns, reason))
        try:
            await self._context.state.put_health(self.alloc.id, self._health)
        except OSError as cause:
            # A full disk must not end a task; after a restart of the agent the health is judged again.
            self._log.error("allocation health not kept", error=str(cause))
        self._pulse.beat()

    # -- helpers ----------------------------------------------------------------------------------

    def _tasks(self) -> list[Task]:
        """The tasks by their current definition; an update in place adds and removes none."""
        return [task for task in self._group.tasks or [] if task.name in self.tasks]

    def _take_over_desire(self) -> None:
        if self.alloc.desired_status in ("stop", "evict"):
            transition = self.alloc.desired_transition
            self.stop(no_delay=bool(transition is not None and transition.no_shutdown_delay))

    def _tell_why(self, cause: lifecycle.KillCause) -> None:
        now_ns = self._context.clock.now_ns()
        event = {
            lifecycle.SIBLING_FAILED: events.sibling_failed(now_ns, cause.task),
            lifecycle.LEADER_DEAD: events.leader_dead(now_ns),
            lifecycle.MAIN_DEAD: events.main_dead(now_ns),
        }[cause.kind]
        for task in self._tasks():
            runner = self.tasks[task.name]
            if lifecycle.hook(task) != "poststop" and runner.state.state != lifecycle.DEAD:
                runner.post(task_machine.Note(event=event))

    def _note_running(self, event: TaskEvent) -> None:
        for runner in self.tasks.values():
            if runner.is_running:
                runner.post(task_machine.Note(event=event))

    @staticmethod
    def _is_over(states: dict[str, TaskState]) -> bool:
        return all(state.state == lifecycle.DEAD for state in states.values())
