"""Run all fingerprinters and merge what they find.

A fingerprinter that fails is named in the log and left out: it never keeps the agent from starting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.drivers.base import DriverFingerprint
from agent.fingerprint import cpu, drivers, host, memory, network, storage
from agent.fingerprint.parts import FingerprintConfig, FingerprintResult, Part, parse_ids
from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.models.node import (
    Node,
    NodeCpuResources,
    NodeDiskResources,
    NodeMemoryResources,
    NodeProcessors,
    NodeReservedCpuResources,
    NodeReservedDiskResources,
    NodeReservedMemoryResources,
    NodeReservedNetworkResources,
    NodeReservedResources,
    NodeResources,
)

log = logs.get(__name__)

Fingerprinter = Callable[[FingerprintConfig], Part]

FINGERPRINTERS: dict[str, Fingerprinter] = {
    "host": host.fingerprint,
    "cpu": cpu.fingerprint,
    "memory": memory.fingerprint,
    "storage": storage.fingerprint,
    "network": network.fingerprint,
    "volumes": storage.volumes,
}


class FingerprintsDrivers(Protocol):
    """The node's drivers, as far as they are needed here (agent.drivers.registry.Drivers)."""

    async def fingerprint_all(self) -> dict[str, DriverFingerprint]:
        """Every driver's state; never raises."""
        ...


class HostFingerprint:
    """Looks at this host whenever it is called; the agent calls it at start and on its period."""

    def __init__(
        self,
        config: FingerprintConfig,
        available: FingerprintsDrivers,
        clock: Clock,
        fingerprinters: Mapping[str, Fingerprinter] | None = None,
    ) -> None:
        self._config = config
        self._drivers = available
        self._clock = clock
        self._fingerprinters = FINGERPRINTERS if fingerprinters is None else dict(fingerprinters)

    async def __call__(self) -> Node:
        """The node as far as the host tells it."""
        return (await self.look()).node()

    async def look(self) -> FingerprintResult:
        """Run everything at once: files in a thread, drivers on the loop."""
        parts, found = await asyncio.gather(
            asyncio.to_thread(self._parts), self._drivers.fingerprint_all()
        )
        return merge(self._config, parts, found, self._clock.now_ns())

    def _parts(self) -> dict[str, Part | None]:
        return {name: self._part(name, look) for name, look in self._fingerprinters.items()}

    def _part(self, name: str, look: Fingerprinter) -> Part | None:
        try:
            return look(self._config)
        except Exception as error:  # noqa: BLE001
            # Its work ends here, the others' goes on.
            log.warning("fingerprint failed", fingerprint=name, error=f"{error!r}")
            return None


def merge(
    config: FingerprintConfig,
    parts: Mapping[str, Part | None],
    found: Mapping[str, DriverFingerprint],
    now_ns: int,
) -> FingerprintResult:
    """Put the parts together; later ones win where they meet. Pure."""
    attributes: dict[str, str] = {}
    cpu_resources, processors = NodeCpuResources(), NodeProcessors()
    memory_mb = disk_mb = 0
    networks = node_networks = None
    volumes = {}
    for part in parts.values():
        if part is None:
            continue
        attributes.update(part.attributes)
        cpu_resources = part.cpu or cpu_resources
        processors = part.processors or processors
        memory_mb = memory_mb if part.memory_mb is None else part.memory_mb
        disk_mb = disk_mb if part.disk_mb is None else part.disk_mb
        networks = part.networks or networks
        node_networks = part.node_networks or node_networks
        volumes.update(part.host_volumes or {})
    attributes.update(drivers.attributes(found))
    return FingerprintResult(
        attributes=dict(sorted(attributes.items())),
        resources=NodeResources(
            cpu=cpu_resources,
            memory=NodeMemoryResources(memory_mb=memory_mb),
            disk=NodeDiskResources(disk_mb=disk_mb),
            networks=networks,
            node_networks=node_networks,
            processors=processors,
            min_dynamic_port=config.min_dynamic_port,
            max_dynamic_port=config.max_dynamic_port,
        ),
        reserved=reserved(config),
        drivers=drivers.infos(found, now_ns),
        host_networks=config.host_networks or None,
        host_volumes=volumes,
        cgroup_parent=config.cgroup_parent,
        failed=[name for name, part in parts.items() if part is None],
    )


def reserved(config: FingerprintConfig) -> NodeReservedResources:
    """What the operator keeps from tasks."""
    return NodeReservedResources(
        cpu=NodeReservedCpuResources(
            cpu_shares=config.reserved_cpu_mhz,
            reserved_cpu_cores=parse_ids(config.reserved_cores) or None,
        ),
        memory=NodeReservedMemoryResources(memory_mb=config.reserved_memory_mb),
        disk=NodeReservedDiskResources(disk_mb=config.reserved_disk_mb),
        networks=NodeReservedNetworkResources(reserved_host_ports=config.reserved_ports),
    )
