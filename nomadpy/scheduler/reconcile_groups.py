"""What a service or batch job should have against what it has: stops, updates and places to fill.

Out:     descriptions of what to do; nothing here chooses a node.
Not here: where placements go (placement.py); whether the pieces fit (service.py finds out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models import gotime
from nomadpy.models.allocation import Allocation
from nomadpy.models.annotations import DesiredUpdates
from nomadpy.models.deployment import Deployment, DeploymentState
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.plan import AllocStop, DeploymentStatusUpdate
from nomadpy.scheduler import reconcile_canaries
from nomadpy.scheduler.alloc_sets import (
    ACTIVE_DEPLOYMENT,
    AllocSets,
    alloc_index,
    classify,
    disconnect_rules,
)
from nomadpy.scheduler.decision import DELAYED_RESCHEDULING, DISCONNECT_TIMEOUT, follow_up
from nomadpy.scheduler.fit import client_terminal, terminal
from nomadpy.scheduler.new_deployment import with_group
from nomadpy.scheduler.reconcile_canaries import CanarySet
from nomadpy.scheduler.snapshot import Snapshot
from nomadpy.scheduler.updates import needs_replacement, same_version

NOT_NEEDED = "alloc not needed due to job update"
MIGRATING = "alloc is being migrated"
UPDATING = "alloc is being updated due to job update"
LOST = "alloc is lost since its node is down"
RESCHEDULED = "alloc was rescheduled because it failed"
UNKNOWN = "alloc is unknown since its node is disconnected"
RECONNECTED = "alloc not needed due to disconnected client reconnect"

DEPLOYMENT_SUCCESSFUL = "Deployment completed successfully"
DEPLOYMENT_NEWER_JOB = "Cancelled due to newer version of job"
DEPLOYMENT_STOPPED = "Cancelled because job is stopped"

# Failed allocations that are due within this of each other share one follow-up evaluation.
_FOLLOW_UP_WINDOW_NS = 5_000_000_000


class Placement(msgspec.Struct, frozen=True):
    """A place to fill. previous: the allocation that the new one follows.

    replaces: `previous` runs on until this placement is found a node, and is stopped with it (a destructive update).
    rescheduled: `previous` failed, and the attempt counts. canary: of the new version, beside the old one.
    downgrade: of the version that was last promoted, since the group waits for its canaries.
    """

    name: str
    group: TaskGroup
    previous: Allocation | None = None
    replaces: bool = False
    rescheduled: bool = False
    canary: bool = False
    downgrade: bool = False


class Reconciled(msgspec.Struct):
    """What the difference between wanted and present comes to."""

    stops: list[AllocStop] = []
    in_place: list[Allocation] = []
    destructive: list[Placement] = []
    placements: list[Placement] = []
    follow_ups: list[Evaluation] = []
    updates: dict[str, DesiredUpdates] = {}
    deployment: Deployment | None = None
    new_deployment: bool = False
    deployment_updates: list[DeploymentStatusUpdate] = []


class GroupReconciler:
    """Compares one job with its allocations, group by group."""

    def __init__(
        self,
        job: Job | None,
        evaluation: Evaluation,
        snapshot: Snapshot,
        can_stay: Callable[[Allocation, TaskGroup], bool],
        *,
        now_ns: int,
        entropy: Entropy,
    ) -> None:
        """can_stay: whether the node of an allocation may run the group as the job now says."""
        self._job = job
        self._evaluation = evaluation
        self._snapshot = snapshot
        self._can_stay = can_stay
        self._now_ns = now_ns
        self._entropy = entropy
        self._result = Reconciled()
        self._deployment: Deployment | None = None
        self._old_deployment: Deployment | None = None
        self._complete = True

    def reconcile(self, allocs: Iterable[Allocation]) -> Reconciled:
        """Return what is to be done about the job's allocations."""
        by_group: dict[str, list[Allocation]] = {}
        for alloc in allocs:
            by_group.setdefault(alloc.task_group, []).append(alloc)
        self._settle_old_deployment()
        job = self._job
        if job is None or job.stop:
            for name in sorted(by_group):
                self._stop_all(name, by_group[name])
            return self._result
        groups = {group.name: group for group in job.task_groups or ()}
        for name in sorted(by_group.keys() - groups.keys()):
            self._stop_all(name, by_group[name])
        for group in groups.values():
            self._reconcile_group(job, group, by_group.get(group.name, []))
        self._finish_deployment()
        return self._result

    def _settle_old_deployment(self) -> None:
        """Cancel an active deployment that is not of this version; remember the one that is."""
        latest = self._snapshot.latest_deployment(
            self._evaluation.namespace, self._evaluation.job_id
        )
        if latest is None:
            return
        active = latest.status in ACTIVE_DEPLOYMENT
        job = self._job
        if job is None or job.stop:
            if active:
                self._cancel(latest, DEPLOYMENT_STOPPED)
        elif latest.job_version != job.version or latest.job_create_index != job.create_index:
            self._old_deployment = latest
            if active:
                self._cancel(latest, DEPLOYMENT_NEWER_JOB)
        elif latest.status != "successful":
            self._deployment = self._result.deployment = latest

    def _cancel(self, deployment: Deployment, description: str) -> None:
        self._result.deployment_updates.append(
            DeploymentStatusUpdate(
                deployment_id=deployment.id, status="cancelled", description=description
            )
        )

    def _stop_all(self, group: str, allocs: list[Allocation]) -> None:
        stopped = 0
        for alloc in sorted(allocs, key=_by_name):
            if terminal(alloc):
                continue
            node = self._snapshot.node(alloc.node_id)
            gone = node is None or node.status in ("down", "disconnected")
            self._stop(alloc, LOST if gone else NOT_NEEDED, client_status="lost" if gone else "")
            stopped += 1
        self._result.updates[group] = DesiredUpdates(stop=stopped)

    def _reconcile_group(self, job: Job, group: TaskGroup, allocs: list[Allocation]) -> None:
        updates: dict[str, int] = {"stop": 0, "ignore": 0}
        allocs = self._stop_unneeded_canaries(allocs, updates)
        sets = classify(
            allocs, job, group, self._snapshot, self._evaluation, self._deployment, self._now_ns
        )
        state = self._state(group)
        for canary in reconcile_canaries.take_out_moving(sets, state):
            self._stop(canary, MIGRATING)
        later = [alloc for alloc, _ in sets.failed_later]
        canaries = reconcile_canaries.canary_set(state, [*sets.kept, *later], sets.failed_now)

        self._stop_gone(sets, updates)
        self._delay_replacements(job, sets)
        kept = sorted([*sets.kept, *later], key=_by_name)
        waiting = self._mark_unknown(job, group, sets, updates)
        kept += waiting

        kept, migrating = self._shrink(group, kept, sets.migrating, canaries, updates)
        same, in_place, destructive = self._compare(job, group, kept, {one.id for one in waiting})
        further = reconcile_canaries.missing(job, group, state, canaries, destructive)
        canarying = canaries.canarying or bool(further)
        if canarying:
            kept = [alloc for alloc in kept if alloc.id not in canaries.ids]
        places = self._places(job, group, sets, kept, migrating, downgrade=canarying)

        active = self._deployment is None or self._deployment.status not in ("paused", "failed")
        ready = active and not canarying
        limit = self._limit(job, group, kept, destructive)
        self._create_deployment(
            job, group, allocs, updating=bool(in_place or destructive), canarying=bool(further)
        )
        if not ready:
            places = [place for place in places if self._may_replace(place)]
        limit -= min(len(places), limit)
        chosen, postponed = (
            destructive[:limit] if ready else [],
            destructive[limit:] if ready else destructive,
        )

        result = self._result
        result.in_place += in_place
        result.placements += places
        if further and active:
            used = [*kept, *migrating]
            result.placements += self._further_canaries(
                further,
                canaries,
                group,
                reconcile_canaries.names(job, group, further, canaries, destructive, used),
            )
        result.destructive += [
            Placement(name=alloc.name, group=group, previous=alloc, replaces=True)
            for alloc in chosen
        ]
        self._migrate(group, migrating, downgrade=canarying)
        result.updates[group.name] = DesiredUpdates(
            ignore=len(same) + len(postponed) + updates["ignore"],
            place=len(places),
            migrate=len(migrating),
            stop=updates["stop"],
            in_place_update=len(in_place),
            destructive_update=len(chosen),
            canary=further if active else 0,
            disconnect=updates.get("disconnect", 0),
            reschedule_now=len(sets.failed_now),
            reschedule_later=len(sets.failed_later),
        )
        busy = (
            places or destructive or in_place or migrating or sets.failed_now or sets.failed_later
        )
        if busy or further or not self._healthy(group):
            self._complete = False

    def _state(self, group: TaskGroup) -> DeploymentState | None:
        """The group's part of the deployment of this version."""
        states = self._deployment.task_groups if self._deployment else None
        return (states or {}).get(group.name)

    def _stop_unneeded_canaries(
        self, allocs: list[Allocation], updates: dict[str, int]
    ) -> list[Allocation]:
        """Stop canaries that will never be promoted; returns the others."""
        ids = reconcile_canaries.unneeded(self._old_deployment, self._deployment)
        for alloc in allocs:
            if alloc.id in ids and not terminal(alloc):
                self._stop(alloc, NOT_NEEDED)
                updates["stop"] += 1
        return [alloc for alloc in allocs if alloc.id not in ids] if ids else allocs

    def _further_canaries(
        self, number: int, canaries: CanarySet, group: TaskGroup, names: list[str]
    ) -> list[Placement]:
        """Canaries to place: those that follow failed ones, then new ones."""
        follow = canaries.failed[:number]
        return [
            Placement(name=alloc.name, group=group, previous=alloc, rescheduled=True, canary=True)
            for alloc in follow
        ] + [
            Placement(name=name, group=group, canary=True)
            for name in [name for name in names if name not in {one.name for one in follow}][
                : number - len(follow)
            ]
        ]

    def _stop_gone(self, sets: AllocSets, updates: dict[str, int]) -> None:
        for alloc in sets.lost:
            self._stop(alloc, LOST, client_status="lost")
        for alloc in sets.failed_now:
            self._stop(alloc, RESCHEDULED)
        for alloc in sets.reconnected:
            self._stop(alloc, RECONNECTED)
        updates["stop"] += len(sets.lost) + len(sets.failed_now) + len(sets.reconnected)

    def _delay_replacements(self, job: Job, sets: AllocSets) -> None:
        """Make the evaluations that will replace what failed once its delay is over."""
        window_end, current = -1, ""
        for alloc, when in sorted(sets.failed_later, key=lambda pair: (pair[1], pair[0].id)):
            if when > window_end:
                made = self._follow_up(job, "alloc-reschedule", DELAYED_RESCHEDULING, when)
                window_end, current = when + _FOLLOW_UP_WINDOW_NS, made.id
            self._result.stops.append(
                AllocStop(
                    alloc_id=alloc.id,
                    node_id=alloc.node_id,
                    desired_status="run",
                    followup_eval_id=current,
                )
            )

    def _mark_unknown(
        self, job: Job, group: TaskGroup, sets: AllocSets, updates: dict[str, int]
    ) -> list[Allocation]:
        """Mark what cannot be reached; returns those that keep their place since they are not replaced."""
        rules = disconnect_rules(group)
        timeout = ""
        if sets.disconnecting and rules.lost_after_ns is not None:
            due = self._now_ns + rules.lost_after_ns
            timeout = self._follow_up(job, "max-disconnect-timeout", DISCONNECT_TIMEOUT, due).id
        for alloc in sets.disconnecting:
            self._result.stops.append(
                AllocStop(
                    alloc_id=alloc.id,
                    node_id=alloc.node_id,
                    desired_status="run",
                    description=UNKNOWN,
                    client_status="unknown",
                    followup_eval_id=timeout,
                )
            )
        updates["disconnect"] = len(sets.disconnecting)
        updates["ignore"] += len(sets.unknown)
        return [] if rules.replace else sets.disconnecting

    def _shrink(
        self,
        group: TaskGroup,
        kept: list[Allocation],
        migrating: list[Allocation],
        canaries: CanarySet,
        updates: dict[str, int],
    ) -> tuple[list[Allocation], list[Allocation]]:
        """Stop what exceeds the count: what promoted canaries stand in for, what does no good, the highest indexes.

        Canaries that wait to be promoted do not count, and stay.
        """
        beside = canaries.present if canaries.canarying else []
        if beside:
            kept = [alloc for alloc in kept if alloc.id not in canaries.ids]
        excess = len(kept) + len(migrating) - group.count
        if excess <= 0:
            kept = sorted([*kept, *beside], key=_by_name)
            return kept, migrating
        promoted = set() if beside else {alloc.name for alloc in canaries.present}
        stood_in_for = {
            alloc.id for alloc in kept if alloc.name in promoted and alloc.id not in canaries.ids
        }
        moving = {alloc.id for alloc in migrating}
        seen: set[int] = set()
        duplicates: set[str] = set()
        for alloc in kept:
            index = alloc_index(alloc)
            if index in seen:
                duplicates.add(alloc.id)
            seen.add(index)

        def worth(alloc: Allocation) -> tuple[bool, bool, bool, bool, bool, int, str]:
            status = alloc.deployment_status
            return (
                alloc.id not in stood_in_for,
                alloc.client_status not in ("failed", "unknown"),
                alloc.id not in moving,
                alloc_index(alloc) < group.count and alloc.id not in duplicates,
                status is None or status.healthy is not False,
                -alloc_index(alloc),
                alloc.id,
            )

        stopped = {alloc.id: alloc for alloc in sorted([*kept, *migrating], key=worth)[:excess]}
        for alloc in stopped.values():
            self._stop(alloc, NOT_NEEDED)
        updates["stop"] += len(stopped)
        return (
            sorted([*(a for a in kept if a.id not in stopped), *beside], key=_by_name),
            [alloc for alloc in migrating if alloc.id not in stopped],
        )

    def _compare(
        self, job: Job, group: TaskGroup, kept: list[Allocation], waiting: set[str]
    ) -> tuple[list[Allocation], list[Allocation], list[Allocation]]:
        """Part what is of another version: nothing to do, update in place, replace."""
        same: list[Allocation] = []
        in_place: list[Allocation] = []
        destructive: list[Allocation] = []
        verdicts: dict[tuple[int, int], bool] = {}
        for alloc in kept:
            old = alloc.job
            if (
                old is None
                or same_version(old, job)
                or alloc.client_status == "unknown"
                or alloc.id in waiting
            ):
                same.append(alloc)
                continue
            key = (old.create_index, old.version)
            replace = verdicts.get(key)
            if replace is None:
                replace = verdicts[key] = needs_replacement(old, job, group.name)
            if replace or not self._can_stay(alloc, group):
                destructive.append(alloc)
            elif client_terminal(alloc):
                same.append(alloc)
            else:
                in_place.append(alloc)
        return same, in_place, destructive

    def _places(
        self,
        job: Job,
        group: TaskGroup,
        sets: AllocSets,
        kept: list[Allocation],
        migrating: list[Allocation],
        *,
        downgrade: bool,
    ) -> list[Placement]:
        """The places to fill: replacements first, then new ones with the lowest free indexes."""
        room = group.count - len(kept) - len(migrating)
        used = {alloc_index(alloc) for alloc in [*kept, *migrating]}
        places: list[Placement] = []
        for alloc, rescheduled in self._to_replace(sets, group, kept):
            if len(places) >= room:
                break
            index = alloc_index(alloc)
            if index in used or not 0 <= index < group.count or (downgrade and _is_canary(alloc)):
                # What replaces a canary is a canary.
                continue
            used.add(index)
            places.append(
                Placement(
                    name=alloc.name,
                    group=group,
                    previous=alloc,
                    rescheduled=rescheduled,
                    downgrade=downgrade,
                )
            )
        index = 0
        while len(places) < room:
            if index not in used:
                places.append(Placement(name=f"{job.id}.{group.name}[{index}]", group=group))
            index += 1
        return places

    def _to_replace(
        self, sets: AllocSets, group: TaskGroup, kept: list[Allocation]
    ) -> list[tuple[Allocation, bool]]:
        replaced = [(alloc, True) for alloc in sets.failed_now]
        replaced += [(alloc, False) for alloc in sets.lost]
        if disconnect_rules(group).replace:
            replaced += [(alloc, False) for alloc in sets.disconnecting]
        present = {alloc.id for alloc in kept}
        replaced += [
            (alloc, False) for alloc in sets.unknown if alloc.next_allocation not in present
        ]
        return replaced

    def _may_replace(self, place: Placement) -> bool:
        """While a deployment is paused, has failed or waits for canaries, only what was there is replaced.

        What failed within a deployment that has failed is not: it would fail again.
        """
        previous, deployment = place.previous, self._deployment
        if previous is None:
            return False
        if deployment is None or deployment.status not in ("paused", "failed"):
            return True
        return not (place.rescheduled and previous.deployment_id == deployment.id)

    def _limit(
        self, job: Job, group: TaskGroup, kept: list[Allocation], destructive: list[Allocation]
    ) -> int:
        """How many allocations may be replaced by this pass."""
        update = group.update
        if job.type != "service" or update is None or update.max_parallel <= 0 or not destructive:
            return max(group.count, len(destructive))
        deployment = self._deployment
        if deployment is None:
            return update.max_parallel
        if deployment.status in ("paused", "failed"):
            return 0
        limit = update.max_parallel
        for alloc in kept:
            if alloc.deployment_id != deployment.id:
                continue
            status = alloc.deployment_status
            if status is not None and status.healthy is False:
                # One that is known to be unhealthy halts the change.
                return 0
            if status is None or not status.healthy:
                limit -= 1
        return max(limit, 0)

    def _create_deployment(
        self,
        job: Job,
        group: TaskGroup,
        allocs: list[Allocation],
        *,
        updating: bool,
        canarying: bool,
    ) -> None:
        """Begin a deployment, or add the group to the one begun in this pass, when this version is new to the group."""
        update = group.update
        if job.type != "service" or update is None or update.max_parallel <= 0 or group.count <= 0:
            return
        result = self._result
        if self._deployment is not None and not result.new_deployment:
            return
        if not updating and any(same_version(alloc.job, job) for alloc in allocs):
            return
        result.new_deployment = result.new_deployment or self._deployment is None
        self._deployment = with_group(
            self._deployment,
            self._evaluation,
            job,
            group.name,
            update,
            total=group.count,
            canaries=update.canary if canarying else 0,
            now_ns=self._now_ns,
            entropy=self._entropy,
        )
        result.deployment = self._deployment

    def _migrate(self, group: TaskGroup, migrating: list[Allocation], *, downgrade: bool) -> None:
        for alloc in migrating:
            self._stop(alloc, MIGRATING)
            transition = alloc.desired_transition
            if transition is not None and transition.migrate_disable_placement:
                continue
            self._result.placements.append(
                Placement(name=alloc.name, group=group, previous=alloc, downgrade=downgrade)
            )

    def _healthy(self, group: TaskGroup) -> bool:
        """Whether the deployment has all it wants of the group."""
        deployment = self._deployment
        state = (deployment.task_groups or {}).get(group.name) if deployment else None
        if state is None:
            return True
        if state.desired_canaries and not state.promoted:
            return False
        return state.healthy_allocs >= max(state.desired_total, state.desired_canaries)

    def _finish_deployment(self) -> None:
        deployment = self._deployment
        if deployment is None or self._result.new_deployment or not self._complete:
            return
        if deployment.status == "running" and deployment.task_groups:
            self._result.deployment_updates.append(
                DeploymentStatusUpdate(
                    deployment_id=deployment.id,
                    status="successful",
                    description=DEPLOYMENT_SUCCESSFUL,
                )
            )

    def _stop(self, alloc: Allocation, description: str, *, client_status: str = "") -> None:
        self._result.stops.append(
            AllocStop(
                alloc_id=alloc.id,
                node_id=alloc.node_id,
                description=description,
                client_status=client_status,
            )
        )

    def _follow_up(self, job: Job, trigger: str, description: str, due_ns: int) -> Evaluation:
        made = follow_up(
            self._evaluation,
            trigger=trigger,
            description=description,
            wait_until=gotime.from_ns(due_ns),
            job_modify_index=job.modify_index,
            snapshot_index=self._snapshot.index,
            now_ns=self._now_ns,
            entropy=self._entropy,
        )
        self._result.follow_ups.append(made)
        return made


def _is_canary(alloc: Allocation) -> bool:
    return alloc.deployment_status is not None and alloc.deployment_status.canary


def _by_name(alloc: Allocation) -> tuple[int, int, str]:
    return alloc_index(alloc), alloc.create_index, alloc.id
