"""Job.Plan: what registering a job would do, without doing it."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.errors import ValidationError
from nomadpy.jobspec.diff import annotate, diff_jobs
from nomadpy.models.calls import JobWrite
from nomadpy.models.envelope import Answer
from nomadpy.models.replies import JobPlanResponse
from nomadpy.rpc.dispatch import CallContext
from nomadpy.scheduler.schedule import schedule
from nomadpy.server import new_evaluations
from nomadpy.server.admission import admit
from nomadpy.server.endpoints.base import Services, written


class JobPlan:
    """The handler; it runs on the leader, on a snapshot in which the job is already registered."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        services.router.register("Job.Plan", self.plan)

    async def plan(self, _: CallContext, request: JobWrite) -> Answer:
        """Admit, diff and schedule the job on a snapshot that nobody else sees."""
        core = self._core
        snapshot = core.snapshot()
        admitted = admit(request.job, core.settings, snapshot)
        job = admitted.job
        if not new_evaluations.is_schedulable(job) and job.type not in ("batch", "sysbatch"):
            raise ValidationError("only batch jobs can be periodic or parameterized")
        present = snapshot.job(job.namespace, job.id)
        now_ns = core.clock.now_ns()
        evaluation = new_evaluations.for_job(
            job, "job-register", entropy=core.entropy, now_ns=now_ns
        )
        evaluation = msgspec.structs.replace(evaluation, annotate_plan=True)
        trial = snapshot.with_job(job)
        fields: dict[str, Any] = {}
        if new_evaluations.is_schedulable(job):
            decision = schedule(
                evaluation, trial, now_ns=now_ns, entropy=core.entropy, dry_run=True
            )
            fields["annotations"] = decision.annotations
            fields["failed_tg_allocs"] = decision.failed_tg_allocs or None
            fields["created_evals"] = [
                e for e in decision.evaluations if e.id != evaluation.id and e.status == "pending"
            ] or None
        if request.diff:
            diff = diff_jobs(present, job)
            fields["diff"] = annotate(diff, fields.get("annotations"))
        # The index of the job, or 0 where there is none yet: what an enforced registration must name.
        index = present.job_modify_index if present is not None else 0
        return written(
            JobPlanResponse(
                job_modify_index=index, warnings=admitted.warnings, index=index, **fields
            ),
            index,
        )
