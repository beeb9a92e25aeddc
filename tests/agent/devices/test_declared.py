"""Devices that the operator declares: what the node tells of them, and what tasks get."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.devices.base import DeviceError, generic_env, variable_name
from agent.devices.declared import DeclaredDevices, DeclaredInstance, DeclaredPlugin
from agent.drivers.base import TaskDevice, TaskMount
from nomadpy.models.resources import AllocatedDeviceResource, Attribute

pytestmark = pytest.mark.real_time


def node(path: str, inside: str = "") -> TaskDevice:
    return TaskDevice(host_path=path, task_path=inside or path, permissions="rw")


def given(*ids: str, share: int = 0, name: str = "T4") -> AllocatedDeviceResource:
    return AllocatedDeviceResource(
        vendor="acme", type="gpu", name=name, device_ids=list(ids), share=share
    )


def plugin(**changes: object) -> DeclaredPlugin:
    values: dict[str, object] = {
        "vendor": "acme",
        "type": "gpu",
        "name": "T4",
        "instances": [
            DeclaredInstance(id="g1", nodes=[node("/dev/zero", "/dev/acme0")]),
            DeclaredInstance(id="g2", nodes=[node("/dev/full")], pci_bus_id="0000:3b:00.0"),
        ],
        "attributes": {"memory": "16 GiB", "cores": "40", "ecc": "true", "arch": "Turing"},
        "nodes": [node("/dev/null", "/dev/acmectl")],
        "mounts": [TaskMount(host_path="/opt/acme", task_path="/usr/lib/acme", read_only=True)],
        "env": {"ACME_VISIBLE": "${device.ids}", "ACME_SHARE": "${device.share}", "MODE": "x"},
        **changes,
    }
    return DeclaredPlugin([DeclaredDevices(**values)])  # type: ignore[arg-type]


async def test_the_node_tells_devices_with_typed_attributes_and_their_bus() -> None:
    (group,) = await plugin().fingerprint()
    assert (group.vendor, group.type, group.name) == ("acme", "gpu", "T4")
    assert group.attributes == {
        "memory": Attribute(int_val=16, unit="GiB"),
        "cores": Attribute(int_val=40),
        "ecc": Attribute(bool_val=True),
        "arch": Attribute(string_val="Turing"),
    }
    first, second = group.instances or []
    assert first.healthy
    assert first.locality is None
    assert second.locality is not None
    assert second.locality.pci_bus_id == "0000:3b:00.0"


async def test_a_device_whose_node_is_gone_is_unhealthy_and_says_which(tmp_path: Path) -> None:
    ordinary = tmp_path / "file"
    ordinary.write_text("")
    instances = [
        DeclaredInstance(id="here", nodes=[node("/dev/zero")]),
        DeclaredInstance(id="gone", nodes=[node("/dev/zero"), node(f"{tmp_path}/none")]),
        DeclaredInstance(id="file", nodes=[node(str(ordinary))]),
    ]
    (group,) = await plugin(instances=instances).fingerprint()
    here, gone, file = group.instances or []
    assert here.healthy
    assert not gone.healthy
    assert gone.health_description == f"device node {tmp_path}/none: No such file or directory"
    assert "neither a character nor a block device" in file.health_description


async def test_all_are_unhealthy_without_the_node_that_they_share(tmp_path: Path) -> None:
    (group,) = await plugin(nodes=[node(f"{tmp_path}/ctl")]).fingerprint()
    assert [one.healthy for one in group.instances or []] == [False, False]


async def test_a_task_gets_the_nodes_of_its_devices_only_and_what_all_share() -> None:
    found = await plugin().reserve([given("g1", share=250)])
    assert [one.host_path for one in found.devices] == ["/dev/null", "/dev/zero"]
    assert found.devices[1].task_path == "/dev/acme0"
    assert found.mounts[0].task_path == "/usr/lib/acme"
    assert found.env == {"ACME_VISIBLE": "g1", "ACME_SHARE": "250", "MODE": "x"}
    both = await plugin().reserve([given("g1", "g2")])
    assert both.env["ACME_VISIBLE"] == "g1,g2"
    assert both.env["ACME_SHARE"] == "1000"


async def test_a_task_that_asks_twice_is_told_all_it_has() -> None:
    twice = [given("g1", share=250), given("g2", share=250), given("g1", share=500)]
    found = await plugin().reserve(twice)
    assert found.env == {"ACME_VISIBLE": "g1,g2", "ACME_SHARE": "750,250", "MODE": "x"}
    assert generic_env(twice) == {
        "NOMAD_DEVICE_ACME_GPU_T4": "g1,g2",
        "NOMAD_DEVICE_ACME_GPU_T4_SHARE": "750,250",
    }


async def test_two_models_may_name_their_devices_in_one_variable() -> None:
    models = [
        DeclaredDevices(
            vendor="acme",
            type="gpu",
            name=name,
            instances=[DeclaredInstance(id=f"{name}-1")],
            env={"ACME_VISIBLE": "${device.ids}", "MODE": name},
        )
        for name in ("T4", "A1")
    ]
    found = await DeclaredPlugin(models).reserve([given("T4-1"), given("A1-1", name="A1")])
    assert found.env == {"ACME_VISIBLE": "T4-1,A1-1", "MODE": "A1"}


async def test_what_the_configuration_does_not_declare_cannot_be_reserved(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="declares no device 'g9'"):
        await plugin().reserve([given("g9")])
    with pytest.raises(DeviceError, match="no devices acme/gpu/V100"):
        await plugin().reserve([given("g1", name="V100")])
    with pytest.raises(DeviceError, match="No such file"):
        await plugin(nodes=[node(f"{tmp_path}/ctl")]).reserve([given("g1")])


def test_variables_name_ids_and_shares_in_words_that_shells_can_read() -> None:
    assert (
        variable_name("nvidia", "gpu", "Tesla T4-16GB") == "NOMAD_DEVICE_NVIDIA_GPU_TESLA_T4_16GB"
    )
    assert generic_env([given("g1", "g2"), given("g3"), given("x", share=500, name="A1")]) == {
        "NOMAD_DEVICE_ACME_GPU_T4": "g1,g2,g3",
        "NOMAD_DEVICE_ACME_GPU_A1": "x",
        "NOMAD_DEVICE_ACME_GPU_A1_SHARE": "500",
    }
    assert generic_env([]) == {}
