"""What would move if something changed, and moves that better a cluster: extensions of the API, in the style of its structs."""

from __future__ import annotations

from typing import Any

from nomadpy.models.allocation import AllocationMetric
from nomadpy.models.base import Wire


class AddedNodes(Wire, frozen=True, kw_only=True):
    """Nodes to imagine: `count` copies of the node `like` (name or id), with these sizes where they are above zero."""

    count: int = 1
    like: str = ""
    cpu: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    datacenter: str = ""
    node_pool: str = ""


class WhatIfRequest(Wire, frozen=True, kw_only=True):
    """The changes to imagine, all at once. Nodes by name or id; jobs as they would be registered; jobs_stopped by id."""

    nodes_down: list[str] | None = None
    nodes_drained: list[str] | None = None
    nodes_added: list[AddedNodes] | None = None
    jobs: list[dict[str, Any]] | None = None
    jobs_stopped: list[str] | None = None


class Move(Wire, frozen=True, kw_only=True):
    """One allocation from node to node. alloc_id: the one that runs now; gain: what it betters, for rebalancing."""

    alloc_id: str = ""
    namespace: str = ""
    job_id: str = ""
    task_group: str = ""
    name: str = ""
    from_node: str = ""
    to_node: str = ""
    gain: float = 0.0


class Unplaced(Wire, frozen=True, kw_only=True):
    """A group that would lack allocations, and why."""

    namespace: str = ""
    job_id: str = ""
    task_group: str = ""
    count: int = 0
    metrics: AllocationMetric | None = None


class NodeLoad(Wire, frozen=True, kw_only=True):
    """A node's use, in MHz and MiB, before and after."""

    node: str = ""
    cpu_total: int = 0
    memory_total_mb: int = 0
    cpu_before: int = 0
    cpu_after: int = 0
    memory_before_mb: int = 0
    memory_after_mb: int = 0
    allocs_before: int = 0
    allocs_after: int = 0


class WhatIfResponse(Wire, frozen=True, kw_only=True):
    """What would come of it, once everything that is placed has become healthy. settled: False when it did not come to rest.

    moved: replaced elsewhere; placed: new; stopped: gone without one in their place; evicted: for more important jobs.
    """

    moved: list[Move] | None = None
    placed: list[Move] | None = None
    stopped: list[Move] | None = None
    evicted: list[Move] | None = None
    unplaced: list[Unplaced] | None = None
    nodes: list[NodeLoad] | None = None
    settled: bool = True
    index: int = 0


class RebalanceRequest(Wire, frozen=True, kw_only=True):
    """goal: pack or spread, "" by the cluster's algorithm. max_moves, max_per_job: the budget. job_id: only this job's.

    dry_run: say it, and do nothing.
    """

    goal: str = ""
    max_moves: int = 10
    max_per_job: int = 1
    namespace: str = ""
    job_id: str = ""
    dry_run: bool = False


class RebalanceResponse(Wire, frozen=True, kw_only=True):
    """The moves, in order. score: how far the goal is reached, 0 to 1, before and after them; nodes_used likewise.

    eval_ids: the evaluations that carry them out, [] for a dry run.
    """

    goal: str = ""
    moves: list[Move] | None = None
    score_before: float = 0.0
    score_after: float = 0.0
    nodes_used_before: int = 0
    nodes_used_after: int = 0
    eval_ids: list[str] | None = None
    index: int = 0
