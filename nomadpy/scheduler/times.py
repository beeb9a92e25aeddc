"""Between the wire's RFC 3339 times and nanoseconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from nomadpy.models.base import ZERO_TIME

SECOND_NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHAPE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)")


def to_ns(text: str | None) -> int:
    """Return nanoseconds since 1970; 0 for None, the zero time and anything malformed."""
    if not text or text == ZERO_TIME:
        return 0
    match = _SHAPE.fullmatch(text)
    if match is None:
        return 0
    zone = "+00:00" if match[3] == "Z" else match[3]
    whole = datetime.fromisoformat(match[1] + zone) - _EPOCH
    fraction = int((match[2] or "").ljust(9, "0"))
    return (whole.days * 86400 + whole.seconds) * SECOND_NS + fraction


def to_text(ns: int) -> str:
    """Return the RFC 3339 text, UTC, without trailing zeros, as Go writes it."""
    seconds, fraction = divmod(ns, SECOND_NS)
    whole = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{whole}{digits}Z"
