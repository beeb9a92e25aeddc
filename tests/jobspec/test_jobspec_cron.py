from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.jobspec.cron import CronError, fault_of, next_launch


def at(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 10**9


def launches(spec: str, start: str, zone: str = "UTC", count: int = 1) -> list[str]:
    """The next launches as wall times of the zone."""
    after, out = at(start, zone), []
    for _ in range(count):
        found = next_launch(spec, after, zone)
        assert found is not None
        after = found
        out.append(
            datetime.fromtimestamp(found // 10**9, ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M:%S")
        )
    return out


@pytest.mark.parametrize(
    ("spec", "start", "expected"),
    [
        ("*/15 * * * *", "2026-01-01 00:00", "2026-01-01 00:15:00"),
        ("0 3 * * *", "2026-01-01 03:00", "2026-01-02 03:00:00"),
        ("*/15 * * * * *", "2026-01-01 00:00", "2026-01-01 00:15:00"),
        ("0 0 1 1 * 2030", "2026-01-01 00:00", "2030-01-01 00:00:00"),
        ("30 0 0 * * * *", "2026-01-01 00:00", "2026-01-01 00:00:30"),
        ("*/5 * * * * * *", "2026-01-01 00:00:03", "2026-01-01 00:00:05"),
        ("@daily", "2026-02-28 12:00", "2026-03-01 00:00:00"),
        ("@weekly", "2026-01-01 00:00", "2026-01-04 00:00:00"),
        ("@hourly", "2026-01-01 00:00", "2026-01-01 01:00:00"),
        ("@yearly", "2026-01-01 00:00", "2027-01-01 00:00:00"),
        ("0 0 29 2 *", "2026-01-01 00:00", "2028-02-29 00:00:00"),
        ("0 0 L * *", "2026-02-01 00:00", "2026-02-28 00:00:00"),
        ("0 0 LW * *", "2026-01-01 00:00", "2026-01-30 00:00:00"),
        ("0 0 15W * *", "2026-02-01 00:00", "2026-02-16 00:00:00"),
        ("0 0 1W * *", "2026-07-31 00:00", "2026-08-03 00:00:00"),
        ("0 0 * * 5L", "2026-01-01 00:00", "2026-01-30 00:00:00"),
        ("0 0 * * MON#2", "2026-01-01 00:00", "2026-01-12 00:00:00"),
        ("0 0 * * 7", "2026-01-01 00:00", "2026-01-04 00:00:00"),
        ("0 0 ? jan-mar mon", "2026-01-01 00:00", "2026-01-05 00:00:00"),
        ("0 0 13 * 5", "2026-01-01 00:00", "2026-01-02 00:00:00"),
        ("5/20 * * * *", "2026-01-01 00:05", "2026-01-01 00:25:00"),
    ],
)
def test_the_next_launch_is_the_next_matching_time(spec: str, start: str, expected: str) -> None:
    assert launches(spec, start) == [expected]


def test_a_fixed_time_that_the_clock_skips_runs_right_after_the_gap() -> None:
    assert launches("30 2 * * *", "2026-03-08 00:00", "America/New_York", 2) == [
        "2026-03-08 03:00:00",
        "2026-03-09 02:30:00",
    ]


def test_a_fixed_time_that_comes_twice_runs_once() -> None:
    assert launches("30 1 * * *", "2026-11-01 00:00", "America/New_York", 2) == [
        "2026-11-01 01:30:00",
        "2026-11-02 01:30:00",
    ]


def test_an_hourly_job_runs_every_real_hour_through_both_changes() -> None:
    for start in ("2026-03-08 00:00", "2026-11-01 00:00"):
        after = at(start, "America/New_York")
        for _ in range(30):
            found = next_launch("15 * * * *", after, "America/New_York")
            assert found is not None
            assert found - after <= 3600 * 10**9
            after = found


def test_an_expression_without_a_future_has_no_next_launch() -> None:
    assert next_launch("0 0 1 1 * 2020", at("2026-01-01 00:00")) is None
    assert next_launch("0 0 31 2 *", at("2026-01-01 00:00")) is None


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("nope", "missing field(s)"),
        ("", "missing field(s)"),
        ("* * * * * * * *", "too many fields"),
        ("61 * * * *", "syntax error in minute field: '61'"),
        ("* 24 * * *", "syntax error in hour field: '24'"),
        ("* * 0 * *", "syntax error in day-of-month field: '0'"),
        ("* * * foo *", "syntax error in month field: 'foo'"),
        ("* * * * mon#6", "syntax error in day-of-week field: 'mon#6'"),
        ("*/0 * * * *", "syntax error in minute field: '*/0'"),
        ("5-1 * * * *", "syntax error in minute field: '5-1'"),
        ("1,,2 * * * *", "syntax error in minute field: ''"),
        ("@fortnightly", "missing field(s)"),
    ],
)
def test_a_bad_expression_names_its_field(spec: str, fault: str) -> None:
    assert fault_of(spec) == fault


def test_an_unknown_zone_is_refused() -> None:
    for zone in ("Mars/Olympus", "../etc/passwd", "/etc/localtime"):
        with pytest.raises(CronError, match="unknown time zone"):
            next_launch("@daily", 0, zone)


@given(
    st.sampled_from(
        [
            "* * * * *",
            "*/7 3-5 * * *",
            "0 0 L * *",
            "13 2 * * 0",
            "0 12 1,15 * mon-fri",
            "*/10 * * * * * *",
        ]
    ),
    st.integers(0, int(datetime(2090, 1, 1, tzinfo=UTC).timestamp())),
    st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata"]),
)
def test_the_next_launch_is_later_and_nothing_lies_between(
    spec: str, second: int, zone: str
) -> None:
    after = second * 10**9
    found = next_launch(spec, after, zone)
    assert found is not None
    assert found > after
    middle = after + (found - after) // 2 // 10**9 * 10**9
    assert next_launch(spec, middle, zone) == found


@given(st.text(alphabet="0123456789*/,-LW#?@ abcdjmnorfu", max_size=24))
def test_any_text_is_a_schedule_or_a_cron_error(text: str) -> None:
    if not fault_of(text):
        next_launch(text, 0)
