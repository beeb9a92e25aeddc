"""Resolve `${...}` in what a job says, against what a node and a task are.

Environment keys are the text between the braces: `node.unique.id`, `attr.kernel.name`, `meta.rack`, `NOMAD_TASK_DIR`.
`env["X"]` and `env.X` stand for the variable X, and `attr["x.y"]` for `attr.x.y`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_REFERENCE = re.compile(r"\$\{([^${}]*)\}")
_SUBSCRIPT = re.compile(r"""\[\s*(["'])(.*?)\1\s*\]""")


def interpolate(text: str, env: Mapping[str, str]) -> str:
    """Return `text` with every known reference replaced; unknown ones stay as they are."""
    if "${" not in text:
        return text

    def value(found: re.Match[str]) -> str:
        resolved = lookup(found[1], env)
        return found[0] if resolved is None else resolved

    return _REFERENCE.sub(value, text)


def interpolate_value(value: Any, env: Mapping[str, str]) -> Any:
    """Return a copy of `value` with the strings in its lists and maps interpolated; map keys too."""
    if isinstance(value, str):
        return interpolate(value, env)
    if isinstance(value, Mapping):
        return {
            interpolate(key, env) if isinstance(key, str) else key: interpolate_value(item, env)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [interpolate_value(item, env) for item in value]
    return value


def lookup(reference: str, env: Mapping[str, str]) -> str | None:
    """Return what stands for the inside of a `${...}`, or None when it is unknown."""
    name = reference.strip()
    if name in env:
        return env[name]
    name = _SUBSCRIPT.sub(lambda found: "." + found[2], name)
    if name in env:
        return env[name]
    if name.startswith("env."):
        return env.get(name[4:])
    return env.get("env." + name)


def references(text: str) -> list[str]:
    """Return the inside of every `${...}` of the text, in order."""
    return [found.strip() for found in _REFERENCE.findall(text)]
