"""`deployment list`, `status`, `fail`, `pause`, `promote`, `resume`."""

from __future__ import annotations

from typing import Any

from nomadpy.cli.command import DETACH, JSON, VERBOSE, Call, command
from nomadpy.cli.flags import Flag, many, text
from nomadpy.cli.follow import Follower, deployed_table
from nomadpy.cli.job_status import allocs_table
from nomadpy.cli.lookup import find_deployment
from nomadpy.cli.output import pairs, say, say_json, section, short, table

Row = dict[str, Any]


@command(
    "deployment list [options]",
    "List deployments.",
    flags=(text("filter", "Only those that match this expression.", "filter"), JSON, VERBOSE),
)
def list_(call: Call) -> int:
    """List."""
    query = {"filter": call.options.text("filter") or None}
    rows = call.client.get("/v1/deployments", query, doing="querying deployments")
    if call.options.on("json"):
        say_json(rows)
    else:
        say(_table(rows, call.id_length) if rows else "No deployments found")
    return 0


@command(
    "deployment status [options] [<deployment>]",
    "Show a deployment: its groups and allocations.",
    flags=(JSON, Flag("monitor", "Follow it to its end."), VERBOSE),
    operands=(0, 1),
)
def status(call: Call) -> int:
    """Show or follow."""
    if not call.operands:
        rows = call.client.get("/v1/deployments", doing="querying deployments")
        say(_table(rows, call.id_length) if rows else "No deployments found")
        return 0
    found = find_deployment(call.client, call.operand())
    if call.options.on("json"):
        say_json(found)
        return 0
    if call.options.on("monitor"):
        return Follower(call.client, length=call.id_length).deployment(found["ID"])
    say(
        pairs(
            [
                ("ID", short(found["ID"], call.id_length)),
                ("Job ID", found["JobID"]),
                ("Job Version", found["JobVersion"]),
                ("Status", found["Status"]),
                ("Description", found["StatusDescription"]),
            ]
        )
    )
    section("Deployed", deployed_table(found))
    allocs = call.client.get(
        f"/v1/deployment/allocations/{found['ID']}", doing="querying allocations"
    )
    if allocs:
        section("Allocations", allocs_table(allocs, call.id_length))
    return 0


@command(
    "deployment fail [options] <deployment>",
    "Mark a deployment as failed; a group with auto_revert goes back to the last stable version.",
    flags=(DETACH, VERBOSE),
    operands=(1, 1),
)
def fail(call: Call) -> int:
    """Fail and follow."""
    found = find_deployment(call.client, call.operand())
    body = {"DeploymentID": found["ID"]}
    answer = call.client.put(f"/v1/deployment/fail/{found['ID']}", body, doing="failing deployment")
    say(f'Deployment "{short(found["ID"], call.id_length)}" failed')
    if (version := answer.get("RevertedJobVersion")) is not None:
        say(f"Auto-reverted to job version {version}")
    if not answer.get("EvalID") or call.options.on("detach"):
        return 0
    Follower(call.client, length=call.id_length).evaluation(answer["EvalID"])
    return 0


@command(
    "deployment pause [options] <deployment>",
    "Hold a deployment.",
    flags=(VERBOSE,),
    operands=(1, 1),
)
def pause(call: Call) -> int:
    """Pause."""
    return _hold(call, hold=True)


@command(
    "deployment promote [options] <deployment>",
    "Let healthy canaries take the place of the old version.",
    flags=(
        many("group", "Only this group's; may be given more than once.", "group"),
        DETACH,
        VERBOSE,
    ),
    operands=(1, 1),
)
def promote(call: Call) -> int:
    """Promote and follow."""
    found = find_deployment(call.client, call.operand())
    groups = call.options.many("group")
    body = {"DeploymentID": found["ID"], "All": not groups, "Groups": groups or None}
    answer = call.client.put(
        f"/v1/deployment/promote/{found['ID']}", body, doing="promoting deployment"
    )
    if not answer.get("EvalID") or call.options.on("detach"):
        say(f'Deployment "{short(found["ID"], call.id_length)}" promoted')
        return 0
    return Follower(call.client, length=call.id_length).evaluation(answer["EvalID"])


@command(
    "deployment resume [options] <deployment>",
    "Let a held deployment go on.",
    flags=(DETACH, VERBOSE),
    operands=(1, 1),
)
def resume(call: Call) -> int:
    """Resume."""
    return _hold(call, hold=False)


def _hold(call: Call, *, hold: bool) -> int:
    found = find_deployment(call.client, call.operand())
    body = {"DeploymentID": found["ID"], "Pause": hold}
    doing = "pausing deployment" if hold else "resuming deployment"
    call.client.put(f"/v1/deployment/pause/{found['ID']}", body, doing=doing)
    say(f'Deployment "{short(found["ID"], call.id_length)}" {"paused" if hold else "resumed"}')
    return 0


def _table(rows: list[Row], length: int) -> str:
    return table(
        "ID|Job ID|Job Version|Status|Description",
        [
            [
                short(r["ID"], length),
                r["JobID"],
                r["JobVersion"],
                r["Status"],
                r["StatusDescription"],
            ]
            for r in rows
        ],
    )
