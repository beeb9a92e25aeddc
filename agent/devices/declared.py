"""Devices that the operator declares in the agent's configuration: any hardware that needs no program to find it."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.devices.base import DeviceError, Reservation, held
from agent.drivers.base import TaskDevice, TaskMount
from nomadpy.jobspec.interpolate import interpolate
from nomadpy.models.node import NodeDevice, NodeDeviceLocality, NodeDeviceResource
from nomadpy.models.quantities import parse_attribute
from nomadpy.models.resources import AllocatedDeviceResource
from nomadpy.models.stats import DeviceGroupStats


class DeclaredInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One device. nodes: its device nodes on the host. pci_bus_id: "" when it is on no PCI bus that matters."""

    id: str
    nodes: list[TaskDevice] = []
    pci_bus_id: str = ""


class DeclaredDevices(msgspec.Struct, frozen=True, kw_only=True):
    """Devices of one model. nodes, mounts, env: given with any of them; `${device.ids}` and `${device.share}` in values
    of env are the ids with commas between them and the thousandths of each."""

    vendor: str
    type: str
    name: str
    instances: list[DeclaredInstance]
    attributes: dict[str, str] = {}
    nodes: list[TaskDevice] = []
    mounts: list[TaskMount] = []
    env: dict[str, str] = {}


class DeclaredPlugin:
    """The devices of the configuration. One is healthy as long as its device nodes exist."""

    name = "declared"
    interval_s = 10.0

    def __init__(self, declared: Sequence[DeclaredDevices]) -> None:
        self._declared = {(one.vendor, one.type, one.name): one for one in declared}

    async def fingerprint(self) -> list[NodeDeviceResource]:
        """See DevicePlugin."""
        return await asyncio.to_thread(
            lambda: [_resource(one) for one in self._declared.values()],
        )

    async def reserve(self, wanted: Sequence[AllocatedDeviceResource]) -> Reservation:
        """See DevicePlugin."""
        env: dict[str, str] = {}
        mounts: list[TaskMount] = []
        nodes: list[TaskDevice] = []
        for one in held(wanted):
            known = self._declared.get((one.vendor, one.type, one.name))
            if known is None:
                raise DeviceError(
                    f"the configuration declares no devices {one.vendor}/{one.type}/{one.name}"
                )
            instances = {instance.id: instance for instance in known.instances}
            for device in one.milli:
                if device not in instances:
                    raise DeviceError(f"the configuration declares no device {device!r}")
            own = [
                *known.nodes,
                *(node for device in one.milli for node in instances[device].nodes),
            ]
            missing = await asyncio.to_thread(_missing, own)
            if missing:
                raise DeviceError(missing)
            names = {"device.ids": one.ids, "device.share": one.share}
            for key, text in known.env.items():
                value = interpolate(text, names)
                # Two models may name their ids in one variable.
                both = key in env and "${device.ids}" in text
                env[key] = f"{env[key]},{value}" if both else value
            mounts += known.mounts
            nodes += own
        return Reservation(env=env, mounts=mounts, devices=nodes)

    async def stats(self) -> list[DeviceGroupStats]:
        """Nothing is known of what they do."""
        return []

    async def close(self) -> None:
        """Nothing is held."""


def _resource(declared: DeclaredDevices) -> NodeDeviceResource:
    shared = _missing(declared.nodes)
    return NodeDeviceResource(
        vendor=declared.vendor,
        type=declared.type,
        name=declared.name,
        instances=[_instance(one, shared) for one in declared.instances],
        attributes={name: parse_attribute(text) for name, text in declared.attributes.items()}
        or None,
    )


def _instance(one: DeclaredInstance, shared: str) -> NodeDevice:
    problem = shared or _missing(one.nodes)
    return NodeDevice(
        id=one.id,
        healthy=not problem,
        health_description=problem,
        locality=NodeDeviceLocality(pci_bus_id=one.pci_bus_id) if one.pci_bus_id else None,
    )


def _missing(nodes: Sequence[TaskDevice]) -> str:
    """Which device node is not there, as a sentence, or ""."""
    for node in nodes:
        try:
            mode = Path(node.host_path).stat().st_mode
        except OSError as error:
            return f"device node {node.host_path}: {error.strerror}"
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            return f"device node {node.host_path} is neither a character nor a block device"
    return ""
