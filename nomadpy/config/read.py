"""A syntax tree to settings: names, kinds and units checked against the model, each value with its place.

Keys match in any case. A JSON block may be an object or a list of objects. Labelled blocks are maps by label.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Union, get_args, get_origin

import msgspec

from nomadpy.config.model import Settings
from nomadpy.errors import ConfigError
from nomadpy.hcl.durations import parse_duration
from nomadpy.hcl.source import HclError, Source, Span, did_you_mean
from nomadpy.hcl.syntax import (
    Attribute,
    Body,
    Document,
    Expression,
    ListValue,
    Literal,
    ObjectValue,
    Reference,
    Template,
)

Layer = dict[str, Any]
"""Settings that were made, nested by name; nothing that was not."""

APPENDED = frozenset(
    (
        "server.start_join",
        "server.retry_join",
        "server.server_join.start_join",
        "server.server_join.retry_join",
        "client.servers",
    )
)
"""Lists to which later layers add, where all other values are replaced."""


@dataclass
class Said:
    """What one source of settings says."""

    settings: Layer = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def put(self, path: str, value: Any, origin: str) -> None:
        """Set the value at a dotted path of the model (never inside a free map)."""
        *outer, last = path.split(".")
        here = self.settings
        for name in outer:
            here = here.setdefault(name, {})
        here[last] = value
        self.origins[path] = origin

    def merge(self, later: Said) -> None:
        """Lay a later source over this one."""
        _merge(self.settings, later.settings, "")
        self.origins.update(later.origins)


def read_document(document: Document) -> Said:
    """Return what the file says. Raises ConfigError with file, line and a suggestion."""
    said = Said()
    try:
        _Reader(document.source, said).block(Settings, _Part(body=document.body), "", said.settings)
    except HclError as fault:
        raise ConfigError(fault.message, **fault.details) from fault
    return said


def _merge(under: Layer, over: Layer, path: str) -> None:
    for name, value in over.items():
        inner = f"{path}.{name}" if path else name
        known = under.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            _merge(known, value, inner)
        elif inner in APPENDED and isinstance(known, list):
            under[name] = [*known, *(one for one in value if one not in known)]
        else:
            under[name] = value


@dataclass(frozen=True)
class _Part:
    """A block however it is written: a body or an object."""

    body: Body | None = None
    value: ObjectValue | None = None

    @property
    def span(self) -> Span:
        shown = self.body or self.value
        assert shown is not None  # one of them is given
        return shown.span

    def items(self) -> Iterator[tuple[str, Span, tuple[str, ...], _Part | Expression]]:
        """Name, its place, labels, and the block or value of each thing in it."""
        if self.value is not None:
            for entry in self.value.entries:
                yield entry.key, entry.key_span, (), entry.value
        for item in self.body.items if self.body else ():
            if isinstance(item, Attribute):
                yield item.name, item.name_span, (), item.value
            else:
                labels = tuple(label.text for label in item.labels)
                yield item.type, item.type_span, labels, _Part(body=item.body)


class _Reader:
    """Reads one file."""

    def __init__(self, source: Source, said: Said) -> None:
        self._source = source
        self._said = said

    def block(self, kind: type[msgspec.Struct], part: _Part, path: str, out: Layer) -> None:
        """Read the settings of a block into `out`."""
        fields = _fields(kind)
        for name, span, labels, item in part.items():
            known = fields.get(name.lower())
            if known is None:
                where = f" in {path}" if path else ""
                hint = did_you_mean(name, fields) or f"Known{where}: {', '.join(sorted(fields))}."
                raise HclError.at(self._source, span, f"unknown setting {name!r}{where}", hint)
            wire, hint_type = known
            inner = f"{path}.{wire}" if path else wire
            self._said.origins[inner] = f"{self._source.name}:{span.start.line}"
            self._setting(hint_type, wire, labels, item, span, inner, out)

    def _setting(
        self,
        hint: Any,
        name: str,
        labels: tuple[str, ...],
        item: _Part | Expression,
        span: Span,
        path: str,
        out: Layer,
    ) -> None:
        kind = _without_none(hint)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if labels:
                raise HclError.at(self._source, span, f"the block {name!r} takes no label")
            for part in self._parts(item, name, span):
                self.block(kind, part, path, out.setdefault(name, {}))
            return
        if get_origin(kind) is dict:
            self._map(get_args(kind)[1], name, labels, item, span, path, out.setdefault(name, {}))
            return
        if labels or isinstance(item, _Part):
            raise HclError.at(
                self._source, span, f"{path} is a setting, not a block", f"Write {name} = value."
            )
        out[name] = self._value(kind, item, path)

    def _map(
        self,
        value_kind: Any,
        name: str,
        labels: tuple[str, ...],
        item: _Part | Expression,
        span: Span,
        path: str,
        out: Layer,
    ) -> None:
        """A map: of text, of anything, or of blocks by their label."""
        parts = self._parts(item, name, span)
        if value_kind is str:
            for part in parts:
                for key, _key_span, _labels, value in part.items():
                    if isinstance(value, _Part):
                        raise HclError.at(self._source, value.span, f"{path}.{key} must be text")
                    out[key] = self._value(str, value, f"{path}.{key}")
        elif value_kind is Any:
            for part in parts:
                _deep(out, self._free(part))
        elif name in ("consul", "vault") and not labels and not _holds_labels(parts):
            # These may stand without a label, which then is "default".
            for part in parts:
                _deep(out.setdefault("default", {}), self._free(part))
        elif not labels and isinstance(item, _Part):
            raise HclError.at(
                self._source,
                span,
                f"the block {name!r} needs a label",
                f'Write {name} "name" {{ ... }}.',
            )
        else:
            self._labelled(value_kind, name, labels, parts, span, path, out)

    def _labelled(
        self,
        value_kind: Any,
        name: str,
        labels: tuple[str, ...],
        parts: list[_Part],
        span: Span,
        path: str,
        out: Layer,
    ) -> None:
        if len(labels) > 1:
            raise HclError.at(self._source, span, f"the block {name!r} takes one label")
        pairs: list[tuple[str, _Part]]
        if labels:
            pairs = [(labels[0], part) for part in parts]
        else:
            pairs = []
            for part in parts:
                for key, key_span, inner_labels, item in part.items():
                    if inner_labels or not isinstance(item, _Part | ObjectValue | ListValue):
                        raise HclError.at(
                            self._source,
                            span,
                            f"the block {name!r} needs a label",
                            f'Write {name} "name" {{ ... }}.',
                        )
                    pairs += [(key, one) for one in self._parts(item, key, key_span)]
        for label, part in pairs:
            if isinstance(value_kind, type) and issubclass(value_kind, msgspec.Struct):
                self.block(value_kind, part, f"{path}.{label}", out.setdefault(label, {}))
            else:
                _deep(out.setdefault(label, {}), self._free(part))

    def _parts(self, item: _Part | Expression, name: str, span: Span) -> list[_Part]:
        """The blocks that an item holds: itself, an object, or a list of objects."""
        if isinstance(item, _Part):
            return [item]
        if isinstance(item, ObjectValue):
            return [_Part(value=item)]
        if isinstance(item, ListValue):
            return [part for one in item.items for part in self._parts(one, name, span)]
        raise HclError.at(
            self._source, span, f"{name!r} is a block, not a setting", f"Write {name} {{ ... }}."
        )

    def _free(self, part: _Part) -> Layer:
        """A free map as plain values; blocks of the same name are merged, labels nest."""
        out: Layer = {}
        for key, _span, labels, item in part.items():
            value: Any = self._free(item) if isinstance(item, _Part) else self._plain(item)
            for label in reversed(labels):
                value = {label: value}
            if isinstance(value, dict) and isinstance(out.get(key), dict):
                _deep(out[key], value)
            else:
                out[key] = value
        return out

    def _plain(self, value: Expression) -> Any:
        if isinstance(value, Literal):
            return value.value
        if isinstance(value, Template):
            return value.verbatim
        if isinstance(value, ListValue):
            return [self._plain(one) for one in value.items]
        if isinstance(value, ObjectValue):
            return self._free(_Part(value=value))
        raise self._unquoted(value)

    def _value(self, kind: Any, value: Expression, path: str) -> Any:
        if get_origin(kind) is list:
            # One value stands for a list of one.
            items = value.items if isinstance(value, ListValue) else (value,)
            return [self._value(get_args(kind)[0], one, path) for one in items]
        if isinstance(value, Reference):
            if kind is str:
                raise self._unquoted(value)
            raise HclError.at(self._source, value.span, f"{path} must be {_READERS[kind][1]}")
        if isinstance(value, ListValue) and len(value.items) == 1:
            return self._value(kind, value.items[0], path)
        plain = self._plain(value)
        reader, wanted = _READERS[kind]
        try:
            return reader(plain)
        except ValueError as fault:
            detail = f": {fault}" if str(fault) else ""
            raise HclError.at(
                self._source, value.span, f"{path} must be {wanted}{detail}"
            ) from None

    def _unquoted(self, value: Reference) -> HclError:
        return HclError.at(
            self._source,
            value.span,
            f"the name {value.name!r} has no meaning here",
            f'Text is written in double quotes: "{value.name}"',
        )


def _holds_labels(parts: list[_Part]) -> bool:
    """Whether everything in the blocks is a block itself."""
    items = [item for part in parts for _name, _span, _labels, item in part.items()]
    return bool(items) and all(isinstance(one, _Part | ObjectValue | ListValue) for one in items)


def _deep(under: Layer, over: Layer) -> None:
    for key, value in over.items():
        known = under.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            _deep(known, value)
        else:
            under[key] = value


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, tuple[str, Any]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: (name, hints[name]) for name in kind.__struct_fields__}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(arg for arg in get_args(hint) if arg is not type(None))
    if get_origin(hint) is typing.Annotated:
        return "duration"
    return hint


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    raise ValueError


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "1", "false", "0"):
        return value.lower() in ("true", "1")
    raise ValueError


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        return int(value) if value.strip("+-").isdecimal() else _refuse()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError


def _decimal(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        return float(value)
    raise ValueError


def _span_ns(value: Any) -> int:
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError('a unit is missing, as in "10s"')


def _refuse() -> int:
    raise ValueError


_READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    str: (_text, "text"),
    bool: (_flag, "true or false"),
    int: (_whole, "a whole number"),
    float: (_decimal, "a number"),
    "duration": (_span_ns, 'a duration such as "30s"'),
}


def read_flag(path: str, value: Any, flag: str) -> Any:
    """Return a flag's value as the setting at `path` has it. Raises ConfigError."""
    kind: Any = Settings
    for name in path.split("."):
        kind = _without_none(_fields(kind)[name][1])
    if get_origin(kind) is list:
        many = value if isinstance(value, list | tuple) else str(value).split(",")
        return [str(one).strip() for one in many if str(one).strip()]
    if get_origin(kind) is dict:
        return _pairs(value, flag)
    reader, wanted = _READERS[kind]
    try:
        return reader(value)
    except ValueError as fault:
        detail = f": {fault}" if str(fault) else ""
        raise ConfigError(f"-{flag} must be {wanted}{detail}, not {value!r}") from None


def _pairs(value: Any, flag: str) -> dict[str, str]:
    if isinstance(value, dict):
        return {str(key): _text(one) for key, one in value.items()}
    out: dict[str, str] = {}
    for one in [value] if isinstance(value, str) else value:
        key, sign, text = str(one).partition("=")
        if not sign or not key:
            raise ConfigError(f"-{flag} must be key=value, not {one!r}")
        out[key] = text
    return out
