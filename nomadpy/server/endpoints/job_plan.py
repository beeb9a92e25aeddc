"""Job.Plan: what registering a job would do, without doing it."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.errors import NomadError, ValidationError
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import Entry, JobRegister, encode_entry
from nomadpy.jobspec.diff import annotate, diff_jobs
from nomadpy.models.calls import JobWrite
from nomadpy.models.envelope import Answer
from nomadpy.models.job import Job
from nomadpy.models.replies import JobPlanResponse
from nomadpy.rpc.dispatch import CallContext
from nomadpy.scheduler.schedule import schedule
from nomadpy.server import new_evaluations
from nomadpy.server.admission import admit
from nomadpy.server.endpoints.base import Services, written
from nomadpy.state.store import Snapshot, StateStore


class JobPlan:
    """The handler; it runs on the leader, in a copy of the state where the job is registered."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        services.router.register("Job.Plan", self.plan)

    async def plan(self, _: CallContext, request: JobWrite) -> Answer:
        """Admit, diff and schedule the job where nobody else sees it."""
        core = self._core
        snapshot = core.snapshot()
        admitted = admit(request.job, core.settings, snapshot, namespace=request.options.namespace)
        job = admitted.job
        present = snapshot.job(job.namespace, job.id)
        now_ns = core.clock.now_ns()
        fields: dict[str, Any] = {}
        if new_evaluations.is_schedulable(job):
            evaluation = msgspec.structs.replace(
                new_evaluations.for_job(job, "job-register", entropy=core.entropy, now_ns=now_ns),
                annotate_plan=True,
            )
            decision = schedule(
                evaluation,
                with_job(snapshot, job, now_ns=now_ns),
                now_ns=now_ns,
                entropy=core.entropy,
                dry_run=True,
            )
            fields["annotations"] = decision.annotations
            fields["failed_tg_allocs"] = decision.failed_tg_allocs or None
            fields["created_evals"] = decision.created or None
        if request.diff:
            fields["diff"] = annotate(diff_jobs(present, job), fields.get("annotations"))
        # The index of the job, or 0 where there is none yet: what an enforced registration must name.
        index = present.job_modify_index if present is not None else 0
        return written(
            JobPlanResponse(
                job_modify_index=index, warnings=admitted.warnings, index=index, **fields
            ),
            index,
        )


def with_job(snapshot: Snapshot, job: Job, *, now_ns: int) -> Snapshot:
    """The state as registering the job would make it; the snapshot itself stays as it is."""
    trial = StateStore()
    trial.replace(snapshot)
    entry = Entry(
        command=JobRegister(job=job, submission=None, evaluation=None, enforce_index=None),
        now_ns=now_ns,
    )
    result = StateMachine(trial).apply(snapshot.index + 1, encode_entry(entry))
    if isinstance(result, NomadError):
        raise ValidationError(result.message)
    return trial.snapshot()
