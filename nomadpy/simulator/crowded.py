"""A cluster with too little room: jobs of every type and priority that evict each other, and nodes that come and go; cpu and
devices run short, and each seed has one of the scheduler's algorithms.

What must come true differs from the roomy scenario in one point: a job may wait, but only while nothing could be placed
of it, and nobody waits for less important ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import NomadError
from nomadpy.models.calls import SchedulerConfigWrite
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.host_volume import FILE_SYSTEM, SINGLE_WRITER
from nomadpy.models.operator import (
    SCHEDULER_ALGORITHMS,
    PreemptionConfig,
    SchedulerConfiguration,
)
from nomadpy.scheduler.devices import WHOLE
from nomadpy.scheduler.schedule import schedule
from nomadpy.simulator.cluster import SimCluster
from nomadpy.simulator.volumes import DATA, STATE
from nomadpy.simulator.workload import Promise, User
from nomadpy.state.store import Snapshot

PER_ALLOC, STICKY = "per_alloc", "sticky"
"""Service jobs with host volumes."""
# Type and priority of each user's job, how much of a small node's cpu one allocation takes, and how many thousandths of a device.
JOBS = (
    ("service", 90, 700, 0),
    ("batch", 20, 900, 400),
    ("system", 70, 300, 0),
    ("sysbatch", 40, 500, 0),
    ("service", 50, 900, 1000),
    ("service", 20, 600, 700),
    ("batch", 60, 400, 1000),
    ("sysbatch", 10, 200, 300),
    (PER_ALLOC, 80, 200, 0),
    (STICKY, 30, 150, 0),
)
_CONFIG = SchedulerConfiguration(
    preemption_config=PreemptionConfig(
        system_scheduler_enabled=True,
        sys_batch_scheduler_enabled=True,
        batch_scheduler_enabled=True,
        service_scheduler_enabled=True,
    ),
)


class CrowdedUser(User):
    """Owns one job of its type and priority."""

    def __init__(self, cluster: SimCluster, number: int, entropy: SeededEntropy) -> None:
        super().__init__(cluster, number, entropy)
        kind, self._priority, self._cpu, self._milli = JOBS[number % len(JOBS)]
        self._volume = kind if kind in (PER_ALLOC, STICKY) else ""
        self.promise.kind = "service" if self._volume else kind
        self.promise.may_wait = True

    def _job(self, generation: int) -> dict[str, Any]:
        made = super()._job(generation)
        kind = self.promise.kind
        made["Priority"] = self._priority
        group = made["TaskGroups"][0]
        task = group["Tasks"][0]
        task["Resources"] = {"CPU": self._cpu, "MemoryMB": 200}
        if self._milli:
            share = {"Share": self._milli} if self._milli < WHOLE else {}
            task["Resources"]["Devices"] = [{"Name": "nomadpy/gpu/sim", "Count": 1, **share}]
        task["Config"] = {"run_for": 3} if kind in ("batch", "sysbatch") else {}
        if kind in ("system", "sysbatch"):
            group["Count"] = 1
            made.pop("Update", None)
            group.pop("ReschedulePolicy", None)
        elif kind == "service":
            group["Migrate"] = {
                "MaxParallel": 1,
                "HealthCheck": "task_states",
                "MinHealthyTime": 500_000_000,
                "HealthyDeadline": 20_000_000_000,
            }
            if self._entropy.uniform(0, 1) < 0.5:
                group["Disconnect"] = {"LostAfter": 8_000_000_000, "Replace": True}
            if self._entropy.uniform(0, 1) < 0.3:
                made["AllAtOnce"] = True
            if self._volume:
                group["Volumes"] = {"data": _volume(self._volume)}
            if self._entropy.uniform(0, 1) < 0.3:
                group["EphemeralDisk"] = {"Sticky": True, "SizeMB": 300}
        return made


def _volume(kind: str) -> dict[str, Any]:
    return {
        "Name": "data",
        "Type": "host",
        "Source": DATA if kind == PER_ALLOC else STATE,
        "PerAlloc": kind == PER_ALLOC,
        "Sticky": kind == STICKY,
        "AccessMode": SINGLE_WRITER,
        "AttachmentMode": FILE_SYSTEM,
    }


async def configure(cluster: SimCluster) -> None:
    """Allow preemption for every type, and take the seed's algorithm; raises AssertionError when no server would."""
    algorithm = SCHEDULER_ALGORITHMS[cluster.seed % len(SCHEDULER_ALGORITHMS)]
    config = msgspec.structs.replace(_CONFIG, scheduler_algorithm=algorithm)
    for attempt in range(20):
        live = cluster.live()
        process = live[attempt % len(live)].process
        assert process is not None
        try:
            await process.server.call(
                "Operator.SetSchedulerConfiguration", SchedulerConfigWrite(config=config)
            )
            return
        except NomadError:
            await asyncio.sleep(0.5)
    raise AssertionError("the scheduler's settings were not taken")


def waits_for_nothing(snapshot: Snapshot, promises: list[Promise], now_ns: int) -> str:
    """Which job could be placed and is not; "" when none could."""
    entropy = SeededEntropy("check")
    for promise in promises:
        job = snapshot.job("default", promise.job_id)
        if job is None or job.stop:
            continue
        if not any(e.status == "blocked" for e in snapshot.evals_by_job("default", promise.job_id)):
            continue
        evaluation = Evaluation(
            id=entropy.uuid(),
            namespace="default",
            job_id=job.id,
            type=job.type,
            priority=job.priority,
            triggered_by="job-register",
            status="pending",
        )
        decision = schedule(evaluation, snapshot, now_ns=now_ns, entropy=entropy)
        placed = [
            alloc
            for alloc in (decision.plan.placements if decision.plan else [])
            if snapshot.alloc(alloc.id) is None and not alloc.previous_allocation
        ]
        if placed:
            evicts = sum(len(alloc.preempted_allocations or ()) for alloc in placed)
            return (
                f"{promise.job_id} waits, and {len(placed)} of it could be placed "
                f"({evicts} evictions)"
            )
    return ""


def preempted(snapshot: Snapshot) -> int:
    """How many allocations were evicted in all."""
    return sum(alloc.desired_status == "evict" for alloc in snapshot.allocs())
