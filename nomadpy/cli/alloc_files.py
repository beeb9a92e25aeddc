"""`alloc logs` and `alloc fs`: what tasks wrote, streamed."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from nomadpy.cli.alloc import TASK, one_task
from nomadpy.cli.client import Client
from nomadpy.cli.command import VERBOSE, Call, command
from nomadpy.cli.errors import CliError, UsageError
from nomadpy.cli.flags import Flag, number, text
from nomadpy.cli.lookup import find_alloc, find_job, in_namespace
from nomadpy.cli.output import say, size, stamp_text, table

_BYTES_A_LINE = 120  # how far from the end -n looks, a line
_FOLLOW = (
    Flag("f", "Go on with what is written."),
    Flag("tail", "Begin at the end instead of the start."),
    number("n", "How many lines from the end (with -tail; 10 without the flag).", "lines"),
    number("c", "How many bytes from the end (with -tail).", "bytes"),
)
_JOB = text(
    "job", "Take an allocation of this job; the operand is then not an allocation.", "job-id"
)
_GROUP = text("group", "With -job: an allocation of this group.", "group-name")


@command(
    "alloc logs [options] <allocation> [<task>]",
    "Show what a task wrote to stdout or stderr.",
    flags=(
        *_FOLLOW,
        _JOB,
        _GROUP,
        Flag("stderr", "Standard error."),
        Flag("stdout", "Standard output (the default)."),
        TASK,
        VERBOSE,
    ),
    operands=(0, 2),
)
def logs(call: Call) -> int:
    """Show or follow."""
    alloc, rest = chosen_alloc(call)
    if len(rest) > 1:
        raise UsageError("This command takes an allocation and perhaps a task")
    task = one_task(alloc, call.options.text("task") or (rest[0] if rest else ""))
    kind = "stderr" if call.options.on("stderr") else "stdout"
    query: dict[str, Any] = {"task": task, "type": kind}
    _show(call, f"/v1/client/fs/logs/{alloc['ID']}", query, "reading logs")
    return 0


@command(
    "alloc fs [options] <allocation> [<path>]",
    "List a directory of an allocation, or print a file.",
    flags=(
        *_FOLLOW,
        Flag("H", "Accepted; sizes are always readable."),
        _JOB,
        _GROUP,
        Flag("stat", "Show the file's properties instead of the file."),
        VERBOSE,
    ),
    operands=(0, 2),
)
def fs(call: Call) -> int:
    """List or print."""
    alloc, rest = chosen_alloc(call)
    if len(rest) > 1:
        raise UsageError("This command takes an allocation and perhaps a path")
    path = rest[0] if rest else "/"
    identity = alloc["ID"]
    found = call.client.get(
        f"/v1/client/fs/stat/{identity}", {"path": path}, doing="reading the file"
    )
    if call.options.on("stat"):
        say(_files([found]))
    elif found["IsDir"]:
        rows = call.client.get(
            f"/v1/client/fs/ls/{identity}", {"path": path}, doing="listing files"
        )
        say(_files(rows))
    else:
        _show(call, f"/v1/client/fs/stream/{identity}", {"path": path}, "reading the file")
    return 0


def chosen_alloc(call: Call) -> tuple[dict[str, Any], list[str]]:
    """The allocation that is meant, and the operands after it. With -job, the newest that runs."""
    name = call.options.text("job")
    if not name:
        if not call.operands:
            raise UsageError("An allocation is needed, or -job with a job")
        return find_alloc(call.client, call.operand()), call.operands[1:]
    stub = find_job(call.client, name)
    rows = call.client.get(
        f"/v1/job/{_quoted(stub['ID'])}/allocations",
        in_namespace(stub),
        doing="querying allocations",
    )
    group = call.options.text("group")
    fit = [r for r in rows if not group or r["TaskGroup"] == group]
    if not fit:
        raise CliError(
            f'Job "{stub["ID"]}" has no allocation' + (f' of group "{group}"' if group else "")
        )
    best = max(fit, key=lambda r: (r["ClientStatus"] == "running", r["CreateIndex"]))
    alloc = call.client.get(f"/v1/allocation/{best['ID']}", doing="querying allocation")
    return alloc, call.operands


def frames(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The data of a framed stream; heartbeats are nothing. Raises CliError for what is no frame (an error's text)."""
    decoder = json.JSONDecoder()
    pending = ""
    for chunk in chunks:
        pending += chunk.decode("utf-8", "replace")
        while pending:
            try:
                frame, end = decoder.raw_decode(pending)
            except ValueError:
                if not pending.startswith("{"):
                    raise CliError(f"Error reading the stream: {pending.strip()}") from None
                break
            pending = pending[end:].lstrip()
            if data := frame.get("Data"):
                yield base64.b64decode(data)
            if event := frame.get("FileEvent"):
                print(f"[{event}]", file=sys.stderr)
    if pending.strip():
        raise CliError(f"Error reading the stream: it ended within a frame: {pending[:80]}")


def _show(call: Call, path: str, query: dict[str, Any], doing: str) -> None:
    options = call.options
    lines, count = options.number("n"), options.number("c")
    tail = options.on("tail") or lines is not None or count is not None
    query |= {"follow": options.on("f"), "origin": "end" if tail else "start", "offset": 0}
    if tail:
        lines = 10 if lines is None and count is None else lines
        query["offset"] = count if lines is None else lines * _BYTES_A_LINE
    out = sys.stdout.buffer
    for data in _begin_with_last_lines(
        _read(call.client, path, query, doing), lines if tail else None
    ):
        out.write(data)
        out.flush()


def _read(client: Client, path: str, query: dict[str, Any], doing: str) -> Iterator[bytes]:
    with client.stream(path, query, doing=doing) as chunks:
        yield from frames(chunks)


def _begin_with_last_lines(parts: Iterator[bytes], lines: int | None) -> Iterator[bytes]:
    """Of the first part (what there was), only the last lines; then everything."""
    first = next(parts, b"")
    if lines is not None:
        kept = first.splitlines(keepends=True)[-lines:] if lines else []
        first = b"".join(kept)
    yield first
    yield from parts


def _files(rows: list[dict[str, Any]]) -> str:
    return table(
        "Mode|Size|Modified Time|Name",
        [
            [
                row["FileMode"],
                size(row["Size"]),
                stamp_text(row["ModTime"]),
                row["Name"] + ("/" if row["IsDir"] else ""),
            ]
            for row in rows
        ],
    )


def _quoted(name: str) -> str:
    from nomadpy.cli.client import escaped

    return escaped(name)
