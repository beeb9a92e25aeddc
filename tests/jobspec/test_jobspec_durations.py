from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.jobspec.durations import format_duration, go_quote, parse_duration


@given(st.integers(min_value=-(1 << 62), max_value=1 << 62))
def test_a_formatted_duration_parses_back(ns: int) -> None:
    assert parse_duration(format_duration(ns)) == ns


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (2_000_000, "2ms"),
        (1_000_000_000, "1s"),
        (90_000_000_000, "1m30s"),
        (3_600_000_000_000, "1h0m0s"),
        (-5_400_100_000_000, "-1h30m0.1s"),
    ],
)
def test_durations_read_as_go_writes_them(ns: int, text: str) -> None:
    assert format_duration(ns) == text


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("300ms", 300_000_000),
        ("-1.5h", -5_400_000_000_000),
        ("2h45m", 9_900_000_000_000),
        ("1us", 1000),
        ("1µs", 1000),
        (".5s", 500_000_000),
        ("+1s", 10**9),
        ("0", 0),
    ],
)
def test_go_durations_parse(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("5", 'time: missing unit in duration "5"'),
        ("", 'time: invalid duration ""'),
        ("s", 'time: invalid duration "s"'),
        ("1.s.", 'time: invalid duration "1.s."'),
        ("10 parsecs", 'time: unknown unit " parsecs" in duration "10 parsecs"'),
        ("9999999999999h", 'time: invalid duration "9999999999999h"'),
        ("-", 'time: invalid duration "-"'),
    ],
)
def test_a_bad_duration_is_refused_in_go_words(text: str, fault: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_duration(text)
    assert str(refused.value) == fault


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        ns = parse_duration(text)
    except ValueError:
        return
    assert abs(ns) < 1 << 63


def test_quoting_escapes_what_go_escapes() -> None:
    assert go_quote('a"b\\\n\x01') == '"a\\"b\\\\\\n\\x01"'
