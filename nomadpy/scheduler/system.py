"""Schedule system and sysbatch jobs: one allocation of each group on every node that can run it."""

from __future__ import annotations

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models import gotime
from nomadpy.models.allocation import Allocation, AllocDeploymentStatus
from nomadpy.models.annotations import DesiredUpdates
from nomadpy.models.base import ZERO_TIME
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.node import Node
from nomadpy.models.plan import AllocStop
from nomadpy.scheduler.ask import GroupAsk
from nomadpy.scheduler.cluster import Cluster, NodeState
from nomadpy.scheduler.conclude import Outcome, conclude, new_allocation
from nomadpy.scheduler.decision import Decision, follow_up
from nomadpy.scheduler.feasibility import in_datacenters
from nomadpy.scheduler.fit import terminal
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.scheduler.placement import GroupPlacer
from nomadpy.scheduler.preemption import Preemptor, spare_needless
from nomadpy.scheduler.reconcile_groups import UPDATING
from nomadpy.scheduler.reconcile_nodes import NodeWork, reconcile_nodes
from nomadpy.scheduler.settings import effective_config, may_preempt
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.scheduler.system_rollout import Rollout

_ROLLING = "rolling-update"


def schedule_nodes(
    evaluation: Evaluation,
    snapshot: Snapshot,
    *,
    now_ns: int,
    entropy: Entropy,
    table: NodeTable,
    dry_run: bool,
) -> Decision:
    """Return what to do about a system or sysbatch job."""
    job = snapshot.job(evaluation.namespace, evaluation.job_id)
    allocs = list(snapshot.allocs_by_job(evaluation.namespace, evaluation.job_id))
    outcome = Outcome(
        updates={},
        queued={group.name: 0 for group in (job.task_groups or () if job and not job.stop else ())},
    )
    _NodePass(evaluation, snapshot, job, allocs, outcome, now_ns, entropy, table).run()
    return conclude(
        evaluation, snapshot, job, outcome, now_ns=now_ns, entropy=entropy, dry_run=dry_run
    )


class _NodePass:
    """Carries out, node by node, what the reconciler of nodes wants."""

    def __init__(
        self,
        evaluation: Evaluation,
        snapshot: Snapshot,
        job: Job | None,
        allocs: list[Allocation],
        outcome: Outcome,
        now_ns: int,
        entropy: Entropy,
        table: NodeTable,
    ) -> None:
        self._evaluation = evaluation
        self._snapshot = snapshot
        self._job = job
        self._allocs = allocs
        self._outcome = outcome
        self._now_ns = now_ns
        self._entropy = entropy
        self._table = table
        self._preemptors: dict[str, Preemptor] = {}
        self._rollout = Rollout(job, allocs, snapshot, evaluation, now_ns=now_ns, entropy=entropy)

    def run(self) -> None:
        """Fill the outcome."""
        job = self._job
        if job is None or job.stop:
            work = reconcile_nodes(
                job, {}, self._allocs, self._snapshot, lambda _node, _group: False
            )
            self._stop(work)
            self._outcome.deployment_updates = self._rollout.updates
            self._annotate(work, {}, {}, {})
            return
        live = [alloc for alloc in self._allocs if not terminal(alloc)]
        view = self._table.view(job)
        cluster = Cluster(self._snapshot, self._table, view, live)
        config = effective_config(self._snapshot, job)
        placers = {
            group.name: GroupPlacer(cluster, job, group, config, self._entropy)
            for group in job.task_groups or ()
        }

        if may_preempt(config, job.type):
            self._preemptors = {
                name: Preemptor(cluster, job, placer) for name, placer in placers.items()
            }

        def feasible(node: Node, group: str) -> bool:
            return in_datacenters(node.datacenter, job.datacenters) and not placers[
                group
            ].feasibility.problem(node)

        targets = {row.node.id: row.node for row in view.rows}
        work = reconcile_nodes(job, targets, self._allocs, self._snapshot, feasible)
        self._stop(work)
        by_id = {alloc.id: alloc for alloc in live}
        for alloc_id in self._outcome.stops:
            if alloc_id in by_id:
                cluster.remove(by_id[alloc_id])
        chosen, canaries = self._choose(job, work, targets)
        self._update_in_place(job, work, config.memory_oversubscription_enabled)
        replaced: dict[str, int] = {}
        for alloc in chosen:
            group = alloc.task_group
            replaced[group] = replaced.get(group, 0) + 1
            self._replace(cluster, placers[group], job, alloc, canary=group in canaries)
        placed: dict[str, int] = {}
        for place in work.places:
            placed[place.group] = placed.get(place.group, 0) + 1
            self._place(
                cluster,
                placers[place.group],
                job,
                place.group,
                place.node_id,
                place.previous,
                canary=place.group in canaries,
            )
        if self._outcome.evicted:
            spare_needless(cluster, self._outcome)
        for name in self._outcome.failed:
            self._outcome.feasibilities.append(placers[name].feasibility)
        self._conclude_rollout()
        self._annotate(work, replaced, placed, canaries)

    def _choose(
        self, job: Job, work: NodeWork, targets: dict[str, Node]
    ) -> tuple[list[Allocation], dict[str, int]]:
        """Who is replaced now; and of the groups where those are canaries, how many."""
        chosen: list[Allocation] = []
        canaries: dict[str, int] = {}
        alone: list[Allocation] = []
        for group in job.task_groups or ():
            name = group.name
            old = [alloc for alloc in work.destructive if alloc.task_group == name]
            if job.type != "system" or group.update is None or group.update.max_parallel <= 0:
                alone += old
                continue
            placing = sum(place.group == name for place in work.places)
            there = sum(
                alloc.task_group == name
                and not terminal(alloc)
                and alloc.id not in self._outcome.stops
                and alloc.node_id in targets
                for alloc in self._allocs
            )
            now, as_canaries = self._rollout.plan(
                group,
                nodes=placing + there,
                placing=placing,
                in_place=any(alloc.task_group == name for alloc in work.in_place),
                destructive=old,
            )
            chosen += now
            if as_canaries:
                canaries[name] = len(now)
        return [*alone[: self._roll(job, alone)], *chosen], canaries

    def _conclude_rollout(self) -> None:
        outcome, rollout = self._outcome, self._rollout
        rollout.started(
            alloc.task_group
            for alloc in outcome.placements
            if rollout.deployment is not None and alloc.deployment_id == rollout.deployment.id
        )
        rollout.conclude(failed=bool(outcome.failed))
        outcome.deployment = rollout.deployment
        outcome.new_deployment = rollout.is_new
        outcome.deployment_updates = rollout.updates

    def _stop(self, work: NodeWork) -> None:
        for stop in work.stops:
            self._outcome.stops[stop.alloc_id] = stop

    def _update_in_place(self, job: Job, work: NodeWork, oversubscribe: bool) -> None:
        groups: dict[str, TaskGroup] = {group.name: group for group in job.task_groups or ()}
        for alloc in work.in_place:
            changed = msgspec.structs.replace(alloc, job=None, eval_id=self._evaluation.id)
            if alloc.allocated_resources is not None:
                grant = GroupAsk(groups[alloc.task_group], oversubscribe=oversubscribe).regrant(
                    alloc.allocated_resources
                )
                changed = msgspec.structs.replace(
                    changed,
                    resources=grant.total,
                    task_resources=grant.tasks,
                    allocated_resources=grant.allocated,
                    shared_resources=grant.shared,
                )
            if part_of := self._rollout.part_of(alloc.task_group):
                changed = msgspec.structs.replace(
                    changed, deployment_id=part_of, deployment_status=None
                )
            self._outcome.placements.append(changed)

    def _roll(self, job: Job, destructive: list[Allocation]) -> int:
        """How many to replace now. The rest follows, `stagger` later, in an evaluation of its own."""
        update = job.update
        if update is None or update.max_parallel <= 0 or len(destructive) <= update.max_parallel:
            return len(destructive)
        due = gotime.from_ns(self._now_ns + update.stagger) if update.stagger else ZERO_TIME
        self._outcome.follow_ups.append(
            follow_up(
                self._evaluation,
                trigger=_ROLLING,
                description="",
                wait_until=due,
                job_modify_index=job.modify_index,
                snapshot_index=self._snapshot.index,
                now_ns=self._now_ns,
                entropy=self._entropy,
            )
        )
        return update.max_parallel

    def _replace(
        self,
        cluster: Cluster,
        placer: GroupPlacer,
        job: Job,
        alloc: Allocation,
        *,
        canary: bool,
    ) -> None:
        cluster.remove(alloc)
        if self._place(
            cluster, placer, job, alloc.task_group, alloc.node_id, alloc.id, canary=canary
        ):
            self._outcome.stops[alloc.id] = AllocStop(
                alloc_id=alloc.id, node_id=alloc.node_id, description=UPDATING
            )
        else:
            cluster.restore(alloc)

    def _place(
        self,
        cluster: Cluster,
        placer: GroupPlacer,
        job: Job,
        group: str,
        node_id: str,
        previous_id: str,
        *,
        canary: bool = False,
    ) -> bool:
        state = cluster.get(node_id)
        if state is None:
            return False
        choice = placer.try_node(state)
        if choice is None and group in self._preemptors:
            choice = self._preemptors[group].choose(state)
        if choice is None:
            # A node that other allocations forbid (distinct_*) is none of the job's, like one that cannot run it.
            if placer.is_exhausted(state):
                self._refuse(placer, group, state)
            return False
        alloc = new_allocation(
            self._evaluation,
            job,
            group,
            f"{job.id}.{group}[0]",
            choice,
            alloc_id=self._entropy.uuid(),
            deployment_id=self._rollout.part_of(group),
            previous_id=previous_id,
        )
        if canary:
            alloc = msgspec.structs.replace(
                alloc, deployment_status=AllocDeploymentStatus(canary=True)
            )
        self._outcome.evict(group, alloc.id, choice.evicted)
        self._outcome.placements.append(alloc)
        cluster.place(state, alloc, choice.grant.amount)
        return True

    def _refuse(self, placer: GroupPlacer, group: str, state: NodeState) -> None:
        """Note a node without room; its metrics add up over the nodes."""
        self._outcome.queued[group] = self._outcome.queued.get(group, 0) + 1
        metric = placer.node_failure(state)
        known = self._outcome.failed.get(group)
        if known is not None:
            dimensions = dict(known.dimension_exhausted or {})
            for name, number in (metric.dimension_exhausted or {}).items():
                dimensions[name] = dimensions.get(name, 0) + number
            metric = msgspec.structs.replace(
                known,
                nodes_evaluated=known.nodes_evaluated + metric.nodes_evaluated,
                nodes_exhausted=known.nodes_exhausted + metric.nodes_exhausted,
                dimension_exhausted=dimensions or None,
                resources_exhausted=known.resources_exhausted or metric.resources_exhausted,
                coalesced_failures=known.coalesced_failures + 1,
            )
        self._outcome.failed[group] = metric

    def _annotate(
        self,
        work: NodeWork,
        replaced: dict[str, int],
        placed: dict[str, int],
        canaries: dict[str, int],
    ) -> None:
        names = {group.name for group in (self._job.task_groups or ())} if self._job else set()
        names |= {alloc.task_group for alloc in self._allocs}
        ignored = dict(work.ignored)
        for alloc in work.destructive:
            ignored[alloc.task_group] = ignored.get(alloc.task_group, 0) + 1
        in_place: dict[str, int] = {}
        for alloc in work.in_place:
            in_place[alloc.task_group] = in_place.get(alloc.task_group, 0) + 1
        for name in sorted(names):
            self._outcome.updates[name] = DesiredUpdates(
                ignore=ignored.get(name, 0) - replaced.get(name, 0),
                place=placed.get(name, 0),
                migrate=work.migrated.get(name, 0),
                stop=work.stopped.get(name, 0),
                in_place_update=in_place.get(name, 0),
                destructive_update=0 if name in canaries else replaced.get(name, 0),
                canary=canaries.get(name, 0),
            )
