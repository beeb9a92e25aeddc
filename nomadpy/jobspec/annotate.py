"""Write into a job's difference what a plan would do about it: how many allocations of each group, and how each task changes."""

from __future__ import annotations

import msgspec

from nomadpy.models.annotations import DesiredUpdates, PlanAnnotations
from nomadpy.models.diff import FieldDiff, JobDiff, TaskDiff, TaskGroupDiff

CREATE, DESTROY = "forces create", "forces destroy"
IN_PLACE, REPLACE = "forces in-place update", "forces create/destroy update"

# Changes that a running task can take over.
_IN_PLACE_FIELDS = frozenset(("KillTimeout",))
_IN_PLACE_OBJECTS = frozenset(("LogConfig", "Service", "Constraint", "Affinity", "Spread"))


def annotate(diff: JobDiff, annotations: PlanAnnotations | None) -> JobDiff:
    """Return the difference with annotations; `annotations` are the scheduler's counts, or None without a scheduler."""
    desired = (annotations.desired_tg_updates if annotations else None) or {}
    groups = [_group(group, desired.get(group.name)) for group in diff.task_groups or []]
    return msgspec.structs.replace(diff, task_groups=groups or None)


def _group(group: TaskGroupDiff, desired: DesiredUpdates | None) -> TaskGroupDiff:
    return msgspec.structs.replace(
        group,
        updates=_updates(desired) if desired is not None else group.updates,
        fields=[_count(field) for field in group.fields] if group.fields else None,
        tasks=[_task(task, group.type) for task in group.tasks] if group.tasks else None,
    )


def _updates(desired: DesiredUpdates) -> dict[str, int]:
    named = {
        "ignore": desired.ignore,
        "create": desired.place,
        "migrate": desired.migrate,
        "destroy": desired.stop,
        "canary": desired.canary,
        "in-place update": desired.in_place_update,
        "create/destroy update": desired.destructive_update,
    }
    return {name: count for name, count in sorted(named.items()) if count}


def _count(field: FieldDiff) -> FieldDiff:
    if field.name != "Count":
        return field
    before, after = int(field.old or "0"), int(field.new or "0")
    if before == after:
        return field
    return _with(field, CREATE if before < after else DESTROY)


def _with(field: FieldDiff, note: str) -> FieldDiff:
    return msgspec.structs.replace(field, annotations=[*(field.annotations or []), note])


def _task(task: TaskDiff, group_type: str) -> TaskDiff:
    if task.type == "None":
        return task
    if group_type in ("Added", "Deleted"):
        note = CREATE if task.type == "Added" else DESTROY
    else:
        note = REPLACE if _replaces(task) else IN_PLACE
    return msgspec.structs.replace(task, annotations=[*(task.annotations or []), note])


def _replaces(task: TaskDiff) -> bool:
    return any(
        field.type != "None" and field.name not in _IN_PLACE_FIELDS for field in task.fields or []
    ) or any(one.name not in _IN_PLACE_OBJECTS for one in task.objects or [])
