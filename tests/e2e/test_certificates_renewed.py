"""A running cluster moves to another certificate authority by SIGHUP alone: no daemon and no task is restarted for it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from real_cluster import group, job, real_cluster, shell

from nomadpy.clock import SystemClock
from nomadpy.demo.client import ApiError, until
from nomadpy.demo.cluster import LocalCluster
from nomadpy.pki.ca import write_ca, write_certificate

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

RELOADED = "certificates reloaded"


def reload_all(cluster: LocalCluster, times: int) -> None:
    """SIGHUP to every node, and wait until each has said so often that it has read them."""
    for daemon in cluster.running():
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
    for daemon in cluster.running():
        until(
            lambda daemon=daemon: daemon.log_text().count(RELOADED) == times,  # type: ignore[misc]
            seconds=30,
            what=f"{daemon.name} to read its certificates",
        )


def test_servers_and_agents_take_new_certificates_without_a_restart(tmp_path: Path) -> None:
    with real_cluster(servers=3, clients=1) as cluster:
        (alloc,) = cluster.run(job("web", group(shell("while :; do sleep 1; done"))))
        agent = cluster.clients[0]
        before = {d.name: d.pid for d in cluster.running()}

        now_ns = SystemClock().now_ns()
        ca, ca_key = write_ca(tmp_path, now_ns=now_ns)
        trusted = cluster.certificates / "nomad-agent-ca.pem"
        old_ca = trusted.read_bytes()
        # As the operations document says: trust both, replace the certificates, trust the new one alone.
        trusted.write_bytes(old_ca + ca.read_bytes())
        reload_all(cluster, 1)
        for role in ("server", "client", "cli"):
            for file in write_certificate(tmp_path, ca, ca_key, role, now_ns=now_ns):
                file.replace(cluster.certificates / file.name)
        reload_all(cluster, 2)
        trusted.write_bytes(ca.read_bytes())
        reload_all(cluster, 3)
        assert {d.name: d.pid for d in cluster.running()} == before

        # Servers that start now trust nobody of the old authority, and all connections to them are new.
        for server in cluster.servers:
            server.stop()
            server.start()
            until(lambda server=server: _well(cluster, server.name), seconds=60, what="the quorum")  # type: ignore[misc]
        cluster.wait_nodes(1)
        cluster.run(job("later", group(shell("while :; do sleep 1; done"))))
        assert agent.pid == before[agent.name]
        assert [a["ID"] for a in cluster.allocs("web", status="running")] == [alloc["ID"]]


def _well(cluster: LocalCluster, name: str) -> bool:
    """Whether the server votes and holds the log, as it says itself."""
    server = next(s for s in cluster.servers if s.name == name)
    try:
        health = cluster.api(server).get("/v1/operator/autopilot/health")
    except ApiError:
        return False
    return bool(health["Healthy"])
