"""Turn the outcome of a pass into a Decision: the plan, the evaluation as it ends, and a blocked one for the rest."""

from __future__ import annotations

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.models.allocation import (
    Allocation,
    AllocationListStub,
    AllocationMetric,
    RescheduleTracker,
)
from nomadpy.models.annotations import DesiredUpdates, PlanAnnotations
from nomadpy.models.deployment import Deployment
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job
from nomadpy.models.plan import AllocStop, DeploymentStatusUpdate, JobRef, Plan
from nomadpy.scheduler.decision import ClassEligibility, Decision, blocked, reblocked
from nomadpy.scheduler.feasibility import Feasibility
from nomadpy.scheduler.placement import Choice
from nomadpy.scheduler.snapshot import Snapshot

# An evaluation with one of these triggers was woken from waiting, and waits on under its own id.
_WOKEN = frozenset({"queued-allocs", "max-plan-attempts"})


class Outcome(msgspec.Struct):
    """What a pass has gathered. stops: by allocation, the last word counts. feasibilities: of the groups that failed.

    evicted: allocations of other jobs that make room; preemptions: how many for each group.
    """

    updates: dict[str, DesiredUpdates]
    queued: dict[str, int]
    stops: dict[str, AllocStop] = {}
    placements: list[Allocation] = []
    failed: dict[str, AllocationMetric] = {}
    feasibilities: list[Feasibility] = []
    deployment: Deployment | None = None
    new_deployment: bool = False
    deployment_updates: list[DeploymentStatusUpdate] = []
    follow_ups: list[Evaluation] = []
    evicted: list[Allocation] = []
    preemptions: dict[str, int] = {}

    def evict(self, group: str, alloc_id: str, evicted: tuple[Allocation, ...]) -> None:
        """Note those that make room for an allocation of the group."""
        for alloc in evicted:
            self.evicted.append(alloc)
            self.stops[alloc.id] = AllocStop(
                alloc_id=alloc.id,
                node_id=alloc.node_id,
                desired_status="evict",
                description=f"Preempted by alloc ID {alloc_id}",
            )
            self.preemptions[group] = self.preemptions.get(group, 0) + 1

    def spare(self, alloc: Allocation) -> None:
        """One need not make room after all."""
        self.evicted = [one for one in self.evicted if one.id != alloc.id]
        self.stops.pop(alloc.id, None)
        for position, placed in enumerate(self.placements):
            if alloc.id in (placed.preempted_allocations or ()):
                left = [one for one in placed.preempted_allocations or () if one != alloc.id]
                self.placements[position] = msgspec.structs.replace(
                    placed, preempted_allocations=left or None
                )
                self.preemptions[placed.task_group] -= 1

    def take_back_evictions(self) -> None:
        """Nobody makes room after all."""
        for alloc in self.evicted:
            self.stops.pop(alloc.id, None)
        self.evicted = []
        self.preemptions = {}


def new_allocation(
    evaluation: Evaluation,
    job: Job,
    group: str,
    name: str,
    choice: Choice,
    *,
    alloc_id: str,
    deployment_id: str = "",
    previous_id: str = "",
    tracker: RescheduleTracker | None = None,
) -> Allocation:
    """Return the allocation that a choice of node leads to; its job is the plan's, its times come when applied."""
    grant, node = choice.grant, choice.state.node
    return Allocation(
        id=alloc_id,
        namespace=job.namespace,
        eval_id=evaluation.id,
        name=name,
        node_id=node.id,
        node_name=node.name,
        job_id=job.id,
        task_group=group,
        resources=grant.total,
        task_resources=grant.tasks,
        allocated_resources=grant.allocated,
        shared_resources=grant.shared,
        metrics=choice.metrics,
        desired_status="run",
        client_status="pending",
        deployment_id=deployment_id,
        previous_allocation=previous_id,
        reschedule_tracker=tracker,
        preempted_allocations=[evicted.id for evicted in choice.evicted] or None,
    )


def conclude(
    evaluation: Evaluation,
    snapshot: Snapshot,
    job: Job | None,
    outcome: Outcome,
    *,
    now_ns: int,
    entropy: Entropy,
    dry_run: bool,
) -> Decision:
    """Return the decision. dry_run: evaluations carry no snapshot index, as a plan's answer has it."""
    index = 0 if dry_run else snapshot.index
    for name, number in outcome.preemptions.items():
        known = outcome.updates.get(name, DesiredUpdates())
        outcome.updates[name] = msgspec.structs.replace(known, preemptions=number)
    shown = outcome.evicted if evaluation.annotate_plan else []
    annotations = PlanAnnotations(
        desired_tg_updates=outcome.updates or None,
        preempted_allocs=[_stub(alloc) for alloc in shown] or None,
    )
    ended = msgspec.structs.replace(
        evaluation,
        status="complete",
        status_description="",
        deployment_id=outcome.deployment.id if outcome.deployment else evaluation.deployment_id,
        failed_tg_allocs=outcome.failed or None,
        plan_annotations=annotations,
        queued_allocations=outcome.queued or None,
        next_eval=outcome.follow_ups[0].id if outcome.follow_ups else evaluation.next_eval,
        snapshot_index=index,
        modify_time=now_ns,
    )
    made = list(outcome.follow_ups)
    if outcome.failed:
        eligibility = _eligibility(outcome.feasibilities)
        if evaluation.triggered_by in _WOKEN or evaluation.status == "blocked":
            ended = reblocked(
                ended, eligibility, outcome.failed, snapshot_index=index, now_ns=now_ns
            )
        else:
            waiting = blocked(
                evaluation,
                eligibility,
                outcome.failed,
                snapshot_index=index,
                now_ns=now_ns,
                entropy=entropy,
            )
            ended = msgspec.structs.replace(ended, blocked_eval=waiting.id)
            made.append(waiting)
    evaluations = [ended, *made]
    return Decision(
        plan=_plan(evaluation, snapshot, job, outcome, evaluations),
        evaluations=evaluations,
        annotations=annotations,
        failed_tg_allocs=outcome.failed,
        queued=outcome.queued,
    )


def _plan(
    evaluation: Evaluation,
    snapshot: Snapshot,
    job: Job | None,
    outcome: Outcome,
    evaluations: list[Evaluation],
) -> Plan | None:
    changes = outcome.placements or outcome.stops or outcome.deployment_updates
    if not changes and not outcome.new_deployment:
        return None
    reference = None
    if job is not None and outcome.placements:
        reference = JobRef(namespace=job.namespace, job_id=job.id, version=job.version)
    return Plan(
        eval_id=evaluation.id,
        priority=evaluation.priority,
        snapshot_index=snapshot.index,
        all_at_once=job.all_at_once if job is not None else False,
        job=reference,
        placements=outcome.placements,
        stops=list(outcome.stops.values()),
        deployment=outcome.deployment if outcome.new_deployment else None,
        deployment_updates=outcome.deployment_updates,
        evaluations=evaluations,
    )


def _stub(alloc: Allocation) -> AllocationListStub:
    """Who would be evicted, as a plan's answer tells it."""
    return AllocationListStub(
        id=alloc.id,
        eval_id=alloc.eval_id,
        name=alloc.name,
        namespace=alloc.namespace,
        node_id=alloc.node_id,
        node_name=alloc.node_name,
        job_id=alloc.job_id,
        job_type=alloc.job.type if alloc.job else "",
        job_version=alloc.job.version if alloc.job else 0,
        task_group=alloc.task_group,
        desired_status="evict",
        client_status=alloc.client_status,
        create_index=alloc.create_index,
        modify_index=alloc.modify_index,
        create_time=alloc.create_time,
        modify_time=alloc.modify_time,
    )


def _eligibility(feasibilities: list[Feasibility]) -> ClassEligibility:
    """A class is eligible when one of the groups that failed could run on it."""
    classes: dict[str, bool] = {}
    escaped = False
    for one in feasibilities:
        escaped = escaped or one.escaped
        for name, eligible in one.eligibility.items():
            classes[name] = classes.get(name, False) or eligible
    return ClassEligibility(classes, escaped)
