"""Schedule service and batch jobs: reconcile, find nodes, make the plan."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models import gotime
from nomadpy.models.allocation import (
    Allocation,
    AllocationMetric,
    AllocDeploymentStatus,
    RescheduleTracker,
)
from nomadpy.models.deployment import Deployment
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.host_volume import index_of
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.plan import AllocStop
from nomadpy.scheduler import volumes
from nomadpy.scheduler.alloc_sets import ACTIVE_DEPLOYMENT
from nomadpy.scheduler.ask import Grant, GroupAsk
from nomadpy.scheduler.cluster import Cluster
from nomadpy.scheduler.conclude import Outcome, conclude, new_allocation
from nomadpy.scheduler.decision import Decision
from nomadpy.scheduler.feasibility import (
    ALL_POOL,
    Feasibility,
    in_datacenters,
    requirements,
)
from nomadpy.scheduler.fit import terminal
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.scheduler.placement import Choice, GroupPlacer
from nomadpy.scheduler.preemption import Preemptor, spare_needless
from nomadpy.scheduler.reconcile_groups import UPDATING, GroupReconciler, Placement, Reconciled
from nomadpy.scheduler.reschedule import extended_tracker, penalty_nodes
from nomadpy.scheduler.settings import effective_config, may_preempt
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.scheduler.updates import find_group


def schedule_groups(
    evaluation: Evaluation,
    snapshot: Snapshot,
    *,
    now_ns: int,
    entropy: Entropy,
    table: NodeTable,
    dry_run: bool,
) -> Decision:
    """Return what to do about a service or batch job."""
    job = snapshot.job(evaluation.namespace, evaluation.job_id)
    allocs = list(snapshot.allocs_by_job(evaluation.namespace, evaluation.job_id))
    reconciler = GroupReconciler(
        job,
        evaluation,
        snapshot,
        _StayCheck(job, snapshot),
        now_ns=now_ns,
        entropy=entropy,
    )
    wanted = reconciler.reconcile(allocs)
    outcome = Outcome(
        updates=wanted.updates,
        stops={stop.alloc_id: stop for stop in wanted.stops},
        deployment=wanted.deployment,
        new_deployment=wanted.new_deployment,
        deployment_updates=wanted.deployment_updates,
        follow_ups=wanted.follow_ups,
        queued={group.name: 0 for group in (job.task_groups or () if job and not job.stop else ())},
    )
    if job is not None and not job.stop:
        _GroupPass(evaluation, snapshot, job, allocs, wanted, outcome, now_ns, entropy, table).run()
    return conclude(
        evaluation, snapshot, job, outcome, now_ns=now_ns, entropy=entropy, dry_run=dry_run
    )


class _StayCheck:
    """Whether an allocation's node still satisfies what the job now asks, room aside."""

    def __init__(self, job: Job | None, snapshot: Snapshot) -> None:
        self._job = job
        self._snapshot = snapshot
        # By group, and with per_alloc by the allocation's index.
        self._known: dict[tuple[str, int], Feasibility] = {}

    def __call__(self, alloc: Allocation, group: TaskGroup) -> bool:
        job, node = self._job, self._snapshot.node(alloc.node_id)
        if job is None or node is None or not in_datacenters(node.datacenter, job.datacenters):
            return False
        if job.node_pool not in (ALL_POOL, node.node_pool or "default", ""):
            return False
        index = index_of(alloc.name) if volumes.per_alloc(group) else 0
        known = self._known.get((group.name, index))
        if known is None:
            known = Feasibility(requirements(job, group, index))
            self._known[(group.name, index)] = known
        return not known.problem(node)


_PlacerKey = tuple[str, int, int]
"""Group, version of the job, and the allocation's index where allocations differ by it."""


class _Version(msgspec.Struct, frozen=True):
    """What is placed: a version of the job, its group, and the deployment that it is part of, "" none."""

    job: Job
    group: TaskGroup
    deployment_id: str


class _GroupPass:
    """Finds nodes for what the reconciler wants placed, and fills the outcome."""

    def __init__(
        self,
        evaluation: Evaluation,
        snapshot: Snapshot,
        job: Job,
        allocs: Iterable[Allocation],
        wanted: Reconciled,
        outcome: Outcome,
        now_ns: int,
        entropy: Entropy,
        table: NodeTable,
    ) -> None:
        self._evaluation = evaluation
        self._snapshot = snapshot
        self._job = job
        self._allocs = allocs
        self._wanted = wanted
        self._outcome = outcome
        self._now_ns = now_ns
        self._entropy = entropy
        self._table = table
        self._config = effective_config(snapshot, job)
        # By group, and by version: while canaries run, what is lost comes back in the version before. With per_alloc by
        # index too: each allocation asks for a volume of its own.
        self._placers: dict[_PlacerKey, GroupPlacer] = {}
        self._preemptors: dict[_PlacerKey, Preemptor] = {}
        self._claims: dict[str, volumes.GroupClaims] = {}
        self._present: dict[str, _Version] = {}
        # The newest plain allocation: the next one differs from it in little.
        self._draft: tuple[_Version, Grant, Allocation] | None = None
        # Where each new allocation goes, with who makes room for it and whom it replaces.
        self._placed: list[Allocation] = []

    def run(self) -> None:
        """Update in place, then replace, then fill places."""
        self._update_in_place()
        if self._wanted.destructive or self._wanted.placements:
            self._place_all()
            if self._job.all_at_once and self._outcome.failed:
                self._withhold()
        self._start_progress_deadlines()

    def _update_in_place(self) -> None:
        asks: dict[str, GroupAsk] = {}
        groups = {group.name: group for group in self._job.task_groups or ()}
        deployment = self._active_deployment()
        for alloc in self._wanted.in_place:
            ask = asks.get(alloc.task_group)
            if ask is None:
                ask = asks[alloc.task_group] = GroupAsk(
                    groups[alloc.task_group],
                    oversubscribe=self._config.memory_oversubscription_enabled,
                )
            changed = msgspec.structs.replace(alloc, job=None, eval_id=self._evaluation.id)
            if alloc.allocated_resources is not None:
                grant = ask.regrant(alloc.allocated_resources)
                changed = msgspec.structs.replace(
                    changed,
                    resources=grant.total,
                    task_resources=grant.tasks,
                    allocated_resources=grant.allocated,
                    shared_resources=grant.shared,
                )
            if deployment is not None and alloc.task_group in (deployment.task_groups or {}):
                changed = msgspec.structs.replace(
                    changed, deployment_id=deployment.id, deployment_status=None
                )
            self._outcome.placements.append(changed)

    def _place_all(self) -> None:
        live = [alloc for alloc in self._allocs if not terminal(alloc)]
        cluster = Cluster(self._snapshot, self._table, self._table.view(self._job), live)
        by_id = {alloc.id: alloc for alloc in live}
        for stop in self._wanted.stops:
            if stop.desired_status != "run" and stop.alloc_id in by_id:
                cluster.remove(by_id[stop.alloc_id])
        # Replacements first: each frees its own place, which a new allocation might otherwise take.
        for place in (*self._wanted.destructive, *self._wanted.placements):
            self._place(cluster, self._version_for(place), place)
        if self._outcome.evicted:
            spare_needless(cluster, self._outcome)
        for (name, *_), placer in self._placers.items():
            if name in self._outcome.failed:
                self._outcome.feasibilities.append(placer.feasibility)

    def _placer(self, cluster: Cluster, version: _Version, key: _PlacerKey) -> GroupPlacer:
        placer = self._placers.get(key)
        if placer is None:
            placer = self._placers[key] = GroupPlacer(
                cluster,
                version.job,
                version.group,
                self._config,
                self._entropy,
                index=key[2],
                claims=self._claims_of(version.group),
            )
        return placer

    def _claims_of(self, group: TaskGroup) -> volumes.GroupClaims:
        found = self._claims.get(group.name)
        if found is None:
            leaving = [
                place.previous.id
                for place in (*self._wanted.destructive, *self._wanted.placements)
                if place.previous is not None and volumes.sticky(group)
            ]
            found = volumes.GroupClaims(self._snapshot, self._job, group.name, leaving)
            self._claims[group.name] = found
        return found

    def _version_for(self, place: Placement) -> _Version:
        """The version to place: the one that was last promoted, for what is lost while canaries run."""
        present = self._present.get(place.group.name)
        if present is None:
            deployment = self._active_deployment()
            part = deployment is not None and place.group.name in (deployment.task_groups or {})
            present = _Version(self._job, place.group, deployment.id if deployment and part else "")
            self._present[place.group.name] = present
        if not place.downgrade:
            return present
        return self._promoted_version(place) or present

    def _promoted_version(self, place: Placement) -> _Version | None:
        """Source: downgradedJobForPlacement, scheduler/generic_sched.go of Nomad."""
        job, name, snapshot = self._job, place.group.name, self._snapshot
        least = place.previous.job.version if place.previous and place.previous.job else 0
        for deployment in snapshot.deployments_by_job(job.namespace, job.id):
            state = (deployment.task_groups or {}).get(name)
            if state is None or deployment.job_create_index != job.create_index:
                continue
            if (state.promoted or not state.desired_canaries) and deployment.job_version >= least:
                older = snapshot.job_version(job.namespace, job.id, deployment.job_version)
                group = find_group(older, name) if older else None
                if older is not None and group is not None:
                    return _Version(older, group, deployment.id)
        older = place.previous.job if place.previous else None
        group = find_group(older, name) if older else None
        return None if older is None or group is None else _Version(older, group, "")

    def _place(self, cluster: Cluster, version: _Version, place: Placement) -> None:
        name, group = place.group.name, version.group
        # Not all allocations of the group are alike: what one was refused, another may be given.
        own = bool(group.volumes) and (volumes.per_alloc(group) or volumes.sticky(group))
        index = index_of(place.name) if own and volumes.per_alloc(group) else 0
        key = (group.name, version.job.version, index)
        placer = self._placer(cluster, version, key)
        if name in self._outcome.failed and not place.replaces and not own:
            # The group has just been refused on every node, and nothing was freed since.
            self._refuse(name, placer)
            return
        previous = place.previous
        if place.replaces and previous is not None:
            cluster.remove(previous)
        choice = placer.select(
            penalties=penalty_nodes(previous) if place.rescheduled and previous else (),
            preferred=_preferred_node(place),
            previous=previous,
        ) or self._preempt(cluster, placer, version, key)
        if choice is None:
            self._refuse(name, placer)
            if place.replaces and previous is not None:
                cluster.restore(previous)
            return
        if place.replaces and previous is not None:
            self._outcome.stops[previous.id] = AllocStop(
                alloc_id=previous.id, node_id=previous.node_id, description=UPDATING
            )
        alloc = self._build(place, version, choice)
        if choice.evicted:
            self._outcome.evict(name, alloc.id, choice.evicted)
        self._outcome.placements.append(alloc)
        self._placed.append(alloc)
        cluster.place(choice.state, alloc, choice.grant.amount)
        if own:
            self._claims_of(group).take(alloc, group, choice.state.node)

    def _withhold(self) -> None:
        """Place nothing of a gang (all_at_once) since not all of it can be; what it would have displaced stays."""
        outcome = self._outcome
        missing = ", ".join(f'"{name}"' for name in outcome.failed)
        withheld = {alloc.id for alloc in self._placed}
        placers = {name: placer for (name, *_), placer in self._placers.items()}
        outcome.placements = [one for one in outcome.placements if one.id not in withheld]
        outcome.take_back_evictions()
        for alloc in self._placed:
            replaced = outcome.stops.get(alloc.previous_allocation)
            if replaced is not None and replaced.description == UPDATING:
                del outcome.stops[alloc.previous_allocation]
            name = alloc.task_group
            outcome.queued[name] = outcome.queued.get(name, 0) + 1
            known = outcome.failed.get(name)
            if known is None:
                outcome.failed[name] = placers[name].withheld(
                    f"all_at_once: no room for group {missing}"
                )
            else:
                outcome.failed[name] = msgspec.structs.replace(
                    known, coalesced_failures=known.coalesced_failures + 1
                )
        # Any of the groups may be the one that makes way for another, so a node for any of them may help.
        outcome.feasibilities = [placer.feasibility for placer in self._placers.values()]

    def _preempt(
        self, cluster: Cluster, placer: GroupPlacer, version: _Version, key: _PlacerKey
    ) -> Choice | None:
        """Make room at the expense of less important jobs, where that is allowed."""
        if not may_preempt(self._config, self._job.type):
            return None
        preemptor = self._preemptors.get(key)
        if preemptor is None:
            preemptor = self._preemptors[key] = Preemptor(cluster, version.job, placer)
        return preemptor.choose()

    def _refuse(self, name: str, placer: GroupPlacer) -> None:
        failed: dict[str, AllocationMetric] = self._outcome.failed
        self._outcome.queued[name] = self._outcome.queued.get(name, 0) + 1
        known = failed.get(name)
        if known is None:
            failed[name] = placer.failure()
        else:
            failed[name] = msgspec.structs.replace(
                known, coalesced_failures=known.coalesced_failures + 1
            )

    def _build(self, place: Placement, version: _Version, choice: Choice) -> Allocation:
        previous, group = place.previous, version.group
        plain = (
            previous is None
            and not place.canary
            and not choice.evicted
            and version.job is self._job
        )
        draft = self._draft
        if plain and draft is not None and draft[0] is version and draft[1] is choice.grant:
            node = choice.state.node
            return msgspec.structs.replace(
                draft[2],
                id=self._entropy.uuid(),
                name=place.name,
                node_id=node.id,
                node_name=node.name,
                metrics=choice.metrics,
            )
        tracker: RescheduleTracker | None = None
        if previous is not None:
            tracker = previous.reschedule_tracker
            if place.rescheduled:
                tracker = extended_tracker(previous, group.reschedule_policy, self._now_ns)
            elif place.replaces:
                tracker = None
        alloc = new_allocation(
            self._evaluation,
            version.job,
            group.name,
            place.name,
            choice,
            alloc_id=self._entropy.uuid(),
            deployment_id=version.deployment_id,
            previous_id=previous.id if previous is not None else "",
            tracker=tracker,
        )
        if place.canary:
            alloc = msgspec.structs.replace(
                alloc, deployment_status=AllocDeploymentStatus(canary=True)
            )
        if version.job is not self._job:
            alloc = msgspec.structs.replace(alloc, job=version.job)
        if plain:
            self._draft = (version, choice.grant, alloc)
        return alloc

    def _active_deployment(self) -> Deployment | None:
        deployment = self._outcome.deployment
        if deployment is None or deployment.status not in ACTIVE_DEPLOYMENT:
            return None
        return deployment

    def _start_progress_deadlines(self) -> None:
        """The clock of a new deployment's group starts with its first allocation."""
        deployment = self._outcome.deployment
        if deployment is None or not self._outcome.new_deployment:
            return
        begun = {
            alloc.task_group
            for alloc in self._outcome.placements
            if alloc.deployment_id == deployment.id
        }
        groups = {
            name: msgspec.structs.replace(
                state, require_progress_by=gotime.from_ns(self._now_ns + state.progress_deadline)
            )
            if name in begun and state.progress_deadline
            else state
            for name, state in (deployment.task_groups or {}).items()
        }
        self._outcome.deployment = msgspec.structs.replace(deployment, task_groups=groups)


def _preferred_node(place: Placement) -> str:
    """The node whose data the allocation wants to keep: that of the one it follows, when its disk is sticky."""
    previous, disk = place.previous, place.group.ephemeral_disk
    if previous is None or disk is None or not disk.sticky or place.rescheduled:
        return ""
    return previous.node_id
