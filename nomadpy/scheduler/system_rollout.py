"""How a new version of a system job is rolled out over its nodes: the deployment, its canaries, and how many nodes at a time.

A node's allocation is replaced where it is, so a canary takes the place of the old version on its node. `canary` of a system
job is a share of its nodes in percent. Jobs of type sysbatch have no deployments.

Out:     the deployment as it stands after the pass, and of each group who may be replaced now.
Not here: what each node should have (reconcile_nodes.py); who promotes (the API).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models import gotime
from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import Deployment, DeploymentState
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, TaskGroup, UpdateStrategy
from nomadpy.models.plan import DeploymentStatusUpdate
from nomadpy.scheduler.alloc_sets import ACTIVE_DEPLOYMENT
from nomadpy.scheduler.fit import terminal
from nomadpy.scheduler.new_deployment import with_group
from nomadpy.scheduler.reconcile_groups import (
    DEPLOYMENT_NEWER_JOB,
    DEPLOYMENT_STOPPED,
    DEPLOYMENT_SUCCESSFUL,
)
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.scheduler.updates import same_version


class Rollout:
    """The deployment of one pass."""

    def __init__(
        self,
        job: Job | None,
        allocs: Iterable[Allocation],
        snapshot: Snapshot,
        evaluation: Evaluation,
        *,
        now_ns: int,
        entropy: Entropy,
    ) -> None:
        self._job = job
        self._live = [alloc for alloc in allocs if not terminal(alloc)]
        self._all = list(allocs)
        self._evaluation = evaluation
        self._now_ns = now_ns
        self._entropy = entropy
        self._complete = True
        self.deployment: Deployment | None = None
        self.is_new = False
        self.updates: list[DeploymentStatusUpdate] = []
        latest = snapshot.latest_deployment(evaluation.namespace, evaluation.job_id)
        if latest is not None:
            self._settle(latest)

    def _settle(self, latest: Deployment) -> None:
        """Cancel what is not of this version; remember the one that is."""
        job, active = self._job, latest.status in ACTIVE_DEPLOYMENT
        if job is None or job.stop:
            text = DEPLOYMENT_STOPPED
        elif latest.job_version != job.version or latest.job_create_index != job.create_index:
            text = DEPLOYMENT_NEWER_JOB
        else:
            if latest.status != "successful":
                self.deployment = latest
            return
        if active:
            self.updates.append(
                DeploymentStatusUpdate(
                    deployment_id=latest.id, status="cancelled", description=text
                )
            )

    def part_of(self, group: str) -> str:
        """The id of the deployment that what is placed now belongs to, or ""."""
        deployment = self.deployment
        if deployment is None or deployment.status not in ACTIVE_DEPLOYMENT:
            return ""
        return deployment.id if group in (deployment.task_groups or {}) else ""

    def plan(
        self,
        group: TaskGroup,
        *,
        nodes: int,
        placing: int,
        in_place: bool,
        destructive: list[Allocation],
    ) -> tuple[list[Allocation], bool]:
        """Return who is replaced now, and whether all that is placed now is a canary.

        nodes: how many are to have the group; placing: on how many of them it is placed anew.
        """
        update = group.update
        job = self._job
        if (
            job is None
            or job.type != "system"
            or update is None
            or update.max_parallel <= 0
            or nodes <= 0
        ):
            return destructive, False
        canaries = -(-nodes * update.canary // 100) if destructive else 0
        self._begin(job, group, update, nodes, canaries, updating=in_place or bool(destructive))
        state = self._state(group.name)
        mine = [
            alloc
            for alloc in self._live
            if alloc.task_group == group.name
            and self.deployment is not None
            and alloc.deployment_id == self.deployment.id
        ]
        unsure = [alloc for alloc in mine if not _healthy(alloc)]
        if placing or in_place or destructive or unsure:
            self._complete = False
        if self.deployment is None:
            return destructive[: update.max_parallel], False
        if self.deployment.status in ("paused", "failed"):
            return [], False
        if any(_unhealthy(alloc) for alloc in mine):
            return [], False
        if state is not None and state.desired_canaries and not state.promoted:
            self._complete = False
            placed = frozenset(state.placed_canaries or ())
            there = sum(alloc.id in placed for alloc in self._live)
            return destructive[: max(0, state.desired_canaries - there - placing)], True
        return destructive[: max(0, update.max_parallel - len(unsure))], False

    def conclude(self, *, failed: bool) -> None:
        """Finish the deployment when nothing is left to do. failed: some node has no room."""
        deployment = self.deployment
        if deployment is None or self.is_new or failed or not self._complete:
            return
        if deployment.status == "running" and deployment.task_groups:
            self.updates.append(
                DeploymentStatusUpdate(
                    deployment_id=deployment.id,
                    status="successful",
                    description=DEPLOYMENT_SUCCESSFUL,
                )
            )

    def started(self, groups: Iterable[str]) -> None:
        """The clock of a new deployment starts for the groups of which something was placed."""
        if self.deployment is None or not self.is_new:
            return
        begun = set(groups)
        states = {
            name: msgspec.structs.replace(
                state, require_progress_by=gotime.from_ns(self._now_ns + state.progress_deadline)
            )
            if name in begun and state.progress_deadline
            else state
            for name, state in (self.deployment.task_groups or {}).items()
        }
        self.deployment = msgspec.structs.replace(self.deployment, task_groups=states)

    def _state(self, group: str) -> DeploymentState | None:
        return (self.deployment.task_groups or {}).get(group) if self.deployment else None

    def _begin(
        self,
        job: Job,
        group: TaskGroup,
        update: UpdateStrategy,
        nodes: int,
        canaries: int,
        *,
        updating: bool,
    ) -> None:
        """Begin a deployment, or add the group to the one of this pass, when this version is new to the group."""
        if self.deployment is not None and not self.is_new:
            return
        known = any(
            same_version(alloc.job, job) for alloc in self._all if alloc.task_group == group.name
        )
        if known and not updating:
            return
        self.is_new = self.is_new or self.deployment is None
        self.deployment = with_group(
            self.deployment,
            self._evaluation,
            job,
            group.name,
            update,
            total=nodes,
            canaries=canaries,
            now_ns=self._now_ns,
            entropy=self._entropy,
        )


def _healthy(alloc: Allocation) -> bool:
    status = alloc.deployment_status
    return status is not None and status.healthy is True


def _unhealthy(alloc: Allocation) -> bool:
    status = alloc.deployment_status
    return status is not None and status.healthy is False
