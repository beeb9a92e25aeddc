"""Blocks about devices in the client's configuration, and what the agent is built from them."""

from __future__ import annotations

import json

import pytest
from agent_world import LoopClock

from agent.devices.declared import DeclaredPlugin
from agent.devices.external import ExternalPlugin
from agent.devices.nvidia import NvidiaPlugin
from nomadpy.config.load import load_text
from nomadpy.config.model import Config
from nomadpy.daemon.devices import build_devices, declared, driver_plugins, numa_nodes
from nomadpy.entropy import SeededEntropy
from nomadpy.errors import ConfigError

BASE = 'data_dir = "/var/lib/nomadpy"\nbind_addr = "127.0.0.1"\n'
CLIENT = 'client {\n  enabled = true\n  servers = ["127.0.0.1"]\n'
FULL = """
  device "acme/gpu/T4" {
    ids = ["a", "b"]
    attributes { memory = "16 GiB" }
    env { ACME = "${device.ids}" }
    device_nodes = ["/dev/ctl"]
    permissions  = "rw"
    mount "/opt/acme" {
      target    = "/usr/lib/acme"
      read_only = true
    }
    instance "c" {
      device_nodes = ["/dev/c:/dev/gpu"]
      pci_bus_id   = "00000000:3B:00.0"
      numa_node    = 1
    }
  }
  device_plugin "fpga" {
    command = "/opt/fpga"
    args    = ["-v"]
    config {
      depth = 3
    }
    fingerprint_interval = "10s"
  }
"""


def load(blocks: str, more: str = "") -> Config:
    return load_text(f"{BASE}{CLIENT}{blocks}}}\n{more}")


def test_declared_devices_reach_the_agent_as_they_are_written() -> None:
    config = load(FULL)
    (one,) = declared(config.client.device)
    assert (one.vendor, one.type, one.name) == ("acme", "gpu", "T4")
    assert [instance.id for instance in one.instances] == ["a", "b", "c"]
    last = one.instances[2]
    assert [(n.host_path, n.task_path, n.permissions) for n in last.nodes] == [
        ("/dev/c", "/dev/gpu", "rw")
    ]
    assert one.nodes[0].task_path == "/dev/ctl"
    assert one.env == {"ACME": "${device.ids}"}
    assert (one.mounts[0].host_path, one.mounts[0].task_path) == ("/opt/acme", "/usr/lib/acme")
    assert numa_nodes(config.client.device) == {"0000:3b:00.0": 1}


def test_plugins_are_built_in_their_order_with_their_settings() -> None:
    config = load(FULL)
    first, second, third = build_devices(config, LoopClock(), SeededEntropy(1))._plugins
    assert isinstance(first, DeclaredPlugin)
    assert isinstance(second, NvidiaPlugin)
    assert isinstance(third, ExternalPlugin)
    assert (third.name, third.interval_s) == ("fpga", 10.0)
    assert third._settings.config == {"depth": 3}


def test_the_same_in_json() -> None:
    text = json.dumps(
        {
            "data_dir": "/d",
            "bind_addr": "127.0.0.1",
            "client": {
                "enabled": True,
                "servers": ["127.0.0.1"],
                "device": {"acme/gpu/T4": {"instance": {"a": {"device_nodes": ["/dev/null"]}}}},
            },
        }
    )
    (one,) = declared(load_text(text, name="client.json").client.device)
    assert one.instances[0].nodes[0].host_path == "/dev/null"


def test_nvidias_plugin_has_the_names_and_settings_of_nomads() -> None:
    for name in ("nvidia", "nomad-device-nvidia", "nvidia-gpu"):
        block = f'plugin "{name}" {{\n config {{\n ignored_gpu_ids = ["x"]\n fingerprint_period = "5s"\n }}\n}}\n'
        config = load("", block)
        (found,) = build_devices(config, LoopClock(), SeededEntropy(1))._plugins
        assert isinstance(found, NvidiaPlugin)
        assert found.interval_s == 5.0
        assert found._settings.ignored_gpu_ids == ["x"]
        assert driver_plugins(config.plugins) == {}
    off = load("", 'plugin "nvidia" {\n config {\n enabled = false\n }\n}\n')
    assert build_devices(off, LoopClock(), SeededEntropy(1))._plugins == []


@pytest.mark.parametrize(
    "setting", ['fingerprint_period = "soon"', "perid = 1", 'fingerprint_period = "0s"']
)
def test_a_wrong_setting_of_nvidias_plugin_is_named(setting: str) -> None:
    config = load("", f'plugin "nvidia" {{\n config {{\n {setting}\n }}\n}}\n')
    with pytest.raises(ConfigError, match='plugin "nvidia"'):
        build_devices(config, LoopClock(), SeededEntropy(1))


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ('device "gpu" { ids = ["a"] }', "must be named VENDOR/TYPE/MODEL"),
        ('device "a//b" { ids = ["a"] }', "must be named VENDOR/TYPE/MODEL"),
        ('device "a/b/c" { }', "has no devices"),
        ('device "a/b/c" { ids = ["x", "x"] }', "names the device 'x' twice"),
        ('device "a/b/c" {\n ids = ["x"]\n instance "x" {}\n }', "names the device 'x' twice"),
        ('device "a/b/c" { ids = [""] }', "device without a name"),
        ('device "a/b/c" { ids = ["x,y"] }', "with a comma in it"),
        ('device "a/b/c" {\n ids = ["x"]\n permissions = "x"\n }', "letters of rwm"),
        ('device "a/b/c" {\n ids = ["x"]\n device_nodes = ["dev"]\n }', "absolute path"),
        ('device "a/b/c" {\n ids = ["x"]\n mount "rel" {}\n }', "absolute paths"),
        ('device "a/b/c" {\n instance "x" {\n numa_node = 1\n }\n }', "needs a pci_bus_id"),
        ('device "a/b/c" {\n ids = ["x"]\n memory = "1"\n }', "unknown setting 'memory'"),
        ('device "a/b/c" {\n instance "x" {\n bus = "1"\n }\n }', "unknown setting 'bus'"),
        ('device_plugin "x" { command = "x" }', "absolute path"),
        ('device_plugin "x" {\n command = "/x"\n timeout = "0s"\n }', "timeout must be above zero"),
        ('device_plugin "x" { comand = "/x" }', "unknown setting 'comand'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(block: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(block + "\n")
    assert fault in str(caught.value)


@pytest.mark.parametrize("name", ["nvidia", "declared"])
def test_a_program_may_not_take_the_name_of_a_plugin_that_is_built_in(name: str) -> None:
    config = load(
        f'device "a/b/c" {{ ids = ["x"] }}\ndevice_plugin "{name}" {{ command = "/x" }}\n'
    )
    with pytest.raises(ConfigError, match="the name is taken"):
        build_devices(config, LoopClock(), SeededEntropy(1))
