"""One HTML file a run, that needs nothing else, and an index of all runs in a folder.

Not here: the pictures (pictures.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import msgspec

from jepsen_style import pictures
from jepsen_style.checker.perf import faults
from jepsen_style.checker.recovery import Longest, by_nemesis, outages
from jepsen_style.checker.result import Result, worst
from jepsen_style.history import SCALES, History
from jepsen_style.runner import CLOCK, Run

MOST_LINES = 300
VERDICTS = {True: "valid", False: "invalid", None: "unknown"}

# Every colour is told twice, for light and for dark ground.
STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1f2328;--soft:#57606a;--line:#d5d9de;--box:#f4f5f6;
--ok:#3f8f63;--fail:#c98a1b;--info:#c23b78;--bad:#b3123c;--fault:#b3123c1f;--struck:#b3123c;--heal:#2c7a4b;
--on:#fff;--good:#21693f;--doubt:#8a5f00;--nobody:#b9bec5;
--n0:#2f67b1;--n1:#c8611c;--n2:#4d8a3c;--n3:#7f50a4;--n4:#a3473c;--n5:#3b8f8f;--n6:#7d7d1c}
@media (prefers-color-scheme:dark){:root{--page:#15181c;--ink:#e6e8eb;--soft:#a3abb5;--line:#3a4048;--box:#1f2329;
--ok:#5fbf8c;--fail:#e3ac4a;--info:#f06fa6;--bad:#ff6b88;--fault:#ff5c7c2e;--struck:#f06a86;--heal:#6fce97;
--on:#101214;--good:#6fce97;--doubt:#e8bd57;--nobody:#5b636d;
--n0:#6ea3ea;--n1:#f0955a;--n2:#84c46f;--n3:#b98fdc;--n4:#dd8277;--n5:#6fc6c6;--n6:#c4c45a}}
body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1140px;padding:0 1em;color:var(--ink);background:var(--page)}
h1{font-size:1.5em;margin:.2em 0 .8em}h2{font-size:1.1em;margin:2em 0 .4em}a{color:var(--n0)}
table{border-collapse:collapse;width:100%}th{font-weight:600;white-space:nowrap}
td,th{text-align:left;padding:.3em .7em .3em 0;border-bottom:1px solid var(--line);vertical-align:top}
td:has(>a){white-space:nowrap}td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
code,pre{font:12px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}
pre{background:var(--box);padding:.7em;overflow:auto;max-height:26em;margin:.4em 0}td>pre{white-space:pre-wrap}
details{margin:.4em 0}summary{cursor:pointer}.soft,p{color:var(--soft)}p{margin:.3em 0}
.valid{color:var(--good);font-weight:600}.invalid{color:var(--bad);font-weight:700}.unknown{color:var(--doubt);font-weight:600}
svg{display:block;width:100%;height:auto;overflow:visible}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
svg text.on{fill:var(--on);pointer-events:none}.key{display:flex;flex-wrap:wrap;gap:.1em 1.2em}
.key svg.mark{display:inline-block;width:14px;height:10px;margin-right:.4em}.key.wide svg.mark{width:26px}
.ok{fill:var(--ok)}.fail{fill:var(--fail)}.info{fill:var(--info)}.dot{opacity:.6}.cause{stroke:var(--bad);stroke-width:2}
.fault{fill:var(--fault)}.struck{fill:var(--struck)}.heal{stroke:var(--heal)}.tick,.rule{stroke:var(--line)}
.offence{fill:var(--bad);stroke:var(--bad);stroke-width:1.5}.nobody{fill:var(--nobody)}
.silent{fill:var(--page);stroke:var(--nobody);stroke-dasharray:2 2}
.node0{fill:var(--n0)}.node1{fill:var(--n1)}.node2{fill:var(--n2)}.node3{fill:var(--n3)}.node4{fill:var(--n4)}
.node5{fill:var(--n5)}.node6{fill:var(--n6)}
.line{fill:none;stroke-width:1.4}.line.ok{stroke:var(--ok)}.line.fail{stroke:var(--fail)}.line.info{stroke:var(--info)}
.line.q0,.line.node0{stroke:var(--n0)}.line.q1,.line.node2{stroke:var(--n2)}.line.q2,.line.node1{stroke:var(--n1)}
.line.q3{stroke:var(--bad)}.line.node3{stroke:var(--n3)}.line.node4{stroke:var(--n4)}.line.node5{stroke:var(--n5)}
.line.node6{stroke:var(--n6)}
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
    axis = pictures.Axis(history)
    began_ns = _began_ns(run, history)
    title = _title(run)
    parts = [
        f"<h1>{escape(title)}: <span class={VERDICTS[valid]}>{VERDICTS[valid]}</span></h1>",
        _about(run),
        _verdicts(results),
        *(pictures.offence(history, calls, r) for r in results if r.valid is False),
        _figures(results),
        _outages(by_nemesis(outages(history))),
        "<h2>Faults</h2>",
        pictures.fault_lanes(axis) or "<p>There were none.</p>",
        "<h2>Leader</h2>",
        pictures.leader_lanes(history, run.nodes, logs, began_ns, axis),
        "<h2>Operations by process</h2>",
        pictures.operations(calls, axis, results),
        "<h2>Latency</h2>",
        pictures.latency(calls, axis),
        "<h2>Quantiles of latency, each second</h2>",
        pictures.quantiles(calls, axis),
        "<h2>Answers a second</h2>",
        pictures.rate(calls, axis),
        "<h2>What the nodes took</h2>",
        pictures.load_lanes(history, [*run.nodes, *run.agents], axis),
        _faults(history),
        _logs(began_ns, history, logs),
    ]
    file = folder / "report.html"
    file.write_text(_page(title, "\n".join(parts)), encoding="utf-8")
    return file


def _title(run: Run) -> str:
    words = ", ".join(run.options.nemeses) or "no faults"
    if len(words) > 70:
        words = f"{len(run.options.nemeses)} kinds of fault"
    return f"{run.options.workload}, {'combined: ' if run.options.combined else ''}{words}"


def _began_ns(run: Run, history: History) -> int:
    """What o'clock it was when the run's time began."""
    told = [op.value for op in history.events(SCALES) if op.f == CLOCK]
    return int(told[0]) if told else run.began_ns


def write_index(store: Path) -> Path:
    """Write index.html over all runs below a folder."""
    rows = []
    for file in sorted(store.glob("*/*/results.json"), key=lambda f: f.parent.name, reverse=True):
        folder = file.parent
        if folder.is_symlink() or not (folder / "run.json").exists():
            continue
        run = msgspec.json.decode((folder / "run.json").read_bytes(), type=Run)
        verdicts = msgspec.json.decode(file.read_bytes(), type=Verdicts)
        word = VERDICTS[verdicts.valid]
        facts = next((r.facts for r in verdicts.results if r.checker == "perf"), {})
        against = ", ".join(r.checker for r in verdicts.results if r.valid is False)
        link = f"{folder.parent.name}/{folder.name}/report.html"
        named = _title(run).partition(", ")[2]
        rows.append(
            f"<tr><td><a href='{escape(link)}'>{_when(folder.name)}</a><td>{escape(run.options.workload)}"
            f"<td title='{escape(', '.join(run.options.nemeses))}'>{escape(named)}<td class=n>{run.options.seed}<td class=n>{run.options.time_limit_s:g} s"
            f"<td><span class={word}>{word}</span> {escape(against)}"
            f"<td class=n>{facts.get('ok_per_s', '')}<td class=n>{facts.get('longest_write_outage_s', '')} s</tr>"
        )
    head = (
        "<tr><th>run<th>workload<th>faults<th class=n>seed<th class=n>time<th>verdict"
        "<th class=n>answers/s<th class=n>no write</tr>"
    )
    body = f"<h1>Runs</h1><table>{head}{''.join(rows)}</table>"
    index = store / "index.html"
    index.write_text(_page("Runs", body), encoding="utf-8")
    return index


def _when(name: str) -> str:
    """A run's folder's name for people."""
    found = re.fullmatch(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)-\d+", name)
    return (
        f"{found[1]}-{found[2]}-{found[3]}&nbsp;{found[4]}:{found[5]}:{found[6]}"
        if found
        else escape(name)
    )


def _page(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
        f"<style>{STYLE.strip()}</style><body>{body}</body></html>\n"
    )


# -- words ------------------------------------------------------------------------------------------------------


def _about(run: Run) -> str:
    o = run.options
    when = datetime.fromtimestamp(run.began_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    rows = {
        "command": f"<code>{escape(o.command)}</code>",
        "seed": str(o.seed),
        "began": when,
        "cluster": f"{len(run.nodes)} servers, {len(run.agents)} agents, {o.concurrency} clients",
        "faults": escape(", ".join(o.nemeses) or "none") + (", overlapping" if o.combined else ""),
        "time": f"{o.time_limit_s:g} s under faults, {o.liveness_s:g} s after them; reads {o.reads}",
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
    return "".join(parts)


def _figures(results: Sequence[Result]) -> str:
    """How many, and how long they took."""
    figures = next((r.facts for r in results if r.checker == "perf"), {})
    rows = {f: v for f, v in figures.items() if isinstance(v, dict)}
    if not rows:
        return ""
    columns = list(next(iter(rows.values())))
    names = {"fail": "refused", "info": "unknown"}
    head = "".join(f"<th class=n>{escape(_quantile_name(names.get(c, c)))}" for c in columns)
    parts = [f"<h2>Operations under faults</h2><table><tr><th>{head}</tr>"]
    for f, values in rows.items():
        cells = "".join(f"<td class=n>{values.get(c, '')}" for c in columns)
        parts.append(f"<tr><th>{escape(f)}{cells}</tr>")
    return "".join([*parts, "</table>"])


def _quantile_name(column: str) -> str:
    found = re.fullmatch(r"p([\d.]+)_ms", column)
    return f"{float(found[1]) / 100:g} (ms)" if found else column


def _outages(rows: Sequence[Longest]) -> str:
    if not rows:
        return ""
    parts = [
        "<h2>Longest time without a write, by fault</h2>",
        "<p>From the fault's beginning until the next fault; and from when all servers answer again. Faults that "
        "overlapped others are left out.</p>",
        "<table><tr><th>fault<th class=n>times<th class=n>no write<th class=n>after all answer<th>promised</tr>",
    ]
    for row in rows:
        after = "-" if row.after_up_s is None else f"{row.after_up_s:.2f} s"
        word = "invalid" if "NOT" in row.promised else "soft"
        parts.append(
            f"<tr><th>{escape(row.nemesis)}<td class=n>{row.count}<td class=n>{row.silence_s:.2f} s<td class=n>{after}"
            f"<td class={word}>{escape(row.promised)}</tr>"
        )
    parts.append("</table>")
    return "".join(parts)


def _faults(history: History) -> str:
    rows = "".join(
        f"<tr><td>{start / 1e9:.2f} s<td>{end / 1e9:.2f} s<td>{escape(what)}</tr>"
        for start, end, what in faults(history)
    )
    return f"<h2>Faults, one by one</h2><table><tr><th>from<th>to<th>what</tr>{rows}</table>"


def _logs(began_ns: int, history: History, logs: dict[str, str]) -> str:
    end_ns = began_ns + (history.ops[-1].time if history.ops else 0) + 1_000_000_000
    first, last = _stamp(began_ns), _stamp(end_ns)
    parts = ["<h2>Logs of the nodes, in the run's time</h2>"]
    for node, text in sorted(logs.items()):
        lines = _between(text, first, last)
        cut = len(lines) - MOST_LINES
        if cut > 0:
            # What is loud comes first; the whole is beside this file.
            loud = [line for line in lines if "[INFO]" not in line and "[DEBUG]" not in line]
            lines = loud[:MOST_LINES] or lines[-MOST_LINES:]
        note = f" ({cut} lines more in {escape(node)}.log)" if cut > 0 else ""
        body = escape("\n".join(lines))
        parts.append(f"<details><summary>{escape(node)}{note}</summary><pre>{body}</pre></details>")
    return "".join(parts)


def _between(text: str, first: str, last: str) -> list[str]:
    """The lines of a time; those without a time of their own belong to the one before."""
    found = []
    inside = False
    for line in text.splitlines():
        if line[:4].isdigit():
            inside = first <= line[: len(first)] <= last
        if inside:
            found.append(line)
    return found


def _stamp(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
