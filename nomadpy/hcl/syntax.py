"""The syntax tree: bodies of attributes and blocks, and expressions, each with its place in the text."""

from __future__ import annotations

from dataclasses import dataclass

from nomadpy.hcl.source import Source, Span
from nomadpy.hcl.tokens import Interpolation, Text


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, true, false or null."""

    value: int | float | bool | None
    span: Span


@dataclass(frozen=True, slots=True)
class Template:
    """Text, perhaps with interpolations, which are kept as written."""

    parts: tuple[Text | Interpolation, ...]
    span: Span

    @property
    def verbatim(self) -> str:
        """The text with its interpolations as written."""
        return "".join(p.value if isinstance(p, Text) else p.source for p in self.parts)


@dataclass(frozen=True, slots=True)
class Reference:
    """An unquoted name, with dots: `attr.kernel.name`. Its meaning is the evaluator's."""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class ListValue:
    """`[a, b]`."""

    items: tuple[Expression, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key = value` of an object; a key is text, since every key is written out here."""

    key: str
    key_span: Span
    value: Expression


@dataclass(frozen=True, slots=True)
class ObjectValue:
    """`{ key = value }`, and JSON's `{"key": value}`."""

    entries: tuple[Entry, ...]
    span: Span


Expression = Literal | Template | Reference | ListValue | ObjectValue


@dataclass(frozen=True, slots=True)
class Attribute:
    """`name = value`."""

    name: str
    name_span: Span
    value: Expression


@dataclass(frozen=True, slots=True)
class Label:
    """A label of a block."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Block:
    """`type "label" { body }`."""

    type: str
    type_span: Span
    labels: tuple[Label, ...]
    body: Body


@dataclass(frozen=True, slots=True)
class Body:
    """Attributes and blocks in the order they were written."""

    items: tuple[Attribute | Block, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed text."""

    source: Source
    body: Body
