"""Writes of deployments: from plans, status, health of allocations, promotion. Their counts follow in derive.py.

Source: UpdateDeploymentStatus, UpdateDeploymentAllocHealth, UpdateDeploymentPromotion in nomad/state/state_store.go.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.models import gotime
from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import Deployment, DeploymentState
from nomadpy.state import allocs, jobs, schema
from nomadpy.state.store import Transaction

RUNNING_TEXT = "Deployment is running"


def upsert_from_plan(tx: Transaction, deployment: Deployment) -> None:
    """Create a deployment, or take over what a plan says of one: groups and what is desired of them.

    What was counted meanwhile, and a status that ended it, stays.
    """
    existing = tx.deployment(deployment.id)
    if existing is None:
        deployment = msgspec.structs.replace(
            deployment,
            create_index=tx.index,
            create_time=tx.now_ns,
        )
    else:
        ended = existing.status in schema.DEPLOYMENT_TERMINAL
        known = existing.task_groups or {}
        deployment = msgspec.structs.replace(
            deployment,
            status=existing.status if ended else deployment.status,
            status_description=(
                existing.status_description if ended else deployment.status_description
            ),
            task_groups={
                **known,
                **{
                    name: _planned(known[name], state) if name in known else state
                    for name, state in (deployment.task_groups or {}).items()
                },
            },
            create_index=existing.create_index,
            create_time=existing.create_time,
        )
    _put(tx, deployment)


def _planned(known: DeploymentState, planned: DeploymentState) -> DeploymentState:
    return msgspec.structs.replace(
        planned,
        placed_canaries=known.placed_canaries,
        placed_allocs=known.placed_allocs,
        healthy_allocs=known.healthy_allocs,
        unhealthy_allocs=known.unhealthy_allocs,
        require_progress_by=known.require_progress_by,
        promoted=known.promoted or planned.promoted,
    )


def set_status(tx: Transaction, deployment_id: str, status: str, description: str) -> None:
    """Change the status. Success marks the job's version stable; pausing and resuming restart the progress deadlines.

    Raises NotFoundError; InvalidRequestError when the deployment has ended.
    """
    deployment = live(tx, deployment_id)
    groups = deployment.task_groups
    if status != deployment.status and "paused" in (status, deployment.status):
        groups = {
            name: msgspec.structs.replace(
                state, require_progress_by=gotime.from_ns(tx.now_ns + state.progress_deadline)
            )
            if state.progress_deadline
            else state
            for name, state in (groups or {}).items()
        }
    _put(
        tx,
        msgspec.structs.replace(
            deployment, status=status, status_description=description, task_groups=groups
        ),
    )
    if status == "successful":
        key = (deployment.namespace, deployment.job_id)
        # The version may have been purged; the deployment is none the less done.
        if tx.job_version(*key, deployment.job_version) is not None:
            jobs.set_stability(tx, *key, deployment.job_version, stable=True)


def set_alloc_health(
    tx: Transaction, deployment_id: str, *, healthy: Iterable[str], unhealthy: Iterable[str]
) -> None:
    """Say which allocations are healthy. Raises NotFoundError, InvalidRequestError (ended, not of this deployment)."""
    live(tx, deployment_id)
    for health, alloc_ids in ((True, healthy), (False, unhealthy)):
        for alloc_id in alloc_ids:
            alloc = tx.alloc(alloc_id)
            if alloc is None:
                raise NotFoundError(f'unknown alloc "{alloc_id}"', status=500)
            if alloc.deployment_id != deployment_id:
                raise InvalidRequestError(
                    f'alloc "{alloc_id}" is not part of deployment "{deployment_id}"', status=500
                )
            allocs.set_health(tx, alloc, healthy=health)


def promote(tx: Transaction, deployment_id: str, groups: list[str] | None) -> None:
    """Promote the canaries of some groups, or of all (None).

    Raises NotFoundError; InvalidRequestError when the deployment has ended, a group has no canaries to promote, or not
    enough of them are healthy.
    """
    deployment = live(tx, deployment_id)
    states = dict(deployment.task_groups or {})
    chosen = [name for name, state in states.items() if state.desired_canaries > 0]
    if groups is not None:
        strangers = [name for name in groups if name not in chosen]
        if strangers:
            raise InvalidRequestError(
                f"task group {strangers[0]!r} has no canaries to promote", status=500
            )
        chosen = [name for name in chosen if name in groups]
    if not chosen:
        raise InvalidRequestError("no canaries to promote", status=500)
    for name in chosen:
        state = states[name]
        canaries = [tx.alloc(alloc_id) for alloc_id in state.placed_canaries or []]
        sound = [a for a in canaries if a is not None and _is_healthy_canary(a)]
        if not state.promoted and len(sound) < state.desired_canaries:
            raise InvalidRequestError(
                f'Task group "{name}" has {len(sound)}/{state.desired_canaries} healthy allocations',
                status=500,
            )
        states[name] = msgspec.structs.replace(
            state,
            promoted=True,
            # However long the canaries waited: what follows has all the time that the job gives it.
            require_progress_by=gotime.from_ns(tx.now_ns + state.progress_deadline)
            if state.progress_deadline
            else state.require_progress_by,
        )
        for canary in canaries:
            if canary is not None:
                allocs.end_canary(tx, canary)
    waiting = any(state.desired_canaries > 0 and not state.promoted for state in states.values())
    _put(
        tx,
        msgspec.structs.replace(
            deployment,
            task_groups=states,
            status_description=deployment.status_description if waiting else RUNNING_TEXT,
        ),
    )


def delete(tx: Transaction, deployment_ids: Iterable[str]) -> None:
    """Remove collected deployments; unknown ids are passed over."""
    for deployment_id in deployment_ids:
        tx.delete(schema.DEPLOYMENTS, deployment_id)


def live(tx: Transaction, deployment_id: str) -> Deployment:
    """A deployment that has not ended. Raises NotFoundError, InvalidRequestError."""
    deployment = tx.deployment(deployment_id)
    if deployment is None:
        raise NotFoundError("deployment not found")
    if deployment.status in schema.DEPLOYMENT_TERMINAL:
        raise InvalidRequestError(
            f'deployment "{deployment_id}" has terminal status "{deployment.status}"', status=500
        )
    return deployment


def _is_healthy_canary(alloc: Allocation) -> bool:
    status = alloc.deployment_status
    return status is not None and status.healthy is True and not schema.alloc_is_terminal(alloc)


def _put(tx: Transaction, deployment: Deployment) -> None:
    deployment = msgspec.structs.replace(deployment, modify_index=tx.index, modify_time=tx.now_ns)
    tx.put(schema.DEPLOYMENTS, deployment.id, deployment)
