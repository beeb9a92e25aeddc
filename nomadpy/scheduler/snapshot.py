"""What the scheduler reads: a view of the state at one index."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import Deployment
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.host_volume import HostVolume, TaskGroupHostVolumeClaim
from nomadpy.models.job import Job
from nomadpy.models.node import Node, NodePool
from nomadpy.models.operator import SchedulerConfiguration


class Snapshot(Protocol):
    """An immutable view of the state. Missing objects are None; iterations have a stable order."""

    @property
    def index(self) -> int:
        """The log index that the view is of."""
        ...

    def job(self, namespace: str, job_id: str) -> Job | None:
        """The newest version of a job."""
        ...

    def job_version(self, namespace: str, job_id: str, version: int) -> Job | None:
        """One of the kept versions of a job."""
        ...

    def node(self, node_id: str) -> Node | None:
        """One node."""
        ...

    def nodes(self) -> Iterable[Node]:
        """All nodes, by id."""
        ...

    def nodes_by_pool(self, name: str) -> Iterable[Node]:
        """The nodes of one pool."""
        ...

    def node_pool(self, name: str) -> NodePool | None:
        """One node pool."""
        ...

    def alloc(self, alloc_id: str) -> Allocation | None:
        """One allocation."""
        ...

    def allocs_by_job(self, namespace: str, job_id: str) -> Iterable[Allocation]:
        """All allocations of a job, of whatever version."""
        ...

    def evals_by_job(self, namespace: str, job_id: str) -> Iterable[Evaluation]:
        """All evaluations of a job."""
        ...

    def allocs_by_node(self, node_id: str) -> Iterable[Allocation]:
        """All allocations of a node, terminal ones included."""
        ...

    def latest_deployment(self, namespace: str, job_id: str) -> Deployment | None:
        """The newest deployment of a job."""
        ...

    def deployments_by_job(self, namespace: str, job_id: str) -> Iterable[Deployment]:
        """The deployments of a job, newest first."""
        ...

    def host_volume(self, namespace: str, volume_id: str) -> HostVolume | None:
        """One dynamic host volume."""
        ...

    def volume_claims_by_job(
        self, namespace: str, job_id: str
    ) -> Iterable[TaskGroupHostVolumeClaim]:
        """The volumes that a job's groups hold."""
        ...

    def volume_claims_by_volume(self, volume_id: str) -> Iterable[TaskGroupHostVolumeClaim]:
        """Who holds a volume."""
        ...

    def scheduler_config(self) -> SchedulerConfiguration:
        """The cluster's scheduler settings."""
        ...
