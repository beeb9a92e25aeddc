"""Job.Explain, Job.ExplainChange and Eval.Explain: why a job is placed as it is, or is not."""

from __future__ import annotations

import msgspec

from nomadpy.errors import InvalidRequestError
from nomadpy.models.calls import JobWrite, Read
from nomadpy.models.envelope import Answer
from nomadpy.models.explanation import JobExplanation
from nomadpy.rpc.dispatch import CallContext
from nomadpy.scheduler.explain import NODES_SHOWN, explain_job
from nomadpy.server.admission import admit
from nomadpy.server.endpoints.base import Services, written
from nomadpy.server.endpoints.job_plan import with_job
from nomadpy.server.query import Found, check_uuid
from nomadpy.state.store import Snapshot
from nomadpy.state.watch import Key

_MOST_NODES = 10_000


class Explain:
    """Handlers. They decide on a snapshot and change nothing."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._queries = services.queries
        services.router.register("Job.Explain", self.job)
        services.router.register("Job.ExplainChange", self.change)
        services.router.register("Eval.Explain", self.evaluation)

    async def job(self, _: CallContext, request: Read) -> Answer:
        """A registered job (flags: nodes, how many verdicts to list for a group)."""
        shown = _shown(request.flags.get("nodes", ""))

        def read(snapshot: Snapshot) -> Found:
            job = snapshot.job(request.options.namespace, request.id)
            if job is None:
                return Found(index=snapshot.table_index("jobs"), missing="job not found")
            index = snapshot.table_index("jobs", "nodes", "allocs", "evals")
            found = explain_job(job, snapshot, self._core.entropy, nodes_shown=shown)
            return Found(index=index, value=_with_waiting(snapshot, found))

        return await self._queries.answer(request.options, _TABLES, read)

    async def evaluation(self, _: CallContext, request: Read) -> Answer:
        """The job of an evaluation, as it stands now, with what the evaluation came to."""
        check_uuid(request.id, "eval")
        shown = _shown(request.flags.get("nodes", ""))

        def read(snapshot: Snapshot) -> Found:
            evaluation = snapshot.eval(request.id)
            if evaluation is None:
                return Found(index=snapshot.table_index("evals"), missing="eval not found")
            job = snapshot.job(evaluation.namespace, evaluation.job_id)
            if job is None:
                return Found(index=snapshot.table_index("jobs"), missing="job not found")
            index = snapshot.table_index("jobs", "nodes", "allocs", "evals")
            found = explain_job(job, snapshot, self._core.entropy, nodes_shown=shown)
            found = msgspec.structs.replace(
                found,
                eval_id=evaluation.id,
                eval_status=evaluation.status,
                eval_triggered_by=evaluation.triggered_by,
            )
            return Found(index=index, value=_with_waiting(snapshot, found))

        return await self._queries.answer(request.options, _TABLES, read)

    async def change(self, _: CallContext, request: JobWrite) -> Answer:
        """A job as it would be registered."""
        core = self._core
        snapshot = core.snapshot()
        job = admit(request.job, core.settings, snapshot, namespace=request.options.namespace).job
        trial = with_job(snapshot, job, now_ns=core.clock.now_ns())
        present = trial.job(job.namespace, job.id) or job
        return written(explain_job(present, trial, core.entropy), snapshot.index)


_TABLES: list[Key] = [("table", name) for name in ("jobs", "nodes", "allocs", "evals")]


def _shown(text: str) -> int:
    if not text:
        return NODES_SHOWN
    if not text.isdecimal() or int(text) > _MOST_NODES:
        raise InvalidRequestError(f"nodes must be a number from 0 to {_MOST_NODES}")
    return int(text)


def _with_waiting(snapshot: Snapshot, found: JobExplanation) -> JobExplanation:
    """With the blocked evaluation that will place what is missing, if there is one."""
    for one in snapshot.evals_by_job(found.namespace, found.job_id):
        if one.status == "blocked":
            return msgspec.structs.replace(found, waiting_eval=one.id)
    return found
