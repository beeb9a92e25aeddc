"""What every workload has, and variables as most of them use them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

from jepsen_style.checker.logs import CANARY
from jepsen_style.checker.result import Result
from jepsen_style.client import Answer, NodeClient, NotDoneError, OutcomeUnknownError
from jepsen_style.history import History
from nomadpy.entropy import Entropy

if TYPE_CHECKING:
    from jepsen_style.cluster import OwnCluster

Reads = Literal["default", "stale"]

HASTE_S = 6.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is to do."""

    f: str
    key: str = ""
    value: Any = None
    cas: int | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. value, version: as in history.Op."""

    type: Literal["ok", "fail", "info"]
    value: Any = None
    version: int | None = None
    error: str = ""


class Workload(ABC):
    """One kind of work. `request` and `learn` are called under one lock; `perform` from many threads at once."""

    name: ClassVar[str]
    about: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """What it cannot do without, see equipment_registry.py."""
    configuration: ClassVar[Mapping[str, str]] = {}
    """Lines that the configuration of each role needs for it, "server" and "client"."""
    pace_s: ClassVar[float] = 0.0
    """How long a client rests before a request, beside what the rate says."""

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        """prefix: of everything this run writes, so that runs do not meet."""
        self.prefix = prefix
        self.reads = reads
        self._hasty = False

    def attach(self, cluster: OwnCluster) -> None:
        """Before the first request, when the cluster is the kit's own: for workloads that look at its machine."""
        # What is broken on purpose need not be waited for.
        self._hasty = bool(cluster.mutation)

    def patience(self, usual_s: float) -> float:
        """How long to wait at the end for what should come about."""
        return min(usual_s, HASTE_S) if self._hasty else usual_s

    def rest_s(self, worker: int) -> float:  # noqa: ARG002
        """How long a client rests before a request, beside what the rate says."""
        return self.pace_s

    @abstractmethod
    def request(self, worker: int, source: Entropy) -> Request:
        """What this worker does next."""

    @abstractmethod
    def perform(self, client: NodeClient, request: Request) -> Outcome:
        """Do it. Raises NotDoneError and OutcomeUnknownError of the one request that changes something."""

    def learn(self, worker: int, request: Request, outcome: Outcome) -> None:  # noqa: B027
        """Take notice of an outcome."""

    @abstractmethod
    def finals(self) -> list[Request]:
        """Reads of all there is, for every node at the end."""

    @abstractmethod
    def check(self, history: History) -> list[Result]:
        """The verdicts on a history of this workload; nothing but the history is looked at."""

    @abstractmethod
    def clean(self, client: NodeClient) -> None:
        """Remove what was written, from a cluster that goes on."""

    # -- variables ------------------------------------------------------------------------------------------

    def _query(self) -> dict[str, str]:
        return {"stale": ""} if self.reads == "stale" else {}

    def _read(self, client: NodeClient, key: str, *, stale: bool = True) -> tuple[Any, int]:
        """(what the variable holds or None, its version or 0). Whatever goes wrong, nothing has changed."""
        try:
            answer = client.send("GET", self._path(key), query=self._query() if stale else None)
        except OutcomeUnknownError as error:
            raise NotDoneError(f"not read: {error}") from error
        if answer.status == 404:
            return None, 0
        if answer.status != 200:
            raise NotDoneError(f"{answer.status} {answer.body}")
        return _held(answer)

    def _write(self, client: NodeClient, key: str, value: Any, cas: int) -> Outcome:
        """A check-and-set. A refusal tells value and version of what is there."""
        text = msgspec.json.encode(value).decode()
        answer = client.send(
            "PUT",
            self._path(key),
            {"Items": {"value": text, "secret": CANARY}},
            query={"cas": str(cas)},
        )
        if answer.status == 200:
            return Outcome(type="ok", version=int(answer.body["ModifyIndex"]))
        if answer.status == 409:
            there, version = _held(answer)
            return Outcome(type="fail", value=there, version=version, error="409")
        return Outcome(type="fail", error=f"{answer.status} {answer.body}")

    def _path(self, key: str) -> str:
        return f"/v1/var/{self.prefix}/{key}"

    def _remove_variables(self, client: NodeClient) -> None:
        for row in client.send("GET", "/v1/vars", query={"prefix": self.prefix}).body:
            client.send("DELETE", f"/v1/var/{row['Path']}")


def _held(answer: Answer) -> tuple[Any, int]:
    body = answer.body
    text = (body.get("Items") or {}).get("value")
    value = None if text is None else msgspec.json.decode(text)
    return value, int(body.get("ModifyIndex") or 0)
