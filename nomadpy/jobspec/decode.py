"""JSON as Go reads it: from a request body to plain values in wire case.

Keys match in any case, unknown keys are dropped, null means absent, durations are nanoseconds or Go's text,
[]byte is base64. Presence is kept, because a missing count and a count of 0 are not the same.
Not here: defaults (canonicalize.py), rules (validate.py).
"""

from __future__ import annotations

import base64
import binascii
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Union, get_args, get_origin

import msgspec

from nomadpy.errors import InvalidRequestError
from nomadpy.jobspec.durations import parse_duration
from nomadpy.jobspec.json_errors import syntax_error
from nomadpy.models.task_blocks import LogConfig

MAX_DEPTH = 100
"""Deepest nesting of a free map such as a driver's config."""

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1

# Keys that requests may carry though the stored form has no field for them; canonicalize.py consumes them.
_REQUEST_ONLY: dict[type, dict[str, Any]] = {LogConfig: {"Enabled": bool}}

_Decoder = Callable[[Any, str, str], Any]
"""(value, name of the Go struct that holds it, path from the root) to the decoded value."""


def decode_body(body: bytes, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Parse a JSON request body and decode it as `kind`.

    Raises InvalidRequestError (400) for an empty body, broken JSON, nesting too deep, or values of the wrong kind.
    """
    return decode(load_json(body), kind)


def load_json(body: bytes) -> Any:
    """Parse JSON text. Raises InvalidRequestError (400) and never RecursionError."""
    if not body:
        raise InvalidRequestError("Request body is empty")
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise InvalidRequestError("json: exceeded max depth") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = body.decode("utf-8", "replace")
        raise InvalidRequestError(syntax_error(text)) from None


def decode(raw: object, kind: type[msgspec.Struct], *, path: str = "") -> dict[str, Any]:
    """Return `raw` (parsed JSON) as a dict whose keys are the wire names of `kind`, nested likewise.

    path: where `raw` stands in the request, for error texts: decode(body["Job"], Job, path="Job").
    Raises InvalidRequestError (400) that names the field, as Go's encoding/json does.
    """
    if raw is None:
        return {}
    out: dict[str, Any] = _struct_decoder(kind)(raw, kind.__name__, path)
    return out


@cache
def _struct_decoder(kind: type[msgspec.Struct]) -> _Decoder:
    """Build the decoder of one struct; fields are resolved at the first use, since structs may be recursive."""
    hints = typing.get_type_hints(kind, include_extras=True)
    table: dict[str, tuple[str, _Decoder]] = {}
    names = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
    for python_name, wire in names:
        table[wire] = (wire, _decoder(hints[python_name]))
    for wire, hint in _REQUEST_ONLY.get(kind, {}).items():
        table[wire] = (wire, _decoder(hint))
    folded = {wire.lower(): entry for wire, entry in table.items()}
    name = kind.__name__

    def decode_struct(value: Any, holder: str, path: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise _mismatch(value, holder, path, _go_package(name))
        out: dict[str, Any] = {}
        for key, item in value.items():
            entry = table.get(key) or folded.get(key.lower())
            if entry is None or item is None:
                continue
            wire, decoder = entry
            out[wire] = decoder(item, name, f"{path}.{wire}" if path else wire)
        return out

    return decode_struct


def _decoder(hint: Any) -> _Decoder:
    """Return the decoder of an annotation of the models."""
    origin = get_origin(hint)
    if origin is typing.Annotated:
        inner, meta = get_args(hint)[0], get_args(hint)[1:]
        if any(
            (getattr(m, "extra_json_schema", None) or {}).get("x-go") == "duration" for m in meta
        ):
            return _duration
        return _decoder(inner)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(hint) if arg is not type(None))
        return _decoder(inner)
    if origin is list:
        return _list_decoder(get_args(hint)[0])
    if origin is dict:
        return _map_decoder(get_args(hint)[1])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        struct: type[msgspec.Struct] = hint
        return lambda value, holder, path: _struct_decoder(struct)(value, holder, path)
    return _SCALARS[hint]


def _list_decoder(item_hint: Any) -> _Decoder:
    item = _decoder(item_hint)
    go_type = f"[]{_go_type(item_hint)}"
    # A null among structs is a nil pointer, which nobody can mean; among scalars it is Go's zero value.
    zero = _ZEROS.get(item_hint)

    def decode_list(value: Any, holder: str, path: str) -> list[Any]:
        if type(value) is not list:
            raise _mismatch(value, holder, path, go_type)
        return [
            item(one, holder, path) if one is not None else zero
            for one in value
            if one is not None or zero is not None
        ]

    return decode_list


def _map_decoder(value_hint: Any) -> _Decoder:
    if value_hint is Any:
        return _free_map
    item = _decoder(value_hint)
    go_type = f"map[string]{_go_type(value_hint)}"
    zero = _ZEROS.get(value_hint)

    def decode_map(value: Any, holder: str, path: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise _mismatch(value, holder, path, go_type)
        return {
            key: item(one, holder, path) if one is not None else zero
            for key, one in value.items()
            if one is not None or zero is not None
        }

    return decode_map


def _free_map(value: Any, holder: str, path: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise _mismatch(value, holder, path, "map[string]interface {}")
    _check_depth(value, MAX_DEPTH)
    return value


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise InvalidRequestError("json: exceeded max depth")
    if type(value) is dict:
        for item in value.values():
            _check_depth(item, left - 1)
    elif type(value) is list:
        for item in value:
            _check_depth(item, left - 1)


def _string(value: Any, holder: str, path: str) -> str:
    if type(value) is not str:
        raise _mismatch(value, holder, path, "string")
    return value


def _bool(value: Any, holder: str, path: str) -> bool:
    if type(value) is not bool:
        raise _mismatch(value, holder, path, "bool")
    return value


def _int(value: Any, holder: str, path: str) -> int:
    if type(value) is not int or not _INT_MIN <= value <= _INT_MAX:
        raise _mismatch(value, holder, path, "int")
    return value


def _float(value: Any, holder: str, path: str) -> float:
    if type(value) not in (int, float):
        raise _mismatch(value, holder, path, "float64")
    return float(value)


def _duration(value: Any, holder: str, path: str) -> int:
    if type(value) is str:
        try:
            return parse_duration(value)
        except ValueError as cause:
            raise InvalidRequestError(f"{holder}.{path}: {cause}") from cause
    if type(value) is not int or not _INT_MIN <= value < 1 << 63:
        raise _mismatch(value, holder, path, "time.Duration")
    return value


def _bytes(value: Any, holder: str, path: str) -> bytes:
    if type(value) is not str:
        raise _mismatch(value, holder, path, "[]uint8")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except binascii.Error as cause:
        raise InvalidRequestError(f"illegal base64 data in {holder}.{path}: {cause}") from cause


def _any(value: Any, _holder: str, _path: str) -> Any:
    _check_depth(value, MAX_DEPTH)
    return value


_SCALARS: dict[Any, _Decoder] = {
    str: _string,
    bool: _bool,
    int: _int,
    float: _float,
    bytes: _bytes,
    Any: _any,
}
_ZEROS: dict[Any, Any] = {str: "", int: 0, float: 0.0, bool: False}
_GO_NAMES: dict[Any, str] = {
    str: "string",
    int: "int",
    float: "float64",
    bool: "bool",
    Any: "interface {}",
}


def _go_type(hint: Any) -> str:
    if hint in _GO_NAMES:
        return _GO_NAMES[hint]
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _go_type(next(arg for arg in get_args(hint) if arg is not type(None)))
    if origin is list:
        return f"[]{_go_type(get_args(hint)[0])}"
    if isinstance(hint, type):
        return f"*{_go_package(hint.__name__)}"
    return "interface {}"


def _go_package(name: str) -> str:
    return f"api.{name}"


def _mismatch(value: Any, holder: str, path: str, go_type: str) -> InvalidRequestError:
    if not path:
        return InvalidRequestError(
            f"json: cannot unmarshal {_describe(value)} into Go value of type {go_type}"
        )
    return InvalidRequestError(
        f"json: cannot unmarshal {_describe(value)} into Go struct field {holder}.{path} of type {go_type}"
    )


def _describe(value: Any) -> str:
    if type(value) is bool:
        return "bool"
    if type(value) is str:
        return "string"
    if type(value) is list:
        return "array"
    if type(value) is dict:
        return "object"
    if type(value) is int and _INT_MIN <= value <= _INT_MAX:
        return "number"
    return f"number {value}"
