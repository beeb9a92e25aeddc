"""The task events of the wire: one constructor an event type, with the texts that clients know.

Source of types, details and messages: recordings of a real Nomad, and its documentation. Times are wall
nanoseconds since 1970; `Details` repeats the fields of the event as strings, as older clients read them there.
"""

from __future__ import annotations

from agent.drivers.base import ExitResult
from nomadpy.jobspec.durations import format_duration
from nomadpy.models.allocation import TaskEvent

MAX_EVENTS = 10

WITHIN_POLICY = "Restart within policy"


def appended(events: list[TaskEvent] | None, event: TaskEvent) -> list[TaskEvent]:
    """The list with one event more, the oldest dropped beyond MAX_EVENTS."""
    return [*(events or []), event][-MAX_EVENTS:]


def received(now_ns: int) -> TaskEvent:
    """The agent has taken the task on."""
    return _event("Received", now_ns, "Task received by client")


def setup(now_ns: int, message: str) -> TaskEvent:
    """A step before the start, e.g. `Building Task Directory`."""
    return _event("Task Setup", now_ns, message, {"message": message}, message=message)


def setup_failure(now_ns: int, error: str) -> TaskEvent:
    """The task could not be prepared."""
    return _event("Setup Failure", now_ns, error, {"setup_error": error}, setup_error=error)


def hook_failed(now_ns: int, message: str) -> TaskEvent:
    """One step before the start failed; it may be tried again."""
    return _event("Task hook failed", now_ns, message, {"message": message}, message=message)


def hook_message(now_ns: int, message: str) -> TaskEvent:
    """A step before the start has something to say, e.g. that it waits for servers."""
    return _event("Task hook message", now_ns, message, {"message": message}, message=message)


def driver_failure(now_ns: int, error: str) -> TaskEvent:
    """The driver could not start the task."""
    text = error or "Failed to start task"
    return _event("Driver Failure", now_ns, text, {"driver_error": error}, driver_error=error)


def driver_message(now_ns: int, message: str) -> TaskEvent:
    """The driver has something to say."""
    return _event("Driver", now_ns, message, {"driver_message": message}, driver_message=message)


def started(now_ns: int) -> TaskEvent:
    """The task runs."""
    return _event("Started", now_ns, "Task started by client")


def terminated(now_ns: int, result: ExitResult) -> TaskEvent:
    """The task ended by itself or by our signal."""
    text = f"Exit Code: {result.exit_code}"
    if result.signal:
        text += f", Signal: {result.signal}"
    message = result.error or ("OOM Killed" if result.oom_killed else "")
    if message:
        text += f', Exit Message: "{message}"'
    details = {
        "exit_code": str(result.exit_code),
        "oom_killed": str(result.oom_killed).lower(),
        "signal": str(result.signal),
    }
    if message:
        details["exit_message"] = message
    return _event(
        "Terminated",
        now_ns,
        text,
        details,
        exit_code=result.exit_code,
        signal=result.signal,
        message=message,
    )


def killing(now_ns: int, timeout_ns: int, reason: str = "") -> TaskEvent:
    """The kill signal goes out."""
    wait = format_duration(timeout_ns)
    details = {"kill_timeout": wait}
    text = (
        f"Sent interrupt. Waiting {wait} before force killing" if timeout_ns else "Sent interrupt"
    )
    if reason:
        details["kill_reason"] = reason
        text = f"Killing task: {reason}"
    return _event("Killing", now_ns, text, details, kill_timeout=timeout_ns, kill_reason=reason)


def killed(now_ns: int, error: str = "") -> TaskEvent:
    """The task ended because we wanted it to."""
    details = {"kill_error": error} if error else {}
    return _event("Killed", now_ns, error or "Task successfully killed", details, kill_error=error)


def restarting(now_ns: int, delay_ns: int, reason: str) -> TaskEvent:
    """The task will be started again after delay_ns."""
    text = f"Task restarting in {format_duration(delay_ns)}"
    if reason and reason != WITHIN_POLICY:
        text = f"{reason} - {text}"
    return _event(
        "Restarting",
        now_ns,
        text,
        {"restart_reason": reason, "start_delay": str(delay_ns)},
        restart_reason=reason,
        start_delay=delay_ns,
    )


def not_restarting(now_ns: int, reason: str) -> TaskEvent:
    """The restart policy has had enough; the task has failed."""
    return _event(
        "Not Restarting",
        now_ns,
        reason or "Task exceeded restart policy",
        {"fails_task": "true", "restart_reason": reason},
        fails_task=True,
        restart_reason=reason,
    )


def restart_signaled(now_ns: int, reason: str) -> TaskEvent:
    """Someone asked for a restart."""
    return _event(
        "Restart Signaled",
        now_ns,
        reason or "Task signaled to restart",
        {"restart_reason": reason},
        restart_reason=reason,
    )


def signaling(now_ns: int, signal: str) -> TaskEvent:
    """Someone sends the task a signal."""
    return _event("Signaling", now_ns, "Task being sent a signal", {"signal": signal})


def sibling_failed(now_ns: int, sibling: str) -> TaskEvent:
    """Another task of the group failed, so this one must end."""
    return _event(
        "Sibling Task Failed",
        now_ns,
        f'Task\'s sibling "{sibling}" failed',
        {"failed_sibling": sibling},
        failed_sibling=sibling,
    )


def leader_dead(now_ns: int) -> TaskEvent:
    """The group's leader ended, so this task must end."""
    return _event("Leader Task Dead", now_ns, "Leader Task in Group dead")


def main_dead(now_ns: int) -> TaskEvent:
    """All main tasks ended, so this sidecar must end."""
    return _event("Main Tasks Dead", now_ns, "Main tasks in the group died")


def reconnected(now_ns: int) -> TaskEvent:
    """The node is heard of again by servers that had counted it as disconnected."""
    return _event("Reconnected", now_ns, "Client reconnected")


def shutdown_delay(now_ns: int, delay_ns: int) -> TaskEvent:
    """The kill signal is held back."""
    text = f"Waiting for shutdown_delay of {format_duration(delay_ns)} before killing the task."
    return _event("Waiting for shutdown delay", now_ns, text, {"message": text}, message=text)


def skip_shutdown_delay(now_ns: int) -> TaskEvent:
    """The kill signal is no longer held back."""
    text = "Skipping shutdown_delay"
    return _event("Skipping shutdown delay", now_ns, text, {"message": text}, message=text)


def unhealthy(now_ns: int, reason: str) -> TaskEvent:
    """The allocation did not become healthy in time."""
    return _event("Alloc Unhealthy", now_ns, reason, {"message": reason}, message=reason)


def _event(
    kind: str,
    now_ns: int,
    display: str,
    details: dict[str, str] | None = None,
    *,
    message: str = "",
    fails_task: bool = False,
    restart_reason: str = "",
    setup_error: str = "",
    driver_error: str = "",
    driver_message: str = "",
    exit_code: int = 0,
    signal: int = 0,
    kill_reason: str = "",
    kill_timeout: int = 0,
    kill_error: str = "",
    start_delay: int = 0,
    failed_sibling: str = "",
) -> TaskEvent:
    return TaskEvent(
        type=kind,
        time=now_ns,
        display_message=display,
        details=details or {},
        message=message,
        fails_task=fails_task,
        restart_reason=restart_reason,
        setup_error=setup_error,
        driver_error=driver_error,
        driver_message=driver_message,
        exit_code=exit_code,
        signal=signal,
        kill_reason=kill_reason,
        kill_timeout=kill_timeout,
        kill_error=kill_error,
        start_delay=start_delay,
        failed_sibling=failed_sibling,
    )
