"""Choose a node for each allocation of one task group, the best of all nodes every time.

Every feasible node is scored once; after that only nodes that changed are scored again, so placing a thousand
allocations on a thousand nodes costs a thousand heap operations and not a million scores. Ports and cores are looked
at for the chosen node only; a node that lacks them is set aside and the next best is taken.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models.allocation import AllocationMetric, NodeScoreMeta
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.operator import SchedulerConfiguration
from nomadpy.models.resources import Resources
from nomadpy.scheduler.ask import Grant, GroupAsk
from nomadpy.scheduler.cluster import Cluster, NodeState
from nomadpy.scheduler.distinct import DistinctRules, SpreadScore
from nomadpy.scheduler.feasibility import Feasibility, ReadyNodes, affinity_score, requirements
from nomadpy.scheduler.fit import first_shortage
from nomadpy.scheduler.ports import NoPortError
from nomadpy.scheduler.ranking import (
    ALLOCATION_SPREAD,
    BINPACK,
    JOB_ANTI_AFFINITY,
    NODE_AFFINITY,
    RESCHEDULE_PENALTY,
    anti_affinity,
    combine,
    empty_score,
    pack_score,
)

_TOP_SCORES = 5


class Choice(msgspec.Struct, frozen=True):
    """A node for one allocation, what it is granted there, and how the choice came about."""

    state: NodeState
    grant: Grant
    metrics: AllocationMetric


class GroupPlacer:
    """Places allocations of one group, one after the other, on the cluster of one pass."""

    def __init__(
        self,
        cluster: Cluster,
        ready: ReadyNodes,
        job: Job,
        group: TaskGroup,
        config: SchedulerConfiguration,
        entropy: Entropy,
    ) -> None:
        self._cluster = cluster
        self._ready = ready
        self._job = job
        self._group = group
        self._entropy = entropy
        self.ask = GroupAsk(group, oversubscribe=config.memory_oversubscription_enabled)
        self._pack = empty_score if config.scheduler_algorithm == "spread" else pack_score
        self._distinct = DistinctRules(job, group)
        self._spread = SpreadScore(job, group)
        affinities = (*(job.affinities or ()), *(group.affinities or ()))
        for task in group.tasks or ():
            affinities = (*affinities, *(task.affinities or ()))
        self._affinities = affinities
        for node, name in cluster.job_allocs.values():
            self._distinct.count(node, name, 1)
            self._spread.count(node, name, 1)

        self.feasibility = Feasibility(requirements(job, group))
        self._filtered = Refusals()
        self._exhausted = Refusals()
        self._excluded = Refusals()
        self._penalised: frozenset[int] = frozenset()
        self._affinity: dict[int, float] = {}
        # A heap entry (-score, node index, stamp) counts while its stamp is the node's newest.
        self._stamps = [0] * len(cluster.states)
        self._heap: list[tuple[float, int, int]] = []
        # With spread blocks every placement moves the score of all nodes that share a property. Then the heap is made
        # anew for each choice, from the parts that stay: their sum, how many they are, the node's properties.
        self._standing: dict[int, tuple[float, int, tuple[str | None, ...]]] = {}
        self._log_position = len(cluster.log)
        for state in cluster.states:
            problem = self.feasibility.problem(state.node)
            if problem:
                self._filtered.add(state, problem)
                continue
            if affinities:
                self._affinity[state.index] = affinity_score(affinities, state.node)
            self._refresh(state.index)

    def feasible(self, state: NodeState) -> bool:
        """Whether the node may run the group at all, room aside."""
        return not self.feasibility.problem(state.node)

    def select(self, penalties: Collection[str] = (), preferred: str = "") -> Choice | None:
        """Return the best node that has room, or None.

        penalties: nodes to avoid if others will do. preferred: a node to take if it can hold the allocation at all.
        The caller tells the cluster when it places what was chosen.
        """
        self._catch_up()
        if preferred:
            state = self._cluster.get(preferred)
            if state is not None:
                choice = self.try_node(state)
                if choice is not None:
                    return choice
        penalised = [
            state.index for state in map(self._cluster.get, sorted(penalties)) if state is not None
        ]
        self._penalised = frozenset(penalised)
        for index in penalised:
            self._refresh(index)
        choice = self._select_best()
        self._penalised = frozenset()
        for index in penalised:
            self._refresh(index)
        return choice

    def try_node(self, state: NodeState) -> Choice | None:
        """Return the choice of this very node, or None when it cannot hold an allocation of the group."""
        self._catch_up()
        index = state.index
        problem = self._distinct.problem(state.node, state.groups) if self._distinct else ""
        if problem:
            self._excluded.add(state, problem)
            self._retire(index)
            return None
        if index in self._filtered.reasons or index in self._exhausted.reasons:
            return None
        grant = self._grant(state)
        if grant is None:
            return None
        return Choice(state, grant, self._metrics([(self._score(index), index)]))

    def failure(self) -> AllocationMetric:
        """Return why no node could be chosen."""
        self._catch_up()
        return self._metrics([])

    def node_failure(self, state: NodeState) -> AllocationMetric:
        """Return why this node alone could not be chosen; for groups that want each node."""
        filtered, exhausted = Refusals(), Refusals()
        for mine, theirs in (
            (filtered, self._filtered),
            (filtered, self._excluded),
            (exhausted, self._exhausted),
        ):
            if state.index in theirs.reasons:
                mine.add(state, theirs.reasons[state.index])
        return self._metric_of(1, [filtered], exhausted, None)

    def is_exhausted(self, state: NodeState) -> bool:
        """Whether the node may run the group but lacked room when last looked at."""
        return state.index in self._exhausted.reasons

    def _select_best(self) -> Choice | None:
        while True:
            index = self._best()
            if index is None:
                return None
            state = self._cluster.states[index]
            problem = self._distinct.problem(state.node, state.groups) if self._distinct else ""
            if problem:
                self._excluded.add(state, problem)
                self._retire(index)
                continue
            grant = self._grant(state)
            if grant is None:
                continue
            return Choice(state, grant, self._metrics(self._top()))

    def _grant(self, state: NodeState) -> Grant | None:
        try:
            return self.ask.grant(state, self._entropy)
        except NoPortError as shortage:
            self._exhausted.add(state, str(shortage))
            self._retire(state.index)
            return None

    def _best(self) -> int | None:
        """The index of the best node that still stands, or None."""
        if self._spread:
            boosts: dict[tuple[str | None, ...], float] = {}
            for _, _, values in self._standing.values():
                if values not in boosts:
                    boosts[values] = self._spread.score(values)
            self._heap = []
            for index, (total, parts, values) in self._standing.items():
                boost = boosts[values]
                score = (total + boost) / (parts + 1) if boost else total / parts
                self._heap.append((-score, index, self._stamps[index]))
            heapq.heapify(self._heap)
        heap = self._heap
        while heap:
            _, index, stamp = heap[0]
            if self._stamps[index] == stamp:
                return index
            heapq.heappop(heap)
        return None

    def _top(self) -> list[tuple[float, int]]:
        """The best few nodes in order, read from the heap without disturbing it."""
        heap = self._heap
        found: list[tuple[float, int]] = []
        border = [(heap[0], 0)] if heap else []
        while border and len(found) < _TOP_SCORES:
            (negative, index, stamp), place = heapq.heappop(border)
            if self._stamps[index] == stamp:
                found.append((-negative, index))
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap):
                    heapq.heappush(border, (heap[child], child))
        return found

    def _catch_up(self) -> None:
        """Refresh the nodes that changed since the last look."""
        log, start = self._cluster.log, self._log_position
        if start == len(log):
            return
        changed: set[int] = set()
        freed = False
        for position in range(start, len(log)):
            change = log[position]
            changed.add(change.place)
            freed = freed or change.by < 0
            self._distinct.count(change.node, change.group, change.by)
            self._spread.count(change.node, change.group, change.by)
        self._log_position = len(log)
        if freed:
            changed.update(self._excluded.reasons)
        for index in sorted(changed):
            if index >= 0 and index not in self._filtered.reasons:
                self._refresh(index)

    def _refresh(self, index: int) -> None:
        """Score a node anew, or set it aside when the group no longer fits."""
        self._retire(index)
        state = self._cluster.states[index]
        self._exhausted.discard(state)
        self._excluded.discard(state)
        if self._distinct:
            problem = self._distinct.problem(state.node, state.groups)
            if problem:
                self._excluded.add(state, problem)
                return
        shortage = self._shortage(state)
        if shortage:
            self._exhausted.add(state, shortage)
            return
        if self._spread:
            parts = self._parts(index)
            del parts[ALLOCATION_SPREAD]
            counted = 1 + sum(1 for name, value in parts.items() if value and name != BINPACK)
            self._standing[index] = (sum(parts.values()), counted, self._spread.values(state.node))
        else:
            self._push(index)

    def _push(self, index: int) -> None:
        """Enter a node's new score. Old entries are dropped where that is cheap: below a root that keeps getting better
        they would pile up, and every look at the best few would wade through them."""
        heap = self._heap
        while heap and self._stamps[heap[0][1]] != heap[0][2]:
            heapq.heappop(heap)
        if len(heap) > 2 * len(self._stamps) + 64:
            heap[:] = [entry for entry in heap if self._stamps[entry[1]] == entry[2]]
            heapq.heapify(heap)
        heapq.heappush(heap, (-self._score(index), index, self._stamps[index]))

    def _retire(self, index: int) -> None:
        self._stamps[index] += 1
        self._standing.pop(index, None)

    def _shortage(self, state: NodeState) -> str:
        amount = self.ask.amount(state.have)
        have = state.have
        if self.ask.cores and len(state.free_cores()) < self.ask.cores:
            return "cores"
        if have.max_allocs and state.count >= have.max_allocs:
            return "max allocations exceeded"
        return first_shortage(
            have,
            state.cpu + amount.cpu,
            state.memory_mb + amount.memory_mb,
            state.disk_mb + amount.disk_mb,
        )

    def _score(self, index: int) -> float:
        """The average of the parts; `_parts` names them, this is the same without names for speed."""
        state = self._cluster.states[index]
        amount, have = self.ask.amount(state.have), state.have
        total = self._pack(
            state.cpu + amount.cpu, state.memory_mb + amount.memory_mb, have.cpu, have.memory_mb
        )
        same = state.groups.get(self._group.name, 0)
        if not same and not self._affinity and not self._penalised and not self._spread:
            return total
        return combine(self._parts(index))

    def _parts(self, index: int) -> dict[str, float]:
        state = self._cluster.states[index]
        amount, have = self.ask.amount(state.have), state.have
        parts = {
            BINPACK: self._pack(
                state.cpu + amount.cpu, state.memory_mb + amount.memory_mb, have.cpu, have.memory_mb
            ),
            JOB_ANTI_AFFINITY: anti_affinity(
                state.groups.get(self._group.name, 0), self._group.count
            ),
            NODE_AFFINITY: self._affinity.get(index, 0.0),
            RESCHEDULE_PENALTY: -1.0 if index in self._penalised else 0.0,
        }
        if self._spread:
            parts[ALLOCATION_SPREAD] = self._spread.score(self._spread.values(state.node))
        return parts

    def _metrics(self, top: list[tuple[float, int]]) -> AllocationMetric:
        states = self._cluster.states
        scores = [
            NodeScoreMeta(
                node_id=states[index].node.id, scores=self._parts(index), norm_score=score
            )
            for score, index in top
        ]
        return self._metric_of(
            len(states), [self._filtered, self._excluded], self._exhausted, scores or None
        )

    def _metric_of(
        self,
        evaluated: int,
        filtered: list[Refusals],
        exhausted: Refusals,
        scores: list[NodeScoreMeta] | None,
    ) -> AllocationMetric:
        dimensions = _sum([exhausted.by_reason])
        return AllocationMetric(
            nodes_evaluated=evaluated,
            nodes_filtered=sum(len(refused.reasons) for refused in filtered),
            nodes_in_pool=self._ready.in_pool,
            node_pool=self._job.node_pool,
            nodes_available=self._ready.by_datacenter,
            class_filtered=_sum([refused.by_class for refused in filtered]),
            constraint_filtered=_sum([refused.by_reason for refused in filtered]),
            nodes_exhausted=len(exhausted.reasons),
            class_exhausted=_sum([exhausted.by_class]),
            dimension_exhausted=dimensions,
            resources_exhausted=self._resources_exhausted(dimensions),
            score_meta_data=scores,
        )

    def _resources_exhausted(
        self, dimensions: dict[str, int] | None
    ) -> dict[str, Resources] | None:
        """What each task asked of the dimensions that ran out."""
        cpu, memory = "cpu" in (dimensions or ()), "memory" in (dimensions or ())
        if not cpu and not memory:
            return None
        return {
            task.name: Resources(
                cpu=task.resources.cpu if cpu else 0,
                memory_mb=task.resources.memory_mb if memory else 0,
            )
            for task in self._group.tasks or ()
            if task.resources is not None
        }


class Refusals:
    """Nodes that were refused and why, counted by reason and by node class as metrics tell it."""

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}
        self.by_reason: dict[str, int] = {}
        self.by_class: dict[str, int] = {}

    def add(self, state: NodeState, reason: str) -> None:
        """Note a refusal; an earlier one of the same node is replaced."""
        self.discard(state)
        self.reasons[state.index] = reason
        self._count(state, reason, 1)

    def discard(self, state: NodeState) -> None:
        """Forget the refusal of a node, if any."""
        reason = self.reasons.pop(state.index, None)
        if reason is not None:
            self._count(state, reason, -1)

    def _count(self, state: NodeState, reason: str, by: int) -> None:
        self.by_reason[reason] = self.by_reason.get(reason, 0) + by
        if state.node.node_class:
            self.by_class[state.node.node_class] = self.by_class.get(state.node.node_class, 0) + by


def _sum(tallies: list[dict[str, int]]) -> dict[str, int] | None:
    counts: dict[str, int] = {}
    for tally in tallies:
        for word, number in tally.items():
            if number:
                counts[word] = counts.get(word, 0) + number
    return counts or None
