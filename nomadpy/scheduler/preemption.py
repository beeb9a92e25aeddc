"""Which allocations of less important jobs make room for one more allocation, with the least harm.

In:      nodes that may run a group and lack room (placement.py knows them), and what runs there.
Out:     a choice of a node with those it evicts: none of them can be left out, and no node would do with less harm.
Not here: whether evicting is allowed at all (settings.py); writing it down (service.py, system.py, plan_applier.py).

Harm is counted as Nomad counts it for its scores: the highest priority that is evicted, plus all of them over that one.
Equal harm: first those that take no more of a group at one time than its `migrate` block lets go, then the least surplus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, groupby

import msgspec

from nomadpy.models.allocation import Allocation, NodeScoreMeta
from nomadpy.models.job import Job
from nomadpy.scheduler.cluster import Cluster, NodeState
from nomadpy.scheduler.conclude import Outcome
from nomadpy.scheduler.fit import Amount, allocs_fit, usage
from nomadpy.scheduler.placement import Choice, GroupPlacer
from nomadpy.scheduler.ranking import PREEMPTION, combine
from nomadpy.scheduler.updates import find_group

PRIORITY_GAP = 10
"""How much lower the priority of an allocation must be for it to be evicted."""

_FEW = 24
"""Up to so many candidates on a node, pairs and the published way are tried as well."""
_TOP_SCORES = 5
# Where sums do not tell (static ports, devices) a trial costs as much as a placement; so many nodes are tried.
_TRIED_NODES = 256
_RATE, _ORIGIN = 0.0048, 2048.0


class Candidate(msgspec.Struct, frozen=True):
    """An allocation that may be evicted. group: namespace, job and group; parallel: how many of it may go at one time."""

    alloc: Allocation
    priority: int
    amount: Amount
    group: tuple[str, str, str]
    parallel: int


class Harm(msgspec.Struct, frozen=True, order=True):
    """What evicting a set costs; less is better. surplus: what is freed beyond need, as a share of it."""

    net_priority: float
    beyond_parallel: int
    surplus: float


def spare_needless(cluster: Cluster, outcome: Outcome) -> None:
    """Let those stay whom a later eviction of the same pass has made needless, the most important first.

    Each allocation of a pass evicts as few as it needs, one after the other: what the last one frees may leave room for
    those that went for the first.
    """

    def importance(alloc: Allocation) -> tuple[int, str]:
        return (-alloc.job.priority if alloc.job is not None else 0, alloc.id)

    for alloc in sorted(outcome.evicted, key=importance):
        state = cluster.get(alloc.node_id)
        if state is not None and allocs_fit(state.node, [*state.wanted(), alloc]).ok:
            cluster.keep(state, alloc)
            outcome.spare(alloc)


def may_evict(job: Job, alloc: Allocation) -> bool:
    """Whether an allocation may be evicted for `job`: another job's, and that of much lower priority."""
    if alloc.job is None or (alloc.namespace, alloc.job_id) == (job.namespace, job.id):
        return False
    return alloc.job.priority + PRIORITY_GAP <= job.priority


def candidates(job: Job, allocs: Iterable[Allocation]) -> list[Candidate]:
    """Return those that may be evicted, the least important first."""
    found = [
        Candidate(
            alloc,
            alloc.job.priority if alloc.job else 0,
            usage(alloc),
            (alloc.namespace, alloc.job_id, alloc.task_group),
            _parallel(alloc),
        )
        for alloc in allocs
        if may_evict(job, alloc)
    ]
    return sorted(found, key=lambda one: (one.priority, one.alloc.create_index, one.alloc.id))


def net_priority(evicted: Sequence[Candidate]) -> float:
    """Return the highest priority, and a part for all the others; 0 for none."""
    highest = max((one.priority for one in evicted), default=0)
    return highest + sum(one.priority for one in evicted) / highest if highest else 0.0


def preemption_score(net: float) -> float:
    """Return the part of a node's score for what is evicted there: near 1, and less the more harm is done."""
    return 1.0 / (1.0 + math.exp(_RATE * (net - _ORIGIN)))


def harm(evicted: Sequence[Candidate], need: Amount, gone: dict[tuple[str, str, str], int]) -> Harm:
    """Return the harm of a set. gone: how many of each group the pass has evicted already."""
    groups: dict[tuple[str, str, str], int] = {}
    beyond = 0
    for one in evicted:
        count = groups[one.group] = groups.get(one.group, gone.get(one.group, 0)) + 1
        beyond += count > one.parallel
    surplus = 0.0
    for freed, wanted in (
        (sum(one.amount.cpu for one in evicted), need.cpu),
        (sum(one.amount.memory_mb for one in evicted), need.memory_mb),
        (sum(one.amount.disk_mb for one in evicted), need.disk_mb),
    ):
        surplus += (freed - wanted) / max(wanted, 1) if wanted else freed / 1e9
    return Harm(net_priority(evicted), beyond, surplus)


def least_harm(
    among: Sequence[Candidate],
    need: Amount,
    enough: Callable[[Sequence[Candidate]], bool],
    gone: dict[tuple[str, str, str], int],
) -> list[Candidate] | None:
    """Return a set that suffices and of which none can be left out, or None when all of them do not suffice.

    among: by priority, ascending. enough: whether a set makes the room; more never makes it less.
    """
    if not among or not enough(among):
        return None
    best: tuple[Harm, list[Candidate]] | None = None
    for cut in _tiers(among):
        pool = list(among[:cut])
        if best is not None and best[0].net_priority <= pool[-1].priority + 1:
            # Whatever takes in this priority does at least that harm.
            break
        if not enough(pool):
            continue
        for found in _sets(pool, need, enough):
            cost = harm(found, need, gone)
            if best is None or cost < best[0]:
                best = (cost, found)
    return best[1] if best else None


def _tiers(among: Sequence[Candidate]) -> list[int]:
    """Where the priority rises: the lengths of the beginnings that hold whole priorities."""
    return [
        number
        for number in range(1, len(among) + 1)
        if number == len(among) or among[number].priority > among[number - 1].priority
    ]


def _sets(
    pool: list[Candidate], need: Amount, enough: Callable[[Sequence[Candidate]], bool]
) -> Iterable[list[Candidate]]:
    """Sets that suffice, each without anything superfluous: single ones, pairs, and some greedy ones."""
    single = [[one] for one in pool if enough([one])]
    yield from single
    if len(pool) <= _FEW:
        alone = {found[0].alloc.id for found in single}
        rest = [one for one in pool if one.alloc.id not in alone]
        yield from (list(pair) for pair in combinations(rest, 2) if enough(pair))
    # The nearest in size first, the least important before all others.
    taken: list[Candidate] = []
    for one in sorted(pool, key=lambda one: (one.priority, _distance(one.amount, need))):
        taken.append(one)
        if enough(taken):
            break
    yield _pruned(taken, enough)
    yield _pruned(pool, enough)
    if len(pool) > _FEW:
        return
    # What Nomad's published way takes and keeps, so that no more harm is done than by that.
    taken = _nearest_to_what_is_missing(pool, need, enough)
    yield _pruned(taken, enough)
    kept: list[Candidate] = []
    for one in sorted(taken, key=lambda one: -_distance(one.amount, need)):
        kept.append(one)
        if enough(kept):
            break
    yield _pruned(kept, enough)


def _nearest_to_what_is_missing(
    pool: Sequence[Candidate], need: Amount, enough: Callable[[Sequence[Candidate]], bool]
) -> list[Candidate]:
    """The least important first, and of these each time the nearest in size to what the others leave missing."""
    taken: list[Candidate] = []
    missing = need
    for _, tier in groupby(pool, key=lambda one: one.priority):
        rest = list(tier)
        while rest and not enough(taken):
            nearest = min(rest, key=lambda one: _distance(one.amount, missing))
            rest.remove(nearest)
            taken.append(nearest)
            missing = Amount(
                max(0, missing.cpu - nearest.amount.cpu),
                max(0, missing.memory_mb - nearest.amount.memory_mb),
                max(0, missing.disk_mb - nearest.amount.disk_mb),
            )
    return taken


def _pruned(
    taken: Sequence[Candidate], enough: Callable[[Sequence[Candidate]], bool]
) -> list[Candidate]:
    """Leave out whatever is not needed, the most important first."""
    kept = sorted(
        taken,
        key=lambda one: (
            -one.priority,
            one.amount.cpu + one.amount.memory_mb,
            one.alloc.id,
        ),
    )
    for one in list(kept):
        rest = [other for other in kept if other is not one]
        if rest and enough(rest):
            kept = rest
    return kept


def _distance(amount: Amount, need: Amount) -> float:
    """How far an allocation is from being just what is missing."""
    parts = (
        (amount.cpu, need.cpu),
        (amount.memory_mb, need.memory_mb),
        (amount.disk_mb, need.disk_mb),
    )
    return math.sqrt(sum(((wanted - has) / wanted) ** 2 for has, wanted in parts if wanted))


def _parallel(alloc: Allocation) -> int:
    group = find_group(alloc.job, alloc.task_group) if alloc.job else None
    migrate = group.migrate if group else None
    return migrate.max_parallel if migrate and migrate.max_parallel > 0 else 1_000_000


class _Offer(msgspec.Struct, frozen=True):
    evicted: list[Candidate]
    need: Amount
    scores: dict[str, float]


class Preemptor:
    """Finds room for one group's allocations at the expense of others. Belongs to one pass, as its placer does."""

    def __init__(self, cluster: Cluster, job: Job, placer: GroupPlacer) -> None:
        self._cluster = cluster
        self._job = job
        self._placer = placer
        self._offers: dict[int, _Offer | None] = {}
        self._read = len(cluster.log)
        self._gone: dict[tuple[str, str, str], int] = {}

    def choose(self, state: NodeState | None = None) -> Choice | None:
        """Return a choice whose `evicted` are gone from the cluster already, or None. state: this node only."""
        for change in self._cluster.log[self._read :]:
            self._offers.pop(change.place, None)
        self._read = len(self._cluster.log)
        places = self._placer.without_room()
        if state is not None:
            places = [place for place in places if place == state.index]
        offers = self._look(places)
        for place, offer in offers:
            choice = self._evict(self._cluster.state(place), offer, offers)
            if choice is not None:
                return choice
        return None

    def possible(self) -> bool:
        """Whether evicting others would make room anywhere."""
        return bool(self._look(self._placer.without_room()))

    def _look(self, places: list[int]) -> list[tuple[int, _Offer]]:
        """The offers of these nodes, the best first."""
        found: list[tuple[int, _Offer]] = []
        tried = 0
        for place in places:
            if place not in self._offers:
                if tried >= _TRIED_NODES:
                    continue
                self._offers[place], dear = self._offer(self._cluster.state(place))
                tried += dear
            offer = self._offers[place]
            if offer is not None:
                found.append((place, offer))
        found.sort(
            key=lambda one: (
                harm(one[1].evicted, one[1].need, self._gone),
                -combine(one[1].scores),
                one[0],
            )
        )
        return found

    def _offer(self, state: NodeState) -> tuple[_Offer | None, bool]:
        """What one node would take, and whether it was dear to find out."""
        among = candidates(self._job, state.wanted())
        if not among:
            return None, False
        need, one_too_many = self._placer.lacks(state)

        def sums(taken: Sequence[Candidate]) -> bool:
            return bool(taken or not one_too_many) and (
                sum(one.amount.cpu for one in taken) >= need.cpu
                and sum(one.amount.memory_mb for one in taken) >= need.memory_mb
                and sum(one.amount.disk_mb for one in taken) >= need.disk_mb
            )

        def held(taken: Sequence[Candidate]) -> bool:
            return sums(taken) and self._trial(state, taken) is not None

        if not sums(among):
            return None, False
        dear = False
        found = least_harm(among, need, sums, self._gone)
        scores = self._trial(state, found) if found else None
        if found is None or scores is None:
            # Something besides sums stands in the way: a port, a core, a device.
            dear = True
            found = least_harm(among, need, held, self._gone)
            scores = self._trial(state, found) if found else None
        elif len(found) == 1 and self._trial(state, []) is not None:
            return None, dear
        if found is None or scores is None:
            return None, dear
        told = {**scores, PREEMPTION: preemption_score(net_priority(found))}
        return _Offer(found, need, told), dear

    def _trial(self, state: NodeState, without: Sequence[Candidate]) -> dict[str, float] | None:
        """The node's scores without some of its allocations, None when one more does not fit; nothing stays changed."""
        for one in without:
            state.change(one.alloc, one.amount, -1)
        try:
            return self._placer.trial(state)
        finally:
            for one in without:
                state.change(one.alloc, one.amount, 1)
            state.forget_ports()

    def _evict(
        self, state: NodeState, offer: _Offer, offers: list[tuple[int, _Offer]]
    ) -> Choice | None:
        for one in offer.evicted:
            self._cluster.evict(state, one.alloc)
            self._gone[one.group] = self._gone.get(one.group, 0) + 1
        told = [
            NodeScoreMeta(
                node_id=self._cluster.state(place).node.id,
                scores=other.scores,
                norm_score=combine(other.scores),
            )
            for place, other in offers[:_TOP_SCORES]
        ]
        choice = self._placer.take(state, told)
        assert choice is not None, "what was tried holds"
        return msgspec.structs.replace(choice, evicted=tuple(one.alloc for one in offer.evicted))
