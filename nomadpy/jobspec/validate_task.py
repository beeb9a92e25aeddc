"""Rules for tasks and the blocks inside them."""

from __future__ import annotations

import posixpath

from nomadpy.jobspec.durations import format_duration, go_quote
from nomadpy.jobspec.faults import format_errors, nested
from nomadpy.jobspec.validate_placement import affinity_faults, constraint_faults
from nomadpy.jobspec.validate_service import task_service_faults
from nomadpy.models.job import TaskGroup
from nomadpy.models.resources import Resources
from nomadpy.models.task import Task
from nomadpy.models.task_blocks import LogConfig, TaskArtifact, Template, Vault, WorkloadIdentity

MIN_CPU_MHZ = 1
MIN_MEMORY_MB = 10
HOOKS = ("prestart", "poststart", "poststop")
PROPAGATION = ("private", "host-to-task", "bidirectional")
IDENTITY_CHANGE_MODES = ("", "noop", "restart", "signal")


def task_faults(task: Task, group: TaskGroup, job_type: str) -> list[str]:
    """Return what is wrong with a task of `group`."""
    faults = _shape(task)
    if task.resources is None:
        faults.append("Missing task resources")
    else:
        resource_faults = _resource_faults(task.resources)
        if resource_faults:
            faults.append(format_errors(resource_faults))
    disk_mb = group.ephemeral_disk.size_mb if group.ephemeral_disk else 0
    if task.log_config is None:
        faults.append("Missing Log Config")
    else:
        log_faults = _log_faults(task.log_config, disk_mb)
        if log_faults:
            faults.append(format_errors(log_faults))
    faults += _placement(task, job_type)
    service_faults = task_service_faults(task, group)
    if service_faults:
        faults.append(format_errors(service_faults))
    faults += _blocks(task)
    faults += _identity_faults(task)
    return faults


def _shape(task: Task) -> list[str]:
    faults: list[str] = []
    if not task.name:
        faults.append("Missing task name")
    elif "/" in task.name or "\\" in task.name:
        faults.append("Task name cannot include slashes")
    elif "\0" in task.name:
        faults.append("Task name cannot include null characters")
    elif task.name in ("alloc", ".", ".."):
        # A task's folder lies beside the allocation's shared one, which has this name.
        faults.append(f"Task name cannot be {go_quote(task.name)}")
    if not task.driver:
        faults.append("Missing task driver")
    if task.kill_timeout < 0:
        faults.append("KillTimeout must be a positive value")
    if task.shutdown_delay < 0:
        faults.append("ShutdownDelay must be a positive value")
    return faults


def _resource_faults(resources: Resources) -> list[str]:
    faults: list[str] = []
    if resources.cores > 0 and resources.cpu > 0:
        faults.append("Task can only ask for 'cpu' or 'cores' resource, not both.")
    least = _least_faults(resources)
    if least:
        faults.append(format_errors(least))
    if resources.disk_mb > 0:
        faults.append(
            "Task can't ask for disk resources, they have to be specified at the task group level."
        )
    for number, device in enumerate(resources.devices or [], 1):
        inner: list[str] = []
        if not device.name:
            inner.append(
                "device name must be given as one of the following: type, vendor/type, or vendor/type/name"
            )
        if device.count is None or device.count < 1:
            inner.append("device count must be at least 1")
        if device.share is not None:
            if not 1 <= device.share <= 1000:
                inner.append("device share must be 1 to 1000 thousandths of a device")
            elif device.count != 1:
                inner.append("device count must be 1 when a share of a device is asked for")
        for index, constraint in enumerate(device.constraints or [], 1):
            inner += nested(f"Constraint {index} validation failed", constraint_faults(constraint))
        for index, affinity in enumerate(device.affinities or [], 1):
            inner += nested(f"Affinity {index} validation failed", affinity_faults(affinity))
        faults += nested(f"device {number} failed validation", inner)
    faults += _numa_faults(resources)
    return faults


def _numa_faults(resources: Resources) -> list[str]:
    numa = resources.numa
    if numa is None:
        return []
    if numa.affinity not in ("none", "prefer", "require"):
        return ["numa affinity must be one of none, prefer, or require"]
    faults: list[str] = []
    if numa.devices and numa.affinity == "none":
        faults.append("numa affinity must be prefer or require when numa devices are named")
    asked = {device.name for device in resources.devices or []}
    faults += [
        f'numa device "{name}" is not one of the devices that the task asks for'
        for name in numa.devices or []
        if name not in asked
    ]
    return faults


def _least_faults(resources: Resources) -> list[str]:
    faults: list[str] = []
    if resources.cores < 0:
        faults.append(f"minimum Cores value is 0; got {resources.cores}")
    if resources.cores <= 0 and resources.cpu < MIN_CPU_MHZ:
        faults.append(f"minimum CPU value is {MIN_CPU_MHZ}; got {resources.cpu}")
    if resources.memory_mb < MIN_MEMORY_MB:
        faults.append(f"minimum MemoryMB value is {MIN_MEMORY_MB}; got {resources.memory_mb}")
    # -1 is "as much as the node has".
    if resources.memory_max_mb not in (0, -1) and resources.memory_max_mb < resources.memory_mb:
        faults.append(
            f"MemoryMaxMB value ({resources.memory_max_mb}) should be larger than MemoryMB value ({resources.memory_mb})"
        )
    if resources.secrets_mb < 0:
        faults.append(f"minimum SecretsMB value is 0; got {resources.secrets_mb}")
    return faults


def _log_faults(log: LogConfig, disk_mb: int) -> list[str]:
    faults: list[str] = []
    if log.max_files < 1:
        faults.append(f"minimum number of files is 1; got {log.max_files}")
    if log.max_file_size_mb < 1:
        faults.append(f"minimum file size is 1MB; got {log.max_file_size_mb}")
    total = log.max_files * log.max_file_size_mb
    if not log.disabled and disk_mb <= total:
        faults.append(
            f"log storage ({total} MB) must be less than requested disk capacity ({disk_mb} MB)"
        )
    return faults


def _placement(task: Task, job_type: str) -> list[str]:
    faults: list[str] = []
    for number, constraint in enumerate(task.constraints or [], 1):
        faults += nested(f"Constraint {number} validation failed", constraint_faults(constraint))
        if constraint.operand in ("distinct_hosts", "distinct_property"):
            faults.append(
                f"Constraint {number} has disallowed Operand at task level: {constraint.operand}"
            )
    if job_type == "system":
        if task.affinities:
            faults.append("System jobs may not have an affinity block")
        return faults
    for number, affinity in enumerate(task.affinities or [], 1):
        faults += nested(f"Affinity {number} validation failed", affinity_faults(affinity))
    return faults


def _blocks(task: Task) -> list[str]:
    faults: list[str] = []
    for number, artifact in enumerate(task.artifacts or [], 1):
        faults += nested(f"Artifact {number} validation failed", _artifact_faults(artifact))
    if task.vault is not None:
        faults += nested("Vault validation failed", _vault_faults(task.vault))
    written: dict[str, int] = {}
    for number, template in enumerate(task.templates or [], 1):
        faults += nested(f"Template {number} validation failed", _template_faults(template))
        destination = template.dest_path or ""
        if destination in written:
            faults.append(f"Template {number} has same destination as {written[destination]}")
        else:
            written[destination] = number
    payload = task.dispatch_payload
    if payload is not None and escapes(payload.file):
        faults += nested(
            "Dispatch Payload validation failed", ["destination escapes allocation directory"]
        )
    if task.lifecycle is not None and task.lifecycle.hook not in HOOKS:
        what = (
            "no lifecycle hook provided"
            if not task.lifecycle.hook
            else f"invalid hook: {task.lifecycle.hook}"
        )
        faults.append(f"Lifecycle validation failed: {what}")
    for number, mount in enumerate(task.volume_mounts or []):
        if mount.propagation_mode not in (None, "", *PROPAGATION):
            faults.append(
                f"Volume Mount ({number}) has an invalid propagation mode: {go_quote(mount.propagation_mode or '')}"
            )
    names: set[str] = set()
    for action in task.actions or []:
        if not action.name or not action.command:
            faults.append(f"Action {go_quote(action.name)} must have a name and a command")
        if action.name in names:
            faults.append(f"Action {go_quote(action.name)} is defined twice")
        names.add(action.name)
    return faults


def _artifact_faults(artifact: TaskArtifact) -> list[str]:
    faults: list[str] = []
    if not artifact.getter_source:
        faults.append("source must be specified")
    if artifact.getter_mode not in ("any", "file", "dir"):
        faults.append(
            f"invalid artifact mode {go_quote(artifact.getter_mode or '')}; must be one of: any, dir, file"
        )
    if escapes(artifact.relative_dest or ""):
        faults.append("destination escapes allocation directory")
    checksum = (artifact.getter_options or {}).get("checksum", "")
    if checksum and "${" not in checksum:
        faults += _checksum_faults(checksum)
    return faults


_DIGEST_LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


def _checksum_faults(checksum: str) -> list[str]:
    kind, colon, digest = checksum.strip().partition(":")
    if not colon:
        return [f'checksum must be given as "type:value"; got {go_quote(checksum)}']
    if kind == "file":
        return []
    length = _DIGEST_LENGTHS.get(kind)
    if length is None:
        return [f"unsupported checksum type: {kind}"]
    if len(digest) != length or set(digest.lower()) - set("0123456789abcdef"):
        return [f"invalid {kind} checksum: {digest}"]
    return []


def _vault_faults(vault: Vault) -> list[str]:
    faults: list[str] = []
    if "root" in (vault.policies or []):
        faults.append('Can not specify "root" policy')
    if vault.change_mode not in ("noop", "restart", "signal"):
        faults.append(f"Unknown change mode {go_quote(vault.change_mode or '')}")
    if vault.change_mode == "signal" and not vault.change_signal:
        faults.append('Signal must be specified when using change mode "signal"')
    return faults


def _template_faults(template: Template) -> list[str]:
    faults: list[str] = []
    if not template.source_path and not template.embedded_tmpl:
        faults.append("Must specify a source path or have an embedded template")
    if not template.dest_path:
        faults.append("Must specify a destination for the template")
    elif escapes(template.dest_path):
        faults.append("destination escapes allocation directory")
    if template.change_mode == "signal":
        if not template.change_signal:
            faults.append('Must specify signal value when change mode is "signal"')
        if template.envvars:
            faults.append("cannot use signals with env var templates")
    elif template.change_mode == "script":
        if template.change_script is None:
            faults.append(
                "must specify change script configuration value when change mode is script"
            )
        elif not template.change_script.command:
            faults.append("must specify script path value when change mode is script")
        if template.envvars:
            faults.append("cannot use scripts with env var templates")
    elif template.change_mode not in ("noop", "restart"):
        faults.append("invalid change mode: must be one of noop, restart, signal, script")
    if (template.splay or 0) < 0:
        faults.append("Must specify positive splay value")
    perms = template.perms or ""
    if perms and (len(perms) > 5 or set(perms) - set("01234567")):
        faults.append(
            f"Failed to parse {go_quote(perms)} as octal: strconv.ParseUint: parsing {go_quote(perms)}: invalid syntax"
        )
    wait = template.wait
    if wait is not None:
        if wait.min is not None and wait.max is not None and wait.min > wait.max:
            faults.append(
                f"wait min {format_duration(wait.min)} is greater than max {format_duration(wait.max)}"
            )
        if (wait.min or 0) < 0:
            faults.append("wait min can not be negative")
    return faults


def _identity_faults(task: Task) -> list[str]:
    faults: list[str] = []
    seen: set[str] = {"default"}
    for identity in task.identities or []:
        if identity.name in seen:
            faults.append(f"Identity {go_quote(identity.name)} is defined twice")
        seen.add(identity.name)
        faults += nested(
            f"Identity {go_quote(identity.name)} is invalid", _one_identity_faults(identity)
        )
    return faults


def _one_identity_faults(identity: WorkloadIdentity) -> list[str]:
    faults: list[str] = []
    if (
        not identity.name
        or not identity.name.replace("-", "").replace("_", "").isalnum()
        or len(identity.name) > 128
    ):
        faults.append(
            f"invalid name {go_quote(identity.name)}. Must match regex ^[a-zA-Z0-9_-]{{1,128}}$"
        )
    for number, audience in enumerate(identity.audience or [], 1):
        if not audience:
            faults.append(f"an empty string is an invalid audience ({number})")
    if identity.change_mode not in IDENTITY_CHANGE_MODES:
        faults.append(
            f"invalid change_mode {go_quote(identity.change_mode)}; must be one of noop, restart, signal"
        )
    if identity.change_mode == "signal" and not identity.change_signal:
        faults.append('change_signal must be specified when using change_mode "signal"')
    if identity.ttl < 0:
        faults.append(f"ttl must be >= 0: {format_duration(identity.ttl)}")
    if identity.filepath and escapes(identity.filepath):
        faults.append("filepath escapes allocation directory")
    return faults


def escapes(path: str) -> bool:
    """Whether a path below a task's directory would leave the allocation's directory, one level up.

    What is interpolated is known on the node only and checked again there.
    """
    # The task directory lies directly in the allocation directory.
    joined = posixpath.normpath(posixpath.join("task", path.lstrip("/")))
    return joined == ".." or joined.startswith("../")
