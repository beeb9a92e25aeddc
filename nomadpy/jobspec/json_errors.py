"""Say where a JSON text breaks, in the words that clients of the wire know.

Only texts that a real parser refused come here, so it may be slow; it must not recurse.
"""

from __future__ import annotations

import re

_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = ("true", "false", "null")
_SPACE = " \t\r\n"


def syntax_error(text: str) -> str:
    """Return what is wrong with `text`, e.g. `invalid character 'n' looking for beginning of value`.

    A text that stops too early is `unexpected EOF`; one that is sound JSON is named as unreadable, since it was refused.
    """
    # What closes each open array or object, innermost last; and what may come next.
    open_ends: list[str] = []
    expect = "value"
    position = 0
    while True:
        while position < len(text) and text[position] in _SPACE:
            position += 1
        if position == len(text):
            return "unexpected EOF" if open_ends or expect == "value" else "invalid JSON"
        char = text[position]
        if expect == "end" and not open_ends:
            return f"invalid character {_quoted(char)} after top-level value"
        if expect in ("key", "first-key"):
            if char == "}" and expect == "first-key":
                open_ends.pop()
                expect = "end"
                position += 1
                continue
            if char != '"':
                return (
                    f"invalid character {_quoted(char)} looking for beginning of object key string"
                )
            end, fault = _string(text, position)
            if fault:
                return fault
            position, expect = end, "colon"
        elif expect == "colon":
            if char != ":":
                return f"invalid character {_quoted(char)} after object key"
            position, expect = position + 1, "value"
        elif expect in ("value", "first-value"):
            if char == "]" and expect == "first-value":
                open_ends.pop()
                position, expect = position + 1, "end"
            elif char in "{[":
                open_ends.append("}" if char == "{" else "]")
                position, expect = position + 1, "first-key" if char == "{" else "first-value"
            else:
                end, fault = _scalar(text, position)
                if fault:
                    return fault
                position, expect = end, "end"
        elif char == open_ends[-1]:
            open_ends.pop()
            position += 1
        elif char == ",":
            position, expect = position + 1, "key" if open_ends[-1] == "}" else "value"
        else:
            where = "after object key:value pair" if open_ends[-1] == "}" else "after array element"
            return f"invalid character {_quoted(char)} {where}"


def _scalar(text: str, position: int) -> tuple[int, str]:
    """Return (where the value ends, "") or (position, what is wrong with it)."""
    char = text[position]
    if char == '"':
        return _string(text, position)
    if char in "-0123456789":
        number = _NUMBER.match(text, position)
        if number:
            return number.end(), ""
        return position, _wrong(text, position + 1, "in numeric literal")
    for word in _WORDS:
        if char == word[0]:
            for offset, expected in enumerate(word):
                if text[position + offset : position + offset + 1] != expected:
                    return position, _wrong(
                        text,
                        position + offset,
                        f"in literal {word} (expecting {_quoted(expected)})",
                    )
            return position + len(word), ""
    return position, f"invalid character {_quoted(char)} looking for beginning of value"


def _string(text: str, position: int) -> tuple[int, str]:
    """Return (where the string ends, "") or (position, what is wrong with it)."""
    whole = _STRING.match(text, position)
    if whole:
        return whole.end(), ""
    at = position + 1
    while at < len(text):
        char = text[at]
        if char < " ":
            return position, f"invalid character {_quoted(char)} in string literal"
        if char == "\\":
            at += 1
            escaped = text[at : at + 1]
            if escaped and escaped not in '"\\/bfnrtu':
                return position, _wrong(text, at, "in string escape code")
            if escaped == "u":
                for offset in range(1, 5):
                    if text[at + offset : at + offset + 1] not in tuple("0123456789abcdefABCDEF"):
                        return position, _wrong(
                            text, at + offset, "in \\u hexadecimal character escape"
                        )
        at += 1
    return position, "unexpected EOF"


def _wrong(text: str, position: int, where: str) -> str:
    if position >= len(text):
        return "unexpected EOF"
    return f"invalid character {_quoted(text[position])} {where}"


def _quoted(char: str) -> str:
    if char == "'":
        return "'\\''"
    if char == '"':
        return "'\"'"
    return repr(char) if char < " " else f"'{char}'"
