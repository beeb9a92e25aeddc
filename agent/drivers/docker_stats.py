"""The daemon's statistics of a container as the wire's ResourceUsage."""

from __future__ import annotations

from typing import Any

from nomadpy.clock import Clock
from nomadpy.models.stats import CpuStats, MemoryStats, ResourceUsage

MEASURED_CPU = ["Throttled Periods", "Throttled Time", "Percent"]
MEASURED_MEMORY = ["RSS", "Cache", "Swap", "Usage", "Max Usage"]
_NS = 1_000_000_000


class Meter:
    """Turns the counters of one container into rates; 100 percent is one core. core_mhz: speed of one core."""

    def __init__(self, clock: Clock, core_mhz: float) -> None:
        self._clock = clock
        self._core_mhz = core_mhz
        self._before: tuple[float, int, int, int] | None = None

    def read(self, raw: dict[str, Any]) -> ResourceUsage:
        """Read an answer of /containers/ID/stats; control groups of both versions."""
        return ResourceUsage(memory_stats=_memory(raw), cpu_stats=self._cpu(raw))

    def _cpu(self, raw: dict[str, Any]) -> CpuStats:
        stats = raw.get("cpu_stats") or {}
        usage = stats.get("cpu_usage") or {}
        throttling = stats.get("throttling_data") or {}
        now = (
            self._clock.monotonic(),
            int(usage.get("total_usage", 0)),
            int(usage.get("usage_in_usermode", 0)),
            int(usage.get("usage_in_kernelmode", 0)),
        )
        before, self._before = self._before or now, now
        elapsed_ns = (now[0] - before[0]) * _NS
        total, user, system = (
            max(0.0, 100 * (new - old) / elapsed_ns) if elapsed_ns > 0 else 0.0
            for new, old in zip(now[1:], before[1:], strict=True)
        )
        return CpuStats(
            percent=total,
            user_mode=user,
            system_mode=system,
            total_ticks=total / 100 * self._core_mhz,
            throttled_periods=int(throttling.get("throttled_periods", 0)),
            throttled_time=int(throttling.get("throttled_time", 0)),
            measured=MEASURED_CPU,
        )


def _memory(raw: dict[str, Any]) -> MemoryStats:
    stats = raw.get("memory_stats") or {}
    detail = stats.get("stats") or {}
    usage = int(stats.get("usage", 0))
    cache = int(detail.get("cache", detail.get("file", 0)))
    return MemoryStats(
        rss=int(detail.get("rss", detail.get("anon", max(0, usage - cache)))),
        cache=cache,
        swap=int(detail.get("swap", 0)),
        usage=usage,
        max_usage=int(stats.get("max_usage", 0)),
        mapped_file=int(detail.get("mapped_file", detail.get("file_mapped", 0))),
        measured=MEASURED_MEMORY,
    )
