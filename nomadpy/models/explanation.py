"""Why a job is placed as it is, or not placed: an extension of the API, in the style of its structs."""

from __future__ import annotations

from nomadpy.models.base import Wire


class Obstacle(Wire, frozen=True, kw_only=True):
    """One thing that keeps a group off a node. kind: one word, for programs; asked and has: as text; text: a sentence."""

    kind: str = ""
    asked: str = ""
    has: str = ""
    text: str = ""


class NodeVerdict(Wire, frozen=True, kw_only=True):
    """One node for one group. obstacles: all of them, [] when the group fits. scores: when it fits."""

    node_id: str = ""
    node_name: str = ""
    datacenter: str = ""
    node_pool: str = ""
    fits: bool = False
    obstacles: list[Obstacle] | None = None
    score: float = 0.0
    scores: dict[str, float] | None = None


class PlacedAlloc(Wire, frozen=True, kw_only=True):
    """An allocation that runs, and how its node scored when it was chosen, beside the next best."""

    alloc_id: str = ""
    name: str = ""
    node_id: str = ""
    node_name: str = ""
    client_status: str = ""
    score: float = 0.0
    scores: dict[str, float] | None = None
    runner_up: str = ""
    runner_up_score: float = 0.0


class GroupExplanation(Wire, frozen=True, kw_only=True):
    """One group. summary: one sentence. suggestions: what to do, the most promising first. nearest: what comes closest.

    tally: how many nodes each kind of obstacle keeps out. nodes: the verdicts, the nearest first; `left_out` more are not
    listed.
    """

    name: str = ""
    wanted: int = 0
    placed: int = 0
    missing: int = 0
    fitting_nodes: int = 0
    total_nodes: int = 0
    summary: str = ""
    suggestions: list[str] | None = None
    tally: dict[str, int] | None = None
    nearest: NodeVerdict | None = None
    nodes: list[NodeVerdict] | None = None
    left_out: int = 0
    allocs: list[PlacedAlloc] | None = None


class JobExplanation(Wire, frozen=True, kw_only=True):
    """A job's groups. eval_*: the evaluation that was asked about, "" for the job itself; waiting: the blocked one."""

    job_id: str = ""
    namespace: str = ""
    job_type: str = ""
    job_version: int = 0
    stopped: bool = False
    eval_id: str = ""
    eval_status: str = ""
    eval_triggered_by: str = ""
    waiting_eval: str = ""
    groups: list[GroupExplanation] | None = None
