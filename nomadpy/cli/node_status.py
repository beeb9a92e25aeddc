"""`node status`: nodes as they are."""

from __future__ import annotations

from typing import Any

from nomadpy.cli import devices
from nomadpy.cli.command import JSON, VERBOSE, Call, command
from nomadpy.cli.errors import CliError
from nomadpy.cli.flags import Flag, number, text
from nomadpy.cli.job_status import allocs_table
from nomadpy.cli.lookup import find_node
from nomadpy.cli.output import pairs, say, say_json, section, short, size, stamp_text, table

Row = dict[str, Any]


@command(
    "node status [options] [<node>]",
    "List the nodes, or show one: its resources, drivers and allocations.",
    flags=(
        Flag("allocs", "In the list: count the running allocations of each node."),
        text("filter", "In the list: only nodes that match this expression.", "filter"),
        JSON,
        text("page-token", "In the list: begin at this token.", "token"),
        number("per-page", "In the list: how many."),
        Flag("quiet", "In the list: only the ids."),
        Flag("self", "The node of the agent that is asked."),
        Flag("short", "Without resources and allocations."),
        Flag("stats", "With what the host uses."),
        VERBOSE,
    ),
    operands=(0, 1),
)
def status(call: Call) -> int:
    """Show."""
    if call.options.on("self"):
        return _show(call, self_node(call))
    if call.operands:
        return _show(call, find_node(call.client, call.operand())["ID"])
    options = call.options
    query = {
        "filter": options.text("filter") or None,
        "per_page": options.number("per-page"),
        "next_token": options.text("page-token") or None,
    }
    rows = call.client.get("/v1/nodes", query, doing="querying nodes")
    if options.on("json"):
        say_json(rows)
    elif options.on("quiet"):
        say("\n".join(row["ID"] for row in rows))
    elif rows:
        say(_list(call, rows))
    return 0


def self_node(call: Call) -> str:
    """The id of the node the asked agent runs. Raises CliError when it runs none."""
    found = call.client.get("/v1/agent/self", doing="querying agent")
    identity = (found.get("stats") or {}).get("client", {}).get("node_id", "")
    if not identity:
        raise CliError(
            "The agent that was asked runs no client; name a node instead of using -self."
        )
    return str(identity)


def _list(call: Call, rows: list[Row]) -> str:
    allocs: dict[str, int] = {}
    if call.options.on("allocs"):
        for row in rows:
            found = call.client.get(
                f"/v1/node/{row['ID']}/allocations", doing="querying allocations"
            )
            allocs[row["ID"]] = sum(a["ClientStatus"] == "running" for a in found)
    header = "ID|Node Pool|DC|Name|Class|Drain|Eligibility|Status" + (
        "|Running Allocs" if allocs else ""
    )
    return table(
        header,
        [
            [
                short(row["ID"], call.id_length),
                row["NodePool"],
                row["Datacenter"],
                row["Name"],
                row["NodeClass"],
                row["Drain"],
                row["SchedulingEligibility"],
                row["Status"],
                *([allocs[row["ID"]]] if allocs else []),
            ]
            for row in rows
        ],
    )


def _show(call: Call, identity: str) -> int:
    node = call.client.get(f"/v1/node/{identity}", doing="querying node")
    if call.options.on("json"):
        say_json(node)
        return 0
    drivers = node.get("Drivers") or {}
    say(
        pairs(
            [
                ("ID", node["ID"] if call.options.on("verbose") else short(node["ID"])),
                ("Name", node["Name"]),
                ("Node Pool", node["NodePool"]),
                ("Class", node["NodeClass"]),
                ("DC", node["Datacenter"]),
                ("Drain", _drain(node)),
                ("Eligibility", node["SchedulingEligibility"]),
                ("Status", node["Status"]),
                ("Host Volumes", ",".join(sorted(node.get("HostVolumes") or {}))),
                ("Driver Status", ",".join(n for n, d in sorted(drivers.items()) if d["Healthy"])),
            ]
        )
    )
    if call.options.on("short"):
        return 0
    if call.options.on("verbose"):
        rows = [
            [n, d["Detected"], d["Healthy"], d["HealthDescription"]]
            for n, d in sorted(drivers.items())
        ]
        section("Drivers", table("Driver|Detected|Healthy|Message", rows))
        section("Attributes", pairs(sorted((node.get("Attributes") or {}).items())))
        _devices(node)
        section("Meta", pairs(sorted((node.get("Meta") or {}).items())))
    events = node.get("Events") or []
    if events:
        rows = [
            [stamp_text(e["Timestamp"]), e["Subsystem"], e["Message"]]
            for e in sorted(events, key=lambda e: str(e["Timestamp"]), reverse=True)
        ]
        section("Node Events", table("Time|Subsystem|Message", rows))
    allocs = call.client.get(f"/v1/node/{node['ID']}/allocations", doing="querying allocations")
    section("Allocated Resources", _allocated(node, allocs))
    if call.options.on("stats"):
        found = call.client.get(
            "/v1/client/stats", {"node_id": node["ID"]}, doing="querying host stats"
        )
        section("Host Resource Utilization", _host(found))
        if found.get("DeviceStats"):
            section("Device Resource Utilization", pairs(devices.utilization(found["DeviceStats"])))
            for device, figures in devices.figures(found["DeviceStats"]):
                section(f"Device Stats of {device}", pairs(figures))
    stubs = [{**a, "JobVersion": (a.get("Job") or {}).get("Version", 0)} for a in allocs]
    section(
        "Allocations", allocs_table(stubs, call.id_length) if stubs else "No allocations placed"
    )
    return 0


def _devices(node: Row) -> None:
    groups = (node.get("NodeResources") or {}).get("Devices") or []
    if not groups:
        return
    rows = devices.instances(groups)
    section("Devices", table("Device|ID|Healthy|Message|PCI Bus", rows))
    for group in groups:
        known = devices.attributes(group)
        if known:
            section(f"Device Group Attributes of {devices.name_of(group)}", pairs(known))


def _drain(node: Row) -> str:
    strategy = node.get("DrainStrategy")
    if not strategy:
        return "false"
    deadline = stamp_text(strategy.get("ForceDeadline"))
    return "true; force drain" if strategy["Deadline"] < 0 else f"true; {deadline} deadline"


def _allocated(node: Row, allocs: list[Row]) -> str:
    cpu = memory = disk = 0
    for alloc in allocs:
        granted = alloc.get("AllocatedResources")
        if not granted or alloc["ClientStatus"] in ("complete", "failed", "lost"):
            continue
        disk += granted["Shared"]["DiskMB"]
        for task in (granted["Tasks"] or {}).values():
            cpu += task["Cpu"]["CpuShares"]
            memory += task["Memory"]["MemoryMB"]
    have, kept = node.get("NodeResources") or {}, node.get("ReservedResources") or {}

    def usable(part: str, field: str) -> int:
        return int((have.get(part) or {}).get(field) or 0) - int(
            (kept.get(part) or {}).get(field) or 0
        )

    mebibyte = 1024 * 1024
    return table(
        "CPU|Memory|Disk",
        [
            [
                f"{cpu}/{usable('Cpu', 'CpuShares')} MHz",
                f"{size(memory * mebibyte)}/{size(usable('Memory', 'MemoryMB') * mebibyte)}",
                f"{size(disk * mebibyte)}/{size(usable('Disk', 'DiskMB') * mebibyte)}",
            ]
        ],
    )


def _host(found: Row) -> str:
    memory, disk = found.get("Memory") or {}, found.get("AllocDirStats") or {}
    return table(
        "CPU|Memory|Disk",
        [
            [
                f"{found.get('CPUTicksConsumed', 0):.0f} MHz",
                f"{size(memory.get('Used', 0))}/{size(memory.get('Total', 0))}",
                f"{size(disk.get('Used', 0))}/{size(disk.get('Size', 0))}",
            ]
        ],
    )
