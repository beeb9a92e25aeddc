"""Small valid objects, and a state machine that is driven by commands, for the tests of state and fsm."""

from __future__ import annotations

from typing import Any

from nomadpy.errors import NomadError
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import Applied, Command, Entry, encode_entry
from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import Deployment, DeploymentState
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.node import Node
from nomadpy.models.plan import JobRef, Plan
from nomadpy.models.task import Task
from nomadpy.state.store import Snapshot, StateStore

SECOND = 1_000_000_000
START_NS = 1_795_393_293_000_000_000


def job(
    job_id: str = "web", *, count: int = 2, groups: tuple[str, ...] = ("group",), **more: Any
) -> Job:
    fields: dict[str, Any] = {
        "region": "global",
        "namespace": "default",
        "id": job_id,
        "name": job_id,
        "type": "service",
        "priority": 50,
        "datacenters": ["dc1"],
        "node_pool": "default",
        "task_groups": [
            TaskGroup(name=name, count=count, tasks=[Task(name="task", driver="mock_driver")])
            for name in groups
        ],
    }
    return Job(**{**fields, **more})


def evaluation(eval_id: str, job_id: str = "web", **more: Any) -> Evaluation:
    fields: dict[str, Any] = {
        "namespace": "default",
        "priority": 50,
        "type": "service",
        "triggered_by": "job-register",
        "status": "pending",
    }
    return Evaluation(**{**fields, "id": eval_id, "job_id": job_id, **more})


def alloc(alloc_id: str, job_id: str = "web", **more: Any) -> Allocation:
    fields: dict[str, Any] = {
        "namespace": "default",
        "eval_id": "e1",
        "name": f"{job_id}.group[0]",
        "node_id": "n1",
        "job_id": job_id,
        "task_group": "group",
        "desired_status": "run",
        "client_status": "pending",
    }
    return Allocation(**{**fields, "id": alloc_id, **more})


def node(node_id: str = "n1", **more: Any) -> Node:
    fields: dict[str, Any] = {
        "name": node_id,
        "datacenter": "dc1",
        "node_pool": "default",
        "status": "initializing",
        "secret_id": f"secret of {node_id}",
        "attributes": {"kernel.name": "linux", "unique.hostname": node_id},
    }
    return Node(**{**fields, "id": node_id, **more})


def deployment(deployment_id: str = "d1", job_id: str = "web", **more: Any) -> Deployment:
    fields: dict[str, Any] = {
        "namespace": "default",
        "job_id": job_id,
        "status": "running",
        "status_description": "Deployment is running",
        "task_groups": {"group": DeploymentState(desired_total=2, progress_deadline=40 * SECOND)},
    }
    return Deployment(**{**fields, "id": deployment_id, **more})


def plan(*placements: Allocation, job_id: str = "web", version: int = 0, **more: Any) -> Plan:
    return Plan(
        **{
            "eval_id": "e1",
            "job": JobRef(namespace="default", job_id=job_id, version=version),
            "placements": list(placements),
            **more,
        }
    )


class Machine:
    """A state machine with its own log; each entry is a second later than the one before."""

    def __init__(self) -> None:
        self.store = StateStore()
        self.machine = StateMachine(self.store)
        self.log: list[bytes] = []

    @property
    def state(self) -> Snapshot:
        return self.store.snapshot()

    @property
    def index(self) -> int:
        return self.store.index

    @property
    def now_ns(self) -> int:
        """The time of the last entry."""
        return START_NS + len(self.log) * SECOND

    def run(self, command: Command, *, request_id: str = "") -> Any:
        """Apply a command that must hold; return its value."""
        result = self.try_run(command, request_id=request_id)
        assert isinstance(result, Applied), result
        return result.value

    def refused(self, command: Command) -> NomadError:
        """Apply a command that must be refused, and check that nothing but the index moved."""
        before = self.state
        result = self.try_run(command)
        assert isinstance(result, NomadError), result
        assert self.state.tables == before.tables
        assert self.state.table_indexes == before.table_indexes
        assert self.index == before.index + 1
        return result

    def try_run(self, command: Command, *, request_id: str = "") -> Applied | NomadError:
        entry = Entry(
            request_id=request_id,
            now_ns=START_NS + (len(self.log) + 1) * SECOND,
            command=command,
        )
        self.log.append(encode_entry(entry))
        return self.machine.apply(self.index + 1, self.log[-1])
