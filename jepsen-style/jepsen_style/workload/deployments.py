"""Jobs with an `update` block that get new versions, sound ones and ones that cannot run, while deployments are watched."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from jepsen_style.checker import deployments
from jepsen_style.checker.result import Result
from jepsen_style.client import NodeClient, NotDoneError
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Reads, Request
from jepsen_style.workload.on_agents import QUICK_NODES, SLEEP, OnAgents
from jepsen_style.workload.survive import NEVER_AGAIN
from nomadpy.clock import SystemClock
from nomadpy.entropy import Entropy

LOOK_S = 0.5
REST_S = 2.5
PROGRESS_S = 6
SLACK_S = 25.0

_S = 1_000_000_000
UPDATE = {
    "MaxParallel": 1,
    "HealthCheck": "task_states",
    "MinHealthyTime": _S // 2,
    "HealthyDeadline": 4 * _S,
    "ProgressDeadline": PROGRESS_S * _S,
}


class Deploy(OnAgents):
    """The first client looks; each of the others has a job, and registers a new version now and then."""

    name: ClassVar[str] = "deployments"
    about: ClassVar[str] = "rolling updates: every deployment ends, in time and as it deserves"
    configuration: ClassVar[Mapping[str, str]] = {"server": QUICK_NODES}

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix, reads)
        self._made = 0
        self._settled = False

    def rest_s(self, worker: int) -> float:
        return LOOK_S if worker == 0 else REST_S

    def request(self, worker: int, source: Entropy) -> Request:
        # Otherwise each version would cut off the deployment of the one before.
        if worker == 0 or source.uniform(0, 1) < 0.3:
            return Request(f="look")
        self._made += 1
        value = {"good": source.uniform(0, 1) < 0.75, "mark": self._made}
        return Request(f="run", key=f"d{worker}", value=value)

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        if request.f == "look":
            return Outcome(type="ok", value=msgspec.to_builtins(self._rows(client)))
        if request.f == "settle":
            return Outcome(type="ok", value=msgspec.to_builtins(self._settle(client)))
        job = self.job(
            request.key,
            count=2,
            command=SLEEP if request.value["good"] else ["/bin/false"],
            env={"MARK": str(request.value["mark"])},
            Update=UPDATE,
            **NEVER_AGAIN,
        )
        return self.register(client, job)

    def _rows(self, client: NodeClient) -> deployments.Deployments:
        rows: list[dict[str, Any]] = self.ask(client, "/v1/deployments").body or []
        return deployments.Deployments(
            rows=[
                deployments.Row(
                    id=row["ID"],
                    job=row["JobID"],
                    version=row["JobSpecModifyIndex"],
                    status=row["Status"],
                    description=row["StatusDescription"],
                )
                for row in rows
                if row["JobID"].startswith(self.prefix)
            ]
        )

    def _settle(self, client: NodeClient) -> deployments.Deployments:
        """Look until all have ended, or for longer than they may take."""
        clock, pause = SystemClock(), threading.Event()
        began, limit_s = clock.monotonic(), self.patience(PROGRESS_S + SLACK_S)
        while True:
            waited = clock.monotonic() - began
            over = waited > limit_s
            try:
                found = msgspec.structs.replace(self._rows(client), seconds=waited)
                if over or all(row.status in deployments.ENDED for row in found.rows):
                    return found
            except NotDoneError:
                if over:
                    raise
            pause.wait(LOOK_S)

    def finals(self) -> list[Request]:
        first, self._settled = not self._settled, True
        return [Request(f="settle" if first else "look")]

    def check(self, history: History) -> list[Result]:
        return [deployments.check_deployments(history)]
