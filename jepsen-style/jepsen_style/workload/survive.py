"""Tasks that tick, some for ever and some to an end of their own, while their agents die."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import msgspec

from jepsen_style.checker.result import Result
from jepsen_style.checker.survive import LAST, End, check_survive
from jepsen_style.client import NodeClient, NotDoneError, OutcomeUnknownError
from jepsen_style.docker import PrivateDaemon
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Reads, Request
from jepsen_style.workload.on_agents import TERMINAL, OnAgents
from nomadpy.clock import SystemClock
from nomadpy.entropy import Entropy

LOOK_S = 0.5
REST_S = 3.5
TICK = "0.2"
LASTING = 4
END_S = 40.0

ENDING = f'n=0; while [ $n -lt "$TICKS" ]; do n=$((n+1)); echo $n; sleep {TICK}; done; echo "{LAST}"; exit "$CODE"'
ENDLESS = f"n=0; while :; do n=$((n+1)); echo $n; sleep {TICK}; done"
NEVER_AGAIN: dict[str, Any] = {
    "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
    "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
}


class Survive(OnAgents):
    """The first client looks; the others start jobs: first LASTING that run for ever, then such that end after some seconds.

    Nodes keep their usual time to be given up, longer than any fault: a task that is replaced proves nothing here.
    """

    name: ClassVar[str] = "survive"
    about: ClassVar[str] = "tasks outlive agents: same process, exit codes and logs whole"

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix, reads)
        self._made: list[str] = []
        self._told: set[str] = set()

    def rest_s(self, worker: int) -> float:
        # Those that last must run before the first fault.
        return LOOK_S if worker == 0 or len(self._made) < LASTING else REST_S

    def request(self, worker: int, source: Entropy) -> Request:
        if worker == 0:
            return Request(f="look")
        key = f"j{len(self._made)}"
        self._made.append(key)
        lasting = len(self._made) <= LASTING
        ticks = 0 if lasting else source.choice(range(8, 40))
        code = 0 if lasting else source.choice((0, 1, 3, 7, 42))
        return Request(f="run", key=key, value={"ticks": ticks, "code": code})

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        if request.f == "look":
            return Outcome(type="ok", value=msgspec.to_builtins(self.look(client)))
        if request.f == "end":
            return Outcome(type="ok", value=msgspec.to_builtins(self._end(client, request.key)))
        ticks, code = request.value["ticks"], request.value["code"]
        job = self.job(
            request.key,
            kind="batch" if ticks else "service",
            command=["/bin/sh", "-c", ENDING if ticks else ENDLESS],
            env={"TICKS": str(ticks), "CODE": str(code)},
            Constraints=[self._turn(request.key)],
            **NEVER_AGAIN,
        )
        return self.register(client, job)

    def _turn(self, key: str) -> dict[str, str]:
        """Agents take turns, so that each has something to lose; packing would give all to one."""
        names = self.cluster.agent_names
        agent = names[int(key[1:]) % len(names)]
        return {"LTarget": "${node.unique.name}", "RTarget": agent, "Operand": "="}

    def finals(self) -> list[Request]:
        # Each is asked about once, whichever node it is; the last look comes first.
        ends = [Request(f="end", key=key) for key in self._made if key not in self._told]
        self._told.update(self._made)
        return [Request(f="look"), *ends]

    def _end(self, client: NodeClient, key: str) -> End:
        """What is known of a job; one that ends by itself, and an agent that is not back yet, are waited for."""
        clock, pause = SystemClock(), threading.Event()
        deadline = clock.monotonic() + self.patience(END_S)
        while True:
            late = clock.monotonic() > deadline
            try:
                rows = self._rows(client, key)
                over = rows[-1]["ClientStatus"] in TERMINAL or rows[-1]["JobType"] == "service"
                if over or late:
                    return self._told_of(client, rows)
            except NotDoneError:
                if late:
                    raise
            pause.wait(0.3)

    def _rows(self, client: NodeClient, key: str) -> list[dict[str, Any]]:
        """A job's allocations, the newest last. Raises NotDoneError when there is none."""
        answer = self.ask(client, f"/v1/job/{self.job_id(key)}/allocations")
        rows: list[dict[str, Any]] = answer.body or []
        if not rows:
            raise NotDoneError("it has no allocation")
        return sorted(rows, key=lambda row: int(row["CreateIndex"]))

    def _told_of(self, client: NodeClient, rows: list[dict[str, Any]]) -> End:
        row = rows[-1]
        state = (row["TaskStates"] or {}).get("task") or {}
        events = state.get("Events") or []
        codes = [e["ExitCode"] for e in events if e["Type"] == "Terminated"]
        refused = PrivateDaemon.need in self.cluster.equipment and (
            not codes and any(e["Type"] == "Driver Failure" for e in events)
        )
        return End(
            alloc=row["ID"],
            allocs=len(rows),
            client=row["ClientStatus"],
            exit_code=codes[-1] if codes else None,
            restarts=state.get("Restarts", 0),
            # What never started has no log.
            lines=[] if refused else self._lines(client, row["ID"]),
            refused=refused,
        )

    def _lines(self, client: NodeClient, alloc: str) -> list[str]:
        path = f"/v1/client/fs/logs/{alloc}"
        query = {"task": "task", "type": "stdout", "plain": "true", "origin": "start"}
        try:
            answer = client.send("GET", path, query=query)
        except OutcomeUnknownError as error:
            raise NotDoneError(f"not read: {error}") from error
        if answer.status != 200:
            raise NotDoneError(f"{answer.status} {answer.body}")
        # The client takes a single number for JSON, and what follows the last end of a line is being written.
        text = str(answer.body)
        return text.split("\n")[:-1] if isinstance(answer.body, str) else [text]

    def check(self, history: History) -> list[Result]:
        return [check_survive(history)]
