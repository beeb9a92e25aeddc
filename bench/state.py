"""How fast the state is: `python bench/state.py`. Prints milliseconds, the best of several runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nomadpy.entropy import SeededEntropy
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import (
    AllocClientUpdate,
    Applied,
    Command,
    Entry,
    JobRegister,
    NodeRegister,
    PlanResults,
    decode_entry,
    encode_entry,
)
from nomadpy.models.allocation import (
    Allocation,
    AllocationMetric,
    NodeScoreMeta,
    TaskEvent,
    TaskState,
)
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.node import Node
from nomadpy.models.plan import JobRef, Plan
from nomadpy.models.resources import (
    AllocatedCpuResources,
    AllocatedMemoryResources,
    AllocatedResources,
    AllocatedSharedResources,
    AllocatedTaskResources,
)
from nomadpy.models.task import Task
from nomadpy.state import persist
from nomadpy.state.checksum import checksum, table_sums
from nomadpy.state.schema import ALLOCS
from nomadpy.state.store import StateStore
from nomadpy.state.table import table_of

NODES = 5_000
ALLOCS_HELD = 50_000
PLACED = 1_000

chance = SeededEntropy("bench")
node_ids = [chance.uuid() for _ in range(NODES)]


def best(
    label: str, work: Callable[[], Any], runs: int = 5, before: Callable[[], Any] | None = None
) -> None:
    """Print the shortest of several runs of `work`; `before` is not measured."""
    times = []
    for _ in range(runs):
        if before is not None:
            before()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    print(f"{label:<58} {min(times) * 1000:9.2f} ms")


def placement(number: int, job_id: str) -> Allocation:
    """A new allocation as the scheduler plans it."""
    node_id = chance.choice(node_ids)
    return Allocation(
        id=chance.uuid(),
        namespace="default",
        eval_id=f"eval of {job_id}",
        name=f"{job_id}.web[{number}]",
        node_id=node_id,
        node_name="node",
        job_id=job_id,
        task_group="web",
        allocated_resources=AllocatedResources(
            tasks={
                "web": AllocatedTaskResources(
                    cpu=AllocatedCpuResources(cpu_shares=100),
                    memory=AllocatedMemoryResources(memory_mb=128),
                )
            },
            shared=AllocatedSharedResources(disk_mb=300),
            task_lifecycles={"web": None},
        ),
        metrics=AllocationMetric(
            nodes_evaluated=NODES,
            nodes_available={"dc1": NODES},
            score_meta_data=[
                NodeScoreMeta(node_id=node_id, scores={"binpack": 0.5}, norm_score=0.5)
            ],
        ),
        desired_status="run",
        client_status="pending",
    )


def plan(job_id: str, count: int) -> PlanResults:
    """One plan that places `count` allocations."""
    evaluation = Evaluation(
        id=f"eval of {job_id}",
        namespace="default",
        job_id=job_id,
        status="complete",
        queued_allocations={"web": 0},
    )
    return PlanResults(
        plans=[
            Plan(
                eval_id=evaluation.id,
                job=JobRef(namespace="default", job_id=job_id, version=0),
                placements=[placement(number, job_id) for number in range(count)],
                evaluations=[evaluation],
            )
        ]
    )


class Bench:
    """A state machine and what is measured of it."""

    def __init__(self) -> None:
        self.store = StateStore()
        self.machine = StateMachine(self.store)

    def apply(self, command: Command) -> None:
        """Apply a command that must hold."""
        data = encode_entry(Entry(command=command, now_ns=1_795_393_293_000_000_000))
        result = self.machine.apply(self.store.index + 1, data)
        assert isinstance(result, Applied), result

    def job(self, job_id: str, count: int) -> None:
        """Register a job."""
        group = TaskGroup(
            name="web",
            count=count,
            tasks=[Task(name="web", driver="docker", config={"image": "x"})],
        )
        self.apply(
            JobRegister(
                job=Job(
                    id=job_id,
                    name=job_id,
                    namespace="default",
                    type="service",
                    node_pool="default",
                    task_groups=[group],
                )
            )
        )

    def fill(self) -> None:
        """Nodes, and allocations of many jobs."""
        for node_id in node_ids:
            self.apply(
                NodeRegister(
                    node=Node(
                        id=node_id,
                        name="node",
                        datacenter="dc1",
                        secret_id="s",
                        attributes={f"attribute.{n}": "value" for n in range(50)},
                    )
                )
            )
        for number in range(ALLOCS_HELD // 500):
            self.job(f"job-{number}", 500)
            self.apply(plan(f"job-{number}", 500))

    def run(self) -> None:
        """Measure and print."""
        store = self.store
        start = time.perf_counter()
        self.fill()
        print(
            f"fill: {NODES} nodes, {len(list(store.snapshot().allocs()))} allocations "
            f"in {time.perf_counter() - start:.1f} s"
        )
        for number in range(6):
            self.job(f"new-{number}", PLACED)
        entries = [
            encode_entry(
                Entry(
                    command=plan(f"new-{number}", PLACED),
                    now_ns=1_795_393_294_000_000_000,
                    request_id=chance.uuid(),
                )
            )
            for number in range(6)
        ]
        print(f"an entry with a plan of {PLACED} placements: {len(entries[0]) / 1024:.0f} KiB")
        best("decode it", lambda: decode_entry(entries[0]))
        queue = iter(entries)
        best(
            "apply it, decoding included", lambda: self.machine.apply(store.index + 1, next(queue))
        )
        best("snapshot", store.snapshot)
        snapshot = store.snapshot()
        rows = dict(snapshot.tables["allocs"]._rows.items())
        best("list all allocations, keys sorted already", lambda: list(snapshot.allocs()))
        fresh = [table_of(ALLOCS, rows.items()) for _ in range(3)]
        best("sort the keys of all allocations", lambda: fresh.pop().keys(), runs=3)
        self.job("late", PLACED)

        def touch() -> None:
            self.apply(plan("late", 100))

        best(
            "list all allocations after 100 inserts",
            lambda: list(store.snapshot().allocs()),
            before=touch,
        )
        best("allocations of a job with 1,000", lambda: snapshot.allocs_by_job("default", "new-0"))
        best(
            "allocations of 1,000 nodes",
            lambda: [snapshot.allocs_by_node(n) for n in node_ids[:1000]],
        )
        best("jobs by prefix", lambda: list(snapshot.jobs_by_prefix("default", "job-1")))
        some = [a.id for a in snapshot.allocs_by_job("default", "new-0")][:64]
        states = {"web": TaskState(state="running", events=[TaskEvent(type="Started", time=1)])}

        def report() -> None:
            self.apply(
                AllocClientUpdate(
                    allocs=[
                        Allocation(id=i, client_status="running", task_states=states) for i in some
                    ]
                )
            )

        best("apply a client update of 64 allocations", report)
        snapshot = store.snapshot()
        best("write a snapshot of it all", lambda: list(persist.write(snapshot)), runs=2)
        chunks = list(persist.write(snapshot))
        print(f"a snapshot: {sum(map(len, chunks)) / 1e6:.0f} MB")
        best("read it back", lambda: persist.read(chunks), runs=2)
        best("checksum", lambda: checksum(snapshot), runs=2)
        best("sums of all tables", lambda: sum(1 for _ in table_sums(snapshot, {})), runs=2)
        steps, longest = table_sums(snapshot, {}), 0.0
        start = time.perf_counter()
        for _ in steps:
            longest = max(longest, time.perf_counter() - start)
            start = time.perf_counter()
        print(f"{'the longest step of them':<58} {longest * 1000:9.2f} ms")


if __name__ == "__main__":
    Bench().run()
