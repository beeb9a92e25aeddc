"""The restart policy alone."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.runner.restarts import RestartHistory, Verdict, decide, restarts_on_success
from nomadpy.entropy import SeededEntropy
from nomadpy.models.lifecycle import TaskLifecycle
from nomadpy.models.task import Task
from nomadpy.models.task_blocks import RestartPolicy

SECOND = 1_000_000_000
NOW = 1_795_000_000 * SECOND


def ask(policy: RestartPolicy, history: RestartHistory, now_ns: int, **more: Any) -> Verdict:
    chosen: dict[str, Any] = {
        "successful": False,
        "recoverable": True,
        "restart_on_success": True,
        "entropy": SeededEntropy(3),
        **more,
    }
    return decide(policy, history, now_ns=now_ns, **chosen)


def policy(attempts: int, mode: str) -> RestartPolicy:
    return RestartPolicy(attempts=attempts, interval=60 * SECOND, delay=SECOND, mode=mode)


def test_mode_fail_gives_up_after_the_allowed_attempts() -> None:
    history, actions, reason = RestartHistory(), [], ""
    for number in range(3):
        verdict = ask(policy(2, "fail"), history, NOW + number * SECOND)
        history, reason = verdict.history, verdict.reason
        actions.append(verdict.action)
    assert actions == ["restart", "restart", "fail"]
    assert reason == 'Exceeded allowed attempts 2 in interval 1m0s and mode is "fail"'


def test_mode_delay_waits_for_the_end_of_the_interval() -> None:
    history = RestartHistory()
    for number in range(3):
        verdict = ask(policy(2, "delay"), history, NOW + number * SECOND)
        history = verdict.history
    assert verdict.action == "restart"
    assert verdict.delay_ns == 58 * SECOND
    assert verdict.reason == "Exceeded allowed attempts, applying a delay"


def test_a_new_interval_forgets_the_old_attempts() -> None:
    history = RestartHistory(window_start_ns=NOW, count=2)
    verdict = ask(policy(2, "fail"), history, NOW + 61 * SECOND)
    assert verdict.action == "restart"
    assert verdict.history == RestartHistory(window_start_ns=NOW + 61 * SECOND, count=1)


def test_a_successful_end_is_complete_where_success_is_the_goal() -> None:
    verdict = ask(
        policy(2, "fail"), RestartHistory(), NOW, successful=True, restart_on_success=False
    )
    assert verdict.action == "complete"
    assert ask(policy(2, "fail"), RestartHistory(), NOW, successful=True).action == "restart"


def test_only_tasks_that_should_last_restart_after_success() -> None:
    main = Task(name="m")
    assert restarts_on_success("service", main)
    assert restarts_on_success("system", main)
    assert not restarts_on_success("batch", main)
    assert not restarts_on_success("sysbatch", main)
    for hook, sidecar, expected in (
        ("prestart", False, False),
        ("prestart", True, True),
        ("poststart", True, True),
        ("poststop", False, False),
    ):
        task = Task(name="t", lifecycle=TaskLifecycle(hook=hook, sidecar=sidecar))
        assert restarts_on_success("batch", task) is expected
        assert restarts_on_success("service", task) is expected


@given(
    attempts=st.integers(1, 5),
    gaps=st.lists(st.integers(0, 120), min_size=1, max_size=50),
    mode=st.sampled_from(["fail", "delay"]),
)
def test_no_interval_sees_more_prompt_restarts_than_allowed(
    attempts: int, gaps: list[int], mode: str
) -> None:
    history, now, prompt = RestartHistory(), NOW, []
    for gap in gaps:
        now += gap * SECOND
        verdict = ask(policy(attempts, mode), history, now)
        if verdict.action == "fail":
            return
        if verdict.history.window_start_ns != history.window_start_ns:
            prompt = []
        history = verdict.history
        assert verdict.delay_ns >= 0
        if verdict.reason == "Restart within policy":
            prompt.append(now)
            assert verdict.delay_ns <= 1.25 * SECOND
        assert len(prompt) <= attempts
