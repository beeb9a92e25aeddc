"""What every endpoint has at hand."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.models.envelope import Answer
from nomadpy.server.core import Core
from nomadpy.server.forward import ConnectedNodes, Router
from nomadpy.server.leader.duties import LeaderDuties
from nomadpy.server.members import Members
from nomadpy.server.query import Queries

_encode = msgspec.json.Encoder().encode


class Services(msgspec.Struct, frozen=True):
    """The server's parts that handlers use."""

    core: Core
    router: Router
    queries: Queries
    duties: LeaderDuties
    members: Members
    nodes: ConnectedNodes


def written(value: Any, index: int = 0) -> Answer:
    """The answer of a write: a JSON body and the index header."""
    return Answer(body=_encode(value), index=index)


def done() -> Answer:
    """The answer of a write that has no body."""
    return Answer()
