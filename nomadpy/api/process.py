"""Figures of this process for the metrics registry: processor time, memory, open files."""

from __future__ import annotations

import psutil

from nomadpy.metrics import Registry


def process_gauges(registry: Registry) -> None:
    """Set the gauges; a collector for Registry.collect_with, cheap enough for every rendering."""
    process = psutil.Process()
    with process.oneshot():
        memory = process.memory_info()
        times = process.cpu_times()
        registry.gauge("nomad.runtime.sys_bytes", memory.rss)
        registry.gauge("nomad.process.resident_bytes", memory.rss)
        registry.gauge("nomad.process.virtual_bytes", memory.vms)
        registry.gauge("nomad.process.cpu_user_seconds", times.user)
        registry.gauge("nomad.process.cpu_system_seconds", times.system)
        registry.gauge("nomad.process.threads", process.num_threads())
        registry.gauge("nomad.process.open_files", process.num_fds())
