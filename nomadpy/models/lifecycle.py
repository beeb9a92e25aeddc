"""When a task runs relative to the main tasks of its group."""

from __future__ import annotations

from nomadpy.models.base import Wire


class TaskLifecycle(Wire, frozen=True, kw_only=True):
    hook: str = ""
    sidecar: bool = False
