"""Flags as Go's `flag` package reads them, but anywhere in the line: -name value, -name=value, --name, -switch=false.

What follows `--` is never a flag. A command that runs another command (`alloc exec`) ends flags after its own operands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from nomadpy.cli.errors import UsageError

_NUMBER = re.compile(r"-\d+(\.\d+)?")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


class Flag(NamedTuple):
    """kind: switch (bool), text, number (int), many (repeatable text). value: what the help calls it."""

    name: str
    help: str
    kind: str = "switch"
    value: str = ""


def text(name: str, help_: str, value: str = "value") -> Flag:
    """A flag with one text."""
    return Flag(name, help_, "text", value)


def number(name: str, help_: str, value: str = "number") -> Flag:
    """A flag with a whole number."""
    return Flag(name, help_, "number", value)


def many(name: str, help_: str, value: str = "value") -> Flag:
    """A flag that may be given several times."""
    return Flag(name, help_, "many", value)


class Options:
    """The flags of one line. Absent ones are False, "", None or []."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    def on(self, name: str) -> bool:
        """A switch."""
        return bool(self.given.get(name, False))

    def text(self, name: str, default: str = "") -> str:
        """A text flag."""
        return str(self.given.get(name, default))

    def number(self, name: str) -> int | None:
        """A number flag; None when it was not given."""
        value = self.given.get(name)
        return value if isinstance(value, int) else None

    def many(self, name: str) -> list[str]:
        """A repeatable flag."""
        return list(self.given.get(name, []))


def parse(
    flags: Sequence[Flag], line: Sequence[str], *, flags_end_after: int | None = None
) -> tuple[Options, list[str]]:
    """Split a line into flags and operands. Raises UsageError that names the flag.

    flags_end_after: this many operands end the flags; the rest of the line is taken as it stands.
    """
    known = {flag.name: flag for flag in flags}
    given: dict[str, Any] = {}
    operands: list[str] = []
    rest = list(line)
    while rest:
        word = rest.pop(0)
        if word == "--":
            operands += rest
            break
        if flags_end_after is not None and len(operands) >= flags_end_after:
            operands += [word, *rest]
            break
        if not word.startswith("-") or word == "-":
            operands.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        flag = known.get(name)
        if flag is None:
            if _NUMBER.fullmatch(word):
                operands.append(word)
                continue
            raise UsageError(f"flag provided but not defined: -{name}{_near(name, known)}")
        if flag.kind == "switch":
            given[name] = _switch(name, value) if equals else True
            continue
        if not equals:
            if not rest:
                raise UsageError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        if flag.kind == "number":
            if not re.fullmatch(r"[+-]?\d{1,18}", value):
                raise UsageError(f'invalid value "{value}" for flag -{name}: not a whole number')
            given[name] = int(value)
        elif flag.kind == "many":
            given.setdefault(name, []).append(value)
        else:
            given[name] = value
    return Options(given), operands


def help_lines(flags: Sequence[Flag]) -> list[str]:
    """The flags for a help text."""
    lines: list[str] = []
    for flag in sorted(flags):
        value = f"=<{flag.value}>" if flag.value else ""
        lines += [f"  -{flag.name}{value}", f"      {flag.help}", ""]
    return lines


def _switch(name: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f'invalid boolean value "{value}" for -{name}: use true or false')


def _near(name: str, known: dict[str, Flag]) -> str:
    import difflib  # only a mistake pays for it

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean -{close[0]}?)" if close else ""
