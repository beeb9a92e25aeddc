"""Figures that are taken when somebody asks: of the state machine, the host, the interpreter; and names of calls."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from typing import Any, cast

import pytest

from nomadpy.clock import SystemClock
from nomadpy.daemon.gauges import HostFigures, MeasuredStateMachine, RuntimeGauges
from nomadpy.entropy import SystemEntropy
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import ClusterMetadataSet, Command, Entry, encode_entry
from nomadpy.metrics import Registry
from nomadpy.models.stats import HostCPUStats, HostMemoryStats, HostStats
from nomadpy.rpc.figures import FIGURES
from nomadpy.state.store import StateStore


class HandClock:
    """A clock the test moves."""

    def __init__(self) -> None:
        self.s = 100.0

    def now_ns(self) -> int:
        return int(self.s * 1e9)

    def monotonic(self) -> float:
        return self.s


def rows(registry: Registry, kind: str) -> dict[str, dict[str, Any]]:
    return {row["Name"]: row for row in json.loads(registry.json_body())[kind]}


def entry(command: Command) -> bytes:
    return encode_entry(Entry(request_id=SystemEntropy().uuid(), now_ns=1, command=command))


def test_applying_is_timed_by_command_and_changes_no_result() -> None:
    registry = Registry(HandClock())
    measured = MeasuredStateMachine(StateMachine(StateStore()), registry)
    plain = StateMachine(StateStore())
    command = entry(ClusterMetadataSet(cluster_id="c"))
    assert measured.apply(2, command) == plain.apply(2, command)
    samples = rows(registry, "Samples")
    assert samples["nomad.raft.fsm.apply"]["Count"] == 1
    assert samples["nomad.nomad.fsm.cluster_meta"]["Count"] == 1


def test_what_cannot_be_decoded_counts_as_no_command() -> None:
    registry = Registry(HandClock())
    measured = MeasuredStateMachine(StateMachine(StateStore()), registry)
    measured.apply(2, entry(ClusterMetadataSet(cluster_id="c")))
    measured.apply(3, b"\xff\xff")
    samples = rows(registry, "Samples")
    assert samples["nomad.raft.fsm.apply"]["Count"] == 2
    assert samples["nomad.nomad.fsm.cluster_meta"]["Count"] == 1


def test_every_command_has_a_timer() -> None:
    from typing import get_args

    from nomadpy.daemon import gauges

    assert set(get_args(Command)) == set(gauges._TIMERS)
    assert len(set(gauges._TIMERS.values())) == len(gauges._TIMERS)


def test_every_call_has_names_that_dashboards_can_read() -> None:
    for figures in FIGURES.values():
        assert re.fullmatch(r"nomad\.nomad\.rpc\.[a-z_]+\.(read|list|write)", figures.rate)
        assert re.fullmatch(r"nomad\.nomad\.[a-z_]+\.[a-z_]+", figures.timer)
    assert FIGURES["Node.Register"].timer == "nomad.nomad.client.register"
    assert FIGURES["Node.Heartbeat"].timer == "nomad.nomad.client.update_status"
    assert FIGURES["Node.List"].rate == "nomad.nomad.rpc.node.list"
    assert FIGURES["Node.Register"].rate == "nomad.nomad.rpc.node.write"
    assert FIGURES["Job.Get"].rate == "nomad.nomad.rpc.job.read"


class Sampler:
    """Counts how often the host is measured."""

    def __init__(self) -> None:
        self.times = 0

    def sample(self) -> HostStats:
        self.times += 1
        return HostStats(
            memory=HostMemoryStats(total=1000, available=600, used=400, free=500),
            cpu=[HostCPUStats(cpu="cpu0", user=1.0, system=2.0, idle=97.0, total_percent=3.0)],
            uptime=self.times,
        )


@pytest.mark.real_time
async def test_the_host_is_measured_at_most_once_a_second_by_all_who_ask() -> None:
    clock, sampler = HandClock(), Sampler()
    host = HostFigures(cast("Any", sampler), clock)
    await asyncio.gather(*(host.fresh() for _ in range(20)))
    clock.s += 0.9
    await host.fresh()
    assert sampler.times == 1
    clock.s += 0.2
    assert (await host.fresh()).uptime == 2
    registry = Registry(clock)
    host.collect(registry, {"node_id": "n"})
    gauges = rows(registry, "Gauges")
    assert gauges["nomad.client.uptime"]["Value"] == 2
    assert gauges["nomad.client.host.memory.used"]["Value"] == 400
    assert gauges["nomad.client.host.cpu.idle"]["Labels"] == {"cpu": "cpu0", "node_id": "n"}


async def test_pauses_of_the_collector_are_added_up_while_it_is_watched() -> None:
    registry, runtime = Registry(), RuntimeGauges(SystemClock())
    registry.collect_with(runtime.collect)
    callbacks = len(gc.callbacks)
    runtime.open()
    gc.collect()
    runtime.close()
    gauges = rows(registry, "Gauges")
    assert gauges["nomad.runtime.total_gc_pause_ns"]["Value"] > 0
    assert gauges["nomad.runtime.total_gc_runs"]["Value"] > 0
    assert gauges["nomad.runtime.num_goroutines"]["Value"] >= 1
    assert len(gc.callbacks) == callbacks
