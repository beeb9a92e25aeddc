"""Which evaluation is worked on next: ready, unacknowledged, delayed and failed evaluations.

In:      evaluations with status pending, as state learns of them.
Out:     to workers, one evaluation of a job at a time, fairly between namespaces and by priority within one (fair_queue.py);
         back again when a worker does not acknowledge.
Not here: evaluations that wait for capacity (blocked_evals.py); writing to the log (duties.py).

Pure: `now` (monotonic seconds) and tokens come in as arguments. Behaviour matched: Nomad's evaluation broker.
"""

from __future__ import annotations

import heapq

import msgspec

from nomadpy.models.evaluation import Evaluation
from nomadpy.models.gotime import to_ns
from nomadpy.server.leader.fair_queue import Cost, Entry, FairQueue

NACK_TIMEOUT_S = 60.0
DELIVERY_LIMIT = 3
NACK_FIRST_DELAY_S = 1.0
NACK_LATER_DELAY_S = 20.0
MAX_PENDING = 200_000


class _Unacked(msgspec.Struct):
    evaluation: Evaluation
    token: str
    deadline: float


class BrokerStats(msgspec.Struct, frozen=True, kw_only=True):
    """How many evaluations stand where."""

    ready: int
    unacked: int
    pending: int
    delayed: int
    failed: int


class EvalBroker:
    """The queues of the leader. Disabled (and empty) on every other server."""

    def __init__(
        self,
        *,
        nack_timeout_s: float = NACK_TIMEOUT_S,
        delivery_limit: int = DELIVERY_LIMIT,
        max_pending: int = MAX_PENDING,
        cost: Cost | None = None,
    ) -> None:
        """cost: of a turn, by which namespaces share the workers; None hands out by priority over all of them."""
        self._nack_timeout_s = nack_timeout_s
        self._delivery_limit = delivery_limit
        self._max_pending = max_pending
        self.overflowed = False
        self.enabled = False
        self._known: dict[str, int] = {}  # evaluation id -> deliveries so far
        self._ready = FairQueue(cost)
        self._newest = 0  # the highest create index so far
        self._evals: dict[str, Evaluation] = {}
        self._owner: dict[tuple[str, str], str] = {}  # job -> the evaluation that holds it
        self._waiting: dict[tuple[str, str], list[Entry]] = {}
        self._unacked: dict[str, _Unacked] = {}
        self._delayed: list[tuple[float, str]] = []
        self._failed: dict[str, Evaluation] = {}
        self._requeue: dict[str, Evaluation] = {}

    # -- in ---------------------------------------------------------------------------------------

    def set_enabled(self, enabled: bool) -> None:
        """Turn the broker on or off; off forgets everything (state has it all)."""
        self.enabled = enabled
        if not enabled:
            self.overflowed = False
            for queue in (
                self._known,
                self._evals,
                self._owner,
                self._waiting,
                self._unacked,
                self._failed,
                self._requeue,
            ):
                queue.clear()
            self._delayed.clear()
            self._ready.clear()
            self._newest = 0

    def enqueue(self, evaluation: Evaluation, *, now: float, now_ns: int) -> None:
        """Take a pending evaluation. One that is known is ignored, unless a worker has it: then it runs again after."""
        if not self.enabled:
            return
        if evaluation.id in self._known:
            if evaluation.id in self._unacked:
                self._requeue[evaluation.id] = evaluation
            return
        if len(self._known) >= self._max_pending:
            # State keeps it as pending, and the leader offers it again; see take_overflow.
            self.overflowed = True
            return
        self._known[evaluation.id] = 0
        self._evals[evaluation.id] = evaluation
        wait_s = evaluation.wait / 1e9
        if (until := to_ns(evaluation.wait_until)) > 0:
            # The moment holds over a change of leaders, which a length of time does not.
            wait_s = (until - now_ns) / 1e9
        if wait_s > 0:
            heapq.heappush(self._delayed, (now + wait_s, evaluation.id))
        else:
            self._make_ready(evaluation)

    def take_overflow(self) -> bool:
        """True once when evaluations were turned away and there is room again: then all pending ones are to be offered."""
        if not self.overflowed or len(self._known) >= self._max_pending // 2:
            return False
        self.overflowed = False
        return True

    def knows(self, eval_id: str) -> bool:
        """Whether the evaluation is anywhere in here."""
        return eval_id in self._known

    def forget_job(self, namespace: str, job_id: str) -> list[str]:
        """Drop what waits behind the job's running evaluation; returns the ids (they are to be cancelled)."""
        dropped = [entry[2] for entry in self._waiting.pop((namespace, job_id), [])]
        for eval_id in dropped:
            self._evals.pop(eval_id, None)
            self._known.pop(eval_id, None)
        return dropped

    def forget(self, eval_id: str) -> None:
        """Drop an evaluation that was deleted; one that a worker has is left to that worker."""
        evaluation = self._evals.get(eval_id)
        if evaluation is None or eval_id in self._unacked:
            return
        job = (evaluation.namespace, evaluation.job_id)
        del self._evals[eval_id]
        self._known.pop(eval_id, None)
        self._delayed = [entry for entry in self._delayed if entry[1] != eval_id]
        heapq.heapify(self._delayed)
        self._ready.discard(evaluation.type, evaluation.namespace, eval_id)
        queue = self._waiting.get(job, [])
        queue[:] = [entry for entry in queue if entry[2] != eval_id]
        heapq.heapify(queue)
        if not self._waiting.get(job):
            self._waiting.pop(job, None)
        self._release(evaluation)

    # -- out --------------------------------------------------------------------------------------

    def dequeue(self, types: list[str], token: str, *, now: float) -> Evaluation | None:
        """Hand out the next ready evaluation of these types; it must be acked with `token` in time."""
        eval_id = self._ready.pop(types)
        if eval_id is None:
            return None
        evaluation = self._evals[eval_id]
        self._known[evaluation.id] += 1
        self._unacked[evaluation.id] = _Unacked(evaluation, token, now + self._nack_timeout_s)
        return evaluation

    def is_outstanding(self, eval_id: str, token: str) -> bool:
        """True while the worker with this token may still act on the evaluation."""
        held = self._unacked.get(eval_id)
        return held is not None and held.token == token

    def extend(self, eval_id: str, token: str, *, now: float) -> bool:
        """Give a worker that is alive more time. False when the evaluation is no longer its own."""
        if not self.is_outstanding(eval_id, token):
            return False
        self._unacked[eval_id].deadline = now + self._nack_timeout_s
        return True

    def ack(self, eval_id: str, token: str, *, now: float, now_ns: int) -> bool:
        """The worker is done. The job's next evaluation becomes ready. False for a token that is not current."""
        if not self.is_outstanding(eval_id, token):
            return False
        evaluation = self._unacked.pop(eval_id).evaluation
        self._known.pop(eval_id, None)
        self._evals.pop(eval_id, None)
        self._release(evaluation)
        again = self._requeue.pop(eval_id, None)
        if again is not None:
            self.enqueue(again, now=now, now_ns=now_ns)
        return True

    def nack(self, eval_id: str, token: str, *, now: float) -> bool:
        """The worker could not. It is delivered again after a delay, or fails at the delivery limit."""
        if not self.is_outstanding(eval_id, token):
            return False
        self._give_back(self._unacked.pop(eval_id).evaluation, now=now)
        return True

    # -- time -------------------------------------------------------------------------------------

    def tick(self, *, now: float) -> None:
        """Move what is due: delayed evaluations become ready, silent workers lose theirs."""
        while self._delayed and self._delayed[0][0] <= now:
            _, eval_id = heapq.heappop(self._delayed)
            evaluation = self._evals.get(eval_id)
            if evaluation is not None:
                self._make_ready(evaluation)
        for eval_id in [k for k, held in self._unacked.items() if held.deadline <= now]:
            self._give_back(self._unacked.pop(eval_id).evaluation, now=now)

    def next_deadline(self) -> float | None:
        """When `tick` next has something to do."""
        times = [held.deadline for held in self._unacked.values()]
        if self._delayed:
            times.append(self._delayed[0][0])
        return min(times, default=None)

    def take_failed(self) -> list[Evaluation]:
        """Evaluations over the delivery limit; the leader marks them failed and makes follow-ups."""
        failed = list(self._failed.values())
        self._failed.clear()
        return failed

    def has_ready(self, types: list[str]) -> bool:
        """True when `dequeue` would return something."""
        return self._ready.has(types)

    def stats(self) -> BrokerStats:
        """Counts for metrics."""
        return BrokerStats(
            ready=len(self._ready),
            unacked=len(self._unacked),
            pending=sum(map(len, self._waiting.values())),
            delayed=len(self._delayed),
            failed=len(self._failed),
        )

    # -- within -----------------------------------------------------------------------------------

    def _make_ready(self, evaluation: Evaluation, *, behind: bool = False) -> None:
        """behind: it waited for another one of its job, and now stands behind what is ready; else a job with a thousand
        evaluations would have all of them before a job with one."""
        job = (evaluation.namespace, evaluation.job_id)
        self._newest = max(self._newest, evaluation.create_index)
        age = self._newest + 1 if behind else evaluation.create_index
        entry = (-evaluation.priority, age, evaluation.id)
        owner = self._owner.get(job)
        # Two evaluations of one job at a time would plan the same placements twice.
        if evaluation.job_id and owner is not None and owner != evaluation.id:
            heapq.heappush(self._waiting.setdefault(job, []), entry)
            return
        if evaluation.job_id:
            self._owner[job] = evaluation.id
        self._ready.push(evaluation.type, evaluation.namespace, entry)

    def _release(self, evaluation: Evaluation) -> None:
        job = (evaluation.namespace, evaluation.job_id)
        if self._owner.get(job) == evaluation.id:
            del self._owner[job]
        queue = self._waiting.get(job)
        if queue:
            _, _, eval_id = heapq.heappop(queue)
            if not queue:
                del self._waiting[job]
            self._make_ready(self._evals[eval_id], behind=True)

    def _give_back(self, evaluation: Evaluation, *, now: float) -> None:
        deliveries = self._known.get(evaluation.id, 0)
        self._requeue.pop(evaluation.id, None)
        if deliveries >= self._delivery_limit:
            self._known.pop(evaluation.id, None)
            self._evals.pop(evaluation.id, None)
            self._failed[evaluation.id] = evaluation
            self._release(evaluation)
            return
        delay = NACK_FIRST_DELAY_S if deliveries <= 1 else NACK_LATER_DELAY_S
        # It keeps its hold on the job: nothing else of that job runs before it.
        heapq.heappush(self._delayed, (now + delay, evaluation.id))
