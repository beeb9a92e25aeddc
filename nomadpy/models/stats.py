"""Measured use of hosts, allocations and tasks; files of an allocation."""

from __future__ import annotations

import msgspec

from nomadpy.models.base import ZERO_TIME, Time, Wire, always


class HostMemoryStats(Wire, frozen=True, kw_only=True):
    total: int = 0
    available: int = 0
    used: int = 0
    free: int = 0


class HostCPUStats(Wire, frozen=True, kw_only=True):
    cpu: str = ""
    user: float = 0.0
    system: float = 0.0
    idle: float = 0.0
    total_percent: float = 0.0
    total_ticks: float = 0.0


class HostDiskStats(Wire, frozen=True, kw_only=True):
    device: str = ""
    mountpoint: str = ""
    size: int = 0
    used: int = 0
    available: int = 0
    used_percent: float = 0.0
    inodes_used_percent: float = 0.0


class StatValue(Wire, frozen=True, kw_only=True, omit_defaults=True):
    float_numerator_val: float | None = None
    float_denominator_val: float | None = None
    int_numerator_val: int | None = None
    int_denominator_val: int | None = None
    string_val: str | None = None
    bool_val: bool | None = None
    unit: str = ""
    desc: str = ""


class StatObject(Wire, frozen=True, kw_only=True):
    nested: dict[str, StatObject] | None = None
    attributes: dict[str, StatValue] | None = None


class DeviceStats(Wire, frozen=True, kw_only=True):
    summary: StatValue | None = None
    stats: StatObject | None = None
    timestamp: Time = ZERO_TIME


class DeviceGroupStats(Wire, frozen=True, kw_only=True):
    vendor: str = ""
    type: str = ""
    name: str = ""
    instance_stats: dict[str, DeviceStats] | None = None


class HostStats(Wire, frozen=True, kw_only=True):
    memory: HostMemoryStats | None = None
    cpu: list[HostCPUStats] | None = None
    disk_stats: list[HostDiskStats] | None = None
    alloc_dir_stats: HostDiskStats | None = None
    device_stats: list[DeviceGroupStats] | None = None
    uptime: int = 0
    cpu_ticks_consumed: float = 0.0
    timestamp: int = 0


class MemoryStats(Wire, frozen=True, kw_only=True):
    rss: int = 0
    cache: int = 0
    swap: int = 0
    usage: int = 0
    max_usage: int = 0
    kernel_usage: int = 0
    kernel_max_usage: int = 0
    measured: list[str] | None = None
    mapped_file: int = 0


class CpuStats(Wire, frozen=True, kw_only=True):
    system_mode: float = 0.0
    user_mode: float = 0.0
    total_ticks: float = 0.0
    throttled_periods: int = 0
    throttled_time: int = 0
    percent: float = 0.0
    measured: list[str] | None = None


class ResourceUsage(Wire, frozen=True, kw_only=True):
    memory_stats: MemoryStats | None = None
    cpu_stats: CpuStats | None = msgspec.field(default=None, name="CpuStats")
    device_stats: list[DeviceGroupStats] | None = None


class TaskResourceUsage(Wire, frozen=True, kw_only=True):
    resource_usage: ResourceUsage | None = None
    timestamp: int = 0
    pids: dict[str, ResourceUsage] | None = None


class AllocResourceUsage(Wire, frozen=True, kw_only=True):
    resource_usage: ResourceUsage | None = None
    tasks: dict[str, TaskResourceUsage] | None = None
    timestamp: int = 0


class AllocFileInfo(Wire, frozen=True, kw_only=True, omit_defaults=True):
    name: str = always(lambda: "")
    is_dir: bool = always(lambda: False)
    size: int = always(lambda: 0)
    file_mode: str = always(lambda: "")
    mod_time: Time = always(lambda: ZERO_TIME)
    content_type: str = ""


class StreamFrame(Wire, frozen=True, kw_only=True, omit_defaults=True):
    offset: int = 0
    data: bytes | None = None
    file: str = ""
    file_event: str = ""


class GaugeValue(Wire, frozen=True, kw_only=True):
    name: str = ""
    value: float = 0.0
    labels: dict[str, str] | None = None


class PointValue(Wire, frozen=True, kw_only=True):
    name: str = ""
    points: list[float] | None = None


class SampledValue(Wire, frozen=True, kw_only=True):
    name: str = ""
    mean: float = 0.0
    stddev: float = 0.0
    labels: dict[str, str] | None = None
    count: int = 0
    max: float = 0.0
    min: float = 0.0
    rate: float = 0.0
    sum: float = 0.0


class MetricsSummary(Wire, frozen=True, kw_only=True):
    timestamp: str = ""
    gauges: list[GaugeValue] | None = None
    points: list[PointValue] | None = None
    counters: list[SampledValue] | None = None
    samples: list[SampledValue] | None = None
    precision_gauges: list[GaugeValue] = msgspec.field(default_factory=list)
