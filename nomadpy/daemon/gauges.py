"""The figures of a running node that are not pushed where things happen: gauges, and the timing of the state machine.

In:      the server and the agent of this process, read when somebody asks for /v1/metrics.
Out:     gauges under Nomad's names; `fsm` timers; the host's use, measured in a thread at most once a second.
Not here: counters and timers of calls, proposals and plans (rpc/dispatch.py, server/).
"""

from __future__ import annotations

import asyncio
import collections
import gc
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nomadpy.clock import Clock
from nomadpy.fsm import commands
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import Command
from nomadpy.metrics import Registry
from nomadpy.models.stats import HostStats
from nomadpy.scheduler import fit

if TYPE_CHECKING:
    from agent.agent import Agent
    from agent.stats import HostSampler
    from nomadpy.daemon.server_process import ServerProcess

HOST_MAX_AGE_S = 1.0
OLDEST_GENERATION = 2

_FSM: dict[type[Command], str] = {
    commands.JobRegister: "register_job",
    commands.JobDeregister: "deregister_job",
    commands.JobStability: "apply_job_stability",
    commands.JobTag: "apply_job_version_tag",
    commands.JobScale: "scale_job",
    commands.JobBatchPurge: "batch_deregister_job",
    commands.NodeRegister: "register_node",
    commands.NodeStatus: "node_status_update",
    commands.NodeDrain: "node_drain_update",
    commands.NodeEligibility: "node_eligibility_update",
    commands.NodeDeregister: "deregister_node",
    commands.EvalUpsert: "update_eval",
    commands.EvalDelete: "delete_eval",
    commands.AllocClientUpdate: "alloc_client_update",
    commands.AllocTransition: "apply_alloc_update_desired_transition",
    commands.PlanResults: "apply_plan_results",
    commands.PackedPlans: "apply_packed_plan_results",
    commands.DeploymentUpdate: "apply_deployment_status_update",
    commands.DeploymentAllocHealth: "apply_deployment_alloc_health",
    commands.DeploymentPromote: "apply_deployment_promotion",
    commands.DeploymentDelete: "apply_deployment_delete",
    commands.NodePoolUpsert: "apply_node_pool_upsert",
    commands.NodePoolDelete: "apply_node_pool_delete",
    commands.SchedulerConfigSet: "apply_scheduler_config",
    commands.AutopilotConfigSet: "autopilot",
    commands.RootKeyUpsert: "apply_wrapped_root_key_upsert",
    commands.RootKeyDelete: "apply_wrapped_root_key_delete",
    commands.ClusterMetadataSet: "cluster_meta",
    commands.ReconcileSummaries: "reconcile_summaries",
    commands.Noop: "noop",
    commands.VariableSet: "apply_variable_set",
    commands.VariableDelete: "apply_variable_delete",
    commands.VariableLock: "apply_variable_lock",
    commands.VariableUnlock: "apply_variable_unlock",
    commands.VariableReseal: "apply_variable_reseal",
    commands.RestorePart: "apply_restore_part",
    commands.Restore: "apply_restore",
    commands.Checkpoint: "apply_checkpoint",
    commands.LogFormatSet: "apply_log_format",
    commands.HostVolumeUpsert: "apply_host_volume_register",
    commands.HostVolumeDelete: "apply_host_volume_delete",
    commands.VolumeClaimDelete: "apply_task_group_host_volume_claim_delete",
}
_TIMERS = {command: f"nomad.nomad.fsm.{name}" for command, name in _FSM.items()}


class MeasuredStateMachine:
    """Passes everything on to the state machine and notes how long applying took: the state machine has no clock."""

    def __init__(self, inner: StateMachine, metrics: Registry) -> None:
        self._inner = inner
        self._metrics = metrics

    def apply(self, index: int, data: bytes) -> object:
        """See StateMachine."""
        metrics = self._metrics
        started_s = metrics.monotonic()
        self._inner.last_command = None
        result = self._inner.apply(index, data)
        took_ms = (metrics.monotonic() - started_s) * 1000
        metrics.observe("nomad.raft.fsm.apply", took_ms)
        command = self._inner.last_command
        if command is not None:
            # A figure without a name of its own must not stop the log.
            metrics.observe(_TIMERS.get(command, "nomad.nomad.fsm.other"), took_ms)
        return result

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """See StateMachine."""
        return self._inner.snapshot()

    def restore(self, chunks: Iterator[bytes]) -> None:
        """See StateMachine."""
        with self._metrics.timed("nomad.raft.fsm.restore"):
            self._inner.restore(chunks)


class HostFigures:
    """The host's use, measured in a thread; callers within HOST_MAX_AGE_S share one measurement."""

    def __init__(self, sampler: HostSampler, clock: Clock) -> None:
        self._sampler = sampler
        self._clock = clock
        self._lock = asyncio.Lock()
        self._measured_s = 0.0
        self.latest: HostStats | None = None

    async def fresh(self) -> HostStats:
        """The host's use, at most HOST_MAX_AGE_S old."""
        async with self._lock:
            latest = self.latest
            if latest is None or self._clock.monotonic() - self._measured_s >= HOST_MAX_AGE_S:
                latest = await asyncio.to_thread(self._sampler.sample)
                self.latest, self._measured_s = latest, self._clock.monotonic()
            return latest

    async def refresh(self) -> None:
        """`fresh`, for those who look at `latest` later."""
        await self.fresh()

    def collect(self, registry: Registry, labels: dict[str, str]) -> None:
        """Set the gauges of the latest measurement."""
        host = self.latest
        if host is None:
            return
        registry.gauge("nomad.client.uptime", host.uptime, **labels)
        if (memory := host.memory) is not None:
            for what in ("total", "available", "used", "free"):
                registry.gauge(f"nomad.client.host.memory.{what}", getattr(memory, what), **labels)
        for cpu in host.cpu or ():
            mine = {**labels, "cpu": cpu.cpu}
            registry.gauge("nomad.client.host.cpu.total", cpu.total_percent, **mine)
            for what in ("total_percent", "total_ticks", "user", "system", "idle"):
                registry.gauge(f"nomad.client.host.cpu.{what}", getattr(cpu, what), **mine)
        for disk in host.disk_stats or ():
            mine = {**labels, "disk": disk.device}
            for name, value in (
                ("size", disk.size),
                ("used", disk.used),
                ("available", disk.available),
                ("used_percent", disk.used_percent),
                ("inodes_percent", disk.inodes_used_percent),
            ):
                registry.gauge(f"nomad.client.host.disk.{name}", value, **mine)


class RuntimeGauges:
    """What the interpreter is busy with. Tasks count as goroutines: they are what this program has instead."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pause_s = 0.0
        self._began_s = 0.0

    def open(self) -> None:
        """Measure collections from now on."""
        gc.callbacks.append(self._collecting)

    def close(self) -> None:
        """Measure no more."""
        gc.callbacks.remove(self._collecting)

    def collect(self, registry: Registry) -> None:
        """Set the gauges."""
        registry.gauge("nomad.runtime.num_goroutines", len(asyncio.all_tasks()))
        registry.gauge("nomad.runtime.heap_objects", sys.getallocatedblocks())
        registry.gauge("nomad.runtime.total_gc_runs", sum(g["collections"] for g in gc.get_stats()))
        registry.gauge("nomad.runtime.total_gc_pause_ns", round(self._pause_s * 1e9))

    def _collecting(self, phase: str, info: dict[str, Any]) -> None:
        # Young generations are collected all the time and within microseconds; measuring would cost as much.
        if info["generation"] < OLDEST_GENERATION:
            return
        now_s = self._clock.monotonic()
        if phase == "start":
            self._began_s = now_s
        else:
            self._pause_s += now_s - self._began_s


class ServerGauges:
    """The server's queues, its raft, and what its state holds."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._jobs_index = -1
        self._jobs: dict[str, int] = {}

    def collect(self, registry: Registry) -> None:
        """Set the gauges. Queues are the leader's; they are empty on other servers."""
        self._queues(registry)
        self._raft(registry)
        self._checks(registry)
        self._snapshots(registry)
        for status, count in self._job_status().items():
            registry.gauge(f"nomad.nomad.job_status.{status}", count)

    def _queues(self, registry: Registry) -> None:
        duties = self._server.server.duties
        broker = duties.broker.stats()
        for name, value in (
            ("broker.total_ready", broker.ready),
            ("broker.total_unacked", broker.unacked),
            ("broker.total_pending", broker.pending),
            ("broker.total_waiting", broker.delayed),
            ("broker.total_failed", broker.failed),
            ("broker.total_cancelable", 0),
            ("blocked_evals.total_blocked", len(duties.blocked)),
            ("blocked_evals.total_escaped", duties.blocked.escaped),
            ("blocked_evals.total_quota_limit", 0),
            ("plan.queue_depth", len(duties.applier)),
            ("heartbeat.active", len(duties.heartbeats) if duties.active else 0),
        ):
            registry.gauge(f"nomad.nomad.{name}", value)

    def _raft(self, registry: Registry) -> None:
        raft, members = self._server.raft, self._server.server.members
        voters = {peer.id for peer, _votes in raft.peers()}
        alive = sum(m.status == "alive" and m.hello.id in voters for m in members.all())
        healthy = bool(voters) and alive == len(voters) and raft.leader is not None
        stats = raft.stats()
        for name, value in (
            ("nomad.autopilot.healthy", int(healthy)),
            ("nomad.autopilot.failure_tolerance", max(0, alive - len(voters) // 2 - 1)),
            ("raft.peers", len(voters)),
            ("raft.is_leader", int(raft.is_leader)),
            ("raft.term", raft.term),
            ("raft.appliedIndex", raft.applied_index),
            ("raft.commitIndex", raft.commit_index),
            ("raft.lastIndex", raft.last_index),
            ("raft.last_contact_ms", raft.last_contact_s * 1000),
            ("raft.last_snapshot_index", float(stats["last_snapshot_index"])),
            ("raft.rounds", float(stats["rounds"])),
            ("raft.syncs", float(stats["syncs"])),
        ):
            registry.gauge(f"nomad.{name}", value)

    def _checks(self, registry: Registry) -> None:
        verdict = self._server.server.state_check.verdict
        for name, value in (
            ("log_format", self._server.store.snapshot().log_format()),
            ("state_check.index", verdict.index),
            ("state_check.compared", verdict.compared),
            ("state_check.differing", len(verdict.odd)),
        ):
            registry.gauge(f"nomad.nomad.{name}", value)

    def _snapshots(self, registry: Registry) -> None:
        agent = self._server.server.snapshots
        if agent is not None:
            registry.gauge("nomad.nomad.snapshot_agent.saved", agent.saved)
            registry.gauge("nomad.nomad.snapshot_agent.failures_in_a_row", agent.failures_in_a_row)

    def _job_status(self) -> dict[str, int]:
        snapshot = self._server.store.snapshot()
        index = snapshot.table_index("jobs")
        if index != self._jobs_index:
            counts = collections.Counter(job.status for job in snapshot.jobs(None))
            self._jobs = {status: counts[status] for status in ("pending", "running", "dead")}
            self._jobs_index = index
        return self._jobs


class ClientGauges:
    """The agent's allocations, and what of the node is given away."""

    def __init__(self, agent: Agent, host: HostFigures | None) -> None:
        """host: None when the host's use is not to be shown."""
        self._agent = agent
        self._host = host

    def collect(self, registry: Registry) -> None:
        """Set the gauges; none before the node knows what it is."""
        registration = self._agent.registration
        node = registration.node
        if not node.id:
            return
        labels = {
            "node_id": node.id,
            "datacenter": node.datacenter,
            "node_class": node.node_class or "none",
            "node_pool": node.node_pool,
            "node_status": registration.status,
            "node_scheduling_eligibility": node.scheduling_eligibility or "eligible",
        }
        self._allocations(registry, labels)
        self._resources(registry, labels)
        if self._host is not None:
            self._host.collect(registry, labels)

    def _allocations(self, registry: Registry, labels: dict[str, str]) -> None:
        allocations = collections.Counter(blocked=0, migrating=0, pending=0, running=0, terminal=0)
        tasks = collections.Counter(pending=0, running=0, dead=0)
        for runner in self._agent.sync.runners.values():
            allocations[runner.stage] += 1
            for state in runner.states().values():
                tasks[state.state] += 1
        for name, count in allocations.items():
            registry.gauge(f"nomad.client.allocations.{name}", count, **labels)
        for name, count in tasks.items():
            registry.gauge(f"nomad.client.tasks.{name}", count, **labels)

    def _resources(self, registry: Registry, labels: dict[str, str]) -> None:
        node = self._agent.registration.node
        have = fit.capacity(node)
        used, max_memory_mb = fit.Amount(), 0
        for runner in self._agent.sync.runners.values():
            resources = runner.alloc.allocated_resources
            if runner.is_terminal or resources is None:
                continue
            used = used.plus(fit.resources_used(resources))
            max_memory_mb += sum(
                task.memory.memory_max_mb or task.memory.memory_mb
                for task in (resources.tasks or {}).values()
            )
        for name, taken, total in (
            ("cpu", used.cpu, have.cpu),
            ("memory", used.memory_mb, have.memory_mb),
            ("disk", used.disk_mb, have.disk_mb),
        ):
            registry.gauge(f"nomad.client.allocated.{name}", taken, **labels)
            registry.gauge(f"nomad.client.unallocated.{name}", total - taken, **labels)
        registry.gauge("nomad.client.allocated.max_memory", max_memory_mb, **labels)
        networks = node.node_resources.networks if node.node_resources is not None else None
        for network in networks or ():
            registry.gauge(
                "nomad.client.unallocated.network", network.mbits, device=network.device, **labels
            )
