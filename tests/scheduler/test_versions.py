"""Version comparison and constraint operators."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadpy.scheduler.operators import holds
from nomadpy.scheduler.versions import compare, parse_version, satisfies


@pytest.mark.parametrize(
    ("version", "constraints", "expected"),
    [
        ("1.2.3", "= 1.2.3", True),
        ("1.2", "1.2.0", True),
        ("v1.2.3", ">= 1.2, < 2", True),
        ("2.0.0", ">= 1.2, < 2", False),
        ("1.2.3", "!= 1.2.3", False),
        ("1.10.0", "> 1.9", True),
        ("1.2.5", "~> 1.2.3", True),
        ("1.3.0", "~> 1.2.3", False),
        ("1.9", "~> 1.2", True),
        ("2.0", "~> 1.2", False),
        ("3.1", "~> 2", True),
        ("1.7.0-beta", ">= 1.6", False),
        ("1.7.0-beta2", ">= 1.7.0-beta1", True),
        ("1.7.0", "> 1.7.0-beta1", True),
        ("6.18.44-fc-v669", ">= 6.1", False),
        ("6.18.44", ">= 6.1", True),
        ("17.0.15", "> 17, < 18", True),
        ("20.10.24+dfsg1", ">= 20.10.24", True),
        ("debian", "> 1", False),
        ("1.0", "newest", False),
        ("", ">= 0", False),
        ("1.0", "", False),
    ],
)
def test_version_follows_the_lenient_rules(version: str, constraints: str, expected: bool) -> None:
    assert satisfies(version, constraints) is expected


@pytest.mark.parametrize(
    ("version", "constraints", "expected"),
    [
        ("1.7.0-beta", ">= 1.6.0", True),
        ("1.7.0-beta", ">= 1.7.0", False),
        ("1.2.3", "~> 1.2", False),
        ("1.0.0-alpha.2", "> 1.0.0-alpha.1", True),
        ("1.0.0-alpha.10", "> 1.0.0-alpha.9", True),
        ("1.0.0-alpha.x", "> 1.0.0-alpha.9", True),
        ("1.0.0", "> 1.0.0-rc.1", True),
    ],
)
def test_semver_orders_pre_releases_before_the_release(
    version: str, constraints: str, expected: bool
) -> None:
    assert satisfies(version, constraints, strict=True) is expected


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=4),
    st.lists(st.integers(0, 99), min_size=1, max_size=4),
)
def test_comparison_is_antisymmetric_and_padded_with_zeros(
    left: list[int], right: list[int]
) -> None:
    one, other = (parse_version(".".join(map(str, parts))) for parts in (left, right))
    assert one is not None
    assert other is not None
    assert compare(one, other) == -compare(other, one)
    padded = parse_version(".".join(map(str, [*left, 0, 0])))
    assert padded is not None
    assert compare(one, padded) == 0


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_text_makes_a_version_check_fail_with_an_exception(
    version: str, constraints: str
) -> None:
    assert satisfies(version, constraints) in (True, False)
    assert satisfies(version, constraints, strict=True) in (True, False)


@pytest.mark.parametrize(
    ("left", "operator", "right", "expected"),
    [
        ("linux", "=", "linux", True),
        ("linux", "==", "windows", False),
        ("linux", "is", "linux", True),
        (None, "=", "linux", False),
        (None, "=", None, False),
        ("linux", "!=", "windows", True),
        (None, "!=", "linux", True),
        ("linux", "not", "linux", False),
        ("10", ">", "9", True),
        ("abc", "<", "abd", True),
        ("1.5", ">=", "1.25", True),
        ("9", "<=", "10", True),
        ("9a", "<", "10", False),
        (None, "<", "10", False),
        ("compute-7", "regexp", "^compute-[0-9]+$", True),
        ("db-7", "regexp", "^compute", False),
        ("x", "regexp", "(", False),
        ("ssd, fast,new", "set_contains", "fast,ssd", True),
        ("ssd", "set_contains_all", "fast,ssd", False),
        ("ssd", "set_contains_any", "fast, ssd", True),
        ("hdd", "set_contains_any", "fast,ssd", False),
        ("x", "is_set", "", True),
        (None, "is_set", "", False),
        (None, "is_not_set", "", True),
        ("1.2", "version", ">= 1", True),
        ("1.2.0", "semver", ">= 1.0.0", True),
        ("x", "not_regexp", "y", False),
    ],
)
def test_operators_hold_as_documented(
    left: str | None, operator: str, right: str | None, expected: bool
) -> None:
    assert holds(operator, left, right) is expected
