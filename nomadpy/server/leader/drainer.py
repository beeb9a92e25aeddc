"""Empties draining nodes: so many allocations of a group at a time, all of them at the deadline, system jobs last.

`decide` is pure; the drainer runs it when allocations or nodes change and when a deadline passes.
Behaviour matched: Nomad's drainer (migrate.max_parallel per group, batch allocations stay until the deadline).
"""

from __future__ import annotations

import asyncio

import msgspec

from nomadpy import logs
from nomadpy.errors import NomadError
from nomadpy.fsm.commands import AllocTransition, NodeDrain
from nomadpy.models.allocation import Allocation, DesiredTransition
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.gotime import from_ns, to_ns
from nomadpy.models.job import Job
from nomadpy.models.node import Node, NodeEvent
from nomadpy.server import new_evaluations
from nomadpy.server.core import Core
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

GATHER_S = 0.25


class DrainStep(msgspec.Struct, frozen=True, kw_only=True):
    """What one node needs now. migrate: allocations to move. done: nothing is left. deadline_ns: 0 none."""

    migrate: list[Allocation] = []
    done: bool = False
    deadline_ns: int = 0


def decide(snapshot: Snapshot, node: Node, *, now_ns: int) -> DrainStep:
    """Return the next step for a node whose drain_strategy is set."""
    strategy = node.drain_strategy
    if strategy is None:
        return DrainStep()
    deadline_ns = to_ns(strategy.force_deadline)
    forced = strategy.deadline < 0 or (0 < deadline_ns <= now_ns)
    remaining: list[Allocation] = []
    system: list[Allocation] = []
    for alloc in snapshot.allocs_by_node(node.id):
        if alloc.client_status in ("complete", "failed", "lost") or alloc.job is None:
            continue
        (system if alloc.job.type in new_evaluations.SYSTEM_TYPES else remaining).append(alloc)
    if strategy.ignore_system_jobs:
        system = []
    if not remaining and not system:
        return DrainStep(done=True)
    waiting = [a for a in remaining if not _moving(a)]
    if forced:
        chosen = waiting + [a for a in system if not _moving(a)]
    elif not remaining:
        # System jobs serve the others, so they go when the others are gone.
        chosen = [a for a in system if not _moving(a)]
    else:
        chosen = _in_turn(snapshot, waiting)
    return DrainStep(migrate=chosen, deadline_ns=0 if forced else deadline_ns)


def _moving(alloc: Allocation) -> bool:
    transition = alloc.desired_transition
    return alloc.desired_status != "run" or (transition is not None and transition.migrate is True)


def _in_turn(snapshot: Snapshot, waiting: list[Allocation]) -> list[Allocation]:
    """Of each group as many as migrate.max_parallel leaves room for, counting the whole job's allocations."""
    chosen: list[Allocation] = []
    room: dict[tuple[str, str, str], int] = {}
    for alloc in waiting:
        job = alloc.job
        assert job is not None
        if job.type == "batch":
            continue
        key = (alloc.namespace, alloc.job_id, alloc.task_group)
        if key not in room:
            room[key] = _room(snapshot, snapshot.job(*key[:2]) or job, alloc.task_group)
        if room[key] > 0:
            room[key] -= 1
            chosen.append(alloc)
    return chosen


def _room(snapshot: Snapshot, job: Job, group_name: str) -> int:
    group = next((g for g in job.task_groups or [] if g.name == group_name), None)
    if group is None:
        return 1
    parallel = group.migrate.max_parallel if group.migrate is not None else 1
    healthy = 0
    for alloc in snapshot.allocs_by_job(job.namespace, job.id):
        if alloc.task_group != group_name or _moving(alloc) or alloc.client_status != "running":
            continue
        status = alloc.deployment_status
        if not alloc.deployment_id or (status is not None and status.healthy):
            healthy += 1
    # As many may be missing as max_parallel says; those in motion are missing already.
    return max(0, healthy - (group.count - max(1, parallel)))


class Drainer:
    """The leader's task that follows every draining node."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._draining: set[str] = set()
        self._wake = asyncio.Event()

    def restore(self, snapshot: Snapshot) -> None:
        """Take up every drain under way."""
        self._draining = {n.id for n in snapshot.nodes() if n.drain_strategy is not None}
        self._wake.set()

    def node_changed(self, node: Node | None, node_id: str) -> None:
        """The change feed saw this node; None when it was deleted."""
        if node is not None and node.drain_strategy is not None:
            self._draining.add(node_id)
            self._wake.set()
        else:
            self._draining.discard(node_id)

    def allocs_changed(self) -> None:
        """Allocations changed; their health may give room to the next."""
        if self._draining:
            self._wake.set()

    async def run(self) -> None:
        """Step every draining node when something changed or a deadline passed, until cancelled."""
        wait_s: float | None = None
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
                await asyncio.sleep(GATHER_S)
            except TimeoutError:
                log.debug("drain deadline reached")
            # Not before: what was set since the last look is what there is to look at.
            self._wake.clear()
            deadlines: list[int] = []
            for node_id in sorted(self._draining):
                try:
                    deadline = await self._step(node_id)
                except NomadError as error:
                    log.warning("drain step failed", node_id=node_id, error=error.message)
                    deadline = self._core.clock.now_ns() + 1_000_000_000
                if deadline:
                    deadlines.append(deadline)
            wait_s = None
            if deadlines:
                wait_s = max(0.05, (min(deadlines) - self._core.clock.now_ns()) / 1e9)

    async def _step(self, node_id: str) -> int:
        core = self._core
        snapshot = core.snapshot()
        node = snapshot.node(node_id)
        if node is None or node.drain_strategy is None:
            self._draining.discard(node_id)
            return 0
        now_ns = core.clock.now_ns()
        step = decide(snapshot, node, now_ns=now_ns)
        if step.done:
            await core.propose(
                NodeDrain(
                    node_id=node_id,
                    drain=None,
                    mark_eligible=False,
                    meta=None,
                    event=NodeEvent(
                        message="Node drain complete",
                        subsystem="Drain",
                        timestamp=from_ns(now_ns),
                    ),
                    evaluations=[],
                    last_drain_status="complete",
                )
            )
            log.info("node drained", node_id=node_id)
            return 0
        if step.migrate:
            evaluations: dict[tuple[str, str], Evaluation] = {}
            for alloc in step.migrate:
                key = (alloc.namespace, alloc.job_id)
                job = snapshot.job(*key) or alloc.job
                if key not in evaluations and job is not None:
                    evaluations[key] = new_evaluations.for_job(
                        job, "node-drain", entropy=core.entropy, now_ns=now_ns, node_id=node_id
                    )
            await core.propose(
                AllocTransition(
                    transitions={a.id: DesiredTransition(migrate=True) for a in step.migrate},
                    evaluations=list(evaluations.values()),
                )
            )
            log.info("migrating off a draining node", node_id=node_id, count=len(step.migrate))
        return step.deadline_ns
