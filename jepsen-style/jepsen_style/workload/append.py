"""Lists in variables that grow by one element at a time."""

from __future__ import annotations

from typing import ClassVar

from jepsen_style.checker.append import check_append
from jepsen_style.checker.result import Result
from jepsen_style.client import NodeClient
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Reads, Request, Workload
from nomadpy.entropy import Entropy

TRIES = 8
PER_KEY = 200


class Append(Workload):
    """Every PER_KEY elements begin a new list: a variable holds 64 KiB, and each write carries the whole list."""

    name: ClassVar[str] = "append"
    about: ClassVar[str] = "lists that grow by check-and-set: nothing lost, nothing twice, in order"

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix, reads)
        self._asked = 0

    def request(self, worker: int, source: Entropy) -> Request:  # noqa: ARG002
        if source.uniform(0, 1) < 0.4:
            return Request(f="read", key=self._key())
        self._asked += 1
        return Request(f="append", key=self._key(), value=self._asked)

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        value, version = self._read(client, request.key)
        if request.f == "read":
            return Outcome(type="ok", value=value or [], version=version)
        for _ in range(TRIES):
            grown = [*(value or []), request.value]
            outcome = self._write(client, request.key, grown, version)
            if outcome.type == "ok":
                return outcome
            if outcome.version is None:
                break
            value, version = outcome.value, outcome.version
        return Outcome(type="fail", error=outcome.error)

    def _key(self, asked: int | None = None) -> str:
        return f"list-{(self._asked if asked is None else asked) // PER_KEY}"

    def finals(self) -> list[Request]:
        lists = range(self._asked // PER_KEY + 1)
        return [Request(f="read", key=self._key(n * PER_KEY)) for n in lists]

    def check(self, history: History) -> list[Result]:
        return [check_append(history)]

    def clean(self, client: NodeClient) -> None:
        self._remove_variables(client)
