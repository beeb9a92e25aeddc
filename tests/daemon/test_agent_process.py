"""The agent as a process: what it says when it cannot start, how it ends, what it shows, what SIGHUP does."""

from __future__ import annotations

import signal
import socket
import ssl
import time
from pathlib import Path

import pytest
from agent_process import AgentProcess
from cryptography import x509

from nomadpy.pki.ca import issue_certificate, write_ca, write_certificate


def test_sigterm_ends_a_development_agent_well_and_leaves_nothing(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, "", "-dev") as agent:
        agent.until_ready()
        assert list(agent.temporary.glob("nomadpy-dev-*"))
        agent.signal(signal.SIGTERM)
        assert agent.exit_code() == 0
        assert list(agent.temporary.glob("nomadpy-dev-*")) == []
        assert "Traceback" not in agent.output


def test_a_named_data_dir_is_kept_and_taken_up_by_the_next_agent(tmp_path: Path) -> None:
    home = tmp_path / "home"
    ids = []
    for _ in range(2):
        with AgentProcess(tmp_path, "", "-dev", "-data-dir", str(home)) as agent:
            agent.until_ready()
            ids.append([node["ID"] for node in agent.get("/v1/nodes")])
            agent.signal(signal.SIGINT)
            assert agent.exit_code() == 0
    assert ids[0] == ids[1]
    assert len(ids[0]) == 1


@pytest.mark.parametrize("service", ["http", "rpc"])
def test_a_port_in_use_is_named_and_ends_the_agent_with_code_1(
    tmp_path: Path, service: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = (
            f'addresses {{\n  {service} = "127.0.0.1"\n}}\nports {{\n  {service} = {port}\n}}\n'
        )
        with AgentProcess(tmp_path, config, "-dev") as agent:
            assert agent.exit_code() == 1
            assert f"127.0.0.1:{port}" in agent.output
            assert "in use" in agent.output
            assert f"ports.{service}" in agent.output
            assert "Traceback" not in agent.output
            assert list(agent.temporary.iterdir()) == []


def test_a_refused_configuration_ends_with_code_1_a_sentence_and_no_directory(
    tmp_path: Path,
) -> None:
    with AgentProcess(tmp_path, "acl {\n  enabled = true\n}\n", "-dev") as agent:
        assert agent.exit_code() == 1
        assert "acl.enabled" in agent.output
        assert "agent.hcl:6" in agent.output
        assert "Traceback" not in agent.output
        assert list(agent.temporary.iterdir()) == []


def test_a_second_agent_on_one_data_dir_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (tmp_path / "second").mkdir()
    with AgentProcess(tmp_path, "", "-dev", "-data-dir", str(home)) as first:
        first.until_ready()
        with AgentProcess(tmp_path / "second", "", "-dev", "-data-dir", str(home)) as second:
            assert second.exit_code() == 1
            assert str(home) in second.output
            assert "in use" in second.output
        assert first.get("/v1/status/leader")


def test_a_running_agent_shows_its_figures(tmp_path: Path) -> None:
    config = 'client {\n  node_class = "fast"\n}\n'
    with AgentProcess(tmp_path, config, "-dev") as agent:
        agent.until_ready()
        figures = agent.get("/v1/metrics")
        gauges = {row["Name"]: row for row in figures["Gauges"]}
        node = agent.get("/v1/nodes")[0]
        assert gauges["nomad.raft.peers"]["Value"] == 1
        assert gauges["nomad.nomad.heartbeat.active"]["Value"] == 1
        assert gauges["nomad.client.host.memory.total"]["Value"] > 0
        assert gauges["nomad.runtime.num_goroutines"]["Value"] > 5
        labels = gauges["nomad.client.unallocated.cpu"]["Labels"]
        assert labels["node_id"] == node["ID"]
        assert labels["node_class"] == "fast"
        assert labels["node_status"] == "ready"
        counters = {row["Name"] for row in figures["Counters"]}
        assert {"nomad.raft.apply", "nomad.nomad.rpc.request"} <= counters
        samples = {row["Name"] for row in figures["Samples"]}
        assert {"nomad.raft.fsm.apply", "nomad.nomad.fsm.register_node"} <= samples
        text = agent.get("/v1/metrics?format=prometheus").decode()
        assert "\nnomad_raft_peers{" in text
        assert "nomad_raft_apply{" in text

        stats = agent.get("/v1/agent/self")["stats"]
        assert set(stats) == {"client", "nomad", "raft", "runtime", "serf", "state_check"}
        assert stats["client"]["known_servers"] == f"127.0.0.1:{agent.rpc}"
        assert stats["client"]["node_id"] == node["ID"]
        assert stats["client"]["heartbeat_ttl"].endswith("s")
        assert stats["raft"]["state"] == "Leader"
        assert f"Address:127.0.0.1:{agent.rpc}" in stats["raft"]["latest_configuration"]
        assert all(isinstance(text, str) for group in stats.values() for text in group.values())


def test_figures_follow_allocations_and_plans(tmp_path: Path) -> None:
    task = {
        "Name": "main",
        "Driver": "raw_exec",
        "Config": {"command": "/bin/sleep", "args": ["600"]},
        "Resources": {"CPU": 30, "MemoryMB": 20, "MemoryMaxMB": 40},
    }
    group = {"Name": "group", "Count": 2, "EphemeralDisk": {"SizeMB": 150}, "Tasks": [task]}
    job = {"ID": "sleeper", "Datacenters": ["dc1"], "TaskGroups": [group]}
    with AgentProcess(tmp_path, "", "-dev") as agent:
        agent.until_ready()
        free = agent.gauges()["nomad.client.unallocated.cpu"]
        agent.put("/v1/jobs", {"Job": job})
        agent.until(lambda: agent.gauges()["nomad.client.allocations.running"] == 2, "two that run")
        gauges = agent.gauges()
        assert gauges["nomad.client.allocated.cpu"] == 60
        assert gauges["nomad.client.unallocated.cpu"] == free - 60
        assert gauges["nomad.client.allocated.memory"] == 40
        assert gauges["nomad.client.allocated.disk"] == 300
        assert gauges["nomad.client.tasks.running"] == 2
        assert gauges["nomad.nomad.job_status.running"] == 1
        assert gauges["nomad.nomad.broker.total_unacked"] == 0
        text = agent.get("/v1/metrics?format=prometheus").decode()
        for timer in ("plan_evaluate", "plan_apply", "worker_invoke_scheduler_service"):
            assert f"nomad_nomad_{timer}_count{{" in text
        agent.signal(signal.SIGTERM)
        assert agent.exit_code() == 0


# -- certificates ---------------------------------------------------------------------------------


class _Authority:
    """A cluster's authority, and the files of one server."""

    def __init__(self, folder: Path) -> None:
        self._ca = write_ca(folder, now_ns=time.time_ns())
        self.files = write_certificate(folder, *self._ca, "server", now_ns=time.time_ns())

    @property
    def settings(self) -> str:
        """The tls block."""
        certificate, key = self.files
        return (
            "tls {\n  rpc = true\n  http = true\n"
            f'  ca_file = "{self._ca[0]}"\n  cert_file = "{certificate}"\n  key_file = "{key}"\n}}\n'
        )

    def renew(self) -> None:
        """Replace the server's certificate and key."""
        authority, key = (file.read_bytes() for file in self._ca)
        pair = issue_certificate(authority, key, "server", "global", now_ns=time.time_ns())
        for file, content in zip(self.files, pair, strict=True):
            file.write_bytes(content)

    @property
    def serial(self) -> int:
        """Of the certificate on disk."""
        return x509.load_pem_x509_certificate(self.files[0].read_bytes()).serial_number

    def served(self, port: int) -> int:
        """The serial number of the certificate that a new connection meets; 0 while there is none."""
        context = ssl.create_default_context(cafile=str(self._ca[0]))
        context.load_cert_chain(*map(str, self.files))
        context.check_hostname = False
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
                context.wrap_socket(plain) as secure,
            ):
                der = secure.getpeercert(binary_form=True)
        except ssl.SSLError:
            raise
        except OSError:
            return 0
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


def test_sighup_reloads_certificates_and_a_damaged_one_changes_nothing(tmp_path: Path) -> None:
    authority = _Authority(tmp_path)
    first = authority.serial
    config = (
        f'data_dir = "{tmp_path / "home"}"\nbind_addr = "127.0.0.1"\nadvertise {{\n  http = "127.0.0.1"\n'
        '  rpc = "127.0.0.1"\n}\nserver {\n  enabled = true\n  bootstrap_expect = 1\n}\n'
    )
    with AgentProcess(tmp_path, config + authority.settings) as agent:
        for port in (agent.http, agent.rpc):
            agent.until(lambda port=port: authority.served(port) == first, "the first certificate")

        authority.renew()
        second = authority.serial
        assert second != first
        assert authority.served(agent.http) == first
        agent.signal(signal.SIGHUP)
        for port in (agent.http, agent.rpc):
            agent.until(lambda port=port: authority.served(port) == second, "the new certificate")

        good = authority.files[0].read_bytes()
        authority.files[0].write_bytes(b"no certificate")
        agent.signal(signal.SIGHUP)
        agent.until(lambda: "certificates not reloaded" in agent.output, "the refusal")
        authority.files[0].write_bytes(good)
        assert authority.served(agent.http) == second
        assert authority.served(agent.rpc) == second

        agent.signal(signal.SIGTERM)
        assert agent.exit_code() == 0
