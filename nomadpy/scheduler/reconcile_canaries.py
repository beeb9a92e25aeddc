"""Canaries of a group: which are there, which are not wanted any more, and what further ones are called.

A canary is an allocation of the new version beside those of the old one. Until the group is promoted nothing else of
the new version is placed; then the old ones with the canaries' names go first. Who promotes is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import Deployment, DeploymentState
from nomadpy.models.job import Job, TaskGroup
from nomadpy.scheduler.alloc_sets import AllocSets, alloc_index

NEEDS_PROMOTION = "Deployment is running but requires manual promotion"
AUTO_PROMOTION = "Deployment is running pending automatic promotion"


class CanarySet(msgspec.Struct):
    """A group's canaries. present: by name; canarying: they wait to be promoted, and all else waits for that.

    failed: to be replaced now, by canaries.
    """

    present: list[Allocation] = []
    failed: list[Allocation] = []
    canarying: bool = False

    @property
    def ids(self) -> frozenset[str]:
        """The ids of those present."""
        return frozenset(alloc.id for alloc in self.present)


def unneeded(old: Deployment | None, current: Deployment | None) -> frozenset[str]:
    """Return the ids of canaries that were never promoted and belong to an older deployment, or to one that failed."""
    ids: set[str] = set()
    for deployment in (old, current if current and current.status == "failed" else None):
        for state in (deployment.task_groups or {}).values() if deployment else ():
            if not state.promoted:
                ids.update(state.placed_canaries or ())
    return frozenset(ids)


def canary_set(
    state: DeploymentState | None, kept: Iterable[Allocation], failed: Iterable[Allocation]
) -> CanarySet:
    """Return the canaries among what is kept of the group, and among what failed and may be replaced now."""
    if state is None:
        return CanarySet()
    placed = frozenset(state.placed_canaries or ())
    return CanarySet(
        present=[alloc for alloc in kept if alloc.id in placed],
        failed=[alloc for alloc in failed if alloc.id in placed],
        canarying=bool(state.desired_canaries) and not state.promoted,
    )


def take_out_moving(sets: AllocSets, state: DeploymentState | None) -> list[Allocation]:
    """Take canaries that must move or are lost out of the sets: they are stopped, and new canaries made for them."""
    placed = frozenset(state.placed_canaries or ()) if state and not state.promoted else frozenset()
    moving = [alloc for alloc in sets.migrating if alloc.id in placed]
    sets.migrating = [alloc for alloc in sets.migrating if alloc.id not in placed]
    return moving


def missing(
    job: Job,
    group: TaskGroup,
    state: DeploymentState | None,
    canaries: CanarySet,
    destructive: list[Allocation],
) -> int:
    """Return how many canaries the group still needs."""
    update = group.update
    if job.type != "service" or update is None or update.max_parallel <= 0 or not destructive:
        return 0
    if state is not None and state.promoted:
        return 0
    return max(0, update.canary - len(canaries.present))


def names(
    job: Job,
    group: TaskGroup,
    number: int,
    canaries: CanarySet,
    destructive: list[Allocation],
    used: Iterable[Allocation],
) -> list[str]:
    """Return names for new canaries: those of allocations that will be replaced, then free ones, then beyond the count."""
    taken = {alloc_index(alloc) for alloc in canaries.present}
    occupied = {alloc_index(alloc) for alloc in used}
    preferred = sorted({alloc_index(alloc) for alloc in destructive} - {-1})
    free = [index for index in range(group.count) if index not in occupied]
    beyond = range(group.count, group.count + number + len(taken))
    chosen: list[int] = []
    for index in (*preferred, *free, *beyond):
        if len(chosen) == number:
            break
        if index not in taken and index not in chosen:
            chosen.append(index)
    return [f"{job.id}.{group.name}[{index}]" for index in chosen]


def described(deployment: Deployment) -> Deployment:
    """Return a new deployment with the words for what it waits for."""
    waiting = [
        state
        for state in (deployment.task_groups or {}).values()
        if state.desired_canaries and not state.promoted
    ]
    if not waiting:
        return deployment
    text = AUTO_PROMOTION if all(state.auto_promote for state in waiting) else NEEDS_PROMOTION
    return msgspec.structs.replace(deployment, status_description=text)
