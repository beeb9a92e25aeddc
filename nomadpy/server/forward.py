"""Where a call runs: here, on the leader, or on the node that owns what it is about.

Every method is registered once, wrapped in its route. A write that meets no leader, or loses it under way, is tried
again until `leader_wait_s` has passed: it carries a request id, so trying again cannot do it twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from nomadpy import logs
from nomadpy.errors import (
    ConnectionLostError,
    DeadlineError,
    DefiniteError,
    IndefiniteError,
    NoLeaderError,
    NomadError,
    NotFoundError,
    NotLeaderError,
    ProposalTimeoutError,
    UnreachableError,
)
from nomadpy.models.calls import IndexReply, IndexRequest
from nomadpy.models.envelope import WriteOptions
from nomadpy.rpc.caller import Stream
from nomadpy.rpc.dispatch import CallContext, Dispatcher
from nomadpy.rpc.methods import METHODS, Method
from nomadpy.rpc.network import Identity
from nomadpy.rpc.pool import Pool
from nomadpy.server.core import Core

log = logs.get(__name__)

Handler = Callable[[CallContext, Any], Awaitable[Any]]

CALL_TIMEOUT_S = 15.0
NODE_TIMEOUT_S = 75.0
RETRY_S = 0.1
LOOK_S = 0.25
CATCH_UP_S = 2.0
ATTACH_WAIT_S = 2.0
"""A node is ready before all servers hold its connection; so long they wait for it."""
KEPT_BYTES = 1 << 20


class NodeLink(Protocol):
    """A way to call one agent: its connection, or the agent in this process."""

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any: ...

    def open(self, method: str, request: msgspec.Struct) -> AbstractAsyncContextManager[Stream]: ...


class ConnectedNodes:
    """The agents that hold a connection to this server."""

    def __init__(self) -> None:
        self._links: dict[str, NodeLink] = {}

    def attach(self, node_id: str, link: NodeLink) -> None:
        """Calls for the node go over `link` from now on."""
        self._links[node_id] = link

    def detach(self, link: NodeLink) -> None:
        """The link has ended; a newer one of the same node stays."""
        for node_id in [k for k, held in self._links.items() if held is link]:
            del self._links[node_id]

    def get(self, node_id: str) -> NodeLink | None:
        """The link of a node, or None when it is not connected here."""
        return self._links.get(node_id)


class Router:
    """Registers handlers on the dispatcher with their routes, and calls them on behalf of this node."""

    def __init__(
        self,
        core: Core,
        dispatcher: Dispatcher,
        pool: Pool,
        nodes: ConnectedNodes,
        other_servers: Callable[[], list[str]],
    ) -> None:
        self._core = core
        self._dispatcher = dispatcher
        self._pool = pool
        self._nodes = nodes
        self._other_servers = other_servers
        self._me = CallContext(
            peer=Identity(role="server", region=core.settings.region, name="local"),
            address="local",
            connection=None,
        )
        for method in METHODS.values():
            if method.where == "node":
                if method.stream:
                    dispatcher.register(method.name, self._stream_to_node(method))
                else:
                    dispatcher.register(method.name, self._call_to_node(method))

    def register(self, name: str, handler: Callable[..., Awaitable[Any]]) -> None:
        """Serve a method that runs on servers."""
        method = METHODS[name]
        if method.where == "leader":
            self._dispatcher.register(name, self._on_leader(method, handler))
        else:
            self._dispatcher.register(name, handler)

    # -- Caller ---------------------------------------------------------------------------------------

    async def call(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        """Call as this server itself. Raises DeadlineError when `timeout_s` is over."""
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await self._dispatcher.dispatch_local(method, request, self._me)
        except TimeoutError as cause:
            if not limit.expired():
                raise
            raise DeadlineError(f"no answer to {method} within {timeout_s:g} seconds") from cause

    def open(self, method: str, request: msgspec.Struct) -> AbstractAsyncContextManager[Stream]:
        """Open a stream as this server itself."""
        return self._dispatcher.open_local(method, request, self._me)

    async def call_leader(
        self, method: str, request: msgspec.Struct, *, timeout_s: float | None = None
    ) -> Any:
        """Call a method of the leader's, once. Raises NoLeaderError when none is known, ConnectionLostError when
        another server leads before it has answered: a leader that was cut off would keep us waiting.
        """
        leader = self._core.raft.leader
        if leader is None or leader.id == self._core.settings.id:
            raise NoLeaderError
        loop = asyncio.get_running_loop()
        looks: list[asyncio.TimerHandle] = []

        def look() -> None:
            now = self._core.raft.leader
            if now is not None and now.id != leader.id:
                patience.reschedule(loop.time())
            else:
                looks[:] = [loop.call_later(LOOK_S, look)]

        try:
            async with asyncio.timeout(None) as patience:
                look()
                return await self._pool.call(leader.address, method, request, timeout_s=timeout_s)
        except TimeoutError as cause:
            raise ConnectionLostError(
                f"{leader.address}: another server leads now; what became of the call is not known"
            ) from cause
        finally:
            looks[0].cancel()

    # -- the leader -------------------------------------------------------------------------------------

    def _on_leader(self, method: Method, handler: Handler) -> Handler:
        answer_s = CALL_TIMEOUT_S + (NODE_TIMEOUT_S if method.slow else 0.0)

        async def routed(context: CallContext, request: Any) -> Any:
            request = self._named(request)
            loop = asyncio.get_running_loop()
            deadline = loop.time() + self._core.settings.leader_wait_s
            from_server = context.connection is not None and context.peer.role == "server"
            failure: NomadError | None = None
            while True:
                try:
                    if self._core.raft.is_leader:
                        return await handler(context, request)
                    if from_server:
                        # It looked for the leader and found us: it must look again.
                        self._core.require_leader()
                    return await self.call_leader(method.name, request, timeout_s=answer_s)
                except (NotLeaderError, NoLeaderError, UnreachableError) as error:
                    if from_server:
                        raise
                    # Definite: nothing happened in this try. An earlier one may still have happened.
                    failure = failure if isinstance(failure, IndefiniteError) else error
                except DefiniteError as error:
                    if isinstance(failure, IndefiniteError):
                        # It may be our own earlier try that this one has met.
                        raise IndefiniteError(error.message, status=error.status) from error
                    raise
                except (ConnectionLostError, DeadlineError, ProposalTimeoutError) as error:
                    if from_server:
                        raise
                    failure = error
                if loop.time() >= deadline:
                    if isinstance(failure, IndefiniteError):
                        raise failure
                    raise NoLeaderError from failure
                await asyncio.sleep(RETRY_S)

        return routed

    def _named(self, request: Any) -> Any:
        options = getattr(request, "options", None)
        if not isinstance(options, WriteOptions) or options.request_id:
            return request
        named = msgspec.structs.replace(options, request_id=self._core.entropy.uuid())
        return msgspec.structs.replace(request, options=named)

    # -- nodes ------------------------------------------------------------------------------------------

    async def _node_of(self, request: Any) -> str:
        node_id: str = getattr(request, "node_id", "")
        alloc_id: str = getattr(request, "alloc_id", "")
        if not alloc_id and not node_id:
            raise NotFoundError("Node lookup failed: this node runs no client; name one by node_id")
        found = self._find_node(node_id, alloc_id)
        if not found and len(alloc_id or node_id) == 36:
            # It may have been placed a moment ago, and this server not know it yet.
            await self._catch_up()
            found = self._find_node(node_id, alloc_id)
        if not found:
            unknown = f'allocation "{alloc_id}"' if alloc_id else f"node {node_id}"
            raise NotFoundError(f"Unknown {unknown}")
        return found

    def _find_node(self, node_id: str, alloc_id: str) -> str:
        snapshot = self._core.snapshot()
        if alloc_id:
            alloc = snapshot.alloc(alloc_id)
            return "" if alloc is None else alloc.node_id
        return "" if snapshot.node(node_id) is None else node_id

    async def _catch_up(self) -> None:
        raft = self._core.raft
        if raft.is_leader:
            return
        try:
            reply: IndexReply = await self.call_leader(
                "Raft.ReadIndex", IndexRequest(), timeout_s=CATCH_UP_S
            )
            await raft.wait_applied(reply.index, timeout_s=CATCH_UP_S)
        except NomadError as error:
            log.debug("not caught up with the leader", error=error.message)

    def _call_to_node(self, method: Method) -> Handler:
        async def routed(context: CallContext, request: Any) -> Any:
            node_id = await self._node_of(request)
            link = self._nodes.get(node_id)
            if link is not None:
                return await link.call(method.name, request, timeout_s=NODE_TIMEOUT_S)
            self._stop_at_second_hop(context, node_id)
            for address in self._other_servers():
                try:
                    return await self._pool.call(
                        address, method.name, request, timeout_s=NODE_TIMEOUT_S
                    )
                except (UnreachableError, _NotConnectedError):
                    continue
            link = await self._soon(node_id)
            return await link.call(method.name, request, timeout_s=NODE_TIMEOUT_S)

        return routed

    def _stream_to_node(self, method: Method) -> Callable[..., Awaitable[None]]:
        async def routed(context: CallContext, request: Any, stream: Stream) -> None:
            node_id = await self._node_of(request)
            splice = _Splice(stream)
            link = self._nodes.get(node_id)
            if link is not None:
                async with link.open(method.name, request) as remote:
                    await splice.run(remote)
                return
            self._stop_at_second_hop(context, node_id)
            for address in self._other_servers():
                try:
                    connection = await self._pool.get(address, "server")
                    async with connection.open(method.name, request) as remote:
                        await splice.run(remote)
                    return
                except (UnreachableError, _NotConnectedError):
                    if splice.answered:
                        raise
            link = await self._soon(node_id)
            async with link.open(method.name, request) as remote:
                await splice.run(remote)

        return routed

    async def _soon(self, node_id: str) -> NodeLink:
        """The connection of a node that has just come, or come back. Raises NotFoundError for one that has none."""
        end = asyncio.get_running_loop().time() + ATTACH_WAIT_S
        while True:
            link = self._nodes.get(node_id)
            if link is not None:
                return link
            node = self._core.snapshot().node(node_id)
            if node is None or node.status != "ready" or asyncio.get_running_loop().time() >= end:
                raise _NotConnectedError(_no_path(node_id))
            await asyncio.sleep(RETRY_S)

    def _stop_at_second_hop(self, context: CallContext, node_id: str) -> None:
        if context.connection is not None and context.peer.role == "server":
            raise _NotConnectedError(_no_path(node_id))


class _NotConnectedError(NotFoundError):
    """The node holds no connection to the server that was asked."""

    code = "node-not-connected"


def _no_path(node_id: str) -> str:
    return f"No path to node {node_id}: it holds no connection to any server; is its agent running?"


class _Splice:
    """Copies chunks both ways between the near side and a far one, until the far side ends; what the near side sends
    ends with it.

    A far server that turns out not to hold the node has swallowed what it was sent, so that is kept for the next one
    until somebody answers.
    """

    def __init__(self, near: Stream) -> None:
        self._near = near
        self._kept: list[bytes] = []
        self._kept_size = 0
        self.answered = False

    async def run(self, far: Stream) -> None:
        """Copy until `far` ends. Raises its error; may be called again with another far side unless `answered`."""
        failure: NomadError | None = None
        async with asyncio.TaskGroup() as group:
            upstream = group.create_task(self._upstream(far), name="splice-upstream")
            try:
                while (chunk := await far.receive()) is not None:
                    self._settle()
                    await self._near.send(chunk)
            except NomadError as error:
                failure = error
            finally:
                upstream.cancel()
        if failure is not None:
            raise failure
        await self._near.finish()

    async def _upstream(self, far: Stream) -> None:
        try:
            for kept in list(self._kept):
                await far.send(kept)
            while (chunk := await self._near.receive()) is not None:
                self._keep(chunk)
                await far.send(chunk)
            await far.finish()
        except NomadError as error:
            # The far side's own end says why; this direction just stops.
            log.debug("stream upstream ended", error=error.message)

    def _keep(self, chunk: bytes) -> None:
        if self.answered:
            return
        self._kept.append(chunk)
        self._kept_size += len(chunk)
        if self._kept_size > KEPT_BYTES:
            # Whoever takes this much does hold the node.
            self._settle()

    def _settle(self) -> None:
        self.answered = True
        self._kept.clear()
