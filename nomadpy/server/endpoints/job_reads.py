"""Job.List, Job.Get and all that is read of one job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nomadpy.jobspec.diff import diff_jobs
from nomadpy.models.allocation import Allocation
from nomadpy.models.calls import Read
from nomadpy.models.deployment import Deployment
from nomadpy.models.envelope import ALL_NAMESPACES, Answer, QueryOptions
from nomadpy.models.job import Job, TaskGroupScaleStatus
from nomadpy.models.replies import JobScaleStatusResponse, JobVersionsResponse
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server.endpoints.base import Services
from nomadpy.server.endpoints.stubs import alloc_stub, job_stub
from nomadpy.server.query import Found, page
from nomadpy.state.store import Snapshot
from nomadpy.state.watch import Key

ACTIVE = ("initializing", "pending", "blocked", "unblocking", "running", "paused")


def truth(flags: dict[str, str], name: str) -> bool:
    """A boolean query parameter; bare means true."""
    return name in flags and flags[name].lower() not in ("0", "false", "f")


class JobReads:
    """Handlers."""

    def __init__(self, services: Services) -> None:
        self._queries = services.queries
        register = services.router.register
        register("Job.List", self.list)
        register("Job.Get", self.get)
        register("Job.Statuses", self.statuses)
        register("Job.Summary", self.summary)
        register("Job.Allocations", self.allocations)
        register("Job.Evaluations", self.evaluations)
        register("Job.Deployments", self.deployments)
        register("Job.LatestDeployment", self.latest_deployment)
        register("Job.Versions", self.versions)
        register("Job.Submission", self.submission)
        register("Job.ScaleStatus", self.scale_status)
        register("Job.Services", self.services)
        register("Job.Actions", self.actions)

    async def list(self, _: CallContext, request: Read) -> Answer:
        """Rows of jobs in a namespace, or in all."""
        meta = truth(request.flags, "meta")

        def read(snapshot: Snapshot) -> Found:
            found = page(
                jobs_of(snapshot, request.options),
                request.options,
                token=lambda job: (job.namespace, job.id),
            )
            rows = [
                job_stub(job, snapshot.job_summary(job.namespace, job.id), meta=meta)
                for job in found.items
            ]
            return Found(
                index=snapshot.table_index("jobs", "job_summaries"),
                value=rows,
                next_token=found.next_token,
            )

        keys: list[Key] = [("table", "jobs"), ("table", "job_summaries")]
        return await self._queries.answer(request.options, keys, read)

    async def get(self, _: CallContext, request: Read) -> Answer:
        """One job."""

        def read(snapshot: Snapshot) -> Found:
            job = snapshot.job(request.options.namespace, request.id)
            if job is None:
                return Found(index=snapshot.table_index("jobs"), missing="job not found")
            return Found(index=job.modify_index, value=job)

        return await self._queries.answer(request.options, [("table", "jobs")], read)

    async def statuses(self, _: CallContext, request: Read) -> Answer:
        """What a dashboard shows of each job."""

        def read(snapshot: Snapshot) -> Found:
            parents = [job for job in jobs_of(snapshot, request.options) if not job.parent_id]
            # The newest change first. An index alone is no place: one entry may change several jobs.
            found = page(
                sorted(parents, key=_changed_at, reverse=True),
                request.options,
                token=_changed_at,
                descending=True,
            )
            rows = [job_status(snapshot, job) for job in found.items]
            index = snapshot.table_index("jobs", "allocs", "deployments")
            return Found(index=index, value=rows, next_token=found.next_token)

        keys: list[Key] = [("table", "jobs"), ("table", "allocs"), ("table", "deployments")]
        return await self._queries.answer(request.options, keys, read)

    async def summary(self, _: CallContext, request: Read) -> Answer:
        """How many allocations of each group stand where."""

        def read(snapshot: Snapshot) -> Found:
            summary = snapshot.job_summary(request.options.namespace, request.id)
            if summary is None:
                return Found(index=snapshot.table_index("job_summaries"), missing="job not found")
            return Found(index=summary.modify_index, value=summary)

        return await self._queries.answer(request.options, [("table", "job_summaries")], read)

    async def allocations(self, _: CallContext, request: Read) -> Answer:
        """Rows of the job's allocations; those of an earlier job of this name only with all=true."""
        everything = truth(request.flags, "all")

        def read(snapshot: Snapshot) -> Found:
            namespace = request.options.namespace
            job = snapshot.job(namespace, request.id)
            allocs = snapshot.allocs_by_job(namespace, request.id)
            if job is not None and not everything:
                allocs = [
                    a for a in allocs if a.job is None or a.job.create_index == job.create_index
                ]
            return Found(
                index=snapshot.table_index("allocs"), value=[alloc_stub(a) for a in allocs]
            )

        return await self._queries.answer(request.options, [("table", "allocs")], read)

    async def evaluations(self, _: CallContext, request: Read) -> Answer:
        """The job's evaluations."""
        return await self._of_job(request, "evals", lambda s, ns, i: list(s.evals_by_job(ns, i)))

    async def deployments(self, _: CallContext, request: Read) -> Answer:
        """The job's deployments; of an earlier job of this name only with all=true."""
        everything = truth(request.flags, "all")

        def select(snapshot: Snapshot, namespace: str, job_id: str) -> list[Deployment]:
            job = snapshot.job(namespace, job_id)
            return [
                d
                for d in snapshot.deployments_by_job(namespace, job_id)
                if everything or job is None or d.job_create_index == job.create_index
            ]

        return await self._of_job(request, "deployments", select)

    async def latest_deployment(self, _: CallContext, request: Read) -> Answer:
        """The newest deployment, or null."""
        return await self._of_job(
            request, "deployments", lambda s, ns, i: s.latest_deployment(ns, i)
        )

    async def _of_job(
        self, request: Read, table: str, select: Callable[[Snapshot, str, str], Any]
    ) -> Answer:
        def read(snapshot: Snapshot) -> Found:
            value = select(snapshot, request.options.namespace, request.id)
            return Found(index=snapshot.table_index(table), value=value)

        return await self._queries.answer(request.options, [("table", table)], read)

    async def versions(self, _: CallContext, request: Read) -> Answer:
        """Every version kept, newest first, with diffs between neighbours when asked."""
        with_diffs = truth(request.flags, "diffs")

        def read(snapshot: Snapshot) -> Found:
            versions = snapshot.job_versions(request.options.namespace, request.id)
            if not versions:
                index = snapshot.table_index("job_versions")
                return Found(index=index, missing="job versions not found")
            diffs = None
            if with_diffs and len(versions) > 1:
                pairs = zip(versions[1:], versions[:-1], strict=True)
                diffs = [diff_jobs(older, newer) for older, newer in pairs]
            index = max(version.modify_index for version in versions)
            return Found(
                index=index,
                value=JobVersionsResponse(
                    versions=versions, diffs=diffs, index=index, known_leader=True
                ),
            )

        return await self._queries.answer(request.options, [("table", "job_versions")], read)

    async def submission(self, _: CallContext, request: Read) -> Answer:
        """The text a version was submitted as."""
        version = int(request.flags.get("version", "0") or 0)

        def read(snapshot: Snapshot) -> Found:
            found = snapshot.job_submission(request.options.namespace, request.id, version)
            if found is None:
                index = snapshot.table_index("job_submissions")
                return Found(index=index, missing="job source not found")
            return Found(index=snapshot.table_index("job_submissions"), value=found)

        return await self._queries.answer(request.options, [("table", "job_submissions")], read)

    async def scale_status(self, _: CallContext, request: Read) -> Answer:
        """Counts of each group, wanted and there, and the record of scalings."""

        def read(snapshot: Snapshot) -> Found:
            namespace = request.options.namespace
            job = snapshot.job(namespace, request.id)
            if job is None:
                return Found(index=snapshot.table_index("jobs"), missing="job not found")
            index = max(
                job.modify_index, snapshot.table_index("allocs", "deployments", "scaling_events")
            )
            return Found(index=index, value=scale_status(snapshot, job))

        keys: list[Key] = [
            ("table", t) for t in ("jobs", "allocs", "deployments", "scaling_events")
        ]
        return await self._queries.answer(request.options, keys, read)

    async def services(self, _: CallContext, request: Read) -> Answer:
        """Registrations of the job's services; none before service discovery exists."""

        def read(snapshot: Snapshot) -> Found:
            return Found(index=snapshot.table_index("services"), value=[])

        return await self._queries.answer(request.options, [("table", "services")], read)

    async def actions(self, _: CallContext, request: Read) -> Answer:
        """The actions that the job's tasks offer."""

        def read(snapshot: Snapshot) -> Found:
            job = snapshot.job(request.options.namespace, request.id)
            rows = [
                {"Name": action.name, "TaskName": task.name, "TaskGroupName": group.name}
                for group in (job.task_groups if job else None) or []
                for task in group.tasks or []
                for action in task.actions or []
            ]
            return Found(index=job.modify_index if job else 0, value=rows)

        return await self._queries.answer(request.options, [("table", "jobs")], read)


def jobs_of(snapshot: Snapshot, options: QueryOptions) -> list[Job]:
    """The jobs that a list's namespace and prefix name, by namespace and id."""
    namespace = None if options.namespace == ALL_NAMESPACES else options.namespace
    if options.prefix and namespace is not None:
        return list(snapshot.jobs_by_prefix(namespace, options.prefix))
    return [j for j in snapshot.jobs(namespace) if j.id.startswith(options.prefix)]


def _changed_at(job: Job) -> tuple[int, str]:
    return job.modify_index, f"{job.namespace}.{job.id}"


def job_status(snapshot: Snapshot, job: Job) -> dict[str, Any]:
    """One row of /v1/jobs/statuses."""
    deployment = snapshot.latest_deployment(job.namespace, job.id)
    summary = None
    if deployment is not None:
        states = list((deployment.task_groups or {}).values())
        summary = {
            "ID": deployment.id,
            "IsActive": deployment.status in ACTIVE,
            "JobVersion": deployment.job_version,
            "Status": deployment.status,
            "StatusDescription": deployment.status_description,
            "AllAutoPromote": bool(states) and all(s.auto_promote for s in states),
            "RequiresPromotion": any(s.desired_canaries and not s.promoted for s in states),
        }
    allocs = [
        a
        for a in snapshot.allocs_by_job(job.namespace, job.id)
        if a.job is None or a.job.create_index == job.create_index
    ]
    return {
        "ID": job.id,
        "Name": job.name,
        "Namespace": job.namespace,
        "ParentID": job.parent_id,
        "Type": job.type,
        "Status": job.status,
        "NodePool": job.node_pool,
        "Datacenters": job.datacenters,
        "Priority": job.priority,
        "Version": job.version,
        "SubmitTime": job.submit_time,
        "ModifyIndex": job.modify_index,
        "Stop": job.stop,
        "IsPack": "pack.name" in (job.meta or {}),
        "GroupCountSum": sum(group.count for group in job.task_groups or []),
        "ChildStatuses": None,
        "LatestDeployment": summary,
        "Allocs": [_alloc_status(a) for a in allocs],
    }


def _alloc_status(alloc: Allocation) -> dict[str, Any]:
    health = alloc.deployment_status
    return {
        "ID": alloc.id,
        "Group": alloc.task_group,
        "ClientStatus": alloc.client_status,
        "NodeID": alloc.node_id,
        "JobVersion": alloc.job.version if alloc.job else 0,
        "FollowupEvalID": alloc.followup_eval_id,
        "HasPausedTask": any(s.paused for s in (alloc.task_states or {}).values()),
        "DeploymentStatus": {
            "Canary": bool(health and health.canary),
            "Healthy": health.healthy if health else None,
        },
    }


def scale_status(snapshot: Snapshot, job: Job) -> JobScaleStatusResponse:
    """The body of /v1/job/:id/scale."""
    deployment = snapshot.latest_deployment(job.namespace, job.id)
    states = (deployment.task_groups or {}) if deployment else {}
    events = snapshot.scaling_events(job.namespace, job.id)
    allocs = snapshot.allocs_by_job(job.namespace, job.id)
    groups: dict[str, TaskGroupScaleStatus] = {}
    for group in job.task_groups or []:
        state = states.get(group.name)
        running = sum(a.task_group == group.name and a.client_status == "running" for a in allocs)
        groups[group.name] = TaskGroupScaleStatus(
            desired=group.count,
            placed=state.placed_allocs if state else running,
            running=running,
            healthy=state.healthy_allocs if state else 0,
            unhealthy=state.unhealthy_allocs if state else 0,
            events=events.get(group.name) or None,
        )
    return JobScaleStatusResponse(
        job_id=job.id,
        namespace=job.namespace,
        job_create_index=job.create_index,
        job_modify_index=job.modify_index,
        job_stopped=job.stop,
        task_groups=groups,
    )
