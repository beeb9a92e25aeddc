"""The rules a complete job must keep; all faults are reported at once, in Nomad's words.

In:      a canonical job (canonicalize.py).
Out:     texts of errors; nested ones are already formatted, as the wire shows them.
Not here: rules that need state, such as whether the namespace or node pool exists.
"""

from __future__ import annotations

from collections.abc import Iterable

from nomadpy.errors import ValidationError
from nomadpy.jobspec import cron
from nomadpy.jobspec.durations import go_quote
from nomadpy.jobspec.faults import format_errors, nested
from nomadpy.jobspec.validate_group import group_faults, group_warnings
from nomadpy.jobspec.validate_placement import affinity_faults, constraint_faults, spread_faults
from nomadpy.models.job import Job, ParameterizedJobConfig, PeriodicConfig

TYPES = ("service", "batch", "system", "sysbatch")
PAYLOAD_MODES = ("optional", "required", "forbidden")


def validate(job: Job, *, max_priority: int = 100, max_count: int = 0) -> list[str]:
    """Return what is wrong with the job, top level of the nested errors; empty when it may be stored.

    max_priority: server setting job_max_priority. max_count: job_max_count, 0 for no limit.
    """
    faults = _identity(job)
    faults += _placement(job)
    faults += _groups(job)
    if job.periodic is not None and job.periodic.enabled:
        faults += _periodic(job.periodic, job.type)
    if job.parameterized_job is not None and not job.dispatched:
        faults += _parameterized(job.parameterized_job, job.type)
    if not 1 <= job.priority <= max_priority:
        faults.append(f"job priority must be between [1, {max_priority}]")
    if job.payload and not job.dispatched:
        faults.append("job can't be submitted with a payload, only dispatched")
    total = sum(group.count for group in job.task_groups or [])
    if max_count and total > max_count:
        faults.append(
            f"total count was greater than configured job_max_count: {total} > {max_count}"
        )
    return faults


def check(job: Job, *, max_priority: int = 100, max_count: int = 0) -> None:
    """Raise ValidationError (500) with all faults, as registering such a job answers."""
    faults = validate(job, max_priority=max_priority, max_count=max_count)
    if faults:
        raise ValidationError(format_errors(faults))


def warnings(job: Job) -> list[str]:
    """Return what is allowed but probably not meant."""
    notes: list[str] = []
    if job.periodic is not None and job.periodic.spec:
        notes.append("cron is deprecated and may be removed in a future release. Use crons instead")
    updated = [group for group in job.task_groups or [] if group.update is not None]
    promoting = [g for g in updated if g.update is not None and g.update.auto_promote]
    if promoting and len(promoting) != len(updated):
        notes.append("auto_promote must be true for all groups to enable automatic promotion")
    for group in job.task_groups or []:
        notes += nested(f"Group {go_quote(group.name)} has warnings", group_warnings(group))
    return notes


def _identity(job: Job) -> list[str]:
    faults: list[str] = []
    if not job.region:
        faults.append("Missing job region")
    if not job.id:
        faults.append("Missing job ID")
    elif " " in job.id:
        faults.append("Job ID contains a space")
    elif "\0" in job.id:
        faults.append("Job ID contains a null character")
    if not job.name:
        faults.append("Missing job name")
    elif "\0" in job.name:
        faults.append("Job Name contains a null character")
    if not job.namespace:
        faults.append("Job must be in a namespace")
    if not job.type:
        faults.append("Missing job type")
    elif job.type not in TYPES:
        faults.append(f"Invalid job type: {go_quote(job.type)}")
    if not job.datacenters and job.multiregion is None:
        faults.append("Missing job datacenters")
    if any(not name for name in job.datacenters or []):
        faults.append("Job datacenter must be non-empty string")
    return faults


def _placement(job: Job) -> list[str]:
    faults: list[str] = []
    if not job.task_groups:
        faults.append("Missing job task groups")
    for number, constraint in enumerate(job.constraints or [], 1):
        faults += nested(f"Constraint {number} validation failed", constraint_faults(constraint))
    if job.type == "system":
        if job.affinities:
            faults.append("System jobs may not have an affinity block")
        if job.spreads:
            faults.append("System jobs may not have a spread block")
        return faults
    for number, affinity in enumerate(job.affinities or [], 1):
        faults += nested(f"Affinity {number} validation failed", affinity_faults(affinity))
    for number, spread in enumerate(job.spreads or [], 1):
        faults += nested(f"Spread {number} validation failed", spread_faults(spread))
    return faults


def _groups(job: Job) -> list[str]:
    faults: list[str] = []
    seen: dict[str, int] = {}
    groups = job.task_groups or []
    for number, group in enumerate(groups, 1):
        if not group.name:
            faults.append(f"Job task group {number} missing name")
        elif group.name in seen:
            faults.append(
                f"Job task group {number} redefines '{group.name}' from group {seen[group.name]}"
            )
        else:
            seen[group.name] = number
        faults += _delays(group.shutdown_delay, group.stop_after_client_disconnect, job.type)
        if job.type == "system" and group.count > 1:
            faults.append(
                f"Job task group {group.name} has count {group.count}. "
                "Count cannot exceed 1 with system scheduler"
            )
    for group in groups:
        faults += nested(f"Task group {group.name} validation failed", group_faults(group, job))
    return faults


def _delays(shutdown: int | None, stop_after: int | None, job_type: str) -> Iterable[str]:
    if shutdown is not None and shutdown < 0:
        yield "ShutdownDelay must be a positive value"
    if stop_after is not None and stop_after < 0:
        yield "stop_after_client_disconnect must be a positive value"
    elif stop_after and job_type not in ("batch", "service"):
        yield "stop_after_client_disconnect can only be set in batch and service jobs"


def _periodic(periodic: PeriodicConfig, job_type: str) -> list[str]:
    faults: list[str] = []
    if job_type not in ("batch", "sysbatch"):
        faults.append('Periodic can only be used with "batch" or "sysbatch" scheduler')
    inner: list[str] = []
    if not periodic.spec and not periodic.specs:
        inner.append("Must specify a spec")
    if periodic.spec and periodic.specs:
        inner.append("Only cron or crons may be used")
    if not cron.known_zone(periodic.time_zone or "UTC"):
        inner.append(
            f"Invalid time zone {go_quote(periodic.time_zone)}: unknown time zone {periodic.time_zone}"
        )
    if periodic.spec_type != "cron":
        inner.append(f"Unknown periodic specification type {go_quote(periodic.spec_type)}")
    else:
        for spec in [periodic.spec, *(periodic.specs or [])]:
            fault = cron.fault_of(spec) if spec else ""
            if fault:
                inner.append(f"Invalid cron spec {go_quote(spec)}: {fault}")
    if inner:
        faults.append(format_errors(inner))
    return faults


def _parameterized(config: ParameterizedJobConfig, job_type: str) -> list[str]:
    faults: list[str] = []
    if job_type not in ("batch", "sysbatch"):
        faults.append('Parameterized job can only be used with "batch" or "sysbatch" scheduler')
    inner: list[str] = []
    if config.payload not in PAYLOAD_MODES:
        inner.append(f"Unknown payload requirement: {go_quote(config.payload)}")
    both = sorted(set(config.meta_optional or []) & set(config.meta_required or []))
    if both:
        inner.append(
            f"Required and optional meta keys should be disjoint. Following keys exist in both: [{' '.join(both)}]"
        )
    if inner:
        faults.append(format_errors(inner))
    return faults
