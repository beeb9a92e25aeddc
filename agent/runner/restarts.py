"""When a task that ended is started again, and after how long; pure.

Source: the `restart` block's documented meaning. `attempts` restarts are allowed within `interval`; beyond them
mode `fail` gives up and mode `delay` waits for the interval's end. Up to a quarter is added to each delay by chance.
"""

from __future__ import annotations

import msgspec

from agent.runner.events import WITHIN_POLICY
from nomadpy.entropy import Entropy
from nomadpy.jobspec.durations import format_duration
from nomadpy.models.task import Task
from nomadpy.models.task_blocks import RestartPolicy

JITTER = 0.25

RESTART = "restart"
FAIL = "fail"
COMPLETE = "complete"


class RestartHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy remembers. window_start_ns: wall time the current interval began; count: ends within it."""

    window_start_ns: int = 0
    count: int = 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """action: restart | fail | complete. delay_ns and reason belong to restart; reason to fail."""

    action: str
    history: RestartHistory
    delay_ns: int = 0
    reason: str = ""


def decide(
    policy: RestartPolicy,
    history: RestartHistory,
    *,
    now_ns: int,
    successful: bool,
    recoverable: bool,
    restart_on_success: bool,
    entropy: Entropy,
) -> Verdict:
    """Say what follows after a task ended or could not be started.

    successful: exit code 0 and no signal. recoverable: False for a start error that cannot get better.
    """
    if successful and not restart_on_success:
        return Verdict(action=COMPLETE, history=history)
    if policy.attempts == 0:
        return Verdict(action=FAIL, history=history, reason="Policy allows no restarts")
    if not recoverable:
        return Verdict(action=FAIL, history=history, reason="Error was unrecoverable")
    if now_ns - history.window_start_ns > policy.interval:
        history = RestartHistory(window_start_ns=now_ns)
    history = RestartHistory(window_start_ns=history.window_start_ns, count=history.count + 1)
    if history.count <= policy.attempts:
        delay = policy.delay + int(policy.delay * entropy.uniform(0.0, JITTER))
        return Verdict(action=RESTART, history=history, delay_ns=delay, reason=WITHIN_POLICY)
    if policy.mode == "delay":
        return Verdict(
            action=RESTART,
            history=history,
            delay_ns=max(history.window_start_ns + policy.interval - now_ns, 0),
            reason="Exceeded allowed attempts, applying a delay",
        )
    return Verdict(
        action=FAIL,
        history=history,
        reason=f"Exceeded allowed attempts {policy.attempts} in interval {format_duration(policy.interval)}"
        ' and mode is "fail"',
    )


def restarts_on_success(job_type: str, task: Task) -> bool:
    """Whether a successful end is followed by a restart: tasks of services and sidecars must not end."""
    if task.lifecycle is None:
        return job_type not in ("batch", "sysbatch")
    return task.lifecycle.sidecar and task.lifecycle.hook != "poststop"
