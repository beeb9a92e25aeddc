"""Evaluations that wait for capacity, and what wakes them.

In:      blocked evaluations; news of nodes that gained room, by computed class, and of quotas.
Out:     evaluations that may be able to place now.
Not here: the order in which they are worked on (eval_broker.py).

Pure. Behaviour matched: one blocked evaluation a job; woken by a class that it found eligible or never saw, by any
class when its constraints escape classes; never missed when capacity came between its snapshot and its blocking.
"""

from __future__ import annotations

from collections.abc import Callable

from nomadpy.models.evaluation import Evaluation

MAX_CLASSES = 100_000


class BlockedEvals:
    """The leader's set of blocked evaluations."""

    def __init__(self) -> None:
        self.enabled = False
        self._by_job: dict[tuple[str, str], Evaluation] = {}
        # computed class -> index at which a node of it last gained room
        self._gained: dict[str, int] = {}
        self._gained_any = 0
        # quota -> index at which it last got room
        self._freed: dict[str, int] = {}

    def set_enabled(self, enabled: bool) -> None:
        """Off forgets everything."""
        self.enabled = enabled
        if not enabled:
            self._by_job.clear()
            self._gained.clear()
            self._freed.clear()
            self._gained_any = 0

    def block(self, evaluation: Evaluation) -> Evaluation | None:
        """Park it. Returns it at once when room came after the snapshot it was decided on."""
        if not self.enabled:
            return None
        if self._missed(evaluation):
            return evaluation
        self._by_job[(evaluation.namespace, evaluation.job_id)] = evaluation
        return None

    def untrack(self, namespace: str, job_id: str) -> None:
        """The job was evaluated anew or is gone: what was blocked for it is out of date."""
        self._by_job.pop((namespace, job_id), None)

    def ended(self, evaluation: Evaluation) -> None:
        """It was canceled or is done; another one of its job stays."""
        key = (evaluation.namespace, evaluation.job_id)
        held = self._by_job.get(key)
        if held is not None and held.id == evaluation.id:
            del self._by_job[key]

    def unblock(self, computed_class: str, index: int) -> list[Evaluation]:
        """A node of this class gained room at `index`; returns who may profit, and forgets them."""
        if not self.enabled:
            return []
        if len(self._gained) >= MAX_CLASSES:
            self._gained.clear()
            self._gained_any = index
        self._gained[computed_class] = index
        return self._take(lambda evaluation: _helps(evaluation, computed_class))

    def unblock_quota(self, quota: str, index: int) -> list[Evaluation]:
        """A quota got room at `index`; returns who was held up by it, and forgets them."""
        if not self.enabled:
            return []
        self._freed[quota] = index
        return self._take(lambda evaluation: evaluation.quota_limit_reached == quota)

    def unblock_all(self, index: int) -> list[Evaluation]:
        """The rules changed at `index` (the scheduler's settings): returns everybody."""
        if not self.enabled:
            return []
        self._gained_any = index
        return self._take(lambda _: True)

    def unblock_failed(self) -> list[Evaluation]:
        """Evaluations that lost the race for plans too often: they are tried again after a while."""
        return self._take(lambda evaluation: evaluation.triggered_by == "max-plan-attempts")

    def _take(self, chosen: Callable[[Evaluation], bool]) -> list[Evaluation]:
        woken = [evaluation for evaluation in self._by_job.values() if chosen(evaluation)]
        for evaluation in woken:
            del self._by_job[(evaluation.namespace, evaluation.job_id)]
        return woken

    def __len__(self) -> int:
        return len(self._by_job)

    @property
    def escaped(self) -> int:
        """How many any node may help, whatever its class."""
        return sum(e.escaped_computed_class for e in self._by_job.values())

    def _missed(self, evaluation: Evaluation) -> bool:
        if self._gained_any > evaluation.snapshot_index:
            return True
        if evaluation.quota_limit_reached:
            return self._freed.get(evaluation.quota_limit_reached, 0) > evaluation.snapshot_index
        return any(
            index > evaluation.snapshot_index and _helps(evaluation, name)
            for name, index in self._gained.items()
        )


def _helps(evaluation: Evaluation, computed_class: str) -> bool:
    if evaluation.quota_limit_reached:
        # Nodes are not what it lacks.
        return False
    if evaluation.escaped_computed_class:
        return True
    eligibility = evaluation.class_eligibility or {}
    return eligibility.get(computed_class, True)
