"""Node.*: reads, drains and eligibility for operators; registration, heartbeats and status for agents."""

from __future__ import annotations

import hmac

import msgspec

from nomadpy.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ValidationError,
)
from nomadpy.fsm import commands
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.gotime import from_ns
from nomadpy.models.node import DrainStrategy, Node, NodeEvent
from nomadpy.models.replies import NodeDrainUpdateResponse, NodeEligibilityUpdateResponse
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server import new_evaluations
from nomadpy.server.endpoints.base import Services, evaluations_of, written
from nomadpy.server.endpoints.job_reads import truth
from nomadpy.server.endpoints.stubs import node_stub
from nomadpy.server.query import Found, check_uuid, check_uuid_prefix, page
from nomadpy.state.schema import RESTORED
from nomadpy.state.store import Snapshot
from nomadpy.state.watch import Key

AGENT_STATUSES = ("initializing", "ready", "down")


class NodeReads:
    """What anyone may read of nodes."""

    def __init__(self, services: Services) -> None:
        self._queries = services.queries
        register = services.router.register
        register("Node.List", self.list)
        register("Node.Get", self.get)
        register("Node.Allocations", self.allocations)

    async def list(self, _: CallContext, request: calls.Read) -> Answer:
        """Rows of nodes, by id."""
        options = request.options
        if options.prefix:
            check_uuid_prefix(options.prefix, "node")
        resources, os_name = truth(request.flags, "resources"), truth(request.flags, "os")

        def read(snapshot: Snapshot) -> Found:
            nodes = snapshot.nodes_by_prefix(options.prefix) if options.prefix else snapshot.nodes()
            found = page(nodes, options, token=lambda n: n.id)
            rows = [node_stub(n, resources=resources, os_name=os_name) for n in found.items]
            return Found(
                index=snapshot.table_index("nodes"), value=rows, next_token=found.next_token
            )

        return await self._queries.answer(options, [("table", "nodes")], read)

    async def get(self, _: CallContext, request: calls.Read) -> Answer:
        """One node, without its secret."""
        check_uuid(request.id, "node")

        def read(snapshot: Snapshot) -> Found:
            node = snapshot.node(request.id)
            if node is None:
                return Found(index=snapshot.table_index("nodes"), missing="node not found")
            shown = msgspec.structs.replace(
                node, secret_id="", drain=node.drain_strategy is not None
            )
            return Found(index=node.modify_index, value=shown)

        return await self._queries.answer(request.options, [("table", "nodes", request.id)], read)

    async def allocations(self, _: CallContext, request: calls.Read) -> Answer:
        """Whole allocations of a node."""
        check_uuid(request.id, "node")

        def read(snapshot: Snapshot) -> Found:
            return Found(
                index=max(snapshot.table_index("allocs"), 1),
                value=list(snapshot.allocs_by_node(request.id)),
            )

        return await self._queries.answer(request.options, [("table", "allocs")], read)


class NodeWrites:
    """What operators change of nodes; on the leader."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._members = services.members
        register = services.router.register
        register("Node.Drain", self.drain)
        register("Node.Eligibility", self.eligibility)
        register("Node.Evaluate", self.evaluate)
        register("Node.Purge", self.purge)

    async def drain(self, _: CallContext, request: calls.NodeDrainWrite) -> Answer:
        """Start a drain with its deadline, change it, or end it."""
        core = self._core
        node = self._node(request.node_id)
        now_ns = core.clock.now_ns()
        strategy: DrainStrategy | None = None
        evaluations: list[Evaluation] = []
        if request.spec is not None:
            deadline = request.spec.deadline
            strategy = DrainStrategy(
                deadline=deadline,
                ignore_system_jobs=request.spec.ignore_system_jobs,
                force_deadline=from_ns(now_ns + deadline if deadline > 0 else 0),
                started_at=from_ns(now_ns),
            )
            message = "Node drain strategy set"
        else:
            message = "Node drain strategy unset"
            if request.mark_eligible:
                evaluations = self._system_evaluations(node, now_ns)
        applied = await core.propose(
            commands.NodeDrain(
                node_id=node.id,
                drain=strategy,
                mark_eligible=request.mark_eligible,
                meta=request.meta,
                event=_event(message, "Drain", now_ns),
                evaluations=evaluations,
                last_drain_status="draining" if strategy is not None else "canceled",
            ),
            request_id=request.options.request_id,
        )
        return written(
            NodeDrainUpdateResponse(
                node_modify_index=applied.index,
                eval_ids=evaluations_of(core.snapshot(), evaluations, applied.index) or None,
                eval_create_index=applied.index if evaluations else 0,
                index=applied.index,
            ),
            applied.index,
        )

    async def eligibility(self, _: CallContext, request: calls.NodeEligibilityWrite) -> Answer:
        """Take a node out of scheduling, or back in."""
        core = self._core
        if request.eligibility not in ("eligible", "ineligible"):
            raise ValidationError(f'invalid scheduling eligibility "{request.eligibility}"')
        node = self._node(request.node_id)
        if node.drain_strategy is not None and request.eligibility == "eligible":
            raise ValidationError(
                "can not set node's scheduling eligibility to eligible while it is draining"
            )
        now_ns = core.clock.now_ns()
        evaluations: list[Evaluation] = []
        if request.eligibility == "eligible" and node.scheduling_eligibility != "eligible":
            evaluations = self._system_evaluations(node, now_ns)
        word = "eligible" if request.eligibility == "eligible" else "ineligible"
        applied = await core.propose(
            commands.NodeEligibility(
                node_id=node.id,
                eligibility=request.eligibility,
                event=_event(f"Node marked as {word} for scheduling", "Cluster", now_ns),
                evaluations=evaluations,
            ),
            request_id=request.options.request_id,
        )
        return written(
            NodeEligibilityUpdateResponse(
                eval_ids=evaluations_of(core.snapshot(), evaluations, applied.index) or None,
                eval_create_index=applied.index if evaluations else 0,
                index=applied.index,
            ),
            applied.index,
        )

    async def evaluate(self, _: CallContext, request: calls.Write) -> Answer:
        """Have every job that touches the node looked at."""
        core = self._core
        snapshot = core.snapshot()
        node = self._node(request.id)
        evaluations = new_evaluations.for_node(
            snapshot, node, entropy=core.entropy, now_ns=core.clock.now_ns()
        )
        index = 0
        if evaluations:
            applied = await core.propose(
                commands.EvalUpsert(evals=evaluations), request_id=request.options.request_id
            )
            index = applied.index
        leader = core.raft.leader
        body = {
            "HeartbeatTTL": 0,
            "EvalIDs": evaluations_of(core.snapshot(), evaluations, index) or None,
            "EvalCreateIndex": index,
            "NodeModifyIndex": 0,
            "LeaderRPCAddr": leader.address if leader is not None else "",
            "NumNodes": sum(1 for _node in snapshot.nodes()),
            "Servers": [
                {
                    "RPCAdvertiseAddr": m.hello.rpc,
                    "Datacenter": m.hello.datacenter,
                    "RPCMajorVersion": 0,
                    "RPCMinorVersion": 0,
                }
                for m in self._members.all()
            ],
            "Features": 0,
            "SchedulingEligibility": node.scheduling_eligibility,
            "SignedIdentity": None,
            "Index": index,
            "LastContact": 0,
            "KnownLeader": False,
            "NextToken": "",
        }
        return written(body, index)

    async def purge(self, _: CallContext, request: calls.Write) -> Answer:
        """Forget a node; its jobs are looked at."""
        core = self._core
        snapshot = core.snapshot()
        node = self._node(request.id)
        evaluations = new_evaluations.for_node(
            snapshot, node, entropy=core.entropy, now_ns=core.clock.now_ns()
        )
        applied = await core.propose(
            commands.NodeDeregister(node_ids=[node.id], evaluations=evaluations),
            request_id=request.options.request_id,
        )
        body = {
            "EvalIDs": evaluations_of(core.snapshot(), evaluations, applied.index) or None,
            "EvalCreateIndex": applied.index if evaluations else 0,
            "NodeModifyIndex": applied.index,
            "Index": applied.index,
        }
        return written(body, applied.index)

    def _node(self, node_id: str) -> Node:
        check_uuid(node_id, "node")
        node = self._core.snapshot().node(node_id)
        if node is None:
            raise NotFoundError("node not found")
        return node

    def _system_evaluations(self, node: Node, now_ns: int) -> list[Evaluation]:
        core = self._core
        made = new_evaluations.for_node(
            core.snapshot(), node, entropy=core.entropy, now_ns=now_ns, new_capacity=True
        )
        return [e for e in made if e.type in new_evaluations.SYSTEM_TYPES]


class NodeAgents:
    """What agents say. Every call but the first names the node's secret."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._duties = services.duties
        self._members = services.members
        self._queries = services.queries
        self._nodes = services.nodes
        register = services.router.register
        register("Node.Register", self.register)
        register("Node.Heartbeat", self.heartbeat)
        register("Node.ClientAllocs", self.client_allocs)
        register("Node.UpdateAllocs", self.update_allocs)
        register("Node.Attach", self.attach)
        register("Alloc.GetMany", self.get_many)

    async def register(self, _: CallContext, request: calls.NodeRegister) -> calls.NodeReply:
        """Take up a node, or what changed of it."""
        core = self._core
        node = request.node
        if not node.id or not node.secret_id or not node.name or not node.datacenter:
            raise InvalidRequestError("a node needs ID, SecretID, Name and Datacenter to register")
        if request.region and request.region != core.settings.region:
            raise InvalidRequestError(
                f'node is of region "{request.region}", these servers are of '
                f'"{core.settings.region}": give the agent servers of its own region'
            )
        snapshot = core.snapshot()
        known = snapshot.node(node.id)
        if known is not None and not hmac.compare_digest(known.secret_id, node.secret_id):
            raise PermissionDeniedError("node secret ID does not match")
        pool = node.node_pool or "default"
        if snapshot.node_pool(pool) is None:
            raise ConflictError(
                f'node pool "{pool}" does not exist: create it first, or start the agent in another',
                status=500,
            )
        node = msgspec.structs.replace(node, node_pool=pool, status=node.status or "initializing")
        applied = await core.propose(commands.NodeRegister(node=node))
        await core.raft.wait_applied(applied.index, timeout_s=5)
        evaluations: list[Evaluation] = []
        now = core.snapshot().node(node.id)
        became_ready = (
            now is not None
            and now.status == "ready"
            and (
                known is None
                or known.status != "ready"
                or known.computed_class != now.computed_class
                # Of no class, and what a system job may have waited for.
                or known.host_volumes != now.host_volumes
            )
        )
        if now is not None and became_ready:
            evaluations = new_evaluations.for_node(
                core.snapshot(),
                now,
                entropy=core.entropy,
                now_ns=core.clock.now_ns(),
                new_capacity=True,
            )
            if evaluations:
                await core.propose(commands.EvalUpsert(evals=evaluations))
        return self._reply(node.id, applied.index, evaluations)

    async def heartbeat(self, _: CallContext, request: calls.NodeHeartbeat) -> calls.NodeReply:
        """Renew the node's time to live; a changed status is written and acted on."""
        core = self._core
        node = known_node(core.snapshot(), request.node_id, request.secret_id)
        if request.status not in AGENT_STATUSES:
            raise InvalidRequestError(f'invalid node status "{request.status}"')
        if node.status == request.status:
            return self._reply(node.id, core.snapshot().index, [])
        now_ns = core.clock.now_ns()
        evaluations: list[Evaluation] = []
        if "down" in (request.status, node.status) or request.status == "ready":
            after = msgspec.structs.replace(node, status=request.status)
            evaluations = new_evaluations.for_node(
                core.snapshot(),
                after,
                entropy=core.entropy,
                now_ns=now_ns,
                new_capacity=request.status == "ready",
            )
        event = None
        if node.status in ("down", "disconnected"):
            event = _event("Node reregistered by heartbeat", "Cluster", now_ns)
        applied = await core.propose(
            commands.NodeStatus(
                node_id=node.id, status=request.status, event=event, evaluations=evaluations
            )
        )
        return self._reply(node.id, applied.index, evaluations, down=request.status == "down")

    def _reply(
        self, node_id: str, index: int, evaluations: list[Evaluation], *, down: bool = False
    ) -> calls.NodeReply:
        ttl_s = 0.0
        if down:
            self._duties.heartbeats.forget(node_id)
        else:
            ttl_s = self._duties.heartbeats.reset(node_id)
        return calls.NodeReply(
            index=index,
            ttl_ns=int(ttl_s * 1e9),
            servers=self._members.addresses(),
            eval_ids=[e.id for e in evaluations],
        )

    async def attach(self, context: CallContext, request: calls.NodeAttach) -> calls.IndexReply:
        """Bind the connection to the node, so that calls for it go over it."""
        known_node(self._core.snapshot(), request.node_id, request.secret_id)
        if context.connection is not None:
            self._nodes.attach(request.node_id, context.connection)
        return calls.IndexReply(index=self._core.raft.applied_index)

    async def client_allocs(
        self, _: CallContext, request: calls.ClientAllocsRequest
    ) -> calls.ClientAllocsReply:
        """Which allocations the node must have, and at which version; blocks until that changes."""

        def read(snapshot: Snapshot) -> Found:
            known_node(snapshot, request.node_id, request.secret_id)
            wanted: dict[str, int] = {}
            index = 0
            for alloc in snapshot.allocs_by_node(request.node_id):
                wanted[alloc.id] = alloc.alloc_modify_index
                index = max(index, alloc.alloc_modify_index)
            # Versions may have gone back by a restore; who waits for later ones must hear of it.
            restored = snapshot.table_index(RESTORED)
            index = max(index, restored)
            # Never 0: asking with index 0 does not block, and an agent of a new cluster would ask without end.
            return Found(
                index=index or snapshot.table_index("allocs") or 1, value=(wanted, restored)
            )

        known_node(self._core.snapshot(), request.node_id, request.secret_id)
        keys: list[Key] = [("by", "allocs", "node", request.node_id)]
        found = await self._queries.find(request.options, keys, read)
        wanted, restored = found.value
        return calls.ClientAllocsReply(index=found.index, allocs=wanted, restored=restored)

    async def get_many(
        self, _: CallContext, request: calls.AllocsGetRequest
    ) -> calls.AllocsGetReply:
        """The whole allocations that the node asks for, as far as they are its own."""
        core = self._core
        if request.min_index:
            await core.raft.wait_applied(request.min_index, timeout_s=5)
        snapshot = core.snapshot()
        known_node(snapshot, request.node_id, request.secret_id)
        found = (snapshot.alloc(identity) for identity in request.ids)
        return calls.AllocsGetReply(
            allocs=[a for a in found if a is not None and a.node_id == request.node_id]
        )

    async def update_allocs(
        self, _: CallContext, request: calls.UpdateAllocsRequest
    ) -> calls.IndexReply:
        """What became of the node's allocations. A failure that may be rescheduled has its job looked at."""
        core = self._core
        snapshot = core.snapshot()
        known_node(snapshot, request.node_id, request.secret_id)
        now_ns = core.clock.now_ns()
        mine = []
        evaluations: dict[tuple[str, str], Evaluation] = {}
        for update in request.allocs:
            alloc = snapshot.alloc(update.id)
            if alloc is None or alloc.node_id != request.node_id:
                continue
            mine.append(update)
            key = (alloc.namespace, alloc.job_id)
            job = snapshot.job(*key)
            if job is None or key in evaluations or alloc.client_status == update.client_status:
                continue
            failed = update.client_status == "failed" and alloc.desired_status == "run"
            returned = alloc.client_status == "unknown"
            if failed or returned:
                evaluations[key] = new_evaluations.for_job(
                    job,
                    "alloc-failure" if failed else "reconnect",
                    entropy=core.entropy,
                    now_ns=now_ns,
                )
        if not mine:
            return calls.IndexReply(index=snapshot.index)
        applied = await core.propose(
            commands.AllocClientUpdate(allocs=mine, evaluations=list(evaluations.values()))
        )
        return calls.IndexReply(index=applied.index)


def known_node(snapshot: Snapshot, node_id: str, secret_id: str) -> Node:
    """The node that proves itself by its secret. Raises NotFoundError or PermissionDeniedError."""
    node = snapshot.node(node_id)
    if node is None:
        raise NotFoundError("node not found")
    if not secret_id or not hmac.compare_digest(node.secret_id, secret_id):
        raise PermissionDeniedError("node secret ID does not match")
    return node


def _event(message: str, subsystem: str, now_ns: int) -> NodeEvent:
    return NodeEvent(
        message=message, subsystem=subsystem, timestamp=from_ns(now_ns - now_ns % 1_000_000_000)
    )
