"""Whether a running allocation can take a new version of its job where it is, or must be replaced.

| Level | Changed in place | Everything else replaces |
|---|---|---|
| job | name, priority, all_at_once, datacenters, node pool, constraints (the node must still satisfy them), update, periodic, parameterized, versions and times | meta, affinities, spreads, payload, consul/vault namespace |
| group | count, constraints, update, migrate, reschedule, restart, scaling, shutdown_delay, disconnect settings, max_run_duration, services without Connect | networks, ephemeral disk, volumes, meta, affinities, spreads, Connect, consul, the set of tasks |
| task | constraints, kill_timeout, restart, shutdown_delay, scaling, actions, log rotation, services without Connect | driver, config, user, env, resources, artifacts, templates, vault, identities, meta, kill_signal, lifecycle, volume mounts, log disabled, and any field not named here |

Meta counts as the task sees it: job, group and task meta merged. A change of restart.render_templates replaces.
"""

from __future__ import annotations

import msgspec

from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.service import Service
from nomadpy.models.task import Task
from nomadpy.models.task_blocks import LogConfig, RestartPolicy


def find_group(job: Job, name: str) -> TaskGroup | None:
    """Return the group of a job by its name."""
    return next((group for group in job.task_groups or () if group.name == name), None)


def same_version(job: Job | None, other: Job) -> bool:
    """Whether both are the same version of the same registration of a job."""
    return (
        job is not None and job.version == other.version and job.create_index == other.create_index
    )


def needs_replacement(old: Job, new: Job, group_name: str) -> bool:
    """Whether an allocation of `group_name` placed with `old` must be replaced to run as `new` says."""
    before, after = find_group(old, group_name), find_group(new, group_name)
    if before is None or after is None:
        return True
    if _job_view(old) != _job_view(new) or _group_view(before) != _group_view(after):
        return True
    old_tasks = {task.name: task for task in before.tasks or ()}
    new_tasks = {task.name: task for task in after.tasks or ()}
    if old_tasks.keys() != new_tasks.keys():
        return True
    return any(
        _task_view(old, before, task) != _task_view(new, after, new_tasks[name])
        for name, task in old_tasks.items()
    )


def _job_view(job: Job) -> tuple[object, ...]:
    return (
        job.affinities or None,
        job.spreads or None,
        job.payload or None,
        job.consul_namespace,
        job.vault_namespace,
    )


def _group_view(group: TaskGroup) -> TaskGroup:
    """The group with everything that may change in place left out; meta is compared by task."""
    return msgspec.structs.replace(
        group,
        count=0,
        constraints=None,
        tasks=None,
        meta=None,
        restart_policy=_restart_view(group.restart_policy),
        disconnect=None,
        reschedule_policy=None,
        update=None,
        migrate=None,
        services=_services_view(group.services),
        shutdown_delay=None,
        max_run_duration=None,
        stop_after_client_disconnect=None,
        max_client_disconnect=None,
        scaling=None,
        prevent_reschedule_on_lost=False,
        affinities=group.affinities or None,
        spreads=group.spreads or None,
        volumes=group.volumes or None,
        networks=group.networks or None,
    )


def _task_view(job: Job, group: TaskGroup, task: Task) -> Task:
    """The task with everything that may change in place left out, and its merged meta."""
    meta = {**(job.meta or {}), **(group.meta or {}), **(task.meta or {})}
    return msgspec.structs.replace(
        task,
        constraints=None,
        services=_services_view(task.services),
        restart_policy=_restart_view(task.restart_policy),
        meta=meta or None,
        kill_timeout=0,
        log_config=LogConfig(disabled=task.log_config.disabled if task.log_config else False),
        shutdown_delay=0,
        scaling_policies=None,
        actions=None,
        config=task.config or None,
        env=task.env or None,
        affinities=task.affinities or None,
        artifacts=task.artifacts or None,
        templates=task.templates or None,
        volume_mounts=task.volume_mounts or None,
    )


def _restart_view(policy: RestartPolicy | None) -> RestartPolicy:
    return RestartPolicy(render_templates=policy.render_templates if policy else False)


def _services_view(services: list[Service] | None) -> list[Service] | None:
    """Only services with Connect, whose sidecars are part of the allocation."""
    return [service for service in services or () if service.connect is not None] or None
