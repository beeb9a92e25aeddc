"""`job status`, `allocs`, `history`, `inspect`: jobs as they are."""

from __future__ import annotations

from typing import Any

from nomadpy.cli.client import escaped
from nomadpy.cli.command import JSON, VERBOSE, Call, command
from nomadpy.cli.errors import CliError
from nomadpy.cli.flags import Flag, text
from nomadpy.cli.follow import deployed_table
from nomadpy.cli.lookup import find_job, in_namespace
from nomadpy.cli.output import age, pairs, say, say_json, section, short, stamp, table
from nomadpy.cli.placement import failures

Row = dict[str, Any]
_SUMMARY = ("Queued", "Starting", "Running", "Failed", "Complete", "Lost", "Unknown")


@command(
    "job status [options] [<job>]",
    "List the jobs, or show one: its groups, its latest deployment, its allocations.",
    flags=(
        Flag("all-allocs", "Also allocations of earlier jobs with the same id."),
        Flag("evals", "Also the evaluations."),
        JSON,
        Flag("short", "Only the job itself."),
        VERBOSE,
    ),
    operands=(0, 1),
)
def status(call: Call) -> int:
    """Show."""
    if not call.operands:
        rows = call.client.get("/v1/jobs", doing="querying jobs")
        if call.options.on("json"):
            say_json(rows)
        elif rows:
            say(jobs_table(rows, namespaces=call.client.settings.namespace == "*"))
        else:
            say("No running jobs")
        return 0
    stub = find_job(call.client, call.operand())
    show_job(call, stub)
    return 0


def jobs_table(rows: list[Row], *, namespaces: bool) -> str:
    """The list of jobs."""
    header = (
        "ID|Namespace|Type|Priority|Status|Submit Date"
        if namespaces
        else "ID|Type|Priority|Status|Submit Date"
    )
    return table(
        header,
        [
            [
                row["ID"],
                *([row["Namespace"]] if namespaces else []),
                _type(row),
                row["Priority"],
                row["Status"] + (" (stopped)" if row["Stop"] else ""),
                stamp(row["SubmitTime"]),
            ]
            for row in rows
        ],
    )


def show_job(call: Call, stub: Row) -> None:
    """Everything about one job."""
    client, query = call.client, in_namespace(stub)
    path = f"/v1/job/{escaped(stub['ID'])}"
    job = client.get(path, query, doing="querying job")
    if call.options.on("json"):
        say_json(job)
        return
    say(_about(job))
    if call.options.on("short"):
        return
    summary = client.get(f"{path}/summary", query, doing="querying job summary")
    groups = sorted((summary.get("Summary") or {}).items())
    section(
        "Summary",
        table(
            "Task Group|" + "|".join(_SUMMARY),
            [[name, *(group.get(column, 0) for column in _SUMMARY)] for name, group in groups],
        ),
    )
    evaluations = client.get(f"{path}/evaluations", query, doing="querying job evaluations")
    if call.options.on("evals"):
        section("Evaluations", evaluations_table(evaluations, call.id_length))
    blocked = [e for e in evaluations if e["Status"] == "blocked"]
    if blocked:
        newest = max(blocked, key=lambda e: int(e.get("CreateIndex", 0)))
        section("Placement Failure", "\n".join(failures(newest.get("FailedTGAllocs"))))
    deployment = client.get(f"{path}/deployment", query, doing="querying job deployment")
    if deployment:
        _show_deployment(deployment, call.id_length)
    allocs = client.get(
        f"{path}/allocations",
        {**query, "all": call.options.on("all-allocs") or None},
        doing="querying job allocations",
    )
    section(
        "Allocations", allocs_table(allocs, call.id_length) if allocs else "No allocations placed"
    )


@command(
    "job allocs [options] <job>",
    "List a job's allocations.",
    flags=(Flag("all", "Also those of earlier jobs with the same id."), JSON, VERBOSE),
    operands=(1, 1),
)
def allocs(call: Call) -> int:
    """List."""
    stub = find_job(call.client, call.operand())
    rows = call.client.get(
        f"/v1/job/{escaped(stub['ID'])}/allocations",
        {**in_namespace(stub), "all": call.options.on("all") or None},
        doing="querying job allocations",
    )
    if call.options.on("json"):
        say_json(rows)
    else:
        say(allocs_table(rows, call.id_length) if rows else "No allocations placed")
    return 0


@command(
    "job history [options] <job>",
    "List the versions of a job, newest first.",
    flags=(text("version", "Only this version.", "version"), JSON, VERBOSE),
    operands=(1, 1),
)
def history(call: Call) -> int:
    """List versions."""
    stub = find_job(call.client, call.operand())
    found = call.client.get(
        f"/v1/job/{escaped(stub['ID'])}/versions", in_namespace(stub), doing="querying job versions"
    )
    versions = found["Versions"] or []
    if wanted := call.options.text("version"):
        versions = [v for v in versions if str(v["Version"]) == wanted]
        if not versions:
            raise CliError(f'Job "{stub["ID"]}" has no version {wanted}')
    if call.options.on("json"):
        say_json(versions)
        return 0
    blocks = [
        pairs(
            [
                ("Version", version["Version"]),
                ("Stable", version["Stable"]),
                ("Submit Date", stamp(version["SubmitTime"])),
                *([("Tag Name", tag["Name"])] if (tag := version.get("VersionTag")) else []),
            ]
        )
        for version in versions
    ]
    say("\n\n".join(blocks))
    return 0


@command(
    "job inspect [options] <job>",
    "Print a job as the API has it, in JSON.",
    flags=(
        text("version", "This version instead of the newest.", "version"),
        Flag("json", "The default."),
    ),
    operands=(1, 1),
)
def inspect(call: Call) -> int:
    """Print JSON."""
    stub = find_job(call.client, call.operand())
    path = f"/v1/job/{escaped(stub['ID'])}"
    wanted = call.options.text("version")
    if not wanted:
        say_json({"Job": call.client.get(path, in_namespace(stub), doing="inspecting job")})
        return 0
    found = call.client.get(f"{path}/versions", in_namespace(stub), doing="inspecting job")
    for version in found["Versions"] or []:
        if str(version["Version"]) == wanted:
            say_json({"Job": version})
            return 0
    raise CliError(
        f'Job "{stub["ID"]}" has no version {wanted}; see: nomadpy job history {stub["ID"]}'
    )


def allocs_table(rows: list[Row], length: int) -> str:
    """The list of allocations, newest first."""
    ordered = sorted(rows, key=lambda r: (-int(r["CreateIndex"]), r["Name"]))
    return table(
        "ID|Node ID|Task Group|Version|Desired|Status|Created|Modified",
        [
            [
                short(row["ID"], length),
                short(row["NodeID"], length),
                row["TaskGroup"],
                row["JobVersion"],
                row["DesiredStatus"],
                row["ClientStatus"],
                age(row["CreateTime"]),
                age(row["ModifyTime"]),
            ]
            for row in ordered
        ],
    )


def evaluations_table(rows: list[Row], length: int) -> str:
    """The list of evaluations, newest first."""
    ordered = sorted(rows, key=lambda r: -int(r.get("CreateIndex", 0)))
    return table(
        "ID|Priority|Triggered By|Job ID|Status|Placement Failures",
        [
            [
                short(row["ID"], length),
                row["Priority"],
                row["TriggeredBy"],
                row["JobID"],
                row["Status"],
                "N/A - In Progress"
                if row["Status"] == "pending"
                else bool(row.get("FailedTGAllocs")),
            ]
            for row in ordered
        ],
    )


def _about(job: Row) -> str:
    return pairs(
        [
            ("ID", job["ID"]),
            ("Name", job["Name"]),
            ("Submit Date", stamp(job["SubmitTime"])),
            ("Type", job["Type"]),
            ("Priority", job["Priority"]),
            ("Datacenters", ",".join(job["Datacenters"] or [])),
            ("Namespace", job["Namespace"]),
            ("Node Pool", job["NodePool"]),
            ("Status", job["Status"] + (" (stopped)" if job["Stop"] else "")),
            ("Periodic", bool(job["Periodic"])),
            ("Parameterized", bool(job["ParameterizedJob"])),
            ("Version", job["Version"]),
        ]
    )


def _show_deployment(deployment: Row, length: int) -> None:
    section(
        "Latest Deployment",
        pairs(
            [
                ("ID", short(deployment["ID"], length)),
                ("Status", deployment["Status"]),
                ("Description", deployment["StatusDescription"]),
            ]
        ),
    )
    section("Deployed", deployed_table(deployment))


def _type(row: Row) -> str:
    if row.get("Periodic"):
        return f"{row['Type']}/periodic"
    return f"{row['Type']}/parameterized" if row.get("ParameterizedJob") else str(row["Type"])
