"""How the nodes stand for task groups that ask for the same: refused, without room, or in the order of their scores.

Shared by all jobs with the same requirements, affinities and ask, whatever their names, and kept between passes: only
nodes whose use changed are looked at again. What a job's own allocations add (anti-affinity, distinct_*, spread) is not
here; a pass lays it over (placement.py).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from nomadpy.models.constraint import Affinity
from nomadpy.scheduler import gpu_aware
from nomadpy.scheduler.ask import GroupAsk, NodeUse
from nomadpy.scheduler.devices import WHOLE, devices_full
from nomadpy.scheduler.feasibility import Feasibility, Requirements, affinity_score
from nomadpy.scheduler.gpu_aware import PerDevice
from nomadpy.scheduler.node_table import NodeRow, NodeView
from nomadpy.scheduler.order import Order
from nomadpy.scheduler.ranking import PACK_SCORES, pack_score, with_devices
from nomadpy.scheduler.refusals import Refusals

NodeScore = Callable[[NodeUse], float]
"""A node with what is taken of it, to a score from 0 to 1."""


class Wanted(msgspec.Struct, frozen=True):
    """All that the standing of a node depends on, the node aside."""

    requirements: Requirements
    affinities: tuple[Affinity, ...]
    algorithm: str
    ask: GroupAsk
    per_device: PerDevice | None = None
    """What is usual beside a device, where the algorithm looks at it."""

    @property
    def score(self) -> NodeScore:
        """The score of what a node becomes with one more, as the algorithm has it."""
        if self.per_device is not None:
            return _gpu_aware(self.ask, self.per_device)
        pack, ask = PACK_SCORES.get(self.algorithm, pack_score), self.ask
        milli = sum(one.count * one.milli for one in ask.devices)

        def score(use: NodeUse) -> float:
            have, amount = use.have, ask.amount(use.have)
            found = pack(
                use.cpu + amount.cpu, use.memory_mb + amount.memory_mb, have.cpu, have.memory_mb
            )
            if not have.devices:
                return found
            return with_devices(found, devices_full(have.devices, use.devices, milli), pack)

        return score

    def key(self) -> bytes:
        """Equal for groups whose nodes stand alike."""
        return msgspec.msgpack.encode(
            (
                self.requirements,
                self.affinities,
                self.algorithm,
                self.ask.signature,
                self.per_device,
            )
        )


def _gpu_aware(ask: GroupAsk, beside: PerDevice) -> NodeScore:
    devices = sum(one.count * one.milli for one in ask.devices) / WHOLE

    def score(use: NodeUse) -> float:
        have, amount = use.have, ask.amount(use.have)
        count = sum(len(group.keys) for group in have.devices)
        node = gpu_aware.Node(
            have.cpu,
            have.memory_mb,
            count,
            have.cpu - use.cpu,
            have.memory_mb - use.memory_mb,
            max(0.0, count - sum(use.devices.values()) / WHOLE),
        )
        return gpu_aware.score(node, amount.cpu, amount.memory_mb, devices, beside)

    return score


class Able:
    """Which of a view's nodes can run a group at all, and how it likes them: what does not depend on their use.

    Not changed once it is made: groups that differ in nothing but what they take share one.
    """

    def __init__(self, view: NodeView, wanted: Wanted) -> None:
        self.feasibility = Feasibility(wanted.requirements)
        self.filtered = Refusals()
        self.affinity: dict[int, float] = {}
        self.feasible: list[int] = []
        for place, row in enumerate(view.rows):
            problem = self.feasibility.problem(row.node)
            if problem:
                self.filtered.add(place, row.node, problem)
                continue
            self.feasible.append(place)
            if wanted.affinities:
                self.affinity[place] = affinity_score(wanted.affinities, row.node)


class GroupStanding:
    """The standing of a view's nodes. filtered: cannot run the group. exhausted: lack room. order: the rest."""

    def __init__(self, view: NodeView, wanted: Wanted, able: Able) -> None:
        self._view = view
        self._packing = wanted.score
        self._ask = wanted.ask
        self.feasibility, self.filtered = able.feasibility, able.filtered
        self.affinity, self.feasible = able.affinity, able.feasible
        self.exhausted = Refusals()
        self._read = len(view.log)
        rows, shortage_of = view.rows, wanted.ask.shortage
        plain = not self.affinity and not wanted.ask.prefers_devices
        scores: list[tuple[int, float]] = []
        for place in self.feasible:
            row = rows[place]
            shortage = shortage_of(row)
            if shortage:
                self.exhausted.add(place, row.node, shortage)
            else:
                scores.append((place, self._packing(row) if plain else self._score(place, row)))
        self.order = Order(scores)

    def catch_up(self) -> None:
        """Look again at the nodes whose use changed."""
        log = self._view.log
        if self._read == len(log):
            return
        for place in set(log[self._read :]):
            if self.filtered.reason(place):
                continue
            row = self._view.rows[place]
            if self._exhausted(place, row):
                self.order.discard(place)
            else:
                self.order.put(place, self._score(place, row))
        self._read = len(log)

    def _exhausted(self, place: int, row: NodeRow) -> bool:
        shortage = self._ask.shortage(row)
        if shortage:
            self.exhausted.add(place, row.node, shortage)
        else:
            self.exhausted.discard(place, row.node)
        return bool(shortage)

    def _score(self, place: int, row: NodeRow) -> float:
        """Packing, averaged with the affinities where there are any."""
        score = self._packing(row)
        affinity = self.affinity.get(place, 0.0)
        devices = self._ask.device_affinity(row) if self._ask.prefers_devices else 0.0
        if not affinity and not devices:
            return score
        return (score + affinity + devices) / (1 + bool(affinity) + bool(devices))


def _able(view: NodeView, wanted: Wanted) -> Able:
    key = msgspec.msgpack.encode((wanted.requirements, wanted.affinities))
    found = view.standing(key)
    if not isinstance(found, Able):
        found = Able(view, wanted)
        view.keep(key, found)
    return found


def standing(view: NodeView, wanted: Wanted) -> GroupStanding:
    """Return the current standing, kept or new."""
    key = wanted.key()
    found = view.standing(key)
    if not isinstance(found, GroupStanding):
        found = GroupStanding(view, wanted, _able(view, wanted))
        view.keep(key, found)
    found.catch_up()
    return found
