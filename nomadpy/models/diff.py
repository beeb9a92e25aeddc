"""The structural difference of two jobs, as `job plan` shows it."""

from __future__ import annotations

from nomadpy.models.base import Wire


class FieldDiff(Wire, frozen=True, kw_only=True):
    type: str = ""
    name: str = ""
    old: str = ""
    new: str = ""
    annotations: list[str] | None = None


class ObjectDiff(Wire, frozen=True, kw_only=True):
    type: str = ""
    name: str = ""
    fields: list[FieldDiff] | None = None
    objects: list[ObjectDiff] | None = None


class TaskDiff(Wire, frozen=True, kw_only=True):
    type: str = ""
    name: str = ""
    fields: list[FieldDiff] | None = None
    objects: list[ObjectDiff] | None = None
    annotations: list[str] | None = None


class TaskGroupDiff(Wire, frozen=True, kw_only=True):
    type: str = ""
    name: str = ""
    fields: list[FieldDiff] | None = None
    objects: list[ObjectDiff] | None = None
    tasks: list[TaskDiff] | None = None
    updates: dict[str, int] | None = None


class JobDiff(Wire, frozen=True, kw_only=True):
    type: str = ""
    id: str = ""
    fields: list[FieldDiff] | None = None
    objects: list[ObjectDiff] | None = None
    task_groups: list[TaskGroupDiff] | None = None
