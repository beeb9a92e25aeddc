"""Every table and index, declared in one place, and what a new cluster's state contains.

A key or index here is part of no protocol: snapshots store rows and build indexes anew.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.models.allocation import Allocation
from nomadpy.models.deployment import Deployment
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.host_volume import HostVolume, TaskGroupHostVolumeClaim
from nomadpy.models.job import Job, JobSubmission, JobSummary
from nomadpy.models.namespace import Namespace
from nomadpy.models.node import Node, NodePool
from nomadpy.models.operator import AutopilotConfiguration, SchedulerConfiguration
from nomadpy.models.root_key import RootKey
from nomadpy.models.scaling import ScalingEvent
from nomadpy.models.variable import StoredVariable
from nomadpy.state.table import Table, TableSpec, table_of

JobKey = tuple[str, str]
"""Namespace and job id."""

VersionKey = tuple[str, str, int]
"""Namespace, job id, version."""

VariableKey = tuple[str, str]
"""Namespace and path."""

VolumeKey = tuple[str, str]
"""Namespace and volume id."""

ScalingEvents = dict[str, list[ScalingEvent]]
"""Events by group, newest first."""

ONLY = "only"
"""The key of a table that has one row."""

RESTORED = "restored"
"""Under this name the indexes of tables also say where the state was last replaced by a snapshot that an operator restored."""

ALL_POOL = "all"
DEFAULT_POOL = "default"
DEFAULT_NAMESPACE = "default"
BUILT_IN_POOLS = (ALL_POOL, DEFAULT_POOL)
_DAY_NS = 86_400_000_000_000

CLIENT_TERMINAL = frozenset({"complete", "failed", "lost"})
DESIRED_TERMINAL = frozenset({"stop", "evict"})
EVAL_TERMINAL = frozenset({"complete", "failed", "canceled"})
DEPLOYMENT_TERMINAL = frozenset({"successful", "failed", "cancelled"})


class ClusterMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """Who the cluster is. create_time: nanoseconds since 1970. log_format: what its log may hold (fsm/formats.py)."""

    cluster_id: str
    create_time: int = 0
    log_format: int = 1


def alloc_is_terminal(alloc: Allocation) -> bool:
    """Whether an allocation no longer runs or is no longer meant to."""
    return alloc.desired_status in DESIRED_TERMINAL or alloc.client_status in CLIENT_TERMINAL


def _live_job_of_alloc(alloc: Allocation) -> JobKey | None:
    return None if alloc_is_terminal(alloc) else (alloc.namespace, alloc.job_id)


def _live_job_of_eval(evaluation: Evaluation) -> JobKey | None:
    live = evaluation.status not in EVAL_TERMINAL
    return (evaluation.namespace, evaluation.job_id) if live else None


def _blocked_job_of_eval(evaluation: Evaluation) -> JobKey | None:
    blocked = evaluation.status == "blocked"
    return (evaluation.namespace, evaluation.job_id) if blocked else None


def _live_job_of_deployment(deployment: Deployment) -> JobKey | None:
    live = deployment.status not in DEPLOYMENT_TERMINAL
    return (deployment.namespace, deployment.job_id) if live else None


JOBS: TableSpec[JobKey, Job] = TableSpec(
    "jobs",
    key_type=JobKey,
    row_type=Job,
    indexes={
        "pool": lambda job: job.node_pool,
        "parent": lambda job: (job.namespace, job.parent_id) if job.parent_id else None,
    },
)
JOB_VERSIONS: TableSpec[VersionKey, Job] = TableSpec(
    "job_versions",
    key_type=VersionKey,
    row_type=Job,
    indexes={"job": lambda job: (job.namespace, job.id)},
)
JOB_SUBMISSIONS: TableSpec[VersionKey, JobSubmission] = TableSpec(
    "job_submissions", key_type=VersionKey, row_type=JobSubmission
)
JOB_SUMMARIES: TableSpec[JobKey, JobSummary] = TableSpec(
    "job_summaries", key_type=JobKey, row_type=JobSummary
)
SCALING_EVENTS: TableSpec[JobKey, ScalingEvents] = TableSpec(
    "scaling_events", key_type=JobKey, row_type=ScalingEvents
)
NODES: TableSpec[str, Node] = TableSpec(
    "nodes", key_type=str, row_type=Node, indexes={"pool": lambda node: node.node_pool}
)
NODE_POOLS: TableSpec[str, NodePool] = TableSpec(
    "node_pools", key_type=str, row_type=NodePool, first_index=1
)
ALLOCS: TableSpec[str, Allocation] = TableSpec(
    "allocs",
    key_type=str,
    row_type=Allocation,
    indexes={
        "job": lambda alloc: (alloc.namespace, alloc.job_id),
        "node": lambda alloc: alloc.node_id,
        "eval": lambda alloc: alloc.eval_id,
        "deployment": lambda alloc: alloc.deployment_id or None,
        "live_job": _live_job_of_alloc,
    },
)
EVALS: TableSpec[str, Evaluation] = TableSpec(
    "evals",
    key_type=str,
    row_type=Evaluation,
    indexes={
        "job": lambda evaluation: (evaluation.namespace, evaluation.job_id),
        "live_job": _live_job_of_eval,
        "blocked_job": _blocked_job_of_eval,
    },
)
DEPLOYMENTS: TableSpec[str, Deployment] = TableSpec(
    "deployments",
    key_type=str,
    row_type=Deployment,
    indexes={
        "job": lambda deployment: (deployment.namespace, deployment.job_id),
        "live_job": _live_job_of_deployment,
    },
)
NAMESPACES: TableSpec[str, Namespace] = TableSpec(
    "namespaces", key_type=str, row_type=Namespace, first_index=1
)
SCHEDULER_CONFIG: TableSpec[str, SchedulerConfiguration] = TableSpec(
    "scheduler_config", key_type=str, row_type=SchedulerConfiguration, first_index=1
)
AUTOPILOT: TableSpec[str, AutopilotConfiguration] = TableSpec(
    "autopilot", key_type=str, row_type=AutopilotConfiguration
)
ROOT_KEYS: TableSpec[str, RootKey] = TableSpec("root_keys", key_type=str, row_type=RootKey)
VARIABLES: TableSpec[VariableKey, StoredVariable] = TableSpec(
    "variables",
    key_type=VariableKey,
    row_type=StoredVariable,
    indexes={
        "root_key": lambda variable: variable.sealed.key_id,
        "locked": lambda variable: None if variable.lock is None else True,
    },
    first_index=1,
)
HOST_VOLUMES: TableSpec[VolumeKey, HostVolume] = TableSpec(
    "host_volumes",
    key_type=VolumeKey,
    row_type=HostVolume,
    indexes={"node": lambda volume: volume.node_id},
    first_index=1,
)
VOLUME_CLAIMS: TableSpec[str, TaskGroupHostVolumeClaim] = TableSpec(
    "task_group_host_volume_claims",
    key_type=str,
    row_type=TaskGroupHostVolumeClaim,
    indexes={
        "job": lambda claim: (claim.namespace, claim.job_id),
        "volume": lambda claim: claim.volume_id,
    },
    first_index=1,
)
CLUSTER: TableSpec[str, ClusterMetadata] = TableSpec(
    "cluster", key_type=str, row_type=ClusterMetadata
)

TABLES: dict[str, TableSpec[Any, Any]] = {
    spec.name: spec
    for spec in (
        JOBS,
        JOB_VERSIONS,
        JOB_SUBMISSIONS,
        JOB_SUMMARIES,
        SCALING_EVENTS,
        NODES,
        NODE_POOLS,
        ALLOCS,
        EVALS,
        DEPLOYMENTS,
        NAMESPACES,
        SCHEDULER_CONFIG,
        AUTOPILOT,
        ROOT_KEYS,
        CLUSTER,
        VARIABLES,
        HOST_VOLUMES,
        VOLUME_CLAIMS,
    )
}

FIRST_INDEXES: dict[str, int] = {
    **{spec.name: spec.first_index for spec in TABLES.values()},
    # What the API can list although this state never holds any: an index of 1, as a fresh server answers.
    **dict.fromkeys(
        (
            "services",
            "scaling_policies",
            "acl_policies",
            "acl_tokens",
            "acl_roles",
            "acl_auth_methods",
            "acl_binding_rules",
        ),
        1,
    ),
    # No table either: the index of the entry that last replaced the whole state by an operator's snapshot.
    RESTORED: 0,
}


def first_tables() -> dict[str, Table[Any, Any]]:
    """The tables of a new cluster: the built-in node pools and the default namespace, all at index 1."""
    tables = {name: table_of(spec) for name, spec in TABLES.items()}
    pools = [
        NodePool(
            name=name,
            description=description,
            node_identity_ttl=_DAY_NS,
            create_index=1,
            modify_index=1,
        )
        for name, description in (
            (ALL_POOL, "Node pool with all nodes in the cluster."),
            (DEFAULT_POOL, "Default node pool."),
        )
    ]
    tables["node_pools"] = table_of(NODE_POOLS, [(pool.name, pool) for pool in pools])
    namespace = Namespace(
        name=DEFAULT_NAMESPACE,
        description="Default shared namespace",
        hash="C7UbjDwBK0dK8wQq7Izg7SJIzaV+lIo2X7wRtzY3pSw=",
        create_index=1,
        modify_index=1,
    )
    tables["namespaces"] = table_of(NAMESPACES, [(namespace.name, namespace)])
    return tables
