"""When a periodic job is launched next: cron expressions in Nomad's reading.

Five fields are minute, hour, day of month, month, day of week; a sixth is the year; with seven the first is seconds.
`@yearly @annually @monthly @weekly @daily @midnight @hourly` stand for whole expressions. Days know `L` (last), `LW`, `15W`
(nearest weekday), `5L` (last Friday) and `5#3` (third Friday); `?` is `*`. Where both day fields are restricted, either matches.

Daylight saving: a fixed time that the clock skips runs at the first moment after the gap, and one that comes twice runs the
first time only; expressions whose minute or hour starts with `*` follow the clock as it goes.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

SECOND_NS = 1_000_000_000

_ALIASES = {
    "@yearly": "0 0 0 1 1 * *",
    "@annually": "0 0 0 1 1 * *",
    "@monthly": "0 0 0 1 * * *",
    "@weekly": "0 0 0 * * 0 *",
    "@daily": "0 0 0 * * * *",
    "@midnight": "0 0 0 * * * *",
    "@hourly": "0 0 * * * * *",
}
_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_name) if name} | {
    name.lower(): number for number, name in enumerate(calendar.month_abbr) if name
}
# Cron counts from Sunday, Python from Monday.
_WEEKDAYS = {name.lower(): (number + 1) % 7 for number, name in enumerate(calendar.day_name)} | {
    name.lower(): (number + 1) % 7 for number, name in enumerate(calendar.day_abbr)
}
_FIRST_YEAR, _LAST_YEAR = 1970, 2099
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The clock has never been moved by more than this at once in a zone that uses daylight saving.
_LARGEST_SHIFT = timedelta(hours=3)


class CronError(ValueError):
    """The text is no cron expression; the message says which field."""


@dataclass(frozen=True)
class _Days:
    """Which days of a month match by one of the two day fields."""

    restricted: bool
    plain: frozenset[int]
    last: bool = False
    last_workday: bool = False
    near_workday: frozenset[int] = frozenset()
    last_weekday: frozenset[int] = frozenset()
    nth_weekday: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Schedule:
    """A parsed expression."""

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: frozenset[int]
    years: frozenset[int]
    month_days: _Days
    week_days: _Days
    follows_clock: bool

    def days(self, year: int, month: int) -> list[int]:
        """The days of that month that match, ascending."""
        length = calendar.monthrange(year, month)[1]
        # Cron's weekday (Sunday is 0) of each day of the month.
        first = date(year, month, 1).isoweekday() % 7
        every = range(1, length + 1)
        if not self.month_days.restricted and not self.week_days.restricted:
            return list(every)
        found: set[int] = set()
        if self.month_days.restricted:
            found |= _by_month_day(self.month_days, length, first)
        if self.week_days.restricted:
            found |= _by_week_day(self.week_days, length, first)
        return sorted(found)


def next_launch(spec: str, after_ns: int, zone: str = "UTC") -> int | None:
    """Return the first launch strictly after `after_ns` (unix ns), or None when there is none left.

    zone: IANA name. Raises CronError for a bad expression or an unknown zone.
    """
    schedule = parse(spec)
    tz = _zone(zone)
    after = _EPOCH + timedelta(seconds=after_ns // SECOND_NS)
    found = _next(schedule, after, tz)
    if found is None:
        return None
    return int((found - _EPOCH).total_seconds()) * SECOND_NS


def fault_of(spec: str) -> str:
    """Return why `spec` is no cron expression, or ""."""
    try:
        parse(spec)
    except CronError as fault:
        return str(fault)
    return ""


def known_zone(zone: str) -> bool:
    """Whether `zone` is an IANA time zone."""
    try:
        _zone(zone)
    except CronError:
        return False
    return True


@lru_cache(maxsize=1024)
def parse(spec: str) -> Schedule:
    """Parse a cron expression. Raises CronError."""
    text = _ALIASES.get(spec.strip().lower(), spec)
    fields = text.split()
    if len(fields) < 5:
        raise CronError("missing field(s)")
    if len(fields) > 7:
        raise CronError("too many fields")
    if len(fields) < 7:
        fields = ["0", *fields]
    if len(fields) < 7:
        fields.append("*")
    second, minute, hour, month_day, month, week_day, year = fields
    return Schedule(
        seconds=tuple(sorted(_values(second, "second", 0, 59))),
        minutes=tuple(sorted(_values(minute, "minute", 0, 59))),
        hours=tuple(sorted(_values(hour, "hour", 0, 23))),
        month_days=_month_days(month_day),
        months=frozenset(_values(month, "month", 1, 12, _MONTHS)),
        week_days=_week_days(week_day),
        years=frozenset(_values(year, "year", _FIRST_YEAR, _LAST_YEAR)),
        follows_clock=minute.startswith("*") or hour.startswith("*"),
    )


def _values(
    text: str, field: str, low: int, high: int, names: dict[str, int] | None = None
) -> set[int]:
    out: set[int] = set()
    for part in text.split(","):
        out |= _part(part, field, low, high, names or {})
    return out


def _part(part: str, field: str, low: int, high: int, names: dict[str, int]) -> set[int]:
    """`*`, `5`, `1-5`, and each with `/step`."""
    fault = CronError(f"syntax error in {field} field: '{part}'")
    span, slash, step_text = part.partition("/")
    step = 1
    if slash:
        if not (step_text.isascii() and step_text.isdigit()) or not 0 < int(step_text) <= high:
            raise fault
        step = int(step_text)
    if span in ("*", "?"):
        return set(range(low, high + 1, step))
    start_text, dash, end_text = span.partition("-")
    start = _number(start_text, names)
    end = _number(end_text, names) if dash else (high if slash else start)
    if start is None or end is None or not low <= start <= end <= high:
        raise fault
    return set(range(start, end + 1, step))


def _number(text: str, names: dict[str, int]) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= 4:
        return int(text)
    return names.get(text.lower())


def _month_days(text: str) -> _Days:
    plain: set[int] = set()
    near: set[int] = set()
    last = last_workday = False
    for part in text.split(","):
        upper = part.upper()
        if upper == "L":
            last = True
        elif upper in ("LW", "WL"):
            last_workday = True
        elif upper.endswith("W"):
            near |= _part(part[:-1], "day-of-month", 1, 31, {})
        else:
            plain |= _part(part, "day-of-month", 1, 31, {})
    return _Days(
        restricted=not _is_any(text),
        plain=frozenset(plain),
        last=last,
        last_workday=last_workday,
        near_workday=frozenset(near),
    )


def _week_days(text: str) -> _Days:
    plain: set[int] = set()
    last: set[int] = set()
    nth: set[tuple[int, int]] = set()
    for part in text.split(","):
        if "#" in part:
            day, _, number = part.partition("#")
            if number not in ("1", "2", "3", "4", "5"):
                raise CronError(f"syntax error in day-of-week field: '{part}'")
            for one in _part(day, "day-of-week", 0, 7, _WEEKDAYS):
                nth.add((one % 7, int(number)))
        elif part.upper() == "L":
            plain.add(6)
        elif part.upper().endswith("L") and part.lower() not in _WEEKDAYS:
            last |= {one % 7 for one in _part(part[:-1], "day-of-week", 0, 7, _WEEKDAYS)}
        else:
            plain |= {one % 7 for one in _part(part, "day-of-week", 0, 7, _WEEKDAYS)}
    return _Days(
        restricted=not _is_any(text),
        plain=frozenset(plain),
        last_weekday=frozenset(last),
        nth_weekday=frozenset(nth),
    )


def _is_any(text: str) -> bool:
    return text in ("*", "?", "*/1")


def _by_month_day(rule: _Days, length: int, first: int) -> set[int]:
    found = {day for day in rule.plain if day <= length}
    if rule.last:
        found.add(length)
    if rule.last_workday:
        found.add(_nearest_workday(length, length, first))
    for day in rule.near_workday:
        if day <= length:
            found.add(_nearest_workday(day, length, first))
    return found


def _nearest_workday(day: int, length: int, first: int) -> int:
    """Monday to Friday nearest to the day, within its month."""
    weekday = (first + day - 1) % 7
    if weekday == 6:
        return day - 1 if day > 1 else day + 2
    if weekday == 0:
        return day + 1 if day < length else day - 2
    return day


def _by_week_day(rule: _Days, length: int, first: int) -> set[int]:
    found: set[int] = set()
    for day in range(1, length + 1):
        weekday = (first + day - 1) % 7
        if (
            weekday in rule.plain
            or (weekday in rule.last_weekday and day + 7 > length)
            or (weekday, (day - 1) // 7 + 1) in rule.nth_weekday
        ):
            found.add(day)
    return found


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise CronError(f"unknown time zone {name}") from None


def _next(schedule: Schedule, after: datetime, tz: ZoneInfo) -> datetime | None:
    """Return the first launch after `after`, both in UTC."""
    # The same wall time may come twice, and a skipped one runs later than written: begin a little early.
    start = after.astimezone(tz).replace(tzinfo=None) - _LARGEST_SHIFT
    for day in _dates(schedule, start.date()):
        best: datetime | None = None
        for fold in (0, 1) if schedule.follows_clock else (0,):
            for local in _times(schedule, day, start):
                instant = _instant(local, tz, fold, follows_clock=schedule.follows_clock)
                if instant is not None and instant > after:
                    best = instant if best is None else min(best, instant)
                    break
        if best is not None:
            return best
    return None


def _dates(schedule: Schedule, start: date) -> Iterator[date]:
    for year in range(max(start.year, _FIRST_YEAR), _LAST_YEAR + 1):
        if year not in schedule.years:
            continue
        for month in range(1, 13):
            if month not in schedule.months or (year, month) < (start.year, start.month):
                continue
            for day in schedule.days(year, month):
                found = date(year, month, day)
                if found >= start:
                    yield found


def _times(schedule: Schedule, day: date, start: datetime) -> Iterator[datetime]:
    """The wall times of that day, from `start` on."""
    for hour in schedule.hours:
        if datetime.combine(day, time(hour, 59, 59)) < start:
            continue
        for minute in schedule.minutes:
            for second in schedule.seconds:
                local = datetime.combine(day, time(hour, minute, second))
                if local >= start:
                    yield local


def _instant(local: datetime, tz: ZoneInfo, fold: int, *, follows_clock: bool) -> datetime | None:
    """Return when a wall time happens, in UTC; None when it does not, or not for this fold."""
    aware = local.replace(tzinfo=tz, fold=fold)
    instant = aware.astimezone(UTC)
    if instant.astimezone(tz).replace(tzinfo=None) == local:
        return instant
    if follows_clock:
        return None
    # Skipped: before the change this wall time would be `instant`, after it `later`; the change lies between.
    low = local.replace(tzinfo=tz, fold=1).astimezone(UTC)
    high = instant
    offset = high.astimezone(tz).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // 2
        if middle.astimezone(tz).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return high.replace(microsecond=0)
