"""Real runs of nodes that are broken on purpose: each is found invalid by the checker that it is made for, and for that reason.

Those of registers and of disks are in test_runs.py and test_disk_runs.py; `run.py test-all --suite proofs` has all of them, longer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from jepsen_style.checker.logs import CANARY
from jepsen_style.checker.result import Result
from jepsen_style.report import Verdicts

from nomadpy import mutations
from nomadpy.errors import ConfigError
from nomadpy.pki.ca import create_ca

RUN = Path(__file__).parents[2] / "jepsen-style" / "run.py"

real = [pytest.mark.real_time, pytest.mark.slow]


def refute(store: Path, mutation: str, workload: str, *words: str, seconds: int = 6) -> dict[str, Result]:  # fmt: skip
    """A short run of a broken cluster, which must be found invalid; its verdicts by checker."""
    command = [sys.executable, str(RUN), "--workload", workload, "--mutation", mutation, *words]
    command += ["--time-limit", str(seconds), "--liveness", "1", "--seed", "2", "--out", str(store)]
    environment = {**os.environ, "TMPDIR": str(store), "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    finally:
        heal = [sys.executable, str(RUN), "heal"]
        subprocess.run(heal, capture_output=True, check=True, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    raw = (store / "latest" / "results.json").read_bytes()
    return {r.checker: r for r in msgspec.json.decode(raw, type=Verdicts).results}


@pytest.mark.parametrize(
    ("mutation", "workload", "checker", "reason"),
    [
        pytest.param("double-lock", "lock", "lock", "second holder", marks=real),
        pytest.param("no-fence", "lock", "lock", "after", marks=real),
        pytest.param("lost-wake", "blocking", "blocking", "slept through", marks=real),
        pytest.param("index-goes-back", "blocking", "blocking", "index", marks=real),
        pytest.param("lose-job", "jobs-set", "set", "is lost", marks=real),
        pytest.param("place-twice", "placement", "placement", "twice", marks=real),
        # Cpu or a port: what runs out first is told.
        pytest.param("overcommit", "capacity", "capacity", "promised|given twice", marks=real),
    ],
)
def test_a_broken_server_is_found_out(
    tmp_path: Path, mutation: str, workload: str, checker: str, reason: str
) -> None:
    found = refute(tmp_path, mutation, workload)[checker]
    assert found.valid is False
    assert re.search(reason, found.summary)
    assert found.offending
    assert "BROKEN ON PURPOSE" in (tmp_path / "latest" / "server-1.log").read_text()


@pytest.mark.parametrize(
    ("mutation", "kind"),
    [
        pytest.param("leak-process", "/bin/sleep 3600", marks=real),
        pytest.param("leak-dir", "allocation directories", marks=real),
    ],
)
def test_what_an_agent_leaves_behind_is_found(tmp_path: Path, mutation: str, kind: str) -> None:
    found = refute(tmp_path, mutation, "leaks", seconds=4)["leaks"]
    assert found.valid is False
    assert any(kind in line for line in found.offending), found.offending


@pytest.mark.real_time
@pytest.mark.slow
def test_an_agent_that_starts_its_tasks_anew_is_found_out(tmp_path: Path) -> None:
    found = refute(tmp_path, "forget-task", "survive", "--nemesis", "kill-agent", seconds=8)
    assert found["survive"].valid is False
    assert "anew" in found["survive"].summary or "restarted" in found["survive"].summary


@pytest.mark.real_time
@pytest.mark.slow
def test_a_deployment_that_is_called_successful_without_right_is_found_out(tmp_path: Path) -> None:
    found = refute(tmp_path, "bless-deployment", "deployments", seconds=8)["deploy"]
    assert found.valid is False
    assert "cannot run" in found.summary


@pytest.mark.real_time
@pytest.mark.slow
def test_a_secret_in_a_log_is_found_and_does_not_reach_the_report(tmp_path: Path) -> None:
    found = refute(tmp_path, "print-secret", "placement", seconds=4)["logs"]
    assert found.valid is False
    assert "secret" in found.summary
    assert CANARY not in (tmp_path / "latest" / "results.json").read_text()


def test_a_mutation_of_agents_is_refused_on_every_cluster_but_the_kits() -> None:
    theirs = create_ca("our CA", now_ns=1_700_000_000_000_000_000)[0].decode()
    for ca in (None, theirs):
        with pytest.raises(ConfigError, match="breaks a node on purpose"):
            mutations.apply_to_agent({}, {mutations.VARIABLE: "leak-dir"}, ca)
    mutations.apply_to_agent({}, {}, theirs)
    kits = create_ca(mutations.KIT_CA, now_ns=1_700_000_000_000_000_000)[0].decode()
    # One that is a server's does nothing to an agent.
    mutations.apply_to_agent({}, {mutations.VARIABLE: "double-lock"}, kits)
