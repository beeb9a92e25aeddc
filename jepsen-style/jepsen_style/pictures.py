"""A run in pictures: inline SVG, all with one axis of time and the faults shaded behind.

Colours are the page's (report.py), by classes, so that a picture is legible on light and on dark ground.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from jepsen_style.checker.perf import faults, is_write, longest_outage, quantile
from jepsen_style.checker.result import Result
from jepsen_style.history import OBSERVER, SCALES, Call, History

WIDTH = 1100
LEFT = 150
RIGHT = 16
MOST_SHAPES = 6000
ROW = 18
CHARACTER = 6.2
"""About the width of a letter of a label."""
S = 1_000_000_000

_GAINED = re.compile(r"^(\S+Z) .*leadership gained: .*\bterm=(\d+)")
_LOST = re.compile(r"^(\S+Z) .*leadership lost: .*\bterm=(\d+)")


class Axis:
    """From nanoseconds to pixels, with what is behind every picture."""

    def __init__(self, history: History, window: tuple[int, int] | None = None) -> None:
        """window: (from, to) in nanoseconds; the whole run without one."""
        last = max(1, history.ops[-1].time if history.ops else 1)
        self.start_ns, self.end_ns = window or (0, last)
        self.faults = faults(history)
        heals = [op.time for op in history.ops if op.f == "heal"]
        self._heal = heals[0] if heals else None

    def x(self, ns: int) -> float:
        """A moment's place, within the picture."""
        part = (ns - self.start_ns) / (self.end_ns - self.start_ns)
        return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, part))

    def bar(self, start: int, end: int, y: float, height: float, kind: str, told: str) -> str:
        """A piece of time. told: what is shown when one points at it."""
        width = max(0.8, self.x(end) - self.x(start))
        return (
            f"<rect x={self.x(start):.1f} y={y:.1f} width={width:.1f} height={height:.1f} class='{kind}'>"
            f"<title>{escape(told)}</title></rect>"
        )

    def svg(self, height: float, shapes: Iterable[str]) -> str:
        """A whole picture; 20 pixels below are for the seconds."""
        behind = [
            self.bar(s, e, 0, height, "fault", what)
            for s, e, what in self.faults
            if e >= self.start_ns and s <= self.end_ns
        ]
        if self._heal is not None and self.start_ns <= self._heal <= self.end_ns:
            x = self.x(self._heal)
            behind.append(f"<line x1={x:.1f} x2={x:.1f} y1=0 y2={height:.0f} class=heal />")
        step = _round_step((self.end_ns - self.start_ns) / S / 10)
        second = math.ceil(self.start_ns / S / step) * step
        while second * S <= self.end_ns:
            x = self.x(int(second * S))
            behind.append(
                f"<line x1={x:.1f} x2={x:.1f} y1={height:.0f} y2={height + 4:.0f} class=tick />"
            )
            behind.append(
                f"<text x={x:.1f} y={height + 15:.0f} text-anchor=middle>{second:g} s</text>"
            )
            second += step
        return (
            f"<svg viewBox='0 0 {WIDTH} {height + 20:.0f}' xmlns='http://www.w3.org/2000/svg'>"
            f"{''.join(behind)}{''.join(shapes)}</svg>"
        )


def _round_step(raw: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(max(raw, 0.001)))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= raw or f == 10)


def _label(y: float, text: str) -> str:
    most = int((LEFT - 8) / CHARACTER)
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    return f"<text x={LEFT - 6} y={y:.0f} text-anchor=end>{escape(shown)}<title>{escape(text)}</title></text>"


def _key(marks: Iterable[tuple[str, str]]) -> str:
    spans = "".join(
        f"<span><svg class=mark viewBox='0 0 14 10'><rect width=14 height=10 class='{kind}' /></svg>{escape(word)}</span>"
        for kind, word in marks
    )
    return f"<p class=key>{spans}</p>"


def _lines_key(marks: Iterable[tuple[str, str, str]]) -> str:
    spans = "".join(
        f"<span><svg class=mark viewBox='0 0 26 10'><line x1=0 x2=26 y1=5 y2=5 class='{kind}' stroke-dasharray='{dash}' />"
        f"</svg>{escape(word)}</span>"
        for kind, dash, word in marks
    )
    return f"<p class='key wide'>{spans}</p>"


# -- lanes ----------------------------------------------------------------------------------------------------------


def fault_lanes(axis: Axis) -> str:
    """A row for each kind of fault, with whom it struck."""
    names = list(dict.fromkeys(what.split(" ")[0] for _, _, what in axis.faults))
    if not names:
        return ""
    shapes = []
    for row, name in enumerate(names):
        y = 4 + row * ROW
        shapes.append(_label(y + 11, name))
        for start, end, what in axis.faults:
            nemesis, _, whom = what.partition(" ")
            if nemesis != name:
                continue
            shapes.append(axis.bar(start, end, y, 14, "struck", what))
            fits = int((axis.x(end) - axis.x(start)) / CHARACTER) - 1
            if 0 < len(whom) <= fits:
                shapes.append(
                    f"<text x={axis.x(start) + 4:.1f} y={y + 11} class=on>{escape(whom)}</text>"
                )
    return axis.svg(6 + ROW * len(names), shapes)


def leader_lanes(
    history: History, nodes: Sequence[str], logs: Mapping[str, str], began_ns: int, axis: Axis
) -> str:
    """Who led: by term as the nodes' logs say, and as each node answered when it was asked."""
    colours = {n: f"node{i % 7}" for i, n in enumerate(nodes)}
    shapes = [_label(17, "term")]
    for start, end, node, term in _terms(logs, began_ns, axis.end_ns):
        shapes.append(
            axis.bar(start, end, 6, 14, colours.get(node, "nobody"), f"term {term}: {node} led")
        )
        if axis.x(end) - axis.x(start) > CHARACTER * (len(term) + 1):
            shapes.append(f"<text x={axis.x(start) + 3:.1f} y=17 class=on>{escape(term)}</text>")
    for row, node in enumerate(nodes, 1):
        y = 6 + row * ROW
        shapes.append(_label(y + 11, node))
        said = [op for op in history.events(OBSERVER) if op.f == "leader" and op.node == node]
        ends = [*(op.time for op in said[1:]), axis.end_ns]
        for op, end in zip(said, ends, strict=False):
            who = str(op.value)
            words = {"": "no leader", "?": "no answer"}.get(who, f"{who} leads")
            kind = colours.get(who, "silent" if who == "?" else "nobody")
            shapes.append(axis.bar(op.time, end, y, 14, kind, f"{node}: {words}"))
    marks = [(kind, f"{node} leads") for node, kind in colours.items()]
    return _key([*marks, ("nobody", "no leader"), ("silent", "no answer")]) + axis.svg(
        8 + ROW * (len(nodes) + 1), shapes
    )


def _terms(logs: Mapping[str, str], began_ns: int, end_ns: int) -> list[tuple[int, int, str, str]]:
    """(from, to, node, term): a killed leader says no farewell, so its term is shown until the next begins."""
    gained: list[tuple[int, str, str]] = []
    lost: dict[tuple[str, str], int] = {}
    for node, text in logs.items():
        for line in text.splitlines():
            if found := _GAINED.match(line):
                gained.append((_since(found[1], began_ns), node, found[2]))
            elif found := _LOST.match(line):
                lost[node, found[2]] = _since(found[1], began_ns)
    gained.sort()
    spans = []
    for place, (start, node, term) in enumerate(gained):
        following = gained[place + 1][0] if place + 1 < len(gained) else end_ns
        until = min(lost.get((node, term), following), following)
        if until < start:
            # The node's clock jumped meanwhile.
            until = following
        if until > 0:
            spans.append((max(0, start), until, node, term))
    return spans


def _since(stamp: str, began_ns: int) -> int:
    """Nanoseconds of the run at a log's time stamp, RFC 3339."""
    moment = datetime.fromisoformat(stamp).astimezone(UTC)
    return int(moment.timestamp() * 1e6) * 1000 - began_ns


def load_lanes(history: History, known: Sequence[str], axis: Axis) -> str:
    """What every node's process took of a processor, and of memory."""
    samples: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for op in history.events(SCALES):
        if op.f == "load":
            samples.setdefault(op.node, []).append((op.time, op.value))
    if not samples:
        return "<p>Nobody measured the nodes.</p>"
    # In the colours that they have as leaders.
    nodes = [*known, *sorted(samples.keys() - set(known))]
    parts = [_lines_key((f"line node{i % 7}", "", node) for i, node in enumerate(nodes))]
    for what, unit, least in (("cpu_percent", "% CPU", 100.0), ("rss_mb", "MB", 100.0)):
        top = max(least, *(v[what] for found in samples.values() for _, v in found))
        top = math.ceil(top / 50) * 50
        shapes = [_label(12, f"{top:g} {unit}"), _label(80, "0"), *_rules((6, 78))]
        for place, node in enumerate(nodes):
            shapes += [
                f"<polyline points='{points}' class='line node{place % 7}'><title>{escape(node)}</title></polyline>"
                for points in _pieces(axis, samples.get(node, []), what, top)
            ]
        parts.append(axis.svg(80, shapes))
    return "".join(parts)


def _pieces(
    axis: Axis, found: Sequence[tuple[int, dict[str, Any]]], what: str, top: float
) -> list[str]:
    """The points of a line, which is broken where the node was not there for some seconds."""
    pieces: list[list[str]] = [[]]
    before = None
    for time, value in found:
        if before is not None and time - before > 3 * S:
            pieces.append([])
        before = time
        pieces[-1].append(f"{axis.x(time):.1f},{78 - 72 * value[what] / top:.1f}")
    return [" ".join(piece) for piece in pieces if piece]


# -- operations -----------------------------------------------------------------------------------------------------

_TYPES = (("ok", "ok"), ("fail", "refused, or not done"), ("info", "unknown outcome"))


def operations(calls: Sequence[Call], axis: Axis, results: Sequence[Result]) -> str:
    """A row for each process, a bar for each operation."""
    # Processes that never work at one time share a row: after an unknown outcome a client has a new number.
    rows: list[int] = []
    row_of: dict[int, int] = {}
    shapes = []
    every = max(1, math.ceil(sum(c.done.type == "ok" for c in calls) / MOST_SHAPES))
    for number, call in enumerate(calls):
        process = call.invoke.process
        row = row_of.get(process)
        if row is None:
            free = (i for i, until in enumerate(rows) if until < call.start_ns)
            row = next(free, len(rows))
            if row == len(rows):
                rows.append(0)
            row_of[process] = row
        rows[row] = call.done.time
        if call.done.type == "ok" and number % every:
            continue
        y = 4 + row * 11
        shapes.append(axis.bar(call.start_ns, call.done.time, y, 8, call.done.type, call.told()))
    # Unknown outcomes are few and matter most: they are drawn over the others.
    shapes.sort(key=lambda shape: "class='info'" in shape)
    height = 8 + 11 * max(1, len(rows))
    shapes += _moments(axis, height, results)
    shapes += [_label(12 + row * 11, f"{row}") for row in range(len(rows))]
    note = f" One in {every} of the successful operations is drawn." if every > 1 else ""
    text = f"<p>A row is a client, by the kit's count.{note}</p>"
    marks = [*_TYPES, ("fault", "fault"), ("offence", "what a checker found")]
    return _key(marks) + text + axis.svg(height, shapes)


def _moments(axis: Axis, height: float, results: Sequence[Result]) -> list[str]:
    return [
        f"<line x1={axis.x(m):.1f} x2={axis.x(m):.1f} y1=0 y2={height:.0f} class=offence>"
        f"<title>{escape(r.summary)}</title></line>"
        for r in results
        if r.valid is False
        for m in r.moments
        if axis.start_ns <= m <= axis.end_ns
    ]


def offence(history: History, calls: Sequence[Call], result: Result) -> str:
    """What happened about the moments of a refutation, on the same key where there is one."""
    if not result.moments:
        return ""
    first, last = min(result.moments), max(result.moments)
    margin = max(S // 20, (last - first) // 10)
    window = (max(0, first - margin), last + margin)
    axis = Axis(history, window)
    near = [c for c in calls if c.done.time >= window[0] and c.start_ns <= window[1]]
    keys = {c.invoke.key for c in near if c.start_ns in result.moments}
    mine = [c for c in near if c.invoke.key in keys] or near
    rows: dict[int, int] = {}
    shapes = []
    for call in mine[:400]:
        y = 4 + 14 * rows.setdefault(call.invoke.process, len(rows))
        kind = f"{call.done.type} cause" if call.start_ns in result.moments else call.done.type
        shapes.append(axis.bar(call.start_ns, call.done.time, y, 11, kind, call.told()))
    shapes += [_label(13 + 14 * row, f"process {process}") for process, row in rows.items()]
    height = 8 + 14 * max(1, len(rows))
    what = f" of {escape(', '.join(sorted(keys - {''})))}" if keys - {""} else ""
    return f"<p>About these moments, the operations{what}:</p>" + axis.svg(
        height, [*shapes, *_moments(axis, height, [result])]
    )


def latency(calls: Sequence[Call], axis: Axis) -> str:
    """Every operation's time, on a logarithmic axis."""
    every = max(1, math.ceil(len(calls) / MOST_SHAPES))
    shapes = _decades()
    for number, call in enumerate(calls):
        if call.done.type == "ok" and number % every:
            continue
        x, y = axis.x(call.start_ns), _log_y((call.done.time - call.start_ns) / 1e6)
        kind = f"{call.done.type} dot"
        if not is_write(call):
            shapes.append(f"<circle cx={x:.1f} cy={y:.1f} r=1.5 class='{kind}' />")
        else:
            shapes.append(
                f"<rect x={x - 1.3:.1f} y={y - 1.3:.1f} width=2.6 height=2.6 class='{kind}' />"
            )
    return _key(_TYPES) + "<p>Round: reads. Square: writes.</p>" + axis.svg(160, shapes)


def _log_y(ms: float) -> float:
    # 1 ms at the bottom, 10 s at the top.
    return 152 - 144 * min(4.0, max(0.0, math.log10(max(ms, 1.0)))) / 4


def _decades() -> list[str]:
    shapes = []
    for ms, word in ((1, "1 ms"), (10, "10 ms"), (100, "100 ms"), (1000, "1 s"), (10_000, "10 s")):
        shapes.append(_label(_log_y(ms) + 4, word))
        shapes += _rules((_log_y(ms),))
    return shapes


def _rules(heights: Iterable[float]) -> list[str]:
    return [
        f"<line x1={LEFT} x2={WIDTH - RIGHT} y1={y:.1f} y2={y:.1f} class=rule />" for y in heights
    ]


_QUANTILES = ((0.5, "q0"), (0.95, "q1"), (0.99, "q2"), (1.0, "q3"))


def quantiles(calls: Sequence[Call], axis: Axis) -> str:
    """Quantiles of the successful operations of each second, broken where there was none."""
    buckets: dict[int, list[float]] = {}
    for call in calls:
        if call.done.type == "ok":
            second = call.start_ns // S
            buckets.setdefault(second, []).append((call.done.time - call.start_ns) / 1e6)
    shapes = _decades()
    for q, kind in _QUANTILES:
        pieces: list[list[str]] = []
        before = None
        for second, found in sorted(buckets.items()):
            if before is None or second != before + 1:
                pieces.append([])
            before = second
            y = _log_y(quantile(sorted(found), q))
            pieces[-1].append(f"{axis.x(second * S + S // 2):.1f},{y:.1f}")
        shapes += [
            f"<polyline points='{' '.join(piece)}' class='line {kind}'><title>{q:g}</title></polyline>"
            for piece in pieces
        ]
    names = {0.5: "half of them", 1.0: "the slowest"}
    key = _lines_key((f"line {kind}", "", names.get(q, f"{q:g}")) for q, kind in _QUANTILES)
    return key + axis.svg(160, shapes)


_DASHES = ("", "6 2", "2 2", "8 2 2 2")


def rate(calls: Sequence[Call], axis: Axis) -> str:
    """Answers a second by function and outcome; below, the longest time without a write."""
    counts: dict[tuple[str, str], dict[int, int]] = {}
    for call in calls:
        series = counts.setdefault((call.invoke.f, call.done.type), {})
        second = call.done.time // S
        series[second] = series.get(second, 0) + 1
    top = max((n for s in counts.values() for n in s.values()), default=1)
    seconds = range(axis.end_ns // S + 1)
    writes = {c.invoke.f for c in calls if is_write(c)}
    functions = sorted({f for f, _ in counts}, key=lambda f: (f in writes, f))
    shapes = [_label(12, f"{top} a second"), _label(152, "0"), *_rules((8, 150))]
    marks = []
    for (f, kind), series in sorted(counts.items()):
        points = " ".join(
            f"{axis.x(s * S + S // 2):.1f},{150 - 142 * series.get(s, 0) / top:.1f}"
            for s in seconds
        )
        dash = _DASHES[functions.index(f) % len(_DASHES)]
        marks.append((f"line {kind}", dash, f"{f} {kind}"))
        shapes.append(
            f"<polyline points='{points}' class='line {kind}' stroke-dasharray='{dash}'>"
            f"<title>{escape(f)} {kind}</title></polyline>"
        )
    start, end = longest_outage([c for c in calls if c.invoke.phase in ("", "safety")])
    told = f"longest time without a write: {(end - start) / S:.2f} s"
    if end:
        shapes.append(axis.bar(start, end, 153, 6, "offence", told))
    return _lines_key(marks) + f"<p>The bar below: {told}.</p>" + axis.svg(162, shapes)
