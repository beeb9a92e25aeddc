"""Blocking queries on variables and jobs that others change."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from jepsen_style.checker.blocking import Wait, check_blocking
from jepsen_style.checker.logs import CANARY
from jepsen_style.checker.result import Result
from jepsen_style.client import Answer, NodeClient, NotDoneError, OutcomeUnknownError
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Reads, Request, Workload
from jepsen_style.workload.jobs_set import empty_job
from nomadpy.entropy import Entropy

KEYS = ("var-0", "var-1", "var-2", "job-0", "job-1")
WAIT_S = 4.0
ANSWER_S = 8.0


class Blocking(Workload):
    """Of nine clients three write and six wait, each from the index that its last answer to this key had."""

    name: ClassVar[str] = "blocking"
    about: ClassVar[str] = (
        "blocking queries: no change is slept through, no index or body goes back"
    )
    pace_s: ClassVar[float] = 0.1

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix, reads)
        self._jobs = prefix.replace("/", "-")
        self._seen: dict[tuple[int, str], int] = {}
        self._written = 0

    def request(self, worker: int, source: Entropy) -> Request:
        key = source.choice(KEYS)
        if (worker // 3) % 3 == 0 or source.uniform(0, 1) < 0.1:
            self._written += 1
            return Request(f="write", key=key, value={"element": self._written})
        asked = Wait(index=self._seen.get((worker, key), 0), wait_s=WAIT_S)
        return Request(f="wait", key=key, value=msgspec.to_builtins(asked))

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        if request.f == "write":
            return self._change(client, request.key, request.value["element"])
        return self._wait(client, request.key, msgspec.convert(request.value, Wait))

    def _change(self, client: NodeClient, key: str, element: int) -> Outcome:
        if key.startswith("var"):
            body: dict[str, object] = {"Items": {"value": str(element), "secret": CANARY}}
            answer = client.send("PUT", self._path(key), body)
            field = "ModifyIndex"
        else:
            job = {**empty_job(f"{self._jobs}-{key}"), "Meta": {"value": str(element)}}
            answer = client.send("PUT", "/v1/jobs", {"Job": job})
            field = "JobModifyIndex"
        if answer.status == 200:
            return Outcome(type="ok", version=int(answer.body[field]))
        return Outcome(type="fail", error=f"{answer.status} {answer.body}")

    def _wait(self, client: NodeClient, key: str, asked: Wait) -> Outcome:
        is_variable = key.startswith("var")
        path = self._path(key) if is_variable else f"/v1/job/{self._jobs}-{key}"
        query = self._query()
        if asked.index:
            query |= {"index": str(asked.index), "wait": f"{asked.wait_s:g}s"}
        try:
            answer = client.send("GET", path, query=query, timeout_s=asked.wait_s + ANSWER_S)
        except OutcomeUnknownError as error:
            raise NotDoneError(f"not read: {error}") from error
        if answer.status not in (200, 404):
            raise NotDoneError(f"{answer.status} {answer.body}")
        found = _found(answer, asked, is_variable=is_variable)
        return Outcome(type="ok", value=msgspec.to_builtins(found))

    def learn(self, worker: int, request: Request, outcome: Outcome) -> None:
        if request.f == "wait" and outcome.type == "ok":
            self._seen[worker, request.key] = outcome.value["found"]

    def finals(self) -> list[Request]:
        at_once = msgspec.to_builtins(Wait(index=0, wait_s=WAIT_S))
        return [Request(f="wait", key=key, value=at_once) for key in KEYS]

    def check(self, history: History) -> list[Result]:
        return [check_blocking(history)]

    def clean(self, client: NodeClient) -> None:
        self._remove_variables(client)
        for key in KEYS:
            if key.startswith("job"):
                client.send("DELETE", f"/v1/job/{self._jobs}-{key}", query={"purge": "true"})


def _found(answer: Answer, asked: Wait, *, is_variable: bool) -> Wait:
    if answer.status == 404:
        return msgspec.structs.replace(asked, found=answer.index)
    body = answer.body
    held = body["Items"] if is_variable else body["Meta"]
    return msgspec.structs.replace(
        asked,
        found=answer.index,
        version=int(body["ModifyIndex" if is_variable else "JobModifyIndex"]),
        element=int(held["value"]),
    )
