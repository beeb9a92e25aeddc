"""`eval status` and `eval list`."""

from __future__ import annotations

from nomadpy.cli.command import JSON, VERBOSE, Call, command
from nomadpy.cli.flags import Flag, number, text
from nomadpy.cli.follow import Follower
from nomadpy.cli.job_status import allocs_table, evaluations_table
from nomadpy.cli.lookup import find_eval
from nomadpy.cli.output import pairs, say, say_json, section, short, stamp
from nomadpy.cli.placement import failures


@command(
    "eval status [options] <evaluation>",
    "Show an evaluation, and why it could not place what it could not.",
    flags=(JSON, Flag("monitor", "Follow it to its end."), VERBOSE),
    operands=(1, 1),
)
def status(call: Call) -> int:
    """Show or follow."""
    found = find_eval(call.client, call.operand())
    length = call.id_length
    if call.options.on("monitor"):
        return Follower(call.client, length=length).evaluation(found["ID"])
    if call.options.on("json"):
        say_json(found)
        return 0
    rows: list[tuple[str, object]] = [
        ("ID", short(found["ID"], length)),
        ("Create Time", stamp(found["CreateTime"])),
        ("Modify Time", stamp(found["ModifyTime"])),
        ("Status", found["Status"]),
        ("Status Description", found.get("StatusDescription") or found["Status"]),
        ("Type", found["Type"]),
        ("TriggeredBy", found["TriggeredBy"]),
        ("Job ID", found["JobID"]),
        ("Namespace", found["Namespace"]),
        ("Priority", found["Priority"]),
        ("Placement Failures", bool(found.get("FailedTGAllocs"))),
    ]
    for label, key in (
        ("Node ID", "NodeID"),
        ("Previous Eval", "PreviousEval"),
        ("Next Eval", "NextEval"),
        ("Blocked Eval", "BlockedEval"),
        ("Deployment ID", "DeploymentID"),
    ):
        if found.get(key):
            rows.append((label, short(found[key], length)))
    say(pairs(rows))
    if found.get("FailedTGAllocs"):
        section("Failed Placements", "\n".join(failures(found["FailedTGAllocs"])))
        if blocked := found.get("BlockedEval"):
            say(
                f'\nEvaluation "{short(blocked, length)}" waiting for additional capacity to place remainder'
            )
    allocs = call.client.get(
        f"/v1/evaluation/{found['ID']}/allocations", doing="querying allocations"
    )
    if allocs:
        section("Allocations", allocs_table(allocs, length))
    return 0


@command(
    "eval list [options]",
    "List evaluations.",
    flags=(
        text("filter", "Only those that match this expression.", "filter"),
        text("job", "Only of this job.", "job"),
        JSON,
        text("page-token", "Begin at this token.", "token"),
        number("per-page", "How many."),
        text("status", "Only with this status.", "status"),
        VERBOSE,
    ),
)
def list_(call: Call) -> int:
    """List."""
    options = call.options
    query = {
        "filter": options.text("filter") or None,
        "job": options.text("job") or None,
        "status": options.text("status") or None,
        "per_page": options.number("per-page"),
        "next_token": options.text("page-token") or None,
    }
    rows = call.client.get("/v1/evaluations", query, doing="querying evaluations")
    if options.on("json"):
        say_json(rows)
    else:
        say(evaluations_table(rows, call.id_length) if rows else "No evals found")
    return 0
