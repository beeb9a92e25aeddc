"""Compare versions and check them against constraint lists such as `>= 1.5, < 3.0`.

Two readings exist. `version` is lenient: any number of segments, `~>` known, and a pre-release only matches a
constraint that names a pre-release itself. `semver` takes Semantic Versioning 2.0 only, knows no `~>`, and orders
pre-releases before their release, so `1.7.0-beta` satisfies `>= 1.6`.
Source: the behaviour of hashicorp/go-version as Nomad's constraints use it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_LENIENT = re.compile(
    r"v?(\d+(?:\.\d+)*)"
    r"(?:-(\d+[0-9A-Za-z\-~]*(?:\.[0-9A-Za-z\-~]+)*)|-?([A-Za-z\-~]+[0-9A-Za-z\-~]*(?:\.[0-9A-Za-z\-~]+)*))?"
    r"(?:\+([0-9A-Za-z\-~]+(?:\.[0-9A-Za-z\-~]+)*))?"
)
_STRICT = re.compile(
    r"v?(\d+(?:\.\d+)*)"
    r"(?:-((?:\d+[0-9A-Za-z\-~]*|[A-Za-z\-~]+[0-9A-Za-z\-~]*)(?:\.[0-9A-Za-z\-~]+)*))?()"
    r"(?:\+([0-9A-Za-z\-~]+(?:\.[0-9A-Za-z\-~]+)*))?"
)
_CONSTRAINT = re.compile(r"\s*(~>|>=|<=|!=|>|<|=)?\s*(\S+)\s*")


class Version(NamedTuple):
    """A parsed version. `segments` has at least three numbers; `given` is how many were written."""

    segments: tuple[int, ...]
    prerelease: str
    given: int


class VersionConstraint(NamedTuple):
    """One `operator version` of a constraint list."""

    operator: str
    version: Version


@lru_cache(maxsize=4096)
def parse_version(text: str, *, strict: bool = False) -> Version | None:
    """Return the version that `text` spells, or None when it spells none."""
    match = (_STRICT if strict else _LENIENT).fullmatch(text.strip())
    if match is None:
        return None
    segments = [int(part) for part in match[1].split(".")]
    given = len(segments)
    segments += [0] * (3 - given)
    return Version(tuple(segments), match[2] or match[3] or "", given)


@lru_cache(maxsize=1024)
def parse_constraints(text: str, *, strict: bool = False) -> tuple[VersionConstraint, ...] | None:
    """Return the comma-separated constraints in `text`, or None when one of them is malformed."""
    constraints = []
    for part in text.split(","):
        match = _CONSTRAINT.fullmatch(part)
        if match is None:
            return None
        operator = match[1] or "="
        version = parse_version(match[2], strict=strict)
        if version is None or (strict and operator == "~>"):
            return None
        constraints.append(VersionConstraint(operator, version))
    return tuple(constraints)


def compare(left: Version, right: Version) -> int:
    """Return -1, 0 or 1. Missing segments count as zero; a pre-release stands before its release."""
    width = max(len(left.segments), len(right.segments))
    padded_left = left.segments + (0,) * (width - len(left.segments))
    padded_right = right.segments + (0,) * (width - len(right.segments))
    if padded_left != padded_right:
        return 1 if padded_left > padded_right else -1
    return _compare_prerelease(left.prerelease, right.prerelease)


def satisfies(version: str, constraints: str, *, strict: bool = False) -> bool:
    """Whether `version` meets every constraint; False when either text is malformed."""
    parsed = parse_version(version, strict=strict)
    wanted = parse_constraints(constraints, strict=strict)
    if parsed is None or wanted is None:
        return False
    return all(_meets(parsed, one, strict=strict) for one in wanted)


def _meets(version: Version, constraint: VersionConstraint, *, strict: bool) -> bool:
    operator, wanted = constraint
    order = compare(version, wanted)
    if operator == "=":
        return order == 0
    if operator == "!=":
        return order != 0
    if not strict and not _prerelease_allowed(version, wanted):
        return False
    if operator == ">":
        return order > 0
    if operator == ">=":
        return order >= 0
    if operator == "<":
        return order < 0
    if operator == "<=":
        return order <= 0
    return _pessimistic(version, wanted, order)


def _prerelease_allowed(version: Version, wanted: Version) -> bool:
    """A pre-release is only compared with a constraint on a pre-release of the same numbers."""
    if not version.prerelease:
        return True
    return bool(wanted.prerelease) and version.segments == wanted.segments


def _pessimistic(version: Version, wanted: Version, order: int) -> bool:
    """`~> 1.2.3` is `>= 1.2.3, < 1.3`; `~> 1.2` is `>= 1.2, < 2`."""
    if order < 0 or (wanted.prerelease and not version.prerelease):
        return False
    if len(wanted.segments) > len(version.segments):
        return False
    fixed = wanted.given - 1
    return version.segments[:fixed] == wanted.segments[:fixed]


def _compare_prerelease(left: str, right: str) -> int:
    if left == right:
        return 0
    if not left:
        return 1
    if not right:
        return -1
    left_parts, right_parts = left.split("."), right.split(".")
    for one, other in zip(left_parts, right_parts, strict=False):
        if one != other:
            return _compare_part(one, other)
    return 1 if len(left_parts) > len(right_parts) else -1


def _compare_part(left: str, right: str) -> int:
    """Numbers compare as numbers and stand before words."""
    left_number, right_number = left.isdigit(), right.isdigit()
    if left_number and right_number:
        return 1 if int(left) > int(right) else -1
    if left_number != right_number:
        return -1 if left_number else 1
    return 1 if left > right else -1
