"""What a plan would do to each group, as `job plan` and evaluations tell it."""

from __future__ import annotations

from nomadpy.models.allocation import AllocationListStub
from nomadpy.models.base import Wire


class DesiredUpdates(Wire, frozen=True, kw_only=True):
    ignore: int = 0
    place: int = 0
    migrate: int = 0
    stop: int = 0
    in_place_update: int = 0
    destructive_update: int = 0
    canary: int = 0
    preemptions: int = 0
    disconnect: int = 0
    reconnect: int = 0
    reschedule_now: int = 0
    reschedule_later: int = 0


class PlanAnnotations(Wire, frozen=True, kw_only=True):
    desired_tg_updates: dict[str, DesiredUpdates] | None = None
    preempted_allocs: list[AllocationListStub] | None = None
