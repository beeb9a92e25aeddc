"""Jobs as a set: registered once, perhaps taken out again, listed by everyone."""

from __future__ import annotations

from typing import ClassVar

from jepsen_style.checker.result import Result
from jepsen_style.checker.set_full import check_set
from jepsen_style.client import NodeClient, NotDoneError, OutcomeUnknownError
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Reads, Request, Workload
from nomadpy.entropy import Entropy

MOST = 150


class JobsSet(Workload):
    """Jobs have a group of count 0: they are work for servers only. Registering demands that the job is new."""

    name: ClassVar[str] = "jobs-set"
    about: ClassVar[str] = "register and purge jobs with EnforceIndex: none lost, none comes back"

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix.replace("/", "-"), reads)
        self._asked = 0
        self._there: dict[int, list[int]] = {}

    def request(self, worker: int, source: Entropy) -> Request:
        mine = self._there.setdefault(worker, [])
        roll = source.uniform(0, 1)
        many = sum(map(len, self._there.values())) > MOST
        if mine and roll < (0.6 if many else 0.2):
            return Request(f="remove", value=mine.pop(0))
        if roll < 0.6:
            return Request(f="read")
        self._asked += 1
        return Request(f="add", value=self._asked)

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        if request.f == "read":
            return self._list(client)
        job_id = f"{self.prefix}-{request.value}"
        if request.f == "remove":
            answer = client.send("DELETE", f"/v1/job/{job_id}", query={"purge": "true"})
        else:
            body = {"Job": empty_job(job_id), "EnforceIndex": True, "JobModifyIndex": 0}
            answer = client.send("PUT", "/v1/jobs", body)
        if answer.status == 200:
            return Outcome(type="ok", version=answer.index)
        return Outcome(type="fail", error=f"{answer.status} {answer.body}")

    def _list(self, client: NodeClient) -> Outcome:
        try:
            query = {"prefix": f"{self.prefix}-", **self._query()}
            answer = client.send("GET", "/v1/jobs", query=query)
        except OutcomeUnknownError as error:
            raise NotDoneError(f"not read: {error}") from error
        if answer.status != 200:
            raise NotDoneError(f"{answer.status} {answer.body}")
        found = sorted(int(row["ID"].rpartition("-")[2]) for row in answer.body)
        return Outcome(type="ok", value=found)

    def learn(self, worker: int, request: Request, outcome: Outcome) -> None:
        if request.f == "add" and outcome.type == "ok":
            self._there[worker].append(request.value)

    def finals(self) -> list[Request]:
        return [Request(f="read")]

    def check(self, history: History) -> list[Result]:
        return [check_set(history)]

    def clean(self, client: NodeClient) -> None:
        for element in self._list(client).value:
            client.send("DELETE", f"/v1/job/{self.prefix}-{element}", query={"purge": "true"})


def empty_job(job_id: str) -> dict[str, object]:
    """A job whose only group has a count of 0."""
    task = {"Name": "none", "Driver": "raw_exec", "Config": {"command": "/bin/true"}}
    return {
        "ID": job_id,
        "Name": job_id,
        "Type": "service",
        "Datacenters": ["*"],
        "TaskGroups": [{"Name": "none", "Count": 0, "Tasks": [task]}],
    }
