"""Locks and blocking queries: valid and invalid histories by hand. Times are in milliseconds."""

from __future__ import annotations

from typing import Any

import pytest
from histories import MS, call, event, history
from jepsen_style.checker.blocking import check_blocking
from jepsen_style.checker.lock import check_lock
from jepsen_style.checker.logs import CANARY, check_logs
from jepsen_style.checker.result import Result
from jepsen_style.history import OBSERVER, Op

TTL_S, DELAY_S = 10.0, 1.0
Ops = list[Op]


def acquire(process: int, start: int, lock: str, token: int, outcome: str = "ok") -> Ops:
    got = {"lock": lock} if outcome == "ok" else None
    version = token if outcome == "ok" else None
    return call(process, start, start + 10, "acquire", outcome, key="l", got=got, version=version)


def refused(process: int, start: int, f: str = "acquire", lock: str = "") -> Ops:
    value = {"lock": lock} if lock else None
    begun, done = call(process, start, start + 10, f, "fail", key="l", value=value)
    return [begun, Op(**{**_fields(done), "error": "409 there is another"})]


def _fields(op: Op) -> dict[str, Any]:
    return {name: getattr(op, name) for name in Op.__struct_fields__}


def under(f: str, process: int, start: int, lock: str, version: int = 0, outcome: str = "ok") -> Ops:  # fmt: skip
    return call(process, start, start + 10, f, outcome, key="l", value={"lock": lock}, version=version)  # fmt: skip


def judge(*parts: Ops) -> Result:
    return check_lock(history(*parts), ttl_s=TTL_S, delay_s=DELAY_S)


def test_holders_one_after_another_are_valid() -> None:
    result = judge(
        acquire(1, 0, "a", 5),
        under("write", 1, 100, "a", 6),
        refused(2, 150),
        under("release", 1, 200, "a", 7),
        refused(1, 300, "write", "a"),
        acquire(2, 400, "b", 9),
        under("renew", 2, 9_000, "b", 9),
        refused(3, 18_000),
        acquire(3, 20_100, "c", 12),
        call(9, 40_000, 40_010, "take", key="l", version=20, got={"lock": "d"}),
    )
    assert result.valid is True, result
    assert result.facts == {"leases": 3, "writes": 1}


def test_nothing_is_known_when_nobody_got_a_lock() -> None:
    assert judge(acquire(1, 0, "", 0, "info")).valid is None
    assert judge(refused(1, 0)).valid is False


@pytest.mark.parametrize("moment", [500, 9_900, 10_800])
def test_a_second_holder_within_a_lease_or_its_delay_is_invalid(moment: int) -> None:
    result = judge(acquire(1, 0, "a", 5), acquire(2, moment, "b", 9))
    assert result.valid is False
    assert "second holder" in result.summary
    assert len(result.offending) == 2


def test_a_lease_that_was_renewed_lasts_longer() -> None:
    renewed = (acquire(1, 0, "a", 5), under("renew", 1, 8_000, "a", 5))
    assert judge(*renewed, acquire(2, 12_000, "b", 9)).valid is False
    assert judge(*renewed, acquire(2, 19_100, "b", 9)).valid is True
    # Of an unknown renewal nothing can be demanded.
    unknown = (acquire(1, 0, "a", 5), under("renew", 1, 8_000, "a", outcome="info"))
    assert judge(*unknown, acquire(2, 12_000, "b", 9)).valid is True


def test_a_lock_that_may_have_been_released_is_free() -> None:
    released = under("release", 1, 500, "a", outcome="info")
    assert judge(acquire(1, 0, "a", 5), released, acquire(2, 505, "b", 9)).valid is True
    assert judge(acquire(1, 0, "a", 5), released, acquire(2, 300, "b", 9)).valid is False


def test_a_write_with_an_older_token_after_a_newer_one_is_invalid() -> None:
    # The lease is over for long, so only the token tells.
    result = judge(
        acquire(1, 0, "a", 5), acquire(2, 30_000, "b", 9), under("write", 1, 31_000, "a", 11)
    )
    assert result.valid is False
    assert "under token 5 succeeded after token 9" in result.summary


def test_tokens_must_grow_and_differ() -> None:
    assert "smaller token" in judge(acquire(1, 0, "a", 9), acquire(2, 30_000, "b", 5)).summary
    assert "one token" in judge(acquire(1, 0, "a", 9), acquire(2, 30_000, "b", 9)).summary


@pytest.mark.parametrize("f", ["renew", "write"])
def test_a_holder_that_is_refused_within_its_lease_has_lost_it_without_right(f: str) -> None:
    assert judge(acquire(1, 0, "a", 5), refused(1, 5_000, f, "a")).valid is False
    assert judge(acquire(1, 0, "a", 5), refused(1, 10_500, f, "a")).valid is True


def test_an_id_is_worth_nothing_after_its_release() -> None:
    parts = (acquire(1, 0, "a", 5), under("release", 1, 100, "a", 6))
    assert judge(*parts, under("renew", 1, 200, "a", 6)).valid is False
    assert judge(*parts, refused(1, 200, "renew", "a")).valid is True


def test_a_lock_that_nobody_can_hold_is_not_refused() -> None:
    # Ten seconds, a second of delay, and three for the leader.
    assert judge(acquire(1, 0, "a", 5), refused(2, 13_500)).valid is True
    result = judge(acquire(1, 0, "a", 5), refused(2, 14_500))
    assert result.valid is False
    assert "every lease was over" in result.summary


def test_a_fault_may_prolong_a_lease_and_an_unknown_acquisition_may_be_one() -> None:
    disturbed = event(5_000, "start", "kill-leader", "n1")
    assert judge(acquire(1, 0, "a", 5), disturbed, refused(2, 18_000)).valid is True
    assert judge(acquire(1, 0, "a", 5), disturbed, refused(2, 20_000)).valid is False
    perhaps = acquire(3, 9_000, "", 0, "info")
    assert judge(acquire(1, 0, "a", 5), perhaps, refused(2, 25_000)).valid is True


def test_a_lock_must_be_free_in_the_end() -> None:
    begun, done = call(9, 60_000, 120_000, "take", "fail", key="l")
    assert judge(acquire(1, 0, "a", 5), [begun, done]).valid is False


# -- blocking queries -------------------------------------------------------------------------------------------


def write(start: int, version: int, element: int, outcome: str = "ok") -> Ops:
    return call(1, start, start + 10, "write", outcome, key="v", value={"element": element}, version=version)  # fmt: skip


def wait(start: int, end: int, index: int, found: int, version: int, element: int | None, node: str = "n1") -> Ops:  # fmt: skip
    asked = {"index": index, "wait_s": 4.0}
    got = {**asked, "found": found, "version": version, "element": element}
    return call(2, start, end, "wait", key="v", value=asked, got=got, node=node)


FIRST = (write(0, 5, 1), wait(20, 30, 0, 5, 5, 1))


def test_a_query_that_is_woken_by_a_change_is_valid() -> None:
    result = check_blocking(history(*FIRST, wait(40, 120, 5, 7, 7, 2), write(100, 7, 2)))
    assert result.valid is True, result
    assert result.facts == {"waits": 2, "woken": 1}


def test_a_query_that_nothing_woke_is_valid_and_tells_nothing() -> None:
    assert check_blocking(history(*FIRST, wait(40, 4_100, 5, 5, 5, 1))).valid is None


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (wait(40, 120, 5, 4, 4, 1), "went back from 5 to 4"),
        (wait(40, 120, 5, 5, 5, 1), "known already"),
        (wait(40, 120, 5, 7, 8, 2), "older than the body"),
        (wait(200, 220, 5, 6, 6, 9), "older than what was acknowledged"),
        (wait(200, 220, 5, 7, 7, 9), "not what was written"),
        (wait(40, 4_110, 5, 7, 7, 2), "slept through"),
    ],
)
def test_a_wrong_answer_to_a_blocking_query_is_invalid(part: Ops, reason: str) -> None:
    result = check_blocking(history(*FIRST, write(100, 7, 2), part))
    assert result.valid is False
    assert reason in result.summary


def test_an_index_may_differ_between_nodes() -> None:
    other = wait(40, 50, 0, 5, 5, 1, node="n2")
    assert check_blocking(history(*FIRST, other, wait(60, 120, 5, 7, 7, 2), write(100, 7, 2))).valid


def test_a_query_may_sleep_through_a_change_while_a_fault_is_at_work() -> None:
    slept = (write(100, 7, 2), wait(40, 4_110, 5, 7, 7, 2), wait(4_200, 4_300, 7, 9, 9, 3))
    fault = (event(50, "start", "pause-one", "n1"), event(900, "stop", "pause-one"))
    later = write(4_250, 9, 3)
    assert check_blocking(history(*FIRST, *slept, later, *fault)).valid is True
    nodes_say = [
        Op(time=at * MS, type="info", process=OBSERVER, f="leader", node="n1", value=value)
        for at, value in ((0, "n1"), (500, "n2"))
    ]
    assert check_blocking(history(*FIRST, *slept, later, nodes_say)).valid is True
    assert check_blocking(history(*FIRST, *slept, later, nodes_say[:1])).valid is False


# -- secrets ----------------------------------------------------------------------------------------------------


def test_a_secret_in_a_log_is_invalid_and_is_not_repeated() -> None:
    result = check_logs({"server-1": f"fine\nwritten: value={CANARY}\n"})
    assert result.valid is False
    assert "secret" in result.summary
    assert CANARY not in " ".join(result.offending)
