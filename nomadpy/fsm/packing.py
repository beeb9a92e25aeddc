"""Plans as the log has them: what the placements of a plan share is written once, and the rest in columns.

A plan of thousands is one allocation over and over, with another id, name, node and scores. Written so, and read so, it
takes a tenth of the time and a quarter of the bytes. What is read is equal to what was written, whatever the plan;
objects that were shared before (resources, scores of a node) are shared again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from nomadpy.errors import InvalidRequestError
from nomadpy.models.allocation import Allocation, AllocationMetric, NodeScoreMeta
from nomadpy.models.plan import Plan


class Scored(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node's score. node: place in `Placed.scored_nodes`; names: place in `Placed.score_names`, -1 for no scores."""

    node: int
    norm_score: float
    names: int
    values: list[float]


class Placed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Allocations in a row that are alike but for these columns, all of one length.

    like: one of them, with the columns' fields blank. at: places in `nodes`, which are ids and names. metric_at: places
    in `metrics`, which are without scores, or -1 for none. scores: places in `scored`, or None for no list.
    """

    like: Allocation
    nodes: list[tuple[str, str]]
    metrics: list[AllocationMetric]
    scored_nodes: list[str]
    score_names: list[list[str]]
    scored: list[Scored]
    ids: list[str]
    names: list[str]
    at: list[int]
    metric_at: list[int]
    scores: list[list[int] | None]


class PackedPlan(msgspec.Struct, frozen=True, array_like=True):
    """A plan without its placements, and these, in order."""

    plan: Plan
    placed: list[Placed]


def pack(plan: Plan) -> PackedPlan:
    """Return the plan as it is written."""
    return PackedPlan(
        msgspec.structs.replace(plan, placements=[]),
        [_placed(like, allocs) for like, allocs in _runs(plan.placements)],
    )


def unpack(packed: PackedPlan) -> Plan:
    """Return the plan that was packed. Raises InvalidRequestError when columns do not belong together."""
    placements: list[Allocation] = []
    try:
        for placed in packed.placed:
            placements.extend(_allocations(placed))
    except (IndexError, ValueError) as error:
        raise InvalidRequestError(f"a packed plan is damaged: {error}") from error
    return msgspec.structs.replace(packed.plan, placements=placements)


def _runs(allocs: Iterable[Allocation]) -> Iterator[tuple[Allocation, list[Allocation]]]:
    """Neighbours that are equal but for what the columns tell."""
    replace = msgspec.structs.replace
    like: Allocation | None = None
    run: list[Allocation] = []
    for alloc in allocs:
        blank = replace(alloc, id="", name="", node_id="", node_name="", metrics=None)
        if like is None or blank != like:
            if like is not None:
                yield like, run
            like, run = blank, []
        run.append(alloc)
    if like is not None:
        yield like, run


def _placed(like: Allocation, allocs: list[Allocation]) -> Placed:
    nodes: dict[tuple[str, str], int] = {}
    metrics: list[AllocationMetric] = []
    metric_at: list[int] = []
    scores: list[list[int] | None] = []
    scored = _ScoredOnce()
    newest: AllocationMetric | None = None
    for alloc in allocs:
        metric = alloc.metrics
        if metric is None:
            metric_at.append(-1)
            scores.append(None)
            continue
        told = metric.score_meta_data
        scores.append(None if told is None else scored.places(told))
        plain = msgspec.structs.replace(metric, score_meta_data=None)
        if plain != newest:
            newest = plain
            metrics.append(plain)
        metric_at.append(len(metrics) - 1)
    return Placed(
        like,
        at=[nodes.setdefault((alloc.node_id, alloc.node_name), len(nodes)) for alloc in allocs],
        nodes=list(nodes),
        metrics=metrics,
        scored_nodes=list(scored.nodes),
        score_names=[list(one) for one in scored.names],
        scored=scored.all,
        ids=[alloc.id for alloc in allocs],
        names=[alloc.name for alloc in allocs],
        metric_at=metric_at,
        scores=scores,
    )


class _ScoredOnce:
    """Scores of nodes, each object once: the scheduler makes one for each, and many allocations tell of it."""

    def __init__(self) -> None:
        self.nodes: dict[str, int] = {}
        self.names: dict[tuple[str, ...], int] = {}
        self.all: list[Scored] = []
        # By identity. The allocations that are packed hold the objects, so that no other takes an identity meanwhile.
        self._place: dict[int, int] = {}

    def places(self, told: list[NodeScoreMeta]) -> list[int]:
        """Places in `all` of what is told."""
        place = self._place
        found = [place.get(id(one), -1) for one in told]
        while -1 in found:
            # One, mostly: the node that the allocation before it went to.
            number = found.index(-1)
            one = told[number]
            found[number] = place[id(one)] = len(self.all)
            node = self.nodes.setdefault(one.node_id, len(self.nodes))
            parts = one.scores
            if parts is None:
                self.all.append(Scored(node, one.norm_score, -1, []))
            else:
                names = self.names.setdefault(tuple(parts), len(self.names))
                self.all.append(Scored(node, one.norm_score, names, list(parts.values())))
        return found


def _allocations(placed: Placed) -> Iterator[Allocation]:
    replace = msgspec.structs.replace
    like, nodes, metrics = placed.like, placed.nodes, placed.metrics
    scored = [_told(placed, one) for one in placed.scored]
    columns = (placed.ids, placed.names, placed.at, placed.metric_at, placed.scores)
    for alloc_id, name, at, metric_at, places in zip(*columns, strict=True):
        metric = None
        if metric_at >= 0:
            told = None if places is None else [scored[place] for place in places]
            metric = replace(metrics[metric_at], score_meta_data=told)
        node_id, node_name = nodes[at]
        yield replace(
            like, id=alloc_id, name=name, node_id=node_id, node_name=node_name, metrics=metric
        )


def _told(placed: Placed, one: Scored) -> NodeScoreMeta:
    parts = None
    if one.names >= 0:
        parts = dict(zip(placed.score_names[one.names], one.values, strict=True))
    return NodeScoreMeta(
        node_id=placed.scored_nodes[one.node], scores=parts, norm_score=one.norm_score
    )
