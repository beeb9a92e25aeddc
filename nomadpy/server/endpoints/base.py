"""What every endpoint has at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from nomadpy.models.envelope import Answer
from nomadpy.models.evaluation import Evaluation
from nomadpy.pki.keyring import Keyring
from nomadpy.server.core import Core
from nomadpy.server.forward import ConnectedNodes, Router
from nomadpy.server.leader.duties import LeaderDuties
from nomadpy.server.members import Members
from nomadpy.server.query import Queries
from nomadpy.state.store import Snapshot

_encode = msgspec.json.Encoder().encode


class Services(msgspec.Struct, frozen=True):
    """The server's parts that handlers use."""

    core: Core
    router: Router
    queries: Queries
    duties: LeaderDuties
    members: Members
    nodes: ConnectedNodes
    keyring: Keyring


def evaluations_of(snapshot: Snapshot, proposed: Iterable[Evaluation], index: int) -> list[str]:
    """The ids of the evaluations that the entry at `index` made: those proposed with it, unless the write was a
    repetition; then the first one's."""
    ids = [e.id for e in proposed]
    if all(snapshot.eval(identity) is not None for identity in ids):
        return ids
    return [e.id for e in snapshot.evals() if e.create_index == index]


def evaluation_of(snapshot: Snapshot, proposed: Evaluation | None, index: int) -> str:
    """The same for a write that makes one evaluation or none; "" none."""
    ids = evaluations_of(snapshot, [] if proposed is None else [proposed], index)
    return ids[0] if ids else ""


def written(value: Any, index: int = 0) -> Answer:
    """The answer of a write: a JSON body and the index header."""
    return Answer(body=_encode(value), index=index)


def done() -> Answer:
    """The answer of a write that has no body."""
    return Answer()
