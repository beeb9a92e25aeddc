"""Whether and when a failed allocation is replaced: attempts, intervals and growing delays."""

from __future__ import annotations

from typing import NamedTuple

from nomadpy.models import gotime
from nomadpy.models.allocation import Allocation, RescheduleEvent, RescheduleTracker, TaskState
from nomadpy.models.job import ReschedulePolicy

# An unlimited policy needs its events only to know how far the delay has grown. Nobody waits through forty doublings.
_MAX_EVENTS = 40


class Reschedule(NamedTuple):
    """eligible: the policy allows a replacement, at `when_ns`."""

    eligible: bool
    when_ns: int


def next_reschedule(alloc: Allocation, policy: ReschedulePolicy | None) -> Reschedule:
    """Return whether a failed allocation may be replaced, and from what time on."""
    if policy is None or (not policy.unlimited and policy.attempts <= 0):
        return Reschedule(False, 0)
    failed_at = fail_time(alloc)
    when = failed_at + _delay(policy, _events(alloc), failed_at)
    if policy.unlimited:
        return Reschedule(True, when)
    recent = [
        event for event in _events(alloc) if event.reschedule_time > failed_at - policy.interval
    ]
    return Reschedule(len(recent) < policy.attempts, when)


def fail_time(alloc: Allocation) -> int:
    """Return when the last task of the allocation ended, in ns; the last change of the allocation if none says so."""
    ends = [_finished_ns(state) for state in (alloc.task_states or {}).values()]
    return max(ends, default=0) or alloc.modify_time


def extended_tracker(
    alloc: Allocation, policy: ReschedulePolicy | None, now_ns: int
) -> RescheduleTracker:
    """Return the tracker of the allocation that replaces `alloc` now.

    A limited policy keeps the events of its interval, for they are what it counts.
    """
    events = _events(alloc)
    if policy is not None and not policy.unlimited:
        events = [event for event in events if event.reschedule_time > now_ns - policy.interval]
    event = RescheduleEvent(
        reschedule_time=now_ns, prev_alloc_id=alloc.id, prev_node_id=alloc.node_id
    )
    return RescheduleTracker(events=[*events, event][-_MAX_EVENTS:], last_reschedule="ok")


def penalty_nodes(alloc: Allocation) -> frozenset[str]:
    """Return the nodes where this allocation and its forerunners failed."""
    nodes = {event.prev_node_id for event in _events(alloc)}
    if alloc.client_status == "failed":
        nodes.add(alloc.node_id)
    return frozenset(nodes - {""})


def _finished_ns(state: TaskState) -> int:
    """A client's word; a malformed one counts as none."""
    try:
        return gotime.to_ns(state.finished_at or "")
    except ValueError:
        return 0


def _events(alloc: Allocation) -> list[RescheduleEvent]:
    tracker = alloc.reschedule_tracker
    return list(tracker.events or ()) if tracker else []


def _delay(policy: ReschedulePolicy, events: list[RescheduleEvent], failed_at: int) -> int:
    """The wait in ns before the next replacement.

    It grows with every replacement, up to max_delay, and starts anew once a replacement has lived longer than
    max_delay. Events do not say how long each replacement lived, but two of them more than twice max_delay apart do.
    """
    if policy.delay_function not in ("exponential", "fibonacci"):
        return policy.delay
    cap = policy.max_delay
    if cap and events and failed_at - events[-1].reschedule_time > cap:
        return policy.delay
    steps = 0
    for position in range(len(events) - 1, -1, -1):
        steps += 1
        since = (
            events[position].reschedule_time - events[position - 1].reschedule_time
            if position
            else 0
        )
        if cap and since > 2 * cap:
            break
    if policy.delay_function == "exponential":
        delay = policy.delay << steps
    else:
        delay, following = policy.delay, policy.delay
        for _ in range(steps):
            delay, following = following, delay + following
    return min(delay, cap) if cap else delay
