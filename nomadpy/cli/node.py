"""`node drain` and `node eligibility`: commands that change a node."""

from __future__ import annotations

from typing import Any

from nomadpy.cli.client import Client
from nomadpy.cli.command import VERBOSE, Call, command
from nomadpy.cli.errors import CliError, UsageError
from nomadpy.cli.flags import Flag, many, text
from nomadpy.cli.lookup import find_node
from nomadpy.cli.node_status import self_node
from nomadpy.cli.output import parse_duration, say, short, stamp

_HOUR_NS = 3_600_000_000_000
_SELF = Flag("self", "The node of the agent that is asked.")


@command(
    "node eligibility [options] <node>",
    "Allow a node new work, or forbid it. What runs there stays.",
    flags=(Flag("enable", "Allow."), Flag("disable", "Forbid."), _SELF),
    operands=(0, 1),
)
def eligibility(call: Call) -> int:
    """Change it."""
    enable = _one_of(call, "enable", "disable")
    node = _node(call)
    word = "eligible" if enable else "ineligible"
    body = {"NodeID": node["ID"], "Eligibility": word}
    call.client.put(
        f"/v1/node/{node['ID']}/eligibility", body, doing="updating scheduling eligibility"
    )
    say(f'Node "{short(node["ID"])}" scheduling eligibility set: {word}')
    return 0


@command(
    "node drain [options] <node>",
    "Move all work off a node (-enable), or end that (-disable). Follows until the node is empty.",
    flags=(
        Flag("enable", "Drain."),
        Flag("disable", "End the drain and make the node eligible."),
        text(
            "deadline",
            "After this time what is left is stopped by force; 1h without the flag.",
            "duration",
        ),
        Flag("detach", "Do not follow."),
        Flag("force", "Stop everything at once."),
        Flag("ignore-system", "Leave allocations of system jobs."),
        Flag("keep-ineligible", "With -disable: the node stays ineligible."),
        text("m", "A note kept with the drain.", "message"),
        many("meta", "key=value kept with the drain.", "key=value"),
        Flag("monitor", "Follow a drain that goes on."),
        Flag("no-deadline", "Wait without an end."),
        _SELF,
        Flag("yes", "Accepted; nothing is asked."),
        VERBOSE,
    ),
    operands=(0, 1),
)
def drain(call: Call) -> int:
    """Drain and follow."""
    if call.options.on("monitor") and not call.options.on("enable"):
        return _follow(call.client, _node(call)["ID"])
    enable = _one_of(call, "enable", "disable")
    spec = _spec(call) if enable else None
    meta = dict(_pair(word) for word in call.options.many("meta"))
    if note := call.options.text("m"):
        meta["message"] = note
    node = _node(call)
    body: dict[str, Any] = {
        "NodeID": node["ID"],
        "DrainSpec": spec,
        "MarkEligible": not enable and not call.options.on("keep-ineligible"),
        "Meta": meta,
    }
    call.client.put(f"/v1/node/{node['ID']}/drain", body, doing="updating drain specification")
    if not enable:
        say(f'Node "{node["ID"]}" drain strategy unset')
        return 0
    say(f'Node "{node["ID"]}" drain strategy set')
    return 0 if call.options.on("detach") else _follow(call.client, node["ID"])


def _follow(client: Client, identity: str) -> int:
    """One line for each allocation that changes, until the drain is over."""
    say(f'==> {stamp()}: Monitoring node "{short(identity)}": Ctrl-C to detach, the drain goes on')
    index, before = 0, ""
    seen: dict[str, str] = {}
    while True:
        node, index = client.get_indexed(
            f"/v1/node/{identity}",
            {"index": index, "wait": "2s"} if index else None,
            doing="querying node",
        )
        allocs = client.get(f"/v1/node/{identity}/allocations", doing="querying allocations")
        for alloc in sorted(allocs, key=lambda a: str(a["Name"])):
            state = f"{alloc['DesiredStatus']}/{alloc['ClientStatus']}"
            known = seen.get(alloc["ID"])
            seen[alloc["ID"]] = state
            if known not in (None, state):
                say(
                    f'    {stamp()}: Alloc "{short(alloc["ID"])}" ({alloc["JobID"]}): {known} -> {state}'
                )
        left = sum(a["ClientStatus"] in ("pending", "running") for a in allocs)
        text_ = f"{left} allocation{'' if left == 1 else 's'} left"
        if text_ != before:
            say(f"    {stamp()}: {text_}")
            before = text_
        if not node.get("DrainStrategy"):
            last = (node.get("LastDrain") or {}).get("Status") or "complete"
            say(f'==> {stamp()}: Drain of node "{short(identity)}" is {last}')
            return 0


def _spec(call: Call) -> dict[str, Any]:
    options = call.options
    chosen = [n for n in ("deadline", "force", "no-deadline") if options.given.get(n)]
    if len(chosen) > 1:
        raise UsageError(f"-{chosen[0]} and -{chosen[1]} exclude each other")
    deadline = _HOUR_NS
    if options.on("force"):
        deadline = -1
    elif options.on("no-deadline"):
        deadline = 0
    elif given := options.text("deadline"):
        parsed = parse_duration(given)
        if parsed is None or parsed <= 0:
            raise UsageError(f'The deadline "{given}" is not a duration such as 30m or 1h')
        deadline = parsed
    return {"Deadline": deadline, "IgnoreSystemJobs": options.on("ignore-system")}


def _node(call: Call) -> dict[str, Any]:
    if call.options.on("self"):
        if call.operands:
            raise UsageError("-self and a node exclude each other")
        return {"ID": self_node(call)}
    if not call.operands:
        raise UsageError("A node is needed, or -self")
    return find_node(call.client, call.operand())


def _one_of(call: Call, yes: str, no: str) -> bool:
    on, off = call.options.on(yes), call.options.on(no)
    if on == off:
        raise UsageError(f"Either -{yes} or -{no} is needed")
    return on


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise CliError(f'-meta "{word}" is not key=value')
    return key, value
