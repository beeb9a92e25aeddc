"""Times as Go writes them in JSON: RFC 3339, UTC, up to nine decimals without trailing zeros."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from nomadpy.models.base import ZERO_TIME

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def from_ns(moment_ns: int) -> str:
    """Return the text of nanoseconds since 1970; 0 is Go's zero time.

    >>> from_ns(1_795_393_293_848_282_077)
    '2026-11-23T00:21:33.848282077Z'
    """
    if moment_ns == 0:
        return ZERO_TIME
    seconds, nanos = divmod(moment_ns, 1_000_000_000)
    text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanos:09d}".rstrip("0").rstrip(".")
    return f"{text}{fraction}Z"


def to_ns(text: str) -> int:
    """Return nanoseconds since 1970; the zero time and "" are 0. Raises ValueError for what is not a time."""
    if not text or text == ZERO_TIME:
        return 0
    head, _, rest = text.partition(".")
    digits = ""
    if rest:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        zone = rest[len(digits) :]
    else:
        head, zone = (head[:-1], "Z") if head.endswith("Z") else (head[:-6], head[-6:])
    moment = datetime.fromisoformat(head + ("+00:00" if zone == "Z" else zone))
    whole = moment - _EPOCH
    return (whole.days * 86_400 + whole.seconds) * 1_000_000_000 + int((digits + "0" * 9)[:9])
