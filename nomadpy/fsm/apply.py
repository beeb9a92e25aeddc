"""The state machine: one command in, one transaction, one result. Total and deterministic.

An entry that cannot be decoded, or whose command breaks a rule, changes nothing, returns the error, and still moves the
index. A bug in a handler does the same, on every server alike, and is logged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import msgspec

from nomadpy import logs
from nomadpy.errors import CorruptionError, InvalidRequestError, LogFormatError, NomadError
from nomadpy.fsm import commands, dedup, formats
from nomadpy.fsm.commands import Applied, Command, Entry, EntryCodec
from nomadpy.fsm.packing import unpack
from nomadpy.fsm.restoring import Restoring
from nomadpy.models.job import Job
from nomadpy.models.variable import HeldLock
from nomadpy.state import (
    allocs,
    deployments,
    evals,
    host_volumes,
    jobs,
    nodes,
    operator,
    persist,
    plan_results,
    variables,
)
from nomadpy.state.checksum import Sums, table_sums
from nomadpy.state.schema import CLUSTER, ONLY, RESTORED
from nomadpy.state.store import Snapshot, StateStore, Transaction
from nomadpy.state.table import Table

log = logs.get(__name__)

REQUESTS = "requests"
RESTORING = "restoring"


class StateMachine:
    """What raft applies its log to.

    on_checkpoint is called at each Checkpoint with what sums up the state at it, a little with each step.
    """

    def __init__(
        self,
        store: StateStore,
        codec: EntryCodec | None = None,
        *,
        reads: formats.Formats = formats.OWN,
    ) -> None:
        """codec: the one that encodes what this server proposes. reads: the formats of the log that it takes part in."""
        self.store = store
        self.on_checkpoint: Callable[[int, Generator[None, None, Sums]], None] | None = None
        self._reads = reads
        self._codec = codec or EntryCodec()
        self._requests = dedup.Requests()
        self._restoring = Restoring()
        self.last_command: type[Command] | None = None  # for whoever measures what applying takes

    def apply(self, index: int, data: bytes) -> Applied | NomadError:
        """Apply one entry; an error is a returned value.

        Raises ValueError when the entry at this index was applied already: that is raft's fault, not the entry's. Raises
        LogFormatError when it is of a format that other servers read and this one does not: it must go no further.
        """
        try:
            entry = self._codec.decode(data)
        except msgspec.DecodeError as error:
            unknown = commands.unknown_tag(data)
            if unknown is not None:
                raise LogFormatError(
                    f"entry {index} of the log is a command with the tag {unknown}, which came with a version newer than "
                    "this one: install the version that the other servers run"
                ) from error
            log.error("entry cannot be decoded", index=index, error=str(error))
            self.store.advance(index)
            return InvalidRequestError(f"entry cannot be decoded: {error}")
        self._check_readable(index, entry.command)
        known = self._requests.find(entry.request_id)
        if known is not None:
            self.store.advance(index)
            return known.result()
        result = self._run(index, entry)
        self._requests.remember(entry.request_id, index, entry.now_ns, result)
        return result

    def _check_readable(self, index: int, command: Command) -> None:
        version = formats.format_of(type(command))
        if isinstance(command, commands.LogFormatSet):
            version = max(version, command.version)
        elif isinstance(command, commands.ClusterMetadataSet):
            version = max(version, command.log_format)
        if version > self._reads[1]:
            formats.check_readable(version, self._reads, f"the log at entry {index}")

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Capture the state of this moment; calling what is returned encodes it, in any thread."""
        state = self.store.snapshot()
        requests = self._requests.capture()
        restoring = self._restoring.capture()

        def chunks() -> Iterator[bytes]:
            return persist.write(state, {REQUESTS: dedup.encode(requests), RESTORING: restoring})

        return chunks

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace everything by a snapshot's. Raises CorruptionError or LogFormatError, and then nothing was replaced."""
        restored = persist.read(chunks)
        formats.check_readable(restored.snapshot.log_format(), self._reads, "the raft snapshot")
        requests = dedup.Requests()
        try:
            requests.restore(restored.extras.get(REQUESTS, []))
        except msgspec.DecodeError as error:
            raise CorruptionError(f"snapshot cannot be decoded: {error}") from error
        self._requests = requests
        self._restoring = Restoring.captured(restored.extras.get(RESTORING, []))
        self.store.replace(restored.snapshot)

    def checksum(self) -> str:
        """A digest of the state and of the requests that are remembered."""
        digest = hashlib.blake2b(self.store.checksum().encode(), digest_size=16)
        for piece in dedup.encode(self._requests.capture()):
            digest.update(piece)
        for piece in self._restoring.capture():
            digest.update(piece)
        return digest.hexdigest()

    def _run(self, index: int, entry: Entry) -> Applied | NomadError:
        error: NomadError
        self.last_command = type(entry.command)
        command = entry.command
        whole = _WHOLE_STATE.get(type(command))
        if whole is not None:
            return whole(self, index, command)
        tx = self.store.transaction(index, entry.now_ns)
        try:
            with tx:
                value = _HANDLERS[type(entry.command)](tx, entry.command)
        except NomadError as refused:
            error = refused
        except Exception as bug:
            name = type(entry.command).__name__
            log.exception("command failed", index=index, command=name)
            error = NomadError(f"{name}: {type(bug).__name__}: {bug}")
        else:
            return Applied(index=index, value=value)
        self.store.advance(index)
        return error

    def _set_aside(self, index: int, part: commands.RestorePart) -> Applied | NomadError:
        self.store.advance(index)
        error = self._restoring.take(part)
        return Applied(index=index) if error is None else error

    def _replace(self, index: int, command: commands.Restore) -> Applied | NomadError:
        found = self._restoring.finish(command)
        if isinstance(found, Snapshot) and found.index >= index:
            found = InvalidRequestError(
                f"the snapshot is of index {found.index}, and this would be {index}: indexes never fall"
            )
        if isinstance(found, NomadError):
            self.store.advance(index)
            return found
        formats.check_readable(found.log_format(), self._reads, "the snapshot that is restored")
        # Every table was written here, so that whoever waits for a change of one looks again.
        indexes = dict.fromkeys(found.table_indexes, index)
        before = self.store.snapshot()
        if before.log_format() < 2:
            indexes[RESTORED] = before.table_index(RESTORED)
        self.store.replace(Snapshot(index, _not_below(before, found), indexes))
        return Applied(index=index)

    def _checkpoint(self, index: int, _: commands.Checkpoint) -> Applied:
        self.store.advance(index)
        if self.on_checkpoint is not None:
            extras = {
                REQUESTS: dedup.encode(self._requests.capture()),
                RESTORING: self._restoring.capture(),
            }
            self.on_checkpoint(index, table_sums(self.store.snapshot(), extras))
        return Applied(index=index)


def _not_below(before: Snapshot, found: Snapshot) -> dict[str, Table[Any, Any]]:
    """The restored tables, with a log format that does not fall: the log still holds what it holds."""
    was, then = before.cluster_metadata(), found.cluster_metadata()
    if was is None or found.log_format() >= was.log_format:
        return found.tables
    kept = was if then is None else msgspec.structs.replace(then, log_format=was.log_format)
    writer = found.tables[CLUSTER.name].writer()
    writer.put(ONLY, kept)
    return {**found.tables, CLUSTER.name: writer.commit()}


# -- one function for each command ----------------------------------------------------------------------


def _written(job: Job) -> dict[str, int]:
    return {"job_modify_index": job.job_modify_index, "version": job.version}


def _job_register(tx: Transaction, c: commands.JobRegister) -> object:
    job = jobs.register(
        tx,
        c.job,
        submission=c.submission,
        evaluation=c.evaluation,
        enforce_index=c.enforce_index,
    )
    return _written(job)


def _job_deregister(tx: Transaction, c: commands.JobDeregister) -> object:
    job = jobs.deregister(tx, c.namespace, c.job_id, purge=c.purge, evaluation=c.evaluation)
    return _written(job)


def _job_stability(tx: Transaction, c: commands.JobStability) -> None:
    jobs.set_stability(tx, c.namespace, c.job_id, c.version, stable=c.stable)


def _job_tag(tx: Transaction, c: commands.JobTag) -> object:
    if c.unset:
        jobs.unset_tag(tx, c.namespace, c.job_id, c.name)
        return None
    tag = jobs.set_tag(tx, c.namespace, c.job_id, c.version, c.name, c.description)
    return msgspec.structs.asdict(tag)


def _job_scale(tx: Transaction, c: commands.JobScale) -> object:
    job = jobs.scale(
        tx,
        c.namespace,
        c.job_id,
        group=c.group,
        job=c.job,
        event=c.event,
        evaluation=c.evaluation,
        enforce_index=c.enforce_index,
    )
    return _written(job)


def _job_batch_purge(tx: Transaction, c: commands.JobBatchPurge) -> None:
    jobs.purge_all(tx, c.jobs, only_dead=c.only_dead)


def _node_register(tx: Transaction, c: commands.NodeRegister) -> None:
    nodes.register(tx, c.node)


def _node_status(tx: Transaction, c: commands.NodeStatus) -> None:
    nodes.set_status(tx, c.node_id, c.status, c.event)
    evals.upsert(tx, c.evaluations)


def _node_drain(tx: Transaction, c: commands.NodeDrain) -> None:
    nodes.set_drain(
        tx,
        c.node_id,
        c.drain,
        mark_eligible=c.mark_eligible,
        meta=c.meta,
        event=c.event,
        last_status=c.last_drain_status,
        accessor_id=c.accessor_id,
    )
    evals.upsert(tx, c.evaluations)


def _node_eligibility(tx: Transaction, c: commands.NodeEligibility) -> None:
    nodes.set_eligibility(tx, c.node_id, c.eligibility, c.event)
    evals.upsert(tx, c.evaluations)


def _node_deregister(tx: Transaction, c: commands.NodeDeregister) -> None:
    nodes.deregister(tx, c.node_ids)
    evals.upsert(tx, c.evaluations)


def _eval_upsert(tx: Transaction, c: commands.EvalUpsert) -> None:
    evals.upsert(tx, c.evals)


def _eval_delete(tx: Transaction, c: commands.EvalDelete) -> None:
    evals.delete(tx, c.eval_ids, c.alloc_ids)


def _alloc_client_update(tx: Transaction, c: commands.AllocClientUpdate) -> None:
    allocs.update_from_clients(tx, c.allocs)
    evals.upsert(tx, c.evaluations)


def _alloc_transition(tx: Transaction, c: commands.AllocTransition) -> None:
    allocs.transition(tx, c.transitions)
    evals.upsert(tx, c.evaluations)


def _plan_results(tx: Transaction, c: commands.PlanResults) -> object:
    return plan_results.upsert(tx, c.plans)


def _packed_plans(tx: Transaction, c: commands.PackedPlans) -> object:
    return plan_results.upsert(tx, [unpack(plan) for plan in c.plans])


def _deployment_update(tx: Transaction, c: commands.DeploymentUpdate) -> None:
    deployments.set_status(tx, c.deployment_id, c.status, c.description)
    if c.job is not None:
        jobs.register(tx, c.job)
    evals.upsert(tx, [] if c.evaluation is None else [c.evaluation])


def _deployment_alloc_health(tx: Transaction, c: commands.DeploymentAllocHealth) -> None:
    deployments.set_alloc_health(tx, c.deployment_id, healthy=c.healthy, unhealthy=c.unhealthy)
    if c.status is not None:
        deployments.set_status(tx, c.deployment_id, c.status, c.description)
    if c.job is not None:
        jobs.register(tx, c.job)
    evals.upsert(tx, [] if c.evaluation is None else [c.evaluation])


def _deployment_promote(tx: Transaction, c: commands.DeploymentPromote) -> None:
    deployments.promote(tx, c.deployment_id, c.groups)
    evals.upsert(tx, [] if c.evaluation is None else [c.evaluation])


def _deployment_delete(tx: Transaction, c: commands.DeploymentDelete) -> None:
    deployments.delete(tx, c.ids)


def _node_pool_upsert(tx: Transaction, c: commands.NodePoolUpsert) -> None:
    nodes.upsert_pools(tx, c.pools)


def _node_pool_delete(tx: Transaction, c: commands.NodePoolDelete) -> None:
    nodes.delete_pools(tx, c.names, region=c.region)


def _scheduler_config_set(tx: Transaction, c: commands.SchedulerConfigSet) -> object:
    return operator.set_scheduler_config(tx, c.config, c.cas)


def _autopilot_config_set(tx: Transaction, c: commands.AutopilotConfigSet) -> object:
    return operator.set_autopilot_config(tx, c.config, c.cas)


def _root_key_upsert(tx: Transaction, c: commands.RootKeyUpsert) -> None:
    operator.upsert_root_key(tx, c.key, full=c.full)


def _root_key_delete(tx: Transaction, c: commands.RootKeyDelete) -> None:
    operator.delete_root_key(tx, c.key_id, force=c.force)


def _cluster_metadata_set(tx: Transaction, c: commands.ClusterMetadataSet) -> object:
    return operator.set_cluster_metadata(tx, c.cluster_id, log_format=c.log_format).cluster_id


def _log_format_set(tx: Transaction, c: commands.LogFormatSet) -> None:
    operator.raise_log_format(tx, c.version)


def _reconcile_summaries(tx: Transaction, _: commands.ReconcileSummaries) -> None:
    jobs.reconcile_summaries(tx)


def _variable_set(tx: Transaction, c: commands.VariableSet) -> object:
    return variables.store(tx, c.namespace, c.path, c.sealed, cas=c.cas, lock_id=c.lock_id)


def _variable_delete(tx: Transaction, c: commands.VariableDelete) -> object:
    return variables.delete(tx, c.namespace, c.path, cas=c.cas)


def _variable_lock(tx: Transaction, c: commands.VariableLock) -> object:
    return variables.lock(
        tx,
        c.namespace,
        c.path,
        c.sealed,
        HeldLock(id=c.lock_id, ttl=c.ttl, delay=c.delay),
        keep=c.keep,
        held_id=c.held_id,
    )


def _variable_unlock(tx: Transaction, c: commands.VariableUnlock) -> object:
    return variables.unlock(tx, c.namespace, c.path, c.lock_id, c.reason)


def _variable_reseal(tx: Transaction, c: commands.VariableReseal) -> None:
    for item in c.variables:
        variables.reseal(tx, item.namespace, item.path, was=item.was, sealed=item.sealed)
    operator.retire_rekeyed(tx)


def _host_volume_upsert(tx: Transaction, c: commands.HostVolumeUpsert) -> object:
    return host_volumes.upsert(tx, c.volumes)


def _host_volume_delete(tx: Transaction, c: commands.HostVolumeDelete) -> None:
    host_volumes.delete(tx, c.namespace, c.ids)


def _volume_claim_delete(tx: Transaction, c: commands.VolumeClaimDelete) -> None:
    host_volumes.delete_claim(tx, c.claim_id)


def _noop(_tx: Transaction, _: commands.Noop) -> None:
    """Nothing."""


_HANDLERS: dict[type[Command], Callable[[Transaction, Any], object]] = {
    commands.JobRegister: _job_register,
    commands.JobDeregister: _job_deregister,
    commands.JobStability: _job_stability,
    commands.JobTag: _job_tag,
    commands.JobScale: _job_scale,
    commands.NodeRegister: _node_register,
    commands.NodeStatus: _node_status,
    commands.NodeDrain: _node_drain,
    commands.NodeEligibility: _node_eligibility,
    commands.NodeDeregister: _node_deregister,
    commands.EvalUpsert: _eval_upsert,
    commands.EvalDelete: _eval_delete,
    commands.AllocClientUpdate: _alloc_client_update,
    commands.AllocTransition: _alloc_transition,
    commands.PlanResults: _plan_results,
    commands.PackedPlans: _packed_plans,
    commands.DeploymentUpdate: _deployment_update,
    commands.DeploymentAllocHealth: _deployment_alloc_health,
    commands.NodePoolUpsert: _node_pool_upsert,
    commands.NodePoolDelete: _node_pool_delete,
    commands.SchedulerConfigSet: _scheduler_config_set,
    commands.AutopilotConfigSet: _autopilot_config_set,
    commands.RootKeyUpsert: _root_key_upsert,
    commands.RootKeyDelete: _root_key_delete,
    commands.ClusterMetadataSet: _cluster_metadata_set,
    commands.LogFormatSet: _log_format_set,
    commands.DeploymentDelete: _deployment_delete,
    commands.JobBatchPurge: _job_batch_purge,
    commands.ReconcileSummaries: _reconcile_summaries,
    commands.Noop: _noop,
    commands.DeploymentPromote: _deployment_promote,
    commands.VariableSet: _variable_set,
    commands.VariableDelete: _variable_delete,
    commands.VariableLock: _variable_lock,
    commands.VariableUnlock: _variable_unlock,
    commands.VariableReseal: _variable_reseal,
    commands.HostVolumeUpsert: _host_volume_upsert,
    commands.HostVolumeDelete: _host_volume_delete,
    commands.VolumeClaimDelete: _volume_claim_delete,
}

_WHOLE_STATE: dict[type[Command], Callable[[StateMachine, int, Any], Applied | NomadError]] = {
    commands.RestorePart: StateMachine._set_aside,
    commands.Restore: StateMachine._replace,
    commands.Checkpoint: StateMachine._checkpoint,
}
"""Commands that are no transaction on a state, but are about all of it."""
