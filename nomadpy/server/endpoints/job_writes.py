"""Job.Register, Job.Deregister and every other change of a job."""

from __future__ import annotations

import msgspec

from nomadpy.errors import InvalidRequestError, NotFoundError, ValidationError
from nomadpy.fsm import commands
from nomadpy.models import calls
from nomadpy.models.allocation import DesiredTransition
from nomadpy.models.envelope import ALL_NAMESPACES, Answer, WriteOptions
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job
from nomadpy.models.replies import (
    JobDeregisterResponse,
    JobRegisterResponse,
    JobStabilityResponse,
    JobValidateResponse,
)
from nomadpy.models.scaling import ScalingEvent
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server import new_evaluations
from nomadpy.server.admission import admit
from nomadpy.server.endpoints.base import Services, evaluation_of, written

ACTIVE_DEPLOYMENT = ("initializing", "pending", "blocked", "unblocking", "running", "paused")


class JobWrites:
    """Handlers; all run on the leader."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        register = services.router.register
        register("Job.Register", self.register)
        register("Job.Validate", self.validate)
        register("Job.Deregister", self.deregister)
        register("Job.Evaluate", self.evaluate)
        register("Job.Scale", self.scale)
        register("Job.Revert", self.revert)
        register("Job.Stability", self.stability)
        register("Job.Tag", self.tag)

    async def register(self, _: CallContext, request: calls.JobWrite) -> Answer:
        """Create a job or give it a new version, and have it evaluated."""
        core = self._core
        snapshot = core.snapshot()
        admitted = admit(
            request.job,
            core.settings,
            snapshot,
            namespace=request.options.namespace,
            new_id=core.entropy.uuid,
        )
        job = admitted.job
        if snapshot.scheduler_config().reject_job_registration:
            raise ValidationError("job registration is currently disabled by the operator")
        present = snapshot.job(job.namespace, job.id)
        if present is not None and request.preserve_counts:
            job = keep_counts(job, present)
        now_ns = core.clock.now_ns()
        job = msgspec.structs.replace(job, submit_time=now_ns, status="pending", stop=job.stop)
        return await self._put(
            job,
            request.options,
            submission=request.submission,
            enforce_index=request.enforce_index,
            eval_priority=request.eval_priority,
            warnings=admitted.warnings,
        )

    async def _put(
        self,
        job: Job,
        options: WriteOptions,
        *,
        submission: object = None,
        enforce_index: int | None = None,
        eval_priority: int = 0,
        warnings: str = "",
    ) -> Answer:
        core = self._core
        evaluation: Evaluation | None = None
        if new_evaluations.is_schedulable(job):
            evaluation = new_evaluations.for_job(
                job,
                "job-register",
                entropy=core.entropy,
                now_ns=core.clock.now_ns(),
                priority=eval_priority,
            )
        applied = await core.propose(
            commands.JobRegister(
                job=job,
                submission=submission,  # type: ignore[arg-type]
                evaluation=evaluation,
                enforce_index=enforce_index,
            ),
            request_id=options.request_id,
        )
        made = evaluation_of(core.snapshot(), evaluation, applied.index)
        return written(
            JobRegisterResponse(
                eval_id=made,
                eval_create_index=applied.index if made else 0,
                job_modify_index=applied.value["job_modify_index"],
                warnings=warnings,
                index=applied.index,
            ),
            applied.index,
        )

    async def validate(self, _: CallContext, request: calls.JobWrite) -> Answer:
        """Say every fault of a job; nothing is stored."""
        warnings = ""
        faults: list[str] = []
        text = ""
        try:
            warnings = admit(
                request.job,
                self._core.settings,
                self._core.snapshot(),
                namespace=request.options.namespace,
            ).warnings
        except (InvalidRequestError, ValidationError) as error:
            text = error.message
            faults = [line.strip()[2:] for line in text.splitlines() if line.strip()[:2] == "* "]
        return written(
            JobValidateResponse(
                driver_config_validated=True,
                validation_errors=faults or None,
                error=text,
                warnings=warnings,
            )
        )

    async def deregister(self, _: CallContext, request: calls.JobDeregister) -> Answer:
        """Stop a job, or remove it wholly; its allocations are stopped by an evaluation."""
        core = self._core
        namespace = single(request.options)
        job = core.snapshot().job(namespace, request.job_id)
        if job is None:
            return written(JobDeregisterResponse())
        evaluation: Evaluation | None = None
        if new_evaluations.is_schedulable(job):
            evaluation = new_evaluations.for_job(
                job,
                "job-deregister",
                entropy=core.entropy,
                now_ns=core.clock.now_ns(),
                priority=request.eval_priority,
            )
        applied = await core.propose(
            commands.JobDeregister(
                namespace=namespace,
                job_id=request.job_id,
                purge=request.purge,
                evaluation=evaluation,
            ),
            request_id=request.options.request_id,
        )
        made = evaluation_of(core.snapshot(), evaluation, applied.index)
        return written(
            JobDeregisterResponse(
                eval_id=made,
                eval_create_index=applied.index if made else 0,
                job_modify_index=applied.index,
                index=applied.index,
            ),
            applied.index,
        )

    async def evaluate(self, _: CallContext, request: calls.JobEvaluate) -> Answer:
        """Have a job looked at again; force_reschedule gives its failed allocations another try at once."""
        core = self._core
        job = self._job(request.options, request.job_id)
        if job.periodic is not None and job.periodic.enabled:
            raise ValidationError("can't evaluate periodic job")
        if job.parameterized_job is not None and not job.dispatched:
            raise ValidationError("can't evaluate parameterized job")
        evaluation = new_evaluations.for_job(
            job, "job-register", entropy=core.entropy, now_ns=core.clock.now_ns()
        )
        forced = {}
        if request.force_reschedule:
            forced = {
                a.id: DesiredTransition(force_reschedule=True)
                for a in core.snapshot().allocs_by_job(job.namespace, job.id)
                if a.client_status == "failed" and a.desired_status == "run"
            }
        applied = await core.propose(
            commands.AllocTransition(transitions=forced, evaluations=[evaluation]),
            request_id=request.options.request_id,
        )
        return written(
            JobRegisterResponse(
                eval_id=evaluation_of(core.snapshot(), evaluation, applied.index),
                eval_create_index=applied.index,
                job_modify_index=job.job_modify_index,
                index=applied.index,
            ),
            applied.index,
        )

    async def scale(self, _: CallContext, request: calls.JobScale) -> Answer:
        """Change the count of one group, or record an event only."""
        core = self._core
        namespace = single(request.options)
        snapshot = core.snapshot()
        job = snapshot.job(namespace, request.job_id)
        if job is None:
            raise NotFoundError(f'job "{request.job_id}" not found')
        if request.count is not None and request.count < 0:
            raise InvalidRequestError("scaling action count can't be negative")
        if request.count is not None and request.error:
            raise InvalidRequestError("scaling action should not contain count if error is true")
        if request.count is not None and job.type in new_evaluations.SYSTEM_TYPES:
            raise InvalidRequestError(f'cannot scale jobs of type "{job.type}"')
        group = next((g for g in job.task_groups or [] if g.name == request.group), None)
        if group is None:
            raise InvalidRequestError(
                f'task group "{request.group}" specified for scaling does not exist in job'
            )
        now_ns = core.clock.now_ns()
        changed: Job | None = None
        evaluation: Evaluation | None = None
        if request.count is not None:
            deployment = snapshot.latest_deployment(namespace, job.id)
            if deployment is not None and deployment.status in ACTIVE_DEPLOYMENT:
                raise InvalidRequestError("job scaling blocked due to active deployment")
            check_scaling_bounds(group.scaling, request.count)
            groups = [
                msgspec.structs.replace(g, count=request.count) if g is group else g
                for g in job.task_groups or []
            ]
            changed = msgspec.structs.replace(job, task_groups=groups, submit_time=now_ns)
            if new_evaluations.is_schedulable(job):
                evaluation = new_evaluations.for_job(
                    changed, "job-scaling", entropy=core.entropy, now_ns=now_ns
                )
        event = ScalingEvent(
            time=now_ns,
            count=request.count,
            previous_count=group.count,
            message=request.message,
            error=request.error,
            meta=request.meta,
            eval_id=evaluation.id if evaluation else None,
        )
        applied = await core.propose(
            commands.JobScale(
                namespace=namespace,
                job_id=job.id,
                group=request.group,
                job=changed,
                event=event,
                evaluation=evaluation,
                enforce_index=request.enforce_index,
            ),
            request_id=request.options.request_id,
        )
        return written(
            JobRegisterResponse(
                eval_id=evaluation_of(core.snapshot(), evaluation, applied.index),
                eval_create_index=applied.index if evaluation else 0,
                job_modify_index=applied.value["job_modify_index"],
                known_leader=True,
                index=applied.index,
            ),
            applied.index,
        )

    async def revert(self, _: CallContext, request: calls.JobRevert) -> Answer:
        """Make an earlier version the newest."""
        core = self._core
        job = self._job(request.options, request.job_id)
        snapshot = core.snapshot()
        version = request.version
        if request.tag_name:
            tagged = next(
                (
                    v.version
                    for v in snapshot.job_versions(job.namespace, job.id)
                    if v.version_tag is not None and v.version_tag.name == request.tag_name
                ),
                None,
            )
            if tagged is None:
                raise NotFoundError(f'tag "{request.tag_name}" not found for job "{job.id}"')
            version = tagged
        if version == job.version:
            raise ValidationError("can't revert to current version")
        earlier = snapshot.job_version(job.namespace, job.id, version)
        if earlier is None:
            raise ValidationError(
                f'job "{job.id}" in namespace "{job.namespace}" at version {version} not found'
            )
        prior = request.enforce_prior_version
        if prior is not None and prior != job.version:
            raise ValidationError(
                f"Current job has version {job.version}; enforcing version {prior}"
            )
        revived = msgspec.structs.replace(
            earlier,
            stop=False,
            stable=False,
            version_tag=None,
            status="pending",
            submit_time=core.clock.now_ns(),
        )
        return await self._put(
            revived,
            request.options,
            enforce_index=job.job_modify_index if prior is not None else None,
        )

    async def stability(self, _: CallContext, request: calls.JobStability) -> Answer:
        """Mark a version stable or not."""
        job = self._job(request.options, request.job_id)
        applied = await self._core.propose(
            commands.JobStability(
                namespace=job.namespace,
                job_id=job.id,
                version=request.version,
                stable=request.stable,
            ),
            request_id=request.options.request_id,
        )
        return written(JobStabilityResponse(index=applied.index), applied.index)

    async def tag(self, _: CallContext, request: calls.JobTag) -> Answer:
        """Name a version, so that it is kept; or take the name away."""
        core = self._core
        job = self._job(request.options, request.job_id)
        version = request.version if request.version is not None else job.version
        applied = await core.propose(
            commands.JobTag(
                namespace=job.namespace,
                job_id=job.id,
                version=None if request.unset else version,
                name=request.name,
                description=request.description,
                unset=request.unset,
            ),
            request_id=request.options.request_id,
        )
        tagged = core.snapshot().job_version(job.namespace, job.id, version)
        mark = tagged.version_tag if tagged is not None else None
        body = {
            "Name": "" if request.unset else request.name,
            "Description": "" if request.unset else request.description,
            "TaggedTime": mark.tagged_time if mark is not None else 0,
            "Index": applied.index,
            "KnownLeader": False,
            "LastContact": 0,
            "NextToken": "",
        }
        # This answer has no index header on the wire.
        return written(body)

    def _job(self, options: WriteOptions, job_id: str) -> Job:
        namespace = single(options)
        job = self._core.snapshot().job(namespace, job_id)
        if job is None:
            raise NotFoundError("job not found")
        return job


def single(options: WriteOptions) -> str:
    """The one namespace a write goes to."""
    if options.namespace == ALL_NAMESPACES:
        raise InvalidRequestError("a write needs one namespace, not all of them")
    return options.namespace


def keep_counts(job: Job, present: Job) -> Job:
    """The new job with the counts that the present one's groups have."""
    counts = {group.name: group.count for group in present.task_groups or []}
    groups = [
        msgspec.structs.replace(group, count=counts.get(group.name, group.count))
        for group in job.task_groups or []
    ]
    return msgspec.structs.replace(job, task_groups=groups)


def check_scaling_bounds(policy: object, count: int) -> None:
    """Raise InvalidRequestError when a scaling policy forbids the count."""
    low = getattr(policy, "min", None)
    high = getattr(policy, "max", None)
    if low is not None and count < low:
        raise InvalidRequestError(
            f"group count was less than scaling policy minimum: {count} < {low}"
        )
    if high is not None and count > high:
        raise InvalidRequestError(
            f"group count was greater than scaling policy maximum: {count} > {high}"
        )
