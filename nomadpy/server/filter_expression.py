"""The `?filter=` language: text to a predicate over wire structs, by their wire names.

Grammar (facts of go-bexpr): `Sel == Val`, `!=`, `Val in Sel`, `not in`, `Sel contains Val`, `not contains`,
`Sel matches Re`, `not matches`, `Sel is empty`, `is not empty`, `and`, `or`, `not`, parentheses.
Selectors: `Meta.key`, `Meta["k"]`, `TaskGroups.0.Name`; values: quoted with " or `, or bare words and numbers.
A selector that an object does not have is an error when that object is looked at, not before.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from nomadpy.errors import InvalidRequestError

Predicate = Callable[[object], bool]

MAX_LENGTH = 4_096
MAX_DEPTH = 64

_TOKEN = re.compile(
    r"""\s*(?:(?P<op>==|!=|\(|\))|(?P<quoted>"(?:[^"\\]|\\.)*"|`[^`]*`)"""
    r"""|(?P<word>[A-Za-z0-9_\-./:*$@+]+(?:\["(?:[^"\\]|\\.)*"\][A-Za-z0-9_\-./]*)*))"""
)
_KEYWORDS = {"and", "or", "not", "in", "contains", "matches", "is", "empty"}
_WHERE = "failed to create result paginator: failed to read filter expression: "


class _Token(msgspec.Struct, frozen=True):
    kind: str  # op | value | word
    text: str
    at: int


def parse(text: str) -> Predicate:
    """Return the predicate. Raises InvalidRequestError (400) that says line, column and what was expected."""
    if len(text) > MAX_LENGTH:
        raise InvalidRequestError(f"{_WHERE}longer than {MAX_LENGTH} characters")
    return _parse_cached(text)


@functools.lru_cache(maxsize=256)
def _parse_cached(text: str) -> Predicate:
    parser = _Parser(text)
    predicate = parser.either(0)
    parser.expect_end()
    return predicate


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._next = 0

    def either(self, depth: int) -> Predicate:
        if depth > MAX_DEPTH:
            raise InvalidRequestError(f"{_WHERE}nested deeper than {MAX_DEPTH}")
        parts = [self.both(depth)]
        while self._take_word("or"):
            parts.append(self.both(depth))
        return parts[0] if len(parts) == 1 else lambda o: any(p(o) for p in parts)

    def both(self, depth: int) -> Predicate:
        parts = [self.negated(depth)]
        while self._take_word("and"):
            parts.append(self.negated(depth))
        return parts[0] if len(parts) == 1 else lambda o: all(p(o) for p in parts)

    def negated(self, depth: int) -> Predicate:
        if depth > MAX_DEPTH:
            raise InvalidRequestError(f"{_WHERE}nested deeper than {MAX_DEPTH}")
        if self._take_word("not"):
            inner = self.negated(depth + 1)
            return lambda o: not inner(o)
        if self._take_op("("):
            grouped = self.either(depth + 1)
            if not self._take_op(")"):
                self._fail('")"')
            return grouped
        return self.match()

    def match(self) -> Predicate:
        left = self._value("a selector, a value or (")
        if self._take_op("=="):
            return _equals(_path(left), self._value("a value").text)
        if self._take_op("!="):
            equal = _equals(_path(left), self._value("a value").text)
            return lambda o: not equal(o)
        negate = self._take_word("not")
        if self._take_word("in"):
            found = _contains(_path(self._value("a selector")), left.text)
        elif self._take_word("contains"):
            found = _contains(_path(left), self._value("a value").text)
        elif self._take_word("matches"):
            found = _matches(_path(left), self._value("a regular expression").text)
        elif not negate and self._take_word("is"):
            negate = self._take_word("not")
            if not self._take_word("empty"):
                self._fail('"empty"')
            found = _is_empty(_path(left))
        else:
            self._fail('"!=", "==", "contains", "in", "is", "matches", "not" or [ \\t\\r\\n]')
        return (lambda o: not found(o)) if negate else found

    def expect_end(self) -> None:
        if self._next < len(self._tokens):
            self._fail('"and", "or" or the end')

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take_word(self, word: str) -> bool:
        token = self._peek()
        if token is not None and token.kind == "word" and token.text == word:
            self._next += 1
            return True
        return False

    def _take_op(self, op: str) -> bool:
        token = self._peek()
        if token is not None and token.kind == "op" and token.text == op:
            self._next += 1
            return True
        return False

    def _value(self, what: str) -> _Token:
        token = self._peek()
        if (
            token is None
            or token.kind == "op"
            or (token.kind == "word" and token.text in _KEYWORDS)
        ):
            self._fail(what)
        self._next += 1
        return token

    def _fail(self, expected: str) -> NoReturn:
        token = self._peek()
        at = token.at if token is not None else len(self._text)
        raise InvalidRequestError(
            f"{_WHERE}{_position(self._text, at)}: no match found, expected: {expected}"
        )


def _tokens(text: str) -> Any:
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            expected = '"!=", "==", "contains", "in", "is", "matches", "not" or [ \\t\\r\\n]'
            raise InvalidRequestError(
                f"{_WHERE}{_position(text, at)}: no match found, expected: {expected}"
            )
        kind = match.lastgroup or ""
        start = match.start(kind)
        raw = match.group(kind)
        if kind == "quoted":
            body = raw[1:-1]
            value = re.sub(r"\\(.)", r"\1", body) if raw[0] == '"' else body
            yield _Token("value", value, start)
        else:
            yield _Token(kind, raw, start)
        at = match.end()


def _position(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return f"{line}:{column} ({at})"


# -- selectors and comparisons ------------------------------------------------------------------------


def _path(token: _Token) -> tuple[str, ...]:
    parts: list[str] = []
    for plain, quoted in re.findall(r'([^.\[\]"]+)|\["((?:[^"\\]|\\.)*)"\]', token.text):
        parts.append(plain or quoted)
    return tuple(parts)


@functools.cache
def _attributes(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {f.encode_name: f.name for f in msgspec.structs.fields(kind)}


def _select(obj: object, path: tuple[str, ...]) -> Any:
    for depth, part in enumerate(path):
        if isinstance(obj, msgspec.Struct):
            attribute = _attributes(type(obj)).get(part)
            if attribute is None:
                raise InvalidRequestError(
                    f"failed to read result page: error finding value in datum: /{'/'.join(path)} at part "
                    f'{depth}: couldn\'t find key: struct field with name "{part}"'
                )
            obj = getattr(obj, attribute)
        elif isinstance(obj, Mapping):
            obj = obj.get(part)
        elif isinstance(obj, Sequence) and not isinstance(obj, str) and part.isdigit():
            obj = obj[int(part)] if int(part) < len(obj) else None
        else:
            return None
    return obj


def _same(value: Any, text: str) -> bool:
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, (int, float)):
        try:
            return float(text) == value
        except ValueError:
            return False
    return (value or "") == text


def _equals(path: tuple[str, ...], text: str) -> Predicate:
    return lambda obj: _same(_select(obj, path), text)


def _contains(path: tuple[str, ...], text: str) -> Predicate:
    def check(obj: object) -> bool:
        value = _select(obj, path)
        if isinstance(value, (str, Mapping)):
            return text in value
        return any(_same(item, text) for item in value or ())

    return check


def _matches(path: tuple[str, ...], text: str) -> Predicate:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InvalidRequestError(
            f"{_WHERE}failed to compile regular expression {text!r}: {error}"
        ) from error
    return lambda obj: pattern.search(str(_select(obj, path) or "")) is not None


def _is_empty(path: tuple[str, ...]) -> Predicate:
    return lambda obj: not _select(obj, path)
