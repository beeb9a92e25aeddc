"""Jobs that together want more than the nodes have, some the same port, while every state of the allocations is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from jepsen_style.checker.capacity import Has, State, Takes, check_capacity
from jepsen_style.checker.result import Result
from jepsen_style.client import NodeClient, NotDoneError
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Reads, Request
from jepsen_style.workload.on_agents import QUICK_NODES, OnAgents, is_over
from nomadpy.entropy import Entropy

WAIT_S = 2.0
REST_S = 0.8
PORTS = range(23801, 23804)


class Capacity(OnAgents):
    """The first client reads allocations by blocking queries; every other one registers, changes and purges its job.

    Shares of a node are asked for in percent. Tasks only sleep: what is judged is what servers promise.
    """

    name: ClassVar[str] = "capacity"
    about: ClassVar[str] = "more work than fits: no node promises more than it has, no port twice"
    configuration: ClassVar[Mapping[str, str]] = {"server": QUICK_NODES}

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix, reads)
        self._made = 0
        self._mine: dict[int, str] = {}
        self._index = 0
        self._nodes: dict[str, Has] = {}

    def rest_s(self, worker: int) -> float:
        return 0.0 if worker == 0 else REST_S

    def request(self, worker: int, source: Entropy) -> Request:
        if worker == 0:
            return Request(f="look", value={"index": self._index})
        self._made += 1
        key = self._mine.setdefault(worker, f"{worker}-{self._made}")
        if source.uniform(0, 1) < 0.4:
            return Request(f="purge", key=key)
        value = {
            "count": source.choice((1, 2, 3)),
            "cpu": source.choice((5, 15, 30, 45)),
            "memory": source.choice((5, 20, 40)),
            "port": source.choice((0, *PORTS)),
        }
        return Request(f="run", key=key, value=value)

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        if request.f == "look":
            index = (request.value or {}).get("index", 0)
            return Outcome(type="ok", value=msgspec.to_builtins(self._state(client, index)))
        if request.f == "purge":
            return self.purge(client, request.key)
        return self.register(client, self._job(client, request))

    def _job(self, client: NodeClient, request: Request) -> dict[str, Any]:
        least = self._smallest(client)
        asked = request.value
        ports = [{"Label": "dynamic"}]
        network: dict[str, Any] = {"Mode": "host", "DynamicPorts": ports}
        if asked["port"]:
            network["ReservedPorts"] = [{"Label": "fixed", "Value": asked["port"]}]
        return self.job(
            request.key,
            count=asked["count"],
            cpu=max(1, least.cpu * asked["cpu"] // 100),
            memory_mb=max(10, least.memory_mb * asked["memory"] // 100),
            Networks=[network],
        )

    def _smallest(self, client: NodeClient) -> Has:
        return min(self._resources(client).values(), key=lambda has: has.cpu)

    def _resources(self, client: NodeClient) -> dict[str, Has]:
        # What nodes have does not change during a run.
        if len(self._nodes) < len(self.cluster.agent_names):
            rows = self.ask(client, "/v1/nodes", resources="true").body
            self._nodes = {row["ID"]: _has(row) for row in rows}
        return self._nodes

    def _state(self, client: NodeClient, index: int) -> State:
        nodes = self._resources(client)
        query = {"resources": "true", "task_states": "false"}
        if index:
            query |= {"index": str(index), "wait": f"{WAIT_S:g}s"}
        answer = self.ask(client, "/v1/allocations", **query)
        live = [row for row in answer.body if not is_over(row)]
        return State(index=answer.index, nodes=nodes, allocs=[_takes(row) for row in live])

    def learn(self, worker: int, request: Request, outcome: Outcome) -> None:
        if request.f == "look" and outcome.type == "ok":
            self._index = outcome.value["index"]
        if request.f == "purge" and outcome.type == "ok":
            self._mine.pop(worker, None)

    def finals(self) -> list[Request]:
        return [Request(f="look")]

    def check(self, history: History) -> list[Result]:
        return [check_capacity(history)]


def _has(row: dict[str, Any]) -> Has:
    have, keep = row.get("NodeResources"), row.get("ReservedResources") or {}
    if not have:
        raise NotDoneError("a node does not say what it has")
    return Has(
        cpu=have["Cpu"]["CpuShares"] - (keep.get("Cpu") or {}).get("CpuShares", 0),
        memory_mb=have["Memory"]["MemoryMB"] - (keep.get("Memory") or {}).get("MemoryMB", 0),
    )


def _takes(row: dict[str, Any]) -> Takes:
    given = row["AllocatedResources"]
    tasks = given["Tasks"].values()
    ports = given["Shared"].get("Ports") or []
    return Takes(
        id=row["ID"],
        name=row["Name"],
        node=row["NodeID"],
        cpu=sum(task["Cpu"]["CpuShares"] for task in tasks),
        memory_mb=sum(task["Memory"]["MemoryMB"] for task in tasks),
        ports=[f"{port.get('HostIP', '')}:{port['Value']}" for port in ports],
    )
