"""`job plan` and `job validate`: what a job file would do, without doing it."""

from __future__ import annotations

import shlex
from typing import Any

from nomadpy.cli import job_file
from nomadpy.cli.client import escaped
from nomadpy.cli.command import VERBOSE, Call, command
from nomadpy.cli.errors import CliError
from nomadpy.cli.flags import Flag
from nomadpy.cli.output import say, say_json, short, warn
from nomadpy.cli.placement import failures

_MARKS = {"Added": "+", "Deleted": "-", "Edited": "+/-", "None": ""}
CHANGES = 1


@command(
    "job plan [options] <path>",
    "Show what running the job file would change.\n"
    "Exit code 0: no allocation would be made or ended; 1: some would; 255: an error.",
    flags=(
        Flag(
            "diff", "Show the difference to the job that runs (the default; -diff=false hides it)."
        ),
        Flag("json", "The file is JSON (also found out without the flag)."),
        Flag("json-output", "Print the API's JSON."),
        Flag("policy-override", "Override soft policies."),
        VERBOSE,
    ),
    operands=(1, 1),
    error_status=255,
)
def plan(call: Call) -> int:
    """Ask for a dry run and show it."""
    file = job_file.read(call.operand())
    show_diff = bool(call.options.given.get("diff", True))
    body = {
        "Job": file.job,
        "Diff": show_diff,
        "PolicyOverride": call.options.on("policy-override"),
    }
    mine = call.client.settings
    query = job_file.place(file.job, mine.namespace, mine.region)
    path = f"/v1/job/{escaped(file.job['ID'])}/plan"
    plan = call.client.put(path, body, query, doing="during plan")
    if call.options.on("json-output"):
        say_json(plan)
        return _status(plan)
    if show_diff and plan.get("Diff"):
        say("\n".join(diff_lines(plan["Diff"])) + "\n")
    say("Scheduler dry-run:")
    failed = failures(plan.get("FailedTGAllocs"), "  ")
    if failed:
        say("- WARNING: Failed to place all allocations.")
        say("\n".join(failed))
    else:
        say("- All tasks successfully allocated.")
    if preempted := (plan.get("Annotations") or {}).get("PreemptedAllocs"):
        say(f"\nPreemptions: {len(preempted)} allocations would be evicted:")
        for alloc in preempted:
            say(
                f"  {short(alloc['ID'], call.id_length)}  job {alloc['JobID']}, group {alloc['TaskGroup']}"
            )
    if plan.get("Warnings"):
        warn(f"\nJob Warnings:\n{plan['Warnings']}")
    index = plan["JobModifyIndex"]
    say(
        f"\nJob Modify Index: {index}\n"
        "To submit the job with version verification run:\n\n"
        f"nomadpy job run -check-index {index} {shlex.quote(call.operand())}\n\n"
        "The job is then run only if nobody has changed it since this plan."
    )
    return _status(plan)


@command(
    "job validate [options] <path>",
    "Check a job file: its text here, its rules by the servers.",
    flags=(Flag("json", "The file is JSON (also found out without the flag)."),),
    operands=(1, 1),
)
def validate(call: Call) -> int:
    """Validate."""
    file = job_file.read(call.operand())
    mine = call.client.settings
    query = job_file.place(file.job, mine.namespace, mine.region)
    found = call.client.put("/v1/validate/job", {"Job": file.job}, query, doing="validating job")
    if found.get("Warnings"):
        warn(f"Job Warnings:\n{found['Warnings']}\n")
    if found.get("Error") or found.get("ValidationErrors"):
        text = found.get("Error") or "\n".join(f"* {e}" for e in found["ValidationErrors"])
        raise CliError(f"Job validation errors:\n{text.strip()}")
    say("Job validation successful")
    return 0


def diff_lines(diff: dict[str, Any]) -> list[str]:
    """The structural difference of a job, marked with + - +/-; unchanged parts are left out."""
    lines = [f'{_mark(diff)}Job: "{diff["ID"]}"']
    lines += _parts(diff, "")
    for group in diff.get("TaskGroups") or []:
        counts = ", ".join(
            f"{n} {what}" for what, n in sorted((group.get("Updates") or {}).items())
        )
        if group["Type"] == "None" and not counts:
            continue
        lines.append(
            f'{_mark(group)}Task Group: "{group["Name"]}"' + (f" ({counts})" if counts else "")
        )
        lines += _parts(group, "  ")
        for task in group.get("Tasks") or []:
            notes = ", ".join(task.get("Annotations") or [])
            if task["Type"] == "None" and not notes:
                continue
            lines.append(
                f'  {_mark(task)}Task: "{task["Name"]}"' + (f" ({notes})" if notes else "")
            )
            lines += _parts(task, "    ") if task["Type"] in ("Edited", "None") else []
    return lines


def _parts(diff: dict[str, Any], indent: str) -> list[str]:
    lines = [_field(f, indent) for f in diff.get("Fields") or []]
    for part in diff.get("Objects") or []:
        lines.append(f"{indent}{_mark(part)}{part['Name']} {{")
        lines += _parts(part, indent + "  ")
        lines.append(f"{indent}}}")
    return lines


def _field(field: dict[str, Any], indent: str) -> str:
    notes = field.get("Annotations") or []
    note = f" ({', '.join(notes)})" if notes else ""
    kind, name, old, new = field["Type"], field["Name"], field["Old"], field["New"]
    values = {
        "Added": f'"{new}"',
        "Deleted": f'"{old}"',
        "Edited": f'"{old}" => "{new}"',
        "None": f'"{new}"',
    }
    return f"{indent}{_mark(field)}{name}: {values.get(kind, new)}{note}"


def _mark(diff: dict[str, Any]) -> str:
    mark = _MARKS.get(diff["Type"], "")
    return f"{mark} " if mark else "  "


def _status(plan: dict[str, Any]) -> int:
    counts = ((plan.get("Annotations") or {}).get("DesiredTGUpdates") or {}).values()
    changing = ("Place", "Migrate", "Stop", "DestructiveUpdate", "Canary", "Preemptions")
    return CHANGES if any(update.get(name) for update in counts for name in changing) else 0
