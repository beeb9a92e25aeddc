"""Eval.* and Deployment.*: reads, and what an operator may do to a deployment."""

from __future__ import annotations

import msgspec

from nomadpy.errors import InvalidRequestError, NotFoundError, ValidationError
from nomadpy.fsm import commands
from nomadpy.models import calls
from nomadpy.models.deployment import Deployment
from nomadpy.models.envelope import ALL_NAMESPACES, Answer
from nomadpy.models.evaluation import Evaluation, EvaluationStub
from nomadpy.models.replies import DeploymentUpdateResponse, EvalCountResponse
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server import new_evaluations
from nomadpy.server.endpoints.base import Services, evaluation_of, written
from nomadpy.server.endpoints.job_reads import truth
from nomadpy.server.endpoints.stubs import alloc_stub
from nomadpy.server.query import Found, check_uuid, check_uuid_prefix, page
from nomadpy.state.store import Snapshot

TERMINAL_DEPLOYMENT = ("successful", "failed", "cancelled")


class Evals:
    """Handlers for evaluations."""

    def __init__(self, services: Services) -> None:
        self._queries = services.queries
        register = services.router.register
        register("Eval.List", self.list)
        register("Eval.Count", self.count)
        register("Eval.Get", self.get)
        register("Eval.Allocations", self.allocations)

    async def list(self, _: CallContext, request: calls.Read) -> Answer:
        """Evaluations, oldest first; with a prefix by id."""
        self._check(request)

        def read(snapshot: Snapshot) -> Found:
            prefix = request.options.prefix
            found = page(
                _selected(snapshot, request),
                request.options,
                token=lambda e: e.id if prefix else (e.create_index, e.id),
            )
            return Found(
                index=snapshot.table_index("evals"),
                value=found.items,
                next_token=found.next_token,
            )

        return await self._queries.answer(request.options, [("table", "evals")], read)

    async def count(self, _: CallContext, request: calls.Read) -> Answer:
        """How many evaluations a list would have."""
        self._check(request)

        def read(snapshot: Snapshot) -> Found:
            found = page(
                _selected(snapshot, request),
                request.options,
                token=lambda e: (e.create_index, e.id),
            )
            index = snapshot.table_index("evals")
            return Found(
                index=index,
                value=EvalCountResponse(count=len(found.items), index=index, known_leader=True),
            )

        return await self._queries.answer(request.options, [("table", "evals")], read)

    async def get(self, _: CallContext, request: calls.Read) -> Answer:
        """One evaluation; with related=true the others of its chain."""
        check_uuid(request.id, "eval")
        related = truth(request.flags, "related")

        def read(snapshot: Snapshot) -> Found:
            evaluation = snapshot.eval(request.id)
            if evaluation is None:
                return Found(index=snapshot.table_index("evals"), missing="eval not found")
            if related:
                stubs = [eval_stub(e) for e in chain(snapshot, evaluation)]
                shown = msgspec.structs.replace(evaluation, related_evals=stubs or None)
                return Found(index=evaluation.modify_index, value=shown)
            return Found(index=evaluation.modify_index, value=evaluation)

        return await self._queries.answer(request.options, [("table", "evals")], read)

    async def allocations(self, _: CallContext, request: calls.Read) -> Answer:
        """Rows of the allocations that the evaluation placed."""
        check_uuid(request.id, "eval")

        def read(snapshot: Snapshot) -> Found:
            rows = [alloc_stub(a) for a in snapshot.allocs_by_eval(request.id)]
            return Found(index=snapshot.table_index("allocs"), value=rows)

        return await self._queries.answer(request.options, [("table", "allocs")], read)

    def _check(self, request: calls.Read) -> None:
        if request.options.prefix:
            check_uuid_prefix(request.options.prefix, "eval")
        narrowed = request.flags.get("job") or request.flags.get("status")
        if request.options.filter and narrowed:
            raise InvalidRequestError(
                "Filter expression cannot be used with other filter parameters"
            )


def _selected(snapshot: Snapshot, request: calls.Read) -> list[Evaluation]:
    options = request.options
    if options.prefix:
        evaluations = list(snapshot.evals_by_prefix(options.prefix))
    else:
        evaluations = sorted(snapshot.evals(), key=lambda e: (e.create_index, e.id))
    job, status = request.flags.get("job"), request.flags.get("status")
    return [
        e
        for e in evaluations
        if options.namespace in (ALL_NAMESPACES, e.namespace)
        and (not job or e.job_id == job)
        and (not status or e.status == status)
    ]


def chain(snapshot: Snapshot, evaluation: Evaluation) -> list[Evaluation]:
    """The evaluations before and after one, by its links."""
    found: dict[str, Evaluation] = {}
    todo = [evaluation.previous_eval, evaluation.next_eval, evaluation.blocked_eval]
    while todo:
        identity = todo.pop()
        other = snapshot.eval(identity) if identity else None
        if other is None or other.id == evaluation.id or other.id in found:
            continue
        found[other.id] = other
        todo += [other.previous_eval, other.next_eval, other.blocked_eval]
    return sorted(found.values(), key=lambda e: (e.create_index, e.id))


def eval_stub(evaluation: Evaluation) -> EvaluationStub:
    """The short form that related evaluations have."""
    names = [f.name for f in msgspec.structs.fields(EvaluationStub)]
    return EvaluationStub(**{name: getattr(evaluation, name) for name in names})


class Deployments:
    """Handlers for deployments."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._queries = services.queries
        register = services.router.register
        register("Deployment.List", self.list)
        register("Deployment.Get", self.get)
        register("Deployment.Allocations", self.allocations)
        register("Deployment.Fail", self.fail)
        register("Deployment.Pause", self.pause)
        register("Deployment.Promote", self.promote)

    async def list(self, _: CallContext, request: calls.Read) -> Answer:
        """Deployments, oldest first."""
        options = request.options
        if options.prefix:
            check_uuid_prefix(options.prefix, "deployment")

        def read(snapshot: Snapshot) -> Found:
            deployments = sorted(snapshot.deployments(), key=lambda d: (d.create_index, d.id))
            chosen = [
                d
                for d in deployments
                if options.namespace in (ALL_NAMESPACES, d.namespace)
                and d.id.startswith(options.prefix)
            ]
            found = page(chosen, options, token=lambda d: (d.create_index, d.id))
            return Found(
                index=snapshot.table_index("deployments"),
                value=found.items,
                next_token=found.next_token,
            )

        return await self._queries.answer(options, [("table", "deployments")], read)

    async def get(self, _: CallContext, request: calls.Read) -> Answer:
        """One deployment."""
        check_uuid(request.id, "deployment")

        def read(snapshot: Snapshot) -> Found:
            deployment = snapshot.deployment(request.id)
            if deployment is None:
                index = snapshot.table_index("deployments")
                return Found(index=index, missing="deployment not found")
            return Found(index=deployment.modify_index, value=deployment)

        return await self._queries.answer(request.options, [("table", "deployments")], read)

    async def allocations(self, _: CallContext, request: calls.Read) -> Answer:
        """Rows of the deployment's allocations."""
        check_uuid(request.id, "deployment")

        def read(snapshot: Snapshot) -> Found:
            rows = [alloc_stub(a) for a in snapshot.allocs_by_deployment(request.id)]
            return Found(index=snapshot.table_index("allocs"), value=rows)

        return await self._queries.answer(request.options, [("table", "allocs")], read)

    async def fail(self, _: CallContext, request: calls.Write) -> Answer:
        """Mark a deployment failed; its rolling stops."""
        deployment = self._deployment(request.id)
        if deployment.status in TERMINAL_DEPLOYMENT:
            raise ValidationError("can't fail terminal deployment")
        return await self._update(request, deployment, "failed", "Deployment marked as failed")

    async def pause(self, _: CallContext, request: calls.Write) -> Answer:
        """Hold a deployment, or let it go on (flags: pause=true|false)."""
        deployment = self._deployment(request.id)
        pause = truth(request.flags, "pause")
        if deployment.status in TERMINAL_DEPLOYMENT:
            raise ValidationError(f"can't {'pause' if pause else 'resume'} terminal deployment")
        if pause:
            return await self._update(request, deployment, "paused", "Deployment is paused")
        return await self._update(request, deployment, "running", "Deployment is running")

    async def promote(self, _: CallContext, request: calls.DeploymentPromoteWrite) -> Answer:
        """Let canaries take the place of what they stand beside."""
        core = self._core
        deployment = self._deployment(request.deployment_id)
        if deployment.status in TERMINAL_DEPLOYMENT:
            raise ValidationError("can't promote terminal deployment")
        job = core.snapshot().job(deployment.namespace, deployment.job_id)
        evaluation = None
        if job is not None:
            evaluation = new_evaluations.for_job(
                job,
                "deployment-watcher",
                entropy=core.entropy,
                now_ns=core.clock.now_ns(),
                deployment_id=deployment.id,
            )
        applied = await core.propose(
            commands.DeploymentPromote(
                deployment_id=deployment.id, groups=request.groups, evaluation=evaluation
            ),
            request_id=request.options.request_id,
        )
        return self._updated(evaluation, applied.index)

    async def _update(
        self, request: calls.Write, deployment: Deployment, status: str, description: str
    ) -> Answer:
        core = self._core
        job = core.snapshot().job(deployment.namespace, deployment.job_id)
        evaluation: Evaluation | None = None
        if job is not None and status != "paused":
            evaluation = new_evaluations.for_job(
                job,
                "deployment-watcher",
                entropy=core.entropy,
                now_ns=core.clock.now_ns(),
                deployment_id=deployment.id,
            )
        applied = await core.propose(
            commands.DeploymentUpdate(
                deployment_id=deployment.id,
                status=status,
                description=description,
                evaluation=evaluation,
                job=None,
            ),
            request_id=request.options.request_id,
        )
        return self._updated(evaluation, applied.index)

    def _updated(self, evaluation: Evaluation | None, index: int) -> Answer:
        return written(
            DeploymentUpdateResponse(
                eval_id=evaluation_of(self._core.snapshot(), evaluation, index),
                eval_create_index=index if evaluation else 0,
                deployment_modify_index=index,
                index=index,
            ),
            index,
        )

    def _deployment(self, deployment_id: str) -> Deployment:
        check_uuid(deployment_id, "deployment")
        deployment = self._core.snapshot().deployment(deployment_id)
        if deployment is None:
            raise NotFoundError("deployment not found")
        return deployment
