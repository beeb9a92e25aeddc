"""Deployments: a rolling change of a job and how far it has come."""

from __future__ import annotations

from nomadpy.models.base import ZERO_TIME, Duration, Time, Wire


class DeploymentState(Wire, frozen=True, kw_only=True):
    placed_canaries: list[str] | None = None
    auto_revert: bool = False
    progress_deadline: Duration = 0
    require_progress_by: Time = ZERO_TIME
    promoted: bool = False
    desired_canaries: int = 0
    desired_total: int = 0
    placed_allocs: int = 0
    healthy_allocs: int = 0
    unhealthy_allocs: int = 0
    auto_promote: bool = False


class Deployment(Wire, frozen=True, kw_only=True):
    id: str = ""
    namespace: str = ""
    job_id: str = ""
    job_version: int = 0
    job_modify_index: int = 0
    job_spec_modify_index: int = 0
    job_create_index: int = 0
    is_multiregion: bool = False
    task_groups: dict[str, DeploymentState] | None = None
    status: str = ""
    status_description: str = ""
    create_index: int = 0
    modify_index: int = 0
    create_time: int = 0
    modify_time: int = 0
    eval_priority: int = 0
