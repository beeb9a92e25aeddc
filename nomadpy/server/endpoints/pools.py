"""NodePool.* and Namespace.*."""

from __future__ import annotations

import base64
import hashlib
import re

import msgspec

from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.fsm import commands
from nomadpy.jobspec.faults import format_errors
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.models.node import NodePool
from nomadpy.models.operator import SCHEDULER_ALGORITHMS
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server.endpoints.base import Services, done
from nomadpy.server.endpoints.job_reads import jobs_of, truth
from nomadpy.server.endpoints.stubs import job_stub, node_stub
from nomadpy.server.query import Found, page
from nomadpy.state.store import Snapshot
from nomadpy.state.watch import Key

_NAME = re.compile(r"^[a-zA-Z0-9-_]{1,128}$")
NODE_IDENTITY_TTL_NS = 86_400_000_000_000


class Pools:
    """Handlers for node pools and namespaces."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._queries = services.queries
        register = services.router.register
        register("NodePool.List", self.list)
        register("NodePool.Get", self.get)
        register("NodePool.Nodes", self.nodes)
        register("NodePool.Jobs", self.jobs)
        register("NodePool.Upsert", self.upsert)
        register("NodePool.Delete", self.delete)
        register("Namespace.List", self.namespaces)
        register("Namespace.Get", self.namespace)

    async def list(self, _: CallContext, request: calls.Read) -> Answer:
        """All pools, by name."""

        def read(snapshot: Snapshot) -> Found:
            pools = (p for p in snapshot.node_pools() if p.name.startswith(request.options.prefix))
            found = page(pools, request.options, token=lambda p: p.name)
            return Found(
                index=snapshot.table_index("node_pools"),
                value=found.items,
                next_token=found.next_token,
            )

        return await self._queries.answer(request.options, [("table", "node_pools")], read)

    async def get(self, _: CallContext, request: calls.Read) -> Answer:
        """One pool."""

        def read(snapshot: Snapshot) -> Found:
            pool = snapshot.node_pool(request.id)
            if pool is None:
                index = snapshot.table_index("node_pools")
                return Found(index=index, missing="node pool not found")
            return Found(index=pool.modify_index, value=pool)

        return await self._queries.answer(request.options, [("table", "node_pools")], read)

    async def nodes(self, _: CallContext, request: calls.Read) -> Answer:
        """Rows of the pool's nodes; the pool `all` has every node."""
        resources, os_name = truth(request.flags, "resources"), truth(request.flags, "os")

        def read(snapshot: Snapshot) -> Found:
            pool = request.id
            nodes = snapshot.nodes() if pool == "all" else snapshot.nodes_by_pool(pool)
            found = page(nodes, request.options, token=lambda n: n.id)
            rows = [node_stub(n, resources=resources, os_name=os_name) for n in found.items]
            return Found(
                index=snapshot.table_index("nodes"), value=rows, next_token=found.next_token
            )

        return await self._queries.answer(request.options, [("table", "nodes")], read)

    async def jobs(self, _: CallContext, request: calls.Read) -> Answer:
        """Rows of the jobs that run in the pool."""

        def read(snapshot: Snapshot) -> Found:
            jobs = [j for j in jobs_of(snapshot, request.options) if j.node_pool == request.id]
            found = page(jobs, request.options, token=lambda j: (j.namespace, j.id))
            rows = [
                job_stub(j, snapshot.job_summary(j.namespace, j.id), meta=False)
                for j in found.items
            ]
            index = snapshot.table_index("jobs", "job_summaries")
            return Found(index=index, value=rows, next_token=found.next_token)

        keys: list[Key] = [("table", "jobs"), ("table", "job_summaries")]
        return await self._queries.answer(request.options, keys, read)

    async def upsert(self, _: CallContext, request: calls.NodePoolWrite) -> Answer:
        """Create or change a pool."""
        pool = request.pool
        faults: list[str] = []
        if not _NAME.match(pool.name):
            faults.append(f'invalid name "{pool.name}", must match regex {_NAME.pattern}')
        if len(pool.description) > 256:
            faults.append("description longer than 256")
        own = pool.scheduler_configuration
        if own is not None and own.scheduler_algorithm not in ("", *SCHEDULER_ALGORITHMS):
            faults.append(f'invalid scheduler algorithm "{own.scheduler_algorithm}"')
        if faults:
            raise InvalidRequestError(f'invalid node pool "{pool.name}": {format_errors(faults)}')
        if pool.name in ("all", "default"):
            raise InvalidRequestError(f'modifying node pool "{pool.name}" is not allowed')
        pool = msgspec.structs.replace(
            pool,
            hash=pool_hash(pool),
            node_identity_ttl=pool.node_identity_ttl or NODE_IDENTITY_TTL_NS,
        )
        await self._core.propose(
            commands.NodePoolUpsert(pools=[pool]), request_id=request.options.request_id
        )
        return done()

    async def delete(self, _: CallContext, request: calls.Write) -> Answer:
        """Remove a pool that nothing uses."""
        if self._core.snapshot().node_pool(request.id) is None:
            raise NotFoundError("node pool not found")
        await self._core.propose(
            commands.NodePoolDelete(names=[request.id]), request_id=request.options.request_id
        )
        return done()

    async def namespaces(self, _: CallContext, request: calls.Read) -> Answer:
        """All namespaces, by name."""

        def read(snapshot: Snapshot) -> Found:
            spaces = (n for n in snapshot.namespaces() if n.name.startswith(request.options.prefix))
            found = page(spaces, request.options, token=lambda n: n.name)
            return Found(
                index=snapshot.table_index("namespaces"),
                value=found.items,
                next_token=found.next_token,
            )

        return await self._queries.answer(request.options, [("table", "namespaces")], read)

    async def namespace(self, _: CallContext, request: calls.Read) -> Answer:
        """One namespace."""

        def read(snapshot: Snapshot) -> Found:
            space = snapshot.namespace(request.id)
            if space is None:
                index = snapshot.table_index("namespaces")
                return Found(index=index, missing="Namespace not found")
            return Found(index=space.modify_index, value=space)

        return await self._queries.answer(request.options, [("table", "namespaces")], read)


def pool_hash(pool: NodePool) -> str:
    """A digest of what an operator wrote, base64; it moves when that does."""
    written = [pool.name, pool.description, sorted((pool.meta or {}).items())]
    digest = hashlib.blake2b(msgspec.msgpack.encode(written), digest_size=32).digest()
    return base64.b64encode(digest).decode("ascii")
