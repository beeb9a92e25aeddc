"""The deployment that a pass begins: one for the job's version, with a state for each group that is rolled out. Pure."""

from __future__ import annotations

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models.deployment import Deployment, DeploymentState
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, UpdateStrategy
from nomadpy.scheduler.reconcile_canaries import described

DEPLOYMENT_RUNNING = "Deployment is running"


def with_group(
    deployment: Deployment | None,
    evaluation: Evaluation,
    job: Job,
    group: str,
    update: UpdateStrategy,
    *,
    total: int,
    canaries: int,
    now_ns: int,
    entropy: Entropy,
) -> Deployment:
    """Add a group to the deployment of a pass, or begin one with it. total: how many allocations it is to have."""
    if deployment is None:
        deployment = Deployment(
            id=entropy.uuid(),
            namespace=job.namespace,
            job_id=job.id,
            job_version=job.version,
            job_modify_index=job.modify_index,
            job_spec_modify_index=job.job_modify_index,
            job_create_index=job.create_index,
            task_groups={},
            status="running",
            status_description=DEPLOYMENT_RUNNING,
            eval_priority=evaluation.priority,
            create_time=now_ns,
            modify_time=now_ns,
        )
    state = DeploymentState(
        auto_revert=update.auto_revert,
        auto_promote=update.auto_promote,
        progress_deadline=update.progress_deadline,
        desired_total=total,
        desired_canaries=canaries,
    )
    groups = {**(deployment.task_groups or {}), group: state}
    return described(msgspec.structs.replace(deployment, task_groups=groups))
