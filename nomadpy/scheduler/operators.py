"""The constraint operators: does a node's value stand in the asked relation to the job's value.

`distinct_hosts` and `distinct_property` look at other allocations and live in feasibility.py and distinct.py.
"""

from __future__ import annotations

import re
from functools import lru_cache

from nomadpy.models.quantities import Quantity, quantity
from nomadpy.scheduler.versions import satisfies

DISTINCT_HOSTS = "distinct_hosts"
DISTINCT_PROPERTY = "distinct_property"

_EQUAL = frozenset({"=", "==", "is"})
_UNEQUAL = frozenset({"!=", "not"})
_ORDERED = frozenset({"<", "<=", ">", ">="})


def holds(operator: str, left: str | None, right: str | None) -> bool:
    """Whether `left operator right`; None is an absent value (an interpolation that found nothing).

    Unknown operators never hold, so that a job of a newer version is not placed wrongly.
    """
    if operator in _EQUAL:
        return left is not None and right is not None and left == right
    if operator in _UNEQUAL:
        # An absent value differs from any present one.
        return left != right
    if operator == "is_set":
        return left is not None
    if operator == "is_not_set":
        return left is None
    if left is None or right is None:
        return False
    if operator in _ORDERED:
        return _ordered(operator, left, right)
    if operator == "version":
        return satisfies(left, right)
    if operator == "semver":
        return satisfies(left, right, strict=True)
    if operator == "regexp":
        pattern = _compile(right)
        return pattern is not None and pattern.search(left) is not None
    if operator in ("set_contains", "set_contains_all"):
        return _members(right) <= _members(left)
    if operator == "set_contains_any":
        return not _members(right).isdisjoint(_members(left))
    return False


def amounts_hold(operator: str, left: str | None, right: str | None) -> bool:
    """As `holds`, but what are quantities (`11 GiB`, `16000 MB`) is compared by amount.

    Amounts of different kinds are never one above the other.
    """
    if left is not None and right is not None:
        one, other = quantity(left), quantity(right)
        if one is not None and other is not None:
            if operator in _EQUAL:
                return one == other
            if operator in _UNEQUAL:
                return one != other
            if operator in _ORDERED:
                return one.measure == other.measure and _amounts_ordered(operator, one, other)
    return holds(operator, left, right)


def _ordered(operator: str, left: str, right: str) -> bool:
    """Compare as integers when both are, else as floats when both are, else as text."""
    one: int | float | str
    other: int | float | str
    try:
        one, other = int(left), int(right)
    except ValueError:
        try:
            one, other = float(left), float(right)
        except ValueError:
            one, other = left, right
    if operator == "<":
        return one < other  # type: ignore[operator]
    if operator == "<=":
        return one <= other  # type: ignore[operator]
    if operator == ">":
        return one > other  # type: ignore[operator]
    return one >= other  # type: ignore[operator]


def _members(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(","))


@lru_cache(maxsize=512)
def _compile(pattern: str) -> re.Pattern[str] | None:
    """Go's RE2 syntax is nearly Python's; a pattern that Python cannot read matches nothing."""
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _amounts_ordered(operator: str, one: Quantity, other: Quantity) -> bool:
    if operator == "<":
        return one.amount < other.amount
    if operator == "<=":
        return one.amount <= other.amount
    if operator == ">":
        return one.amount > other.amount
    return one.amount >= other.amount
