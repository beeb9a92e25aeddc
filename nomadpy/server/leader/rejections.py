"""Nodes whose plans are refused again and again: something is wrong with what the servers believe of them.

Pure: `now` comes in. Behaviour matched: Nomad's plan rejection tracker, with its limit on how many nodes are taken out.
"""

from __future__ import annotations

import collections

REASON = "Node marked as ineligible for scheduling due to multiple plan rejections"
SUBSYSTEM = "Scheduler"
MAX_NODES = 50_000

# A fault of the servers would show on every node; it must not take the whole cluster out.
_BURST = 10
_REFILL_S = 360.0


class Rejections:
    """Counts refusals by node within a window. threshold 0 counts nothing."""

    def __init__(self, *, threshold: int, window_s: float) -> None:
        self._threshold = threshold
        self._window_s = window_s
        self._times: dict[str, collections.deque[float]] = {}
        self._allowed = float(_BURST)
        self._refilled = 0.0

    def add(self, node_id: str, *, now: float) -> bool:
        """Count one refusal; True when the node is to be taken out of scheduling now."""
        if not self._threshold:
            return False
        times = self._times.get(node_id)
        if times is None:
            if len(self._times) >= MAX_NODES:
                self._drop_old(now)
            times = self._times[node_id] = collections.deque(maxlen=self._threshold)
        times.append(now)
        if len(times) < self._threshold or times[0] < now - self._window_s:
            return False
        self._allowed = min(_BURST, self._allowed + (now - self._refilled) / _REFILL_S)
        self._refilled = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        del self._times[node_id]
        return True

    def score(self, node_id: str, *, now: float) -> int:
        """How many refusals of the node lie in the window."""
        return sum(at >= now - self._window_s for at in self._times.get(node_id, ()))

    def _drop_old(self, now: float) -> None:
        self._times = {
            node_id: times
            for node_id, times in self._times.items()
            if times[-1] >= now - self._window_s
        }
