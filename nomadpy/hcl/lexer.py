"""Text to tokens: names, numbers, strings, heredocs, operators; comments are dropped.

Serves both generations of the language: agent configuration and JSON today, HCL2 expressions as they come.
"""

from __future__ import annotations

import re

from nomadpy.hcl.source import HclError, Position, Source, Span
from nomadpy.hcl.tokens import Interpolation, Kind, Text, Token

_NAME = re.compile(r"[^\W\d][\w-]*")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_HEREDOC = re.compile(r"<<(-?)([^\W\d][\w-]*)[ \t]*\r?\n")
_PUNCTUATION = re.compile(r"\.\.\.|=>|==|!=|<=|>=|&&|\|\||[{}\[\]()=:,.?*/%+\-<>!&|]")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f"}
_BLANK = " \t\r\ufeff"


def tokenize(source: Source) -> list[Token]:
    """Return the tokens of the text, ended by an END token. Raises HclError."""
    return _Lexer(source).run()


class _Lexer:
    """One pass over a text."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._text = source.text
        self._at = 0
        self._line = 1
        self._line_start = 0
        self._tokens: list[Token] = []

    def run(self) -> list[Token]:
        while self._at < len(self._text):
            self._step()
        self._add(Kind.END, self._here(), "")
        return self._tokens

    def _step(self) -> None:
        char = self._text[self._at]
        start = self._here()
        if char in _BLANK:
            self._at += 1
        elif char == "\n":
            self._advance_line()
            self._add(Kind.NEWLINE, start, "\n")
        elif char == "#" or self._text.startswith("//", self._at):
            end = self._text.find("\n", self._at)
            self._at = len(self._text) if end < 0 else end
        elif self._text.startswith("/*", self._at):
            self._block_comment(start)
        elif char == '"':
            self._string(start)
        elif self._text.startswith("<<", self._at) and _HEREDOC.match(self._text, self._at):
            self._heredoc(start)
        else:
            self._word(start, char)

    def _word(self, start: Position, char: str) -> None:
        number = _NUMBER.match(self._text, self._at)
        if number:
            self._number(start, number.group())
            return
        for kind, pattern in ((Kind.IDENTIFIER, _NAME), (Kind.PUNCTUATION, _PUNCTUATION)):
            found = pattern.match(self._text, self._at)
            if found:
                self._at = found.end()
                self._add(kind, start, found.group())
                return
        hint = 'Text is written in double quotes: "..."' if char in "'`“”" else ""
        raise HclError.at(
            self._source, self._span(start, 1), f"unexpected character {char!r}", hint
        )

    def _number(self, start: Position, text: str) -> None:
        self._at += len(text)
        unit = _NAME.match(self._text, self._at)
        if unit:
            whole = text + unit.group()
            raise HclError.at(
                self._source,
                self._span(start, len(whole)),
                f"a number cannot be followed by {unit.group()!r}",
                f'A value with a unit is text: "{whole}"',
            )
        self._add(Kind.NUMBER, start, text)

    def _block_comment(self, start: Position) -> None:
        end = self._text.find("*/", self._at + 2)
        if end < 0:
            raise HclError.at(
                self._source, self._span(start, 2), "this comment has no end", 'Close it with "*/".'
            )
        while (newline := self._text.find("\n", self._at, end)) >= 0:
            self._at = newline
            self._advance_line()
        self._at = end + 2

    def _string(self, start: Position) -> None:
        self._at += 1
        parts: list[Text | Interpolation] = []
        plain: list[str] = []
        while True:
            char = self._text[self._at : self._at + 1]
            if char in ("", "\n"):
                raise HclError.at(
                    self._source,
                    self._span(start, 1),
                    "this text has no closing quote on its line",
                    'Close it with ", or write text of several lines as <<EOF ... EOF.',
                )
            if char == '"':
                self._at += 1
                break
            if char == "\\":
                plain.append(self._escape())
            elif self._text.startswith(("$${", "%%{"), self._at):
                plain.append(char + "{")
                self._at += 3
            elif self._text.startswith(("${", "%{"), self._at):
                self._flush(plain, parts)
                parts.append(self._interpolation())
            else:
                plain.append(char)
                self._at += 1
        self._flush(plain, parts)
        self._add_string(start, parts)

    def _interpolation(self) -> Interpolation:
        """The whole `${...}`, with strings and braces inside it balanced; kept as written."""
        start = self._here()
        depth = 0
        begin = self._at
        while True:
            char = self._text[self._at : self._at + 1]
            if char == "" or (char == "\n" and depth == 0):
                raise HclError.at(
                    self._source, self._span(start, 2), 'this "${" has no closing brace'
                )
            if char == '"':
                self._skip_inner_string(start)
                continue
            if char == "\n":
                self._advance_line()
                continue
            self._at += 1
            if char == "{":
                depth += 1
            elif char == "}":
                depth -= 1
                if depth == 0:
                    break
        return Interpolation(self._text[begin : self._at], Span(start, self._here()))

    def _skip_inner_string(self, start: Position) -> None:
        self._at += 1
        while True:
            char = self._text[self._at : self._at + 1]
            if char in ("", "\n"):
                raise HclError.at(
                    self._source, self._span(start, 2), 'this "${" has no closing brace'
                )
            self._at += 2 if char == "\\" else 1
            if char == '"':
                return

    def _escape(self) -> str:
        start = self._here()
        letter = self._text[self._at + 1 : self._at + 2]
        if letter in _ESCAPES:
            self._at += 2
            return _ESCAPES[letter]
        width = {"u": 4, "U": 8}.get(letter, 0)
        digits = self._text[self._at + 2 : self._at + 2 + width]
        if (
            not width
            or len(digits) < width
            or not all(d in "0123456789abcdefABCDEF" for d in digits)
        ):
            raise HclError.at(
                self._source,
                self._span(start, 2),
                f"unknown escape \\{letter}",
                r"Known are \n \r \t \" \\ \uXXXX; a backslash itself is \\.",
            )
        self._at += 2 + width
        code = int(digits, 16)
        if 0xD800 <= code < 0xDC00:
            code = self._low_surrogate(code)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            return "\ufffd"
        return chr(code)

    def _low_surrogate(self, high: int) -> int:
        """Join the second half of a pair, as JSON writes characters above U+FFFF."""
        found = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})").match(self._text, self._at)
        if not found:
            return high
        self._at = found.end()
        return 0x10000 + ((high - 0xD800) << 10) + (int(found[1], 16) - 0xDC00)

    def _heredoc(self, start: Position) -> None:
        opening = _HEREDOC.match(self._text, self._at)
        assert opening is not None  # the caller looked
        indented, word = opening.group(1) == "-", opening.group(2)
        self._at = opening.end() - 1
        self._advance_line()
        lines: list[str] = []
        while True:
            if self._at >= len(self._text):
                raise HclError.at(
                    self._source,
                    self._span(start, 2 + len(word)),
                    f"this text has no closing {word}",
                    f"End it with a line that holds only {word}.",
                )
            end = self._text.find("\n", self._at)
            line = self._text[self._at : end if end >= 0 else len(self._text)].rstrip("\r")
            if line.strip(" \t") == word:
                # The newline after the closing word is a token of its own.
                self._at += len(line)
                break
            lines.append(line)
            if end < 0:
                self._at = len(self._text)
            else:
                self._at = end
                self._advance_line()
        if indented:
            lines = _without_indent(lines)
        text = "".join(line + "\n" for line in lines)
        self._add_string(start, [Text(text)] if text else [])

    def _flush(self, plain: list[str], parts: list[Text | Interpolation]) -> None:
        if plain:
            parts.append(Text("".join(plain)))
            plain.clear()

    def _here(self) -> Position:
        return Position(self._line, self._at - self._line_start + 1, self._at)

    def _span(self, start: Position, width: int) -> Span:
        return Span(start, Position(start.line, start.column + width, start.offset + width))

    def _advance_line(self) -> None:
        self._at += 1
        self._line += 1
        self._line_start = self._at

    def _add(self, kind: Kind, start: Position, text: str) -> None:
        self._tokens.append(Token(kind, text, Span(start, self._span(start, len(text)).end)))

    def _add_string(self, start: Position, parts: list[Text | Interpolation]) -> None:
        written = self._text[start.offset : self._at]
        self._tokens.append(Token(Kind.STRING, written, Span(start, self._here()), tuple(parts)))


def _without_indent(lines: list[str]) -> list[str]:
    """Remove the indent that all lines share; blank lines do not count."""
    indents = [len(line) - len(line.lstrip(" \t")) for line in lines if line.strip()]
    least = min(indents, default=0)
    return [line[least:] if line.strip() else line.lstrip(" \t") for line in lines]
