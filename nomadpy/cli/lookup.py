"""From what the user typed to the one thing that is meant: ids by prefix, jobs by name."""

from __future__ import annotations

from typing import Any

from nomadpy.cli.client import Client
from nomadpy.cli.errors import CliError
from nomadpy.cli.output import short, table

Row = dict[str, Any]


def find_by_prefix(
    client: Client, path: str, prefix: str, what: str, columns: str, keys: tuple[str, ...]
) -> Row:
    """The one object of a list route whose id begins with `prefix`. Raises CliError for none or several.

    The list route wants whole bytes of a UUID, so an odd digit is compared here.
    """
    typed = prefix.lower()
    if len(typed) < 2:
        raise CliError(f"{what} ID must contain at least two characters.")
    if set(typed) - set("0123456789abcdef-"):
        raise CliError(
            f'"{prefix}" is no {what.lower()} id: ids are made of the digits 0-9, a-f and hyphens.'
        )
    hexadecimal = typed.replace("-", "")
    sent = typed if len(hexadecimal) % 2 == 0 else typed.rstrip("-")[:-1]
    # An allocation or evaluation is named by its id alone, whatever its namespace.
    rows: list[Row] = client.get(
        path,
        {"prefix": sent, "namespace": client.settings.namespace or "*"},
        doing=f"querying {what.lower()}",
    )
    found = [row for row in rows if row["ID"].startswith(typed)]
    exact = [row for row in found if row["ID"] == typed]
    if exact:
        return exact[0]
    if not found:
        raise CliError(f'No {what.lower()}(s) with prefix or ID "{prefix}" found')
    if len(found) > 1:
        length = max(8, len(typed) + 4)
        lines = table(
            columns, [[short(str(row.get(k, "")), length) for k in keys] for row in found]
        )
        raise CliError(f"Prefix matched multiple {what.lower()}s; type more of the id\n\n{lines}")
    return found[0]


def find_alloc(client: Client, prefix: str) -> Row:
    """The whole allocation."""
    stub = find_by_prefix(
        client,
        "/v1/allocations",
        prefix,
        "Allocation",
        "ID|Node ID|Task Group|Desired|Status",
        ("ID", "NodeID", "TaskGroup", "DesiredStatus", "ClientStatus"),
    )
    alloc: Row = client.get(f"/v1/allocation/{stub['ID']}", doing="querying allocation")
    return alloc


def find_node(client: Client, prefix: str) -> Row:
    """A node's stub. `self` operands are the caller's business."""
    return find_by_prefix(
        client,
        "/v1/nodes",
        prefix,
        "Node",
        "ID|DC|Name|Class|Eligibility|Status",
        ("ID", "Datacenter", "Name", "NodeClass", "SchedulingEligibility", "Status"),
    )


def find_eval(client: Client, prefix: str) -> Row:
    """The whole evaluation."""
    stub = find_by_prefix(
        client,
        "/v1/evaluations",
        prefix,
        "Evaluation",
        "ID|Priority|Triggered By|Status",
        ("ID", "Priority", "TriggeredBy", "Status"),
    )
    evaluation: Row = client.get(f"/v1/evaluation/{stub['ID']}", doing="querying evaluation")
    return evaluation


def find_deployment(client: Client, prefix: str) -> Row:
    """The whole deployment."""
    return find_by_prefix(
        client,
        "/v1/deployments",
        prefix,
        "Deployment",
        "ID|Job ID|Job Version|Status",
        ("ID", "JobID", "JobVersion", "Status"),
    )


def find_job(client: Client, prefix: str) -> Row:
    """A job's stub: the exact name wins, else the only one that begins so."""
    rows: list[Row] = client.get("/v1/jobs", {"prefix": prefix}, doing="querying jobs")
    exact = [row for row in rows if row["ID"] == prefix]
    found = exact or rows
    if not found:
        raise CliError(
            f'No job(s) with prefix or ID "{prefix}" found{_where(client)}.\n'
            "See them with: nomadpy job status"
        )
    if len(found) > 1:
        lines = table(
            "ID|Namespace|Type|Status",
            [[r["ID"], r["Namespace"], r["Type"], r["Status"]] for r in found],
        )
        raise CliError(f"Prefix matched multiple jobs\n\n{lines}")
    return found[0]


def in_namespace(row: Row) -> dict[str, str]:
    """The query that reads the object a stub stands for."""
    return {"namespace": row.get("Namespace", "default")}


def _where(client: Client) -> str:
    name = client.settings.namespace or "default"
    return "" if name == "*" else f" in namespace {name}"
