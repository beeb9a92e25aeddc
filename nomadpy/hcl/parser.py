"""Tokens to a syntax tree: bodies, blocks, attributes and their values.

Lenient where agent configuration has always been: attributes of one block may share a line, names may be quoted, a block
may be assigned (`server = { ... }`), lists and objects may end with a comma.
"""

from __future__ import annotations

from nomadpy.hcl.lexer import tokenize
from nomadpy.hcl.source import HclError, Position, Source, Span
from nomadpy.hcl.syntax import (
    Attribute,
    Block,
    Body,
    Document,
    Entry,
    Expression,
    Label,
    ListValue,
    Literal,
    ObjectValue,
    Reference,
    Template,
)
from nomadpy.hcl.tokens import Kind, Token

MAX_DEPTH = 100

_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}


def parse(text: str, *, name: str = "input.hcl") -> Document:
    """Parse a configuration. name: what errors call it. Raises HclError."""
    source = Source(name, text)
    return Document(source, _Parser(source).document())


def parse_json(text: str, *, name: str = "input.json") -> Document:
    """Parse the JSON form, whose top level is one object, into the same tree. Raises HclError."""
    source = Source(name, text)
    value = _Parser(source).value()
    if not isinstance(value, ObjectValue):
        raise HclError.at(source, value.span, "a configuration is an object: { ... }")
    items = tuple(Attribute(entry.key, entry.key_span, entry.value) for entry in value.entries)
    return Document(source, Body(items, value.span))


class _Parser:
    """Recursive descent with one token of look-ahead."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tokens = tokenize(source)
        self._at = 0
        self._depth = 0

    def document(self) -> Body:
        """The whole text as a body."""
        return self._body(closed_by=None)

    def value(self) -> Expression:
        """The whole text as one value."""
        self._skip_newlines()
        value = self._expression()
        self._skip_newlines()
        token = self._peek()
        if token.kind is not Kind.END:
            raise self._fault(token, f"expected the end of the file, found {token.describe()}")
        return value

    def _body(self, closed_by: Token | None) -> Body:
        """Items up to the closing brace, or to the end of the file when there is no opening one."""
        start = (closed_by or self._peek()).span.start
        items: list[Attribute | Block] = []
        while True:
            self._skip_separators()
            token = self._peek()
            if token.kind is Kind.END:
                if closed_by is not None:
                    raise self._fault(
                        closed_by, "this block has no closing brace", 'Close it with "}".'
                    )
                break
            if self._is(token, "}"):
                if closed_by is None:
                    raise self._fault(
                        token, "this brace closes nothing", "Remove it, or open its block."
                    )
                self._next()
                break
            items.append(self._item())
        return Body(tuple(items), Span(start, self._previous_end()))

    def _item(self) -> Attribute | Block:
        name = self._next()
        if name.kind not in (Kind.IDENTIFIER, Kind.STRING):
            raise self._fault(
                name, f"expected the name of a setting or block, found {name.describe()}"
            )
        text = self._name_text(name)
        token = self._peek()
        if self._is(token, "=") or self._is(token, ":"):
            self._next()
            self._expect_value_on_line(token)
            return Attribute(text, name.span, self._expression())
        labels: list[Label] = []
        while self._peek().kind in (Kind.IDENTIFIER, Kind.STRING):
            label = self._next()
            labels.append(Label(self._name_text(label), label.span))
        token = self._next()
        if not self._is(token, "{"):
            raise self._fault(
                token,
                f'expected "=" or "{{" after "{text}", found {token.describe()}',
                f"A setting is written {text} = value, a block {text} {{ ... }}.",
            )
        self._enter(token)
        body = self._body(closed_by=token)
        self._depth -= 1
        return Block(text, name.span, tuple(labels), body)

    def _expression(self) -> Expression:
        token = self._next()
        if token.kind is Kind.STRING:
            return Template(token.parts, token.span)
        if token.kind is Kind.NUMBER:
            return Literal(_number(token.text), token.span)
        if self._is(token, "-") and self._peek().kind is Kind.NUMBER:
            number = self._next()
            return Literal(-_number(number.text), Span(token.span.start, number.span.end))
        if self._is(token, "["):
            return self._list(token)
        if self._is(token, "{"):
            return self._object(token)
        if token.kind is Kind.IDENTIFIER:
            if token.text in _WORDS and not self._is(self._peek(), "."):
                return Literal(_WORDS[token.text], token.span)
            return self._reference(token)
        raise self._fault(token, f"expected a value, found {token.describe()}")

    def _reference(self, first: Token) -> Reference:
        names = [first.text]
        while self._is(self._peek(), "."):
            self._next()
            part = self._next()
            if part.kind not in (Kind.IDENTIFIER, Kind.NUMBER):
                raise self._fault(part, f"expected a name after the dot, found {part.describe()}")
            names.append(part.text)
        return Reference(".".join(names), Span(first.span.start, self._previous_end()))

    def _list(self, opening: Token) -> ListValue:
        self._enter(opening)
        items: list[Expression] = []
        while True:
            self._skip_newlines()
            if self._closes(opening, "]"):
                break
            items.append(self._expression())
            self._skip_newlines()
            if self._is(self._peek(), ","):
                self._next()
            elif not self._is(self._peek(), "]"):
                token = self._peek()
                if token.kind is Kind.END:
                    raise self._fault(
                        opening, "this list has no closing bracket", 'Close it with "]".'
                    )
                raise self._fault(token, f'expected "," or "]" in a list, found {token.describe()}')
        self._depth -= 1
        return ListValue(tuple(items), Span(opening.span.start, self._previous_end()))

    def _object(self, opening: Token) -> ObjectValue:
        self._enter(opening)
        entries: list[Entry] = []
        while True:
            self._skip_separators()
            if self._closes(opening, "}"):
                break
            key = self._next()
            if key.kind not in (Kind.IDENTIFIER, Kind.STRING, Kind.NUMBER):
                raise self._fault(key, f"expected a key, found {key.describe()}")
            text = self._name_text(key)
            sign = self._next()
            if self._is(sign, "{"):
                # An old spelling: a block inside an object.
                entries.append(Entry(text, key.span, self._object(sign)))
                continue
            if not (self._is(sign, "=") or self._is(sign, ":")):
                raise self._fault(
                    sign, f'expected "=" or ":" after "{text}", found {sign.describe()}'
                )
            self._skip_newlines()
            entries.append(Entry(text, key.span, self._expression()))
        self._depth -= 1
        return ObjectValue(tuple(entries), Span(opening.span.start, self._previous_end()))

    def _closes(self, opening: Token, mark: str) -> bool:
        token = self._peek()
        if token.kind is Kind.END:
            what = "list has no closing bracket" if mark == "]" else "object has no closing brace"
            raise self._fault(opening, f"this {what}", f'Close it with "{mark}".')
        if self._is(token, mark):
            self._next()
            return True
        return False

    def _name_text(self, token: Token) -> str:
        if token.kind is not Kind.STRING:
            return token.text
        return Template(token.parts, token.span).verbatim

    def _expect_value_on_line(self, sign: Token) -> None:
        token = self._peek()
        if token.kind in (Kind.NEWLINE, Kind.END):
            raise self._fault(
                sign, f"expected a value after {sign.describe()}, found {token.describe()}"
            )

    def _enter(self, token: Token) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fault(token, f"nested deeper than {MAX_DEPTH} levels")

    def _is(self, token: Token, mark: str) -> bool:
        return token.kind is Kind.PUNCTUATION and token.text == mark

    def _peek(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        if token.kind is not Kind.END:
            self._at += 1
        return token

    def _previous_end(self) -> Position:
        return self._tokens[max(0, self._at - 1)].span.end

    def _skip_newlines(self) -> None:
        while self._peek().kind is Kind.NEWLINE:
            self._at += 1

    def _skip_separators(self) -> None:
        while self._peek().kind is Kind.NEWLINE or self._is(self._peek(), ","):
            self._at += 1

    def _fault(self, token: Token, what: str, suggestion: str = "") -> HclError:
        return HclError.at(self._source, token.span, what, suggestion)


def _number(text: str) -> int | float:
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    try:
        return int(text)
    except ValueError:
        value = float(text)
        return int(value) if value.is_integer() and "." not in text else value
