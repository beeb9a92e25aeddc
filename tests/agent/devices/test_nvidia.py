"""NVIDIA's GPUs, out of a made-up /proc and /sys and a program that answers like nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_world import LoopClock

from agent.devices.base import DeviceError
from agent.devices.nvidia import NvidiaPlugin, NvidiaSettings, bus_id
from nomadpy.models.resources import AllocatedDeviceResource, Attribute

pytestmark = pytest.mark.real_time

FACTS = {
    "pci.bus_id": "00000000:3B:00.0",
    "uuid": "GPU-1",
    "name": "Tesla T4",
    "driver_version": "535.104",
    "memory.total": "15360",
    "power.limit": "70.00",
    "clocks.max.sm": "1590",
    "clocks.max.mem": "5001",
    "pcie.link.gen.max": "3",
    "pcie.link.width.max": "16",
    "display_mode": "Enabled",
    "persistence_mode": "[N/A]",
    "memory.used": "300",
    "utilization.gpu": "45",
    "utilization.memory": "[Not Supported]",
    "temperature.gpu": "41",
    "power.draw": "30.51",
}


class Host:
    """Folders like those of the kernel, and a program."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        self.smi = folder / "nvidia-smi"

    def card(self, bus: str, *, vendor: str = "0x10de", kind: str = "0x030200") -> None:
        path = self.sys / "bus/pci/devices" / bus
        path.mkdir(parents=True)
        (path / "vendor").write_text(f"{vendor}\n")
        (path / "class").write_text(f"{kind}\n")

    def driver(self, bus: str, uuid: str, model: str = "Tesla T4") -> None:
        path = self.proc / "driver/nvidia/gpus" / bus
        path.mkdir(parents=True)
        (path / "information").write_text(
            f"Model: \t\t {model}\nIRQ:   \t\t 11\nGPU UUID: \t {uuid}\nBus Location: \t {bus}\nDevice Minor: \t 0\n"
        )

    def answers(self, *rows: dict[str, str], code: int = 0) -> None:
        """nvidia-smi prints, for each GPU, what it is asked for, in the order of the question."""
        lines = ["#!/bin/sh", 'columns=$(echo "${1#--query-gpu=}" | tr , " ")']
        for row in rows:
            lines.append('line=""')
            cases = "\n".join(f'    "{name}") value="{value}";;' for name, value in row.items())
            lines.append(
                f'for c in $columns; do\n  case "$c" in\n{cases}\n  esac\n'
                '  line="$line${line:+, }$value"\ndone\necho "$line"'
            )
        lines.append(f"exit {code}")
        self.smi.write_text("\n".join(lines) + "\n")
        self.smi.chmod(0o755)

    def plugin(self, *, smi: bool = True, **settings: object) -> NvidiaPlugin:
        return NvidiaPlugin(
            LoopClock(),
            NvidiaSettings(**settings),  # type: ignore[arg-type]
            proc=self.proc,
            sys=self.sys,
            smi=str(self.smi) if smi else "/nonexistent/nvidia-smi",
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def given(*ids: str) -> AllocatedDeviceResource:
    return AllocatedDeviceResource(
        vendor="nvidia", type="gpu", name="Tesla T4", device_ids=list(ids)
    )


async def test_without_hardware_or_driver_there_is_nothing_and_no_error(host: Host) -> None:
    plugin = host.plugin(smi=False)
    assert await plugin.fingerprint() == []
    assert await plugin.stats() == []
    # A card of another's, one that no NVIDIA driver holds, and a sound device of NVIDIA's.
    host.card("0000:00:02.0", vendor="0x8086")
    host.card("0000:3b:00.0")
    host.card("0000:3b:00.1", kind="0x040300")
    host.driver("0000:3b:00.1", "GPU-no")
    assert await plugin.fingerprint() == []


async def test_a_gpu_has_the_attributes_of_nomads_plugin(host: Host) -> None:
    host.card("0000:3b:00.0")
    host.driver("0000:3b:00.0", "GPU-????????")
    host.answers(FACTS)
    (group,) = await host.plugin().fingerprint()
    assert (group.vendor, group.type, group.name) == ("nvidia", "gpu", "Tesla T4")
    assert group.attributes == {
        "memory": Attribute(int_val=15360, unit="MiB"),
        "power": Attribute(int_val=70, unit="W"),
        "cores_clock": Attribute(int_val=1590, unit="MHz"),
        "memory_clock": Attribute(int_val=5001, unit="MHz"),
        "pci_bandwidth": Attribute(int_val=15760, unit="MB/s"),
        "driver_version": Attribute(string_val="535.104"),
        "display_state": Attribute(string_val="Enabled"),
    }
    (device,) = group.instances or []
    assert device.id == "GPU-1"
    assert device.healthy
    assert device.locality is not None
    assert device.locality.pci_bus_id == "0000:3b:00.0"


async def test_without_nvidia_smi_the_kernel_says_which_gpus_there_are(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.card("0000:3b:00.0")
    host.driver("0000:3b:00.0", "GPU-1")
    monkeypatch.setenv("PATH", "/nonexistent")
    plugin = NvidiaPlugin(LoopClock(), proc=host.proc, sys=host.sys)
    (group,) = await plugin.fingerprint()
    assert group.name == "Tesla T4"
    assert group.attributes is None
    assert [(one.id, one.healthy) for one in group.instances or []] == [("GPU-1", True)]
    assert await plugin.stats() == []


async def test_gpus_are_sick_while_nvidia_smi_fails_and_keep_their_ids(host: Host) -> None:
    host.card("0000:3b:00.0")
    host.driver("0000:3b:00.0", "GPU-????????")
    host.answers(FACTS)
    plugin = host.plugin()
    (before,) = await plugin.fingerprint()
    host.answers(code=15)
    (after,) = await plugin.fingerprint()
    (device,) = after.instances or []
    assert (device.id, device.healthy) == ("GPU-1", False)
    assert device.health_description == "nvidia-smi ended with exit code 15"
    assert after.attributes == before.attributes
    with pytest.raises(DeviceError):
        await plugin.stats()
    host.answers(FACTS)
    assert await plugin.fingerprint() == [before]


async def test_a_gpu_that_fell_off_its_bus_is_sick_alone(host: Host) -> None:
    for bus, uuid in (("0000:3b:00.0", "GPU-1"), ("0000:af:00.0", "GPU-2")):
        host.card(bus)
        host.driver(bus, uuid)
    host.answers(FACTS)
    groups = await host.plugin().fingerprint()
    found = {one.id: one for group in groups for one in group.instances or []}
    assert found["GPU-1"].healthy
    assert not found["GPU-2"].healthy
    assert found["GPU-2"].health_description == "nvidia-smi does not list this GPU"


async def test_gpus_of_one_model_are_one_group_and_ignored_ones_are_in_none(host: Host) -> None:
    rows = []
    for number, bus in enumerate(("0000:3b:00.0", "0000:af:00.0", "0000:d8:00.0"), 1):
        host.card(bus)
        host.driver(bus, f"GPU-{number}")
        rows.append({**FACTS, "pci.bus_id": f"0000{bus.upper()}", "uuid": f"GPU-{number}"})
    host.answers(*rows)
    plugin = host.plugin(ignored_gpu_ids=["GPU-2"])
    (group,) = await plugin.fingerprint()
    assert [one.id for one in group.instances or []] == ["GPU-1", "GPU-3"]
    (measured,) = await plugin.stats()
    assert sorted(measured.instance_stats or {}) == ["GPU-1", "GPU-3"]
    with pytest.raises(DeviceError, match="no NVIDIA GPU 'GPU-2'"):
        await plugin.reserve([given("GPU-2")])


async def test_a_task_is_told_its_gpus_in_the_variable_of_nvidias_runtime(host: Host) -> None:
    host.card("0000:3b:00.0")
    host.driver("0000:3b:00.0", "GPU-1")
    host.answers(FACTS)
    plugin = host.plugin()
    await plugin.fingerprint()
    found = await plugin.reserve([given("GPU-1")])
    assert found.env == {"NVIDIA_VISIBLE_DEVICES": "GPU-1"}
    assert (found.mounts, found.devices) == ([], [])


async def test_figures_have_the_names_and_units_of_nomads_plugin(host: Host) -> None:
    host.card("0000:3b:00.0")
    host.driver("0000:3b:00.0", "GPU-1")
    host.answers(FACTS)
    (group,) = await host.plugin().stats()
    stats = (group.instance_stats or {})["GPU-1"]
    assert stats.summary is not None
    assert (stats.summary.int_numerator_val, stats.summary.int_denominator_val) == (300, 15360)
    assert stats.summary.unit == "MiB"
    assert stats.stats is not None
    figures = stats.stats.attributes or {}
    assert sorted(figures) == ["GPU utilization", "Memory state", "Power usage", "Temperature"]
    assert (figures["Power usage"].int_numerator_val, figures["Power usage"].unit) == (31, "W")
    assert stats.timestamp.startswith("20")


def test_bus_ids_are_equal_however_they_are_written() -> None:
    assert bus_id("00000000:3B:00.0") == "0000:3b:00.0"
    assert bus_id("0000:3b:00.0") == "0000:3b:00.0"
    assert bus_id("3b:00.0") == "0000:3b:00.0"
    assert bus_id("1:3b:00.0") == "0001:3b:00.0"
