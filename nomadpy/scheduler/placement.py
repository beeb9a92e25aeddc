"""Choose a node for each allocation of one task group, the best of all nodes every time.

How the nodes stand for the group's ask is kept from pass to pass (standing.py); a pass lays over it what its own stops
and placements and the job's other allocations change, and scores only those nodes. Ports are looked at for the
chosen node only; a node that lacks them is set aside and the next best is taken.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models.allocation import Allocation, AllocationMetric, NodeScoreMeta
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.operator import GPU_AWARE, SchedulerConfiguration
from nomadpy.models.resources import Resources
from nomadpy.scheduler.ask import Grant, GroupAsk
from nomadpy.scheduler.cluster import Cluster, NodeState
from nomadpy.scheduler.distinct import DistinctRules, SpreadScore
from nomadpy.scheduler.feasibility import requirements
from nomadpy.scheduler.fit import Amount
from nomadpy.scheduler.order import Order
from nomadpy.scheduler.ranking import (
    ALLOCATION_SPREAD,
    BINPACK,
    DEVICES,
    JOB_ANTI_AFFINITY,
    NODE_AFFINITY,
    RESCHEDULE_PENALTY,
    anti_affinity,
    combine,
)
from nomadpy.scheduler.refusals import GrantError, Refusals, summed
from nomadpy.scheduler.standing import Wanted, standing
from nomadpy.scheduler.volumes import Aim, GroupClaims, VolumeRules, sticky

_TOP_SCORES = 5


class Choice(msgspec.Struct, frozen=True):
    """A node for one allocation, what it is granted there, and how the choice came about. evicted: who makes room."""

    state: NodeState
    grant: Grant
    metrics: AllocationMetric
    evicted: tuple[Allocation, ...] = ()


class GroupPlacer:
    """Places allocations of one group, one after the other, on the cluster of one pass."""

    def __init__(
        self,
        cluster: Cluster,
        job: Job,
        group: TaskGroup,
        config: SchedulerConfiguration,
        entropy: Entropy,
        *,
        index: int = 0,
        claims: GroupClaims | None = None,
    ) -> None:
        """index: of the allocations that are placed, which counts with per_alloc. claims: of the group, in this pass."""
        self._cluster = cluster
        self._job = job
        self._group = group
        self._entropy = entropy
        self.ask = GroupAsk(group, oversubscribe=config.memory_oversubscription_enabled)
        self._distinct = DistinctRules(job, group)
        self._spread = SpreadScore(job, group)
        self._distincts, self._spreads = bool(self._distinct), bool(self._spread)
        self._claims = claims or GroupClaims(cluster.snapshot, job, group.name)
        self.volumes = VolumeRules(cluster.snapshot, job, group, index, self._claims)
        self._sticky = sticky(group)
        self._rules = self._distincts or bool(self.volumes)
        for node, name in cluster.job_allocs.values():
            self._distinct.count(node, name, 1)
            self._spread.count(node, name, 1)

        affinities = [*(job.affinities or ()), *(group.affinities or ())]
        for task in group.tasks or ():
            affinities.extend(task.affinities or ())
        wanted = Wanted(
            requirements(job, group, index),
            tuple(affinities),
            config.scheduler_algorithm,
            self.ask,
            cluster.view.per_device() if config.scheduler_algorithm == GPU_AWARE else None,
        )
        known = standing(cluster.view, wanted)
        self._packing = wanted.score
        self.feasibility = known.feasibility.copy()
        self._filtered = known.filtered
        self._affinity = known.affinity
        self._packing_only = not (self._affinity or self._spreads or self.ask.prefers_devices)
        self._excluded = Refusals()
        self._penalised: frozenset[int] = frozenset()
        # The standing speaks for the places that are not in `_moved`, `_own` for those that are.
        self._moved: set[int] = set()
        self._own = Order()
        # What metrics say of a node, and what its score was made of, until it is scored anew.
        self._told: dict[int, NodeScoreMeta] = {}
        self._scored: dict[int, dict[str, float]] = {}
        # All that metrics say besides scores, and how often refusals had changed when they said it.
        self._metric: tuple[tuple[int, int, int], AllocationMetric] | None = None
        self._passed = 0  # how many of the standing's keys, from the best on, have been moved
        # With spread blocks every placement moves the score of all nodes that share a property. Then the order is made
        # anew for each choice, from the parts that stay: their sum, how many they are, the node's properties.
        self._standing: dict[int, tuple[float, int, tuple[str | None, ...]]] = {}
        self._log_position = len(cluster.log)
        if self._spread or self._distinct.limits:
            # What stands in the way of one node may depend on any other.
            self._base: list[tuple[float, int]] = []
            self._exhausted = Refusals()
            own = known.feasible
        else:
            self._base = known.order.keys
            self._exhausted = Refusals(known.exhausted)
            own = cluster.touched()
        for index in own:
            if not self._filtered.reason(index):
                self._refresh(index)

    def select(
        self,
        penalties: Collection[str] = (),
        preferred: str = "",
        previous: Allocation | None = None,
    ) -> Choice | None:
        """Return the best node that has room, or None.

        penalties: nodes to avoid if others will do. preferred: a node to take if it can hold the allocation at all.
        previous: whom it comes after, whose sticky volumes it takes over.
        The caller tells the cluster when it places what was chosen.
        """
        if not self._sticky:
            return self._select(penalties, preferred)
        for aim in self._claims.aims(self._group, previous):
            self.aim_at(aim)
            choice = self._select(penalties, preferred)
            if choice is not None:
                return choice
        return None

    def expect_newcomer(self) -> None:
        """From now on look at nodes as for an allocation that comes after none."""
        if self._sticky:
            self.aim_at(self._claims.aims(self._group, None)[-1])

    def aim_at(self, aim: Aim) -> None:
        """From now on only these sticky volumes will do."""
        if aim != self.volumes.aim:
            self.volumes.aim = aim
            for index in self._excluded.places():
                self._refresh(index)

    def _select(self, penalties: Collection[str], preferred: str) -> Choice | None:
        self._catch_up()
        if not penalties and not preferred:
            return self._select_best()
        if preferred:
            state = self._cluster.get(preferred)
            if state is not None:
                choice = self.try_node(state)
                if choice is not None:
                    return choice
        penalised = [
            state.index
            for state in map(self._cluster.get, sorted(penalties))
            if state is not None and not self._filtered.reason(state.index)
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
        problem = self._rule(state) if self._rules else ""
        if problem:
            self._excluded.add(index, state.node, problem)
            self._retire(index)
            return None
        if self._filtered.reason(index) or self._exhausted.reason(index):
            return None
        grant = self._grant(state)
        if grant is None:
            return None
        return Choice(state, grant, self._metrics([(-self._score(state), index)]))

    def failure(self) -> AllocationMetric:
        """Return why no node could be chosen."""
        self._catch_up()
        return self._metrics([])

    def withheld(self, reason: str) -> AllocationMetric:
        """Return that nodes have room and `reason` stands against all of them."""
        self._catch_up()
        nodes = len(self._cluster.view.rows)
        told = self._metrics([])
        return msgspec.structs.replace(
            told, nodes_filtered=nodes, constraint_filtered={reason: nodes}, score_meta_data=None
        )

    def node_failure(self, state: NodeState) -> AllocationMetric:
        """Return why this node alone could not be chosen; for groups that want each node."""
        filtered, exhausted = Refusals(), Refusals()
        for mine, theirs in (
            (filtered, self._filtered),
            (filtered, self._excluded),
            (exhausted, self._exhausted),
        ):
            reason = theirs.reason(state.index)
            if reason:
                mine.add(state.index, state.node, reason)
        return self._metric_of(1, [filtered], exhausted, None)

    def is_exhausted(self, state: NodeState) -> bool:
        """Whether the node may run the group but lacked room when last looked at."""
        return bool(self._exhausted.reason(state.index))

    # -- trials of nodes with less on them, for preemption.py ---------------------------------------------

    def without_room(self) -> list[int]:
        """The places, ascending, of nodes that may run the group and lack room."""
        self._catch_up()
        return self._exhausted.places()

    def forbidden(self, state: NodeState) -> str:
        """Why the job's other allocations, or the volumes there, keep the group off a node, or ""."""
        return self._rule(state) if self._rules else ""

    def lacks(self, state: NodeState) -> tuple[Amount, bool]:
        """What is missing (0 where nothing is) of cpu, memory and disk, and of the number of allocations."""
        amount, have = self.ask.amount(state.have), state.have
        return (
            Amount(
                max(0, state.cpu + amount.cpu - have.cpu),
                max(0, state.memory_mb + amount.memory_mb - have.memory_mb),
                max(0, state.disk_mb + amount.disk_mb - have.disk_mb),
            ),
            bool(have.max_allocs) and state.count >= have.max_allocs,
        )

    def trial(self, state: NodeState) -> dict[str, float] | None:
        """The parts of the node's score as its state is now, None when it cannot hold one more. Takes nothing."""
        problem = self._rule(state) if self._rules else ""
        if problem or self.ask.shortage(state):
            return None
        try:
            self.ask.grant(state, self._entropy)
        except GrantError:
            return None
        state.forget_ports()
        return self._parts(state)

    def take(self, state: NodeState, scores: list[NodeScoreMeta]) -> Choice | None:
        """Return the choice of a node as its state is now, with these scores told; None when it does not hold."""
        if self.ask.shortage(state):
            return None
        try:
            grant = self.ask.grant(state, self._entropy)
        except GrantError:
            return None
        metrics = msgspec.structs.replace(self._metrics([]), score_meta_data=scores or None)
        return Choice(state, grant, metrics)

    def _rule(self, state: NodeState) -> str:
        """Why the job's other allocations, or the volumes there, keep the group off a node, or ""."""
        found = self._distinct.problem(state.node, state.groups) if self._distincts else ""
        return found or (self.volumes.problem(state) if self.volumes else "")

    def _select_best(self) -> Choice | None:
        while True:
            if self._spreads:
                self._own = self._spread_order()
            top = self._top()
            if not top:
                return None
            index = top[0][1]
            state = self._cluster.state(index)
            problem = self._rule(state) if self._rules else ""
            if problem:
                self._excluded.add(index, state.node, problem)
                self._retire(index)
                continue
            grant = self._grant(state)
            if grant is not None:
                return Choice(state, grant, self._metrics(top))

    def _grant(self, state: NodeState) -> Grant | None:
        try:
            return self.ask.grant(state, self._entropy)
        except GrantError as shortage:
            self._exhausted.add(state.index, state.node, str(shortage))
            self._retire(state.index)
            return None

    def _spread_order(self) -> Order:
        boosts: dict[tuple[str | None, ...], float] = {}
        scores: list[tuple[int, float]] = []
        for index, (total, parts, values) in self._standing.items():
            boost = boosts.get(values)
            if boost is None:
                boost = boosts[values] = self._spread.score(values)
            scores.append((index, (total + boost) / (parts + 1) if boost else total / parts))
        return Order(scores)

    def _top(self) -> list[tuple[float, int]]:
        """The best few nodes as keys in order: of the standing's that have not moved, and of those that have."""
        base, moved = self._base, self._moved
        passed, end = self._passed, len(base)
        while passed < end and base[passed][1] in moved:
            passed += 1
        self._passed = passed
        top = self._own.keys[:_TOP_SCORES]
        if passed == end or (len(top) == _TOP_SCORES and top[-1] < base[passed]):
            return top
        wanted = _TOP_SCORES
        while wanted and passed < end:
            key = base[passed]
            passed += 1
            if key[1] not in moved:
                top.append(key)
                wanted -= 1
        top.sort()
        return top[:_TOP_SCORES]

    def _catch_up(self) -> None:
        """Refresh the nodes that changed since the last look."""
        log, start = self._cluster.log, self._log_position
        if start == len(log):
            return
        if (
            start + 1 == len(log)
            and log[start].by > 0
            and not self._distincts
            and not self._spreads
        ):
            # One place after the other is filled: the shape of nearly every pass.
            self._log_position = start + 1
            place = log[start].place
            if place >= 0 and not self._filtered.reason(place):
                self._refresh(place)
            return
        changed: set[int] = set()
        freed = False
        for position in range(start, len(log)):
            change = log[position]
            changed.add(change.place)
            freed = freed or change.by < 0
            if self._distincts:
                self._distinct.count(change.node, change.group, change.by)
            if self._spreads:
                self._spread.count(change.node, change.group, change.by)
        self._log_position = len(log)
        if freed:
            changed.update(self._excluded.places())
        for index in sorted(changed):
            if index >= 0 and not self._filtered.reason(index):
                self._refresh(index)

    def _refresh(self, index: int) -> None:
        """Score a node anew, or set it aside when the group no longer fits."""
        state = self._cluster.state(index)
        self._told.pop(index, None)
        self._scored.pop(index, None)
        if self._exhausted.count:
            self._exhausted.discard(index, state.node)
        if self._excluded.count:
            self._excluded.discard(index, state.node)
        if self._rules:
            problem = self._rule(state)
            if problem:
                self._excluded.add(index, state.node, problem)
                self._retire(index)
                return
        shortage = self.ask.shortage(state)
        if shortage:
            self._exhausted.add(index, state.node, shortage)
            self._retire(index)
            return
        self._moved.add(index)
        if self._spreads:
            parts = self._parts(state)
            del parts[ALLOCATION_SPREAD]
            counted = 1 + sum(1 for name, value in parts.items() if value and name != BINPACK)
            self._standing[index] = (sum(parts.values()), counted, self._spread.values(state.node))
        else:
            self._own.put(index, self._score(state))

    def _retire(self, index: int) -> None:
        self._moved.add(index)
        self._own.discard(index)
        self._standing.pop(index, None)

    def _score(self, state: NodeState) -> float:
        """The average of the parts; `_parts` names them, and they are kept for `_metrics`."""
        if self._packing_only and not self._penalised:
            packing = self._packing(state)
            same = state.groups.get(self._group.name)
            if not same:
                return packing
            # The shape of nearly every pass; as `combine` of `_parts` would say it.
            apart = anti_affinity(same, self._group.count)
            self._scored[state.index] = {
                BINPACK: packing,
                JOB_ANTI_AFFINITY: apart,
                NODE_AFFINITY: 0.0,
                RESCHEDULE_PENALTY: 0.0,
            }
            return (packing + apart) / 2
        parts = self._parts(state)
        if not self._spreads:
            self._scored[state.index] = parts
        return combine(parts)

    def _parts(self, state: NodeState) -> dict[str, float]:
        index = state.index
        parts = {
            BINPACK: self._packing(state),
            JOB_ANTI_AFFINITY: anti_affinity(
                state.groups.get(self._group.name, 0), self._group.count
            ),
            NODE_AFFINITY: self._affinity.get(index, 0.0),
            RESCHEDULE_PENALTY: -1.0 if index in self._penalised else 0.0,
        }
        if self.ask.prefers_devices:
            parts[DEVICES] = self.ask.device_affinity(state)
        if self._spreads:
            parts[ALLOCATION_SPREAD] = self._spread.score(self._spread.values(state.node))
        return parts

    def _metrics(self, top: list[tuple[float, int]]) -> AllocationMetric:
        """top: keys of the nodes that are told of."""
        if self._spreads:
            self._told.clear()
        known = self._told
        scores: list[NodeScoreMeta] = []
        for negative, index in top:
            told = known.get(index)
            if told is None:
                state = self._cluster.state(index)
                told = known[index] = NodeScoreMeta(
                    node_id=state.node.id,
                    scores=self._scored.get(index) or self._parts(state),
                    norm_score=-negative,
                )
            scores.append(told)
        refused = (self._filtered.changes, self._excluded.changes, self._exhausted.changes)
        if self._metric is None or self._metric[0] != refused:
            metric = self._metric_of(
                len(self._cluster.view.rows),
                [self._filtered, self._excluded],
                self._exhausted,
                None,
            )
            self._metric = (refused, metric)
        return msgspec.structs.replace(self._metric[1], score_meta_data=scores or None)

    def _metric_of(
        self,
        evaluated: int,
        filtered: list[Refusals],
        exhausted: Refusals,
        scores: list[NodeScoreMeta] | None,
    ) -> AllocationMetric:
        dimensions = summed([exhausted.by_reason])
        return AllocationMetric(
            nodes_evaluated=evaluated,
            nodes_filtered=sum(refused.count for refused in filtered),
            nodes_in_pool=self._cluster.view.in_pool,
            node_pool=self._job.node_pool,
            nodes_available=self._cluster.view.by_datacenter,
            class_filtered=summed([refused.by_class for refused in filtered]),
            constraint_filtered=summed([refused.by_reason for refused in filtered]),
            nodes_exhausted=exhausted.count,
            class_exhausted=summed([exhausted.by_class]),
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
