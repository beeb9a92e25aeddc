"""Rules for task groups and the policies that stand on them."""

from __future__ import annotations

from nomadpy.jobspec.durations import SECOND, format_duration, go_quote
from nomadpy.jobspec.faults import nested
from nomadpy.jobspec.validate_network import network_faults
from nomadpy.jobspec.validate_placement import affinity_faults, constraint_faults, spread_faults
from nomadpy.jobspec.validate_service import group_service_faults
from nomadpy.jobspec.validate_task import task_faults
from nomadpy.models.job import (
    DisconnectStrategy,
    Job,
    MigrateStrategy,
    ReschedulePolicy,
    TaskGroup,
    UpdateStrategy,
    VolumeRequest,
)
from nomadpy.models.scaling import ScalingPolicy
from nomadpy.models.task_blocks import RestartPolicy

MIN_RESTART_INTERVAL = 5 * SECOND
MIN_RESCHEDULE_DELAY = 5 * SECOND
MIN_RESCHEDULE_INTERVAL = 15 * SECOND
MIN_DISK_MB = 10
DELAY_FUNCTIONS = ("constant", "exponential", "fibonacci")
RECONCILE = ("best_score", "keep_original", "keep_replacement", "longest_running")
HOST_ACCESS = (
    "single-node-reader-only",
    "single-node-writer",
    "single-node-single-writer",
    "single-node-multi-writer",
)
CSI_ACCESS = (
    "single-node-reader-only",
    "single-node-writer",
    "multi-node-reader-only",
    "multi-node-single-writer",
    "multi-node-multi-writer",
)
ATTACHMENTS = ("file-system", "block-device")


def group_faults(group: TaskGroup, job: Job) -> list[str]:
    """Return what is wrong with a group of `job`."""
    faults = _shape(group)
    faults += _disconnect_faults(group, job.type)
    for number, constraint in enumerate(group.constraints or [], 1):
        faults += nested(f"Constraint {number} validation failed", constraint_faults(constraint))
    faults += _weights(group, job.type)
    faults += _policies(group, job.type)
    faults += _names(group)
    for name, volume in sorted((group.volumes or {}).items()):
        heading = f"Task group volume validation for {name} failed"
        faults += nested(heading, _volume_faults(volume, group))
    faults += nested("Task group network validation failed", network_faults(group))
    faults += nested("Task group service validation failed", group_service_faults(group))
    if group.scaling is not None:
        heading = "Task group scaling policy validation failed"
        faults += nested(heading, scaling_faults(group.scaling, group.count))
    faults += _tasks(group, job.type)
    return faults


def group_warnings(group: TaskGroup) -> list[str]:
    """Return what is allowed in a group but probably not meant."""
    notes: list[str] = []
    update = group.update
    if update is not None:
        if update.max_parallel > group.count > 0:
            notes.append(
                f"Update max parallel count is greater than task group count ({update.max_parallel} > {group.count}). "
                "A destructive change would result in the simultaneous replacement of all allocations."
            )
        if group.count > 1 and update.canary and update.canary > group.count:
            notes.append(
                f"Update canary count is greater than task group count ({update.canary} > {group.count})"
            )
    if group.max_client_disconnect is not None:
        notes.append("max_client_disconnect will be deprecated favor of disconnect.lost_after")
    if group.stop_after_client_disconnect is not None:
        notes.append(
            "stop_after_client_disconnect will be deprecated favor of disconnect.stop_on_client_after"
        )
    if group.prevent_reschedule_on_lost:
        notes.append("prevent_reschedule_on_lost will be deprecated favor of disconnect.replace")
    if any(network.mbits for network in group.networks or []):
        notes.append(
            "mbits has been deprecated as of Nomad 0.12.0. Please remove mbits from the network block"
        )
    return notes


def scaling_faults(policy: ScalingPolicy, count: int) -> list[str]:
    """Return what is wrong with a group's scaling policy; the texts are also those of a refused scaling."""
    faults: list[str] = []
    if policy.type != "horizontal":
        faults.append(f"scaling policy type {go_quote(policy.type)} is not valid")
    if policy.max < 0:
        faults.append("maximum count must be specified and non-negative")
    elif policy.max < policy.min:
        faults.append("maximum count must not be less than minimum count")
    if policy.min < 0:
        faults.append("minimum count must be specified and non-negative")
    if 0 <= policy.max < count:
        faults.append("task group count must not be greater than maximum count in scaling policy")
    if policy.min > count:
        faults.append("task group count must not be less than minimum count in scaling policy")
    return faults


def _shape(group: TaskGroup) -> list[str]:
    faults: list[str] = []
    if not group.name:
        faults.append("Missing task group name")
    elif "\0" in group.name:
        faults.append("Task group name contains null character")
    if group.count < 0:
        faults.append("Task group count can't be negative")
    if not group.tasks:
        faults.append("Missing tasks for task group")
    if group.max_run_duration is not None and group.max_run_duration < 0:
        faults.append("max_run_duration cannot be negative")
    return faults


def _disconnect_faults(group: TaskGroup, job_type: str) -> list[str]:
    faults: list[str] = []
    lost, stop = group.max_client_disconnect, group.stop_after_client_disconnect
    if lost is not None and stop is not None:
        faults.append(
            "Task group cannot be configured with both max_client_disconnect and stop_after_client_disconnect"
        )
    if lost is not None and lost < 0:
        faults.append("max_client_disconnect cannot be negative")
    strategy = group.disconnect
    if strategy is None:
        return faults
    if lost is not None and strategy.lost_after is not None:
        faults.append("using both lost_after and max_client_disconnect is not allowed")
    if stop is not None and strategy.stop_on_client_after is not None:
        faults.append(
            "using both stop_after_client_disconnect and stop_on_client_after is not allowed"
        )
    if group.prevent_reschedule_on_lost and strategy.replace is not None:
        faults.append("using both prevent_reschedule_on_lost and replace is not allowed")
    return faults + _strategy_faults(strategy, job_type)


def _strategy_faults(strategy: DisconnectStrategy, job_type: str) -> list[str]:
    faults: list[str] = []
    if strategy.lost_after is not None and strategy.lost_after < 0:
        faults.append("disconnect: lost_after cannot be a negative duration")
    after = strategy.stop_on_client_after
    if after is not None:
        if after < 0:
            faults.append("disconnect: stop_on_client_after cannot be a negative duration")
        if job_type not in ("service", "batch"):
            faults.append(
                "disconnect: stop_on_client_after can only be set in batch and service jobs"
            )
        if strategy.lost_after:
            faults.append("disconnect: stop_on_client_after and lost_after cannot be used together")
    if strategy.reconcile not in ("", *RECONCILE):
        faults.append(f"disconnect: reconcile option {go_quote(strategy.reconcile)} is invalid")
    return faults


def _weights(group: TaskGroup, job_type: str) -> list[str]:
    if job_type == "system":
        faults = ["System jobs may not have an affinity block"] if group.affinities else []
        return faults + (["System jobs may not have a spread block"] if group.spreads else [])
    faults = []
    for number, affinity in enumerate(group.affinities or [], 1):
        faults += nested(f"Affinity {number} validation failed", affinity_faults(affinity))
    for number, spread in enumerate(group.spreads or [], 1):
        faults += nested(f"Spread {number} validation failed", spread_faults(spread))
    return faults


def _policies(group: TaskGroup, job_type: str) -> list[str]:
    faults: list[str] = []
    if group.restart_policy is None:
        faults.append(f"Task Group {group.name} should have a restart policy")
    else:
        faults += restart_faults(group.restart_policy)
    if job_type in ("system", "sysbatch"):
        if group.reschedule_policy is not None:
            faults.append("System or sysbatch jobs should not have a reschedule policy")
    elif group.reschedule_policy is None:
        faults.append(f"Task Group {group.name} should have a reschedule policy")
    else:
        faults += _reschedule_faults(group.reschedule_policy)
    if group.ephemeral_disk is None:
        faults.append(f"Task Group {group.name} should have an ephemeral disk object")
    elif group.ephemeral_disk.size_mb < MIN_DISK_MB:
        faults.append(f"minimum DiskMB value is {MIN_DISK_MB}; got {group.ephemeral_disk.size_mb}")
    if group.update is not None:
        if job_type not in ("service", "system"):
            faults.append(f"Job type {go_quote(job_type)} does not allow update block")
        faults += _update_faults(group.update)
    if group.migrate is not None:
        if job_type == "service":
            faults += _migrate_faults(group.migrate)
        else:
            faults.append(f"Job type {go_quote(job_type)} does not allow migrate block")
    return faults


def restart_faults(policy: RestartPolicy) -> list[str]:
    """Return what is wrong with a restart policy, of a group or of a task."""
    faults: list[str] = []
    if policy.mode not in ("delay", "fail"):
        faults.append(f"Unsupported restart mode: {go_quote(policy.mode)}")
    if policy.attempts == 0 and policy.mode != "fail":
        faults.append(
            f"Restart policy {go_quote(policy.mode)} with {policy.attempts} attempts is ambiguous"
        )
    if policy.interval < MIN_RESTART_INTERVAL:
        faults.append(
            f"Interval can not be less than {format_duration(MIN_RESTART_INTERVAL)} (got {format_duration(policy.interval)})"
        )
    if policy.attempts * policy.delay > policy.interval:
        faults.append(
            f"Restart policy can't restart the TaskGroup {policy.attempts} times in an interval of "
            f"{format_duration(policy.interval)} with a delay of {format_duration(policy.delay)}"
        )
    return faults


def _reschedule_faults(policy: ReschedulePolicy) -> list[str]:
    if policy.attempts <= 0 and not policy.unlimited:
        return []
    faults: list[str] = []
    if policy.attempts > 0:
        if policy.interval <= 0:
            faults.append("Interval must be a non zero value if Attempts > 0")
        if policy.unlimited:
            faults.append(
                f"Reschedule Policy with Attempts = {policy.attempts}, Interval = {format_duration(policy.interval)}, "
                "and Unlimited = true is ambiguous"
            )
    sound = True
    least = format_duration(MIN_RESCHEDULE_DELAY)
    if policy.delay < MIN_RESCHEDULE_DELAY:
        faults.append(f"Delay cannot be less than {least} (got {format_duration(policy.delay)})")
        sound = False
    if policy.delay_function not in DELAY_FUNCTIONS:
        known = " ".join(go_quote(name) for name in DELAY_FUNCTIONS)
        faults.append(
            f"Invalid delay function {go_quote(policy.delay_function)}, must be one of [{known}]"
        )
        sound = False
    if policy.delay_function != "constant":
        if policy.max_delay < MIN_RESCHEDULE_DELAY:
            faults.append(
                f"Max Delay cannot be less than {least} (got {format_duration(policy.max_delay)})"
            )
            sound = False
        if policy.max_delay < policy.delay:
            faults.append(
                f"Max Delay cannot be less than Delay {format_duration(policy.delay)} (got {format_duration(policy.max_delay)})"
            )
            sound = False
    if not policy.unlimited:
        if policy.interval < MIN_RESCHEDULE_INTERVAL:
            faults.append(
                f"Interval cannot be less than {format_duration(MIN_RESCHEDULE_INTERVAL)} (got {format_duration(policy.interval)})"
            )
        if sound:
            faults += _attempts_fit(policy)
    return faults


def _attempts_fit(policy: ReschedulePolicy) -> list[str]:
    """Whether all attempts, each after its delay, fit into the interval."""
    needed, allowed = 0, 0
    delay, following = policy.delay, policy.delay
    for attempt in range(policy.attempts):
        capped = delay if policy.delay_function == "constant" else min(delay, policy.max_delay)
        needed += capped
        if needed <= policy.interval:
            allowed = attempt + 1
        if policy.delay_function == "exponential":
            delay *= 2
        elif policy.delay_function == "fibonacci":
            delay, following = following, delay + following
        # Past its ceiling the delay stays, so the rest need not be counted one by one.
        if policy.delay_function == "constant" or delay >= policy.max_delay:
            rest = policy.attempts - attempt - 1
            step = policy.delay if policy.delay_function == "constant" else policy.max_delay
            fitting = max(0, policy.interval - needed) // step if needed <= policy.interval else 0
            allowed += min(rest, fitting)
            needed += rest * step
            break
    if needed <= policy.interval:
        return []
    ceiling = (
        ""
        if policy.delay_function == "constant"
        else f", and delay ceiling {format_duration(policy.max_delay)}"
    )
    return [
        f"Nomad can only make {allowed} attempts in {format_duration(policy.interval)} with initial delay "
        f"{format_duration(policy.delay)}, delay function {go_quote(policy.delay_function)}{ceiling}",
        f"Set the interval to at least {format_duration(needed)} to accommodate {policy.attempts} attempts",
    ]


def _update_faults(update: UpdateStrategy) -> list[str]:
    faults: list[str] = []
    if update.health_check not in ("checks", "task_states", "manual"):
        faults.append(f"Invalid health check given: {go_quote(update.health_check)}")
    if update.max_parallel < 0:
        faults.append(f"Max parallel can not be less than zero: {update.max_parallel} < 0")
    if update.canary < 0:
        faults.append(f"Canary count can not be less than zero: {update.canary} < 0")
    if update.canary == 0 and update.auto_promote:
        faults.append("Auto Promote requires a Canary count greater than zero")
    healthy, deadline = update.min_healthy_time, update.healthy_deadline
    progress = update.progress_deadline
    if healthy < 0:
        faults.append(f"Minimum healthy time may not be less than zero: {format_duration(healthy)}")
    if deadline <= 0:
        faults.append(f"Healthy deadline must be greater than zero: {format_duration(deadline)}")
    if progress < 0:
        faults.append(f"Progress deadline must be zero or greater: {format_duration(progress)}")
    if healthy >= deadline:
        faults.append(
            "Minimum healthy time must be less than healthy deadline: "
            f"{format_duration(healthy)} > {format_duration(deadline)}"
        )
    if progress != 0 and deadline >= progress:
        faults.append(
            "Healthy deadline must be less than progress deadline: "
            f"{format_duration(deadline)} > {format_duration(progress)}"
        )
    if update.stagger <= 0:
        faults.append(f"Stagger must be greater than zero: {format_duration(update.stagger)}")
    return faults


def _migrate_faults(migrate: MigrateStrategy) -> list[str]:
    faults: list[str] = []
    if migrate.max_parallel < 0:
        faults.append(f"MaxParallel must be >= 0 but found {migrate.max_parallel}")
    if migrate.health_check == "" and migrate.max_parallel > 0:
        faults.append("Missing HealthCheck")
    elif migrate.health_check not in ("", "checks", "task_states"):
        faults.append(f"Invalid HealthCheck: {go_quote(migrate.health_check)}")
    if migrate.min_healthy_time < 0:
        faults.append(
            f"MinHealthyTime is {format_duration(migrate.min_healthy_time)} and must be >= 0"
        )
    if migrate.healthy_deadline < 0:
        faults.append(
            f"HealthyDeadline is {format_duration(migrate.healthy_deadline)} and must be >= 0"
        )
    if migrate.min_healthy_time > migrate.healthy_deadline:
        faults.append("MinHealthyTime must be less than HealthyDeadline")
    return faults


def _names(group: TaskGroup) -> list[str]:
    faults: list[str] = []
    seen: dict[str, int] = {}
    for number, task in enumerate(group.tasks or [], 1):
        if not task.name:
            faults.append(f"Task {number} missing name")
        elif task.name in seen:
            faults.append(f"Task {number} redefines '{task.name}' from task {seen[task.name]}")
        else:
            seen[task.name] = number
    if sum(task.leader for task in group.tasks or []) > 1:
        faults.append("Only one task may be marked as leader")
    return faults


def _tasks(group: TaskGroup, job_type: str) -> list[str]:
    faults: list[str] = []
    for task in group.tasks or []:
        for number, mount in enumerate(task.volume_mounts or []):
            if not mount.volume:
                faults.append(
                    f"Task {task.name} has a volume mount ({number}) referencing an empty volume"
                )
            elif mount.volume not in (group.volumes or {}):
                faults.append(
                    f"Task {task.name} has a volume mount ({number}) referencing undefined volume {mount.volume}"
                )
        faults += nested(f"Task {task.name} validation failed", task_faults(task, group, job_type))
    return faults


def _volume_faults(volume: VolumeRequest, group: TaskGroup) -> list[str]:
    faults: list[str] = []
    if not volume.source:
        faults.append("volume has an empty source")
    if volume.attachment_mode not in ("", *ATTACHMENTS):
        faults.append(f"invalid attachment mode: {go_quote(volume.attachment_mode)}")
    if volume.type == "host":
        if volume.access_mode not in ("", *HOST_ACCESS):
            faults.append(f"volume has an unknown access mode: {go_quote(volume.access_mode)}")
        if volume.mount_options is not None:
            faults.append("host volumes cannot have mount options")
        if volume.per_alloc and volume.sticky:
            faults.append("volume cannot be per_alloc and sticky")
    elif volume.type == "csi":
        faults += _csi_faults(volume, group)
    else:
        faults.append(f"volume has unrecognized type {volume.type}")
    canaries = group.update.canary if group.update else 0
    if volume.per_alloc and canaries > 0:
        faults.append("volume cannot be per_alloc when canaries are in use")
    return faults


def _csi_faults(volume: VolumeRequest, group: TaskGroup) -> list[str]:
    faults: list[str] = []
    if not volume.attachment_mode:
        faults.append("CSI volumes must have an attachment mode")
    if not volume.access_mode:
        faults.append("CSI volumes must have an access mode")
    elif volume.access_mode not in CSI_ACCESS:
        faults.append(f"volume has an unknown access mode: {go_quote(volume.access_mode)}")
    elif volume.access_mode.endswith("reader-only") and not volume.read_only:
        faults.append("volume with read-only access mode must be read-only")
    elif (
        volume.access_mode in ("single-node-writer", "multi-node-single-writer")
        and group.count > 1
        and not volume.per_alloc
        and not volume.read_only
    ):
        faults.append(
            "volume with single-writer access cannot be used by a group with count > 1 unless it is per_alloc"
        )
    return faults
