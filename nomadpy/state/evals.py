"""Writes of evaluations.

Source: nestedUpsertEval in nomad/state/state_store.go of Nomad.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nomadpy.models.evaluation import Evaluation
from nomadpy.state import schema
from nomadpy.state.store import Transaction
from nomadpy.state.table import select


def upsert(tx: Transaction, evaluations: Iterable[Evaluation]) -> None:
    """Insert or update evaluations; the last of several with one id holds.

    One blocked evaluation a job is enough: a new one cancels those before it, and an evaluation that placed everything
    cancels all of them. Blocked evaluations of single nodes (system jobs) concern only their node.
    """
    for evaluation in evaluations:
        existing = tx.eval(evaluation.id)
        stored = msgspec.structs.replace(
            evaluation,
            create_index=tx.index if existing is None else existing.create_index,
            create_time=_created_ns(tx, evaluation, existing),
            modify_index=tx.index,
            modify_time=tx.now_ns,
        )
        tx.put(schema.EVALS, stored.id, stored)
        if stored.status == "blocked":
            _cancel_blocked(
                tx, stored, f'existing blocked evaluation exists for job "{stored.job_id}"'
            )
        elif stored.status == "complete" and not stored.failed_tg_allocs:
            _cancel_blocked(tx, stored, f'evaluation "{stored.id}" successful')


def delete(tx: Transaction, eval_ids: Iterable[str], alloc_ids: Iterable[str]) -> None:
    """Remove collected evaluations and allocations; unknown ids are passed over."""
    for eval_id in eval_ids:
        tx.delete(schema.EVALS, eval_id)
    for alloc_id in alloc_ids:
        tx.delete(schema.ALLOCS, alloc_id)


def _created_ns(tx: Transaction, evaluation: Evaluation, existing: Evaluation | None) -> int:
    if existing is not None:
        return existing.create_time
    return evaluation.create_time or tx.now_ns


def _cancel_blocked(tx: Transaction, cause: Evaluation, why: str) -> None:
    key = (cause.namespace, cause.job_id)
    for other in select(tx.rows(schema.EVALS), "blocked_job", key):
        whole_job = cause.status == "complete" and not cause.node_id
        if other.id == cause.id or not (whole_job or other.node_id == cause.node_id):
            continue
        canceled = msgspec.structs.replace(
            other,
            status="canceled",
            status_description=why,
            modify_index=tx.index,
            modify_time=tx.now_ns,
        )
        tx.put(schema.EVALS, other.id, canceled)
