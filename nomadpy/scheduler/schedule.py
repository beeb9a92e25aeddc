"""The entry: an evaluation and a snapshot in, a Decision out.

Pure: equal inputs, the state of the entropy included, give equal decisions. Nothing is changed; the worker submits
the plan, or writes the evaluations when there is none.
"""

from __future__ import annotations

from nomadpy.entropy import Entropy
from nomadpy.errors import InvalidRequestError
from nomadpy.models.evaluation import Evaluation
from nomadpy.scheduler.cluster import UsageCache
from nomadpy.scheduler.decision import Decision
from nomadpy.scheduler.service import schedule_groups
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.scheduler.system import schedule_nodes

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
    cache: UsageCache | None = None,
    dry_run: bool = False,
) -> Decision:
    """Return what to do about the evaluation's job.

    now_ns: wall clock, ns since 1970. entropy: makes ids and picks dynamic ports. cache: sums per node that the caller
    keeps between passes; it changes the speed and nothing else. dry_run: for Job.Plan, on a snapshot that has the
    proposed job. Raises InvalidRequestError for a type that has no scheduler.
    """
    scheduler = _SCHEDULERS.get(evaluation.type)
    if scheduler is None:
        raise InvalidRequestError(f"no scheduler for evaluations of type {evaluation.type!r}")
    return scheduler(
        evaluation,
        snapshot,
        now_ns=now_ns,
        entropy=entropy,
        cache=cache if cache is not None else UsageCache(),
        dry_run=dry_run,
    )
