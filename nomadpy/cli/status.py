"""`status`, `version`, `server ...`, `system ...`, `monitor`, `agent-info`, `namespace list`."""

from __future__ import annotations

import sys
from typing import Any

from nomadpy import __version__
from nomadpy.cli.alloc_files import frames
from nomadpy.cli.command import JSON, VERBOSE, Call, command
from nomadpy.cli.errors import CliError
from nomadpy.cli.flags import Flag, text
from nomadpy.cli.output import pairs, say, say_json, section, table

Row = dict[str, Any]
_KINDS = {
    "allocs": "alloc status",
    "nodes": "node status",
    "evals": "eval status",
    "deployment": "deployment status",
}


@command(
    "status [options] [<identifier>]",
    "Show whatever has this id: job, allocation, node, evaluation or deployment. Without one: the jobs.",
    flags=(VERBOSE,),
    operands=(0, 1),
)
def status(call: Call) -> int:
    """Find out what it is and show that."""
    from nomadpy.cli import job_status, main

    flags = ["-verbose"] if call.options.on("verbose") else []
    flags += [f"-{n}={call.options.text(n)}" for n in _general(call)]
    if not call.operands:
        return job_status.status.run(flags)
    name = call.operand()
    jobs = call.client.get("/v1/jobs", {"prefix": name}, doing="querying jobs")
    if any(job["ID"] == name for job in jobs):
        return job_status.status.run([*flags, name])
    kinds = {"jobs"} if jobs else set()
    if len(name) >= 2 and not set(name.lower()) - set("0123456789abcdef-"):
        found = call.client.put(
            "/v1/search", {"Prefix": name, "Context": "all"}, {"namespace": "*"}, doing="searching"
        )
        kinds |= {
            kind
            for kind, ids in (found.get("Matches") or {}).items()
            if kind in _KINDS and any(i.startswith(name.lower()) for i in ids or [])
        }
    if not kinds:
        raise CliError(
            f'Nothing has the prefix or ID "{name}". See the jobs with: nomadpy job status'
        )
    if len(kinds) > 1:
        options = ", ".join(f"nomadpy {_KINDS.get(k, 'job status')} {name}" for k in sorted(kinds))
        raise CliError(f'"{name}" may be several things; ask for one of: {options}')
    command_name = _KINDS.get(kinds.pop(), "job status")
    return main.main([*command_name.split(), *flags, name])


@command("version", "Print the version.", general=False)
def version(_call: Call) -> int:
    """Print."""
    say(f"Nomadpy v{__version__}")
    return 0


@command(
    "server members [options]",
    "List the servers.",
    flags=(Flag("detailed", "With every tag."), JSON, VERBOSE),
)
def members(call: Call) -> int:
    """List."""
    found = call.client.get("/v1/agent/members", doing="querying servers")
    rows = sorted(found.get("Members") or [], key=lambda m: str(m["Name"]))
    if call.options.on("json"):
        say_json(rows)
        return 0
    try:
        leader = call.client.get("/v1/status/leader", doing="querying leader")
    except CliError:
        # Without a leader the list is what one wants to see all the more.
        leader = ""
    if call.options.on("detailed"):
        say(
            "\n\n".join(
                pairs([("Name", m["Name"]), *sorted((m["Tags"] or {}).items())]) for m in rows
            )
        )
        return 0
    lines = []
    for member in rows:
        tags = member["Tags"] or {}
        address = f"{tags.get('rpc_addr') or member['Addr']}:{tags.get('port', '')}"
        lines.append(
            [
                member["Name"],
                member["Addr"],
                tags.get("port") or member["Port"],
                member["Status"],
                bool(leader) and address == leader,
                tags.get("raft_vsn", ""),
                tags.get("build", ""),
                tags.get("dc", ""),
                tags.get("region", ""),
            ]
        )
    say(table("Name|Address|Port|Status|Leader|Raft Version|Build|Datacenter|Region", lines))
    if not leader:
        say("\nNo cluster leader: the servers are electing one, or most of them are down.")
    return 0


@command("server join [options] <addr>...", "Join the asked server to others.", operands=(1, None))
def join(call: Call) -> int:
    """Join."""
    from urllib.parse import urlencode

    path = "/v1/agent/join?" + urlencode([("address", a) for a in call.operands])
    found = call.client.put(path, doing="joining")
    if found.get("error"):
        raise CliError(f"Error joining: {found['error']}")
    say(f"Joined {found['num_joined']} servers successfully")
    return 0


@command(
    "server force-leave [options] <node>",
    "Treat a failed server as gone.",
    flags=(Flag("prune", "Forget it altogether."),),
    operands=(1, 1),
)
def force_leave(call: Call) -> int:
    """Force."""
    query = {"node": call.operand(), "prune": call.options.on("prune") or None}
    call.client.put("/v1/agent/force-leave", None, query, doing="force-leaving server")
    return 0


@command(
    "system gc [options]", "Collect garbage now: old evaluations, allocations, jobs and nodes."
)
def gc(call: Call) -> int:
    """Collect."""
    call.client.put("/v1/system/gc", doing="running system garbage-collection")
    return 0


@command("system reconcile summaries [options]", "Count the job summaries anew.")
def reconcile(call: Call) -> int:
    """Reconcile."""
    call.client.put("/v1/system/reconcile/summaries", doing="reconciling summaries")
    return 0


@command(
    "monitor [options]",
    "Show the agent's log and follow it.",
    flags=(text("log-level", "trace, debug, info (the default), warn or error.", "level"),),
)
def monitor(call: Call) -> int:
    """Follow."""
    query = {"log_level": call.options.text("log-level") or None}
    out = sys.stdout.buffer
    with call.client.stream("/v1/agent/monitor", query, doing="starting monitor") as chunks:
        for data in frames(chunks):
            out.write(data)
            out.flush()
    return 0


@command("agent-info [options]", "Show what the agent says about itself.", flags=(JSON,))
def agent_info(call: Call) -> int:
    """Show."""
    found = call.client.get("/v1/agent/self", doing="querying agent info")
    if call.options.on("json"):
        say_json(found)
        return 0
    for name, figures in sorted((found.get("stats") or {}).items()):
        section(name, pairs((f"  {key}", value) for key, value in sorted((figures or {}).items())))
    return 0


@command("namespace list [options]", "List namespaces.", flags=(JSON,))
def namespaces(call: Call) -> int:
    """List."""
    rows = call.client.get("/v1/namespaces", doing="retrieving namespaces")
    if call.options.on("json"):
        say_json(rows)
    else:
        say(table("Name|Description", [[r["Name"], r["Description"]] for r in rows]))
    return 0


def _general(call: Call) -> list[str]:
    from nomadpy.cli.command import GENERAL

    return [f.name for f in GENERAL if f.kind == "text" and call.options.text(f.name)]
