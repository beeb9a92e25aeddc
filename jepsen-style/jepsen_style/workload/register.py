"""Registers: check-and-set writes of unique values and reads, at every node, over several keys."""

from __future__ import annotations

from typing import ClassVar

from jepsen_style.checker.monotonic import check_monotonic
from jepsen_style.checker.register import check_register
from jepsen_style.checker.result import Result
from jepsen_style.client import NodeClient
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Reads, Request, Workload
from nomadpy.entropy import Entropy

KEYS = 8
READ_SHARE = 0.5


class Register(Workload):
    """A writer demands the version it saw last, so that about half of the writes meet another's and are refused."""

    name: ClassVar[str] = "register"
    about: ClassVar[str] = "check-and-set and reads of 8 variables: linearizable"

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix, reads)
        self._known: dict[tuple[int, str], int] = {}
        self._written = 0

    def request(self, worker: int, source: Entropy) -> Request:
        key = f"r{source.choice(range(KEYS))}"
        if source.uniform(0, 1) < READ_SHARE:
            return Request(f="read", key=key)
        self._written += 1
        cas = self._known.get((worker, key), 0)
        return Request(f="cas", key=key, value=f"{worker}-{self._written}", cas=cas)

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        if request.f == "read":
            value, version = self._read(client, request.key)
            return Outcome(type="ok", value=value, version=version)
        return self._write(client, request.key, request.value, request.cas or 0)

    def learn(self, worker: int, request: Request, outcome: Outcome) -> None:
        if outcome.version is not None:
            self._known[worker, request.key] = outcome.version

    def finals(self) -> list[Request]:
        return [Request(f="read", key=f"r{k}") for k in range(KEYS)]

    def check(self, history: History) -> list[Result]:
        return [check_register(history), check_monotonic(history)]

    def clean(self, client: NodeClient) -> None:
        self._remove_variables(client)
