"""Constraints, affinities and spreads: what a job says about where it runs."""

from __future__ import annotations

from nomadpy.models.base import Wire


class Constraint(Wire, frozen=True, kw_only=True):
    l_target: str = ""
    r_target: str = ""
    operand: str = ""


class Affinity(Wire, frozen=True, kw_only=True):
    l_target: str = ""
    r_target: str = ""
    operand: str = ""
    weight: int | None = None


class SpreadTarget(Wire, frozen=True, kw_only=True):
    value: str = ""
    percent: int = 0


class Spread(Wire, frozen=True, kw_only=True):
    attribute: str = ""
    weight: int | None = None
    spread_target: list[SpreadTarget] | None = None
