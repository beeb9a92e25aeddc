"""Become leader: start all that only a leader does. Lose it: stop it all.

The duties listen to the ordered change feed of the state; nothing calls them from inside the log.
"""

from __future__ import annotations

import asyncio

import msgspec

from nomadpy import logs
from nomadpy.errors import NomadError
from nomadpy.fsm.commands import (
    AutopilotConfigSet,
    ClusterMetadataSet,
    EvalUpsert,
    NodeStatus,
    RootKeyUpsert,
    SchedulerConfigSet,
)
from nomadpy.models.allocation import Allocation
from nomadpy.models.evaluation import Evaluation
from nomadpy.models.gotime import from_ns
from nomadpy.models.host_volume import READY
from nomadpy.models.node import Node, NodeEvent
from nomadpy.models.operator import (
    AutopilotConfiguration,
    SchedulerConfiguration,
)
from nomadpy.pki.keyring import Keyring
from nomadpy.scheduler.alloc_sets import disconnect_rules
from nomadpy.scheduler.decision import failed
from nomadpy.scheduler.node_table import NodeTable
from nomadpy.server import new_evaluations
from nomadpy.server.core import Core
from nomadpy.server.leader.blocked_evals import BlockedEvals
from nomadpy.server.leader.deployment_watcher import DeploymentWatcher
from nomadpy.server.leader.drainer import Drainer
from nomadpy.server.leader.eval_broker import DELIVERY_LIMIT, EvalBroker
from nomadpy.server.leader.fair_queue import Cost, weighted
from nomadpy.server.leader.garbage import Garbage
from nomadpy.server.leader.heartbeats import Heartbeats
from nomadpy.server.leader.key_rotation import KeyRotation, MakeKey
from nomadpy.server.leader.plan_applier import PlanApplier
from nomadpy.server.leader.shares import Shares
from nomadpy.server.leader.variable_locks import VariableLocks
from nomadpy.server.settings import ServerSettings
from nomadpy.server.worker import RunBlocking, Worker
from nomadpy.state.changes import ChangeSet
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

TERMINAL = ("complete", "failed", "lost")
SILENT = ("down", "disconnected")
RETRY_BLOCKED_S = 60.0


class LeaderDuties:
    """Everything of the leader. `run` lasts as long as one leadership."""

    def __init__(
        self,
        core: Core,
        *,
        run_blocking: RunBlocking,
        make_root_key: MakeKey,
        keyring: Keyring,
    ) -> None:
        self._core = core
        self._run_blocking = run_blocking
        self.shares = Shares()
        self.broker = EvalBroker(cost=_cost(core.settings, self.shares))
        self.blocked = BlockedEvals()
        self.applier = PlanApplier(core)
        self.heartbeats = Heartbeats(
            core.settings, self._nodes_expired, clock=core.clock, entropy=core.entropy
        )
        self.deployments = DeploymentWatcher(core)
        self.drainer = Drainer(core)
        self.garbage = Garbage(core)
        self.keys = KeyRotation(core, keyring, make_root_key)
        self.locks = VariableLocks(core)
        self._workers: list[Worker] = []
        self._ready = asyncio.Condition()
        self._broker_changed = asyncio.Event()
        self.active = False
        core.store.subscribe(self._on_change)

    async def run(self) -> None:
        """Refill every queue from state, then serve until cancelled."""
        core = self._core
        snapshot = core.snapshot()
        # Made anew, with their tables: nobody noted what changed while another server led.
        self.applier.table = NodeTable()
        self._workers = [
            Worker(
                core,
                self.broker,
                self.applier,
                self._ready,
                run_blocking=self._run_blocking,
                changed=self._broker_changed.set,
            )
            for _ in range(core.settings.schedulers)
        ]
        self.active = True
        self.broker.set_enabled(True)
        self.blocked.set_enabled(True)
        try:
            self.shares.restore(snapshot)
            for evaluation in sorted(snapshot.evals(), key=lambda e: e.create_index):
                self._take_evaluation(evaluation)
            self.heartbeats.restore([n.id for n in snapshot.nodes() if n.status not in SILENT])
            self.deployments.restore(snapshot)
            self.drainer.restore(snapshot)
            self.garbage.restore(snapshot)
            self.locks.restore(snapshot)
            async with asyncio.TaskGroup() as duties:
                duties.create_task(self._establish(), name="establish-leadership")
                duties.create_task(self.applier.run(), name="plan-applier")
                duties.create_task(self.heartbeats.run(), name="heartbeats")
                duties.create_task(self.deployments.run(), name="deployment-watcher")
                duties.create_task(self.drainer.run(), name="drainer")
                duties.create_task(self.garbage.run(), name="garbage")
                duties.create_task(self.keys.run(), name="key-rotation")
                duties.create_task(self.locks.run(), name="variable-locks")
                duties.create_task(self._tick_broker(), name="eval-broker")
                duties.create_task(self._retry_blocked(), name="blocked-evals")
                for number, worker in enumerate(self._workers):
                    duties.create_task(worker.run(), name=f"worker-{number}")
        finally:
            self.active = False
            self.broker.set_enabled(False)
            self.blocked.set_enabled(False)
            self.locks.stop()

    # -- the feed -----------------------------------------------------------------------------------

    def _on_change(self, changes: ChangeSet) -> None:
        if not self.active:
            return
        self.applier.note(changes)
        if self._core.settings.fair_share == "dominant":
            self.shares.note(changes)
        for worker in self._workers:
            worker.note(changes)
        allocs_changed = False
        for change in changes.changes:
            before, after = change.before, change.after
            if change.table == "evals":
                if isinstance(after, Evaluation):
                    self._take_evaluation(after)
                else:
                    self.broker.forget(change.key)
            elif change.table == "allocs":
                allocs_changed = True
                self._alloc_changed(before, after, changes.index)
            elif change.table == "nodes":
                self._node_changed(before, after, changes.index)
            elif change.table == "scheduler_config":
                # The broker may have been let go on, and what was refused may be allowed now.
                self._broker_changed.set()
                for evaluation in self.blocked.unblock_all(changes.index):
                    self._enqueue(evaluation)
            elif change.table == "deployments" and after is not None:
                self.deployments.changed(after.id)
            elif change.table == "variables":
                self.locks.changed(before, after)
            elif (
                change.table == "host_volumes" and after is not None and after.state == READY
            ) or (change.table == "task_group_host_volume_claims" and after is None):
                # What waited for a volume, or for the only one that it might go to.
                for evaluation in self.blocked.unblock_all(changes.index):
                    self._enqueue(evaluation)
            elif change.table == "root_keys":
                self.keys.keys_changed()
            elif change.table == "jobs" and (after is None or after.stop):
                gone = after or before
                self.blocked.untrack(gone.namespace, gone.id)
                if after is None:
                    self.garbage.purged(gone.namespace, gone.id)
        if allocs_changed:
            self.drainer.allocs_changed()

    def _take_evaluation(self, evaluation: Evaluation) -> None:
        if evaluation.status == "pending":
            self._enqueue(evaluation)
        elif evaluation.status == "blocked":
            missed = self.blocked.block(evaluation)
            if missed is not None:
                self._enqueue(missed)
        else:
            self.blocked.ended(evaluation)

    def _enqueue(self, evaluation: Evaluation) -> None:
        clock = self._core.clock
        self.broker.enqueue(evaluation, now=clock.monotonic(), now_ns=clock.now_ns())
        self._broker_changed.set()

    def _alloc_changed(
        self, before: Allocation | None, after: Allocation | None, index: int
    ) -> None:
        freed = before is not None and (
            after is None
            or (after.client_status in TERMINAL and before.client_status not in TERMINAL)
        )
        if freed and before is not None:
            node = self._core.snapshot().node(before.node_id)
            if node is not None and node.status == "ready":
                self._room(node, index)
        if after is not None and after.deployment_id and after != before:
            self.deployments.changed(after.deployment_id)

    def _node_changed(self, before: Node | None, after: Node | None, index: int) -> None:
        identity = (after or before).id  # type: ignore[union-attr]
        self.drainer.node_changed(after, identity)
        if after is None:
            self.heartbeats.forget(identity)
            return
        usable = _usable(after)
        was = (
            before is not None
            and _usable(before)
            and before.computed_class == after.computed_class
            and _offer(before) == _offer(after)
        )
        if usable and not was:
            known = _healthy_devices(before) if before is not None and _usable(before) else set()
            if _healthy_devices(after) - known:
                # Of devices a class tells the kinds, not how many there are and how many of them are healthy.
                for evaluation in self.blocked.unblock_all(index):
                    self._enqueue(evaluation)
            else:
                self._room(after, index)

    def _room(self, node: Node, index: int) -> None:
        for evaluation in self.blocked.unblock(node.computed_class, index):
            self._enqueue(evaluation)

    # -- tasks --------------------------------------------------------------------------------------

    async def _tick_broker(self) -> None:
        """Drive the broker's clock and wake the workers."""
        core = self._core
        while True:
            self._broker_changed.clear()
            self.broker.tick(now=core.clock.monotonic())
            for evaluation in self.broker.take_failed():
                await self._give_up(evaluation)
            if self.broker.has_ready(list(core.settings.scheduler_types)):
                async with self._ready:
                    self._ready.notify_all()
            deadline = self.broker.next_deadline()
            wait = None if deadline is None else max(0.01, deadline - core.clock.monotonic())
            try:
                async with asyncio.timeout(wait):
                    await self._broker_changed.wait()
            except TimeoutError:
                continue

    async def _give_up(self, evaluation: Evaluation) -> None:
        """Mark an evaluation failed after too many deliveries, and try the job again in one to six minutes."""
        core = self._core
        now_ns = core.clock.now_ns()
        wait_ns = int(core.entropy.uniform(60.0, 360.0) * 1e9)
        evaluations = failed(
            evaluation,
            f"evaluation reached delivery limit ({DELIVERY_LIMIT})",
            snapshot_index=core.snapshot().index,
            now_ns=now_ns,
            entropy=core.entropy,
            follow_up_wait_ns=wait_ns,
        )
        try:
            await core.propose(EvalUpsert(evals=evaluations))
        except NomadError as error:
            log.warning("evaluation not failed", eval_id=evaluation.id, error=error.message)
            self._enqueue(evaluation)

    async def _retry_blocked(self) -> None:
        """Evaluations that lost too many races get another try now and then."""
        while True:
            await asyncio.sleep(RETRY_BLOCKED_S)
            for evaluation in self.blocked.unblock_failed():
                self._enqueue(evaluation)
            if self.broker.take_overflow():
                for evaluation in self._core.snapshot().evals():
                    if evaluation.status == "pending" and not self.broker.knows(evaluation.id):
                        self._enqueue(evaluation)

    async def _nodes_expired(self, node_ids: list[str]) -> None:
        """Heartbeats were missed: mark the nodes down or disconnected and have their jobs looked at."""
        core = self._core
        for node_id in node_ids:
            snapshot = core.snapshot()
            node = snapshot.node(node_id)
            if node is None or node.status in SILENT or self.heartbeats.is_alive(node_id):
                # Heard again while the ones before it were written.
                continue
            now_ns = core.clock.now_ns()
            node = msgspec.structs.replace(node, status=status_when_silent(snapshot, node_id))
            log.warning(
                "node missed its heartbeats", node_id=node_id, name=node.name, status=node.status
            )
            try:
                await core.propose(
                    NodeStatus(
                        node_id=node_id,
                        status=node.status,
                        event=NodeEvent(
                            message="Node heartbeat missed",
                            subsystem="Cluster",
                            timestamp=from_ns(now_ns),
                        ),
                        evaluations=new_evaluations.for_node(
                            snapshot, node, entropy=core.entropy, now_ns=now_ns
                        ),
                    )
                )
            except NomadError as error:
                log.warning("node not marked down", node_id=node_id, error=error.message)
                self.heartbeats.reset(node_id)

    async def _establish(self) -> None:
        """Make what a new cluster lacks: its id, scheduler and autopilot settings, the first root key."""
        core = self._core
        started_s = core.metrics.monotonic()
        while True:
            try:
                snapshot = core.snapshot()
                if snapshot.cluster_metadata() is None:
                    await core.propose(
                        ClusterMetadataSet(
                            cluster_id=core.entropy.uuid(), log_format=core.common_format()
                        )
                    )
                if snapshot.autopilot_config().create_index == 0:
                    await core.propose(AutopilotConfigSet(config=_AUTOPILOT, cas=None))
                if snapshot.scheduler_config().create_index == 0:
                    config = SchedulerConfiguration(
                        scheduler_algorithm=core.settings.scheduler_algorithm,
                        preemption_config=core.settings.preemption,
                    )
                    await core.propose(SchedulerConfigSet(config=config, cas=None))
                if snapshot.active_root_key() is None:
                    await core.propose(RootKeyUpsert(key=await self.keys.new_key()))
            except NomadError as error:
                log.warning("leadership not established yet", error=error.message)
                await asyncio.sleep(1.0)
            else:
                core.metrics.observe_since("nomad.nomad.leader.establish_leadership", started_s)
                return


def _usable(node: Node) -> bool:
    return node.status == "ready" and node.scheduling_eligibility == "eligible"


def _healthy_devices(node: Node) -> set[tuple[str, str, str, str]]:
    devices = node.node_resources.devices if node.node_resources is not None else None
    return {
        (group.vendor, group.type, group.name, one.id)
        for group in devices or ()
        for one in group.instances or ()
        if one.healthy
    }


def _offer(node: Node) -> tuple[object, ...]:
    """What a node offers and its class does not tell."""
    drivers = {name: (one.detected, one.healthy) for name, one in (node.drivers or {}).items()}
    return (node.node_resources, node.reserved_resources, node.host_volumes, drivers)


def _cost(settings: ServerSettings, shares: Shares) -> Cost | None:
    """How namespaces share the workers, by the settings."""
    if settings.fair_share == "priority":
        return None
    by_share = shares.dominant if settings.fair_share == "dominant" else None
    return weighted(settings.namespace_weights, by_share)


def status_when_silent(snapshot: Snapshot, node_id: str) -> str:
    """What a node is that missed its heartbeats: disconnected when it runs something that may outlive that, else down."""
    for alloc in snapshot.allocs_by_node(node_id):
        if alloc.desired_status != "run" or alloc.client_status in TERMINAL:
            continue
        job = snapshot.job(alloc.namespace, alloc.job_id) or alloc.job
        group = (
            next((g for g in job.task_groups or [] if g.name == alloc.task_group), None)
            if job
            else None
        )
        if disconnect_rules(group).lost_after_ns is not None:
            return "disconnected"
    return "down"


_AUTOPILOT = AutopilotConfiguration(
    cleanup_dead_servers=True,
    last_contact_threshold="200ms",
    max_trailing_logs=250,
    server_stabilization_time="10s",
)
