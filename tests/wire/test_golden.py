"""A real dev agent, driven through the recorded scenarios, answers as the recordings do.

One agent serves all scenarios, each in a fresh recording. LEAST is the line that must not be crossed downwards: how many
exchanges of a scenario have no hard difference (status, headers, missing fields, kinds, stable values).
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import requests
from compare import compare_scenarios
from record import SCENARIOS, Recorder

from nomadpy.demo.cluster import free_ports
from nomadpy.demo.dockerd import find_or_start

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

REFERENCE = pathlib.Path(__file__).parent / "reference"
READY_S = 40.0
STOP_S = 20.0

# In the order of the recording. What is missing, and why, is in tests/wire/README.md.
LEAST = {
    "agent": 26,  # of 27
    "nodes": 27,  # of 31
    "jobs": 45,  # of 45
    "job_errors": 23,  # of 23
    "allocations": 25,  # of 25
    "batch": 17,  # of 17
    "blocking": 8,  # of 8
    "variables": 25,  # of 25
}


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: pathlib.Path) -> None:
    """Return when the agent has a leader that is well and has a root key, and a ready node."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        # Until it answers there is nothing to see.
        with contextlib.suppress(requests.RequestException, ValueError):
            nodes = requests.get(f"{address}/v1/nodes", timeout=5).json()
            keys = requests.get(f"{address}/v1/operator/keyring/keys", timeout=5).json()
            health = requests.get(f"{address}/v1/operator/autopilot/health", timeout=5)
            if keys and health.ok and any(node["Status"] == "ready" for node in nodes):
                return
        time.sleep(0.2)
    pytest.fail(f"the agent did not become ready:\n{log.read_text(errors='replace')[-4000:]}")


@pytest.fixture(scope="module")
def docker_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Docker daemon that answers: the recorded node had one."""
    docker = find_or_start(tmp_path_factory.mktemp("docker"))
    try:
        yield docker.endpoint
    finally:
        docker.close()


@pytest.fixture(scope="module")
def dev_agent(tmp_path_factory: pytest.TempPathFactory, docker_endpoint: str) -> Iterator[str]:
    """The address of a fresh `nomadpy agent -dev`."""
    folder = tmp_path_factory.mktemp("agent")
    http, rpc, serf = free_ports(3)
    shared = folder / "shared"
    shared.mkdir()
    config = {
        "ports": {"http": http, "rpc": rpc, "serf": serf},
        "client": {
            "meta": {"rack": "r1", "tier": "gold"},
            "host_volume": {"shared-data": {"path": str(shared)}},
        },
        "plugin": {
            "docker": {"config": {"endpoint": docker_endpoint, "volumes": {"enabled": True}}}
        },
    }
    (folder / "agent.json").write_text(json.dumps(config))
    log = folder / "agent.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NOMAD_")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "nomadpy",
                "agent",
                "-dev",
                "-config",
                str(folder / "agent.json"),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
        )
    try:
        address = f"http://127.0.0.1:{http}"
        wait_until_ready(address, process, log)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("scenario", LEAST)
def test_a_dev_agent_answers_as_recorded(
    scenario: str, dev_agent: str, tmp_path: pathlib.Path
) -> None:
    recorder = Recorder(dev_agent)
    SCENARIOS[scenario](recorder)
    lines = "".join(json.dumps(e, sort_keys=True) + "\n" for e in recorder.exchanges)
    (tmp_path / f"{scenario}.jsonl").write_text(lines, encoding="utf-8")
    counts = compare_scenarios(REFERENCE, tmp_path)[scenario]
    print(f"\n{scenario}: {counts.passed} of {counts.total} pass, {counts.exact} exact")
    print("\n".join(counts.failures))
    assert counts.passed >= LEAST[scenario], "\n".join(counts.failures)
