"""What would move if nodes went or came and jobs changed: the real scheduler on a copy of the state.

Everything that is placed is taken to become healthy at once, so that rolling updates and drains go on to their end; canaries
stay canaries. The state itself stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nomadpy.entropy import Entropy
from nomadpy.errors import InvalidRequestError, NotFoundError
from nomadpy.models import gotime
from nomadpy.models.allocation import Allocation, AllocDeploymentStatus, DesiredTransition
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.job import Job
from nomadpy.models.node import Node
from nomadpy.models.what_if import (
    AddedNodes,
    Move,
    NodeLoad,
    Unplaced,
    WhatIfRequest,
    WhatIfResponse,
)
from nomadpy.scheduler.decision import Decision
from nomadpy.scheduler.fit import client_terminal, ready_for_placements, terminal
from nomadpy.scheduler.node_table import NodeRow, NodeTable
from nomadpy.scheduler.schedule import schedule
from nomadpy.state import allocs as alloc_writes
from nomadpy.state import evals, jobs, nodes, plan_results
from nomadpy.state.store import Snapshot, StateStore, Transaction

_ROUNDS = 200
"""How often one job is looked at before it is said not to come to rest."""
MOST_NODES = 10_000

_Key = tuple[str, str]


def what_if(
    snapshot: Snapshot,
    request: WhatIfRequest,
    changed: Iterable[Job],
    *,
    now_ns: int,
    entropy: Entropy,
) -> WhatIfResponse:
    """Return what would come of the changes. changed: the request's jobs, complete and valid.

    Raises NotFoundError for a node or job that there is not, InvalidRequestError for sizes without sense.
    """
    world = _World(snapshot, now_ns, entropy)
    world.change(request, list(changed))
    settled = world.settle()
    return world.outcome(settled=settled)


class _World:
    """A copy of the state, and the jobs that have to be looked at in it."""

    def __init__(self, snapshot: Snapshot, now_ns: int, entropy: Entropy) -> None:
        self._before = snapshot
        self._now_ns = now_ns
        self._entropy = entropy
        self._store = StateStore()
        self._store.replace(snapshot)
        self._table = NodeTable()
        self._store.subscribe(self._table.note)
        self._due: dict[_Key, None] = {}
        self._failed: dict[_Key, Decision] = {}
        self._waiting: set[_Key] = {
            (e.namespace, e.job_id) for e in snapshot.evals() if e.status == "blocked"
        }

    def change(self, request: WhatIfRequest, changed: list[Job]) -> None:
        """Make the changes, and note who is affected."""
        with self._entry() as tx:
            for name in request.nodes_down or ():
                node = self._node(name)
                nodes.set_status(tx, node.id, "down", None)
                self._touch(node)
            for name in request.nodes_drained or ():
                node = self._node(name)
                nodes.set_eligibility(tx, node.id, "ineligible", None)
                live = [a for a in self._before.allocs_by_node(node.id) if not terminal(a)]
                alloc_writes.transition(tx, {a.id: DesiredTransition(migrate=True) for a in live})
                self._touch(node)
            for added in request.nodes_added or ():
                self._add(tx, added)
            for job in changed:
                jobs.register(tx, job)
                self._due[(job.namespace, job.id)] = None
            for name in request.jobs_stopped or ():
                found = [job for job in self._before.jobs(None) if job.id == name]
                if not found:
                    raise NotFoundError(f'no job "{name}"')
                for job in found:
                    jobs.deregister(tx, job.namespace, job.id, purge=False)
                    self._due[(job.namespace, job.id)] = None
        if request.nodes_added:
            self._due.update(dict.fromkeys(sorted(self._waiting)))
        for job in self._before.jobs(None):
            if job.type in ("system", "sysbatch") and (request.nodes_added or request.nodes_down):
                self._due[(job.namespace, job.id)] = None

    def settle(self) -> bool:
        """Look at every job until nothing changes; False when one did not come to rest."""
        rounds: dict[_Key, int] = {}
        calm = True
        while self._due:
            key = min(self._due, key=self._rank)
            del self._due[key]
            rounds[key] = rounds.get(key, 0) + 1
            if rounds[key] > _ROUNDS:
                calm = False
                continue
            decision = self._look(key)
            if decision is None:
                continue
            if decision.failed_tg_allocs:
                self._failed[key] = decision
            else:
                self._failed.pop(key, None)
            plan = decision.plan
            if plan is None:
                continue
            for stop in plan.stops:
                alloc = self._before.alloc(stop.alloc_id)
                if stop.desired_status == "evict" and alloc is not None:
                    self._due[(alloc.namespace, alloc.job_id)] = None
            self._all_healthy(key)
            # What it gave back may do for who waits; and it may have more to do itself.
            if plan.stops:
                self._due.update(dict.fromkeys(sorted({*self._failed, *self._waiting})))
            self._due[key] = None
        return calm

    def outcome(self, *, settled: bool) -> WhatIfResponse:
        """Compare what there is with what there was."""
        after = self._store.snapshot()
        was = {a.id: a for a in self._before.allocs() if _counts(a)}
        now = {a.id: a for a in after.allocs() if _counts(a)}
        new = {k: a for k, a in now.items() if k not in was}
        successor: dict[tuple[str, str, str], list[Allocation]] = {}
        for alloc in new.values():
            successor.setdefault((alloc.namespace, alloc.job_id, alloc.name), []).append(alloc)
        moved: list[Move] = []
        stopped: list[Move] = []
        evicted: list[Move] = []
        for alloc in sorted(was.values(), key=_by_name):
            if alloc.id in now:
                continue
            ended = after.alloc(alloc.id)
            if ended is not None and ended.desired_status == "evict":
                evicted.append(_move(alloc, self._name(alloc), ""))
            following = successor.get((alloc.namespace, alloc.job_id, alloc.name))
            if following:
                to = following.pop(0)
                del new[to.id]
                moved.append(_move(alloc, self._name(alloc), self._name(to)))
            elif ended is None or ended.desired_status != "evict":
                stopped.append(_move(alloc, self._name(alloc), ""))
        return WhatIfResponse(
            moved=moved,
            placed=[_move(a, "", self._name(a)) for a in sorted(new.values(), key=_by_name)],
            stopped=stopped,
            evicted=evicted,
            unplaced=[
                Unplaced(
                    namespace=key[0],
                    job_id=key[1],
                    task_group=group,
                    count=decision.queued.get(group, 1),
                    metrics=metrics,
                )
                for key, decision in sorted(self._failed.items())
                for group, metrics in sorted(decision.failed_tg_allocs.items())
            ],
            nodes=self._loads(after),
            settled=settled,
            index=self._before.index,
        )

    def _entry(self) -> Transaction:
        return self._store.transaction(self._store.index + 1, self._now_ns)

    def _node(self, name: str) -> Node:
        exact = self._before.node(name)
        found = (
            [exact]
            if exact is not None
            else [n for n in self._before.nodes() if n.name == name or n.id.startswith(name)]
        )
        if len(found) != 1:
            many = f"{len(found)} nodes are" if found else "no node is"
            raise NotFoundError(f'{many} called "{name}"')
        return found[0]

    def _touch(self, node: Node) -> None:
        for alloc in self._before.allocs_by_node(node.id):
            if not terminal(alloc):
                self._due[(alloc.namespace, alloc.job_id)] = None

    def _add(self, tx: Transaction, added: AddedNodes) -> None:
        if not 0 < added.count <= MOST_NODES:
            raise InvalidRequestError(f"nodes to add must be 1 to {MOST_NODES}")
        if added.like:
            model = self._node(added.like)
        else:
            ready = [n for n in self._before.nodes() if ready_for_placements(n)]
            if not ready:
                raise InvalidRequestError("say which node the added ones are like")
            model = min(ready, key=lambda node: node.id)
        have = model.node_resources
        assert have is not None, "a registered node says what it has"
        replace = msgspec.structs.replace
        have = replace(
            have,
            cpu=replace(have.cpu, cpu_shares=added.cpu or have.cpu.cpu_shares),
            memory=replace(have.memory, memory_mb=added.memory_mb or have.memory.memory_mb),
            disk=replace(have.disk, disk_mb=added.disk_mb or have.disk.disk_mb),
        )
        for number in range(1, added.count + 1):
            nodes.register(
                tx,
                replace(
                    model,
                    id=self._entropy.uuid(),
                    secret_id=self._entropy.uuid(),
                    name=f"{model.name}-added-{number}",
                    datacenter=added.datacenter or model.datacenter,
                    node_pool=added.node_pool or model.node_pool,
                    node_resources=have,
                    status="ready",
                    scheduling_eligibility="eligible",
                    drain_strategy=None,
                ),
            )

    def _rank(self, key: _Key) -> tuple[int, _Key]:
        job = self._store.snapshot().job(*key)
        return (-job.priority if job else 0, key)

    def _look(self, key: _Key) -> Decision | None:
        snapshot = self._store.snapshot()
        job = snapshot.job(*key)
        if job is None:
            return None
        evaluation = Evaluation(
            id=self._entropy.uuid(),
            namespace=key[0],
            job_id=key[1],
            type=job.type,
            priority=job.priority,
            triggered_by="node-update",
            status="pending",
        )
        decision = schedule(
            evaluation,
            snapshot,
            now_ns=self._now_ns,
            entropy=self._entropy,
            table=self._table,
        )
        with self._entry() as tx:
            if decision.plan is not None:
                plan_results.upsert(tx, [decision.plan])
            else:
                evals.upsert(tx, decision.evaluations)
        return decision

    def _all_healthy(self, key: _Key) -> None:
        health = AllocDeploymentStatus(healthy=True, timestamp=gotime.from_ns(self._now_ns))
        with self._entry() as tx:
            reports = [
                msgspec.structs.replace(
                    alloc,
                    client_status="complete" if alloc.desired_status != "run" else "running",
                    deployment_status=health if alloc.deployment_id else None,
                )
                for alloc in tx.allocs_by_job(*key)
                if not client_terminal(alloc) and alloc.client_status != "unknown"
            ]
            alloc_writes.update_from_clients(tx, reports)

    def _name(self, alloc: Allocation) -> str:
        node = self._store.snapshot().node(alloc.node_id)
        return node.name if node is not None else alloc.node_name

    def _loads(self, after: Snapshot) -> list[NodeLoad]:
        found: list[NodeLoad] = []
        for node in sorted(after.nodes(), key=lambda one: (one.name, one.id)):
            was = NodeRow(node, self._before.allocs_by_node(node.id))
            now = NodeRow(node, after.allocs_by_node(node.id))
            if (was.cpu, was.memory_mb, was.count) == (now.cpu, now.memory_mb, now.count):
                continue
            found.append(
                NodeLoad(
                    node=node.name,
                    cpu_total=now.have.cpu,
                    memory_total_mb=now.have.memory_mb,
                    cpu_before=was.cpu,
                    cpu_after=now.cpu,
                    memory_before_mb=was.memory_mb,
                    memory_after_mb=now.memory_mb,
                    allocs_before=was.count,
                    allocs_after=now.count,
                )
            )
        return found


def _counts(alloc: Allocation) -> bool:
    return not terminal(alloc) and alloc.client_status != "unknown"


def _by_name(alloc: Allocation) -> tuple[str, str, str, str]:
    return (alloc.namespace, alloc.job_id, alloc.name, alloc.id)


def _move(alloc: Allocation, from_node: str, to_node: str) -> Move:
    return Move(
        alloc_id=alloc.id,
        namespace=alloc.namespace,
        job_id=alloc.job_id,
        task_group=alloc.task_group,
        name=alloc.name,
        from_node=from_node,
        to_node=to_node,
    )
