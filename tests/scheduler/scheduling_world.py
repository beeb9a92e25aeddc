"""A small cluster on the real state store, for scheduler tests: register, schedule, apply, report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from nomadpy.entropy import SeededEntropy
from nomadpy.models import gotime
from nomadpy.models.allocation import (
    Allocation,
    AllocDeploymentStatus,
    DesiredTransition,
    TaskState,
)
from nomadpy.models.constraint import Constraint
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.host_volume import HostVolume
from nomadpy.models.job import (
    EphemeralDisk,
    Job,
    ReschedulePolicy,
    TaskGroup,
    UpdateStrategy,
)
from nomadpy.models.node import (
    DriverInfo,
    Node,
    NodeCpuResources,
    NodeDiskResources,
    NodeMemoryResources,
    NodeNetworkAddress,
    NodeNetworkResource,
    NodeResources,
)
from nomadpy.models.operator import SchedulerConfiguration
from nomadpy.models.resources import NetworkResource, Port, Resources
from nomadpy.models.task import Task
from nomadpy.scheduler.decision import Decision
from nomadpy.scheduler.fit import allocs_fit, terminal
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.scheduler.schedule import schedule
from nomadpy.state import allocs as alloc_writes
from nomadpy.state import evals, host_volumes, jobs, nodes, operator, plan_results, schema
from nomadpy.state.store import Snapshot, StateStore

SECOND = 1_000_000_000
START = 1_795_000_000 * SECOND
NAMESPACE = "default"


def make_node(name: str, cpu: int = 4000, memory: int = 8192, **fields: Any) -> Node:
    """A ready node whose id is its name; disk 100 GiB, drivers raw_exec and docker."""
    number = sum(ord(letter) for letter in name) % 200
    return Node(
        id=name,
        name=name,
        secret_id="secret",
        status="ready",
        **{
            "datacenter": "dc1",
            "node_pool": "default",
            "attributes": {"kernel.name": "linux", "unique.hostname": name},
            "drivers": {
                driver: DriverInfo(detected=True, healthy=True) for driver in ("raw_exec", "docker")
            },
            "node_resources": NodeResources(
                cpu=NodeCpuResources(
                    cpu_shares=cpu, total_cpu_cores=4, reservable_cpu_cores=[0, 1, 2, 3]
                ),
                memory=NodeMemoryResources(memory_mb=memory),
                disk=NodeDiskResources(disk_mb=102_400),
                min_dynamic_port=20_000,
                max_dynamic_port=32_000,
                node_networks=[
                    NodeNetworkResource(
                        mode="host",
                        device="eth0",
                        addresses=[
                            NodeNetworkAddress(
                                family="ipv4", alias="default", address=f"10.0.0.{number}"
                            )
                        ],
                    )
                ],
            ),
            **fields,
        },
    )


def make_task(name: str = "task", cpu: int = 500, memory: int = 256, **fields: Any) -> Task:
    """A raw_exec task."""
    return Task(
        name=name,
        **{
            "driver": "raw_exec",
            "config": {"command": "/bin/true"},
            "resources": Resources(cpu=cpu, memory_mb=memory),
            **fields,
        },
    )


def make_group(name: str = "group", count: int = 1, **fields: Any) -> TaskGroup:
    """A group of one task, with an ephemeral disk of 300 MiB and unlimited rescheduling after 30 s."""
    return TaskGroup(
        name=name,
        count=count,
        **{
            "tasks": [make_task()],
            "ephemeral_disk": EphemeralDisk(size_mb=300),
            "reschedule_policy": ReschedulePolicy(
                delay=30 * SECOND,
                delay_function="exponential",
                max_delay=3600 * SECOND,
                unlimited=True,
            ),
            **fields,
        },
    )


def make_job(name: str = "web", *groups: TaskGroup, **fields: Any) -> Job:
    """A service job in every datacenter."""
    return Job(
        id=name,
        name=name,
        namespace=NAMESPACE,
        region="global",
        **{
            "type": "service",
            "priority": 50,
            "datacenters": ["*"],
            "node_pool": "default",
            "task_groups": list(groups) or [make_group()],
            **fields,
        },
    )


def rolling(max_parallel: int = 1) -> UpdateStrategy:
    """An update block with a progress deadline of ten minutes."""
    return UpdateStrategy(
        max_parallel=max_parallel,
        stagger=30 * SECOND,
        min_healthy_time=SECOND,
        healthy_deadline=60 * SECOND,
        progress_deadline=600 * SECOND,
    )


def constraint(left: str, operand: str, right: str = "") -> Constraint:
    """A constraint in the order in which it is read."""
    return Constraint(l_target=left, r_target=right, operand=operand)


def static_port(label: str, value: int, to: int = 0) -> NetworkResource:
    """A group network with one static port."""
    return NetworkResource(mode="host", reserved_ports=[Port(label=label, value=value, to=to)])


def dynamic_ports(*labels: str) -> NetworkResource:
    """A group network with dynamic ports."""
    return NetworkResource(mode="host", dynamic_ports=[Port(label=label) for label in labels])


class World:
    """A state store, a clock and a seed; every decision is applied as the plan applier and the log would."""

    def __init__(self, seed: int = 1) -> None:
        self.store = StateStore()
        self.now = START
        self.entropy = SeededEntropy(seed)
        self.table = NodeTable()
        self.store.subscribe(self.table.note)

    @property
    def snapshot(self) -> Snapshot:
        """The newest state."""
        return self.store.snapshot()

    def transaction(self) -> Any:
        """The next entry."""
        return self.store.transaction(self.store.index + 1, self.now)

    def add_nodes(self, *added: Node) -> None:
        """Register nodes."""
        with self.transaction() as tx:
            for node in added:
                nodes.register(tx, node)

    def add_volumes(self, *added: HostVolume) -> None:
        """Write dynamic volumes."""
        with self.transaction() as tx:
            host_volumes.upsert(tx, added)

    def claim_volumes(self) -> None:
        """From now on placements claim sticky volumes: the log has the format for it."""
        with self.transaction() as tx:
            operator.set_cluster_metadata(tx, "cluster", log_format=3)

    def change_node(self, node_id: str, **fields: Any) -> None:
        """Overwrite fields of a node."""
        with self.transaction() as tx:
            node = tx.node(node_id)
            tx.put(schema.NODES, node_id, msgspec.structs.replace(node, **fields))

    def configure(self, **fields: Any) -> None:
        """Overwrite scheduler settings."""
        with self.transaction() as tx:
            operator.set_scheduler_config(tx, SchedulerConfiguration(**fields), None)

    def register(self, job: Job) -> Job:
        """Register a job, without an evaluation."""
        with self.transaction() as tx:
            return jobs.register(tx, job)

    def stop(self, job: Job, *, purge: bool = False) -> None:
        """Deregister a job."""
        with self.transaction() as tx:
            jobs.deregister(tx, NAMESPACE, job.id, purge=purge)

    def evaluation(self, job: Job, trigger: str = "job-register", **fields: Any) -> Evaluation:
        """A pending evaluation of the job."""
        return Evaluation(
            id=self.entropy.uuid(),
            namespace=NAMESPACE,
            job_id=job.id,
            type=job.type,
            priority=job.priority,
            triggered_by=trigger,
            status="pending",
            **fields,
        )

    def decide(self, evaluation: Evaluation) -> Decision:
        """Schedule without applying."""
        return schedule(
            evaluation, self.snapshot, now_ns=self.now, entropy=self.entropy, table=self.table
        )

    def apply(self, decision: Decision) -> None:
        """Commit a decision."""
        with self.transaction() as tx:
            if decision.plan is not None:
                assert plan_results.upsert(tx, [decision.plan]) == [""]
            else:
                evals.upsert(tx, decision.evaluations)

    def run(self, job: Job, trigger: str = "job-register", **fields: Any) -> Decision:
        """Schedule the job and apply what was decided."""
        decision = self.decide(self.evaluation(job, trigger, **fields))
        self.apply(decision)
        return decision

    def deploy(self, job: Job) -> Decision:
        """Register and run."""
        self.register(job)
        return self.run(job)

    def allocs(self, job: Job) -> list[Allocation]:
        """All allocations of the job, by name and age."""
        return sorted(
            self.snapshot.allocs_by_job(NAMESPACE, job.id), key=lambda a: (a.name, a.create_index)
        )

    def live(self, job: Job) -> list[Allocation]:
        """The allocations of the job that are wanted and not over."""
        return [alloc for alloc in self.allocs(job) if not terminal(alloc)]

    def names(self, job: Job) -> list[str]:
        """The names of the live allocations."""
        return [alloc.name for alloc in self.live(job)]

    def report(self, *reported: Allocation, status: str = "running", **fields: Any) -> None:
        """The clients' word on allocations; complete and failed ones have just ended."""
        ended = gotime.from_ns(self.now) if status in ("complete", "failed") else None
        state = TaskState(
            state="dead" if ended else "running", failed=status == "failed", finished_at=ended
        )
        with self.transaction() as tx:
            alloc_writes.update_from_clients(
                tx,
                [
                    msgspec.structs.replace(
                        alloc, client_status=status, task_states={"task": state}, **fields
                    )
                    for alloc in reported
                ],
            )

    def healthy(self, *reported: Allocation, healthy: bool = True) -> None:
        """The clients find allocations running and healthy, or not."""
        status = AllocDeploymentStatus(healthy=healthy, timestamp=gotime.from_ns(self.now))
        self.report(*reported, deployment_status=status)

    def transition(self, reported: Iterable[Allocation], **fields: Any) -> None:
        """Ask for allocations to be moved or rescheduled."""
        with self.transaction() as tx:
            alloc_writes.transition(
                tx, {alloc.id: DesiredTransition(**fields) for alloc in reported}
            )

    def check(self) -> None:
        """Every node can hold what is wanted on it."""
        for node in self.snapshot.nodes():
            result = allocs_fit(node, self.snapshot.allocs_by_node(node.id))
            assert result.ok, f"{node.id}: {result.dimension}"
