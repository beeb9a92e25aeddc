"""`operator snapshot save`, `restore`, `inspect`."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from nomadpy.cli.command import JSON, Call, command
from nomadpy.cli.errors import ApiError, CliError
from nomadpy.cli.flags import Flag
from nomadpy.cli.output import pairs, say, say_json, section, table
from nomadpy.errors import CorruptionError
from nomadpy.state import archive


@command(
    "operator snapshot save [options] <file>",
    "Save the cluster's state into a file. It holds secrets: variables, and root keys that no key-encryption key covers.",
    flags=(Flag("stale", "Of the server that is asked, also without a leader."),),
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


def _read(path: Path) -> archive.Contents:
    try:
        with path.open("rb") as file:
            found = archive.read(file)
    except OSError as error:
        raise CliError(f"Error reading {path}: {error.strerror}") from error
    except CorruptionError as error:
        raise CliError(f"Error reading {path}: {error.message}") from error
    found.state.close()
    return found
