"""Nodes that run nothing, for real servers: their shapes, and a life over mutual TLS."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nomadpy.cli.errors import CliError
from nomadpy.cli.simulate import nodes as simulate_nodes
from nomadpy.demo.client import until
from nomadpy.demo.cluster import LocalCluster
from nomadpy.entropy import SeededEntropy
from nomadpy.errors import ConfigError
from nomadpy.simulator.nodes import HETEROGENEOUS, Shape, shapes, simulated

TRACE = "sn,cpu_milli,memory_mib,gpu,model\na,32000,262144,0,\nb,64000,131072,2,P100\n"


def test_heterogeneous_shapes_are_the_draws_of_one_seed() -> None:
    drawn = random.Random(7).choices(
        [shape for shape, _ in HETEROGENEOUS],
        weights=[weight for _, weight in HETEROGENEOUS],
        k=1,
    )
    drawn_one_by_one = random.Random(7)
    expected = [
        drawn_one_by_one.choices(
            [shape for shape, _ in HETEROGENEOUS], weights=[weight for _, weight in HETEROGENEOUS]
        )[0]
        for _ in range(300)
    ]
    assert shapes("hetero", 300) == expected
    assert shapes("hetero", 1) == drawn
    assert {shape.cpu for shape in expected} == {4_000, 8_000, 16_000, 32_000}


def test_a_trace_gives_a_node_for_each_row_with_its_gpus(tmp_path: Path) -> None:
    file = tmp_path / "nodes.csv"
    file.write_text(TRACE)
    plain, with_gpus = simulated(f"openb:{file}", None, datacenter="dc1", entropy=SeededEntropy(1))
    assert plain.node_resources is not None
    assert plain.node_resources.memory.memory_mb == 262_144
    assert not plain.node_resources.devices
    assert with_gpus.node_resources is not None
    (device,) = with_gpus.node_resources.devices or []
    assert (device.name, len(device.instances or [])) == ("P100", 2)
    assert len(shapes(f"openb:{file}", 1)) == 1


@pytest.mark.parametrize("name", ["", "huge", "openb:", "openb:/no/such/file"])
def test_an_unknown_shape_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        shapes(name, 3)


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "nodes.csv"
    file.write_text("sn,cpu_milli,memory_mib,gpu,model\na,many,1,0,\n")
    with pytest.raises(ConfigError, match="not a list of nodes"):
        shapes(f"openb:{file}", None)


def test_uniform_nodes_are_all_alike_and_a_hundred_unless_said_otherwise() -> None:
    assert shapes("uniform", None) == [Shape(8_000, 16_384, 102_400)] * 100
    assert shapes("big", 2) == [Shape(64_000, 262_144, 1_024_000)] * 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (["-mode=dead"], "use static or live"),
        (["-count=0"], "at least 1"),
        (["-ca=x"], "go together"),
        (["-shape=round"], "no node shape"),
        (["-count=1", "-address=127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
def test_what_cannot_be_done_is_said(line: list[str], reason: str) -> None:
    with pytest.raises(CliError, match=reason):
        simulate_nodes.run(line)


@pytest.mark.real_time
@pytest.mark.slow
def test_live_nodes_join_over_tls_and_report_what_is_placed_on_them(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, servers=1, clients=0) as cluster:
        cluster.prepare()
        cluster.start()
        server = cluster.wait_leader()
        api = cluster.api(server)
        files = cluster.certificates
        line = [sys.executable, "-m", "nomadpy", "simulate", "nodes", "-count=20", "-mode=live"]
        line += [f"-ca={files / 'nomad-agent-ca.pem'}"]
        line += [f"-cert={files / 'global-client-nomad.pem'}"]
        line += [f"-key={files / 'global-client-nomad-key.pem'}"]
        crowd = subprocess.Popen(
            [*line, f"-address=127.0.0.1:{server.rpc_port}"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert crowd.stdout is not None
            assert crowd.stdout.readline().startswith("20 nodes registered")
            group = {
                "Name": "group",
                "Count": 30,
                "Tasks": [{"Name": "task", "Driver": "mock_driver", "Config": {}}],
            }
            api.put("/v1/jobs", {"Job": {"ID": "crowded", "TaskGroups": [group]}})

            def running() -> bool:
                summary = api.get("/v1/job/crowded/summary")["Summary"]
                return bool(summary["group"]["Running"] == 30)

            until(running, seconds=30, what="30 running allocations")
        finally:
            crowd.send_signal(signal.SIGINT)
            assert crowd.wait(10) == 0
