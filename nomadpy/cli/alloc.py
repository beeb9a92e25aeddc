"""`alloc status`, `stop`, `restart`, `signal`, `stats`."""

from __future__ import annotations

from typing import Any

from nomadpy.cli import devices
from nomadpy.cli.client import Client
from nomadpy.cli.command import DETACH, JSON, VERBOSE, Call, command
from nomadpy.cli.errors import CliError
from nomadpy.cli.flags import Flag, text
from nomadpy.cli.follow import Follower
from nomadpy.cli.lookup import find_alloc
from nomadpy.cli.output import (
    age,
    pairs,
    say,
    say_json,
    section,
    short,
    size,
    stamp,
    stamp_text,
    table,
)
from nomadpy.cli.placement import failure_lines

Row = dict[str, Any]
TASK = text("task", "The task; may be left out when there is only one.", "task-name")


@command(
    "alloc status [options] <allocation>",
    "Show an allocation: where it runs, its tasks and what happened to them.",
    flags=(
        JSON,
        Flag("short", "Without task events."),
        Flag("stats", "With what the tasks use."),
        VERBOSE,
    ),
    operands=(1, 1),
)
def status(call: Call) -> int:
    """Show."""
    alloc = find_alloc(call.client, call.operand())
    if call.options.on("json"):
        say_json(alloc)
        return 0
    length = call.id_length
    say(_about(alloc, length))
    ports = ((alloc.get("AllocatedResources") or {}).get("Shared") or {}).get("Ports") or []
    if ports:
        rows = [
            [p["Label"], "yes" if p.get("To") else "no", f"{p['HostIP']}:{p['Value']}"]
            for p in ports
        ]
        section("Allocation Addresses", table("Label|Mapped|Address", rows))
    usage = _usage(call.client, alloc) if call.options.on("stats") else {}
    for name, state in sorted((alloc.get("TaskStates") or {}).items()):
        _show_task(alloc, name, state, usage.get(name), events=not call.options.on("short"))
    if call.options.on("verbose") and (metrics := alloc.get("Metrics")):
        say("\nPlacement Metrics")
        say("\n".join(failure_lines(metrics)) or "  * placed without a filtered node")
        for line in metrics.get("ScoreMetaData") or []:
            scores = ", ".join(f"{k} {v:.3g}" for k, v in sorted((line["Scores"] or {}).items()))
            say(f"  node {short(line['NodeID'], length)}: {line['NormScore']:.3g} ({scores})")
    return 0


@command(
    "alloc stop [options] <allocation>",
    "Stop an allocation; the scheduler places a new one.",
    flags=(DETACH, Flag("no-shutdown-delay", "Do not wait for shutdown delays."), VERBOSE),
    operands=(1, 1),
)
def stop(call: Call) -> int:
    """Stop and follow."""
    alloc = find_alloc(call.client, call.operand())
    query = {"no_shutdown_delay": call.options.on("no-shutdown-delay") or None}
    answer = call.client.put(
        f"/v1/allocation/{alloc['ID']}/stop", None, query, doing="stopping allocation"
    )
    if call.options.on("detach"):
        say(answer["EvalID"])
        return 0
    return Follower(call.client, length=call.id_length).evaluation(answer["EvalID"])


@command(
    "alloc restart [options] <allocation> [<task>]",
    "Restart the running tasks of an allocation in place, or one task.",
    flags=(
        Flag("all-tasks", "Also tasks that have ended, in the order of their lifecycle."),
        TASK,
        VERBOSE,
    ),
    operands=(1, 2),
)
def restart(call: Call) -> int:
    """Restart."""
    alloc = find_alloc(call.client, call.operand())
    body = {
        "TaskName": call.options.text("task") or call.operand(1),
        "AllTasks": call.options.on("all-tasks"),
    }
    call.client.put(
        f"/v1/client/allocation/{alloc['ID']}/restart", body, doing="restarting allocation"
    )
    return 0


@command(
    "alloc signal [options] <allocation> [<task>]",
    "Send a signal to all tasks of an allocation, or to one.",
    flags=(text("s", "The signal, SIGKILL without the flag.", "signal"), TASK, VERBOSE),
    operands=(1, 2),
)
def signal(call: Call) -> int:
    """Signal."""
    alloc = find_alloc(call.client, call.operand())
    body = {
        "Signal": call.options.text("s") or "SIGKILL",
        "Task": call.options.text("task") or call.operand(1),
    }
    call.client.put(
        f"/v1/client/allocation/{alloc['ID']}/signal", body, doing="signalling allocation"
    )
    return 0


@command(
    "alloc stats [options] <allocation>",
    "Show what the tasks of an allocation use now.",
    flags=(JSON, VERBOSE),
    operands=(1, 1),
)
def stats(call: Call) -> int:
    """Show."""
    alloc = find_alloc(call.client, call.operand())
    found = call.client.get(f"/v1/client/allocation/{alloc['ID']}/stats", doing="querying stats")
    if call.options.on("json"):
        say_json(found)
        return 0
    rows = []
    for name, task in sorted((found.get("Tasks") or {}).items()):
        cpu, memory = _figures(task)
        rows.append([name, cpu, memory])
    say(table("Task|CPU|Memory", rows))
    return 0


def one_task(alloc: Row, wanted: str) -> str:
    """The task that is meant. Raises CliError when it is not plain, naming the tasks there are."""
    groups = (alloc.get("Job") or {}).get("TaskGroups") or []
    tasks = [
        task["Name"]
        for group in groups
        if group["Name"] == alloc["TaskGroup"]
        for task in group["Tasks"] or []
    ] or sorted(alloc.get("TaskStates") or {})
    if wanted:
        if wanted not in tasks:
            raise CliError(
                f'Allocation "{short(alloc["ID"])}" has no task "{wanted}"; it has: {", ".join(tasks)}'
            )
        return wanted
    if len(tasks) != 1:
        raise CliError(
            f'Allocation "{short(alloc["ID"])}" has several tasks; name one: {", ".join(tasks)}'
        )
    return str(tasks[0])


def _about(alloc: Row, length: int) -> str:
    rows: list[tuple[str, object]] = [
        ("ID", alloc["ID"] if length > 8 else short(alloc["ID"])),
        ("Eval ID", short(alloc["EvalID"], length)),
        ("Name", alloc["Name"]),
        ("Node ID", short(alloc["NodeID"], length)),
        ("Node Name", alloc.get("NodeName", "")),
        ("Job ID", alloc["JobID"]),
        ("Job Version", (alloc.get("Job") or {}).get("Version", "")),
        ("Client Status", alloc["ClientStatus"]),
        ("Client Description", alloc.get("ClientDescription", "")),
        ("Desired Status", alloc["DesiredStatus"]),
        ("Desired Description", alloc.get("DesiredDescription", "")),
        ("Created", age(alloc["CreateTime"])),
        ("Modified", age(alloc["ModifyTime"])),
    ]
    if alloc.get("DeploymentID"):
        health: bool | None = (alloc.get("DeploymentStatus") or {}).get("Healthy")
        rows += [
            ("Deployment ID", short(alloc["DeploymentID"], length)),
            (
                "Deployment Health",
                "unset" if health is None else ("healthy" if health else "unhealthy"),
            ),
        ]
    for label, key in (
        ("Replacement Alloc ID", "NextAllocation"),
        ("Previous Alloc ID", "PreviousAllocation"),
    ):
        if alloc.get(key):
            rows.append((label, short(alloc[key], length)))
    return pairs(rows)


def _show_task(alloc: Row, name: str, state: Row, usage: Row | None, *, events: bool) -> None:
    say(f'\nTask "{name}" is "{state["State"]}"' + (" (failed)" if state.get("Failed") else ""))
    granted = ((alloc.get("AllocatedResources") or {}).get("Tasks") or {}).get(name)
    if granted:
        mhz = granted["Cpu"]["CpuShares"]
        memory = granted["Memory"]["MemoryMB"]
        used_cpu, used_memory = _figures(usage) if usage else ("", "")
        section(
            "Task Resources:",
            table(
                "CPU|Memory|Disk",
                [
                    [
                        f"{used_cpu}/{mhz} MHz" if used_cpu else f"{mhz} MHz",
                        f"{used_memory}/{memory} MiB" if used_memory else f"{memory} MiB",
                        f"{alloc['AllocatedResources']['Shared']['DiskMB']} MiB",
                    ]
                ],
            ),
        )
        if granted.get("Devices"):
            section("Devices:", table("Device|IDs|Share", devices.assigned(granted["Devices"])))
        measured = ((usage or {}).get("ResourceUsage") or {}).get("DeviceStats")
        if measured:
            section("Device Stats:", pairs(devices.utilization(measured)))
    section(
        "Task Events:",
        pairs(
            [
                ("Started At", stamp_text(state.get("StartedAt"))),
                ("Finished At", stamp_text(state.get("FinishedAt"))),
                ("Total Restarts", state.get("Restarts", 0)),
            ]
        ),
    )
    recent = state.get("Events") or []
    if events and recent:
        newest = sorted(recent, key=lambda e: -int(e["Time"]))
        rows = [[stamp(e["Time"]), e["Type"], e.get("DisplayMessage") or ""] for e in newest]
        section("Recent Events:", table("Time|Type|Description", rows))


def _usage(client: Client, alloc: Row) -> Row:
    try:
        found = client.get(f"/v1/client/allocation/{alloc['ID']}/stats", doing="querying stats")
    except CliError:
        # The node may be gone; what the servers know is still worth showing.
        return {}
    return dict(found.get("Tasks") or {})


def _figures(usage: Row) -> tuple[str, str]:
    measured = usage.get("ResourceUsage") or {}
    cpu = (measured.get("CpuStats") or {}).get("TotalTicks", 0)
    memory = measured.get("MemoryStats") or {}
    return f"{cpu:.0f} MHz", size(memory.get("Usage") or memory.get("RSS") or 0)
