"""The client's blocks about devices, which are ours: devices that are declared, and plugins that are programs."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.models.base import Duration

_S = 1_000_000_000


class DeviceMount(msgspec.Struct, frozen=True, kw_only=True):
    """`mount "HOST_PATH"`. target: where containers see it, "" for the same path."""

    target: str = ""
    read_only: bool = False


class DeviceInstance(msgspec.Struct, frozen=True, kw_only=True):
    """`instance "ID"`. numa_node: -1 takes the kernel's word for the bus."""

    device_nodes: list[str] = []
    pci_bus_id: str = ""
    numa_node: int = -1


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """`device "VENDOR/TYPE/MODEL"`. ids: instances of which there is no more to say. device_nodes: HOST_PATH or
    HOST_PATH:CONTAINER_PATH, of every instance; permissions: of all device nodes."""

    ids: list[str] = []
    instance: dict[str, DeviceInstance] = {}
    attributes: dict[str, str] = {}
    device_nodes: list[str] = []
    permissions: str = "rwm"
    env: dict[str, str] = {}
    mount: dict[str, DeviceMount] = {}

    @property
    def instances(self) -> dict[str, DeviceInstance]:
        """All of them, in the order of the file."""
        return {**{one: DeviceInstance() for one in self.ids}, **self.instance}


class DevicePlugin(msgspec.Struct, frozen=True, kw_only=True):
    """`device_plugin "NAME"`: a program, with what is handed to it."""

    command: str = ""
    args: list[str] = []
    config: dict[str, Any] = {}
    fingerprint_interval: Duration = 30 * _S
    timeout: Duration = 5 * _S


def device_faults(name: str, device: Device) -> list[str]:
    """What is wrong with a declared device, each as a sentence that follows its place."""
    faults: list[str] = []
    parts = name.split("/")
    if len(parts) != 3 or not all(part.strip() for part in parts):
        faults.append("must be named VENDOR/TYPE/MODEL")
    if not device.instances:
        faults.append("has no devices: name them in ids, or in instance blocks")
    twice = sorted(
        {one for one in device.ids if device.ids.count(one) > 1 or one in device.instance}
    )
    faults += [f"names the device {one!r} twice" for one in twice]
    if any(not one or "," in one for one in device.instances):
        faults.append("has a device without a name, or with a comma in it")
    if not device.permissions or set(device.permissions) - set("rwm"):
        faults.append(f"permissions are letters of rwm, not {device.permissions!r}")
    for node in (
        *device.device_nodes,
        *(n for i in device.instance.values() for n in i.device_nodes),
    ):
        if not all(path.startswith("/") for path in node_paths(node)):
            faults.append(
                f"device node {node!r} must be an absolute path, or two with a colon between"
            )
    for path, mount in device.mount.items():
        if not path.startswith("/") or (mount.target and not mount.target.startswith("/")):
            faults.append(f"mount {path!r} must have absolute paths")
    for one, instance in device.instance.items():
        if instance.numa_node >= 0 and not instance.pci_bus_id:
            faults.append(f"instance {one!r} has a numa_node, which needs a pci_bus_id")
    return faults


def plugin_faults(plugin: DevicePlugin) -> list[str]:
    """What is wrong with a plugin that is a program."""
    faults: list[str] = []
    if not plugin.command.startswith("/"):
        faults.append(f"needs a command with an absolute path, not {plugin.command!r}")
    faults += [
        f"{name} must be above zero"
        for name in ("fingerprint_interval", "timeout")
        if getattr(plugin, name) <= 0
    ]
    return faults


def node_paths(text: str) -> tuple[str, str]:
    """The path of a device node on the host, and the one in containers."""
    host, _, task = text.partition(":")
    return host, task or host
