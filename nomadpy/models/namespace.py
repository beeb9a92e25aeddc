"""Namespaces: the spaces that job names live in."""

from __future__ import annotations

from typing import Any

from nomadpy.models.base import Wire


class Namespace(Wire, frozen=True, kw_only=True):
    """hash: base64 of a digest of the other fields. The configurations are the wire's, kept as they are."""

    name: str = ""
    description: str = ""
    quota: str = ""
    capabilities: dict[str, Any] | None = None
    node_pool_configuration: dict[str, Any] | None = None
    vault_configuration: dict[str, Any] | None = None
    consul_configuration: dict[str, Any] | None = None
    meta: dict[str, str] | None = None
    required_extra_claims: dict[str, str] | None = None
    optional_extra_claims: dict[str, str] | None = None
    hash: str | None = None
    create_index: int = 0
    modify_index: int = 0
