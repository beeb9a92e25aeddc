"""The words of the language."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nomadpy.hcl.source import Span


class Kind(StrEnum):
    """What a token is. PUNCTUATION holds operators, brackets and separators."""

    IDENTIFIER = "a name"
    NUMBER = "a number"
    STRING = "text"
    PUNCTUATION = "punctuation"
    NEWLINE = "the end of the line"
    END = "the end of the file"


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a string that stands for itself, escapes resolved."""

    value: str


@dataclass(frozen=True, slots=True)
class Interpolation:
    """A `${...}` or `%{...}` of a string, kept as written; `source` includes the marks."""

    source: str
    span: Span


@dataclass(frozen=True, slots=True)
class Token:
    """One word. text: as written. parts: of a STRING only."""

    kind: Kind
    text: str
    span: Span
    parts: tuple[Text | Interpolation, ...] = ()

    def describe(self) -> str:
        """What an error calls it."""
        if self.kind in (Kind.NEWLINE, Kind.END):
            return str(self.kind.value)
        return f'"{self.text}"' if self.kind is not Kind.STRING else "text in quotes"
