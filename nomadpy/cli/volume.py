"""`volume ...`: create, register, show and delete dynamic host volumes, and the claims of sticky ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nomadpy.cli.client import Client
from nomadpy.cli.command import JSON, VERBOSE, Call, command
from nomadpy.cli.errors import CliError, UsageError
from nomadpy.cli.flags import Flag, number, text
from nomadpy.cli.job_status import allocs_table
from nomadpy.cli.lookup import Row, in_namespace
from nomadpy.cli.output import pairs, say, say_json, section, short, size, stamp, table
from nomadpy.cli.volume_spec import EXAMPLE_HCL, EXAMPLE_JSON, read_spec

_TYPE = text("type", "The type of volume; host is the only one.", "type")
_COLUMNS = "ID|Name|Namespace|Plugin ID|Node ID|Node Pool|State"
_WAITS, _WAIT = 7, "10s"
"""The first answer comes at once."""


@command(
    "volume init [options] [<filename>]",
    "Write an example specification of a host volume, volume.hcl or volume.json without a name.",
    flags=(Flag("json", "Write JSON."), _TYPE),
    operands=(0, 1),
    general=False,
)
def init(call: Call) -> int:
    """Write a file that does not exist yet."""
    _check_type(call)
    as_json = call.options.on("json")
    path = Path(call.operand() or ("volume.json" if as_json else "volume.hcl"))
    content = json.dumps(EXAMPLE_JSON, indent=2) + "\n" if as_json else EXAMPLE_HCL
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError as cause:
        raise CliError(f"{path} exists already; name another file") from cause
    except OSError as cause:
        raise CliError(f"{path} cannot be written: {cause.strerror}") from cause
    say(f"Example volume specification written to {path}")
    return 0


@command(
    "volume create [options] <file>",
    """Make a host volume on a node, by one of the node's plugins, and wait until jobs may use it.

The specification is HCL or JSON; - reads it from standard input. With the ID of a volume that exists, its plugin is asked to
change it.""",
    flags=(
        Flag(
            "detach", "Return when the volume is made, without waiting for its node to tell of it."
        ),
        text("id", "The ID of a volume to change.", "id"),
        VERBOSE,
    ),
    operands=(1, 1),
)
def create(call: Call) -> int:
    """Create and monitor."""
    return _write(call, "create", "Created", "creating volume")


@command(
    "volume register [options] <file>",
    """Make a directory that exists on a node known as a host volume.

The specification is HCL or JSON and names node_id and host_path; - reads it from standard input.""",
    flags=(
        Flag("detach", "Return at once, without waiting for the node to tell of the volume."),
        text("id", "The ID of a volume to change.", "id"),
        VERBOSE,
    ),
    operands=(1, 1),
)
def register(call: Call) -> int:
    """Register and monitor."""
    return _write(call, "register", "Registered", "registering volume")


@command(
    "volume status [options] [<volume>]",
    "List host volumes, or show one: by its ID, a prefix of that, or its name.",
    flags=(
        _TYPE,
        text("node", "In the list: only volumes of this node.", "node"),
        text("node-pool", "In the list: only volumes of this pool.", "pool"),
        Flag("short", "Of one volume: no allocations."),
        number("per-page", "In the list: how many."),
        text("page-token", "Where to begin: the token that the page before named.", "token"),
        JSON,
        VERBOSE,
    ),
    operands=(0, 1),
)
def status(call: Call) -> int:
    """List or show."""
    _check_type(call)
    if call.operand():
        volume = _whole(call.client, find_volume(call.client, call.operand()))
        if call.options.on("json"):
            say_json(volume)
        else:
            _show(volume, call.id_length, allocations=not call.options.on("short"))
        return 0
    rows = _list(call)
    if call.options.on("json"):
        say_json(rows)
    elif not rows:
        say("No dynamic host volumes")
    else:
        say(table(_COLUMNS, [_row(row, call.id_length) for row in rows]))
    return 0


@command(
    "volume delete [options] <volume>",
    """Delete a host volume and what its plugin made. A registered one is only forgotten; its directory stays.

The volume is named by its ID, a prefix of that, or its name. No allocation may use it.""",
    flags=(
        _TYPE,
        Flag("force", "Forget the volume even if its node does not answer; what is there stays."),
    ),
    operands=(1, 1),
)
def delete(call: Call) -> int:
    """Delete."""
    _check_type(call)
    volume = find_volume(call.client, call.operand())
    query = {**in_namespace(volume), "force": "true" if call.options.on("force") else None}
    call.client.delete(f"/v1/volume/host/{volume['ID']}/delete", query, doing="deleting volume")
    say(f'Successfully deleted volume "{volume["ID"]}"!')
    return 0


@command(
    "volume claim list [options] [<claim>]",
    "List which groups hold which sticky host volumes; only claims whose ID begins so, with an argument.",
    flags=(
        text("job", "Only claims of this job.", "id"),
        text("group", "Only claims of this group.", "name"),
        text("volume-name", "Only claims on volumes of this name.", "name"),
        JSON,
        VERBOSE,
    ),
    operands=(0, 1),
)
def claim_list(call: Call) -> int:
    """List."""
    options = call.options
    query = {
        "prefix": call.operand() or None,
        "job_id": options.text("job") or None,
        "task_group": options.text("group") or None,
        "volume_name": options.text("volume-name") or None,
    }
    rows: list[Row] = call.client.get("/v1/volumes/claims", query, doing="querying volume claims")
    if options.on("json"):
        say_json(rows)
    elif not rows:
        say("No volume claims")
    else:
        length = call.id_length
        say(
            table(
                "ID|Namespace|Job ID|Task Group|Volume Name|Volume ID|Alloc ID",
                [
                    [
                        short(row["ID"], length),
                        row["Namespace"],
                        row["JobID"],
                        row["TaskGroupName"],
                        row["VolumeName"],
                        short(row["VolumeID"], length),
                        short(row["AllocID"], length),
                    ]
                    for row in rows
                ],
            )
        )
    return 0


@command(
    "volume claim delete [options] <claim>",
    """Forget a claim: the group's next allocation may go to any volume of the name, and will not find what was written.""",
    flags=(Flag("y", "Accepted; nothing is asked."),),
    operands=(1, 1),
)
def claim_delete(call: Call) -> int:
    """Forget it."""
    prefix = call.operand()
    rows: list[Row] = call.client.get(
        "/v1/volumes/claims", {"prefix": prefix}, doing="querying volume claims"
    )
    if len(rows) != 1:
        raise CliError(
            f'{"Several volume claims" if rows else "No volume claim"} with prefix or ID "{prefix}": '
            "`nomadpy volume claim list` shows them"
        )
    claim = rows[0]
    call.client.delete(
        f"/v1/volumes/claim/{claim['ID']}", in_namespace(claim), doing="deleting volume claim"
    )
    say(f'Volume claim "{claim["ID"]}" successfully deleted')
    return 0


# -- parts ------------------------------------------------------------------------------------------------


def find_volume(client: Client, wanted: str) -> Row:
    """The row of the one volume with this ID, name, or ID that begins so. Raises CliError."""
    rows: list[Row] = client.get("/v1/volumes", {"type": "host"}, doing="querying volumes")
    for found in (
        [row for row in rows if row["ID"] == wanted],
        [row for row in rows if row["Name"] == wanted],
        [row for row in rows if row["ID"].startswith(wanted)],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            lines = table(_COLUMNS, [_row(row, 36) for row in found])
            raise CliError(f"{wanted!r} is not one volume; give the ID\n\n{lines}")
    raise CliError(
        f'No volume with the ID, prefix or name "{wanted}"; `nomadpy volume status` lists them'
    )


def _write(call: Call, verb: str, done: str, doing: str) -> int:
    volume = _read(call.operand())
    if call.options.text("id"):
        volume["ID"] = call.options.text("id")
    query = {} if call.client.settings.namespace else {"namespace": volume.get("Namespace")}
    answer = call.client.put(f"/v1/volume/host/{verb}", {"Volume": volume}, query, doing=doing)
    made: Row = answer["Volume"]
    for warning in (answer.get("Warnings") or "").splitlines():
        say(f"Warning: {warning}")
    say(f"==> {done} host volume {made['Name']} with ID {made['ID']}")
    if call.options.on("detach"):
        return 0
    if not _told(call.client, made):
        raise CliError(
            f"volume {made['ID']} is made, and its node {made['NodeID']} does not tell of it: is its agent running? "
            f"`nomadpy volume status {made['ID']}` shows the volume"
        )
    say(f'  ✓ Host volume "{short(made["ID"])}" ready\n')
    _show(_whole(call.client, made), call.id_length, allocations=False, indent="    ")
    return 0


def _told(client: Client, volume: Row) -> bool:
    """Wait until the node offers the volume to jobs; a minute at most."""
    index = 0
    for _ in range(_WAITS):
        node, index = client.get_indexed(
            f"/v1/node/{volume['NodeID']}",
            {"index": index or None, "wait": _WAIT},
            doing="querying node",
        )
        there = (node.get("HostVolumes") or {}).get(volume["Name"]) or {}
        if there.get("ID") == volume["ID"]:
            return True
    return False


def _read(path: str) -> dict[str, Any]:
    if path == "-":
        return read_spec(sys.stdin.read(), name="standard input")
    try:
        content = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as cause:
        raise CliError(f"{path} is not UTF-8 text") from cause
    except OSError as cause:
        raise CliError(f"{path} cannot be read: {cause.strerror}") from cause
    return read_spec(content, name=path)


def _list(call: Call) -> list[Row]:
    options = call.options
    query = {
        "type": "host",
        "node_id": options.text("node") or None,
        "node_pool": options.text("node-pool") or None,
        "per_page": options.number("per-page"),
        "next_token": options.text("page-token") or None,
    }
    rows: list[Row] = call.client.get("/v1/volumes", query, doing="querying volumes")
    return rows


def _row(row: Row, length: int) -> list[object]:
    return [
        short(row["ID"], length),
        row["Name"],
        row["Namespace"],
        row["PluginID"],
        short(row["NodeID"], length),
        row["NodePool"],
        row["State"],
    ]


def _whole(client: Client, row: Row) -> Row:
    volume: Row = client.get(
        f"/v1/volume/host/{row['ID']}", in_namespace(row), doing="querying volume"
    )
    return volume


def _show(volume: Row, length: int, *, allocations: bool, indent: str = "") -> None:
    rows = [
        ("ID", volume["ID"] if not indent else short(volume["ID"], length)),
        ("Name", volume["Name"]),
        ("Namespace", volume["Namespace"]),
        ("Plugin ID", volume["PluginID"]),
        ("Node ID", volume["NodeID"]),
        ("Node Pool", volume["NodePool"]),
        ("Capacity", size(volume["CapacityBytes"])),
        ("State", volume["State"]),
        ("Host Path", volume["HostPath"]),
    ]
    if indent:
        lines = [stamp(), *pairs(rows).splitlines()]
        say("\n".join(f"{indent}{line}" for line in lines))
        return
    rows[8:8] = [("Created", stamp(volume["CreateTime"]))]
    say(pairs(rows))
    section(
        "Capabilities",
        table(
            "Access Mode|Attachment Mode",
            [
                [one["AccessMode"], one["AttachmentMode"]]
                for one in volume.get("RequestedCapabilities") or []
            ],
        ),
    )
    if volume.get("Constraints"):
        section(
            "Constraints",
            table(
                "Attribute|Operator|Value",
                [[one["LTarget"], one["Operand"], one["RTarget"]] for one in volume["Constraints"]],
            ),
        )
    if volume.get("Parameters"):
        section("Parameters", pairs(sorted(volume["Parameters"].items())))
    if allocations:
        users = volume.get("Allocations") or []
        section(
            "Allocations",
            allocs_table(users, length) if users else "No allocations placed",
        )


def _check_type(call: Call) -> None:
    kind = call.options.text("type")
    if kind not in ("", None, "host"):
        raise UsageError(f'-type "{kind}" is not supported: only host volumes are')
