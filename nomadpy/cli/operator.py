"""`operator ...`: raft, autopilot, scheduler, keyring, metrics, and any request."""

from __future__ import annotations

import sys

from nomadpy.cli.command import JSON, Call, command
from nomadpy.cli.errors import ApiError, CliError, UsageError
from nomadpy.cli.flags import Flag, many, number, text
from nomadpy.cli.output import pairs, say, say_json, section, table

_SWITCHES = {
    "memory-oversubscription": "MemoryOversubscriptionEnabled",
    "reject-job-registration": "RejectJobRegistration",
    "pause-eval-broker": "PauseEvalBroker",
}
_PREEMPTION = {
    "preempt-batch-scheduler": "BatchSchedulerEnabled",
    "preempt-service-scheduler": "ServiceSchedulerEnabled",
    "preempt-sysbatch-scheduler": "SysBatchSchedulerEnabled",
    "preempt-system-scheduler": "SystemSchedulerEnabled",
}


@command(
    "operator raft list-peers [options]",
    "List the raft servers.",
    flags=(Flag("stale", "Ask any server, also without a leader."), JSON),
)
def raft_peers(call: Call) -> int:
    """List."""
    query = {"stale": "true" if call.options.on("stale") else None}
    found = call.client.get("/v1/operator/raft/configuration", query, doing="listing peers")
    if call.options.on("json"):
        say_json(found)
        return 0
    rows = [
        [
            s["Node"],
            s["ID"],
            s["Address"],
            "leader" if s["Leader"] else "follower",
            s["Voter"],
            s["RaftProtocol"],
        ]
        for s in found.get("Servers") or []
    ]
    say(table("Node|ID|Address|State|Voter|RaftProtocol", rows))
    return 0


@command("operator autopilot get-config [options]", "Show autopilot's settings.", flags=(JSON,))
def autopilot(call: Call) -> int:
    """Show."""
    found = call.client.get(
        "/v1/operator/autopilot/configuration", doing="querying autopilot configuration"
    )
    if call.options.on("json"):
        say_json(found)
    else:
        say(pairs(found.items()))
    return 0


@command("operator autopilot health [options]", "Show the health of the servers.", flags=(JSON,))
def health(call: Call) -> int:
    """Show; the answer of an unhealthy cluster has its own status and the same body."""
    import json

    answer = call.client.raw("GET", "/v1/operator/autopilot/health")
    if answer.status not in (200, 429):
        raise ApiError(
            answer.status, answer.body.decode("utf-8", "replace"), "querying autopilot health"
        )
    found = json.loads(answer.body)
    if call.options.on("json"):
        say_json(found)
        return 0
    say(pairs([("Healthy", found["Healthy"]), ("FailureTolerance", found["FailureTolerance"])]))
    rows = [
        [
            s["Name"],
            s["SerfStatus"],
            s["Leader"],
            s["Voter"],
            s["Healthy"],
            s["LastContact"],
            s["LastIndex"],
        ]
        for s in found.get("Servers") or []
    ]
    section("Servers", table("Name|Status|Leader|Voter|Healthy|LastContact|LastIndex", rows))
    return 0


@command("operator scheduler get-config [options]", "Show the scheduler's settings.", flags=(JSON,))
def scheduler(call: Call) -> int:
    """Show."""
    found = call.client.get(
        "/v1/operator/scheduler/configuration", doing="querying scheduler configuration"
    )
    config = found["SchedulerConfig"]
    if call.options.on("json"):
        say_json(found)
        return 0
    say(
        pairs(
            [
                ("Scheduler Algorithm", config["SchedulerAlgorithm"]),
                ("Memory Oversubscription", config["MemoryOversubscriptionEnabled"]),
                ("Reject Job Registration", config["RejectJobRegistration"]),
                ("Pause Eval Broker", config["PauseEvalBroker"]),
                *((f"Preemption: {k}", v) for k, v in sorted(config["PreemptionConfig"].items())),
                ("Modify Index", config["ModifyIndex"]),
            ]
        )
    )
    return 0


@command(
    "operator scheduler set-config [options]",
    "Change the scheduler's settings; what is not named stays.",
    flags=(
        number("check-index", "Only if the modify index is still this.", "index"),
        number("node-limit-for-feasibility-checks", "How many nodes are looked at; 0 is all."),
        text("scheduler-algorithm", "binpack, spread, balanced or gpu-aware.", "algorithm"),
        *(text(name, "true or false.", "true|false") for name in (*_SWITCHES, *_PREEMPTION)),
    ),
)
def set_scheduler(call: Call) -> int:
    """Read, change, write back if nobody else did meanwhile."""
    path = "/v1/operator/scheduler/configuration"
    config = call.client.get(path, doing="querying scheduler configuration")["SchedulerConfig"]
    options = call.options
    if name := options.text("scheduler-algorithm"):
        config["SchedulerAlgorithm"] = name
    if (limit := options.number("node-limit-for-feasibility-checks")) is not None:
        config["NodeLimitForFeasibilityChecks"] = limit
    for flag, key in _SWITCHES.items():
        if flag in options.given:
            config[key] = _truth(flag, options.text(flag))
    for flag, key in _PREEMPTION.items():
        if flag in options.given:
            config["PreemptionConfig"][key] = _truth(flag, options.text(flag))
    check = options.number("check-index")
    query = {"cas": config["ModifyIndex"] if check is None else check}
    answer = call.client.put(path, config, query, doing="updating scheduler configuration")
    if not answer["Updated"]:
        raise CliError(
            "The configuration was changed by someone else meanwhile; nothing was done. Try again."
        )
    say("Scheduler configuration updated!")
    return 0


@command(
    "operator metrics [options]",
    "Print the agent's metrics.",
    flags=(
        text("format", "json (the default) or prometheus.", "format"),
        JSON,
        Flag("pretty", "Indent."),
    ),
)
def metrics(call: Call) -> int:
    """Print."""
    kind = call.options.text("format")
    query = {"format": kind or None, "pretty": "1" if call.options.on("pretty") else None}
    answer = call.client.raw("GET", "/v1/metrics", query=query)
    if answer.status != 200:
        raise ApiError(answer.status, answer.body.decode("utf-8", "replace"), "getting metrics")
    say(answer.body.decode("utf-8", "replace").rstrip())
    return 0


@command(
    "operator api [options] <path>",
    "Send any request and print the answer's body. A body is read from standard input if it is not a terminal.",
    flags=(
        Flag("dryrun", "Print the curl command instead."),
        text("filter", "The filter query parameter.", "filter"),
        many("H", "A header.", "Name: value"),
        Flag("verbose", "Also the status and headers, on standard error."),
        text("X", "The method: GET, or PUT when there is a body.", "method"),
    ),
    operands=(1, 1),
)
def api(call: Call) -> int:
    """Ask."""
    options = call.options
    path = call.operand()
    path = path if path.startswith("/") else f"/v1/{path.removeprefix('v1/')}"
    query = {"filter": options.text("filter") or None}
    method = options.text("X")
    data: bytes | None = None
    if method not in ("GET", "DELETE") and not sys.stdin.isatty():
        data = sys.stdin.buffer.read() or None
    method = method or ("PUT" if data is not None else "GET")
    headers = dict(_header(line) for line in options.many("H"))
    if options.on("dryrun"):
        import shlex

        url = call.client.settings.address + call.client.target(path, query)
        say(
            shlex.join(
                [
                    "curl",
                    "-X",
                    method,
                    *(w for n, v in headers.items() for w in ("-H", f"{n}: {v}")),
                    url,
                ]
            )
        )
        return 0
    answer = call.client.raw(method, path, data=data, query=query, headers=headers)
    if options.on("verbose"):
        lines = [f"< HTTP {answer.status}", *(f"< {n}: {v}" for n, v in answer.headers.items())]
        print("\n".join(lines), file=sys.stderr)
    sys.stdout.buffer.write(answer.body)
    sys.stdout.buffer.flush()
    return 0 if answer.status < 400 else 1


def _truth(flag: str, word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise UsageError(f'-{flag} "{word}" is neither true nor false')
    return word.lower() == "true"


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise UsageError(f'The header "{line}" is not "Name: value"')
    return name.strip(), value.strip()
