"""A cluster for benches of decisions: the real scheduler over the real state store, in one process and without a log.

Each job is registered, scheduled and applied before the next, as one evaluation worker and the plan applier would.
"""

from __future__ import annotations

from nomadpy.entropy import Entropy, SeededEntropy
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import EphemeralDisk, Job, TaskGroup
from nomadpy.models.node import Node
from nomadpy.models.operator import SchedulerConfiguration
from nomadpy.models.resources import RequestedDevice, Resources
from nomadpy.models.task import Task
from nomadpy.scheduler.decision import Decision
from nomadpy.scheduler.fit import allocs_fit
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.scheduler.schedule import schedule
from nomadpy.state import evals, jobs, nodes, operator, plan_results
from nomadpy.state.store import StateStore, Transaction

START_NS = 1_795_000_000_000_000_000


def one_group(
    job_id: str,
    count: int,
    cpu: int,
    memory_mb: int,
    *,
    kind: str = "service",
    devices: list[RequestedDevice] | None = None,
) -> Job:
    """A job of one group with one task."""
    task = Task(
        name="task",
        driver="raw_exec",
        config={"command": "/bin/sleep", "args": ["3600"]},
        resources=Resources(cpu=cpu, memory_mb=memory_mb, devices=devices),
    )
    group = TaskGroup(
        name="group", count=count, tasks=[task], ephemeral_disk=EphemeralDisk(size_mb=10)
    )
    return Job(
        id=job_id,
        name=job_id,
        namespace="default",
        region="global",
        type=kind,
        priority=50,
        datacenters=["*"],
        node_pool="default",
        task_groups=[group],
    )


class Cluster:
    """Nodes under one scheduler."""

    def __init__(self, members: list[Node], algorithm: str) -> None:
        self.store = StateStore()
        self.entropy: Entropy = SeededEntropy(1)
        self.table = NodeTable()
        self.store.subscribe(self.table.note)
        self._now_ns = START_NS
        with self._transaction() as tx:
            operator.set_scheduler_config(
                tx, SchedulerConfiguration(scheduler_algorithm=algorithm), None
            )
            for node in members:
                nodes.register(tx, node)

    def _transaction(self) -> Transaction:
        self._now_ns += 1_000_000
        return self.store.transaction(self.store.index + 1, self._now_ns)

    def register(self, job: Job) -> None:
        """Store a job."""
        with self._transaction() as tx:
            jobs.register(tx, job)

    def evaluation(self, job: Job) -> Evaluation:
        """An evaluation of a job that has just been registered."""
        return Evaluation(
            id=self.entropy.uuid(),
            namespace=job.namespace,
            job_id=job.id,
            type=job.type,
            priority=job.priority,
            triggered_by="job-register",
            status="pending",
        )

    def run(self, job: Job) -> Decision:
        """Register the job, schedule it, and apply what was decided."""
        self.register(job)
        decision = schedule(
            self.evaluation(job),
            self.store.snapshot(),
            now_ns=self._now_ns,
            entropy=self.entropy,
            table=self.table,
        )
        with self._transaction() as tx:
            if decision.plan is not None:
                refused = plan_results.upsert(tx, [decision.plan])
                assert refused == [""], refused
            else:
                evals.upsert(tx, decision.evaluations)
        return decision

    def check(self) -> None:
        """Every node can hold what is on it; AssertionError else."""
        snapshot = self.store.snapshot()
        for node in snapshot.nodes():
            result = allocs_fit(node, snapshot.allocs_by_node(node.id))
            assert result.ok, f"{node.name}: {result.dimension}"
