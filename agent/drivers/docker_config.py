"""Translate a task into the body of the Docker Engine's "create container" call; pure.

In:      the task, the operator's policy, and a function that resolves symbolic links of the host.
Out:     the JSON body, and the mapped ports.
Errors:  ConfigRefusedError names what the policy forbids or the config contradicts.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Any

import msgspec

from agent.drivers.base import DriverError, TaskConfig, TaskMount, TaskVolume
from agent.drivers.config_schema import decode, faults, seconds
from agent.drivers.docker_policy import (
    DEFAULT_CAPS,
    LABEL_PREFIX,
    DockerPolicy,
    DockerTaskConfig,
    LoggingConfig,
    Mount,
)
from nomadpy.models.resources import PortMapping

_MEGABYTE = 1024 * 1024
_MIN_CPU_SHARES = 2
_MAX_CPU_SHARES = 262144
# While no agent follows the log, the daemon's own files are all there is.
_DEFAULT_LOGGING = {"max-file": "2", "max-size": "20m"}
_READABLE_LOGGING = frozenset(("json-file", "local", "journald"))
_PROPAGATION = {"private": "rprivate", "host-to-task": "rslave", "bidirectional": "rshared"}
NVIDIA_DEVICES = "NVIDIA_VISIBLE_DEVICES"
ALLOC_DIR, TASK_DIR, SECRETS_DIR = "/alloc", "/local", "/secrets"


class ConfigRefusedError(DriverError):
    """The container cannot be made as asked."""

    code = "docker-config"


class ContainerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The body of the create call and what the driver needs to know of it.

    ports: label to port inside. logs_readable: whether the daemon can give the output back.
    """

    body: dict[str, Any]
    ports: dict[str, int]
    tty: bool
    logs_readable: bool


def config_faults(config: dict[str, Any]) -> list[str]:
    """Every fault that needs no knowledge of the node."""
    found = faults(config, DockerTaskConfig)
    if found:
        return found
    parsed = decode(config, DockerTaskConfig)
    if not parsed.image and not parsed.load:
        found.append("image must not be empty")
    if parsed.image_pull_timeout:
        try:
            seconds(parsed.image_pull_timeout, "image_pull_timeout")
        except ValueError as error:
            found.append(str(error))
    for mount in (*parsed.mount, *parsed.mounts):
        if mount.type not in ("bind", "volume", "tmpfs"):
            found.append(f"mount type {mount.type!r} is unknown; use bind, volume or tmpfs")
        if mount.type == "tmpfs" and mount.source:
            found.append(f"mount {mount.target}: tmpfs has no source")
        if mount.type == "bind" and not mount.source:
            found.append(f"mount {mount.target}: a bind needs a source")
    for volume in parsed.volumes:
        if not 2 <= len(volume.split(":")) <= 3:
            found.append(f"volume {volume!r} must be HOST:CONTAINER or HOST:CONTAINER:MODE")
    for name, value in parsed.ulimit.items():
        if not all(part.lstrip("-").isdecimal() for part in value.split(":")[:2]):
            found.append(f"ulimit {name}={value!r} must be SOFT or SOFT:HARD")
    if parsed.ports and parsed.port_map:
        found.append("only one of ports and port_map may be set")
    return found


def container_spec(
    task: TaskConfig,
    policy: DockerPolicy,
    *,
    image: str,
    core_mhz: float = 0.0,
    resolve: Callable[[str], str] = posixpath.normpath,
) -> ContainerSpec:
    """Return what to create. image: the id of the image that is there. core_mhz: needed for cpu_hard_limit.

    Raises ConfigRefusedError; ValueError when `config_faults` was not asked first.
    """
    config = decode(task.config, DockerTaskConfig)
    _check_policy(config, policy)
    mapped = _mapped_ports(config, task)
    network = config.network_mode or "bridge"
    publishes = network not in ("host", "none") and not network.startswith("container:")
    logging = _logging(config, policy)
    host: dict[str, Any] = {
        "Binds": _binds(config, task, policy, resolve),
        "Mounts": _mounts(config, task, policy, resolve),
        "NetworkMode": network,
        "LogConfig": {"Type": logging.type, "Config": logging.config},
        "RestartPolicy": {"Name": ""},
        **_limits(config, task, policy, core_mhz),
        **_isolation(config, task, policy),
    }
    inside = sorted(set(mapped.values()))
    if publishes:
        host["PortBindings"] = _port_bindings(task, mapped)
    _drop_empty(host)
    body: dict[str, Any] = {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in sorted(_environment(task).items())],
        "Labels": {**_labels(task), **config.labels},
        "User": task.user,
        "WorkingDir": config.work_dir,
        "Hostname": config.hostname,
        "MacAddress": config.mac_address,
        "Tty": config.tty,
        "OpenStdin": config.interactive,
        "Entrypoint": config.entrypoint,
        "Cmd": [config.command, *config.args] if config.command else config.args,
        "ExposedPorts": {f"{port}/{kind}": {} for port in inside for kind in ("tcp", "udp")}
        if publishes
        else {},
        "HostConfig": host,
    }
    if config.healthchecks.disable:
        body["Healthcheck"] = {"Test": ["NONE"]}
    endpoint = _endpoint(config)
    if endpoint:
        body["NetworkingConfig"] = {"EndpointsConfig": {network: endpoint}}
    _drop_empty(body)
    return ContainerSpec(
        body=body,
        ports=mapped,
        tty=config.tty,
        logs_readable=logging.type in _READABLE_LOGGING,
    )


def container_name(task: TaskConfig) -> str:
    """`<task>-<allocation>`, as Nomad names its containers."""
    return f"{task.task}-{task.alloc_id}"


def is_ours(labels: dict[str, str] | None, task: TaskConfig) -> bool:
    """Whether a container with these labels was made for this very task."""
    named = (labels or {}).get(f"{LABEL_PREFIX}task_name")
    return is_of(labels, task.alloc_id) and named == task.task


def is_of(labels: dict[str, str] | None, alloc_id: str) -> bool:
    """Whether a container with these labels was made for a task of this allocation."""
    return (labels or {}).get(f"{LABEL_PREFIX}alloc_id") == alloc_id


def _check_policy(config: DockerTaskConfig, policy: DockerPolicy) -> None:
    """Refuse what reaches out of the container and is not allowed."""
    if config.privileged and not policy.allow_privileged:
        raise ConfigRefusedError("Docker privileged mode is disabled on this Nomad agent")
    if config.devices and not policy.allow_privileged:
        raise ConfigRefusedError("devices of the host need allow_privileged in the docker plugin")
    for option in config.security_opt:
        if option.endswith("unconfined") and not policy.allow_privileged:
            raise ConfigRefusedError(f"security_opt {option!r} needs allow_privileged")
    if config.runtime and config.runtime not in policy.allow_runtimes:
        allowed = ", ".join(policy.allow_runtimes)
        raise ConfigRefusedError(f"requested runtime {config.runtime!r} is not allowed: {allowed}")
    modes = (
        ("pid_mode", config.pid_mode, policy.allowed_modes.pid, ("", "private")),
        (
            "ipc_mode",
            config.ipc_mode,
            policy.allowed_modes.ipc,
            ("", "private", "shareable", "none"),
        ),
        ("userns_mode", config.userns_mode, policy.allowed_modes.userns, ("",)),
        ("uts_mode", config.uts_mode, policy.allowed_modes.uts, ("", "private")),
    )
    for name, value, allowed_values, harmless in modes:
        if value not in harmless and value not in allowed_values and not policy.allow_privileged:
            raise ConfigRefusedError(f"{name} {value!r} is not in the plugin's allowed_modes")


def _isolation(config: DockerTaskConfig, task: TaskConfig, policy: DockerPolicy) -> dict[str, Any]:
    result: dict[str, Any] = {
        "Privileged": config.privileged,
        "ReadonlyRootfs": config.readonly_rootfs,
        "Init": config.init,
        "Runtime": config.runtime,
        "SecurityOpt": config.security_opt,
        "PidMode": "" if config.pid_mode == "private" else config.pid_mode,
        "IpcMode": config.ipc_mode,
        "UsernsMode": config.userns_mode,
        "UTSMode": "" if config.uts_mode == "private" else config.uts_mode,
        "CgroupnsMode": config.cgroupns,
        "Dns": config.dns_servers,
        "DnsSearch": config.dns_search_domains,
        "DnsOptions": config.dns_options,
        "ExtraHosts": config.extra_hosts,
        "GroupAdd": config.group_add,
        "Sysctls": config.sysctl,
        "StorageOpt": config.storage_opt,
        "ShmSize": config.shm_size,
        "Tmpfs": dict(_path_and_options(entry) for entry in config.tmpfs),
        "VolumeDriver": config.volume_driver,
        "Ulimits": [_ulimit(name, value) for name, value in config.ulimit.items()],
        "Devices": [
            {
                "PathOnHost": device.host_path,
                "PathInContainer": device.container_path or device.host_path,
                "CgroupPermissions": device.cgroup_permissions,
            }
            for device in config.devices
        ]
        + [
            {
                "PathOnHost": device.host_path,
                "PathInContainer": device.task_path,
                "CgroupPermissions": device.permissions,
            }
            for device in task.devices
        ],
    }
    if NVIDIA_DEVICES in task.device_env and not config.runtime:
        # NVIDIA's runtime reads the variable, and brings devices and libraries into the container.
        result["Runtime"] = policy.nvidia_runtime
    if not config.privileged:
        result["CapDrop"] = ["ALL"]
        result["CapAdd"] = _capabilities(config, policy)
    return result


def _capabilities(config: DockerTaskConfig, policy: DockerPolicy) -> list[str]:
    """All that the container may have: the usual set where allowed, less cap_drop, plus cap_add."""
    allowed = {_cap(name) for name in policy.allow_caps}
    added = [_cap(name) for name in config.cap_add]
    dropped = {_cap(name) for name in config.cap_drop}
    refused = sorted(name for name in added if name not in allowed and "all" not in allowed)
    if refused:
        raise ConfigRefusedError(
            f"driver does not have the following capabilities configured: [{', '.join(refused)}]"
        )
    base = {name for name in DEFAULT_CAPS if name in allowed or "all" in allowed}
    kept = set() if "all" in dropped else base - dropped
    return sorted(name.upper() for name in kept | set(added))


def _limits(
    config: DockerTaskConfig, task: TaskConfig, policy: DockerPolicy, core_mhz: float
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "PidsLimit": config.pids_limit or policy.pids_limit,
        "OomScoreAdj": policy.oom_score_adj
        if config.oom_score_adj is None
        else config.oom_score_adj,
        "CpusetCpus": config.cpuset_cpus,
    }
    if policy.pids_limit and config.pids_limit > policy.pids_limit:
        raise ConfigRefusedError(f"pids_limit cannot be greater than {policy.pids_limit}")
    if task.resources is None:
        return result
    memory, cpu = task.resources.memory, task.resources.cpu
    most_mb = max(config.memory_hard_limit, memory.memory_max_mb, 0)
    if most_mb > memory.memory_mb:
        result["Memory"] = most_mb * _MEGABYTE
        result["MemoryReservation"] = memory.memory_mb * _MEGABYTE
    else:
        result["Memory"] = memory.memory_mb * _MEGABYTE
    # Equal limits mean no swap: memory that was promised must be memory.
    result["MemorySwap"] = result["Memory"]
    result["CpuShares"] = min(max(cpu.cpu_shares, _MIN_CPU_SHARES), _MAX_CPU_SHARES)
    if cpu.reserved_cores and not config.cpuset_cpus:
        result["CpusetCpus"] = ",".join(str(core) for core in cpu.reserved_cores)
    if config.cpu_hard_limit:
        if core_mhz <= 0:
            raise ConfigRefusedError("cpu_hard_limit needs the speed of a core, which is unknown")
        period = config.cpu_cfs_period
        if not 1000 <= period <= 1_000_000:
            raise ConfigRefusedError(f"cpu_cfs_period {period} is not within 1000 and 1000000")
        result["CpuPeriod"] = period
        result["CpuQuota"] = max(1000, int(period * cpu.cpu_shares / core_mhz))
    return result


def _mapped_ports(config: DockerTaskConfig, task: TaskConfig) -> dict[str, int]:
    known = {port.label: port for port in _task_ports(task)}
    for label in (*config.ports, *config.port_map):
        if label not in known:
            raise ConfigRefusedError(f"Port {label!r} not found, check network block")
    if config.ports:
        return {label: known[label].to or known[label].value for label in config.ports}
    if config.port_map:
        return {
            label: config.port_map.get(label, port.to or port.value)
            for label, port in known.items()
        }
    own = {p.label for p in _task_network_ports(task)}
    return {label: port.to or port.value for label, port in known.items() if label in own}


def _task_ports(task: TaskConfig) -> list[PortMapping]:
    return [*task.ports, *_task_network_ports(task)]


def _task_network_ports(task: TaskConfig) -> list[PortMapping]:
    """Ports of a network block inside the task, the old place for it."""
    networks = (task.resources.networks if task.resources else None) or []
    return [
        PortMapping(label=port.label, value=port.value, to=port.to, host_ip=network.ip)
        for network in networks
        for port in (*(network.reserved_ports or ()), *(network.dynamic_ports or ()))
    ]


def _port_bindings(task: TaskConfig, mapped: dict[str, int]) -> dict[str, list[dict[str, str]]]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in _task_ports(task):
        if port.label not in mapped:
            continue
        for kind in ("tcp", "udp"):
            bindings.setdefault(f"{mapped[port.label]}/{kind}", []).append(
                {"HostIp": port.host_ip, "HostPort": str(port.value)}
            )
    return bindings


def _binds(
    config: DockerTaskConfig,
    task: TaskConfig,
    policy: DockerPolicy,
    resolve: Callable[[str], str],
) -> list[str]:
    label = policy.volumes.selinuxlabel
    standard = (
        (task.paths.alloc, ALLOC_DIR),
        (task.paths.local, TASK_DIR),
        (task.paths.secrets, SECRETS_DIR),
    )
    binds = []
    for source, target in standard:
        if ":" in source:
            raise ConfigRefusedError(f"a colon in {source!r} cannot be mounted")
        binds.append(f"{source}:{target}" + (f":{label}" if label else ""))
    for volume in config.volumes:
        source, target, *mode = volume.split(":")
        if config.volume_driver and not source.startswith("/"):
            if not policy.volumes.enabled:
                raise ConfigRefusedError("volumes are not enabled; cannot use volume driver")
        else:
            source = _host_path(source, task, policy, resolve)
        options = [*mode, *([label] if label and not mode else [])]
        binds.append(":".join([source, _target(target), *options]))
    return binds + [
        _labelled_bind(v, task, label) for v in task.volumes if v.selinux_label or label
    ]


def _labelled_bind(volume: TaskVolume, task: TaskConfig, label: str) -> str:
    """A volume as a bind: only this form can say which SELinux label the directory is to get."""
    target = _volume_target(volume, task)
    for path in (volume.path, target):
        if ":" in path:
            raise ConfigRefusedError(f"a colon in {path!r} cannot be mounted")
    options = [
        "ro" if volume.read_only else "rw",
        _PROPAGATION[volume.propagation],
        volume.selinux_label or label,
    ]
    return f"{volume.path}:{target}:{','.join(options)}"


def _volume_mount(volume: TaskVolume, task: TaskConfig) -> dict[str, Any]:
    """A volume of the node. The operator offers it by name, so it needs no volumes.enabled."""
    return {
        "Type": "bind",
        "Source": volume.path,
        "Target": _volume_target(volume, task),
        "ReadOnly": volume.read_only,
        "BindOptions": {"Propagation": _PROPAGATION[volume.propagation]},
    }


def _volume_target(volume: TaskVolume, task: TaskConfig) -> str:
    """Where it is inside the container; a destination within the task's own folders has host paths so far."""
    return _target(posixpath.normpath(_translated(volume.target, task)))


def _mounts(
    config: DockerTaskConfig,
    task: TaskConfig,
    policy: DockerPolicy,
    resolve: Callable[[str], str],
) -> list[dict[str, Any]]:
    labelled = bool(policy.volumes.selinuxlabel)
    return [
        *(_mount(m, task, policy, resolve) for m in (*config.mount, *config.mounts)),
        *(_volume_mount(v, task) for v in task.volumes if not (v.selinux_label or labelled)),
        *(_given_mount(m) for m in task.mounts),
    ]


def _given_mount(mount: TaskMount) -> dict[str, Any]:
    """What a device needs inside, e.g. its libraries; the operator's plugin says so, which needs no volumes.enabled."""
    result: dict[str, Any] = {
        "Type": "bind",
        "Source": mount.host_path,
        "Target": _target(mount.task_path),
        "ReadOnly": mount.read_only,
    }
    if mount.propagation:
        result["BindOptions"] = {"Propagation": mount.propagation}
    return result


def _mount(
    mount: Mount, task: TaskConfig, policy: DockerPolicy, resolve: Callable[[str], str]
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "Type": mount.type,
        "Target": _target(mount.target),
        "ReadOnly": mount.readonly,
    }
    if mount.type == "bind":
        result["Source"] = _host_path(mount.source, task, policy, resolve)
        if mount.bind_options.propagation:
            result["BindOptions"] = {"Propagation": mount.bind_options.propagation}
    elif mount.type == "tmpfs":
        options = mount.tmpfs_options
        result["TmpfsOptions"] = {"SizeBytes": options.size, "Mode": options.mode}
        _drop_empty(result["TmpfsOptions"])
    else:
        if not policy.volumes.enabled:
            raise ConfigRefusedError("volumes are not enabled; cannot mount volume")
        volume = mount.volume_options
        result["Source"] = mount.source
        result["VolumeOptions"] = {"NoCopy": volume.no_copy, "Labels": volume.labels}
        if volume.driver_config.name:
            driver = volume.driver_config
            result["VolumeOptions"]["DriverConfig"] = {
                "Name": driver.name,
                "Options": driver.options,
            }
    return result


def _host_path(
    source: str, task: TaskConfig, policy: DockerPolicy, resolve: Callable[[str], str]
) -> str:
    """An absolute source; outside the allocation's directory only when volumes are enabled."""
    path = posixpath.normpath(posixpath.join(task.paths.task, source))
    root = posixpath.dirname(posixpath.normpath(task.paths.alloc))
    real, real_root = resolve(path), resolve(root)
    if not policy.volumes.enabled and not f"{real}/".startswith(f"{real_root}/"):
        raise ConfigRefusedError(
            f"volumes are not enabled; cannot mount host path {source!r} outside the allocation"
        )
    return real


def _target(target: str) -> str:
    return target if target.startswith("/") else posixpath.join("/", target)


def _environment(task: TaskConfig) -> dict[str, str]:
    """The task's environment with the container's view of its folders."""
    return {
        **{name: _translated(value, task) for name, value in task.env.items()},
        "NOMAD_ALLOC_DIR": ALLOC_DIR,
        "NOMAD_TASK_DIR": TASK_DIR,
        "NOMAD_SECRETS_DIR": SECRETS_DIR,
    }


def _translated(value: str, task: TaskConfig) -> str:
    """A host path within the task's folders as the container sees it; anything else as it is."""
    inside = {
        task.paths.alloc: ALLOC_DIR,
        task.paths.local: TASK_DIR,
        task.paths.secrets: SECRETS_DIR,
    }
    for host_path, container_path in inside.items():
        if value == host_path or value.startswith(f"{host_path}/"):
            return container_path + value[len(host_path) :]
    return value


def _labels(task: TaskConfig) -> dict[str, str]:
    values = {
        "alloc_id": task.alloc_id,
        "job_id": task.job_id,
        "job_name": task.env.get("NOMAD_JOB_NAME", task.job_id),
        "namespace": task.namespace,
        "node_id": task.node_id,
        "node_name": task.node_name,
        "task_group_name": task.group,
        "task_name": task.task,
    }
    return {LABEL_PREFIX + name: value for name, value in values.items()}


def _logging(config: DockerTaskConfig, policy: DockerPolicy) -> LoggingConfig:
    asked = config.logging or policy.logging
    kind = asked.type or asked.driver
    if kind:
        return LoggingConfig(type=kind, config=asked.config)
    return LoggingConfig(type="json-file", config={**_DEFAULT_LOGGING, **asked.config})


def _endpoint(config: DockerTaskConfig) -> dict[str, Any]:
    result: dict[str, Any] = {"Aliases": config.network_aliases}
    addresses = {"IPv4Address": config.ipv4_address, "IPv6Address": config.ipv6_address}
    _drop_empty(addresses)
    result["IPAMConfig"] = addresses
    _drop_empty(result)
    return result


def _ulimit(name: str, value: str) -> dict[str, Any]:
    soft, _, hard = value.partition(":")
    return {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}


def _path_and_options(entry: str) -> tuple[str, str]:
    path, _, options = entry.partition(":")
    return path, options


def _cap(name: str) -> str:
    return name.lower().removeprefix("cap_")


def _drop_empty(values: dict[str, Any]) -> None:
    """Let the daemon's defaults hold where nothing was said."""
    for name in [name for name, value in values.items() if value in ("", None, [], {}, 0)]:
        del values[name]
