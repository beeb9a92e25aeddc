"""Tasks: one program of a group, and how it is run."""

from __future__ import annotations

from typing import Any

from nomadpy.models.base import Duration, Wire
from nomadpy.models.constraint import Affinity, Constraint
from nomadpy.models.lifecycle import TaskLifecycle
from nomadpy.models.resources import Resources
from nomadpy.models.scaling import ScalingPolicy
from nomadpy.models.service import Service
from nomadpy.models.task_blocks import (
    Action,
    Consul,
    DispatchPayloadConfig,
    LogConfig,
    RestartPolicy,
    Secret,
    TaskArtifact,
    TaskCSIPluginConfig,
    TaskSchedule,
    Template,
    Vault,
    VolumeMount,
    WorkloadIdentity,
)


class Task(Wire, frozen=True, kw_only=True):
    name: str = ""
    driver: str = ""
    user: str = ""
    lifecycle: TaskLifecycle | None = None
    config: dict[str, Any] | None = None
    constraints: list[Constraint] | None = None
    affinities: list[Affinity] | None = None
    env: dict[str, str] | None = None
    services: list[Service] | None = None
    resources: Resources | None = None
    restart_policy: RestartPolicy | None = None
    meta: dict[str, str] | None = None
    kill_timeout: Duration = 0
    log_config: LogConfig | None = None
    artifacts: list[TaskArtifact] | None = None
    vault: Vault | None = None
    consul: Consul | None = None
    templates: list[Template] | None = None
    dispatch_payload: DispatchPayloadConfig | None = None
    volume_mounts: list[VolumeMount] | None = None
    csi_plugin_config: TaskCSIPluginConfig | None = None
    leader: bool = False
    shutdown_delay: Duration = 0
    kill_signal: str = ""
    kind: str = ""
    scaling_policies: list[ScalingPolicy] | None = None
    secrets: list[Secret] | None = None
    identity: WorkloadIdentity | None = None
    identities: list[WorkloadIdentity] | None = None
    actions: list[Action] | None = None
    schedule: TaskSchedule | None = None
