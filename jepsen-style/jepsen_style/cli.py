"""The command line: run, run everything, judge again, heal.

Exit codes: 0 valid, 1 invalid, 2 unknown, 3 the kit itself failed.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import msgspec

from jepsen_style import report, undo
from jepsen_style.checker.logs import check_logs
from jepsen_style.checker.perf import check_liveness, check_perf
from jepsen_style.checker.result import Result, worst
from jepsen_style.client import tls_from_environment
from jepsen_style.cluster import Cluster, GivenCluster, OwnCluster
from jepsen_style.equipment_registry import AGENTS, all_missing
from jepsen_style.history import History, read_history
from jepsen_style.nemesis.combined import COMBINED
from jepsen_style.nemesis.registry import NEMESES, expand, of_agents
from jepsen_style.runner import Options, Run, Runner, agents_for, own_cluster
from jepsen_style.workload.registry import WORKLOADS
from nomadpy import __version__
from nomadpy.clock import SystemClock
from nomadpy.mutations import MUTATIONS

VALID, INVALID, UNKNOWN, FAILED = 0, 1, 2, 3

ALL_RUNS = (
    ("register", "kill-leader,pause-leader"),
    ("register", "partition-leader,partition-deaf-leader,partition-bridge"),
    ("register", "kill-all,restart-rolling"),
    ("counter", "kill-majority,pause-one"),
    ("append", "kill-leader,restart-all"),
    ("jobs-set", "kill-one,pause-leader,restart-all"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        return _command(words)
    except KeyboardInterrupt:
        _say("interrupted; everything that was started has been ended")
        return FAILED
    except (OSError, RuntimeError, TimeoutError, ValueError, msgspec.MsgspecError):
        traceback.print_exc()
        return FAILED


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _command(words: list[str]) -> int:
    if words[:1] == ["heal"]:
        healed = undo.heal()
        for entry in healed:
            _say(f"{entry.kind} {entry.name}")
        _say(f"{len(healed)} things undone")
        return VALID
    if words[:1] == ["analyze"]:
        if len(words) != 2:
            raise ValueError("usage: run.py analyze DIR")
        return _code(analyze(Path(words[1])))
    everything = words[:1] == ["test-all"]
    parser = _parser()
    chosen = parser.parse_args(words[1:] if everything else words)
    if chosen.list:
        _list()
        return VALID
    if everything:
        return _test_all(chosen)
    workloads = chosen.workload.split(",")
    verdicts = [_one(chosen, w, chosen.nemesis) for w in workloads]
    return max(verdicts, key=_gravity)


def _gravity(code: int) -> int:
    return {VALID: 0, UNKNOWN: 1, INVALID: 2, FAILED: 3}[code]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Clients, faults, recorded histories, verdicts. Also: run.py test-all | analyze DIR | heal",
        epilog="Exit codes: 0 valid, 1 invalid, 2 unknown, 3 the kit itself failed.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="workloads, nemeses and mutations")
    add("--workload", default="register", help="one, or several with commas")
    add(
        "--nemesis",
        default="none",
        help="several with commas; a fault without target is all of its",
    )
    add("--time-limit", type=float, default=30.0, metavar="S", help="seconds of work under faults")
    add("--liveness", type=float, default=5.0, metavar="S", help="seconds of work after all faults")
    add("--concurrency", type=int, default=9, metavar="N", help="clients")
    add("--rate", type=float, default=0.0, help="requests a second of all clients; 0: no limit")
    add("--seed", type=int, default=1, help="decides requests and faults")
    add("--nodes", type=int, default=3, help="servers to start")
    add("--agents", type=int, default=0, help="agents to start; 2 when something needs them")
    add("--reads", choices=("default", "stale"), default="default", help="stale must be refuted")
    add("--mutation", choices=("", *MUTATIONS), default="", help="break the servers on purpose")
    add(
        "--address",
        default="",
        help="host:port,... or https://host:port,... of nodes that run already",
    )
    add("--out", type=Path, default=Path("store"), help="where runs are kept")
    return parser


def _list() -> None:
    _say("workloads")
    for name, workload in WORKLOADS.items():
        _say(f"  {name:22} {workload.about}{_off(workload.needs)}")
    _say("nemeses")
    for name, kind in NEMESES.items():
        _say(f"  {name:22} {kind.about}{_off(kind.needs)}")
    _say("mutations")
    for name, about in MUTATIONS.items():
        _say(f"  {name:22} {about}")


def _off(needs: Iterable[str]) -> str:
    missing = all_missing(needs)
    return f"   (not here: {missing})" if missing else ""


def _test_all(chosen: argparse.Namespace) -> int:
    codes = []
    for workload, nemeses in ALL_RUNS:
        code = _one(chosen, workload, nemeses)
        codes.append(code)
    _say("")
    for (workload, nemeses), code in zip(ALL_RUNS, codes, strict=True):
        word = {VALID: "valid", INVALID: "INVALID", UNKNOWN: "unknown", FAILED: "FAILED"}[code]
        _say(f"{word:8} {workload:10} {nemeses}")
    return max(codes, key=_gravity)


def _one(chosen: argparse.Namespace, workload: str, nemesis: str) -> int:
    """One run from the beginning to the report; a failure of the kit does not stop other runs."""
    if workload not in WORKLOADS:
        raise ValueError(f"there is no workload {workload!r}; see --list")
    missing = all_missing(WORKLOADS[workload].needs)
    if not missing and chosen.address and WORKLOADS[workload].needs:
        missing = "the nodes are not this kit's"
    if missing:
        _say(f"off here ({missing}): {workload}")
        return UNKNOWN
    named = [n for n in nemesis.split(",") if n != COMBINED]
    combined = COMBINED in nemesis.split(",")
    agents = bool(chosen.agents) or AGENTS in WORKLOADS[workload].needs
    if combined and not named:
        named = [n for n in NEMESES if agents or not of_agents(n)]
    nemeses = _possible(expand(named, agents=agents), given=bool(chosen.address))
    options = Options(
        workload=workload,
        nemeses=nemeses,
        combined=combined,
        time_limit_s=chosen.time_limit,
        liveness_s=chosen.liveness,
        concurrency=chosen.concurrency,
        rate=chosen.rate,
        seed=chosen.seed,
        nodes=chosen.nodes,
        agents=agents_for(chosen.agents, workload, nemeses),
        reads=chosen.reads,
        mutation=chosen.mutation,
        command=_command_of(chosen, workload, nemeses),
    )
    now = datetime.fromtimestamp(SystemClock().now_ns() / 1e9, UTC)
    run_id = now.strftime("%Y%m%dT%H%M%S-%f")[:-3]
    folder: Path = chosen.out / workload / run_id
    folder.mkdir(parents=True)
    _say(f"{workload} with {', '.join(nemeses) or 'no faults'}, seed {options.seed}: {folder}")
    try:
        if chosen.address:
            _run_on(_given(chosen.address), options, folder, run_id, clean=True)
        else:
            with own_cluster(options, _say) as cluster:
                _run_on(cluster, options, folder, run_id, clean=False)
    except (OSError, RuntimeError, TimeoutError):
        traceback.print_exc()
        return FAILED
    results = analyze(folder)
    latest = chosen.out / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(Path(workload) / run_id)
    return _code(results)


def _possible(nemeses: list[str], *, given: bool) -> list[str]:
    """Leave out what cannot be done here, and say so."""
    if given and nemeses:
        _say("faults are off: the nodes are not this kit's")
        return []
    reasons = {n: all_missing(NEMESES[n].needs) for n in nemeses}
    for reason in sorted(set(reasons.values()) - {""}):
        _say(f"off here ({reason}): {', '.join(n for n in nemeses if reasons[n] == reason)}")
    return [n for n in nemeses if not reasons[n]]


def _command_of(chosen: argparse.Namespace, workload: str, nemeses: list[str]) -> str:
    words = ["python", "jepsen-style/run.py", "--workload", workload]
    words += ["--nemesis", ",".join(nemeses) or "none"]
    words += ["--time-limit", f"{chosen.time_limit:g}", "--concurrency", str(chosen.concurrency)]
    words += ["--seed", str(chosen.seed), "--nodes", str(chosen.nodes)]
    for flag, value, default in (
        ("--liveness", f"{chosen.liveness:g}", "5"),
        ("--rate", f"{chosen.rate:g}", "0"),
        ("--agents", str(chosen.agents), "0"),
        ("--reads", chosen.reads, "default"),
        ("--mutation", chosen.mutation, ""),
        ("--address", chosen.address, ""),
    ):
        words += [flag, value] if value != default else []
    return shlex.join(words)


def _given(text: str) -> GivenCluster:
    """host:port of every node; TLS by the environment, as the command line has it, unless it says http://."""
    plain = text.startswith("http://")
    addresses = [a.removeprefix("http://").removeprefix("https://") for a in text.split(",")]
    return GivenCluster(addresses, None if plain else tls_from_environment())


def _run_on(cluster: Cluster, options: Options, folder: Path, run_id: str, *, clean: bool) -> None:
    run = Run(
        options=options,
        nodes=cluster.names,
        agents=cluster.agent_names if isinstance(cluster, OwnCluster) else [],
        began_ns=SystemClock().now_ns(),
        version=f"{__version__} {_commit()}".strip(),
    )
    (folder / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(run)))
    runner = Runner(options, cluster, folder, run_id)
    try:
        runner.run(_say)
        if clean:
            runner.clean()
    finally:
        for name, text in cluster.logs().items():
            (folder / f"{name}.log").write_text(text, encoding="utf-8")


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def analyze(folder: Path) -> list[Result]:
    """Judge a run's folder; write results.json, report.html and the index; say the verdicts."""
    run = msgspec.json.decode((folder / "run.json").read_bytes(), type=Run)
    history = read_history(folder / "history.jsonl")
    logs = {f.stem: f.read_text(encoding="utf-8") for f in sorted(folder.glob("*.log"))}
    results = judge(run, history, logs)
    verdicts = report.Verdicts(worst(results), results)
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(verdicts)))
    file = report.write_report(folder, run, history, results, logs)
    report.write_index(folder.parent.parent)
    for result in results:
        _say(f"  {report.VERDICTS[result.valid]:8} {result.checker:10} {result.summary}")
        for line in result.offending:
            _say(f"             {line}")
    _say(f"  {file}")
    return results


def judge(run: Run, history: History, logs: dict[str, str]) -> list[Result]:
    """All verdicts of a run."""
    options = run.options
    workload = WORKLOADS[options.workload]("", options.reads)
    results = [*workload.check(history), check_liveness(history, run.nodes), check_perf(history)]
    if logs:
        results.append(check_logs(logs))
    return results


def _code(results: list[Result]) -> int:
    return {True: VALID, False: INVALID, None: UNKNOWN}[worst(results)]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
