"""One HTML file a run, that needs nothing else, and an index of all runs in a folder.

Pictures are inline SVG with one axis of time, faults shaded: who led as each node saw it, what every process did,
latencies (on a logarithmic axis) with their quantiles, and the rate of answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import msgspec

from jepsen_style.checker.perf import faults, longest_outage, quantile
from jepsen_style.checker.result import Result, worst
from jepsen_style.history import OBSERVER, Call, History
from jepsen_style.runner import Run

WIDTH = 1100
LEFT = 120
MOST_SHAPES = 6000
MOST_LINES = 300
COLOURS = {"ok": "#4c9f70", "fail": "#d9a441", "info": "#c4477a"}
NODE_COLOURS = ("#3b6fb6", "#e07b39", "#5b9e48", "#8d5fb0", "#b0564a", "#4aa3a3", "#999933")
VERDICTS = {True: "valid", False: "invalid", None: "unknown"}

STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1140px;color:#222;padding:0 1em}
h1{font-size:1.4em} h2{font-size:1.1em;margin-top:2em} table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.3em .6em;border-bottom:1px solid #ddd;vertical-align:top}
pre{background:#f5f5f3;padding:.7em;overflow:auto;font-size:12px;max-height:26em}
.valid{color:#2c7a4b;font-weight:600}.invalid{color:#b3123c;font-weight:700}.unknown{color:#9a6b00;font-weight:600}
svg{display:block;width:100%;height:auto} svg text{font:11px system-ui,sans-serif;fill:#444}
.key span{margin-right:1.2em}.key i{display:inline-block;width:.9em;height:.9em;margin-right:.3em;vertical-align:-.1em}
"""


class Verdicts(msgspec.Struct, frozen=True):
    """results.json."""

    valid: bool | None
    results: list[Result]


def write_report(
    folder: Path, run: Run, history: History, results: Sequence[Result], logs: dict[str, str]
) -> Path:
    """Write report.html into the run's folder."""
    valid = worst(list(results))
    calls = history.calls()
    axis = _Axis(history)
    title = f"{run.options.workload}, {', '.join(run.options.nemeses) or 'no faults'}"
    parts = [
        f"<h1>{escape(title)}: <span class={VERDICTS[valid]}>{VERDICTS[valid]}</span></h1>",
        _about(run),
        _verdicts(results),
        "<h2>Leader, as each node saw it</h2>",
        _leaders(history, run.nodes, axis),
        "<h2>Operations by process</h2>",
        _legend(),
        _timeline(calls, axis, results),
        "<h2>Latency</h2>",
        _latency(calls, axis),
        "<h2>Quantiles of latency, each second</h2>",
        _quantiles(calls, axis),
        "<h2>Answers a second</h2>",
        _rate(calls, axis),
        _faults(history),
        _logs(run, history, logs),
    ]
    file = folder / "report.html"
    file.write_text(_page(title, "\n".join(parts)), encoding="utf-8")
    return file


def write_index(store: Path) -> Path:
    """Write index.html over all runs below a folder."""
    rows = []
    for file in sorted(store.glob("*/*/results.json"), reverse=True):
        folder = file.parent
        if folder.is_symlink() or not (folder / "run.json").exists():
            continue
        run = msgspec.json.decode((folder / "run.json").read_bytes(), type=Run)
        verdicts = msgspec.json.decode(file.read_bytes(), type=Verdicts)
        word = VERDICTS[verdicts.valid]
        facts = next((r.summary for r in verdicts.results if r.checker == "perf"), "")
        link = f"{folder.parent.name}/{folder.name}/report.html"
        rows.append(
            f"<tr><td><a href='{escape(link)}'>{escape(folder.name)}</a><td>{escape(run.options.workload)}"
            f"<td>{escape(', '.join(run.options.nemeses) or 'none')}<td>{run.options.seed}"
            f"<td class={word}>{word}<td>{escape(facts)}</tr>"
        )
    head = "<tr><th>run<th>workload<th>faults<th>seed<th>verdict<th>figures</tr>"
    body = f"<h1>Runs</h1><table>{head}{''.join(rows)}</table>"
    index = store / "index.html"
    index.write_text(_page("Runs", body), encoding="utf-8")
    return index


def _page(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{STYLE}</style><body>{body}</body></html>\n"
    )


# -- words ------------------------------------------------------------------------------------------------------


def _about(run: Run) -> str:
    o = run.options
    when = datetime.fromtimestamp(run.began_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    rows = {
        "command": f"<code>{escape(o.command)}</code>",
        "seed": str(o.seed),
        "began": when,
        "cluster": f"{len(run.nodes)} servers, {o.concurrency} clients, {o.time_limit_s:g} s, reads {o.reads}",
        "version": escape(run.version),
    }
    if o.mutation:
        rows["mutation"] = f"<b>{escape(o.mutation)}</b>: the servers were broken on purpose"
    return "<table>" + "".join(f"<tr><th>{k}<td>{v}</tr>" for k, v in rows.items()) + "</table>"


def _verdicts(results: Sequence[Result]) -> str:
    parts = ["<h2>Verdicts</h2><table>"]
    for result in results:
        word = VERDICTS[result.valid]
        parts.append(
            f"<tr><th>{escape(result.checker)}<td class={word}>{word}<td>{escape(result.summary)}"
        )
        if result.offending:
            parts.append(f"<pre>{escape(chr(10).join(result.offending))}</pre>")
        parts.append("</tr>")
    parts.append("</table>")
    figures = next((r.facts for r in results if r.checker == "perf"), {})
    rows = {f: v for f, v in figures.items() if isinstance(v, dict)}
    if rows:
        columns = list(next(iter(rows.values())))
        parts.append("<table><tr><th>" + "".join(f"<th>{escape(c)}" for c in columns) + "</tr>")
        for f, values in rows.items():
            cells = "".join(f"<td>{values.get(c, '')}" for c in columns)
            parts.append(f"<tr><th>{escape(f)}{cells}</tr>")
        parts.append("</table>")
    return "".join(parts)


def _faults(history: History) -> str:
    rows = "".join(
        f"<tr><td>{start / 1e9:.2f} s<td>{end / 1e9:.2f} s<td>{escape(what)}</tr>"
        for start, end, what in faults(history)
    )
    return f"<h2>Faults</h2><table><tr><th>from<th>to<th>what</tr>{rows}</table>"


def _logs(run: Run, history: History, logs: dict[str, str]) -> str:
    end_ns = run.began_ns + (history.ops[-1].time if history.ops else 0) + 1_000_000_000
    first, last = _stamp(run.began_ns), _stamp(end_ns)
    parts = ["<h2>Logs of the nodes, in the run's time</h2>"]
    for node, text in sorted(logs.items()):
        lines = [line for line in text.splitlines() if first <= line[: len(first)] <= last]
        cut = len(lines) - MOST_LINES
        if cut > 0:
            # What is loud comes first; the whole is beside this file.
            loud = [line for line in lines if "[INFO]" not in line and "[DEBUG]" not in line]
            lines = loud[:MOST_LINES] or lines[-MOST_LINES:]
        note = f" ({cut} lines more in {escape(node)}.log)" if cut > 0 else ""
        body = escape("\n".join(lines))
        parts.append(f"<details><summary>{escape(node)}{note}</summary><pre>{body}</pre></details>")
    return "".join(parts)


def _stamp(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _legend() -> str:
    marks = {"ok": "ok", "fail": "refused", "info": "unknown outcome"}
    spans = "".join(
        f"<span><i style='background:{COLOURS[t]}'></i>{w}</span>" for t, w in marks.items()
    )
    return f"<p class=key>{spans}<span><i style='background:#b3123c22'></i>fault</span></p>"


# -- pictures -----------------------------------------------------------------------------------------------------


class _Axis:
    """From nanoseconds to pixels, with what is behind every picture."""

    def __init__(self, history: History) -> None:
        self.end_ns = max(1, history.ops[-1].time if history.ops else 1)
        self._faults = faults(history)
        heals = [op.time for op in history.ops if op.f == "heal"]
        self._heal = heals[0] if heals else None

    def x(self, ns: int) -> float:
        return LEFT + (WIDTH - LEFT - 10) * min(ns, self.end_ns) / self.end_ns

    def svg(self, height: float, shapes: Sequence[str]) -> str:
        behind = [
            f"<rect x={self.x(s):.1f} y=0 width={max(1.0, self.x(e) - self.x(s)):.1f} height={height:.0f} "
            f"fill='#b3123c' opacity=.12><title>{escape(what)}</title></rect>"
            for s, e, what in self._faults
        ]
        if self._heal is not None:
            x = self.x(self._heal)
            behind.append(f"<line x1={x:.1f} x2={x:.1f} y1=0 y2={height:.0f} stroke='#2c7a4b' />")
        step = _round_step(self.end_ns / 1e9 / 10)
        second = 0.0
        while second <= self.end_ns / 1e9:
            x = self.x(int(second * 1e9))
            behind.append(
                f"<text x={x:.1f} y={height + 14:.0f} text-anchor=middle>{second:g} s</text>"
            )
            second += step
        return (
            f"<svg viewBox='0 0 {WIDTH} {height + 20:.0f}' xmlns='http://www.w3.org/2000/svg'>"
            f"{''.join(behind)}{''.join(shapes)}</svg>"
        )


def _round_step(raw: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(max(raw, 0.1)))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= raw or f == 10)


def _label(y: float, text: str) -> str:
    return f"<text x={LEFT - 6} y={y:.0f} text-anchor=end>{escape(text)}</text>"


def _leaders(history: History, nodes: Sequence[str], axis: _Axis) -> str:
    colours = {n: NODE_COLOURS[i % len(NODE_COLOURS)] for i, n in enumerate(nodes)}
    shapes = []
    for row, node in enumerate(nodes):
        y = 6 + row * 18
        shapes.append(_label(y + 11, node))
        said = [op for op in history.events(OBSERVER) if op.f == "leader" and op.node == node]
        ends = [*(op.time for op in said[1:]), axis.end_ns]
        for op, end in zip(said, ends, strict=False):
            who = str(op.value)
            width = max(1.0, axis.x(end) - axis.x(op.time))
            words = {"": "no leader", "?": "no answer"}.get(who, f"{who} leads")
            fill = colours.get(who, "#fff" if who == "?" else "#ccc")
            shapes.append(
                f"<rect x={axis.x(op.time):.1f} y={y} width={width:.1f} height=14 fill='{fill}'>"
                f"<title>{escape(node)}: {escape(words)}</title></rect>"
            )
    key = "".join(
        f"<span><i style='background:{c}'></i>{escape(n)} leads</span>" for n, c in colours.items()
    )
    return f"<p class=key>{key}</p>" + axis.svg(6 + 18 * len(nodes), shapes)


def _timeline(calls: Sequence[Call], axis: _Axis, results: Sequence[Result]) -> str:
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
        width = max(0.7, axis.x(call.done.time) - axis.x(call.start_ns))
        shapes.append(
            f"<rect x={axis.x(call.start_ns):.1f} y={4 + row * 9} width={width:.1f} height=7 "
            f"fill='{COLOURS[call.done.type]}'><title>{escape(call.told())}</title></rect>"
        )
    height = 8 + 9 * max(1, len(rows))
    for result in results:
        if result.valid is False:
            for moment in result.moments:
                x = axis.x(moment)
                shapes.append(
                    f"<line x1={x:.1f} x2={x:.1f} y1=0 y2={height} stroke='#b3123c' stroke-width=2>"
                    f"<title>{escape(result.summary)}</title></line>"
                )
    shapes.append(_label(14, "clients"))
    note = f"<p>One in {every} of the successful operations is drawn.</p>" if every > 1 else ""
    return note + axis.svg(height, shapes)


def _latency(calls: Sequence[Call], axis: _Axis) -> str:
    every = max(1, math.ceil(len(calls) / MOST_SHAPES))
    shapes = _decades()
    for number, call in enumerate(calls):
        if call.done.type == "ok" and number % every:
            continue
        y = _log_y((call.done.time - call.start_ns) / 1e6)
        shape = "circle" if call.invoke.f == "read" else "rect"
        place = (
            f"cx={axis.x(call.start_ns):.1f} cy={y:.1f} r=1.3"
            if shape == "circle"
            else f"x={axis.x(call.start_ns):.1f} y={y:.1f} width=2.4 height=2.4"
        )
        shapes.append(f"<{shape} {place} fill='{COLOURS[call.done.type]}' opacity=.6 />")
    return "<p>Round: reads; square: writes.</p>" + axis.svg(160, shapes)


def _log_y(ms: float) -> float:
    # 1 ms at the bottom, 10 s at the top.
    return 150 - 140 * min(4.0, max(0.0, math.log10(max(ms, 1.0)))) / 4


def _decades() -> list[str]:
    shapes = []
    for ms in (1, 10, 100, 1000, 10_000):
        y = _log_y(ms)
        shapes.append(_label(y + 4, f"{ms} ms"))
        shapes.append(f"<line x1={LEFT} x2={WIDTH - 10} y1={y:.1f} y2={y:.1f} stroke='#ddd' />")
    return shapes


def _quantiles(calls: Sequence[Call], axis: _Axis) -> str:
    buckets: dict[int, list[float]] = {}
    for call in calls:
        if call.done.type == "ok":
            second = call.start_ns // 1_000_000_000
            buckets.setdefault(second, []).append((call.done.time - call.start_ns) / 1e6)
    shapes = _decades()
    for q, colour in ((0.5, "#3b6fb6"), (0.95, "#5b9e48"), (0.99, "#e07b39"), (1.0, "#b3123c")):
        points = " ".join(
            f"{axis.x(second * 1_000_000_000 + 500_000_000):.1f},{_log_y(quantile(sorted(found), q)):.1f}"
            for second, found in sorted(buckets.items())
        )
        shapes.append(
            f"<polyline points='{points}' fill=none stroke='{colour}'><title>{q}</title></polyline>"
        )
    key = "<p class=key>blue: half; green: 0.95; orange: 0.99; red: the slowest</p>"
    return key + axis.svg(160, shapes)


def _rate(calls: Sequence[Call], axis: _Axis) -> str:
    counts: dict[tuple[str, str], dict[int, int]] = {}
    for call in calls:
        series = counts.setdefault((call.invoke.f, call.done.type), {})
        second = call.done.time // 1_000_000_000
        series[second] = series.get(second, 0) + 1
    top = max((n for s in counts.values() for n in s.values()), default=1)
    seconds = range(axis.end_ns // 1_000_000_000 + 1)
    shapes = [_label(14, f"{top}/s"), _label(150, "0")]
    for (f, kind), series in sorted(counts.items()):
        points = " ".join(
            f"{axis.x(s * 1_000_000_000 + 500_000_000):.1f},{150 - 140 * series.get(s, 0) / top:.1f}"
            for s in seconds
        )
        dash = "" if f == "read" else " stroke-dasharray='5 2'"
        shapes.append(
            f"<polyline points='{points}' fill=none stroke='{COLOURS[kind]}'{dash}><title>{escape(f)} {kind}</title></polyline>"
        )
    start, end = longest_outage(calls)
    if end:
        shapes.append(
            f"<rect x={axis.x(start):.1f} y=152 width={max(1.0, axis.x(end) - axis.x(start)):.1f} height=6 fill='#b3123c'>"
            f"<title>longest time without a write: {(end - start) / 1e9:.2f} s</title></rect>"
        )
    return "<p>Dashed: writes. The red bar is the longest time without a write.</p>" + axis.svg(
        160, shapes
    )
