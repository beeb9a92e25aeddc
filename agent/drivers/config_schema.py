"""Read a task's free config map as a typed struct, with every fault named.

HCL blocks arrive as a list of maps even when there is one; attributes may be strings where numbers or flags are
meant. Both are accepted.
"""

from __future__ import annotations

import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from nomadpy.jobspec.durations import SECOND, parse_duration

T = TypeVar("T", bound=msgspec.Struct)


def faults(config: dict[str, Any], schema: type[msgspec.Struct]) -> list[str]:
    """Every unknown, missing or ill-typed key of `config`, as sentences; [] when `decode` will succeed."""
    hints = get_type_hints(schema)
    found = [f"unknown key {key!r}" for key in sorted(config) if key not in hints]
    for field in msgspec.structs.fields(schema):
        value = config.get(field.name)
        if value is None:
            if field.required:
                found.append(f"{field.name} is required")
            continue
        try:
            _convert(value, hints[field.name])
        except msgspec.ValidationError as error:
            found.append(f"{field.name}: {_sentence(str(error))}")
    return found


def decode(config: dict[str, Any], schema: type[T]) -> T:
    """The typed config; None counts as absent. Raises ValueError with every fault."""
    if found := faults(config, schema):
        raise ValueError("; ".join(found))
    hints = get_type_hints(schema)
    return schema(**{k: _convert(v, hints[k]) for k, v in config.items() if v is not None})


def seconds(duration: str | float, what: str) -> float:
    """A Go duration text, or plain seconds, as seconds. Raises ValueError that names `what`."""
    if not isinstance(duration, str):
        return float(duration)
    try:
        return parse_duration(duration) / SECOND
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _convert(value: Any, kind: Any) -> Any:
    return msgspec.convert(_shaped(value, kind), kind, strict=False)


def _shaped(value: Any, kind: Any) -> Any:
    """Bring blocks into the shape of `kind`: one map out of a list of them, or a list out of one."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        merged = _merged(value)
        if isinstance(merged, dict):
            hints = get_type_hints(kind)
            return {k: _shaped(v, hints.get(k)) for k, v in merged.items() if v is not None}
        return merged
    origin = get_origin(kind)
    if origin is dict:
        return _merged(value)
    if origin is list:
        (inner,) = get_args(kind)
        items = value if isinstance(value, list) else [value]
        return [_shaped(item, inner) for item in items]
    if origin in (Union, types.UnionType):
        choices = [choice for choice in get_args(kind) if choice is not type(None)]
        return _shaped(value, choices[0]) if len(choices) == 1 else value
    return value


def _merged(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return {key: item for part in value for key, item in part.items()}
    return value


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:]
