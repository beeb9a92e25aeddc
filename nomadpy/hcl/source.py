"""Where things stand in a text, and errors that show the place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from nomadpy.errors import DefiniteError


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text: line and column count from 1, offset from 0."""

    line: int
    column: int
    offset: int


@dataclass(frozen=True, slots=True)
class Span:
    """From the first character of something to just after its last."""

    start: Position
    end: Position


@dataclass(frozen=True)
class Source:
    """A text and what it is called."""

    name: str
    text: str

    def line(self, number: int) -> str:
        """The line with that number, without its end."""
        lines = self.text.split("\n")
        return lines[number - 1].rstrip("\r") if 0 < number <= len(lines) else ""


class HclError(DefiniteError):
    """The text breaks the language; the message shows file, line, column, the line itself and a caret."""

    code = "hcl"
    status = 400

    @classmethod
    def at(cls, source: Source, span: Span, what: str, suggestion: str = "") -> HclError:
        """An error that points at `span`.

        what: what is wrong, and what was expected. suggestion: what to write instead, or "".
        """
        start = span.start
        shown = source.line(start.line)
        number = str(start.line)
        width = max(1, span.end.column - start.column if span.end.line == start.line else 1)
        # Tabs stay tabs under the line, so that the caret stands where the eye expects it.
        lead = "".join("\t" if char == "\t" else " " for char in shown[: start.column - 1])
        text = (
            f"{source.name}:{start.line},{start.column}: {what}\n"
            f"  {number} | {shown}\n"
            f"  {' ' * len(number)} | {lead}{'^' * width}"
        )
        if suggestion:
            text += f"\n  {suggestion}"
        return cls(text, file=source.name, line=start.line, column=start.column, summary=what)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `Did you mean "x"?` for the known word nearest to `word`, or ""."""
    choices = list(known)
    close = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    return f'Did you mean "{close[0]}"?' if close else ""
