"""Moves deployments on: the next step when allocations become healthy, failure at a deadline or an unhealthy one.

`review` decides, purely; the watcher runs it when the change feed or a deadline says so.
Behaviour matched: Nomad's deployment watcher without automatic promotion and rollback.
"""

from __future__ import annotations

import asyncio

import msgspec

from nomadpy import logs
from nomadpy.errors import NomadError
from nomadpy.fsm.commands import AllocTransition, DeploymentUpdate, EvalUpsert
from nomadpy.models.allocation import DesiredTransition
from nomadpy.models.deployment import Deployment, DeploymentState
from nomadpy.models.gotime import to_ns
from nomadpy.server import new_evaluations
from nomadpy.server.core import Core
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

ACTIVE = ("initializing", "pending", "blocked", "unblocking", "running", "paused")
FAILED_UNHEALTHY = "Failed due to unhealthy allocations"
FAILED_PROGRESS = "Failed due to progress deadline"
# Health reports come one an allocation; those of a moment are one evaluation.
GATHER_S = 0.25


class Review(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done about one deployment. fail: description, "" no. deadline_ns: when to look again, 0 never."""

    fail: str = ""
    evaluate: bool = False
    deadline_ns: int = 0


def review(deployment: Deployment, *, now_ns: int, seen: tuple[int, int]) -> Review:
    """Decide about an active deployment. seen: healthy and unhealthy counts when it was last evaluated."""
    groups = (deployment.task_groups or {}).values()
    healthy, unhealthy = tally(deployment)
    if deployment.status == "paused":
        return Review()
    if any(group.unhealthy_allocs and not group.progress_deadline for group in groups):
        return Review(fail=FAILED_UNHEALTHY)
    deadlines = [
        to_ns(group.require_progress_by)
        for group in groups
        if group.healthy_allocs < group.desired_total
        and group.progress_deadline
        and not waits_for_promotion(group)
    ]
    due = [d for d in deadlines if d]
    if due and min(due) <= now_ns:
        return Review(fail=FAILED_PROGRESS)
    return Review(evaluate=(healthy, unhealthy) != seen, deadline_ns=min(due, default=0))


def waits_for_promotion(group: DeploymentState) -> bool:
    """Whether all that is missing is that somebody promotes the canaries: that may take any time."""
    wanted = group.desired_canaries
    return bool(wanted) and not group.promoted and group.healthy_allocs >= wanted


def tally(deployment: Deployment) -> tuple[int, int]:
    """Healthy and unhealthy allocations over all groups."""
    groups = (deployment.task_groups or {}).values()
    return sum(g.healthy_allocs for g in groups), sum(g.unhealthy_allocs for g in groups)


class DeploymentWatcher:
    """The leader's task that follows every active deployment."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._dirty: set[str] = set()
        self._seen: dict[str, tuple[int, int]] = {}
        self._deadline: dict[str, int] = {}
        self._wake = asyncio.Event()

    def restore(self, snapshot: Snapshot) -> None:
        """Look at every active deployment once."""
        self._seen.clear()
        self._deadline.clear()
        for deployment in snapshot.deployments():
            if deployment.status in ACTIVE:
                self._dirty.add(deployment.id)
        self._wake.set()

    def changed(self, deployment_id: str) -> None:
        """The change feed saw this deployment."""
        self._dirty.add(deployment_id)
        self._wake.set()

    async def run(self) -> None:
        """Review what changed or is due, until cancelled."""
        while True:
            await self._wait()
            now_ns = self._core.clock.now_ns()
            due = [k for k, at in self._deadline.items() if at <= now_ns]
            work = sorted(self._dirty.union(due))
            self._dirty.clear()
            for deployment_id in work:
                try:
                    await self._look(deployment_id)
                except NomadError as error:
                    log.warning(
                        "deployment not moved on",
                        deployment_id=deployment_id,
                        error=error.message,
                    )
                    self._dirty.add(deployment_id)

    async def _wait(self) -> None:
        self._wake.clear()
        if not self._dirty:
            wait_s = None
            if self._deadline:
                first = min(self._deadline.values()) - self._core.clock.now_ns()
                wait_s = max(0.0, first / 1e9)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                return
        await asyncio.sleep(GATHER_S)

    async def _allow_replacements(self, snapshot: Snapshot, deployment: Deployment) -> bool:
        """Let the scheduler replace what failed within a deployment that still has time for it."""
        core = self._core
        states = deployment.task_groups or {}
        failed = [
            alloc
            for alloc in snapshot.allocs_by_deployment(deployment.id)
            if alloc.client_status == "failed"
            and alloc.desired_status == "run"
            and not alloc.next_allocation
            and (alloc.desired_transition is None or not alloc.desired_transition.reschedule)
            and alloc.task_group in states
            and states[alloc.task_group].progress_deadline
        ]
        job = snapshot.job(deployment.namespace, deployment.job_id)
        if not failed or job is None:
            return False
        evaluation = new_evaluations.for_job(
            job,
            "deployment-watcher",
            entropy=core.entropy,
            now_ns=core.clock.now_ns(),
            deployment_id=deployment.id,
            priority=deployment.eval_priority,
        )
        await core.propose(
            AllocTransition(
                transitions={
                    alloc.id: msgspec.structs.replace(
                        alloc.desired_transition or DesiredTransition(), reschedule=True
                    )
                    for alloc in failed
                },
                evaluations=[evaluation],
            )
        )
        return True

    async def _look(self, deployment_id: str) -> None:
        core = self._core
        snapshot = core.snapshot()
        deployment = snapshot.deployment(deployment_id)
        if deployment is None or deployment.status not in ACTIVE:
            self._seen.pop(deployment_id, None)
            self._deadline.pop(deployment_id, None)
            return
        now_ns = core.clock.now_ns()
        if deployment.status == "running" and await self._allow_replacements(snapshot, deployment):
            return
        seen = self._seen.setdefault(deployment_id, (0, 0))
        verdict = review(deployment, now_ns=now_ns, seen=seen)
        if verdict.deadline_ns:
            self._deadline[deployment_id] = verdict.deadline_ns
        else:
            self._deadline.pop(deployment_id, None)
        job = snapshot.job(deployment.namespace, deployment.job_id)
        if not verdict.fail and not verdict.evaluate:
            return
        evaluation = None
        if job is not None:
            evaluation = new_evaluations.for_job(
                job,
                "deployment-watcher",
                entropy=core.entropy,
                now_ns=now_ns,
                deployment_id=deployment_id,
                priority=deployment.eval_priority,
            )
        if verdict.fail:
            await core.propose(
                DeploymentUpdate(
                    deployment_id=deployment_id,
                    status="failed",
                    description=verdict.fail,
                    evaluation=evaluation,
                    job=None,
                )
            )
            log.info("deployment failed", deployment_id=deployment_id, reason=verdict.fail)
        elif evaluation is not None:
            await core.propose(EvalUpsert(evals=[evaluation]))
            self._seen[deployment_id] = tally(deployment)
