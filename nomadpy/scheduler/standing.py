"""How the nodes stand for task groups that ask for the same: refused, without room, or in the order of their scores.

Shared by all jobs with the same requirements, affinities and ask, whatever their names, and kept between passes: only
nodes whose use changed are looked at again. What a job's own allocations add (anti-affinity, distinct_*, spread) is not
here; a pass lays it over (placement.py).
"""

from __future__ import annotations

import msgspec

from nomadpy.models.constraint import Affinity
from nomadpy.scheduler.ask import GroupAsk
from nomadpy.scheduler.feasibility import Feasibility, Requirements, affinity_score
from nomadpy.scheduler.fit import first_shortage
from nomadpy.scheduler.node_table import NodeRow, NodeView
from nomadpy.scheduler.order import Order
from nomadpy.scheduler.ranking import PACK_SCORES, PackScore, pack_score
from nomadpy.scheduler.refusals import Refusals


class Wanted(msgspec.Struct, frozen=True):
    """All that the standing of a node depends on, the node aside."""

    requirements: Requirements
    affinities: tuple[Affinity, ...]
    algorithm: str
    ask: GroupAsk

    @property
    def pack(self) -> PackScore:
        """The score of how full, or how empty, a node becomes."""
        return PACK_SCORES.get(self.algorithm, pack_score)

    def key(self) -> bytes:
        """Equal for groups whose nodes stand alike."""
        return msgspec.msgpack.encode(
            (self.requirements, self.affinities, self.algorithm, self.ask.signature)
        )


class GroupStanding:
    """The standing of a view's nodes. filtered: cannot run the group. exhausted: lack room. order: the rest."""

    def __init__(self, view: NodeView, wanted: Wanted) -> None:
        self._view = view
        self._pack = wanted.pack
        self._ask = wanted.ask
        self.feasibility = Feasibility(wanted.requirements)
        self.filtered = Refusals()
        self.exhausted = Refusals()
        self.affinity: dict[int, float] = {}
        self.feasible: list[int] = []
        self._read = len(view.log)
        for place, row in enumerate(view.rows):
            problem = self.feasibility.problem(row.node)
            if problem:
                self.filtered.add(place, row.node, problem)
                continue
            self.feasible.append(place)
            if wanted.affinities:
                self.affinity[place] = affinity_score(wanted.affinities, row.node)
        self.order = Order()
        # A group that asks for cores looks at each node's allocations; that is not kept.
        if not wanted.ask.cores:
            self.order = Order(
                (place, self._score(place, view.rows[place]))
                for place in self.feasible
                if not self._exhausted(place, view.rows[place])
            )

    def catch_up(self) -> None:
        """Look again at the nodes whose use changed."""
        log = self._view.log
        if self._read == len(log):
            return
        for place in set(log[self._read :]):
            if self.filtered.reason(place) or self._ask.cores:
                continue
            row = self._view.rows[place]
            if self._exhausted(place, row):
                self.order.discard(place)
            else:
                self.order.put(place, self._score(place, row))
        self._read = len(log)

    def _exhausted(self, place: int, row: NodeRow) -> bool:
        amount, have = self._ask.amount(row.have), row.have
        if have.max_allocs and row.count >= have.max_allocs:
            shortage = "max allocations exceeded"
        else:
            shortage = first_shortage(
                have,
                row.cpu + amount.cpu,
                row.memory_mb + amount.memory_mb,
                row.disk_mb + amount.disk_mb,
            )
        if shortage:
            self.exhausted.add(place, row.node, shortage)
        else:
            self.exhausted.discard(place, row.node)
        return bool(shortage)

    def _score(self, place: int, row: NodeRow) -> float:
        """Packing, averaged with the affinity where there is one."""
        amount, have = self._ask.amount(row.have), row.have
        score = self._pack(
            row.cpu + amount.cpu, row.memory_mb + amount.memory_mb, have.cpu, have.memory_mb
        )
        affinity = self.affinity.get(place, 0.0)
        return (score + affinity) / 2 if affinity else score


def standing(view: NodeView, wanted: Wanted) -> GroupStanding:
    """Return the current standing, kept or new."""
    key = wanted.key()
    found = view.standing(key)
    if not isinstance(found, GroupStanding):
        found = GroupStanding(view, wanted)
        view.keep(key, found)
    found.catch_up()
    return found
