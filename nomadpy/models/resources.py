"""Resources asked for and resources given: cpu in MHz, memory and disk in MiB, ports, devices, NUMA."""

from __future__ import annotations

import msgspec

from nomadpy.models.base import Wire, always
from nomadpy.models.constraint import Affinity, Constraint
from nomadpy.models.lifecycle import TaskLifecycle


class DNSConfig(Wire, frozen=True, kw_only=True):
    servers: list[str] | None = None
    searches: list[str] | None = None
    options: list[str] | None = None


class Port(Wire, frozen=True, kw_only=True, omit_defaults=True):
    label: str = always(lambda: "")
    value: int = 0
    to: int = 0
    host_network: str = always(lambda: "")
    ignore_collision: bool = False


class CNIConfig(Wire, frozen=True, kw_only=True):
    args: dict[str, str] | None = None


class NetworkResource(Wire, frozen=True, kw_only=True, omit_defaults=True):
    mode: str = always(lambda: "")
    device: str = ""
    cidr: str = ""
    ip: str = ""
    dns: DNSConfig | None = None
    reserved_ports: list[Port] | None = None
    dynamic_ports: list[Port] | None = None
    hostname: str = ""
    mbits: int = 0
    cni: CNIConfig | None = None


class RequestedDevice(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """`share` is this product's own: thousandths of one device instead of a whole one."""

    name: str = always(lambda: "")
    count: int | None = always(lambda: None)
    constraints: list[Constraint] | None = always(lambda: None)
    affinities: list[Affinity] | None = always(lambda: None)
    share: int | None = None


class NUMAResource(Wire, frozen=True, kw_only=True):
    affinity: str = ""
    devices: list[str] | None = None


class Resources(Wire, frozen=True, kw_only=True):
    cpu: int = 0
    cores: int = 0
    memory_mb: int = 0
    memory_max_mb: int = 0
    disk_mb: int = 0
    networks: list[NetworkResource] | None = None
    devices: list[RequestedDevice] | None = None
    numa: NUMAResource | None = None
    secrets_mb: int = 0
    iops: int = 0


class Attribute(Wire, frozen=True, kw_only=True, omit_defaults=True):
    float_val: float | None = msgspec.field(default=None, name="Float")
    int_val: int | None = msgspec.field(default=None, name="Int")
    string_val: str | None = msgspec.field(default=None, name="String")
    bool_val: bool | None = msgspec.field(default=None, name="Bool")
    unit: str = always(lambda: "")


class PortMapping(Wire, frozen=True, kw_only=True, omit_defaults=True):
    label: str = always(lambda: "")
    value: int = always(lambda: 0)
    to: int = 0
    host_ip: str = always(lambda: "")


class AllocatedCpuResources(Wire, frozen=True, kw_only=True):
    cpu_shares: int = msgspec.field(default=0, name="CpuShares")
    reserved_cores: list[int] | None = None


class AllocatedMemoryResources(Wire, frozen=True, kw_only=True):
    memory_mb: int = 0
    memory_max_mb: int = 0


class AllocatedDeviceResource(Wire, frozen=True, kw_only=True, omit_defaults=True):
    """`share` is this product's own: thousandths of each device, 0 for whole ones."""

    vendor: str = always(lambda: "")
    type: str = always(lambda: "")
    name: str = always(lambda: "")
    device_ids: list[str] | None = always(lambda: None)
    share: int = 0


class AllocatedTaskResources(Wire, frozen=True, kw_only=True):
    cpu: AllocatedCpuResources = msgspec.field(default_factory=AllocatedCpuResources, name="Cpu")
    memory: AllocatedMemoryResources = msgspec.field(default_factory=AllocatedMemoryResources)
    networks: list[NetworkResource] | None = None
    devices: list[AllocatedDeviceResource] | None = None


class AllocatedSharedResources(Wire, frozen=True, kw_only=True):
    disk_mb: int = 0
    networks: list[NetworkResource] | None = None
    ports: list[PortMapping] | None = None


class AllocatedResources(Wire, frozen=True, kw_only=True):
    tasks: dict[str, AllocatedTaskResources] | None = None
    shared: AllocatedSharedResources = msgspec.field(default_factory=AllocatedSharedResources)
    task_lifecycles: dict[str, TaskLifecycle | None] | None = None
