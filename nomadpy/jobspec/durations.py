"""Durations as jobs write them; the rules are the configuration language's, in hcl/durations.py."""

from __future__ import annotations

from nomadpy.hcl.durations import (
    HOUR,
    MICROSECOND,
    MILLISECOND,
    MINUTE,
    NANOSECOND,
    SECOND,
    format_duration,
    go_quote,
    parse_duration,
)

__all__ = [
    "HOUR",
    "MICROSECOND",
    "MILLISECOND",
    "MINUTE",
    "NANOSECOND",
    "SECOND",
    "format_duration",
    "go_quote",
    "parse_duration",
]
