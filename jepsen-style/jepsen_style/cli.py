"""The command line: run, run everything, judge again, show, simulate, heal.

Exit codes: 0 valid, 1 invalid, 2 unknown, 3 the kit itself failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import msgspec

from jepsen_style import report, undo
from jepsen_style.checker.result import Result, worst
from jepsen_style.client import tls_from_environment
from jepsen_style.cluster import Cluster, GivenCluster, OwnCluster
from jepsen_style.equipment_registry import AGENTS, all_missing
from jepsen_style.judge import analyze
from jepsen_style.nemesis.combined import COMBINED
from jepsen_style.nemesis.registry import NEMESES, expand, may_overlap, of_agents
from jepsen_style.runner import Options, Run, Runner, agents_for, own_cluster
from jepsen_style.serve import Store
from jepsen_style.suites import FAILED, INVALID, SUITES, UNKNOWN, VALID, Outcome, table
from jepsen_style.workload.registry import WORKLOADS
from nomadpy import __version__
from nomadpy.clock import SystemClock
from nomadpy.mutations import MUTATIONS

SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if threading.current_thread() is threading.main_thread():
        for number in _INTERRUPTS:
            signal.signal(number, _interrupted)
    try:
        return _command(words)
    except KeyboardInterrupt:
        _say("interrupted; everything that was started has been ended")
        return FAILED
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    except (OSError, RuntimeError, ExceptionGroup, msgspec.MsgspecError):
        traceback.print_exc()
        return FAILED


_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    # Only once: a second one would stop the cleaning up.
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _command(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words[:1] and words[0] in COMMANDS else ("", words)
    if command:
        return COMMANDS[command](rest)
    chosen = _parser().parse_args(rest)
    if chosen.list:
        _list()
        return VALID
    if chosen.time_limit is None:
        chosen.time_limit = SECONDS
    codes = [_one(chosen, workload, chosen.nemesis).code for workload in chosen.workload.split(",")]
    return max(codes, key=_gravity)


def _heal(words: list[str]) -> int:
    _none(words, "heal")
    healed = undo.heal()
    for entry in healed:
        _say(f"{entry.kind} {entry.name}")
    _say(f"{len(healed)} things undone")
    return VALID


def _analyze(words: list[str]) -> int:
    if len(words) != 1:
        raise ValueError("usage: run.py analyze DIR")
    return _code(analyze(Path(words[0]), _say))


def _serve(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="run.py serve", description="The folder of runs, on loopback."
    )
    parser.add_argument("--port", type=int, default=8080, help="0 for any")
    parser.add_argument("--out", type=Path, default=Path("store"), help="where runs are kept")
    chosen = parser.parse_args(words)
    report.write_index(chosen.out)
    with Store(chosen.out, chosen.port) as store:
        _say(store.address)
        store.serve_forever()
    return VALID


def _simulate(words: list[str]) -> int:
    """Seeds of the simulated cluster; whatever options its simulator has are handed on."""
    command = [sys.executable, "-m", "nomadpy.simulator", *words]
    failing: list[str] = []
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                _say(line.rstrip("\n"))
                if found := re.match(r"seed (\S+): ", line):
                    failing.append(found[1])
        except KeyboardInterrupt:
            process.terminate()
            raise
    if failing:
        _say(f"failing seeds: {' '.join(failing)}")
        return INVALID
    return VALID if process.returncode == 0 else FAILED


def _none(words: list[str], command: str) -> None:
    if words:
        raise ValueError(f"usage: run.py {command}")


def _gravity(code: int) -> int:
    return {VALID: 0, UNKNOWN: 1, INVALID: 2, FAILED: 3}[code]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Clients, faults, recorded histories, verdicts. Also: run.py test-all | analyze DIR | "
        "serve | sim | heal",
        epilog="Exit codes: 0 valid, 1 invalid, 2 unknown, 3 the kit itself failed.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="workloads, nemeses and mutations")
    add("--workload", default="register", help="one, or several with commas")
    add(
        "--nemesis",
        default="none",
        help="several with commas; a fault without target is all of its; `combined` among them: they overlap",
    )
    add("--time-limit", type=float, metavar="S", help="seconds of work under faults")
    add(
        "--liveness", type=float, default=10.0, metavar="S", help="seconds of work after all faults"
    )
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
    _say(f"  {COMBINED:22} with others or alone: faults of different families overlap")
    for name, kind in NEMESES.items():
        _say(f"  {name:22} {kind.about}{_off(kind.needs)}")
    _say("mutations")
    for name, about in MUTATIONS.items():
        _say(f"  {name:22} {about}")


def _off(needs: Iterable[str]) -> str:
    missing = all_missing(needs)
    return f"   (not here: {missing})" if missing else ""


def _test_all(words: list[str]) -> int:
    parser = _parser()
    parser.add_argument("--suite", choices=list(SUITES), default="ci", help="which list of runs")
    chosen = parser.parse_args(words)
    limit, concurrency = chosen.time_limit, chosen.concurrency
    reads, mutation = chosen.reads, chosen.mutation
    outcomes = []
    for plan in SUITES[chosen.suite]:
        chosen.time_limit = plan.seconds if limit is None else limit
        chosen.concurrency = plan.clients or concurrency
        chosen.reads = plan.reads if plan.reads != "default" else reads
        chosen.mutation = plan.mutation or mutation
        code, folder = _one(chosen, plan.workload, plan.nemeses)
        outcomes.append(Outcome(plan, code, folder))
    _say("")
    for line in table(outcomes):
        _say(line)
    return max((o.code for o in outcomes), key=_gravity)


class _Done(NamedTuple):
    code: int
    folder: Path | None = None


def _one(chosen: argparse.Namespace, workload: str, nemesis: str) -> _Done:
    """One run from the beginning to the report; a failure of the kit does not stop other runs."""
    if workload not in WORKLOADS:
        raise ValueError(f"there is no workload {workload!r}; see --list")
    missing = all_missing(WORKLOADS[workload].needs)
    if not missing and chosen.address and WORKLOADS[workload].needs:
        missing = "the nodes are not this kit's"
    if missing:
        _say(f"off here ({missing}): {workload}")
        return _Done(UNKNOWN)
    named = [n for n in nemesis.split(",") if n != COMBINED]
    combined = COMBINED in nemesis.split(",")
    agents = bool(chosen.agents) or AGENTS in WORKLOADS[workload].needs
    if combined and not named:
        named = [n for n in NEMESES if may_overlap(n) and (agents or not of_agents(n))]
    nemeses = _possible(expand(named, agents=agents), given=bool(chosen.address))
    if combined and not all(map(may_overlap, nemeses)):
        _say(f"not together with others: {', '.join(n for n in nemeses if not may_overlap(n))}")
        nemeses = list(filter(may_overlap, nemeses))
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
        command=_command_of(chosen, workload, nemesis),
    )
    now = datetime.fromtimestamp(SystemClock().now_ns() / 1e9, UTC)
    run_id = now.strftime("%Y%m%dT%H%M%S-%f")[:-3]
    folder: Path = chosen.out / workload / run_id
    folder.mkdir(parents=True)
    _say(f"{workload} with {nemesis if nemeses else 'no faults'}, seed {options.seed}: {folder}")
    try:
        if chosen.address:
            _run_on(_given(chosen.address), options, folder, run_id, clean=True)
        else:
            with own_cluster(options, _say, folder) as cluster:
                _run_on(cluster, options, folder, run_id, clean=False)
    except (OSError, RuntimeError, ExceptionGroup):
        traceback.print_exc()
        return _Done(FAILED, folder)
    results = analyze(folder, _say)
    latest = chosen.out / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(Path(workload) / run_id)
    return _Done(_code(results), folder)


def _possible(nemeses: list[str], *, given: bool) -> list[str]:
    """Leave out what cannot be done here, and say so."""
    if given and nemeses:
        _say("faults are off: the nodes are not this kit's")
        return []
    reasons = {n: all_missing(NEMESES[n].needs) for n in nemeses}
    for reason in sorted(set(reasons.values()) - {""}):
        _say(f"off here ({reason}): {', '.join(n for n in nemeses if reasons[n] == reason)}")
    return [n for n in nemeses if not reasons[n]]


def _command_of(chosen: argparse.Namespace, workload: str, nemesis: str) -> str:
    words = ["python", "jepsen-style/run.py", "--workload", workload]
    words += ["--nemesis", nemesis]
    words += ["--time-limit", f"{chosen.time_limit:g}", "--concurrency", str(chosen.concurrency)]
    words += ["--seed", str(chosen.seed), "--nodes", str(chosen.nodes)]
    for flag, value, default in (
        ("--liveness", f"{chosen.liveness:g}", "10"),
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
    runner.run(_say)
    if clean:
        runner.clean()


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "test-all": _test_all,
    "analyze": _analyze,
    "serve": _serve,
    "sim": _simulate,
    "heal": _heal,
}


def _code(results: list[Result]) -> int:
    return {True: VALID, False: INVALID, None: UNKNOWN}[worst(results)]


def _say(line: str) -> None:
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has gone, as `head` does. The run goes on: what it finds is in its folder.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
