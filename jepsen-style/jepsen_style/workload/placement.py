"""Jobs that come, change and go on agents, while the kit looks at what really runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from jepsen_style.checker.placement import Look, check_placement
from jepsen_style.checker.result import Result
from jepsen_style.client import NodeClient, NotDoneError
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Reads, Request
from jepsen_style.workload.on_agents import QUICK_NODES, OnAgents
from nomadpy.clock import SystemClock
from nomadpy.entropy import Entropy

LOOK_S = 0.4
REST_S = 1.5
SETTLE_S = 30.0


class Placement(OnAgents):
    """The first client looks; every other one has a job of its own: registers it, changes count or definition, purges it."""

    name: ClassVar[str] = "placement"
    about: ClassVar[str] = "jobs on agents: no task twice, none left out, none that goes on"
    configuration: ClassVar[Mapping[str, str]] = {"server": QUICK_NODES}

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix, reads)
        self._mine: dict[int, str] = {}
        self._made = 0
        self._settled = False

    def rest_s(self, worker: int) -> float:
        return LOOK_S if worker == 0 else REST_S

    def request(self, worker: int, source: Entropy) -> Request:
        if worker == 0:
            return Request(f="look")
        self._made += 1
        value = {"count": source.choice((1, 1, 2, 3)), "mark": self._made}
        key = self._mine.get(worker)
        if key is None:
            key = self._mine[worker] = f"{worker}-{self._made}"
            return Request(f="run", key=key, value=value)
        if source.uniform(0, 1) < 0.35:
            return Request(f="purge", key=key)
        return Request(f="run", key=key, value=value)

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        if request.f == "look":
            return Outcome(type="ok", value=msgspec.to_builtins(self.look(client)))
        if request.f == "settle":
            return Outcome(type="ok", value=msgspec.to_builtins(self._settle(client)))
        if request.f == "purge":
            return self.purge(client, request.key)
        count, mark = request.value["count"], request.value["mark"]
        # Half of the changes leave the tasks alone, the other half replace them.
        env = {"MARK": str(mark // 2)}
        return self.register(client, self.job(request.key, count=count, env=env))

    def learn(self, worker: int, request: Request, outcome: Outcome) -> None:
        if request.f == "purge" and outcome.type == "ok":
            # The next one has another name: its allocations' names are never the former's.
            self._mine.pop(worker, None)

    def finals(self) -> list[Request]:
        first, self._settled = not self._settled, True
        return [Request(f="settle" if first else "look")]

    def _settle(self, client: NodeClient) -> Look:
        """Look until all that servers know runs and nothing else does, or for SETTLE_S; the last look."""
        clock, pause = SystemClock(), threading.Event()
        began, limit_s = clock.monotonic(), self.patience(SETTLE_S)
        while True:
            waited = clock.monotonic() - began
            try:
                found = msgspec.structs.replace(self._count(client), seconds=waited)
                if is_settled(found) or waited > limit_s:
                    return found
            except NotDoneError:
                if waited > limit_s:
                    raise
            pause.wait(LOOK_S)

    def _count(self, client: NodeClient) -> Look:
        counts: dict[str, int] = {}
        for row in self.ask(client, "/v1/jobs", prefix=self.prefix).body:
            job: dict[str, Any] = self.ask(client, f"/v1/job/{row['ID']}").body
            counts[row["ID"]] = 0 if job["Stop"] else job["TaskGroups"][0]["Count"]
        return msgspec.structs.replace(self.look(client), counts=counts)

    def check(self, history: History) -> list[Result]:
        return [check_placement(history)]


def is_settled(look: Look) -> bool:
    """Whether just what is wanted runs, and servers know it."""
    wanted = {row.id for row in look.allocs if row.is_wanted and row.client == "running"}
    running = [one.alloc for one in look.live]
    by_job = {job: sum(one.job == job for one in look.live) for job in look.counts}
    return sorted(running) == sorted(wanted) and by_job == look.counts
