"""Scheduler.Simulate and Scheduler.Rebalance: what would move, and moves that better the cluster."""

from __future__ import annotations

import msgspec

from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.fsm import commands
from nomadpy.models import calls
from nomadpy.models.allocation import DesiredTransition
from nomadpy.models.envelope import Answer
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.what_if import RebalanceRequest
from nomadpy.rpc.dispatch import CallContext
from nomadpy.scheduler.rebalance import PACK, SPREAD_OUT, rebalance
from nomadpy.scheduler.what_if import what_if
from nomadpy.server import new_evaluations
from nomadpy.server.admission import admit
from nomadpy.server.endpoints.base import Services, evaluations_of, written

_MOST_MOVES = 1_000


class WhatIf:
    """Handlers; they run on the leader."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        services.router.register("Scheduler.Simulate", self.simulate)
        services.router.register("Scheduler.Rebalance", self.rebalance)

    async def simulate(self, _: CallContext, call: calls.WhatIf) -> Answer:
        """What would come of changes; nothing is changed."""
        core = self._core
        snapshot = core.snapshot()
        changed = [
            admit(raw, core.settings, snapshot, namespace=str(raw.get("Namespace") or "")).job
            for raw in call.request.jobs or ()
        ]
        found = what_if(
            snapshot,
            call.request,
            changed,
            now_ns=core.clock.now_ns(),
            entropy=core.entropy,
        )
        return written(found, snapshot.index)

    async def rebalance(self, _: CallContext, call: calls.Rebalance) -> Answer:
        """Find moves, and unless it is a dry run have them made: each as a migration."""
        core, request = self._core, call.request
        _check(request)
        snapshot = core.snapshot()
        if request.job_id and snapshot.job(request.namespace or "default", request.job_id) is None:
            raise NotFoundError("job not found")
        found = rebalance(snapshot, request, entropy=core.entropy)
        moves = found.moves or []
        if request.dry_run or not moves:
            return written(found, snapshot.index)
        made: list[Evaluation] = []
        for key in dict.fromkeys((move.namespace, move.job_id) for move in moves):
            job = snapshot.job(*key)
            assert job is not None, "what is moved belongs to a job"
            made.append(
                new_evaluations.for_job(
                    job, "alloc-stop", entropy=core.entropy, now_ns=core.clock.now_ns()
                )
            )
        transitions = {
            move.alloc_id: DesiredTransition(migrate=True, reschedule=False) for move in moves
        }
        applied = await core.propose(
            commands.AllocTransition(transitions=transitions, evaluations=made),
            request_id=call.options.request_id,
        )
        ids = evaluations_of(core.snapshot(), made, applied.index)
        return written(
            msgspec.structs.replace(found, eval_ids=ids, index=applied.index), applied.index
        )


def _check(request: RebalanceRequest) -> None:
    if request.goal not in ("", PACK, SPREAD_OUT):
        raise InvalidRequestError(f"goal must be pack or spread, not {request.goal!r}")
    if not 0 < request.max_moves <= _MOST_MOVES:
        raise InvalidRequestError(f"MaxMoves must be from 1 to {_MOST_MOVES}")
    if request.max_per_job < 1:
        raise InvalidRequestError("MaxPerJob must be at least 1")
