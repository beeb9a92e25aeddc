"""`job explain` and `eval explain`: why a job is placed as it is, or is not, and what to do about it."""

from __future__ import annotations

import os
from typing import Any

from nomadpy.cli import job_file
from nomadpy.cli.client import escaped
from nomadpy.cli.command import JSON, VERBOSE, Call, command
from nomadpy.cli.flags import number
from nomadpy.cli.lookup import find_eval, find_job
from nomadpy.cli.output import say, say_json, short, table

Row = dict[str, Any]

_NODES = number("nodes", "How many nodes to list for each group that misses a place; 5.", "num")
UNPLACED = 2


@command(
    "job explain [options] <job>",
    "Say where a job's allocations are and why, and what keeps the others from being placed.\n"
    "With a job file: what would keep it from being placed, without running it.\n"
    "Exit code 0: nothing is missing; 2: something is.",
    flags=(JSON, _NODES, VERBOSE),
    operands=(1, 1),
)
def job(call: Call) -> int:
    """Explain a job that is registered, or a file."""
    operand = call.operand()
    if os.path.isfile(operand):
        file = job_file.read(operand)
        mine = call.client.settings
        query = job_file.place(file.job, mine.namespace, mine.region)
        path = f"/v1/job/{escaped(file.job['ID'])}/explain"
        found = call.client.put(path, {"Job": file.job}, query, doing="explaining job")
    else:
        stub = find_job(call.client, operand)
        path = f"/v1/job/{escaped(stub['ID'])}/explain"
        query = {"namespace": stub["Namespace"], "nodes": str(_shown(call))}
        found = call.client.get(path, query, doing="explaining job")
    return _show(call, found)


@command(
    "eval explain [options] <evaluation>",
    "Say what an evaluation came to, and what keeps its job from being placed now.\n"
    "Exit code 0: nothing is missing; 2: something is.",
    flags=(JSON, _NODES, VERBOSE),
    operands=(1, 1),
)
def evaluation(call: Call) -> int:
    """Explain the job of an evaluation."""
    stub = find_eval(call.client, call.operand())
    query = {"nodes": str(_shown(call))}
    path = f"/v1/evaluation/{stub['ID']}/explain"
    return _show(call, call.client.get(path, query, doing="explaining evaluation"))


def _shown(call: Call) -> int:
    wanted = call.options.number("nodes")
    return 5 if wanted is None else max(0, wanted)


def _show(call: Call, found: Row) -> int:
    missing = any(group["Missing"] for group in found["Groups"] or [])
    if call.options.on("json"):
        say_json(found)
    else:
        say("\n".join(lines(found, call.id_length, _shown(call))))
    return UNPLACED if missing else 0


def lines(found: Row, length: int, shown: int) -> list[str]:
    """The explanation as text."""
    out: list[str] = []
    if found["EvalID"]:
        out.append(
            f'Evaluation "{short(found["EvalID"], length)}" ({found["EvalTriggeredBy"]}) is '
            f"{found['EvalStatus']}. Its job as it stands now:"
        )
        out.append("")
    out.append(
        f'Job "{found["JobID"]}" ({found["JobType"]}, version {found["JobVersion"]}, '
        f'namespace "{found["Namespace"]}")'
    )
    for group in found["Groups"] or []:
        out += ["", *_group(group, length, shown)]
    if found["WaitingEval"]:
        out += [
            "",
            f'Evaluation "{short(found["WaitingEval"], length)}" waits, and places what is missing '
            "as soon as a node will do.",
        ]
    return out


def _group(group: Row, length: int, shown: int) -> list[str]:
    out = [f'Group "{group["Name"]}": {group["Summary"]}.']
    if group["Suggestions"]:
        out += ["", "  What to do:"]
        out += [f"  {number}. {text}" for number, text in enumerate(group["Suggestions"], 1)]
    if group["Missing"] and group["Tally"]:
        out += ["", f"  What stands in the way, of {_nodes(group['TotalNodes'])}:"]
        out += [f"    {kind}: {_nodes(count)}" for kind, count in group["Tally"].items()]
    if group["Missing"]:
        out += _verdicts(group, length, shown)
    if group["Allocs"]:
        rows = [
            [
                short(one["AllocID"], length),
                one["Name"],
                one["NodeName"],
                one["ClientStatus"],
                f"{one['Score']:.3f}" if one["Scores"] else "-",
                ", ".join(f"{k} {v:.3f}" for k, v in (one["Scores"] or {}).items()) or "-",
                f"{one['RunnerUp']} {one['RunnerUpScore']:.3f}" if one["RunnerUp"] else "-",
            ]
            for one in group["Allocs"]
        ]
        header = "Alloc|Name|Node|Status|Score|Made of|Next best"
        out += ["", *("  " + line for line in table(header, rows).splitlines())]
    return out


def _verdicts(group: Row, length: int, shown: int) -> list[str]:
    listed = (group["Nodes"] or [])[:shown]
    if not listed:
        return []
    out = ["", "  The nodes, the nearest first:"]
    for verdict in listed:
        where = f"{verdict['NodeName']} ({short(verdict['NodeID'], length)})"
        if verdict["Fits"]:
            out.append(f"    {where} fits, score {verdict['Score']:.3f}")
            continue
        count = len(verdict["Obstacles"])
        noun = "one thing" if count == 1 else f"{count} things"
        out.append(f"    {where}: {noun} in the way")
        out += [f"      - {one['Text']}" for one in verdict["Obstacles"]]
    more = group["LeftOut"] + len(group["Nodes"]) - len(listed)
    if more:
        out.append(f"    and {more} more (-nodes lists them)")
    return out


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
