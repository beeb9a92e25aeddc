"""Measure what the host and its tasks use; percentages are over the time since the sampler's last call.

Blocking (psutil reads /proc, a millisecond or a few): call through `asyncio.to_thread` where the loop matters.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import psutil

from nomadpy.clock import Clock
from nomadpy.models.stats import (
    CpuStats,
    HostCPUStats,
    HostDiskStats,
    HostMemoryStats,
    HostStats,
    MemoryStats,
    ResourceUsage,
    TaskResourceUsage,
)

MEASURED_CPU = ["System Mode", "User Mode", "Percent"]
MEASURED_MEMORY = ["RSS", "Swap"]
_VIRTUAL_FILE_SYSTEMS = frozenset(
    "autofs binfmt_misc bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fuse.lxcfs fusectl hugetlbfs "
    "mqueue nsfs overlay proc pstore ramfs rpc_pipefs securityfs selinuxfs squashfs sysfs tmpfs tracefs".split()
)


class HostSampler:
    """The host's use: `sample()` gives the wire struct of `/v1/client/stats`.

    alloc_dir: whose disk is reported apart. core_mhz: speed of one core, for ticks.
    """

    def __init__(self, clock: Clock, *, alloc_dir: str, core_mhz: float) -> None:
        self._clock = clock
        self._alloc_dir = alloc_dir
        self._core_mhz = core_mhz
        self._before = psutil.cpu_times(percpu=True)

    def sample(self) -> HostStats:
        """Measure now. A part that cannot be read is left out, never an error."""
        now_ns = self._clock.now_ns()
        cpus = self._cpus()
        return HostStats(
            memory=_memory(),
            cpu=cpus,
            disk_stats=_disks(),
            alloc_dir_stats=_disk("", "", self._alloc_dir),
            device_stats=None,
            uptime=max(0, int(now_ns / 1e9 - psutil.boot_time())),
            cpu_ticks_consumed=sum(cpu.total_ticks for cpu in cpus),
            timestamp=now_ns,
        )

    def _cpus(self) -> list[HostCPUStats]:
        after = psutil.cpu_times(percpu=True)
        found = []
        for number, (old, new) in enumerate(zip(self._before, after, strict=False)):
            # Guest time is in user time already; a counter that fell (hot-plug) counts as no time.
            deltas = {
                name: max(0.0, getattr(new, name) - getattr(old, name))
                for name in new._fields
                if not name.startswith("guest")
            }
            total = sum(deltas.values())
            share = {name: 100 * d / total if total else 0.0 for name, d in deltas.items()}
            idle = share.get("idle", 0.0)
            busy = max(0.0, 100 - idle) if total else 0.0
            found.append(
                HostCPUStats(
                    cpu=f"cpu{number}",
                    user=share.get("user", 0.0),
                    system=share.get("system", 0.0),
                    idle=idle,
                    total_percent=busy,
                    total_ticks=busy / 100 * self._core_mhz,
                )
            )
        self._before = after
        return found


class ProcessSampler:
    """The use of one task's processes, which come and go between calls."""

    def __init__(self, clock: Clock, *, core_mhz: float) -> None:
        self._clock = clock
        self._core_mhz = core_mhz
        self._seen: dict[tuple[int, float], tuple[float, float]] = {}
        self._at = clock.monotonic()

    def sample(self, pids: Iterable[int]) -> TaskResourceUsage:
        """Measure `pids` now; one that is gone is left out. 100 percent is one core."""
        now = self._clock.monotonic()
        elapsed = now - self._at
        seen: dict[tuple[int, float], tuple[float, float]] = {}
        each: dict[str, ResourceUsage] = {}
        for pid in pids:
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    times, memory = process.cpu_times(), process.memory_info()
                    identity = (pid, process.create_time())
            except psutil.Error:
                continue
            user_before, system_before = self._seen.get(identity, (0.0, 0.0))
            seen[identity] = (times.user, times.system)
            user, system = (
                max(0.0, 100 * d / elapsed) if elapsed > 0 else 0.0
                for d in (times.user - user_before, times.system - system_before)
            )
            each[str(pid)] = self._usage(user, system, memory.rss, _swap(pid))
        self._seen, self._at = seen, now
        return TaskResourceUsage(
            resource_usage=total(each.values()), timestamp=self._clock.now_ns(), pids=each
        )

    def _usage(self, user: float, system: float, rss: int, swap: int) -> ResourceUsage:
        return ResourceUsage(
            memory_stats=MemoryStats(rss=rss, swap=swap, measured=MEASURED_MEMORY),
            cpu_stats=CpuStats(
                user_mode=user,
                system_mode=system,
                percent=user + system,
                total_ticks=(user + system) / 100 * self._core_mhz,
                measured=MEASURED_CPU,
            ),
        )


def total(usages: Iterable[ResourceUsage]) -> ResourceUsage:
    """The sum of several; what any of them measured counts as measured."""
    items = list(usages)
    memory = [u.memory_stats for u in items if u.memory_stats]
    cpu = [u.cpu_stats for u in items if u.cpu_stats]
    return ResourceUsage(
        memory_stats=MemoryStats(
            rss=sum(m.rss for m in memory),
            cache=sum(m.cache for m in memory),
            swap=sum(m.swap for m in memory),
            usage=sum(m.usage for m in memory),
            max_usage=sum(m.max_usage for m in memory),
            kernel_usage=sum(m.kernel_usage for m in memory),
            kernel_max_usage=sum(m.kernel_max_usage for m in memory),
            mapped_file=sum(m.mapped_file for m in memory),
            measured=_measured([m.measured for m in memory], MEASURED_MEMORY),
        ),
        cpu_stats=CpuStats(
            system_mode=sum(c.system_mode for c in cpu),
            user_mode=sum(c.user_mode for c in cpu),
            total_ticks=sum(c.total_ticks for c in cpu),
            throttled_periods=sum(c.throttled_periods for c in cpu),
            throttled_time=sum(c.throttled_time for c in cpu),
            percent=sum(c.percent for c in cpu),
            measured=_measured([c.measured for c in cpu], MEASURED_CPU),
        ),
    )


def _measured(lists: Sequence[list[str] | None], default: list[str]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names or ())) or default


def _memory() -> HostMemoryStats:
    memory = psutil.virtual_memory()
    return HostMemoryStats(
        total=memory.total, available=memory.available, used=memory.used, free=memory.free
    )


def _disks() -> list[HostDiskStats]:
    found = []
    for part in psutil.disk_partitions(all=False):
        if part.fstype not in _VIRTUAL_FILE_SYSTEMS:
            disk = _disk(part.device, part.mountpoint, part.mountpoint)
            if disk is not None:
                found.append(disk)
    return found


def _disk(device: str, mountpoint: str, path: str) -> HostDiskStats | None:
    try:
        usage = psutil.disk_usage(path)
        inodes = _inodes_used_percent(path)
    except OSError:
        return None
    return HostDiskStats(
        device=device,
        mountpoint=mountpoint,
        size=usage.total,
        used=usage.used,
        available=usage.free,
        used_percent=100 * usage.used / (usage.used + usage.free or 1),
        inodes_used_percent=inodes,
    )


def _inodes_used_percent(path: str) -> float:
    facts = os.statvfs(path)
    return 100 * (facts.f_files - facts.f_ffree) / facts.f_files if facts.f_files else 0.0


def _swap(pid: int) -> int:
    """Bytes of `pid` that are swapped out; /proc/PID/status is far cheaper than the full memory map."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("VmSwap:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
