"""A checker's verdict."""

from __future__ import annotations

from typing import Any

import msgspec


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """valid: None when it could not be decided. offending: the fewest operations that show the fault, as text.

    moments: when they were, in nanoseconds, for the pictures. facts: figures.
    """

    checker: str
    valid: bool | None
    summary: str
    offending: list[str] = []
    moments: list[int] = []
    facts: dict[str, Any] = {}


def worst(results: list[Result]) -> bool | None:
    """Invalid if any is; unknown if any is; else valid."""
    if any(r.valid is False for r in results):
        return False
    return None if any(r.valid is None for r in results) else True
