"""Writes of allocations that exist: what clients report, and transitions that servers ask for.

Placing and stopping them is in plan_results.py; what counts them is in derive.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from nomadpy.models import gotime
from nomadpy.models.allocation import (
    Allocation,
    AllocDeploymentStatus,
    DesiredTransition,
)
from nomadpy.models.base import ZERO_TIME
from nomadpy.state import nodes, schema
from nomadpy.state.store import Transaction

CLIENT_STATUSES = frozenset({"pending", "running", "complete", "failed", "lost", "unknown"})


def update_from_clients(tx: Transaction, reports: Iterable[Allocation]) -> None:
    """Take over what the client owns: its status and description, task states, network and deployment health.

    Unknown allocations are passed over: they were collected meanwhile. A terminal client status is final. What servers
    own, AllocModifyIndex among it, does not move.
    """
    node_ids: dict[str, None] = {}
    for report in reports:
        existing = tx.alloc(report.id)
        if existing is None:
            continue
        node_ids[existing.node_id] = None
        tx.put(schema.ALLOCS, existing.id, _reported(tx, existing, report))
    nodes.note_alloc_updates(tx, node_ids)


def _reported(tx: Transaction, existing: Allocation, report: Allocation) -> Allocation:
    status, description = report.client_status, report.client_description
    final = existing.client_status in schema.CLIENT_TERMINAL
    if final or status not in CLIENT_STATUSES:
        status = existing.client_status
        if report.client_status != status:
            description = existing.client_description
    return msgspec.structs.replace(
        existing,
        client_status=status,
        client_description=description,
        task_states=existing.task_states if report.task_states is None else report.task_states,
        network_status=report.network_status or existing.network_status,
        deployment_status=_reported_health(tx, existing, report.deployment_status),
        modify_index=tx.index,
        modify_time=tx.now_ns,
    )


def _reported_health(
    tx: Transaction, existing: Allocation, report: AllocDeploymentStatus | None
) -> AllocDeploymentStatus | None:
    old = existing.deployment_status
    if report is None or report.healthy is None or not existing.deployment_id:
        return old
    if old is not None and old.healthy == report.healthy:
        return old
    return _with_health(tx, old, report.healthy, report.timestamp)


def _with_health(
    tx: Transaction, old: AllocDeploymentStatus | None, healthy: bool, timestamp: str = ZERO_TIME
) -> AllocDeploymentStatus:
    if gotime.to_ns(timestamp) == 0:
        timestamp = gotime.from_ns(tx.now_ns)
    return AllocDeploymentStatus(
        healthy=healthy,
        timestamp=timestamp,
        canary=old is not None and old.canary,
        modify_index=tx.index,
    )


def set_health(tx: Transaction, alloc: Allocation, *, healthy: bool) -> None:
    """A server's word on an allocation's health."""
    tx.put(
        schema.ALLOCS,
        alloc.id,
        msgspec.structs.replace(
            alloc,
            deployment_status=_with_health(tx, alloc.deployment_status, healthy),
            modify_index=tx.index,
            modify_time=tx.now_ns,
        ),
    )


def end_canary(tx: Transaction, alloc: Allocation) -> None:
    """A promoted canary is an allocation like any other."""
    status = alloc.deployment_status
    if status is None or not status.canary:
        return
    tx.put(
        schema.ALLOCS,
        alloc.id,
        msgspec.structs.replace(
            alloc,
            deployment_status=msgspec.structs.replace(status, canary=False, modify_index=tx.index),
            modify_index=tx.index,
            alloc_modify_index=tx.index,
            modify_time=tx.now_ns,
        ),
    )


def transition(tx: Transaction, transitions: Mapping[str, DesiredTransition]) -> None:
    """Merge wishes into allocations: a field that is None leaves what was wished before. Unknown ids are passed over."""
    for alloc_id, wish in transitions.items():
        alloc = tx.alloc(alloc_id)
        if alloc is None:
            continue
        asked: dict[str, Any] = {
            name: value for name, value in msgspec.structs.asdict(wish).items() if value is not None
        }
        tx.put(
            schema.ALLOCS,
            alloc_id,
            msgspec.structs.replace(
                alloc,
                desired_transition=msgspec.structs.replace(
                    alloc.desired_transition or DesiredTransition(), **asked
                ),
                modify_index=tx.index,
                alloc_modify_index=tx.index,
                modify_time=tx.now_ns,
            ),
        )
