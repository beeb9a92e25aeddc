"""What the operator wrote reaches the part that it is for."""

from __future__ import annotations

from nomadpy.config.load import load_text
from nomadpy.config.model import Config
from nomadpy.daemon.settings import (
    agent_config,
    fingerprint_config,
    raft_config,
    server_settings,
    with_port,
)

TEXT = """
region = "north"
datacenter = "dc7"
name = "one"
data_dir = "/var/lib/here"
bind_addr = "127.0.0.1"
server {
  enabled = true
  bootstrap_expect = 3
  heartbeat_grace = "20s"
  min_heartbeat_ttl = "5s"
  failover_heartbeat_ttl = "1m"
  max_heartbeats_per_second = 10
  eval_gc_threshold = "2h"
  job_max_priority = 200
  enabled_schedulers = ["service"]
  raft_multiplier = 2
  raft_snapshot_threshold = 100
  raft_trailing_logs = 50
  server_join {
    retry_join = ["10.0.0.2", "10.0.0.3:99"]
  }
  default_scheduler_config {
    scheduler_algorithm = "spread"
  }
}
client {
  enabled = true
  node_class = "fast"
  node_pool = "gpu"
  node_max_allocs = 9
  max_kill_timeout = "1m"
  network_interface = "eth9"
  cpu_total_compute = 4000
  memory_total_mb = 2000
  min_dynamic_port = 30000
  max_dynamic_port = 30100
  servers = ["10.0.0.2"]
  meta {
    rack = "r1"
  }
  options {
    a = "b"
  }
  reserved {
    cpu = 100
    memory = 200
    disk = 300
    reserved_ports = "22"
  }
  host_volume "shared" {
    path = "/srv/shared"
    read_only = true
  }
}
"""


def config(text: str = TEXT) -> Config:
    return load_text(text)


def test_the_server_runs_by_what_was_written() -> None:
    settings = server_settings(config(), "an-id", "127.0.0.1:4647", "127.0.0.1:4646")
    assert (settings.id, settings.name, settings.region) == ("an-id", "one", "north")
    assert settings.datacenter == "dc7"
    assert settings.bootstrap_expect == 3
    assert settings.retry_join == ["10.0.0.2:4647", "10.0.0.3:99"]
    assert settings.heartbeat_grace_s == 20
    assert settings.heartbeat_min_ttl_s == 5
    assert settings.heartbeat_failover_ttl_s == 60
    assert settings.heartbeats_per_second == 10
    assert settings.eval_gc_s == 7200
    assert settings.job_max_priority == 200
    assert settings.scheduler_types == ("service",)
    assert settings.scheduler_algorithm == "spread"


def test_all_schedulers_run_when_none_is_named() -> None:
    found = server_settings(config(TEXT.replace('["service"]', "[]")), "i", "r:1", "h:1")
    assert found.scheduler_types == ("service", "batch", "system", "sysbatch")


def test_raft_is_stretched_by_its_multiplier_and_durable_outside_development() -> None:
    found = raft_config(config(), "an-id", "127.0.0.1:4647")
    found.check()
    assert (found.server_id, found.name, found.address) == ("an-id", "one", "127.0.0.1:4647")
    assert found.data_dir == "/var/lib/here/server/raft"
    assert (found.election_min_s, found.election_max_s) == (1.6, 3.2)
    assert (found.snapshot_entries, found.trailing_entries) == (100, 50)
    assert found.fsync


def test_raft_of_a_development_agent_does_not_wait_for_the_disk() -> None:
    found = raft_config(load_text('data_dir = "/tmp/x"\n', dev=True), "i", "127.0.0.1:1")
    found.check()
    assert not found.fsync


def test_the_agent_runs_by_what_was_written() -> None:
    found = agent_config(config(), "127.0.0.1:4646", ["10.0.0.2:4647"])
    assert (found.name, found.region, found.datacenter) == ("one", "north", "dc7")
    assert (found.node_class, found.node_pool, found.node_max_allocs) == ("fast", "gpu", 9)
    assert (found.data_dir, found.alloc_dir) == ("/var/lib/here/client", "/var/lib/here/alloc")
    assert found.meta == {"rack": "r1"}
    assert found.options == {"a": "b"}
    assert found.servers == ["10.0.0.2:4647"]
    assert found.http_addr == "127.0.0.1:4646"
    assert found.max_kill_timeout_s == 60
    assert found.reserved.cpu.cpu_shares == 100
    assert found.reserved.memory.memory_mb == 200
    assert found.reserved.disk.disk_mb == 300
    assert found.reserved.networks.reserved_host_ports == "22"
    assert found.host_volumes["shared"].path == "/srv/shared"
    assert found.host_volumes["shared"].read_only
    assert not found.destroy_on_exit
    assert not found.tls_enabled


def test_workloads_of_a_development_agent_end_with_it() -> None:
    found = agent_config(load_text('data_dir = "/tmp/x"\n', dev=True), "127.0.0.1:1", [])
    assert found.destroy_on_exit


def test_the_fingerprint_is_told_what_the_operator_says_of_the_host() -> None:
    found = fingerprint_config(config(), "127.0.0.1:4646")
    assert found.network_interface == "eth9"
    assert (found.cpu_total_compute, found.memory_total_mb) == (4000, 2000)
    assert (found.min_dynamic_port, found.max_dynamic_port) == (30000, 30100)
    assert (found.reserved_cpu_mhz, found.reserved_memory_mb, found.reserved_disk_mb) == (
        100,
        200,
        300,
    )
    assert found.reserved_ports == "22"
    assert found.data_dir == "/var/lib/here/alloc"


def test_an_address_gets_the_port_only_when_it_names_none() -> None:
    assert with_port("10.0.0.2", 4647) == "10.0.0.2:4647"
    assert with_port("10.0.0.2:99", 4647) == "10.0.0.2:99"
    assert with_port("[::1]:99", 4647) == "[::1]:99"
    assert with_port("::1", 4647) == "[::1]:4647"
