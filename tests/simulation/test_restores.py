"""A restore takes the servers back, and the nodes tell them again what has happened since."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from nomadpy.entropy import SeededEntropy
from nomadpy.models.calls import JobWrite
from nomadpy.models.envelope import WriteOptions
from nomadpy.simulator import agents
from nomadpy.simulator import loop as virtual
from nomadpy.simulator.cluster import SimCluster
from nomadpy.simulator.faults import Faults
from nomadpy.state.schema import RESTORED
from nomadpy.state.store import Snapshot


async def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.1)


def state(cluster: SimCluster) -> Snapshot:
    leader = cluster.leader()
    assert leader is not None
    assert leader.process is not None
    return leader.process.store.snapshot()


def statuses(cluster: SimCluster) -> list[str]:
    return [a.client_status for a in state(cluster).allocs_by_job("default", "short")]


def short_job() -> dict[str, object]:
    task = {
        "Name": "task",
        "Driver": "mock_driver",
        "Config": {"run_for": 8},
        "Resources": {"CPU": 100, "MemoryMB": 100},
    }
    return {
        "ID": "short",
        "Name": "short",
        "Type": "batch",
        "Datacenters": ["dc1"],
        "TaskGroups": [{"Name": "group", "Count": 2, "Tasks": [task]}],
    }


async def saved_while_running_restored_when_complete(cluster: SimCluster) -> None:
    faults = Faults(cluster, SeededEntropy("operator"))
    await cluster.start()
    await until(lambda: cluster.leader() is not None)
    await until(lambda: len(list(state(cluster).nodes())) == len(cluster.clients))
    leader = cluster.leader()
    assert leader is not None
    assert leader.process is not None
    request = JobWrite(job=short_job(), options=WriteOptions(request_id="r1"))
    await leader.process.server.call("Job.Register", request)
    await until(lambda: statuses(cluster) == ["running"] * 2)
    await faults._save()
    await until(lambda: statuses(cluster) == ["complete"] * 2)
    await faults._restore()
    assert state(cluster).table_index(RESTORED) > 0
    assert not faults.unanswered_restore
    assert statuses(cluster) == ["running"] * 2


def play(story: Callable[[SimCluster], object]) -> None:
    async def main() -> None:
        cluster = SimCluster(21, servers=3, clients=2)
        try:
            await saved_while_running_restored_when_complete(cluster)
            await story(cluster)  # type: ignore[misc]
        finally:
            await cluster.close()

    virtual.run(main)


def test_what_ended_since_the_snapshot_is_known_again_within_seconds() -> None:
    async def story(cluster: SimCluster) -> None:
        await until(lambda: statuses(cluster) == ["complete"] * 2, timeout_s=5)

    play(story)


def test_control_agents_that_report_only_changes_leave_it_running_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = agents.SimAgent.__init__

    def deaf(self: agents.SimAgent, *parts: object, **named: object) -> None:
        made(self, *parts, **named)  # type: ignore[arg-type]
        self._restored = 1 << 60

    monkeypatch.setattr(agents.SimAgent, "__init__", deaf)

    async def story(cluster: SimCluster) -> None:
        await asyncio.sleep(120)
        assert statuses(cluster) == ["running"] * 2

    play(story)
