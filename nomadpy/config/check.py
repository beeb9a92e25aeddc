"""Whether settings make sense together, and whether the network they open is protected."""

from __future__ import annotations

from nomadpy.config.addresses import is_loopback, listen_addresses, split_host_port
from nomadpy.config.devices import device_faults, plugin_faults
from nomadpy.config.keyring import keyring_faults
from nomadpy.config.model import Config
from nomadpy.errors import ConfigError
from nomadpy.hcl.source import did_you_mean
from nomadpy.models.operator import SCHEDULER_ALGORITHMS

LOG_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "OFF")
PRIORITY_CAP = 32_766
SNAPSHOT_INTERVAL_MIN = 1_000_000_000


def check(config: Config) -> None:
    """Raise ConfigError that lists everything wrong with the configuration, each with file and line where known."""
    faults = _mode(config) + _names(config) + _server(config) + _client(config) + _ports(config)
    faults += keyring_faults(config) + _snapshot_agent(config)
    if len(faults) == 1:
        raise ConfigError(faults[0])
    if faults:
        raise ConfigError(
            "the configuration has these faults:\n" + "\n".join(f"  - {fault}" for fault in faults)
        )


def _snapshot_agent(config: Config) -> list[str]:
    if "snapshot_agent" not in config.origins:
        return []
    said, faults = config.snapshot_agent, []
    if not said.local_storage.path:
        faults.append(
            f'{config.origin("snapshot_agent")}snapshot_agent says not where: local_storage {{ path = "/a/folder" }}'
        )
    elif not said.local_storage.path.startswith("/"):
        faults.append(
            f"{config.origin('snapshot_agent.local_storage.path')}snapshot_agent.local_storage.path is "
            f"{said.local_storage.path!r}, which is not an absolute path"
        )
    if said.interval < SNAPSHOT_INTERVAL_MIN:
        faults.append(
            f"{config.origin('snapshot_agent.interval')}snapshot_agent.interval is less than a second"
        )
    if said.retain < 1:
        faults.append(
            f"{config.origin('snapshot_agent.retain')}snapshot_agent.retain must be at least 1"
        )
    if not said.prefix or "/" in said.prefix:
        faults.append(
            f"{config.origin('snapshot_agent.prefix')}snapshot_agent.prefix {said.prefix!r} cannot begin a file's name"
        )
    return faults


def check_tls(config: Config) -> list[str]:
    """Return warnings about the protection of what this node opens to the network.

    Raises ConfigError when a service would be reachable from other machines without TLS, or TLS lacks a file.
    """
    faults: list[str] = []
    exposed = [
        (service, address)
        for service, protected in (("http", config.tls.http), ("rpc", config.tls.rpc))
        for address in listen_addresses_for(config, service)
        if not protected and not _local(address)
    ]
    if exposed:
        places = ", ".join(f"{service} on {address}" for service, address in exposed)
        origin = config.origin("bind_addr")
        raise ConfigError(
            f"{origin}{places} would be reachable from other machines without TLS. Either keep to this machine "
            '(bind_addr = "127.0.0.1"), or give this node certificates:\n'
            "  nomadpy tls ca create\n"
            f"  nomadpy tls cert create -{_role(config)} -region {config.region}\n"
            "and name the files in the configuration:\n"
            '  tls { rpc = true  http = true  ca_file = "..."  cert_file = "..."  key_file = "..." }'
        )
    if config.tls.rpc or config.tls.http:
        faults += [
            f"tls.{name} is missing, and TLS is on"
            for name in ("ca_file", "cert_file", "key_file")
            if not getattr(config.tls, name)
        ]
    if config.tls.tls_min_version.lower() not in ("tls12", "tls13"):
        faults.append(
            f'{config.origin("tls.tls_min_version")}tls.tls_min_version must be "tls12" or "tls13", '
            f"not {config.tls.tls_min_version!r}"
        )
    if faults:
        raise ConfigError("\n".join(faults))
    return _tls_warnings(config)


def listen_addresses_for(config: Config, service: str) -> list[str]:
    """Where a service listens, with address templates taken as reachable from outside."""
    said = getattr(config.addresses, service) or config.bind_addr
    if "{{" in said:
        return [said]
    return listen_addresses(config, "http" if service == "http" else "rpc")


def _tls_warnings(config: Config) -> list[str]:
    warnings: list[str] = []
    if not (config.tls.rpc and config.tls.http) and not config.dev_mode:
        warnings.append(
            "without TLS this node is for this machine only: other machines cannot reach it"
        )
    if config.tls.http and not config.tls.verify_https_client and not config.acl.enabled:
        warnings.append(
            "tls.verify_https_client is off: whoever reaches the HTTP address may use it without a certificate"
        )
    if config.tls.rpc_upgrade_mode:
        warnings.append(
            "tls.rpc_upgrade_mode has no effect: rpc without TLS is never accepted beside rpc with TLS"
        )
    return warnings


def _role(config: Config) -> str:
    return "server" if config.server.enabled or not config.client.enabled else "client"


def _local(address: str) -> bool:
    return address.startswith("unix://") or is_loopback(split_host_port(address)[0])


def _mode(config: Config) -> list[str]:
    faults: list[str] = []
    if not (config.server.enabled or config.client.enabled):
        faults.append(
            "Must specify either server, client or dev mode for the agent: server { enabled = true }, "
            "client { enabled = true }, or -dev"
        )
    if not config.dev_mode:
        if not config.data_dir:
            faults.append(
                'Must specify "data_dir": the directory that holds what must survive a restart'
            )
        elif not config.data_dir.startswith("/"):
            faults.append(
                f"{config.origin('data_dir')}data_dir must be given as an absolute path, not {config.data_dir!r}"
            )
    if config.server.bootstrap_expect and not config.server.enabled:
        faults.append(
            f"{config.origin('server.bootstrap_expect')}bootstrap_expect requires server mode to be enabled"
        )
    return faults


def _names(config: Config) -> list[str]:
    faults: list[str] = []
    if not config.region or any(char in config.region for char in "/\0 \t\n"):
        faults.append(
            f"{config.origin('region')}region must be a name without slashes and spaces, not {config.region!r}"
        )
    if (
        not config.datacenter
        or "*" in config.datacenter
        or any(c in config.datacenter for c in "\0 \t\n")
    ):
        faults.append(
            f"{config.origin('datacenter')}datacenter must be a name without spaces and '*', not {config.datacenter!r}"
        )
    if any(char in config.name for char in "\0 \t\n/"):
        faults.append(
            f"{config.origin('name')}name must not hold spaces or slashes: {config.name!r}"
        )
    if config.log_level.upper() not in LOG_LEVELS:
        hint = did_you_mean(config.log_level, [level.lower() for level in LOG_LEVELS])
        faults.append(
            f"{config.origin('log_level')}log_level {config.log_level!r} is not one of {', '.join(LOG_LEVELS)}. {hint}".rstrip()
        )
    if config.client.node_pool == "all" or not config.client.node_pool:
        faults.append(
            f"{config.origin('client.node_pool')}client.node_pool must be a node pool other than 'all'"
        )
    return faults


def _server(config: Config) -> list[str]:
    server = config.server
    faults: list[str] = []

    def refuse(name: str, what: str) -> None:
        faults.append(f"{config.origin(f'server.{name}')}server.{name} {what}")

    if server.bootstrap_expect < 0:
        refuse("bootstrap_expect", "must not be negative")
    if not 1 <= server.job_max_priority <= PRIORITY_CAP:
        refuse("job_max_priority", f"must be between 1 and {PRIORITY_CAP}")
    elif not 1 <= server.job_default_priority <= server.job_max_priority:
        refuse(
            "job_default_priority",
            f"must be between 1 and job_max_priority ({server.job_max_priority})",
        )
    if not 1 <= server.raft_multiplier <= 10:
        refuse("raft_multiplier", "must be between 1 and 10")
    if server.num_schedulers < 0:
        refuse("num_schedulers", "must not be negative")
    if server.event_buffer_size < 0:
        refuse("event_buffer_size", "must not be negative")
    if server.job_tracked_versions < 1:
        refuse("job_tracked_versions", "must be at least 1")
    if server.max_heartbeats_per_second <= 0:
        refuse("max_heartbeats_per_second", "must be above zero")
    for name in ("heartbeat_grace", "min_heartbeat_ttl", "failover_heartbeat_ttl"):
        if getattr(server, name) <= 0:
            refuse(name, "must be above zero")
    if server.task_certificate_ttl < 10_000_000_000:
        refuse("task_certificate_ttl", "must be at least 10s, so that it can be renewed in time")
    for kind in server.enabled_schedulers:
        if kind not in ("service", "batch", "system", "sysbatch", "_core"):
            refuse(
                "enabled_schedulers", f"names {kind!r}; known are service, batch, system, sysbatch"
            )
    if server.fair_share.mode not in ("weighted", "dominant", "priority"):
        refuse(
            "fair_share.mode",
            f"must be weighted, dominant or priority, not {server.fair_share.mode!r}",
        )
    for namespace, share in server.fair_share.namespace.items():
        if not 0 < share.weight < float("inf"):
            refuse(f"fair_share.namespace.{namespace}.weight", "must be above zero")
    tracker = server.plan_rejection_tracker
    if tracker.enabled and (tracker.node_threshold <= 0 or tracker.node_window <= 0):
        refuse("plan_rejection_tracker", "needs a node_threshold and a node_window above zero")
    algorithm = server.default_scheduler_config.scheduler_algorithm
    if algorithm not in SCHEDULER_ALGORITHMS:
        refuse(
            "default_scheduler_config.scheduler_algorithm",
            f"must be one of {', '.join(SCHEDULER_ALGORITHMS)}, not {algorithm!r}",
        )
    return faults


def _client(config: Config) -> list[str]:
    client = config.client
    faults: list[str] = []

    def refuse(name: str, what: str) -> None:
        faults.append(f"{config.origin(f'client.{name}')}client.{name} {what}")

    if not 0 < client.min_dynamic_port <= client.max_dynamic_port < 65536:
        refuse(
            "min_dynamic_port", "and max_dynamic_port must be ports, the first not above the second"
        )
    for name in (
        "cpu_total_compute",
        "memory_total_mb",
        "disk_total_mb",
        "disk_free_mb",
        "gc_max_allocs",
    ):
        if getattr(client, name) < 0:
            refuse(name, "must not be negative")
    if client.gc_parallel_destroys < 1:
        refuse("gc_parallel_destroys", "must be at least 1")
    for label, volume in client.host_volume.items():
        if not volume.path.startswith("/"):
            refuse(f"host_volume.{label}", f"needs an absolute path, not {volume.path!r}")
    for label, device in client.device.items():
        for fault in device_faults(label, device):
            refuse(f"device.{label}", fault)
    for label, plugin in client.device_plugin.items():
        for fault in plugin_faults(plugin):
            refuse(f"device_plugin.{label}", fault)
    faults += [
        f"{config.origin('client.reserved.reserved_ports')}client.reserved.reserved_ports: {fault}"
        for fault in reserved_port_faults(client.reserved.reserved_ports)
    ]
    return faults


def reserved_ports(text: str) -> list[int]:
    """Return the ports of "22,80,8000-8010", sorted. Raises ConfigError."""
    faults = reserved_port_faults(text)
    if faults:
        raise ConfigError(f"reserved ports {text!r}: {faults[0]}")
    out: set[int] = set()
    for part in text.replace(" ", "").split(","):
        if part:
            first, _, last = part.partition("-")
            out.update(range(int(first), int(last or first) + 1))
    return sorted(out)


def reserved_port_faults(text: str) -> list[str]:
    """Return what is wrong with a list of ports."""
    faults: list[str] = []
    for part in text.replace(" ", "").split(","):
        ends = part.split("-")
        if not part:
            continue
        if len(ends) > 2 or not all(
            end.isascii() and end.isdigit() and len(end) < 6 for end in ends
        ):
            faults.append(f"{part!r} is no port and no range")
        elif not 0 < int(ends[0]) <= int(ends[-1]) < 65536:
            faults.append(f"{part!r} is not within 1-65535, or ends before it begins")
    return faults


def _ports(config: Config) -> list[str]:
    faults: list[str] = []
    for name in ("http", "rpc", "serf"):
        port = getattr(config.ports, name)
        if not 0 <= port < 65536:
            faults.append(
                f"{config.origin(f'ports.{name}')}ports.{name} must be between 0 and 65535, not {port}"
            )
    if config.ports.http == config.ports.rpc != 0:
        faults.append(
            f"{config.origin('ports.rpc')}ports.http and ports.rpc are both {config.ports.rpc}"
        )
    return faults
