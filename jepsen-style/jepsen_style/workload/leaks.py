"""Jobs that come and go, and at the end everything is purged and collected: what is left on the agents is a leak."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from jepsen_style.checker.leaks import Remains, check_leaks
from jepsen_style.checker.result import Result
from jepsen_style.client import NodeClient, NotDoneError, OutcomeUnknownError
from jepsen_style.history import History
from jepsen_style.processes import control_groups, mounts_below, open_files
from jepsen_style.workload.base import Outcome, Reads, Request
from jepsen_style.workload.on_agents import QUICK_NODES, OnAgents
from nomadpy.clock import SystemClock
from nomadpy.demo.leftovers import processes_of
from nomadpy.entropy import Entropy

REST_S = 1.5
DRAIN_S = 40.0
SHORT = ["/bin/sh", "-c", "sleep 1 & echo one; wait"]


class Leaks(OnAgents):
    """The first client measures; the others register a job, short or lasting, and purge it with their next request."""

    name: ClassVar[str] = "leaks"
    about: ClassVar[str] = (
        "after the end: no process, directory, mount, control group or file too many"
    )
    configuration: ClassVar[Mapping[str, str]] = {"server": QUICK_NODES}

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix, reads)
        self._made = 0
        self._mine: dict[int, str] = {}
        self._drained = False
        self._allocs: set[str] = set()

    def rest_s(self, worker: int) -> float:
        # The first measure comes before the first job.
        return 0.5 if worker == 0 else REST_S

    def request(self, worker: int, source: Entropy) -> Request:
        if worker == 0:
            return Request(f="measure")
        key = self._mine.get(worker)
        if key is not None:
            return Request(f="purge", key=key)
        self._made += 1
        key = self._mine[worker] = f"{worker}-{self._made}"
        return Request(f="run", key=key, value={"short": source.uniform(0, 1) < 0.4})

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        if request.f == "measure":
            return Outcome(type="ok", value=msgspec.to_builtins(self._remains(client)))
        if request.f == "drain":
            return Outcome(type="ok", value=msgspec.to_builtins(self._drain(client)))
        if request.f == "purge":
            return self.purge(client, request.key)
        if request.value["short"]:
            job = self.job(request.key, kind="batch", command=SHORT)
        else:
            job = self.job(request.key)
        return self.register(client, job)

    def learn(self, worker: int, request: Request, outcome: Outcome) -> None:
        if request.f == "purge" and outcome.type == "ok":
            self._mine.pop(worker, None)

    def finals(self) -> list[Request]:
        first, self._drained = not self._drained, True
        return [Request(f="drain")] if first else []

    def _drain(self, client: NodeClient) -> Remains:
        """Purge and collect all, and wait until nothing is left, or for DRAIN_S."""
        clock, pause = SystemClock(), threading.Event()
        began, limit_s = clock.monotonic(), self.patience(DRAIN_S)
        while True:
            waited = clock.monotonic() - began
            try:
                self.clean(client)
                client.send("PUT", "/v1/system/gc")
                found = msgspec.structs.replace(self._remains(client), seconds=waited)
                if found.is_clean or waited > limit_s:
                    return found
            except OutcomeUnknownError as error:
                if waited > limit_s:
                    raise NotDoneError(f"not collected: {error}") from error
            pause.wait(0.5)

    def _remains(self, client: NodeClient) -> Remains:
        allocs = [row["ID"] for row in self.allocs(client, task_states="false")]
        self._allocs.update(allocs)
        agents = [self.cluster.hosts[name] for name in self.cluster.agent_names]
        return Remains(
            processes=[
                f"{pid}: {_command(pid)}" for agent in agents for pid in processes_of(agent.data)
            ],
            directories=[
                f"{agent.name}: {found.name}"
                for agent in agents
                for found in sorted((agent.data / "alloc").glob("*-*-*-*-*"))
            ],
            mounts=[point for agent in agents for point in mounts_below(agent.data)],
            groups=control_groups(self._allocs),
            allocations=allocs,
            files={agent.name: open_files(agent.pid) for agent in agents if agent.alive},
        )

    def check(self, history: History) -> list[Result]:
        return [check_leaks(history)]


def _command(pid: int) -> str:
    try:
        said = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "ended"
    return said.replace(b"\0", b" ").decode("utf-8", "replace").strip()[:160]
