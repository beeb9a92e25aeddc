"""A development agent, and a client node behind mutual TLS, for the clients of others to talk to."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_cluster import RealCluster, real_cluster

from nomadpy.demo.client import ApiClient, until
from nomadpy.demo.cluster import HOST, free_ports
from nomadpy.demo.leftovers import end_processes_of, remove_folder


@pytest.fixture(scope="session")
def dev_agent() -> Iterator[ApiClient]:
    """`nomadpy agent -dev` on loopback, as on a developer's machine."""
    folder = Path(tempfile.mkdtemp(prefix="nomadpy-clients-"))
    http, rpc = free_ports(2)
    config = folder / "agent.hcl"
    config.write_text(
        f'name = "dev"\nports {{\n  http = {http}\n  rpc = {rpc}\n}}\n'
        'plugin "raw_exec" {\n  config {\n    enabled = true\n  }\n}\n'
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NOMAD_")}
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nomadpy", "agent", "-dev", "-config", str(config)],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**environment, "TMPDIR": str(folder)},
        )
    api = ApiClient(f"{HOST}:{http}")
    try:
        until(
            lambda: (
                process.poll() is not None
                or [n["Status"] for n in api.get("/v1/nodes")] == ["ready"]
            ),
            seconds=30,
            what="the development agent",
        )
        assert process.poll() is None, (folder / "agent.log").read_text()
        yield api
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            end_processes_of(folder)
            remove_folder(folder)


@pytest.fixture(scope="session")
def tls_cluster() -> Iterator[RealCluster]:
    """A server and a client that want certificates."""
    with real_cluster(None, servers=1, clients=1) as running:
        yield running
