"""What workloads whose tasks really run have in common: jobs, and what servers and the machine say of them."""

from __future__ import annotations

from typing import Any, ClassVar

from jepsen_style.checker.logs import CANARY
from jepsen_style.checker.placement import Look, Row
from jepsen_style.client import Answer, NodeClient, NotDoneError, OutcomeUnknownError
from jepsen_style.cluster import OwnCluster
from jepsen_style.docker import PrivateDaemon
from jepsen_style.processes import live_tasks
from jepsen_style.workload.base import Outcome, Reads, Workload

QUICK_NODES = 'server {\n  min_heartbeat_ttl      = "1s"\n  heartbeat_grace        = "2s"\n  failover_heartbeat_ttl = "4s"\n}\n'
"""Servers give up an agent within the time of a fault."""
SLEEP = ["/bin/sleep", "100000"]
RESTART_SOON = {
    "Attempts": 20,
    "Interval": 60_000_000_000,
    "Delay": 1_000_000_000,
    "Mode": "delay",
}
"""A container that was taken away is back within seconds, on the same agent."""
ASK_S = 3.0
TERMINAL = ("complete", "failed", "lost")


class OnAgents(Workload):
    """Jobs' ids begin with `prefix`, so that nothing else on the machine is taken for theirs."""

    needs: ClassVar[frozenset[str]] = frozenset({"agents"})

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix.replace("/", "-"), reads)
        self._cluster: OwnCluster | None = None

    def attach(self, cluster: OwnCluster) -> None:
        super().attach(cluster)
        self._cluster = cluster

    @property
    def cluster(self) -> OwnCluster:
        """The cluster under test; there is always one of the kit's own, for it has agents."""
        assert self._cluster is not None
        return self._cluster

    def job_id(self, key: str) -> str:
        """The id of the job that a history calls `key`."""
        return f"{self.prefix}-{key}"

    # -- requests -----------------------------------------------------------------------------------------------

    def register(self, client: NodeClient, job: dict[str, Any]) -> Outcome:
        """Register a job; version: its JobModifyIndex."""
        answer = client.send("PUT", "/v1/jobs", {"Job": job})
        if answer.status == 200:
            return Outcome(type="ok", version=int(answer.body["JobModifyIndex"]))
        return Outcome(type="fail", error=f"{answer.status} {answer.body}")

    def purge(self, client: NodeClient, key: str) -> Outcome:
        """Stop a job and forget it."""
        answer = client.send("DELETE", f"/v1/job/{self.job_id(key)}", query={"purge": "true"})
        if answer.status == 200:
            return Outcome(type="ok", version=answer.index)
        return Outcome(type="fail", error=f"{answer.status} {answer.body}")

    def ask(self, client: NodeClient, path: str, **query: str) -> Answer:
        """Read at the client's node, or at any server when that does not answer. Raises NotDoneError when none does."""
        try:
            answer = client.send("GET", path, query=query or None)
        except (NotDoneError, OutcomeUnknownError) as error:
            return self._ask_others(client.name, path, query, str(error))
        if answer.status not in (200, 404):
            raise NotDoneError(f"{answer.status} {answer.body}")
        return answer

    def _ask_others(self, but: str, path: str, query: dict[str, str], reason: str) -> Answer:
        for name in self.cluster.names:
            if name == but:
                continue
            other = self.cluster.client(name, ASK_S)
            try:
                answer = other.send("GET", path, query=query or None)
            except (NotDoneError, OutcomeUnknownError) as error:
                reason = str(error)
                continue
            finally:
                other.close()
            if answer.status in (200, 404):
                return answer
            reason = f"{answer.status} {answer.body}"
        raise NotDoneError(f"not read: {reason}")

    def allocs(self, client: NodeClient, **query: str) -> list[dict[str, Any]]:
        """The allocations of this run's jobs."""
        rows: list[dict[str, Any]] = self.ask(client, "/v1/allocations", **query).body
        return [row for row in rows if row["JobID"].startswith(self.prefix)]

    def look(self, client: NodeClient) -> Look:
        """What servers say, then what really runs; allocations that are over and do not run are left out."""
        nodes = {n["ID"]: n["Status"] for n in self.ask(client, "/v1/nodes").body}
        rows = self.allocs(client, task_states="false")
        live = live_tasks(self.prefix)
        running = {one.alloc for one in live}
        return Look(
            nodes=nodes,
            allocs=[row_of(r) for r in rows if not is_over(r) or r["ID"] in running],
            live=live,
        )

    def clean(self, client: NodeClient) -> None:
        for row in client.send("GET", "/v1/jobs", query={"prefix": self.prefix}).body:
            client.send("DELETE", f"/v1/job/{row['ID']}", query={"purge": "true"})

    # -- jobs ---------------------------------------------------------------------------------------------------

    def job(
        self,
        key: str,
        *,
        count: int = 1,
        command: list[str] | None = None,
        kind: str = "service",
        env: dict[str, str] | None = None,
        cpu: int = 20,
        memory_mb: int = 16,
        **group: Any,
    ) -> dict[str, Any]:
        """A job of one group with one task, in a container where the run has Docker, else on raw_exec. Tasks have a secret.

        group: further fields of the group.
        """
        program, *arguments = command or SLEEP
        config: dict[str, Any] = {"command": program, "args": arguments}
        docker = self._cluster.equipment.get(PrivateDaemon.need) if self._cluster else None
        if isinstance(docker, PrivateDaemon):
            config.update(image=docker.image, network_mode="none")
            group = {"RestartPolicy": RESTART_SOON, **group}
        task = {
            "Name": "task",
            "Driver": "docker" if "image" in config else "raw_exec",
            "Config": config,
            "Env": {"KIT_SECRET": CANARY, **(env or {})},
            "Resources": {"CPU": cpu, "MemoryMB": memory_mb},
            "KillTimeout": 2_000_000_000,
        }
        job_id = self.job_id(key)
        return {
            "ID": job_id,
            "Name": job_id,
            "Type": kind,
            "Datacenters": ["*"],
            "TaskGroups": [{"Name": "group", "Count": count, "Tasks": [task], **group}],
        }


def is_over(row: dict[str, Any]) -> bool:
    """Whether an allocation in a list no longer counts."""
    return row["DesiredStatus"] != "run" or row["ClientStatus"] in TERMINAL


def row_of(row: dict[str, Any]) -> Row:
    """What is kept of an allocation in a list."""
    return Row(
        id=row["ID"],
        name=row["Name"],
        job=row["JobID"],
        node=row["NodeID"],
        desired=row["DesiredStatus"],
        client=row["ClientStatus"],
    )
