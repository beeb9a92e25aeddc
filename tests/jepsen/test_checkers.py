"""Counters, lists, sets, figures, logs: valid and invalid histories by hand."""

from __future__ import annotations

import pytest
from histories import MS, call, event, history
from jepsen_style.checker.append import check_append
from jepsen_style.checker.counter import check_counter
from jepsen_style.checker.logs import check_logs
from jepsen_style.checker.perf import (
    check_liveness,
    check_perf,
    faults,
    longest_outage,
    quantile,
)
from jepsen_style.checker.result import Result, worst
from jepsen_style.checker.set_full import check_set

ADDED = (
    call(1, 0, 10, "add", value=2),
    call(2, 5, 30, "add", "info", value=3),
    call(3, 20, 25, "add", "fail", value=100),
)


@pytest.mark.parametrize(
    ("value", "valid"), [(2, True), (5, True), (1, False), (0, False), (6, False), (102, False)]
)
def test_a_counter_lies_between_what_is_certain_and_what_is_possible(
    value: int, valid: bool
) -> None:
    assert check_counter(history(*ADDED, call(4, 40, 41, "read", got=value))).valid is valid


def test_a_counter_read_during_an_addition_may_or_may_not_hold_it() -> None:
    for value, valid in ((0, True), (2, True), (5, True), (7, False)):
        assert check_counter(history(*ADDED, call(4, 6, 8, "read", got=value))).valid is valid


def test_a_counter_that_nobody_read_is_not_known() -> None:
    assert check_counter(history(*ADDED)).valid is None


def appended(*elements: int, end: int = 3) -> list[list]:  # type: ignore[type-arg]
    return [call(e, 10 * e, 10 * e + end, "append", key="l", value=e) for e in elements]


def test_a_list_in_the_order_of_time_is_valid() -> None:
    parts = [*appended(1, 2, 3), call(9, 15, 16, "read", key="l", got=[1])]
    assert check_append(history(*parts, call(9, 50, 51, "read", key="l", got=[1, 2, 3]))).valid


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([1, 3], "2 was acknowledged and is lost"),
        ([1, 2, 2, 3], "2 is there twice"),
        ([1, 3, 2], "acknowledged before it was asked for"),
        ([1, 2, 3, 4], "4 was never appended"),
    ],
)
def test_a_list_that_lost_doubled_or_mixed_up_something_is_invalid(
    found: list[int], reason: str
) -> None:
    result = check_append(history(*appended(1, 2, 3), call(9, 50, 51, "read", key="l", got=found)))
    assert result.valid is False
    assert reason in result.summary or reason.replace("2", "3", 1) in result.summary


def test_a_refused_element_may_not_be_there_and_an_unknown_one_may() -> None:
    last = call(9, 50, 51, "read", key="l", got=[1, 7])
    refused = call(7, 20, 22, "append", "fail", key="l", value=7)
    assert check_append(history(*appended(1), refused, last)).valid is False
    unknown = call(7, 20, 22, "append", "info", key="l", value=7)
    assert check_append(history(*appended(1), unknown, last)).valid


def test_two_reads_that_disagree_about_the_order_are_invalid() -> None:
    parts = [call(n, 0, 40, "append", "info", key="l", value=n) for n in (1, 2)]
    one = call(8, 50, 51, "read", key="l", got=[2])
    assert (
        check_append(history(*parts, one, call(9, 60, 61, "read", key="l", got=[1, 2]))).valid
        is False
    )


def test_a_read_that_lacks_an_acknowledged_element_is_invalid_though_later_ones_have_it() -> None:
    early = call(8, 25, 26, "read", key="l", got=[1])
    late = call(9, 60, 61, "read", key="l", got=[1, 2])
    result = check_append(history(*appended(1, 2), early, late))
    assert result.valid is False
    assert "lacks it" in result.summary


def jobs(*reads: tuple[int, list[int]]) -> list[list]:  # type: ignore[type-arg]
    return [call(9, at, at + 1, "read", got=there) for at, there in reads]


ONE = call(1, 0, 5, "add", value=1)
GONE = call(1, 20, 25, "remove", value=1)


def test_a_job_is_there_from_its_acknowledgement_to_its_removal() -> None:
    assert check_set(history(ONE, GONE, *jobs((6, [1]), (21, []), (30, [])))).valid
    assert check_set(history(ONE, *jobs((2, []), (8, [1])))).valid


@pytest.mark.parametrize(
    ("reads", "reason"),
    [
        ([(6, [])], "was there and is lost"),
        ([(6, [1]), (30, [1])], "came back"),
        ([(6, [1, 5])], "never added"),
    ],
)
def test_a_job_that_is_lost_comes_back_or_is_nobodys_is_invalid(
    reads: list[tuple[int, list[int]]], reason: str
) -> None:
    result = check_set(history(ONE, GONE, *jobs(*reads)))
    assert result.valid is False
    assert reason in result.summary


def test_an_unknown_job_may_come_late_but_not_go_again() -> None:
    unknown = call(1, 0, 5, "add", "info", value=1)
    assert check_set(history(unknown, *jobs((6, []), (50, [1])))).valid
    assert check_set(history(unknown, *jobs((6, [1]), (50, [])))).valid is False


def test_the_longest_outage_reaches_to_the_end_of_the_work() -> None:
    parts = [call(1, 10 * n, 10 * n + 5, "cas", value=n) for n in range(5)]
    parts.append(call(2, 100, 900, "cas", "info", value="x"))
    parts.append(call(3, 50, 60, "read", got=1))
    assert longest_outage(history(*parts).calls()) == (45 * MS, 900 * MS)
    facts = check_perf(history(*parts)).facts
    assert facts["longest_write_outage_s"] == 0.85
    assert facts["cas"]["ok"] == 5
    assert facts["cas"]["info"] == 1


def test_quantiles_are_of_what_was_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [quantile(values, q) for q in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert quantile([], 0.5) == 0


def test_faults_are_pairs_and_an_open_one_lasts_to_the_end() -> None:
    found = faults(
        history(event(1, "start", "kill"), event(5, "stop", "kill"), event(9, "start", "pause"))
    )
    assert found == [(1 * MS, 5 * MS, "kill"), (9 * MS, 9 * MS, "pause")]


def test_a_node_that_accepts_nothing_after_the_faults_is_named() -> None:
    good = call(1, 0, 1, "cas", phase="liveness", node="n1")
    bad = call(2, 0, 1, "cas", "info", phase="liveness", node="n2")
    result = check_liveness(history(good, bad), ["n1", "n2"])
    assert result.valid is False
    assert "n2" in result.summary
    assert check_liveness(history(good), ["n1"]).valid
    assert check_liveness(history(good), ["n1", "n2"]).valid is None
    assert check_liveness(history(), ["n1"]).valid is None


def test_a_traceback_in_a_log_is_invalid() -> None:
    assert check_logs({"n1": "fine\n", "n2": "fine\n"}).valid
    result = check_logs({"n1": "x\nTraceback (most recent call last)\n  File\n"})
    assert result.valid is False
    assert result.offending[-1] == "n1:   File"


def test_the_worst_verdict_counts() -> None:
    good, bad, open_ = (Result(checker="c", valid=v, summary="") for v in (True, False, None))
    assert worst([good, open_, bad]) is False
    assert worst([good, open_]) is None
    assert worst([good]) is True
