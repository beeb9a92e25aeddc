"""`operator snapshot save`, `restore`, `inspect`, `state`, `redact`."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from nomadpy.cli.command import JSON, Call, command
from nomadpy.cli.errors import ApiError, CliError
from nomadpy.cli.flags import Flag, text
from nomadpy.cli.output import pairs, say, say_json, section, table
from nomadpy.errors import CorruptionError, NomadError
from nomadpy.models.base import wire_name
from nomadpy.server.filter_expression import parse
from nomadpy.state import archive, persist


@command(
    "operator snapshot save [options] <file>",
    "Save the cluster's state into a file. It holds secrets: variables, and root keys that no key-encryption key covers.",
    flags=(
        Flag("stale", "Of the server that is asked, also without a leader."),
        Flag(
            "redact",
            "Without key material, for those who look into it; such a file cannot be restored.",
        ),
    ),
    operands=(1, 1),
)
def save(call: Call) -> int:
    """Save, whole or not at all."""
    path = Path(call.operand())
    if path.exists():
        raise CliError(f"{path} is there already; name another file")
    query = {"stale": "true" if call.options.on("stale") else None}
    answer = call.client.raw("GET", "/v1/operator/snapshot", query=query)
    if answer.status != 200:
        raise ApiError(answer.status, answer.body.decode("utf-8", "replace"), "saving snapshot")
    digest = base64.b64encode(hashlib.sha256(answer.body).digest()).decode()
    if answer.headers.get("digest") != f"sha-256={digest}":
        raise CliError("What arrived is not what the server sent (its digest differs); try again.")
    aside = path.with_name(path.name + ".unverified")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(answer.body)
            file.flush()
            os.fsync(file.fileno())
        if call.options.on("redact"):
            _redact(aside)
        _read(aside)
        aside.rename(path)
    except OSError as error:
        raise CliError(f"Error saving snapshot to {path}: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)
    say(f"State file written to {path}")
    return 0


@command(
    "operator snapshot restore <file>",
    "Replace the cluster's whole state by a saved one. What was written since it was saved is lost.",
    operands=(1, 1),
)
def restore(call: Call) -> int:
    """Restore."""
    path = Path(call.operand())
    _read(path)
    headers = {"Content-Type": "application/octet-stream"}
    answer = call.client.raw(
        "PUT", "/v1/operator/snapshot", data=path.read_bytes(), headers=headers
    )
    if answer.status != 200:
        raise ApiError(answer.status, answer.body.decode("utf-8", "replace"), "restoring snapshot")
    say("Snapshot Restored")
    return 0


@command(
    "operator snapshot inspect [options] <file>",
    "Check a saved snapshot as a whole, and show what it holds.",
    flags=(JSON,),
    operands=(1, 1),
)
def inspect(call: Call) -> int:
    """Inspect."""
    found = _read(Path(call.operand()))
    meta = found.meta
    rows = [[name, count] for name, count in sorted(found.counts.items()) if count]
    if call.options.on("json"):
        say_json(
            {
                "ID": meta.id,
                "Size": found.size,
                "Index": meta.index,
                "Term": meta.term,
                "Version": meta.version,
                "Created": meta.created,
                "By": meta.by,
                "SHA256": found.sha256,
                "Tables": {name: count for name, count in found.counts.items() if count},
            }
        )
        return 0
    say(
        pairs(
            [
                ("ID", meta.id),
                ("Size", found.size),
                ("Index", meta.index),
                ("Term", meta.term),
                ("Version", meta.version),
                ("Created", meta.created),
                ("Taken by", meta.by),
                ("SHA256", found.sha256),
            ]
        )
    )
    section("Tables", table("Table|Rows", rows))
    return 0


@command(
    "operator snapshot state [options] <file>",
    "Print what a saved snapshot holds as JSON: rows by table, with the secrets of jobs; without key material.",
    flags=(
        text(
            "filter", "Only rows for which this expression is true, in every table.", "expression"
        ),
    ),
    operands=(1, 1),
)
def state(call: Call) -> int:
    """State."""
    expression = call.options.text("filter")
    wanted = _filter(expression) if expression else None
    snapshot = archive.without_keys(archive.state_of(_open(Path(call.operand()))))
    shown: dict[str, Any] = {"Index": snapshot.index}
    for name, rows in sorted(snapshot.tables.items()):
        found = [rows.get(key) for key in rows.keys()]  # noqa: SIM118 - in order, by name
        if wanted is not None:
            found = [row for row in found if wanted(row)]
        shown[wire_name(name)] = found
    say(msgspec.json.format(msgspec.json.encode(shown), indent=4).decode())
    return 0


@command(
    "operator snapshot redact <file>",
    "Take the key material out of a saved snapshot, in place, so that it can be given to others. It cannot be restored then.",
    operands=(1, 1),
)
def redact(call: Call) -> int:
    """Redact."""
    path = Path(call.operand())
    _redact(path)
    say(f"Redacted key material in {path}")
    return 0


def _redact(path: Path) -> None:
    """Replace a file by one without key material, whole or not at all."""
    contents = _open(path)
    meta, snapshot = contents.meta, archive.without_keys(archive.state_of(contents))
    aside = path.with_name(path.name + ".redacting")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            archive.write(file, meta, persist.write(snapshot))
            file.flush()
            os.fsync(file.fileno())
        _read(aside)
        aside.rename(path)
    except OSError as error:
        raise CliError(f"Error redacting {path}: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)


def _filter(expression: str) -> Callable[[Any], bool]:
    try:
        predicate = parse(expression)
    except NomadError as error:
        raise CliError(f"Error in -filter: {error.message}") from error

    def holds(row: Any) -> bool:
        try:
            return predicate(row)
        except NomadError:
            # It asks for what rows of this table do not have.
            return False

    return holds


def _read(path: Path) -> archive.Contents:
    found = _open(path)
    found.state.close()
    return found


def _open(path: Path) -> archive.Contents:
    try:
        with path.open("rb") as file:
            return archive.read(file)
    except OSError as error:
        raise CliError(f"Error reading {path}: {error.strerror}") from error
    except CorruptionError as error:
        raise CliError(f"Error reading {path}: {error.message}") from error
