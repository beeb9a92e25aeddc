"""Sort a group's allocations by what has become of them: still good, to migrate, lost, failed, disconnected.

For service and batch jobs. Each allocation lands in at most one set; those in none no longer matter.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import Deployment
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, TaskGroup
from nomadpy.scheduler.fit import client_terminal, server_terminal, terminal
from nomadpy.scheduler.reschedule import next_reschedule
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.scheduler.updates import same_version

ACTIVE_DEPLOYMENT = frozenset(
    {"initializing", "pending", "blocked", "unblocking", "running", "paused"}
)
# A replacement due within this is made now, rather than by another evaluation.
_NEARLY_NOW_NS = 1_000_000_000


class AllocSets(msgspec.Struct):
    """A group's allocations in the order of their names.

    kept: fill their place: running, done (batch), or failed without a replacement being due. migrating: to be moved.
    lost: their node is gone. failed_now: to be replaced now. failed_later: fill their place until the time given.
    disconnecting: their node is not reachable, to be marked unknown. unknown: marked, and replaced or to be replaced.
    reconnected: superseded since a node came back; to be stopped.
    """

    kept: list[Allocation] = []
    migrating: list[Allocation] = []
    lost: list[Allocation] = []
    failed_now: list[Allocation] = []
    failed_later: list[tuple[Allocation, int]] = []
    disconnecting: list[Allocation] = []
    unknown: list[Allocation] = []
    reconnected: list[Allocation] = []


class Disconnect(msgspec.Struct, frozen=True):
    """How a group treats a node that is not reachable. lost_after_ns: None when it counts as lost at once."""

    lost_after_ns: int | None
    replace: bool
    reconcile: str
    never_lost: bool


def disconnect_rules(group: TaskGroup | None) -> Disconnect:
    """Return the rules from the `disconnect` block, or from the older fields of the group."""
    if group is None:
        return Disconnect(None, True, "", False)
    block = group.disconnect
    if block is None:
        return Disconnect(
            group.max_client_disconnect,
            not group.prevent_reschedule_on_lost,
            "",
            group.prevent_reschedule_on_lost,
        )
    replace = block.replace is not False and not group.prevent_reschedule_on_lost
    return Disconnect(block.lost_after, replace, block.reconcile, not replace)


def alloc_index(alloc: Allocation) -> int:
    """Return the index in the allocation's name, `<job>.<group>[i]`; -1 when there is none."""
    _, bracket, rest = alloc.name.rpartition("[")
    digits = rest.removesuffix("]")
    return int(digits) if bracket and digits.isdigit() else -1


def classify(
    allocs: Iterable[Allocation],
    job: Job,
    group: TaskGroup | None,
    snapshot: Snapshot,
    evaluation: Evaluation,
    deployment: Deployment | None,
    now_ns: int,
) -> AllocSets:
    """Return the sets of one group's allocations. deployment: that of the job's present version, if any."""
    ordered = sorted(allocs, key=lambda one: (alloc_index(one), one.create_index, one.id))
    live = {alloc.id: alloc for alloc in ordered if not terminal(alloc)}
    sets = AllocSets()
    superseded = _superseded(live, disconnect_rules(group), snapshot)
    for alloc in ordered:
        if alloc.id in superseded:
            sets.reconnected.append(alloc)
        elif server_terminal(alloc) or client_terminal(alloc):
            _sort_terminal(sets, alloc, job, group, evaluation, deployment, now_ns)
        else:
            _sort_live(sets, alloc, live, group, snapshot, evaluation, now_ns)
    return sets


def _sort_terminal(
    sets: AllocSets,
    alloc: Allocation,
    job: Job,
    group: TaskGroup | None,
    evaluation: Evaluation,
    deployment: Deployment | None,
    now_ns: int,
) -> None:
    if job.type == "batch":
        # What an older version of a batch job did or failed to do does not count for the new one.
        if not same_version(alloc.job, job):
            return
        if alloc.client_status == "complete":
            sets.kept.append(alloc)
            return
    if server_terminal(alloc) or alloc.client_status != "failed":
        return
    if alloc.next_allocation:
        return
    policy = group.reschedule_policy if group else None
    transition = alloc.desired_transition
    if transition is not None and transition.force_reschedule:
        sets.failed_now.append(alloc)
        return
    if (
        deployment is not None
        and alloc.deployment_id == deployment.id
        and deployment.status in ACTIVE_DEPLOYMENT
        and not (transition is not None and transition.reschedule)
    ):
        # While it is deployed, its failure is the deployment's to judge.
        sets.kept.append(alloc)
        return
    reschedule = next_reschedule(alloc, policy)
    if not reschedule.eligible:
        sets.kept.append(alloc)
    elif alloc.followup_eval_id == evaluation.id or reschedule.when_ns - now_ns <= _NEARLY_NOW_NS:
        sets.failed_now.append(alloc)
    elif alloc.followup_eval_id:
        sets.kept.append(alloc)
    else:
        sets.failed_later.append((alloc, reschedule.when_ns))


def _sort_live(
    sets: AllocSets,
    alloc: Allocation,
    live: dict[str, Allocation],
    group: TaskGroup | None,
    snapshot: Snapshot,
    evaluation: Evaluation,
    now_ns: int,
) -> None:
    node = snapshot.node(alloc.node_id)
    rules = disconnect_rules(group)
    unknown = alloc.client_status == "unknown"
    if node is None or node.status == "down":
        if node is None or not rules.never_lost:
            sets.lost.append(alloc)
        elif unknown:
            sets.kept.append(alloc)
        else:
            sets.disconnecting.append(alloc)
        return
    if node.status == "disconnected":
        if rules.lost_after_ns is None and not rules.never_lost:
            sets.lost.append(alloc)
        elif not unknown:
            sets.disconnecting.append(alloc)
        elif _timed_out(alloc, rules, evaluation, now_ns):
            sets.lost.append(alloc)
        elif rules.replace:
            sets.unknown.append(alloc)
        else:
            sets.kept.append(alloc)
        return
    if unknown and alloc.next_allocation in live:
        # The node is back, but has not said yet what became of this one.
        sets.unknown.append(alloc)
        return
    transition = alloc.desired_transition
    if transition is not None and transition.migrate:
        sets.migrating.append(alloc)
    else:
        sets.kept.append(alloc)


def _timed_out(alloc: Allocation, rules: Disconnect, evaluation: Evaluation, now_ns: int) -> bool:
    if rules.lost_after_ns is None:
        return False
    return (
        alloc.followup_eval_id == evaluation.id or now_ns >= alloc.modify_time + rules.lost_after_ns
    )


def _superseded(
    live: dict[str, Allocation], rules: Disconnect, snapshot: Snapshot
) -> frozenset[str]:
    """The losers among originals that run again on a returned node and the replacements made meanwhile."""
    losers: set[str] = set()
    for alloc in live.values():
        replacement = live.get(alloc.next_allocation)
        if replacement is None or alloc.client_status == "unknown":
            continue
        node = snapshot.node(alloc.node_id)
        if node is None or node.status != "ready":
            continue
        losers.add(
            replacement.id if _keep_original(alloc, replacement, rules.reconcile) else alloc.id
        )
    return frozenset(losers)


def _keep_original(original: Allocation, replacement: Allocation, strategy: str) -> bool:
    """Which of two running allocations stays, by the strategy; the newer version of the job always wins."""
    old, new = original.job, replacement.job
    if old is not None and new is not None and old.version != new.version:
        return old.version > new.version
    if original.client_status != replacement.client_status:
        return original.client_status == "running"
    if strategy == "keep_replacement":
        return False
    if strategy in ("keep_original", "longest_running"):
        # The original is the older one, so it has run longest.
        return True
    return _score(original) >= _score(replacement)


def _score(alloc: Allocation) -> float:
    scores = alloc.metrics.score_meta_data if alloc.metrics else None
    return next((one.norm_score for one in scores or () if one.node_id == alloc.node_id), 0.0)
