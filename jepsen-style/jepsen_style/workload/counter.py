"""A counter: read, add, write back if nobody was faster."""

from __future__ import annotations

from typing import ClassVar

from jepsen_style.checker.counter import check_counter
from jepsen_style.checker.result import Result
from jepsen_style.client import NodeClient
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Request, Workload
from nomadpy.entropy import Entropy

TRIES = 8
KEY = "counter"


class Counter(Workload):
    """A refused check-and-set changed nothing, so it is tried again with what is there now."""

    name: ClassVar[str] = "counter"
    about: ClassVar[str] = (
        "check-and-set increments: what is read lies between acknowledged and tried"
    )

    def request(self, worker: int, source: Entropy) -> Request:  # noqa: ARG002
        if source.uniform(0, 1) < 0.4:
            return Request(f="read", key=KEY)
        return Request(f="add", key=KEY, value=source.choice((1, 2, 3)))

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        value, version = self._read(client, KEY)
        if request.f == "read":
            return Outcome(type="ok", value=value or 0, version=version)
        for _ in range(TRIES):
            outcome = self._write(client, KEY, (value or 0) + request.value, version)
            if outcome.type == "ok":
                return outcome
            if outcome.version is None:
                break
            value, version = outcome.value, outcome.version
        return Outcome(type="fail", error=outcome.error)

    def finals(self) -> list[Request]:
        return [Request(f="read", key=KEY)]

    def check(self, history: History) -> list[Result]:
        return [check_counter(history)]

    def clean(self, client: NodeClient) -> None:
        self._remove_variables(client)
