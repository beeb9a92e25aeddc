"""The entry: an evaluation and a snapshot in, a Decision out.

Pure: equal inputs, the state of the entropy included, give equal decisions. Nothing is changed; the worker submits
the plan, or writes the evaluations when there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from nomadpy.entropy import Entropy
from nomadpy.errors import InvalidRequestError, NomadError
from nomadpy.models.evaluation import Evaluation
from nomadpy.scheduler.decision import Decision
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.scheduler.service import schedule_groups
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.scheduler.system import schedule_nodes

# What a bug or an impossible job may raise; it must not take other jobs with it.
UNDECIDABLE = (
    NomadError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)

_SCHEDULERS = {
    "service": schedule_groups,
    "batch": schedule_groups,
    "system": schedule_nodes,
    "sysbatch": schedule_nodes,
}


def schedule(
    evaluation: Evaluation,
    snapshot: Snapshot,
    *,
    now_ns: int,
    entropy: Entropy,
    table: NodeTable | None = None,
    dry_run: bool = False,
) -> Decision:
    """Return what to do about the evaluation's job.

    now_ns: wall clock, ns since 1970. entropy: makes ids and picks dynamic ports. table: the nodes as the caller
    keeps them between passes; it changes the speed and nothing else. dry_run: for Job.Plan, on a snapshot that has the
    proposed job. Raises InvalidRequestError for a type that has no scheduler.
    """
    scheduler = _SCHEDULERS.get(evaluation.type)
    if scheduler is None:
        raise InvalidRequestError(f"no scheduler for evaluations of type {evaluation.type!r}")
    if table is None or not table.catch_up(snapshot):
        table = NodeTable()
        table.catch_up(snapshot)
    return scheduler(
        evaluation,
        snapshot,
        now_ns=now_ns,
        entropy=entropy,
        table=table,
        dry_run=dry_run,
    )


def schedule_batch(
    evaluations: Sequence[Evaluation],
    snapshot: Snapshot,
    *,
    now_ns: int,
    entropy: Entropy,
    table: NodeTable,
) -> list[Decision | Exception]:
    """Return what to do about evaluations of different jobs, each as if the plans before it had been applied.

    An evaluation that cannot be decided has its error instead, and the others go on.
    """
    decisions: list[Decision | Exception] = []
    if not table.catch_up(snapshot):
        table = NodeTable()
        table.catch_up(snapshot)
    try:
        for number, evaluation in enumerate(evaluations, 1):
            try:
                decision = schedule(
                    evaluation, snapshot, now_ns=now_ns, entropy=entropy, table=table
                )
            except UNDECIDABLE as error:
                decisions.append(error)
                continue
            decisions.append(decision)
            if decision.plan is not None and number < len(evaluations):
                table.assume(decision.plan)
    finally:
        table.forget_assumed()
    return decisions
