"""Moves that better a cluster, within a budget: where the scheduler would place what runs, were it placed now.

Each move is the scheduler's own choice for an allocation taken from its node, with the moves before it counted; it is taken
when the goal gains by it. So what is carried out (as a migration) comes out as was said, while nothing else changes.

pack:   few nodes, full ones: the sum over nodes of their use, squared, grows.
spread: many nodes, evenly: that sum shrinks.
"""

from __future__ import annotations

from collections.abc import Iterable

from nomadpy.entropy import Entropy
from nomadpy.models.allocation import Allocation
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job
from nomadpy.models.operator import SPREAD
from nomadpy.models.plan import AllocStop, Plan
from nomadpy.models.what_if import Move, RebalanceRequest, RebalanceResponse
from nomadpy.scheduler.alloc_sets import ACTIVE_DEPLOYMENT, alloc_index
from nomadpy.scheduler.cluster import Cluster
from nomadpy.scheduler.conclude import new_allocation
from nomadpy.scheduler.fit import ready_for_placements, terminal, usage
from nomadpy.scheduler.node_table import NodeRow, NodeTable
from nomadpy.scheduler.placement import GroupPlacer
from nomadpy.scheduler.settings import effective_config
from nomadpy.scheduler.updates import find_group, same_version
from nomadpy.scheduler.volumes import keeps_data
from nomadpy.state.store import Snapshot

PACK = "pack"
SPREAD_OUT = "spread"
LEAST_GAIN = 0.001
LOOKED_AT = 5_000
"""Allocations that are tried, those on the emptiest nodes (pack) or the fullest ones (spread) first."""


def rebalance(
    snapshot: Snapshot, request: RebalanceRequest, *, entropy: Entropy
) -> RebalanceResponse:
    """Return the moves; nothing is changed, and dry_run is not looked at."""
    table = NodeTable()
    table.catch_up(snapshot)
    goal = request.goal or _goal_of(snapshot)
    rows = [
        row
        for node in snapshot.nodes()
        if ready_for_placements(node) and (row := table.row(node.id)) is not None
    ]
    before = _score(rows, goal), _used(rows)
    moves = _Search(snapshot, table, request, goal, entropy).moves(rows) if rows else []
    after = _score(rows, goal), _used(rows)
    table.forget_assumed()
    return RebalanceResponse(
        goal=goal,
        moves=moves,
        score_before=before[0],
        score_after=after[0],
        nodes_used_before=before[1],
        nodes_used_after=after[1],
        eval_ids=[],
    )


class _Search:
    """Tries allocation after allocation until the budget is spent."""

    def __init__(
        self,
        snapshot: Snapshot,
        table: NodeTable,
        request: RebalanceRequest,
        goal: str,
        entropy: Entropy,
    ) -> None:
        self._snapshot = snapshot
        self._table = table
        self._request = request
        self._goal = goal
        self._entropy = entropy
        self._live: dict[tuple[str, str], list[Allocation]] = {}
        self._spent: dict[tuple[str, str], int] = {}

    def moves(self, rows: list[NodeRow]) -> list[Move]:
        """The moves, each counted in the table before the next is looked for."""
        found: list[Move] = []
        sign = 1 if self._goal == PACK else -1
        ordered = sorted(rows, key=lambda row: (sign * _load(row), row.node.id))
        looked = 0
        for row in ordered:
            for alloc in self._movable(row):
                if len(found) >= self._request.max_moves or looked >= LOOKED_AT:
                    return found
                key = (alloc.namespace, alloc.job_id)
                if self._spent.get(key, 0) >= self._request.max_per_job:
                    continue
                looked += 1
                move = self._try(alloc, row)
                if move is not None:
                    self._spent[key] = self._spent.get(key, 0) + 1
                    found.append(move)
        return found

    def _movable(self, row: NodeRow) -> Iterable[Allocation]:
        """The allocations of a node that may be moved: running, of a job that is at rest, the oldest first."""
        request = self._request
        chosen = [
            alloc
            for alloc in self._snapshot.allocs_by_node(row.node.id)
            if not terminal(alloc)
            and alloc.client_status == "running"
            and (not request.job_id or alloc.job_id == request.job_id)
            and (not request.namespace or alloc.namespace == request.namespace)
            and self._at_rest(alloc)
        ]
        return sorted(chosen, key=lambda alloc: (alloc.create_index, alloc.id))

    def _at_rest(self, alloc: Allocation) -> bool:
        job = self._snapshot.job(alloc.namespace, alloc.job_id)
        if job is None or job.stop or job.type != "service" or not same_version(alloc.job, job):
            return False
        transition = alloc.desired_transition
        if transition is not None and transition.migrate:
            return False
        group = find_group(job, alloc.task_group)
        disk = group.ephemeral_disk if group else None
        if disk is not None and disk.sticky:
            # Its data would have to be carried along.
            return False
        if group is not None and keeps_data(group):
            return False
        deployment = self._snapshot.latest_deployment(job.namespace, job.id)
        return deployment is None or deployment.status not in ACTIVE_DEPLOYMENT

    def _try(self, alloc: Allocation, row: NodeRow) -> Move | None:
        """Let the scheduler place it anew, and take the move when the goal gains."""
        job = self._snapshot.job(alloc.namespace, alloc.job_id)
        group = find_group(job, alloc.task_group) if job else None
        if job is None or group is None:
            return None
        live = self._job_allocs(job)
        cluster = Cluster(self._snapshot, self._table, self._table.view(job), live)
        config = effective_config(self._snapshot, job)
        placer = GroupPlacer(
            cluster, job, group, config, self._entropy, index=max(0, alloc_index(alloc))
        )
        cluster.remove(alloc)
        choice = placer.select()
        if choice is None or choice.state.node.id == alloc.node_id:
            return None
        target = self._table.row(choice.state.node.id)
        if target is None:
            return None
        before = _worth(row) + _worth(target)
        new = new_allocation(
            Evaluation(), job, group.name, alloc.name, choice, alloc_id=self._entropy.uuid()
        )
        plan = Plan(
            eval_id="",
            stops=[AllocStop(alloc_id=alloc.id, node_id=alloc.node_id)],
            placements=[new],
        )
        gain = self._gain(row, target, alloc, new, before)
        if gain < LEAST_GAIN:
            return None
        self._table.assume(plan)
        live.remove(alloc)
        live.append(new)
        return Move(
            alloc_id=alloc.id,
            namespace=alloc.namespace,
            job_id=alloc.job_id,
            task_group=alloc.task_group,
            name=alloc.name,
            from_node=row.node.name,
            to_node=target.node.name,
            gain=gain,
        )

    def _gain(
        self, row: NodeRow, target: NodeRow, old: Allocation, new: Allocation, before: float
    ) -> float:
        """How much nearer the goal is after the move."""
        row.add(usage(old), -1)
        target.add(usage(new), 1)
        after = _worth(row) + _worth(target)
        row.add(usage(old), 1)
        target.add(usage(new), -1)
        return after - before if self._goal == PACK else before - after

    def _job_allocs(self, job: Job) -> list[Allocation]:
        key = (job.namespace, job.id)
        live = self._live.get(key)
        if live is None:
            live = self._live[key] = [
                alloc for alloc in self._snapshot.allocs_by_job(*key) if not terminal(alloc)
            ]
        return live


def _goal_of(snapshot: Snapshot) -> str:
    """What the cluster's algorithm is after."""
    return SPREAD_OUT if snapshot.scheduler_config().scheduler_algorithm == SPREAD else PACK


def _load(row: NodeRow) -> float:
    """The node's use, 0 to 1, of cpu and memory alike."""
    parts = [
        used / have
        for used, have in ((row.cpu, row.have.cpu), (row.memory_mb, row.have.memory_mb))
        if have > 0
    ]
    return sum(parts) / len(parts) if parts else 0.0


def _worth(row: NodeRow) -> float:
    return _load(row) ** 2


def _used(rows: Iterable[NodeRow]) -> int:
    return sum(row.count > 0 for row in rows)


def _score(rows: list[NodeRow], goal: str) -> float:
    """0 to 1: the use of the used nodes (pack), or how even all of them are (spread)."""
    if goal == PACK:
        used = [row for row in rows if row.count]
        return sum(map(_load, used)) / len(used) if used else 1.0
    loads = [_load(row) for row in rows]
    return 1.0 - (max(loads) - min(loads)) if loads else 1.0
