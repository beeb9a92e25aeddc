"""Counters, gauges and timers of one node, shown as Nomad's /v1/metrics JSON and as Prometheus text.

In:      `registry.count("nomad.rpc.request")`, `gauge(...)`, `observe(...)`; collectors that fill gauges when asked.
Out:     `json_body()` (the last whole interval) and `prometheus_text()` (totals since the start).
Bounded: at most MAX_SERIES series of each kind; what would be one more is dropped, and the dropping is shown.
Not here: who may read it, and whether Prometheus is allowed (api/status.py).
"""

from __future__ import annotations

import bisect
import collections
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from nomadpy.clock import Clock, SystemClock

INTERVAL_S = 10
SAMPLES_KEPT = 256
MAX_SERIES = 2_000
DROPPED = "nomad.metrics.series_dropped"

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]

_NOT_PROMETHEUS = re.compile(r"[^a-zA-Z0-9_:]")
_QUANTILES = (0.5, 0.9, 0.99)


class _Window:
    """What was observed of one name within one interval."""

    __slots__ = ("count", "highest", "lowest", "squares", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.squares = 0.0
        self.lowest = math.inf
        self.highest = -math.inf

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value
        # Not min() and max(): this runs for every call of the node, and they cost more than all of the above.
        if value < self.lowest:
            self.lowest = value
        if value > self.highest:
            self.highest = value

    def deviation(self) -> float:
        """The sample's standard deviation; 0 below two values."""
        if self.count < 2:
            return 0.0
        spread = self.squares - self.total * self.total / self.count
        return math.sqrt(max(spread, 0.0) / (self.count - 1))


class _Interval:
    """All that was observed since `started_ns`."""

    def __init__(self, started_ns: int) -> None:
        self.started_ns = started_ns
        self.counters: dict[Key, _Window] = {}
        self.timers: dict[Key, _Window] = {}


class _Total:
    """What Prometheus sees of a timer: sum and count since the start, quantiles of the last values."""

    __slots__ = ("count", "recent", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.recent: collections.deque[float] = collections.deque(maxlen=SAMPLES_KEPT)


class Registry:
    """The figures of one node. Names are dotted (`nomad.rpc.request`); timers are in milliseconds.

    A name and its labels make a series, so labels must have few values. Not thread-safe: call it on the event loop.
    """

    def __init__(self, clock: Clock | None = None, labels: dict[str, str] | None = None) -> None:
        """labels: added to every series, e.g. {"host": "vm"}."""
        self._clock = clock or SystemClock()
        self._base = labels or {}
        self._refreshers: list[Callable[[], Awaitable[None]]] = []
        self._collectors: list[Callable[[Registry], None]] = []
        self._gauges: dict[Key, float] = {}
        self._collected: dict[Key, float] | None = None
        self._counter_totals: dict[Key, float] = {}
        self._timer_totals: dict[Key, _Total] = {}
        self._dropped = 0
        self._finished: _Interval | None = None
        self._begin(self._clock.now_ns())

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Something happened `amount` times."""
        key = (name, _labels(labels))
        total = self._counter_totals.get(key)
        if total is None and self._is_full(self._counter_totals):
            return
        self._counter_totals[key] = (total or 0.0) + amount
        window = self._interval().counters.get(key)
        if window is None:
            window = self._current.counters[key] = _Window()
        window.add(amount)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """The value is this now; it stays until it is set again or dropped.

        One that a collector sets lasts for that rendering only. A value that is no finite number is left out.
        """
        gauges = self._gauges if self._collected is None else self._collected
        key = (name, _labels(labels))
        if math.isfinite(value) and (key in gauges or not self._is_full(gauges)):
            gauges[key] = value

    def drop_gauge(self, name: str, **labels: str) -> None:
        """The thing that was measured is gone."""
        self._gauges.pop((name, _labels(labels)), None)

    def observe(self, name: str, milliseconds: float, **labels: str) -> None:
        """Something took this long."""
        key = (name, _labels(labels))
        total = self._timer_totals.get(key)
        if total is None:
            if self._is_full(self._timer_totals):
                return
            total = self._timer_totals[key] = _Total()
        total.count += 1
        total.total += milliseconds
        total.recent.append(milliseconds)
        window = self._interval().timers.get(key)
        if window is None:
            window = self._current.timers[key] = _Window()
        window.add(milliseconds)

    def observe_since(self, name: str, started_s: float) -> None:
        """Something began at `started_s` of `monotonic()` and is over now."""
        self.observe(name, (self._clock.monotonic() - started_s) * 1000)

    def monotonic(self) -> float:
        """Seconds of the clock that timers are measured with."""
        return self._clock.monotonic()

    @contextmanager
    def timed(self, name: str, **labels: str) -> Iterator[None]:
        """Observe how long the block took, also when it raised."""
        started = self._clock.monotonic()
        try:
            yield
        finally:
            self.observe(name, (self._clock.monotonic() - started) * 1000, **labels)

    def collect_with(self, collector: Callable[[Registry], None]) -> None:
        """Call `collector` before every rendering; it sets gauges that are cheap to read and not worth pushing."""
        self._collectors.append(collector)

    def refresh_with(self, refresher: Callable[[], Awaitable[None]]) -> None:
        """Await `refresher` in `refresh`: it measures what takes a thread, and its collector shows it."""
        self._refreshers.append(refresher)

    async def refresh(self) -> None:
        """Measure anew what collectors cannot measure themselves; before a rendering that is to be fresh."""
        for refresher in self._refreshers:
            await refresher()

    def json_body(self) -> bytes:
        """Nomad's MetricsSummary of the last whole interval (of the running one in a node's first ten seconds)."""
        gauges = self._collect()
        current = self._interval()
        shown = self._finished or current
        stamp = datetime.fromtimestamp(shown.started_ns / 1e9, UTC)
        body = {
            "Timestamp": stamp.strftime("%Y-%m-%d %H:%M:%S +0000 UTC"),
            "Gauges": [
                {"Name": name, "Value": value, "Labels": self._all_labels(labels)}
                for (name, labels), value in sorted(gauges.items())
            ],
            "Points": [],
            "Counters": [
                self._sampled(key, w) for key, w in sorted(shown.counters.items(), key=_by_key)
            ],
            "Samples": [
                self._sampled(key, w) for key, w in sorted(shown.timers.items(), key=_by_key)
            ],
            "PrecisionGauges": [],
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def prometheus_text(self) -> str:
        """The text exposition format, version 0.0.4."""
        gauges = self._collect()
        lines: list[str] = []
        for name, rows in _by_name(gauges):
            lines.append(f"# TYPE {_prometheus_name(name)} gauge")
            lines += [_line(name, self._all_labels(labels), value) for labels, value in rows]
        for name, rows in _by_name(self._counter_totals):
            lines.append(f"# TYPE {_prometheus_name(name)} counter")
            lines += [_line(name, self._all_labels(labels), value) for labels, value in rows]
        for name, timers in _by_name(self._timer_totals):
            lines.append(f"# TYPE {_prometheus_name(name)} summary")
            for labels, total in timers:
                mine = self._all_labels(labels)
                ordered = sorted(total.recent)
                lines += [
                    _line(name, {**mine, "quantile": str(q)}, _quantile(ordered, q))
                    for q in _QUANTILES
                ]
                lines.append(_line(name + "_sum", mine, total.total))
                lines.append(_line(name + "_count", mine, total.count))
        return "\n".join(lines) + "\n"

    def _interval(self) -> _Interval:
        now = self._clock.now_ns()
        # A clock that jumped back starts a new interval too: an interval in the future would never end.
        if not self._current.started_ns <= now < self._ends_ns:
            idle = now >= self._ends_ns + INTERVAL_S * 1_000_000_000
            finished = self._current
            started = now - now % (INTERVAL_S * 1_000_000_000)
            self._begin(started)
            self._finished = _Interval(started - INTERVAL_S * 1_000_000_000) if idle else finished
        return self._current

    def _begin(self, started_ns: int) -> None:
        self._current = _Interval(started_ns)
        self._ends_ns = started_ns + INTERVAL_S * 1_000_000_000

    def _collect(self) -> dict[Key, float]:
        """All gauges, those of the collectors as they are now."""
        self._collected = {}
        try:
            for collector in self._collectors:
                collector(self)
            if self._dropped:
                self._collected[DROPPED, ()] = self._dropped
            return {**self._gauges, **self._collected}
        finally:
            self._collected = None

    def _is_full(self, series: dict[Key, Any]) -> bool:
        """Whether a new series must be dropped; labels with too many values must not fill the memory."""
        if len(series) < MAX_SERIES:
            return False
        self._dropped += 1
        return True

    def _all_labels(self, labels: Labels) -> dict[str, str]:
        return {**self._base, **dict(labels)}

    def _sampled(self, key: Key, window: _Window) -> dict[str, Any]:
        name, labels = key
        return {
            "Name": name,
            "Count": window.count,
            "Rate": window.total / INTERVAL_S,
            "Sum": window.total,
            "Min": window.lowest,
            "Max": window.highest,
            "Mean": window.total / window.count,
            "Stddev": window.deviation(),
            "Labels": self._all_labels(labels),
        }


def _labels(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items())) if labels else ()


def _by_key(item: tuple[Key, _Window]) -> Key:
    return item[0]


def _by_name(series: dict[Key, Any]) -> Iterator[tuple[str, list[tuple[Labels, Any]]]]:
    names: dict[str, list[tuple[Labels, Any]]] = {}
    for (name, labels), value in sorted(series.items(), key=lambda item: item[0]):
        names.setdefault(name, []).append((labels, value))
    yield from names.items()


def _quantile(ordered: list[float], quantile: float) -> float:
    if not ordered:
        return math.nan
    return ordered[
        min(len(ordered) - 1, bisect.bisect_left(range(len(ordered)), quantile * len(ordered)))
    ]


def _prometheus_name(name: str) -> str:
    fit = _NOT_PROMETHEUS.sub("_", name)
    return "_" + fit if fit[:1].isdigit() else fit


def _line(name: str, labels: dict[str, str], value: float) -> str:
    text = ",".join(f'{_prometheus_name(k)}="{_escaped(v)}"' for k, v in sorted(labels.items()))
    shown = "NaN" if math.isnan(value) else repr(float(value))
    return (
        f"{_prometheus_name(name)}{{{text}}} {shown}"
        if text
        else f"{_prometheus_name(name)} {shown}"
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
