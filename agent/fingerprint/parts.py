"""The values that go into a fingerprint and come out of it."""

from __future__ import annotations

import msgspec

from nomadpy.models.node import (
    DriverInfo,
    HostNetworkInfo,
    HostVolumeInfo,
    Node,
    NodeCpuResources,
    NodeNetworkResource,
    NodeProcessors,
    NodeReservedResources,
    NodeResources,
)
from nomadpy.models.resources import NetworkResource


class FingerprintConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says about this host; zero and "" mean: look.

    data_dir: whose disk tasks use. network_interface: "" takes the default route's; dev mode says "lo".
    network_speed: Mbit/s. bridge: whether groups may ask for a network of their own. cpu_total_compute: MHz. reservable_cores: "0-3,6". reserved_*: kept from tasks, in MHz and
    MiB; reserved_ports: "22,8000-8010". host_networks, host_volumes: by name. http_addr: what the node advertises.
    version: what `nomad.version` says, so that tools that compare versions work.
    """

    data_dir: str = "/"
    network_interface: str = ""
    network_speed: int = 0
    bridge: bool = True
    cpu_total_compute: int = 0
    memory_total_mb: int = 0
    disk_total_mb: int = 0
    reservable_cores: str = ""
    reserved_cpu_mhz: int = 0
    reserved_memory_mb: int = 0
    reserved_disk_mb: int = 0
    reserved_cores: str = ""
    reserved_ports: str = ""
    min_dynamic_port: int = 20000
    max_dynamic_port: int = 32000
    host_networks: dict[str, HostNetworkInfo] = {}
    host_volumes: dict[str, HostVolumeInfo] = {}
    cgroup_parent: str = "nomad.slice"
    http_addr: str = ""
    version: str = "2.0.0"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one fingerprinter found; None where it has nothing to say."""

    attributes: dict[str, str] = {}
    cpu: NodeCpuResources | None = None
    processors: NodeProcessors | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None
    networks: list[NetworkResource] | None = None
    node_networks: list[NodeNetworkResource] | None = None
    host_volumes: dict[str, HostVolumeInfo] | None = None


class FingerprintResult(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found. failed: names of the fingerprinters that broke."""

    attributes: dict[str, str]
    resources: NodeResources
    reserved: NodeReservedResources
    drivers: dict[str, DriverInfo]
    links: dict[str, str] = {}
    meta: dict[str, str] = {}
    host_networks: dict[str, HostNetworkInfo] | None = None
    host_volumes: dict[str, HostVolumeInfo] = {}
    cgroup_parent: str = ""
    failed: list[str] = []

    def node(self) -> Node:
        """A Node with what the host says; who it is comes from elsewhere."""
        return Node(
            attributes=self.attributes,
            node_resources=self.resources,
            reserved_resources=self.reserved,
            drivers=self.drivers,
            links=self.links,
            meta=self.meta,
            host_networks=self.host_networks,
            host_volumes=self.host_volumes,
            cgroup_parent=self.cgroup_parent,
        )


def parse_ids(text: str) -> list[int]:
    """`0-2,5` as [0, 1, 2, 5]. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, (p.strip() for p in text.split(","))):
        low, dash, high = part.partition("-")
        found.update(range(int(low), int(high) + 1) if dash else [int(low)])
    return sorted(found)


def format_ids(ids: list[int]) -> str:
    """The reverse of `parse_ids`, with ranges."""
    parts: list[str] = []
    start = previous = -2
    for number in [*sorted(ids), -9]:
        if number == previous + 1:
            previous = number
            continue
        if start >= 0:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = number
    return ",".join(parts)
