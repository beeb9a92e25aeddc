"""The node's device plugins, built from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agent.devices.base import DevicePlugin
from agent.devices.declared import DeclaredDevices, DeclaredInstance, DeclaredPlugin
from agent.devices.external import ExternalPlugin, ExternalSettings
from agent.devices.manager import Devices
from agent.devices.nvidia import NvidiaPlugin, NvidiaSettings, bus_id
from agent.drivers.base import TaskDevice, TaskMount
from agent.drivers.config_schema import decode, seconds
from nomadpy.clock import Clock
from nomadpy.config.devices import Device, node_paths
from nomadpy.config.model import Config
from nomadpy.entropy import Entropy
from nomadpy.errors import ConfigError

NVIDIA_NAMES = ("nvidia", "nomad-device-nvidia", "nvidia-gpu")
"""What the plugin block of Nomad's NVIDIA plugin has been called."""


class _NvidiaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`plugin "nvidia" { config { ... } }`."""

    enabled: bool = True
    ignored_gpu_ids: list[str] = []
    fingerprint_period: str = "1m"


def build_devices(config: Config, clock: Clock, entropy: Entropy) -> Devices:
    """Return the node's devices. Raises ConfigError."""
    client = config.client
    plugins: list[DevicePlugin] = []
    if client.device:
        plugins.append(DeclaredPlugin(declared(client.device)))
    nvidia = nvidia_settings(config.plugins)
    if nvidia.enabled:
        plugins.append(NvidiaPlugin(clock, nvidia))
    for name, said in client.device_plugin.items():
        if name in (plugin.name for plugin in plugins):
            raise ConfigError(f'device_plugin "{name}": the name is taken')
        settings = ExternalSettings(
            name=name,
            command=said.command,
            args=said.args,
            config=said.config,
            interval_s=said.fingerprint_interval / 1e9,
            timeout_s=said.timeout / 1e9,
        )
        plugins.append(ExternalPlugin(settings, clock, entropy))
    return Devices(plugins, clock, numa_nodes=numa_nodes(client.device))


def driver_plugins(plugins: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The plugin blocks that are about drivers."""
    return {name: block for name, block in plugins.items() if name not in NVIDIA_NAMES}


def nvidia_settings(plugins: Mapping[str, dict[str, Any]]) -> NvidiaSettings:
    """What is said about NVIDIA's GPUs. Raises ConfigError."""
    for name in NVIDIA_NAMES:
        if name in plugins:
            try:
                said = decode(plugins[name], _NvidiaConfig)
                period_s = seconds(said.fingerprint_period, "fingerprint_period")
            except ValueError as error:
                raise ConfigError(f'plugin "{name}": {error}') from error
            if period_s <= 0:
                raise ConfigError(f'plugin "{name}": fingerprint_period must be above zero')
            return NvidiaSettings(
                enabled=said.enabled, ignored_gpu_ids=said.ignored_gpu_ids, period_s=period_s
            )
    return NvidiaSettings()


def declared(blocks: Mapping[str, Device]) -> list[DeclaredDevices]:
    """The declared devices as the agent has them."""
    found: list[DeclaredDevices] = []
    for name, block in blocks.items():
        vendor, kind, model = name.split("/")
        found.append(
            DeclaredDevices(
                vendor=vendor,
                type=kind,
                name=model,
                instances=[
                    DeclaredInstance(
                        id=one,
                        nodes=_nodes(instance.device_nodes, block.permissions),
                        pci_bus_id=instance.pci_bus_id,
                    )
                    for one, instance in block.instances.items()
                ],
                attributes=block.attributes,
                nodes=_nodes(block.device_nodes, block.permissions),
                mounts=[
                    TaskMount(
                        host_path=path,
                        task_path=mount.target or path,
                        read_only=mount.read_only,
                    )
                    for path, mount in block.mount.items()
                ],
                env=block.env,
            )
        )
    return found


def numa_nodes(blocks: Mapping[str, Device]) -> dict[str, int]:
    """The NUMA node of each bus of which the operator says it."""
    return {
        bus_id(instance.pci_bus_id): instance.numa_node
        for block in blocks.values()
        for instance in block.instance.values()
        if instance.numa_node >= 0
    }


def _nodes(texts: list[str], permissions: str) -> list[TaskDevice]:
    paths = [node_paths(text) for text in texts]
    return [
        TaskDevice(host_path=host, task_path=task, permissions=permissions) for host, task in paths
    ]
