"""This node's ways to the servers: a connection to every one of them, and the Caller that the node's API uses.

Every connection is attached to the node, so that any server can call this agent back; whichever node a user asks,
the answer comes over one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from agent.server_list import FailoverCaller, ServerList
from nomadpy import logs
from nomadpy.entropy import Entropy
from nomadpy.errors import (
    ConnectionLostError,
    DeadlineError,
    IndefiniteError,
    NoLeaderError,
    NomadError,
    NotLeaderError,
    ProposalTimeoutError,
    UnreachableError,
)
from nomadpy.models.calls import NodeAttach
from nomadpy.models.envelope import WriteOptions
from nomadpy.rpc.caller import Caller, Stream
from nomadpy.rpc.connection import Connection
from nomadpy.rpc.dispatch import CallContext, Dispatcher
from nomadpy.rpc.methods import METHODS
from nomadpy.rpc.network import Identity
from nomadpy.rpc.pool import Pool

log = logs.get(__name__)

ATTACH_INTERVAL_S = 1.0
ATTACH_TIMEOUT_S = 5.0
RETRY_S = 0.2
WRITE_WAIT_S = 10.0


class PooledCaller:
    """The Caller of one server's address."""

    def __init__(self, pool: Pool, address: str) -> None:
        self._pool = pool
        self._address = address

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        """Call over the connection to this server."""
        return await self._pool.call(self._address, method, request, timeout_s=timeout_s)

    def open(self, method: str, request: msgspec.Struct) -> AbstractAsyncContextManager[Stream]:
        """Open a stream over the connection to this server."""
        return self._pool.open(self._address, method, request)


def caller_of_servers(pool: Pool, servers: ServerList) -> FailoverCaller:
    """A Caller that asks the servers in turn, over connections kept in `pool`."""
    return FailoverCaller(servers, lambda address: PooledCaller(pool, address))


class Attachments:
    """Keeps one attached connection to every known server."""

    def __init__(
        self, pool: Pool, servers: ServerList, credentials: Callable[[], tuple[str, str]]
    ) -> None:
        """credentials: the node's id and secret; ("", "") while they are not known yet."""
        self._pool = pool
        self._servers = servers
        self._credentials = credentials
        self._attached: dict[str, Connection] = {}

    async def run(self) -> None:
        """Attach again whatever was lost, until cancelled."""
        while True:
            node_id, secret_id = self._credentials()
            if node_id:
                async with asyncio.TaskGroup() as group:
                    for address in self._servers.ordered():
                        group.create_task(
                            self._attach(address, node_id, secret_id), name=f"attach-{address}"
                        )
            everywhere = len(self._attached) == len(self._servers.ordered())
            await asyncio.sleep(ATTACH_INTERVAL_S if everywhere else ATTACH_INTERVAL_S / 4)

    async def _attach(self, address: str, node_id: str, secret_id: str) -> None:
        held = self._attached.get(address)
        if held is not None and not held.closed:
            return
        self._attached.pop(address, None)
        request = NodeAttach(node_id=node_id, secret_id=secret_id)
        try:
            connection = await self._pool.get(address, "server")
            await connection.call("Node.Attach", request, timeout_s=ATTACH_TIMEOUT_S)
        except NomadError as error:
            # A server that has not applied our registration yet does not know us; soon it will.
            log.debug("not attached", server=address, error=error.message)
        else:
            self._attached[address] = connection


class ClientCaller:
    """What the API of a client node calls: its own node here, everything else on the servers."""

    def __init__(
        self,
        servers: Caller,
        dispatcher: Dispatcher,
        owns: Callable[[msgspec.Struct], bool],
        *,
        region: str,
        entropy: Entropy,
    ) -> None:
        """owns: whether a request of a "node" method is about this node."""
        self._servers = servers
        self._dispatcher = dispatcher
        self._owns = owns
        self._entropy = entropy
        self._me = CallContext(peer=Identity(role="client", region=region, name="local"))

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        """Call as this node. A write is given an id and tried again until a leader took it."""
        row = METHODS[method]
        if row.where == "node" and self._owns(request):
            return await self._dispatcher.dispatch_local(method, request, self._me)
        if row.where != "leader":
            return await self._servers.call(method, request, timeout_s=timeout_s)
        options = getattr(request, "options", None)
        if isinstance(options, WriteOptions) and not options.request_id:
            named = msgspec.structs.replace(options, request_id=self._entropy.uuid())
            request = msgspec.structs.replace(request, options=named)
        return await self._write(method, request, timeout_s)

    async def _write(self, method: str, request: msgspec.Struct, timeout_s: float | None) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (timeout_s or WRITE_WAIT_S)
        failure: NomadError | None = None
        while True:
            try:
                return await self._servers.call(
                    method, request, timeout_s=max(0.1, deadline - loop.time())
                )
            except (UnreachableError, NoLeaderError, NotLeaderError) as error:
                failure = failure if isinstance(failure, IndefiniteError) else error
            except (ConnectionLostError, DeadlineError, ProposalTimeoutError) as error:
                # It may have happened; the same request id makes asking again safe.
                failure = error
            if loop.time() >= deadline:
                raise failure
            await asyncio.sleep(RETRY_S)

    def open(self, method: str, request: msgspec.Struct) -> AbstractAsyncContextManager[Stream]:
        """Open a stream as this node."""
        if METHODS[method].where == "node" and self._owns(request):
            return self._dispatcher.open_local(method, request, self._me)
        return self._servers.open(method, request)


class LocalLink:
    """How the server in this process calls the agent in this process."""

    def __init__(self, dispatcher: Dispatcher, *, region: str) -> None:
        self._dispatcher = dispatcher
        self._me = CallContext(peer=Identity(role="server", region=region, name="local"))

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        """Call the agent; a call that takes longer than timeout_s is cancelled."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._dispatcher.dispatch_local(method, request, self._me)
        except TimeoutError as cause:
            raise DeadlineError(f"{method}: no answer within {timeout_s} seconds") from cause

    def open(self, method: str, request: msgspec.Struct) -> AbstractAsyncContextManager[Stream]:
        """Open a stream to the agent."""
        return self._dispatcher.open_local(method, request, self._me)


def is_about(request: msgspec.Struct, node_id: str, holds: Callable[[str], bool]) -> bool:
    """Whether a node method's request names this node, or an allocation that it holds, or nothing at all."""
    if not node_id:
        return False
    alloc_id: str = getattr(request, "alloc_id", "")
    if alloc_id:
        return holds(alloc_id)
    return getattr(request, "node_id", "") in ("", node_id)
