"""`rebalance`: moves that better the cluster, said first and made when asked for."""

from __future__ import annotations

from nomadpy.cli.command import JSON, VERBOSE, Call, command
from nomadpy.cli.errors import UsageError
from nomadpy.cli.flags import Flag, number, text
from nomadpy.cli.output import say, say_json, section, short, table


@command(
    "rebalance [options]",
    "Say which allocations should move for the cluster's good; with -run, move them.\n"
    "Only allocations of service jobs move, that are at rest and keep no data. A move is a migration: the\n"
    "allocation is stopped, and another one started where the scheduler puts it.",
    flags=(
        Flag("run", "Make the moves. Without it they are only said."),
        text("goal", "pack (few nodes) or spread; without it what the scheduler is after.", "goal"),
        number("max-moves", "At most so many moves; 10.", "num"),
        number("max-per-job", "At most so many of one job; 1.", "num"),
        text("job", "Only this job's.", "job"),
        JSON,
        VERBOSE,
    ),
)
def rebalance(call: Call) -> int:
    """Ask, show, and say how to go on."""
    options = call.options
    goal = options.text("goal")
    if goal not in ("", "pack", "spread"):
        raise UsageError(f'invalid value "{goal}" for flag -goal: use pack or spread')
    body = {
        "Goal": goal,
        "MaxMoves": options.number("max-moves") or 10,
        "MaxPerJob": options.number("max-per-job") or 1,
        "JobID": options.text("job"),
        "Namespace": call.client.settings.namespace if options.text("job") else "",
        "DryRun": not options.on("run"),
    }
    found = call.client.put("/v1/rebalance", body, doing="rebalancing")
    if options.on("json"):
        say_json(found)
        return 0
    moves = found["Moves"] or []
    if not moves:
        say(f"No move would better the cluster (goal: {found['Goal']}).")
        return 0
    verb = "Moving" if options.on("run") else "Would move"
    noun = "allocation" if len(moves) == 1 else "allocations"
    say(f"{verb} {len(moves)} {noun} (goal: {found['Goal']}).")
    rows = [
        [short(one["AllocID"], call.id_length), one["Name"], one["FromNode"], one["ToNode"]]
        for one in moves
    ]
    section("Moves", table("Alloc|Name|From|To", rows))
    say("")
    say(
        f"Nodes in use: {found['NodesUsedBefore']} -> {found['NodesUsedAfter']}; "
        f"{found['Goal']} score: {found['ScoreBefore']:.3f} -> {found['ScoreAfter']:.3f}"
    )
    if not options.on("run"):
        say("Make these moves with: nomadpy rebalance -run")
    return 0
