"""`operator root keyring ...`: the keys that sign identities and encrypt variables."""

from __future__ import annotations

from typing import Any

from nomadpy.cli.client import escaped
from nomadpy.cli.command import JSON, VERBOSE, Call, command
from nomadpy.cli.errors import CliError, UsageError
from nomadpy.cli.flags import Flag, text
from nomadpy.cli.output import now_ns, parse_duration, say, say_json, short, stamp, table

_KEYS = "/v1/operator/keyring/keys"


@command("operator root keyring list [options]", "List the root keys.", flags=(JSON, VERBOSE))
def list_(call: Call) -> int:
    """List."""
    rows = call.client.get(_KEYS, doing="listing keys")
    if call.options.on("json"):
        say_json(rows)
        return 0
    say(_table(rows, call.id_length))
    return 0


@command(
    "operator root keyring rotate [options]",
    "Make a new root key; what is signed and encrypted from now on uses it.",
    flags=(
        Flag("full", "Also encrypt every variable anew, in the background."),
        Flag("now", "Use the key at once; this is the default."),
        text(
            "prepublish",
            "Only make the key known, and use it after this time: who checks signatures has it by then.",
            "duration",
        ),
        VERBOSE,
    ),
)
def rotate(call: Call) -> int:
    """Rotate."""
    options = call.options
    after = options.text("prepublish")
    if after and (options.on("now") or options.on("full")):
        raise UsageError("-prepublish excludes -now and -full")
    query: dict[str, Any] = {"full": options.on("full") or None}
    if after:
        wait_ns = parse_duration(after)
        if wait_ns is None or wait_ns <= 0:
            raise UsageError(f'-prepublish "{after}" is not a duration such as 48h')
        query["publish_time"] = now_ns() + wait_ns
    key = call.client.put("/v1/operator/keyring/rotate", None, query, doing="rotating key")["Key"]
    say(_table([key], 36))
    return 0


@command(
    "operator root keyring remove [options] <key>",
    "Remove a root key that is not active. With -force, variables that it encrypted are lost.",
    flags=(
        Flag("force", "Also when variables are encrypted with it: they can never be read again."),
    ),
    operands=(1, 1),
)
def remove(call: Call) -> int:
    """Remove the one key whose id begins so."""
    wanted = call.operand()
    rows = call.client.get(_KEYS, doing="listing keys")
    found = [row["KeyID"] for row in rows if row["KeyID"].startswith(wanted)]
    if len(found) != 1:
        raise CliError(
            f'No root key has an id that begins with "{wanted}"'
            if not found
            else f'Several root keys begin with "{wanted}": {", ".join(found)}'
        )
    query = {"force": "true"} if call.options.on("force") else None
    call.client.delete(f"/v1/operator/keyring/key/{escaped(found[0])}", query, doing="removing key")
    say(f"Removed root key {found[0]}")
    return 0


def _table(rows: list[dict[str, Any]], length: int) -> str:
    header = "Key|State|Create Time|Publish Time"
    return table(
        header,
        [
            [
                short(row["KeyID"], length),
                row["State"],
                stamp(row["CreateTime"]),
                stamp(row["PublishTime"]),
            ]
            for row in rows
        ],
    )
