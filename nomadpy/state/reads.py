"""Every question that can be asked of the state; the same for a snapshot and for an open transaction.

Lists come in key order unless the docstring says otherwise; what is missing is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import Deployment
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.host_volume import HostVolume, TaskGroupHostVolumeClaim
from nomadpy.models.job import Job, JobSubmission, JobSummary
from nomadpy.models.namespace import Namespace
from nomadpy.models.node import Node, NodePool
from nomadpy.models.operator import (
    AutopilotConfiguration,
    PreemptionConfig,
    SchedulerConfiguration,
)
from nomadpy.models.root_key import RootKey
from nomadpy.models.scaling import ScalingEvent
from nomadpy.models.variable import StoredVariable
from nomadpy.state import schema
from nomadpy.state.schema import ClusterMetadata
from nomadpy.state.table import Rows, TableSpec, prefixed, select, under, values

K = TypeVar("K")
V = TypeVar("V")

DEFAULT_SCHEDULER_CONFIG = SchedulerConfiguration(
    scheduler_algorithm="binpack",
    preemption_config=PreemptionConfig(system_scheduler_enabled=True),
)
"""What holds until a leader has written the cluster's own; its indexes are 0."""

DEFAULT_AUTOPILOT = AutopilotConfiguration(
    cleanup_dead_servers=True,
    last_contact_threshold="200ms",
    max_trailing_logs=250,
    server_stabilization_time="10s",
)


class Reads:
    """The questions. A subclass says where the rows and the indexes of tables are."""

    __slots__ = ()

    def rows(self, spec: TableSpec[K, V]) -> Rows[K, V]:
        """One table."""
        raise NotImplementedError

    def table_index(self, *tables: str) -> int:
        """The highest index at which any of these tables was written; KeyError for a name that is no table."""
        raise NotImplementedError

    # -- jobs -----------------------------------------------------------------------------------

    def job(self, namespace: str, job_id: str) -> Job | None:
        """The job at its current version."""
        return self.rows(schema.JOBS).get((namespace, job_id))

    def jobs(self, namespace: str | None = None) -> Iterator[Job]:
        """All jobs, or those of one namespace."""
        rows = self.rows(schema.JOBS)
        return values(rows) if namespace is None else under(rows, namespace)

    def jobs_by_prefix(self, namespace: str | None, prefix: str) -> Iterator[Job]:
        """Jobs whose id begins with `prefix`; namespace None looks in all."""
        if namespace is not None:
            return under(self.rows(schema.JOBS), namespace, prefix)
        return (job for job in self.jobs() if job.id.startswith(prefix))

    def jobs_by_pool(self, pool: str) -> list[Job]:
        """Jobs of one node pool."""
        return select(self.rows(schema.JOBS), "pool", pool)

    def jobs_by_parent(self, namespace: str, parent_id: str) -> list[Job]:
        """What was dispatched from, or launched by, one job."""
        return select(self.rows(schema.JOBS), "parent", (namespace, parent_id))

    def job_versions(self, namespace: str, job_id: str) -> list[Job]:
        """The kept versions, newest first."""
        return select(self.rows(schema.JOB_VERSIONS), "job", (namespace, job_id))[::-1]

    def job_version(self, namespace: str, job_id: str, version: int) -> Job | None:
        """One kept version."""
        return self.rows(schema.JOB_VERSIONS).get((namespace, job_id, version))

    def job_summary(self, namespace: str, job_id: str) -> JobSummary | None:
        """The counts of the job's allocations by group and client status."""
        return self.rows(schema.JOB_SUMMARIES).get((namespace, job_id))

    def job_submission(self, namespace: str, job_id: str, version: int) -> JobSubmission | None:
        """The text that one version was made of."""
        return self.rows(schema.JOB_SUBMISSIONS).get((namespace, job_id, version))

    def scaling_events(self, namespace: str, job_id: str) -> dict[str, list[ScalingEvent]]:
        """Events by group, newest first; not to be changed."""
        return self.rows(schema.SCALING_EVENTS).get((namespace, job_id)) or {}

    # -- nodes ----------------------------------------------------------------------------------

    def node(self, node_id: str) -> Node | None:
        """One node, its secret included."""
        return self.rows(schema.NODES).get(node_id)

    def nodes(self) -> Iterator[Node]:
        """All nodes."""
        return values(self.rows(schema.NODES))

    def nodes_by_prefix(self, prefix: str) -> Iterator[Node]:
        """Nodes whose id begins with `prefix`."""
        return prefixed(self.rows(schema.NODES), prefix)

    def nodes_by_pool(self, name: str) -> list[Node]:
        """The nodes of one pool; `all` has every node."""
        if name == schema.ALL_POOL:
            return list(self.nodes())
        return select(self.rows(schema.NODES), "pool", name)

    def node_pool(self, name: str) -> NodePool | None:
        """One node pool."""
        return self.rows(schema.NODE_POOLS).get(name)

    def node_pools(self) -> Iterator[NodePool]:
        """All node pools, the built-in ones included."""
        return values(self.rows(schema.NODE_POOLS))

    # -- allocations ----------------------------------------------------------------------------

    def alloc(self, alloc_id: str) -> Allocation | None:
        """One allocation."""
        return self.rows(schema.ALLOCS).get(alloc_id)

    def allocs(self) -> Iterator[Allocation]:
        """All allocations."""
        return values(self.rows(schema.ALLOCS))

    def allocs_by_prefix(self, prefix: str) -> Iterator[Allocation]:
        """Allocations whose id begins with `prefix`."""
        return prefixed(self.rows(schema.ALLOCS), prefix)

    def allocs_by_job(self, namespace: str, job_id: str) -> list[Allocation]:
        """Allocations of a job, whatever the version, terminal ones included."""
        return select(self.rows(schema.ALLOCS), "job", (namespace, job_id))

    def allocs_by_node(self, node_id: str) -> list[Allocation]:
        """Allocations of a node, terminal ones included."""
        return select(self.rows(schema.ALLOCS), "node", node_id)

    def allocs_by_eval(self, eval_id: str) -> list[Allocation]:
        """Allocations that an evaluation placed."""
        return select(self.rows(schema.ALLOCS), "eval", eval_id)

    def allocs_by_deployment(self, deployment_id: str) -> list[Allocation]:
        """Allocations of a deployment."""
        return select(self.rows(schema.ALLOCS), "deployment", deployment_id)

    # -- evaluations and deployments ------------------------------------------------------------

    def eval(self, eval_id: str) -> Evaluation | None:
        """One evaluation."""
        return self.rows(schema.EVALS).get(eval_id)

    def evals(self) -> Iterator[Evaluation]:
        """All evaluations."""
        return values(self.rows(schema.EVALS))

    def evals_by_prefix(self, prefix: str) -> Iterator[Evaluation]:
        """Evaluations whose id begins with `prefix`."""
        return prefixed(self.rows(schema.EVALS), prefix)

    def evals_by_job(self, namespace: str, job_id: str) -> list[Evaluation]:
        """Evaluations of a job."""
        return select(self.rows(schema.EVALS), "job", (namespace, job_id))

    def deployment(self, deployment_id: str) -> Deployment | None:
        """One deployment."""
        return self.rows(schema.DEPLOYMENTS).get(deployment_id)

    def deployments(self) -> Iterator[Deployment]:
        """All deployments."""
        return values(self.rows(schema.DEPLOYMENTS))

    def deployments_by_prefix(self, prefix: str) -> Iterator[Deployment]:
        """Deployments whose id begins with `prefix`."""
        return prefixed(self.rows(schema.DEPLOYMENTS), prefix)

    def deployments_by_job(self, namespace: str, job_id: str) -> list[Deployment]:
        """Deployments of a job, newest first."""
        found = select(self.rows(schema.DEPLOYMENTS), "job", (namespace, job_id))
        return sorted(found, key=lambda d: (d.create_index, d.id), reverse=True)

    def latest_deployment(self, namespace: str, job_id: str) -> Deployment | None:
        """The newest deployment of a job."""
        found = select(self.rows(schema.DEPLOYMENTS), "job", (namespace, job_id))
        return max(found, key=lambda d: (d.create_index, d.id), default=None)

    # -- variables ------------------------------------------------------------------------------

    def variable(self, namespace: str, path: str) -> StoredVariable | None:
        """One variable, its items encrypted."""
        return self.rows(schema.VARIABLES).get((namespace, path))

    def variables(self, namespace: str | None = None, prefix: str = "") -> Iterator[StoredVariable]:
        """Variables whose path begins with `prefix`, of one namespace or all."""
        rows = self.rows(schema.VARIABLES)
        if namespace is not None:
            return under(rows, namespace, prefix)
        return (v for v in values(rows) if v.path.startswith(prefix))

    def variables_by_root_key(self, key_id: str) -> list[StoredVariable]:
        """What one root key encrypted."""
        return select(self.rows(schema.VARIABLES), "root_key", key_id)

    def locked_variables(self) -> list[StoredVariable]:
        """Variables that carry a lock, held or in its delay."""
        return select(self.rows(schema.VARIABLES), "locked", True)

    # -- host volumes ---------------------------------------------------------------------------

    def host_volume(self, namespace: str, volume_id: str) -> HostVolume | None:
        """One dynamic host volume."""
        return self.rows(schema.HOST_VOLUMES).get((namespace, volume_id))

    def host_volumes(self, namespace: str | None = None, prefix: str = "") -> Iterator[HostVolume]:
        """Dynamic host volumes whose id begins with `prefix`, of one namespace or all."""
        rows = self.rows(schema.HOST_VOLUMES)
        if namespace is not None:
            return under(rows, namespace, prefix)
        return (v for v in values(rows) if v.id.startswith(prefix))

    def host_volumes_by_node(self, node_id: str) -> list[HostVolume]:
        """The dynamic host volumes of one node."""
        return select(self.rows(schema.HOST_VOLUMES), "node", node_id)

    def volume_claims(self) -> Iterator[TaskGroupHostVolumeClaim]:
        """All claims on sticky host volumes."""
        return values(self.rows(schema.VOLUME_CLAIMS))

    def volume_claims_by_job(self, namespace: str, job_id: str) -> list[TaskGroupHostVolumeClaim]:
        """What the groups of a job hold."""
        return select(self.rows(schema.VOLUME_CLAIMS), "job", (namespace, job_id))

    def volume_claims_by_volume(self, volume_id: str) -> list[TaskGroupHostVolumeClaim]:
        """Who holds a volume."""
        return select(self.rows(schema.VOLUME_CLAIMS), "volume", volume_id)

    # -- the cluster ----------------------------------------------------------------------------

    def namespace(self, name: str) -> Namespace | None:
        """One namespace."""
        return self.rows(schema.NAMESPACES).get(name)

    def namespaces(self) -> Iterator[Namespace]:
        """All namespaces."""
        return values(self.rows(schema.NAMESPACES))

    def scheduler_config(self) -> SchedulerConfiguration:
        """The scheduler settings; the defaults with indexes 0 before any were written."""
        return self.rows(schema.SCHEDULER_CONFIG).get(schema.ONLY) or DEFAULT_SCHEDULER_CONFIG

    def autopilot_config(self) -> AutopilotConfiguration:
        """The autopilot settings; the defaults with indexes 0 before any were written."""
        return self.rows(schema.AUTOPILOT).get(schema.ONLY) or DEFAULT_AUTOPILOT

    def root_keys(self) -> list[RootKey]:
        """All root keys, secrets included."""
        return list(values(self.rows(schema.ROOT_KEYS)))

    def root_key(self, key_id: str) -> RootKey | None:
        """One root key."""
        return self.rows(schema.ROOT_KEYS).get(key_id)

    def active_root_key(self) -> RootKey | None:
        """The root key that signs; None before the first was made."""
        return next((key for key in self.root_keys() if key.state == "active"), None)

    def cluster_metadata(self) -> ClusterMetadata | None:
        """Who the cluster is; None before its first leader said so."""
        return self.rows(schema.CLUSTER).get(schema.ONLY)

    def log_format(self) -> int:
        """The format of the log; see fsm/formats.py."""
        metadata = self.cluster_metadata()
        return 1 if metadata is None else metadata.log_format
