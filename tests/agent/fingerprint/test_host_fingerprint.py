"""This host as a node, against the names that a recorded node of Nomad has."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drivers.base import DriverFingerprint
from agent.drivers.registry import build
from agent.fingerprint import cpu, host, network, run
from agent.fingerprint.parts import FingerprintConfig, Part, format_ids, parse_ids
from agent.fingerprint.run import FINGERPRINTERS, HostFingerprint, merge
from nomadpy.clock import SystemClock
from nomadpy.models.node import HostNetworkInfo, HostVolumeInfo, NodeTopology

# Names of a recorded node that describe Nomad's own plugins, the drivers we do not have, or the kernel's features.
EXPECTED = (
    "cpu.arch cpu.frequency cpu.numcores cpu.reservablecores cpu.totalcompute cpu.usablecompute driver.mock_driver "
    "driver.raw_exec kernel.arch kernel.name kernel.version memory.totalbytes nomad.bridge.hairpin_mode "
    "nomad.service_discovery nomad.version numa.node.count numa.node0.cores os.name os.signals "
    "os.version unique.advertise.address unique.hostname unique.network.ip-address unique.storage.bytestotal "
    "unique.storage.volume"
).split()


class NoDrivers:
    async def fingerprint_all(self) -> dict[str, DriverFingerprint]:
        return {}


@pytest.mark.real_time
async def test_a_node_has_the_names_that_clients_and_constraints_know(tmp_path: Path) -> None:
    drivers = build({"raw_exec": {"enabled": True}}, SystemClock(), mock=True)
    config = FingerprintConfig(
        data_dir=str(tmp_path / "not/made/yet"), network_interface="lo", http_addr="127.0.0.1:1"
    )
    found = await HostFingerprint(config, drivers, SystemClock()).look()
    await drivers.close()
    assert found.failed == []
    assert set(EXPECTED) <= set(found.attributes)
    node = found.node()
    assert node.attributes is not None
    assert node.attributes["nomad.version"] == "2.0.0"
    assert node.attributes["driver.raw_exec"] == "1"
    assert node.drivers is not None
    assert node.drivers["raw_exec"].attributes == {"driver.raw_exec": "true"}
    assert node.drivers["docker"].detected or node.drivers["docker"].attributes == {}
    resources = node.node_resources
    assert resources is not None
    assert resources.cpu.cpu_shares == int(node.attributes["cpu.totalcompute"]) > 0
    assert resources.memory.memory_mb > 0
    assert resources.disk.disk_mb > 0
    assert resources.networks is not None
    assert [n.mode for n in resources.networks][:2] == ["bridge", "host"]
    assert resources.networks[1].ip == "127.0.0.1"


@pytest.mark.real_time
async def test_it_takes_less_than_a_third_of_a_second() -> None:
    look = HostFingerprint(FingerprintConfig(network_interface="lo"), NoDrivers(), SystemClock())
    started = time.monotonic()
    await look()
    assert time.monotonic() - started < 0.3


@pytest.mark.real_time
async def test_one_that_breaks_does_not_keep_the_others_from_looking() -> None:
    def broken(_: FingerprintConfig) -> Part:
        raise ValueError("odd hardware")

    look = HostFingerprint(
        FingerprintConfig(), NoDrivers(), SystemClock(), {**FINGERPRINTERS, "cpu": broken}
    )
    found = await look.look()
    assert found.failed == ["cpu"]
    assert found.resources.cpu.cpu_shares == 0
    assert found.resources.memory.memory_mb > 0


def test_an_unknown_interface_fails_with_its_name() -> None:
    with pytest.raises(OSError, match="'nope0' does not exist"):
        network.fingerprint(FingerprintConfig(network_interface="nope0"))


def test_what_an_operator_says_wins() -> None:
    config = FingerprintConfig(
        network_interface="lo",
        network_speed=123,
        cpu_total_compute=9000,
        memory_total_mb=64,
        disk_total_mb=77,
        reserved_cpu_mhz=1000,
        reserved_memory_mb=5,
        reserved_ports="22",
        reservable_cores="0",
        host_networks={
            "private": HostNetworkInfo(name="private", cidr="127.0.0.0/8", reserved_ports="80"),
            "other": HostNetworkInfo(name="other", cidr="192.0.2.77/32"),
        },
    )
    parts = {name: look(config) for name, look in FINGERPRINTERS.items()}
    found = merge(config, parts, {}, 0)
    assert found.attributes["cpu.totalcompute"] == "9000"
    assert found.attributes["cpu.usablecompute"] == "8000"
    assert found.resources.cpu.reservable_cpu_cores == [0]
    assert (found.resources.memory.memory_mb, found.resources.disk.disk_mb) == (64, 77)
    assert found.resources.node_networks is not None
    lo = found.resources.node_networks[1]
    assert lo.speed == 123
    assert lo.addresses is not None
    aliases = {(a.alias, a.reserved_ports) for a in lo.addresses if a.family == "ipv4"}
    assert aliases == {("default", ""), ("private", "80")}
    assert found.reserved.cpu.cpu_shares == 1000
    assert found.reserved.networks.reserved_host_ports == "22"


def test_a_host_volume_without_its_folder_is_not_offered(tmp_path: Path) -> None:
    config = FingerprintConfig(
        host_volumes={
            "here": HostVolumeInfo(name="here", path=str(tmp_path)),
            "gone": HostVolumeInfo(name="gone", path=str(tmp_path / "gone")),
        }
    )
    part = FINGERPRINTERS["volumes"](config)
    assert part.host_volumes is not None
    assert list(part.host_volumes) == ["here"]


def test_the_default_routes_interface_is_the_one_with_the_lowest_metric(tmp_path: Path) -> None:
    table = tmp_path / "route"
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    table.write_text(
        head
        + "slow 00000000 010200C0 0003 0 0 600 00000000 0 0 0\n"
        + "fast 00000000 010200C0 0003 0 0 100 00000000 0 0 0\n"
        + "down 00000000 010200C0 0002 0 0 1 00000000 0 0 0\n"
        + "part 00000000 010200C0 0003 0 0 1 0000FFFF 0 0 0\n"
    )
    assert network.default_interface(str(table)) == "fast"
    table.write_text(head)
    assert network.default_interface(str(table)) == ""
    assert network.default_interface(str(tmp_path / "none")) == ""


@given(st.lists(st.integers(0, 40), unique=True).map(sorted))
def test_lists_of_cores_have_one_reading(ids: list[int]) -> None:
    assert parse_ids(format_ids(ids)) == ids


def test_signals_are_names_without_repetition() -> None:
    assert len(set(host.SIGNALS)) == len(host.SIGNALS) == 28
    assert asyncio.iscoroutinefunction(run.HostFingerprint.look)


def test_pci_buses_are_told_with_their_numa_node_where_the_kernel_knows_it(tmp_path: Path) -> None:
    for bus, node in (("0000:3b:00.0", "0\n"), ("0000:af:00.0", "1\n"), ("0000:00:1f.0", "-1\n")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "numa_node").write_text(node)
    (tmp_path / "0000:d8:00.0").mkdir()
    assert cpu._buses(str(tmp_path)) == {"0000:3b:00.0": 0, "0000:af:00.0": 1}
    assert cpu._buses(f"{tmp_path}/none") == {}


def test_a_node_without_known_buses_looks_as_nomads_does() -> None:
    assert "BusAssociativity" not in msgspec.to_builtins(NodeTopology())
    told = NodeTopology(bus_associativity={"0000:3b:00.0": 1})
    assert msgspec.to_builtins(told)["BusAssociativity"] == {"0000:3b:00.0": 1}
