"""What must hold at every step, and what must come true once the world is healed.

`Watch` looks at each entry that any server applies; `settled` and the checks after it look at the healed cluster.
A violation is an exception that says what, where and by how much.
"""

from __future__ import annotations

from nomadpy.models.allocation import Allocation
from nomadpy.models.host_volume import (
    SINGLE_WRITER,
    access_of,
    group_of,
    host_requests,
    index_of,
    source_of,
)
from nomadpy.models.job import Job
from nomadpy.scheduler.fit import allocs_fit
from nomadpy.server.state_check import Verdict
from nomadpy.simulator.cluster import SimCluster, SimServer
from nomadpy.simulator.workload import NOWHERE, At, Promise
from nomadpy.state.changes import ChangeSet
from nomadpy.state.schema import RESTORED
from nomadpy.state.store import Snapshot

OVER = ("complete", "failed", "lost")


class ViolationError(AssertionError):
    """An invariant is broken."""


Restores = dict[int, dict[str, At]]
"""For each index at which an operator's snapshot was put in place: where the jobs were in it."""


class Watch:
    """Checks every applied entry on every server."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._digests: dict[int, tuple[str, str]] = {}
        self._leaders: dict[int, str] = {}
        self._restored: dict[int, str] = {}
        self.restores: Restores = {}
        self.entries = 0
        self.violations: list[str] = []

    def attach(self, server: SimServer) -> None:
        """Watch a server's present life."""
        process = server.process
        assert process is not None
        process.store.subscribe(lambda changes: self._applied(server, changes))
        process.raft.on_leadership(lambda leads, term: self._elected(server, leads, term))
        process.server.state_check.on_difference = lambda verdict: self._differs(server, verdict)

    def raise_any(self) -> None:
        """Raise the first violation seen. Listeners cannot: raft would take it for its own failure."""
        if self.violations:
            raise ViolationError(self.violations[0])

    def _applied(self, server: SimServer, changes: ChangeSet) -> None:
        self.entries += 1
        assert server.process is not None
        snapshot = server.process.store.snapshot()
        if changes.restored:
            if snapshot.table_index(RESTORED) == changes.index:
                self._was_restored(server, snapshot)
            return
        digest = str([(c.table, str(c.key), _mark(c.after)) for c in changes.changes])
        first = self._digests.setdefault(changes.index, (server.name, digest))
        if first[1] != digest:
            self.violations.append(
                f"entry {changes.index} changed other things on {server.name} than on {first[0]}"
            )
        for node_id in {
            c.after.node_id: None for c in changes.changes if c.table == "allocs" and c.after
        }:
            self._capacity(snapshot, node_id, changes.index)

    def _differs(self, server: SimServer, verdict: Verdict) -> None:
        self.violations.append(f"{server.name} finds that states differ: {verdict}")

    def _was_restored(self, server: SimServer, snapshot: Snapshot) -> None:
        """An operator's snapshot is the state now, or a raft snapshot of that very moment."""
        store = server.process.store if server.process is not None else None
        found = store.checksum() if store is not None else ""
        if self._restored.setdefault(snapshot.index, found) != found:
            self.violations.append(
                f"{server.name} was restored to another state at {snapshot.index} than others"
            )
        self.restores[snapshot.index] = {job.id: _at(job) for job in snapshot.jobs("default")}

    def _capacity(self, snapshot: Snapshot, node_id: str, index: int) -> None:
        node = snapshot.node(node_id)
        if node is None:
            return
        live = [a for a in snapshot.allocs_by_node(node_id) if is_live(a)]
        fit = allocs_fit(node, live)
        if not fit.ok:
            self.violations.append(
                f"node {node.name} is over its capacity at entry {index}: {fit.dimension}"
            )
        twice = written_twice(snapshot, node_id)
        if twice:
            self.violations.append(f"at entry {index} {twice}")

    def _elected(self, server: SimServer, leads: bool, term: int) -> None:
        if leads and self._leaders.setdefault(term, server.name) != server.name:
            self.violations.append(
                f"term {term} has two leaders: {self._leaders[term]} and {server.name}"
            )


def is_live(alloc: Allocation) -> bool:
    """Wanted, and not over."""
    return alloc.desired_status == "run" and alloc.client_status not in OVER


def written_twice(snapshot: Snapshot, node_id: str) -> str:
    """Which volume of a node has two live writers though each asked to be the only one; "" when none."""
    writers: dict[str, str] = {}
    for alloc in snapshot.allocs_by_node(node_id):
        if not is_live(alloc):
            continue
        for request in host_requests(group_of(alloc.job, alloc.task_group)):
            if request.read_only or access_of(request) != SINGLE_WRITER:
                continue
            source = source_of(request, index_of(alloc.name))
            other = writers.setdefault(source, alloc.id)
            if other != alloc.id:
                return f"volume {source} of node {node_id} is written by {other} and {alloc.id}"
    return ""


def unsettled(cluster: SimCluster, promises: list[Promise]) -> str:
    """Why the cluster has not settled yet; "" when it has."""
    leader = cluster.leader()
    if leader is None or leader.process is None:
        return "no leader"
    snapshot = leader.process.store.snapshot()
    for server in cluster.live():
        if server.process is not None and server.process.store.index != snapshot.index:
            return (
                f"{server.name} is at {server.process.store.index}, the leader at {snapshot.index}"
            )
    down = [n.name for n in snapshot.nodes() if n.status != "ready"]
    if down:
        return f"nodes not ready: {down}"
    running = {alloc_id for client in cluster.clients for alloc_id in client.running}
    for promise in promises:
        reason = _job_unsettled(snapshot, promise, running)
        if reason:
            return reason
    wanted = {a.id for a in snapshot.allocs() if is_live(a)}
    stray = running - wanted
    if stray:
        return f"{len(stray)} allocations run that nobody wants: {sorted(stray)[:3]}"
    return ""


def _job_unsettled(snapshot: Snapshot, promise: Promise, running: set[str]) -> str:
    job = snapshot.job("default", promise.job_id)
    if job is None:
        return f"{promise.job_id} is not there"
    wanted = 0 if job.stop else sum(g.count for g in job.task_groups or [])
    allocs = snapshot.allocs_by_job("default", promise.job_id)
    evaluations = snapshot.evals_by_job("default", promise.job_id)
    if promise.may_wait and any(e.status == "pending" for e in evaluations):
        return f"{promise.job_id} has an evaluation to come"
    waits = promise.may_wait and any(e.status == "blocked" for e in evaluations)
    if promise.kind in ("system", "sysbatch") and not job.stop:
        return _nodes_unsettled(snapshot, promise, allocs, running, waits=waits)
    if promise.kind == "batch" and not job.stop:
        done = {
            a.name
            for a in allocs
            if a.client_status == "complete" and a.job and a.job.version == job.version
        }
        live = {a.name for a in allocs if is_live(a)}
        if live:
            return f"{promise.job_id}: {len(live)} batch allocations still run"
        # A batch job is done when each of its names has completed, in this version or, unchanged, an earlier one.
        ever = {a.name for a in allocs if a.client_status == "complete"}
        return (
            ""
            if len(ever | done) >= wanted or waits
            else f"{promise.job_id}: {len(ever)} of {wanted} done"
        )
    live_allocs = [a for a in allocs if is_live(a)]
    unknown = [a.id for a in live_allocs if a.client_status == "unknown"]
    if unknown:
        # Its replacement has its name, until its node says what became of it.
        return f"{promise.job_id}: nobody knows of {unknown}"
    if len(live_allocs) > wanted or (len(live_allocs) < wanted and not waits):
        return f"{promise.job_id} has {len(live_allocs)} live allocations, wants {wanted}"
    idle = [a.id for a in live_allocs if a.id not in running]
    if idle:
        return f"{promise.job_id}: {len(idle)} allocations do not run on their node"
    names = {a.name for a in live_allocs}
    if len(names) != len(live_allocs):
        raise ViolationError(f"{promise.job_id}: an allocation name is live twice: {sorted(names)}")
    return ""


def _nodes_unsettled(
    snapshot: Snapshot,
    promise: Promise,
    allocs: list[Allocation],
    running: set[str],
    *,
    waits: bool,
) -> str:
    """The same for a job that wants to be on every node, or to have been."""
    there: dict[str, int] = {}
    for alloc in allocs:
        if is_live(alloc):
            if alloc.id not in running:
                return f"{promise.job_id}: {alloc.id} does not run on its node"
            if promise.kind == "sysbatch":
                return f"{promise.job_id} still runs"
            there[alloc.node_id] = there.get(alloc.node_id, 0) + 1
        elif promise.kind == "sysbatch" and alloc.client_status == "complete":
            there.setdefault(alloc.node_id, 1)
    twice = [node_id for node_id, count in there.items() if count > 1]
    if twice:
        return f"{promise.job_id} is more than once on {twice}"
    missing = [node.name for node in snapshot.nodes() if node.id not in there]
    return f"{promise.job_id} is not on {missing}" if missing and not waits else ""


def check_final(cluster: SimCluster, promises: list[Promise], restores: Restores) -> None:
    """With the cluster settled: every acknowledged write is there, and all servers are equal."""
    servers = cluster.live()
    sums = {s.name: s.process.store.checksum() for s in servers if s.process is not None}
    if len(set(sums.values())) != 1:
        raise ViolationError(f"the servers' states differ at one index: {sums}")
    process = servers[0].process
    assert process is not None
    snapshot = process.store.snapshot()
    for promise in promises:
        if snapshot.job("default", promise.job_id) is None:
            raise ViolationError(f"{promise.job_id} was acknowledged and is gone")
    check_promises(snapshot, promises, restores)
    behind = [s.name for s in servers if s.process and s.process.store.snapshot().log_format() < 2]
    if behind:
        raise ViolationError(f"all software is new, and the log's format was not raised: {behind}")


def check_promises(snapshot: Snapshot, promises: list[Promise], restores: Restores) -> None:
    """Every job is where its owner knows it to be, or where a restore has put it since.

    A restore takes back what was acknowledged below its index, by design, and nothing that was acknowledged above.
    """
    last = max(restores, default=0)
    for promise in promises:
        possible = promise.possible
        if promise.acknowledged_at < last:
            possible = [restores[last].get(promise.job_id, NOWHERE), *promise.doubts]
        # Who stops a job does not say at which generation: after a restore it may be an earlier one.
        earlier = {jobs[promise.job_id][0] for jobs in restores.values() if promise.job_id in jobs}
        if any(stopped for _, stopped in possible):
            possible += [(generation, True) for generation in sorted(earlier)]
        job = snapshot.job("default", promise.job_id)
        at = NOWHERE if job is None else _at(job)
        if at not in possible:
            raise ViolationError(
                f"{promise.job_id} is at {at}; its owner knows that it is one of {possible}"
            )


def _at(job: Job) -> At:
    return int((job.meta or {}).get("generation", "0")), job.stop


def _mark(row: object) -> tuple[object, ...]:
    return (
        getattr(row, "modify_index", None),
        getattr(row, "status", None),
        getattr(row, "client_status", None),
        getattr(row, "desired_status", None),
    )
