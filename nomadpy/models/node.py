"""Nodes: what a client agent has, its drivers, drain and pool."""

from __future__ import annotations

import msgspec

from nomadpy.models.base import ZERO_TIME, Duration, Time, Wire, always
from nomadpy.models.resources import Attribute, NetworkResource


class NodeNetworkAddress(Wire, frozen=True, kw_only=True):
    family: str = ""
    alias: str = ""
    address: str = ""
    reserved_ports: str = ""
    gateway: str = ""


class NodeNetworkResource(Wire, frozen=True, kw_only=True):
    mode: str = ""
    device: str = ""
    mac_address: str = ""
    speed: int = 0
    addresses: list[NodeNetworkAddress] | None = None


class NodeCore(Wire, frozen=True, kw_only=True):
    """One core; speeds in MHz; `grade` is true for a performance core."""

    socket_id: int = 0
    node_id: int = 0
    id: int = 0
    grade: bool = True
    disable: bool = False
    base_speed: int = 0
    max_speed: int = 0
    guess_speed: int = 0


class NodeTopology(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """`bus_associativity`: PCI bus id to NUMA node, as the kernel tells it; 0000:3b:00.0 is on 1."""

    nodes: list[int] | None = always(lambda: None)
    distances: list[list[int]] | None = always(lambda: None)
    cores: list[NodeCore] | None = always(lambda: None)
    bus_associativity: dict[str, int] | None = None
    override_total_compute: int = always(lambda: 0)
    # The wire spells it without the second "h".
    override_withold_compute: int = always(lambda: 0)


class NodeProcessors(Wire, frozen=True, kw_only=True):
    topology: NodeTopology | None = None


class NodeCpuResources(Wire, frozen=True, kw_only=True):
    cpu_shares: int = msgspec.field(default=0, name="CpuShares")
    total_cpu_cores: int = msgspec.field(default=0, name="TotalCpuCores")
    reservable_cpu_cores: list[int] | None = msgspec.field(default=None, name="ReservableCpuCores")


class NodeMemoryResources(Wire, frozen=True, kw_only=True):
    memory_mb: int = 0


class NodeDiskResources(Wire, frozen=True, kw_only=True):
    disk_mb: int = 0


class NodeDeviceLocality(Wire, frozen=True, kw_only=True):
    pci_bus_id: str = msgspec.field(default="", name="PciBusID")


class NodeDevice(Wire, frozen=True, kw_only=True):
    id: str = ""
    healthy: bool = False
    health_description: str = ""
    locality: NodeDeviceLocality | None = None


class NodeDeviceResource(Wire, frozen=True, kw_only=True):
    vendor: str = ""
    type: str = ""
    name: str = ""
    instances: list[NodeDevice] | None = None
    attributes: dict[str, Attribute] | None = None


class NodeResources(Wire, frozen=True, kw_only=True):
    cpu: NodeCpuResources = msgspec.field(default_factory=NodeCpuResources, name="Cpu")
    memory: NodeMemoryResources = msgspec.field(default_factory=NodeMemoryResources)
    disk: NodeDiskResources = msgspec.field(default_factory=NodeDiskResources)
    networks: list[NetworkResource] | None = None
    devices: list[NodeDeviceResource] | None = None
    min_dynamic_port: int = 0
    max_dynamic_port: int = 0
    node_networks: list[NodeNetworkResource] | None = None
    processors: NodeProcessors = msgspec.field(default_factory=NodeProcessors)


class NodeReservedCpuResources(Wire, frozen=True, kw_only=True):
    cpu_shares: int = msgspec.field(default=0, name="CpuShares")
    reserved_cpu_cores: list[int] | None = msgspec.field(default=None, name="ReservedCpuCores")


class NodeReservedMemoryResources(Wire, frozen=True, kw_only=True):
    memory_mb: int = 0


class NodeReservedDiskResources(Wire, frozen=True, kw_only=True):
    disk_mb: int = 0


class NodeReservedNetworkResources(Wire, frozen=True, kw_only=True):
    reserved_host_ports: str = ""


class NodeReservedResources(Wire, frozen=True, kw_only=True):
    cpu: NodeReservedCpuResources = msgspec.field(
        default_factory=NodeReservedCpuResources, name="Cpu"
    )
    memory: NodeReservedMemoryResources = msgspec.field(default_factory=NodeReservedMemoryResources)
    disk: NodeReservedDiskResources = msgspec.field(default_factory=NodeReservedDiskResources)
    networks: NodeReservedNetworkResources = msgspec.field(
        default_factory=NodeReservedNetworkResources
    )


class DrainSpec(Wire, frozen=True, kw_only=True):
    deadline: Duration = 0
    ignore_system_jobs: bool = False


class DrainStrategy(Wire, frozen=True, kw_only=True):
    """A drain under way. deadline below 0 forces at once, 0 waits without end; force_deadline is the moment."""

    deadline: Duration = 0
    ignore_system_jobs: bool = False
    force_deadline: Time = ZERO_TIME
    started_at: Time = ZERO_TIME


class NodeEvent(Wire, frozen=True, kw_only=True):
    message: str = ""
    subsystem: str = ""
    details: dict[str, str] | None = None
    timestamp: Time = ZERO_TIME
    create_index: int = 0


class DriverInfo(Wire, frozen=True, kw_only=True):
    attributes: dict[str, str] | None = None
    detected: bool = False
    healthy: bool = False
    health_description: str = ""
    update_time: Time = ZERO_TIME


class HostVolumeInfo(Wire, frozen=True, kw_only=True):
    path: str = ""
    read_only: bool = False
    id: str = ""
    name: str = ""


class HostNetworkInfo(Wire, frozen=True, kw_only=True):
    name: str = ""
    cidr: str = ""
    interface: str = ""
    reserved_ports: str = ""


class CSIControllerInfo(Wire, frozen=True, kw_only=True):
    supports_create_delete: bool = False
    supports_attach_detach: bool = False
    supports_list_volumes: bool = False
    supports_get_capacity: bool = False
    supports_create_delete_snapshot: bool = False
    supports_list_snapshots: bool = False
    supports_clone: bool = False
    supports_read_only_attach: bool = False
    supports_expand: bool = False
    supports_list_volumes_attached_nodes: bool = False
    supports_condition: bool = False
    supports_get: bool = False


class CSITopology(Wire, frozen=True, kw_only=True):
    segments: dict[str, str] | None = None


class CSINodeInfo(Wire, frozen=True, kw_only=True):
    id: str = ""
    max_volumes: int = 0
    accessible_topology: CSITopology | None = None
    requires_node_stage_volume: bool = False
    supports_stats: bool = False
    supports_expand: bool = False
    supports_condition: bool = False


class CSIInfo(Wire, frozen=True, kw_only=True, omit_defaults=True):
    plugin_id: str = always(lambda: "")
    alloc_id: str = always(lambda: "")
    healthy: bool = always(lambda: False)
    health_description: str = always(lambda: "")
    update_time: Time = always(lambda: ZERO_TIME)
    requires_controller_plugin: bool = always(lambda: False)
    requires_topologies: bool = always(lambda: False)
    controller_info: CSIControllerInfo | None = None
    node_info: CSINodeInfo | None = None


class DrainMetadata(Wire, frozen=True, kw_only=True):
    started_at: Time = ZERO_TIME
    updated_at: Time = ZERO_TIME
    status: str = ""
    accessor_id: str = ""
    meta: dict[str, str] | None = None


class Node(Wire, frozen=True, kw_only=True):
    id: str = ""
    datacenter: str = ""
    name: str = ""
    http_addr: str = ""
    tls_enabled: bool = False
    attributes: dict[str, str] | None = None
    node_resources: NodeResources | None = None
    reserved_resources: NodeReservedResources | None = None
    links: dict[str, str] | None = None
    meta: dict[str, str] | None = None
    node_class: str = ""
    node_pool: str = ""
    cgroup_parent: str = ""
    drain: bool = False
    drain_strategy: DrainStrategy | None = None
    scheduling_eligibility: str = ""
    status: str = ""
    status_description: str = ""
    status_updated_at: int = 0
    events: list[NodeEvent] | None = None
    drivers: dict[str, DriverInfo] | None = None
    host_volumes: dict[str, HostVolumeInfo] | None = None
    gc_volumes_on_node_gc: bool = False
    host_networks: dict[str, HostNetworkInfo] | None = None
    csi_controller_plugins: dict[str, CSIInfo] | None = None
    csi_node_plugins: dict[str, CSIInfo] | None = None
    last_drain: DrainMetadata | None = None
    create_index: int = 0
    modify_index: int = 0
    node_max_allocs: int = 0
    computed_class: str = ""
    identity_signing_key_id: str = ""
    last_alloc_update_index: int = 0
    last_missed_heartbeat_index: int = 0
    secret_id: str = ""


class NodeListStub(Wire, frozen=True, kw_only=True, omit_defaults=True):
    address: str = always(lambda: "")
    id: str = always(lambda: "")
    attributes: dict[str, str] | None = None
    datacenter: str = always(lambda: "")
    name: str = always(lambda: "")
    node_class: str = always(lambda: "")
    node_pool: str = always(lambda: "")
    version: str = always(lambda: "")
    drain: bool = always(lambda: False)
    scheduling_eligibility: str = always(lambda: "")
    status: str = always(lambda: "")
    status_description: str = always(lambda: "")
    drivers: dict[str, DriverInfo] | None = always(lambda: None)
    node_resources: NodeResources | None = None
    reserved_resources: NodeReservedResources | None = None
    last_drain: DrainMetadata | None = always(lambda: None)
    create_index: int = always(lambda: 0)
    modify_index: int = always(lambda: 0)
    host_volumes: dict[str, HostVolumeInfo] | None = always(lambda: None)


class NodePoolSchedulerConfiguration(Wire, frozen=True, kw_only=True):
    scheduler_algorithm: str = ""
    memory_oversubscription_enabled: bool | None = None


class NodePool(Wire, frozen=True, kw_only=True):
    name: str = ""
    description: str = ""
    meta: dict[str, str] | None = None
    node_identity_ttl: Duration = 0
    scheduler_configuration: NodePoolSchedulerConfiguration | None = None
    create_index: int = 0
    modify_index: int = 0
    hash: str | None = None


class NodeMetaResponse(Wire, frozen=True, kw_only=True):
    meta: dict[str, str] | None = None
    dynamic: dict[str, str | None] | None = None
    static: dict[str, str] | None = None
