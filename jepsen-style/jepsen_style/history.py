"""What happened, one line of JSON an operation: the only thing that checkers look at.

A client's operation has two records, its invocation and its completion. The completion says:
ok    it happened, between the two;
fail  it did not happen and never will;
info  it may have happened, or may yet happen at any later time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

NEMESIS = -1
OBSERVER = -2
SCALES = -3
FOREVER = 1 << 62

Kind = Literal["invoke", "ok", "fail", "info"]
T = TypeVar("T")


class Op(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record. time: nanoseconds since the run began. process: a client's number, NEMESIS, OBSERVER (who leads) or SCALES (what nodes take).

    version: the object's ModifyIndex as read, or as the write was answered; 0 for an object that is not there.
    cas: the index that a write demanded. A refused check-and-set has value and version of what was there instead.
    """

    time: int
    type: Kind
    process: int
    f: str
    key: str = ""
    value: Any = None
    version: int | None = None
    cas: int | None = None
    node: str = ""
    error: str = ""
    phase: str = ""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """An invocation with its completion; end_ns is FOREVER while it may still happen."""

    invoke: Op
    done: Op

    @property
    def start_ns(self) -> int:
        """When it began."""
        return self.invoke.time

    @property
    def end_ns(self) -> int:
        """When it was over for sure."""
        return FOREVER if self.done.type == "info" else self.done.time

    def told(self) -> str:
        """One line for a person."""
        i, d = self.invoke, self.done
        asked = i.f + (f" {i.key}" if i.key else "")
        if i.value is not None:
            asked += f" = {short(i.value)}"
        if i.cas is not None:
            asked += f" if version {i.cas}"
        answer = str(d.type)
        if d.value is not None and d.value != i.value:
            answer += f" {short(d.value)}"
        if d.version is not None:
            answer += f" (version {d.version})"
        if d.error:
            answer += f": {d.error[:120]}"
        when = f"{i.time / 1e9:9.4f} .. {d.time / 1e9:9.4f} s"
        return f"{when}  process {i.process} at {i.node or '?'}: {asked} -> {answer}"


def short(value: Any) -> str:
    """A value in few characters."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:28]} ... {text[-28:]}"


class History:
    """All records of a run in the order of their times."""

    def __init__(self, ops: Iterable[Op]) -> None:
        self.ops = sorted(ops, key=lambda op: op.time)

    def calls(self, *functions: str) -> list[Call]:
        """The clients' operations in the order of their beginnings. One without a completion is `info` at the end."""
        found: list[Call] = []
        open_calls: dict[int, Op] = {}
        last = self.ops[-1].time if self.ops else 0
        for op in self.ops:
            if op.process < 0:
                continue
            if op.type == "invoke":
                # A process that begins anew without having ended was cut off: unknown.
                self._cut_off(open_calls.pop(op.process, None), last, found)
                open_calls[op.process] = op
            elif op.process in open_calls:
                found.append(Call(invoke=open_calls.pop(op.process), done=op))
        for op in open_calls.values():
            self._cut_off(op, last, found)
        if functions:
            found = [c for c in found if c.invoke.f in functions]
        return sorted(found, key=lambda c: c.start_ns)

    @staticmethod
    def _cut_off(op: Op | None, last: int, found: list[Call]) -> None:
        if op is not None:
            done = msgspec.structs.replace(op, type="info", time=last, error="never completed")
            found.append(Call(invoke=op, done=done))

    def events(self, process: int) -> list[Op]:
        """The records of NEMESIS, OBSERVER or SCALES."""
        return [op for op in self.ops if op.process == process]


class Recorder:
    """Writes records to a file as they happen, so that a crash of the kit keeps what it saw. For any thread."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 16)
        self._lock = threading.Lock()
        self._encode = msgspec.json.Encoder().encode

    def write(self, op: Op) -> None:
        """Add one record."""
        line = self._encode(op) + b"\n"
        with self._lock:
            self._file.write(line)

    def close(self) -> None:
        """Nothing may be written afterwards."""
        with self._lock:
            self._file.close()


def read_history(path: Path) -> History:
    """Read a file of records; a last line that was cut off by a crash is left out."""
    decode = msgspec.json.Decoder(Op).decode
    ops = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            ops.append(decode(line))
        except msgspec.DecodeError:
            if number < len(lines) - 1:
                raise
    return History(ops)


def by_key(calls: Iterable[Call]) -> Iterator[tuple[str, list[Call]]]:
    """The calls of each key, keys in order."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(call.invoke.key, []).append(call)
    yield from sorted(groups.items())
