"""Follow an evaluation, and then its deployment, until they are decided; one line an event."""

from __future__ import annotations

from typing import Any

from nomadpy.cli.client import Client
from nomadpy.cli.errors import ApiError
from nomadpy.cli.output import say, short, stamp, table
from nomadpy.cli.placement import failures

TERMINAL = ("complete", "failed", "canceled")
DEPLOYED = ("successful", "failed", "cancelled")
NOT_PLACED = 2
_WAIT = "10s"
_TRIES = 3  # an evaluation may be read from a server that has not heard of it yet


class Follower:
    """Tells what is new of an evaluation since it last looked."""

    def __init__(self, client: Client, *, length: int = 8) -> None:
        self._client = client
        self._length = length
        self._seen: dict[str, str] = {}
        self._deployment = ""
        self._status = ""

    def evaluation(self, identity: str) -> int:
        """Follow it and what comes of it. Returns 0, 1 (it or its deployment failed) or 2 (not all was placed)."""
        self._headline(f'Monitoring evaluation "{self._short(identity)}"')
        last = self._until_decided(identity)
        failed_groups = last.get("FailedTGAllocs")
        self._headline(
            f'Evaluation "{self._short(identity)}" finished with status "{last["Status"]}"'
            + (" but failed to place all allocations:" if failed_groups else "")
        )
        for line in failures(failed_groups, "    "):
            say(line)
        if failed_groups:
            if blocked := last.get("BlockedEval"):
                self._event(
                    f'Evaluation "{self._short(blocked)}" waiting for additional capacity to place remainder'
                )
            return NOT_PLACED
        if last["Status"] != "complete":
            if reason := last.get("StatusDescription"):
                self._event(f"Reason: {reason}")
            return 1
        if self._deployment:
            return self.deployment(self._deployment)
        return 0

    def deployment(self, identity: str) -> int:
        """Follow a deployment. Returns 0 when it was successful, else 1."""
        self._headline(f'Monitoring deployment "{self._short(identity)}"')
        index, shown = 0, ""
        while True:
            found, index = self._client.get_indexed(
                f"/v1/deployment/{identity}",
                {"index": index, "wait": _WAIT} if index else None,
                doing="querying deployment",
            )
            text = _progress(found)
            if text != shown:
                self._event(text)
                shown = text
            if found["Status"] in DEPLOYED:
                self._headline(
                    f'Deployment "{self._short(identity)}" finished with status "{found["Status"]}"'
                )
                say(deployed_table(found, "    "))
                if found["Status"] != "successful":
                    self._event(f"Reason: {found['StatusDescription']}")
                    self._event(f"See why with: nomadpy deployment status {self._short(identity)}")
                return 0 if found["Status"] == "successful" else 1

    def _until_decided(self, identity: str) -> dict[str, Any]:
        index, missing = 0, 0
        while True:
            try:
                found, index = self._client.get_indexed(
                    f"/v1/evaluation/{identity}",
                    {"index": index, "wait": "1s"} if index else None,
                    doing="reading evaluation",
                )
            except ApiError as error:
                missing += 1
                if error.code != 404 or missing >= _TRIES:
                    raise
                continue
            if not self._status:
                self._event(_trigger(found))
            if (deployment := found.get("DeploymentID")) and deployment != self._deployment:
                self._deployment = deployment
                self._event(f'Evaluation within deployment: "{self._short(deployment)}"')
            self._allocations(identity, found["CreateIndex"])
            if self._status and self._status != found["Status"]:
                self._event(f'Evaluation status changed: "{self._status}" -> "{found["Status"]}"')
            self._status = found["Status"]
            if self._status in TERMINAL or (self._status == "blocked"):
                return found  # type: ignore[no-any-return]

    def _allocations(self, identity: str, since: int) -> None:
        rows = self._client.get(
            f"/v1/evaluation/{identity}/allocations", doing="reading allocations"
        )
        for row in sorted(rows, key=lambda r: (r["CreateIndex"], r["Name"])):
            before = self._seen.get(row["ID"])
            self._seen[row["ID"]] = row["ClientStatus"]
            name = self._short(row["ID"])
            if before is None:
                made = "created" if row["CreateIndex"] > since else "modified"
                self._event(
                    f'Allocation "{name}" {made}: node "{self._short(row["NodeID"])}", group "{row["TaskGroup"]}"'
                )
            elif before != row["ClientStatus"]:
                self._event(
                    f'Allocation "{name}" status changed: "{before}" -> "{row["ClientStatus"]}"'
                    + (f" ({row['ClientDescription']})" if row["ClientDescription"] else "")
                )

    def _short(self, identity: str) -> str:
        return short(identity, self._length)

    def _headline(self, text: str) -> None:
        say(f"==> {stamp()}: {text}")

    def _event(self, text: str) -> None:
        say(f"    {stamp()}: {text}")


def deployed_table(deployment: dict[str, Any], indent: str = "") -> str:
    """The groups of a deployment."""
    groups = sorted((deployment.get("TaskGroups") or {}).items())
    canaries = any(g.get("DesiredCanaries") for _, g in groups)
    header = "Task Group|Desired|Placed|Healthy|Unhealthy|Progress Deadline"
    if canaries:
        header = "Task Group|Promoted|Desired|Canaries|Placed|Healthy|Unhealthy|Progress Deadline"
    rows = []
    for name, group in groups:
        deadline = group.get("RequireProgressBy") or ""
        shown = "N/A" if deadline.startswith("0001") else deadline[:19] + "Z"
        counts = [group["PlacedAllocs"], group["HealthyAllocs"], group["UnhealthyAllocs"]]
        if canaries:
            row = [
                name,
                group["Promoted"],
                group["DesiredTotal"],
                group["DesiredCanaries"],
                *counts,
                shown,
            ]
        else:
            row = [name, group["DesiredTotal"], *counts, shown]
        rows.append(row)
    return "\n".join(indent + line for line in table(header, rows).splitlines())


def _progress(deployment: dict[str, Any]) -> str:
    parts = [
        f'group "{name}" {g["HealthyAllocs"]} of {g["DesiredTotal"]} healthy'
        + (f", {g['UnhealthyAllocs']} unhealthy" if g["UnhealthyAllocs"] else "")
        for name, g in sorted((deployment.get("TaskGroups") or {}).items())
    ]
    return f"Deployment {deployment['Status']}: {'; '.join(parts)}"


def _trigger(evaluation: dict[str, Any]) -> str:
    kind = evaluation["TriggeredBy"]
    if kind == "node-update" and evaluation.get("NodeID"):
        return f'Evaluation triggered by node "{short(evaluation["NodeID"])}"'
    return f'Evaluation triggered by job "{evaluation["JobID"]}" ({kind})'
