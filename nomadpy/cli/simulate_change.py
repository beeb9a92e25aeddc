"""`simulate change`: what would move if nodes went or came and jobs changed."""

from __future__ import annotations

from typing import Any

from nomadpy.cli import job_file
from nomadpy.cli.command import JSON, VERBOSE, Call, command
from nomadpy.cli.errors import UsageError
from nomadpy.cli.flags import many, number, text
from nomadpy.cli.output import say, say_json, section, table
from nomadpy.cli.placement import failures

Row = dict[str, Any]


@command(
    "simulate change [options]",
    "Say what would move if something changed. Nothing is changed.\n"
    "The changes are imagined all at once; what is placed is taken to become healthy.\n"
    "Exit code 0: everything would have a place; 2: something would not.",
    flags=(
        many("node-down", "This node (name or id) fails.", "node"),
        many("node-drain", "This node is drained.", "node"),
        number("node-add", "So many nodes join.", "num"),
        text("like", "They are like this node (name or id).", "node"),
        many("job", "The job of this file is run.", "path"),
        many("job-stop", "This job is stopped.", "job"),
        JSON,
        VERBOSE,
    ),
)
def change(call: Call) -> int:
    """Ask and show."""
    options = call.options
    count = options.number("node-add")
    body: Row = {
        "NodesDown": options.many("node-down"),
        "NodesDrained": options.many("node-drain"),
        "NodesAdded": [{"Count": count, "Like": options.text("like")}] if count else [],
        "Jobs": [job_file.read(path).job for path in options.many("job")],
        "JobsStopped": options.many("job-stop"),
    }
    if not any(body.values()):
        raise UsageError("say what changes: -node-down, -node-drain, -node-add, -job or -job-stop")
    found = call.client.put("/v1/simulate", body, doing="simulating")
    if options.on("json"):
        say_json(found)
    else:
        say(_summary(found))
        _show(found)
    return 2 if found["Unplaced"] else 0


def _summary(found: Row) -> str:
    parts = [
        f"{len(found[key] or [])} {word}"
        for key, word in (
            ("Moved", "would move"),
            ("Placed", "would be added"),
            ("Stopped", "would stop"),
            ("Evicted", "would be evicted"),
        )
        if found[key]
    ]
    missing = sum(one["Count"] for one in found["Unplaced"] or [])
    if missing:
        parts.append(f"{missing} would find no place")
    if not parts:
        return "Nothing would move."
    rest = "" if found["Settled"] else " The cluster did not come to rest within the simulation."
    return f"Allocations: {', '.join(parts)}.{rest}"


def _show(found: Row) -> None:
    for title, key in (
        ("Moves", "Moved"),
        ("Added", "Placed"),
        ("Stopped", "Stopped"),
        ("Evicted", "Evicted"),
    ):
        rows = [
            [one["Name"], one["Namespace"], one["FromNode"] or "-", one["ToNode"] or "-"]
            for one in found[key] or []
        ]
        if rows:
            section(title, table("Name|Namespace|From|To", rows))
    unplaced = found["Unplaced"] or []
    if unplaced:
        lines: list[str] = []
        for one in unplaced:
            lines.append(f'Job "{one["JobID"]}":')
            lines += failures({one["TaskGroup"]: one["Metrics"]}, "  ")
        section("Without a place", "\n".join(lines))
    loads = [
        [
            one["Node"],
            f"{one['CPUBefore']} -> {one['CPUAfter']} of {one['CPUTotal']}",
            f"{one['MemoryBeforeMB']} -> {one['MemoryAfterMB']} of {one['MemoryTotalMB']}",
            f"{one['AllocsBefore']} -> {one['AllocsAfter']}",
        ]
        for one in found["Nodes"] or []
    ]
    if loads:
        section("Nodes", table("Node|CPU MHz|Memory MiB|Allocs", loads))
