"""What a job may say that this version stores and does not act on. Pure.

Saying nothing would be worse than refusing: a periodic job that never launches looks like one that waits.
A capability that arrives takes its line out of here.
"""

from __future__ import annotations

from nomadpy.models.job import Job, TaskGroup
from nomadpy.models.task import Task


def without_effect(job: Job) -> list[str]:
    """Sentences for the reply of a registration; empty when all of the job is acted on."""
    notes: list[str] = []
    if job.periodic is not None and job.periodic.enabled:
        notes.append("periodic: the job is stored, and nothing launches it yet")
    if job.parameterized_job is not None:
        notes.append("parameterized: the job is stored, and dispatching it is not possible yet")
    if job.multiregion is not None:
        notes.append("multiregion has no effect: the job runs in this region only")
    for group in job.task_groups or []:
        notes += [f'group "{group.name}": {note}' for note in _group(group)]
    return notes


def _group(group: TaskGroup) -> list[str]:
    notes: list[str] = []
    update = group.update
    if update is not None and update.canary and update.auto_promote:
        notes.append(
            "update.auto_promote has no effect yet: canaries wait for `deployment promote`"
        )
    if update is not None and update.auto_revert:
        notes.append("update.auto_revert has no effect yet: a failed deployment stays as it is")
    if any(network.mode not in ("", "host", "none") for network in group.networks or []):
        notes.append(
            "no node offers networks other than the host's yet: the group cannot be placed"
        )
    if group.services or any(task.services for task in group.tasks or []):
        notes.append("services are not registered and their checks do not run yet")
    if group.scaling is not None:
        notes.append("scaling bounds hold for `job scale`; nothing scales by itself")
    for task in group.tasks or []:
        notes += [f'task "{task.name}": {note}' for note in _task(task)]
    return notes


def _task(task: Task) -> list[str]:
    refused = [
        name
        for name, block in (
            ("templates", task.templates),
            ("artifacts", task.artifacts),
            ("vault", task.vault),
        )
        if block
    ]
    return [f"{name} are not supported yet: the task will fail to start" for name in refused]
