"""How things look as text: aligned tables and pairs, times, ages, sizes, durations; always plain."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from nomadpy.clock import SystemClock

_UNITS = (
    (86_400_000_000_000, "d"),
    (3_600_000_000_000, "h"),
    (60_000_000_000, "m"),
    (1_000_000_000, "s"),
)
_AGES = ((365 * 86400, "y"), (30 * 86400, "mo"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
ZERO_TIME = "0001-01-01T00:00:00Z"


def say(text: str = "") -> None:
    """One line (or several) to stdout, at once: others may read it through a pipe."""
    print(text, flush=True)


def warn(text: str) -> None:
    """To stderr."""
    print(text, file=sys.stderr, flush=True)


def say_json(value: Any) -> None:
    """The API's JSON, indented."""
    say(json.dumps(value, indent=4, ensure_ascii=False))


def table(header: str, rows: Iterable[Sequence[object]]) -> str:
    """Columns, two blanks apart. header: the column names, `|` between them. An empty cell shows as <none>."""
    lines = [header.split("|")]
    lines += [[_cell(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def pairs(rows: Iterable[tuple[str, object]]) -> str:
    """`Name = value` lines with the equals signs below each other."""
    listed = [(name, _cell(value)) for name, value in rows]
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join(f"{name.ljust(width)} = {value}" for name, value in listed)


def section(title: str, body: str) -> None:
    """A titled part, set off by an empty line."""
    say(f"\n{title}\n{body}")


def now_ns() -> int:
    """The wall clock of this machine."""
    return SystemClock().now_ns()


def stamp(ns: int | None = None) -> str:
    """A time as RFC 3339 in UTC, to the second; now without an argument; N/A for 0."""
    if ns == 0:
        return "N/A"
    moment = (now_ns() if ns is None else ns) / 1e9
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def stamp_text(text: str | None) -> str:
    """An RFC 3339 text to the second; N/A for none or Go's zero time."""
    if not text or text.startswith("0001-"):
        return "N/A"
    return text[:19] + "Z"


def age(ns: int) -> str:
    """How long ago: 2h5m ago, at most two units."""
    if not ns:
        return "N/A"
    seconds = max(0, (now_ns() - ns) // 1_000_000_000)
    words: list[str] = []
    for size, unit in _AGES:
        if len(words) == 2:
            break
        count, rest = divmod(seconds, size)
        if count:
            words.append(f"{count}{unit}")
        elif words:
            break
        seconds = rest
    return f"{''.join(words) or '0s'} ago"


def duration(ns: int) -> str:
    """A duration as Go writes it, whole seconds: 1h30m0s."""
    if abs(ns) < 1_000_000_000:
        return f"{ns // 1_000_000}ms" if ns else "0s"
    sign, left = ("-", -ns) if ns < 0 else ("", ns)
    hours, left = divmod(left, _UNITS[1][0])
    minutes, left = divmod(left, _UNITS[2][0])
    seconds = left // _UNITS[3][0]
    head = f"{hours}h" if hours else ""
    middle = f"{minutes}m" if hours or minutes else ""
    return f"{sign}{head}{middle}{seconds}s"


def parse_duration(text: str) -> int | None:
    """Nanoseconds of 1h30m, 90s, 200ms; None when it is none."""
    import re

    if not re.fullmatch(r"-?(\d+(\.\d+)?(h|m|s|ms))+", text):
        return 0 if text == "0" else None
    sizes = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    total = sum(
        float(n) * sizes[unit] for n, _, unit in re.findall(r"(\d+(\.\d+)?)(h|ms|m|s)", text)
    )
    return int(total * 1e9) * (-1 if text.startswith("-") else 1)


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def short(identity: str | None, length: int = 8) -> str:
    """An id as long as it is shown."""
    return (identity or "")[:length]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else str(value)
    return text if text else "<none>"
