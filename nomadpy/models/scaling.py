"""Scaling policies and the record of scalings."""

from __future__ import annotations

from typing import Any

from nomadpy.models.base import Wire, always


class ScalingPolicy(Wire, frozen=True, kw_only=True, omit_defaults=True):
    min: int = always(lambda: 0)
    max: int = always(lambda: 0)
    policy: dict[str, Any] | None = always(lambda: None)
    enabled: bool = always(lambda: False)
    type: str = always(lambda: "")
    id: str = always(lambda: "")
    namespace: str = ""
    target: dict[str, str] | None = always(lambda: None)
    create_index: int = always(lambda: 0)
    modify_index: int = always(lambda: 0)


class ScalingPolicyListStub(Wire, frozen=True, kw_only=True):
    id: str = ""
    enabled: bool = False
    type: str = ""
    target: dict[str, str] | None = None
    create_index: int = 0
    modify_index: int = 0


class ScalingEvent(Wire, frozen=True, kw_only=True):
    count: int | None = None
    previous_count: int = 0
    error: bool = False
    message: str = ""
    meta: dict[str, Any] | None = None
    eval_id: str | None = None
    time: int = 0
    create_index: int = 0
