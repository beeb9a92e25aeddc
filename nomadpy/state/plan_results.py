"""The one transaction that commits plans: placements, updates in place, stops, the deployment, the evaluations.

A plan comes as the applier re-checked it. One that cannot be applied any more (its job was purged) is left out whole, and
the others of the batch still hold.
Source: UpsertPlanResults in nomad/state/state_store.go of Nomad.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nomadpy.models.allocation import Allocation, AllocDeploymentStatus
from nomadpy.models.job import Job
from nomadpy.models.plan import AllocStop, Plan
from nomadpy.state import deployments, evals, host_volumes, schema
from nomadpy.state.store import Transaction


def upsert(tx: Transaction, plans: Iterable[Plan]) -> list[str]:
    """Commit plans in order; return for each "" or why it was left out."""
    return [_upsert(tx, plan) for plan in plans]


def _upsert(tx: Transaction, plan: Plan) -> str:
    job = None
    if plan.job is not None:
        key = (plan.job.namespace, plan.job.job_id)
        job = tx.job_version(*key, plan.job.version)
        if job is None and plan.placements:
            return f'job "{plan.job.job_id}" has no version {plan.job.version}'
    strays = [alloc.id for alloc in plan.placements if alloc.job is None and job is None]
    if strays:
        return f'allocation "{strays[0]}" belongs to no job'
    if plan.deployment is not None:
        deployments.upsert_from_plan(tx, plan.deployment)
    for update in plan.deployment_updates:
        deployment = tx.deployment(update.deployment_id)
        # It may have ended since the plan was made: then there is nothing left to say.
        if deployment is not None and deployment.status not in schema.DEPLOYMENT_TERMINAL:
            deployments.set_status(tx, update.deployment_id, update.status, update.description)
    for stop in plan.stops:
        _stop(tx, stop)
    _place_all(tx, plan.placements, job)
    host_volumes.claim(tx, plan.placements, job)
    evals.upsert(tx, plan.evaluations)
    return ""


def _place_all(tx: Transaction, placements: Iterable[Allocation], job: Job | None) -> None:
    """Place in order. New ones that stand alone are stored together: a plan may bring thousands."""
    present = tx.rows(schema.ALLOCS).get
    alone: dict[str, Allocation] = {}
    for alloc in placements:
        if (
            alloc.job is None
            and not alloc.previous_allocation
            and alloc.preempted_allocations is None
            and alloc.deployment_status is None
            and alloc.id not in alone
            and present(alloc.id) is None
        ):
            alone[alloc.id] = _new(tx, alloc, job, None)
            continue
        tx.insert(schema.ALLOCS, alone)
        alone = {}
        _place(tx, alloc, job)
        present = tx.rows(schema.ALLOCS).get
    tx.insert(schema.ALLOCS, alone)


def _new(
    tx: Transaction, alloc: Allocation, job: Job | None, health: AllocDeploymentStatus | None
) -> Allocation:
    return msgspec.structs.replace(
        alloc,
        job=job,
        desired_status=alloc.desired_status or "run",
        client_status=alloc.client_status or "pending",
        deployment_status=health,
        create_index=tx.index,
        modify_index=tx.index,
        alloc_modify_index=tx.index,
        create_time=tx.now_ns,
        modify_time=tx.now_ns,
    )


def _stop(tx: Transaction, stop: AllocStop) -> None:
    alloc = tx.alloc(stop.alloc_id)
    if alloc is None:
        return
    if stop.desired_status == "run" and alloc.desired_status in schema.DESIRED_TERMINAL:
        # Evicted since the plan was made: a mark for what shall go on does not bring it back.
        return
    status = alloc.client_status
    if stop.client_status and status not in schema.CLIENT_TERMINAL:
        status = stop.client_status
    tx.put(
        schema.ALLOCS,
        alloc.id,
        msgspec.structs.replace(
            alloc,
            desired_status=stop.desired_status,
            desired_description=stop.description,
            client_status=status,
            followup_eval_id=stop.followup_eval_id or alloc.followup_eval_id,
            modify_index=tx.index,
            alloc_modify_index=tx.index,
            modify_time=tx.now_ns,
        ),
    )


def _place(tx: Transaction, alloc: Allocation, planned: Job | None) -> None:
    existing = tx.alloc(alloc.id)
    health = alloc.deployment_status
    if health is not None and (existing is None or health != existing.deployment_status):
        health = msgspec.structs.replace(health, modify_index=tx.index)
    if existing is None:
        stored = _new(tx, alloc, _shared(tx, alloc, planned), health)
    else:
        # Lost and unknown are the scheduler's words; all other statuses are the client's, and the end is the end.
        marked = (
            alloc.client_status in ("lost", "unknown")
            and existing.client_status not in schema.CLIENT_TERMINAL
        )
        stored = msgspec.structs.replace(
            alloc,
            job=_shared(tx, alloc, planned),
            client_status=alloc.client_status if marked else existing.client_status,
            client_description=(
                alloc.client_description if marked else existing.client_description
            ),
            # Somebody may have asked for it to be moved since the plan was made.
            desired_transition=existing.desired_transition,
            task_states=existing.task_states,
            network_status=existing.network_status,
            deployment_status=health,
            next_allocation=existing.next_allocation,
            create_index=existing.create_index,
            modify_index=tx.index,
            alloc_modify_index=tx.index,
            create_time=existing.create_time,
            modify_time=tx.now_ns,
        )
    tx.put(schema.ALLOCS, stored.id, stored)
    if existing is None:
        _link(tx, stored)


def _shared(tx: Transaction, alloc: Allocation, planned: Job | None) -> Job | None:
    """The one object that stands for the version of the job: a plan may bring its own copy of an older one."""
    if alloc.job is None:
        return planned
    wanted = alloc.job
    candidates = [planned, tx.job_version(wanted.namespace, wanted.id, wanted.version)]
    candidates += [
        known.job
        for known in (tx.alloc(alloc.id), tx.alloc(alloc.previous_allocation))
        if known is not None
    ]
    for job in candidates:
        if job is not None and _version(job) == _version(wanted):
            return job
    return wanted


def _version(job: Job) -> tuple[str, str, int, int]:
    return (job.namespace, job.id, job.version, job.create_index)


def _link(tx: Transaction, placed: Allocation) -> None:
    previous = tx.alloc(placed.previous_allocation) if placed.previous_allocation else None
    if previous is not None:
        tx.put(
            schema.ALLOCS,
            previous.id,
            msgspec.structs.replace(
                previous,
                next_allocation=placed.id,
                modify_index=tx.index,
                modify_time=tx.now_ns,
            ),
        )
    for alloc_id in placed.preempted_allocations or []:
        evicted = tx.alloc(alloc_id)
        if evicted is not None:
            tx.put(
                schema.ALLOCS,
                alloc_id,
                msgspec.structs.replace(
                    evicted,
                    preempted_by_allocation=placed.id,
                    modify_index=tx.index,
                    modify_time=tx.now_ns,
                ),
            )
