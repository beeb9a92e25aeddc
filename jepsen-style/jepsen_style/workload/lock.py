"""Locks of variables as leases, and writes that carry the lock they were made under."""

from __future__ import annotations

import threading
from typing import ClassVar

import msgspec

from jepsen_style.checker.lock import check_lock
from jepsen_style.checker.logs import CANARY
from jepsen_style.checker.result import Result
from jepsen_style.client import Answer, NodeClient, NotDoneError, OutcomeUnknownError
from jepsen_style.history import History
from jepsen_style.workload.base import Outcome, Reads, Request, Workload
from nomadpy.clock import SystemClock
from nomadpy.entropy import Entropy

KEYS = 6
TTL_S = 10
DELAY_S = 1
PATIENCE_S = 60.0
RETRY_S = 0.25


class _Held(msgspec.Struct):
    """A lock that a client believes it has. left: what it does before it is done with it."""

    key: str
    id: str
    manner: str
    left: int
    released: bool = False


class Lock(Workload):
    """Holders are brief (a few writes, then a release), keep their lock longer than its TTL by renewing it, or forget
    it: they neither renew nor release, and go on writing until they are refused. After a release some write once more."""

    name: ClassVar[str] = "lock"
    about: ClassVar[str] = "locks with a TTL: leases; the ModifyIndex fences off former holders"
    pace_s: ClassVar[float] = 0.05

    def __init__(self, prefix: str, reads: Reads = "default") -> None:
        super().__init__(prefix, reads)
        self._held: dict[int, _Held] = {}
        self._written = 0

    def request(self, worker: int, source: Entropy) -> Request:
        held = self._held.get(worker)
        if held is None:
            return Request(f="acquire", key=f"lock-{source.choice(range(KEYS))}")
        if held.released:
            # The id is worth nothing any more, and must be refused.
            del self._held[worker]
            return self._write_request(held)
        held.left -= 1
        if held.manner == "forgetful":
            return self._write_request(held)
        if held.left <= 0:
            return Request(f="release", key=held.key, value={"lock": held.id})
        if held.manner == "lasting" and source.uniform(0, 1) < 0.4:
            return Request(f="renew", key=held.key, value={"lock": held.id})
        return self._write_request(held)

    def _write_request(self, held: _Held) -> Request:
        self._written += 1
        return Request(f="write", key=held.key, value={"lock": held.id, "element": self._written})

    def perform(self, client: NodeClient, request: Request) -> Outcome:
        if request.f == "take":
            return self._take(client, request.key)
        return self._once(client, request)

    def _once(self, client: NodeClient, request: Request) -> Outcome:
        path = self._path(request.key)
        if request.f == "acquire":
            body = {
                "Items": {"value": "0", "secret": CANARY},
                "Lock": {"TTL": f"{TTL_S}s", "LockDelay": f"{DELAY_S}s"},
            }
            answer = client.send("PUT", path, body, query={"lock-acquire": ""})
            if answer.status == 200:
                return Outcome(
                    type="ok",
                    value={"lock": answer.body["Lock"]["ID"]},
                    version=int(answer.body["ModifyIndex"]),
                )
            return _refused(answer)
        lock = {"ID": request.value["lock"]}
        if request.f == "write":
            items = {"value": str(request.value["element"]), "secret": CANARY}
            answer = client.send("PUT", path, {"Items": items, "Lock": lock})
        else:
            answer = client.send("PUT", path, {"Lock": lock}, query={f"lock-{request.f}": ""})
        if answer.status == 200:
            return Outcome(type="ok", version=int(answer.body["ModifyIndex"]))
        return _refused(answer)

    def _take(self, client: NodeClient, key: str) -> Outcome:
        """Take a lock that must become free, with patience, and give it back."""
        clock, pause = SystemClock(), threading.Event()
        deadline = clock.monotonic() + self.patience(PATIENCE_S)
        while True:
            try:
                taken = self._once(client, Request(f="acquire", key=key))
            except (NotDoneError, OutcomeUnknownError) as error:
                taken = Outcome(type="fail", error=str(error))
            if taken.type == "ok":
                self._once(client, Request(f="release", key=key, value=taken.value))
                return taken
            if clock.monotonic() > deadline:
                return taken
            pause.wait(RETRY_S)

    def learn(self, worker: int, request: Request, outcome: Outcome) -> None:
        if request.f == "acquire":
            if outcome.type == "ok":
                manner, left = self._manner(worker + self._written)
                self._held[worker] = _Held(request.key, outcome.value["lock"], manner, left)
            return
        held = self._held.get(worker)
        if held is None:
            return
        refused = outcome.type == "fail" and outcome.error.startswith("409")
        if request.f == "release" and (outcome.type == "ok" or refused):
            held.released = True
        elif refused:
            del self._held[worker]

    @staticmethod
    def _manner(number: int) -> tuple[str, int]:
        if number % 8 == 0:
            return "forgetful", 0
        # At the clients' pace of about 20 a second: two leases and more.
        return ("lasting", 300) if number % 4 == 1 else ("brief", 5)

    def finals(self) -> list[Request]:
        still = [h for h in self._held.values() if not h.released and h.manner != "forgetful"]
        self._held.clear()
        given_back = [Request(f="release", key=h.key, value={"lock": h.id}) for h in still]
        return [*given_back, *(Request(f="take", key=f"lock-{k}") for k in range(KEYS))]

    def check(self, history: History) -> list[Result]:
        return [check_lock(history, ttl_s=TTL_S, delay_s=DELAY_S)]

    def clean(self, client: NodeClient) -> None:
        self._remove_variables(client)


def _refused(answer: Answer) -> Outcome:
    # The bodies of conflicts name the variable only; what was asked for is known.
    return Outcome(type="fail", error=f"{answer.status} {answer.body}"[:200])
