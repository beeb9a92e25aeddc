"""A run's folder judged: verdicts, results.json, the report and the index, from nothing but the files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from jepsen_style import report
from jepsen_style.checker.logs import check_logs
from jepsen_style.checker.perf import check_liveness, check_perf, faults
from jepsen_style.checker.recovery import check_recovery
from jepsen_style.checker.result import Result, worst
from jepsen_style.history import History, read_history
from jepsen_style.runner import Run, Say
from jepsen_style.workload.registry import WORKLOADS


def judge(run: Run, history: History, logs: dict[str, str]) -> list[Result]:
    """All verdicts of a run."""
    options = run.options
    workload = WORKLOADS[options.workload]("", options.reads)
    results = [
        *workload.check(history),
        check_liveness(history, run.nodes),
        check_recovery(history),
        check_perf(history),
    ]
    if logs:
        starved = any(what.startswith("cgroup-") for _, _, what in faults(history))
        results.append(check_logs(logs, starved=starved))
    return results


def analyze(folder: Path, say: Say) -> list[Result]:
    """Judge a run's folder; write results.json, report.html and the index; say the verdicts.

    Raises OSError and msgspec.MsgspecError when the folder does not hold a run.
    """
    folder = folder.resolve()
    run = msgspec.json.decode((folder / "run.json").read_bytes(), type=Run)
    history = read_history(folder / "history.jsonl")
    logs = {f.stem: f.read_text(encoding="utf-8") for f in sorted(folder.glob("*.log"))}
    results = judge(run, history, logs)
    verdicts = report.Verdicts(worst(results), results)
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(verdicts)))
    file = report.write_report(folder, run, history, results, logs)
    report.write_index(folder.parent.parent)
    for result in results:
        say(f"  {report.VERDICTS[result.valid]:8} {result.checker:10} {result.summary}")
        for line in result.offending:
            say(f"             {line}")
    say(f"  {file}")
    return results
