"""The samplers against this host and processes of ours."""

from __future__ import annotations

import os
import subprocess

import pytest

from agent.stats import HostSampler, ProcessSampler, total
from nomadpy.clock import SystemClock
from nomadpy.models.stats import CpuStats, MemoryStats, ResourceUsage


class Stepping(SystemClock):
    """Two seconds pass between any two looks."""

    def __init__(self) -> None:
        self.at = 0.0

    def monotonic(self) -> float:
        self.at += 2
        return self.at


def test_the_hosts_use_is_plausible() -> None:
    sampler = HostSampler(SystemClock(), alloc_dir="/", core_mhz=1000)
    sum(n * n for n in range(2_000_000))
    stats = sampler.sample()
    assert stats.memory is not None
    assert 0 < stats.memory.available <= stats.memory.total
    assert stats.cpu is not None
    assert len(stats.cpu) == os.cpu_count()
    assert all(0 <= cpu.total_percent <= 100 for cpu in stats.cpu)
    assert stats.cpu_ticks_consumed > 0
    assert stats.alloc_dir_stats is not None
    assert stats.alloc_dir_stats.size > stats.alloc_dir_stats.used > 0
    assert stats.uptime > 0


def test_a_folder_that_is_gone_is_left_out() -> None:
    stats = HostSampler(SystemClock(), alloc_dir="/nonexistent", core_mhz=1000).sample()
    assert stats.alloc_dir_stats is None


def test_processes_are_measured_and_the_gone_left_out() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        usage = ProcessSampler(Stepping(), core_mhz=1000).sample([child.pid, 1 << 22, os.getpid()])
        child.kill()
    assert usage.pids is not None
    assert set(usage.pids) == {str(child.pid), str(os.getpid())}
    whole = usage.resource_usage
    assert whole is not None
    assert whole.memory_stats is not None
    assert whole.memory_stats.rss > 10_000_000
    assert whole.cpu_stats is not None
    assert whole.cpu_stats.total_ticks == pytest.approx(whole.cpu_stats.percent * 10)


def test_a_sum_of_nothing_is_nothing() -> None:
    assert total([]) == ResourceUsage(
        memory_stats=MemoryStats(measured=["RSS", "Swap"]),
        cpu_stats=CpuStats(measured=["System Mode", "User Mode", "Percent"]),
    )
