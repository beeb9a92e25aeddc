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


class Scores(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Scores of nodes, each once, in columns.

    at: places in `nodes`. named: places in `names`, or -1 for no parts. parts: of all in a row, as many as there are names.
    """

    nodes: list[str]
    names: list[list[str]]
    at: list[int]
    norm_scores: list[float]
    named: list[int]
    parts: list[float]


class Placed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Allocations in a row that are alike but for these columns.

    like: one of them, with the columns' fields blank. at: places in `nodes`, which are ids and names. metric_at: places
    in `metrics`, which are without scores, or -1 for none. told: how many scores, or -1 for no list; scored: which of
    `scores`, of all in a row.
    """

    like: Allocation
    nodes: list[tuple[str, str]]
    metrics: list[AllocationMetric]
    scores: Scores
    ids: list[str]
    names: list[str]
    at: list[int]
    metric_at: list[int]
    told: list[int]
    scored: list[int]


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
    told: list[int] = []
    scored: list[NodeScoreMeta] = []
    newest: AllocationMetric | None = None
    for alloc in allocs:
        metric = alloc.metrics
        if metric is None:
            metric_at.append(-1)
            told.append(-1)
            continue
        scores = metric.score_meta_data
        if scores is None:
            told.append(-1)
        else:
            told.append(len(scores))
            scored += scores
        plain = msgspec.structs.replace(metric, score_meta_data=None)
        if plain != newest:
            newest = plain
            metrics.append(plain)
        metric_at.append(len(metrics) - 1)
    # By identity: the scheduler makes one object for a score, and many allocations tell of it. They are all held
    # here, so that no other object takes an identity meanwhile.
    identities = list(map(id, scored))
    once = dict(zip(identities, scored, strict=True))
    places = dict(zip(once, range(len(once)), strict=True))
    return Placed(
        like,
        at=[nodes.setdefault((alloc.node_id, alloc.node_name), len(nodes)) for alloc in allocs],
        nodes=list(nodes),
        metrics=metrics,
        scores=_columns(list(once.values())),
        ids=[alloc.id for alloc in allocs],
        names=[alloc.name for alloc in allocs],
        metric_at=metric_at,
        told=told,
        scored=[places[one] for one in identities],
    )


def _columns(scores: list[NodeScoreMeta]) -> Scores:
    nodes: dict[str, int] = {}
    names: dict[tuple[str, ...], int] = {}
    named: list[int] = []
    parts: list[float] = []
    for one in scores:
        if one.scores is None:
            named.append(-1)
        else:
            named.append(names.setdefault(tuple(one.scores), len(names)))
            parts += one.scores.values()
    return Scores(
        at=[nodes.setdefault(one.node_id, len(nodes)) for one in scores],
        nodes=list(nodes),
        names=[list(one) for one in names],
        norm_scores=[one.norm_score for one in scores],
        named=named,
        parts=parts,
    )


def _scores(columns: Scores) -> list[NodeScoreMeta]:
    nodes, names, values = columns.nodes, columns.names, iter(columns.parts)
    if sum(len(names[place]) for place in columns.named if place >= 0) != len(columns.parts):
        raise ValueError("as many parts of scores as there are names are needed")
    return [
        NodeScoreMeta(
            node_id=nodes[at],
            scores=None
            if place < 0
            # Names first: zip then takes no value too many.
            else dict(zip(names[place], values, strict=False)),
            norm_score=norm_score,
        )
        for at, norm_score, place in zip(
            columns.at, columns.norm_scores, columns.named, strict=True
        )
    ]


def _allocations(placed: Placed) -> Iterator[Allocation]:
    replace = msgspec.structs.replace
    like, nodes, metrics = placed.like, placed.nodes, placed.metrics
    scores = _scores(placed.scores)
    scored = [scores[place] for place in placed.scored]
    if sum(told for told in placed.told if told > 0) != len(scored):
        raise ValueError("as many scores as are told of are needed")
    read = 0
    columns = (placed.ids, placed.names, placed.at, placed.metric_at, placed.told)
    for alloc_id, name, at, metric_at, told in zip(*columns, strict=True):
        metric = None
        if metric_at >= 0:
            shown = None
            if told >= 0:
                shown = scored[read : read + told]
                read += told
            metric = replace(metrics[metric_at], score_meta_data=shown)
        node_id, node_name = nodes[at]
        yield replace(
            like, id=alloc_id, name=name, node_id=node_id, node_name=node_name, metrics=metric
        )
