"""Read a task's free config map as a typed struct, with every fault named.

HCL blocks arrive as a list of maps even when there is one; attributes may be strings where numbers or flags are
meant. Both are accepted.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_type_hints

import msgspec

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


def merge_maps(value: Any) -> dict[str, Any]:
    """A map given as a map or as a list of maps (repeated or single HCL blocks); later ones win."""
    if isinstance(value, dict):
        return value
    return {key: item for part in value for key, item in part.items()}


def _convert(value: Any, kind: Any) -> Any:
    """Convert; a block in a list of one, or maps to be merged, are tried when the value as it is does not fit."""
    candidates = [value]
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        candidates.append(merge_maps(value))
    elif not isinstance(value, list):
        candidates.append([value])
    first: msgspec.ValidationError | None = None
    for candidate in candidates:
        try:
            return msgspec.convert(candidate, kind, strict=False)
        except msgspec.ValidationError as error:
            first = first or error
    assert first is not None
    raise first


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:]
