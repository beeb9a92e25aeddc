"""What a node shows of itself in /v1/agent/self: its configuration in Go's spelling, and figures as text. No secrets.

Configuration is shown by lists of names: a setting that nobody has listed is not shown. What operators may write freely
(plugin settings, options, metadata, headers) passes through `without_secrets`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from nomadpy import __version__
from nomadpy.config.addresses import split_host_port
from nomadpy.config.model import Config
from nomadpy.daemon.settings import NOMAD_COMPATIBLE, with_port
from nomadpy.hcl.durations import format_duration

REDACTED = "<redacted>"

_SECRET_NAME = re.compile(
    r"token|secret|passw|passphrase|credential|auth|encrypt|private|cookie|session|(^|[^a-z])key|api_?key|access_?key",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"(?<=://)[^/@\s]*@")
_GO_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_CLIENT = """Enabled StateDir AllocDir AllocMountsDir HostVolumesDir HostVolumePluginDir Servers NodeClass NodePool
NetworkInterface PreferredAddressFamily NetworkSpeed CpuDisableDmidecode DiskTotalMB DiskFreeMB ReservableCores ClientMaxPort
ClientMinPort MaxDynamicPort MinDynamicPort GCInterval GCParallelDestroys GCDiskUsageThreshold GCInodeUsageThreshold
GCMaxAllocs GCVolumesOnNodeGC NoHostUUID DisableRemoteExec CNIPath CNIConfigDir BridgeNetworkName BridgeNetworkSubnet
BridgeNetworkHairpinMode BindWildcardDefaultHostNetwork CgroupParent NomadServiceDiscovery NodeMaxAllocs CommonPluginDir
DefaultIneligible LogFile"""
_SERVER = """Enabled AuthoritativeRegion BootstrapExpect DataDir RaftProtocol RaftMultiplier NumSchedulers EnabledSchedulers
HeartbeatGrace MinHeartbeatTTL MaxHeartbeatsPerSecond FailoverHeartbeatTTL RejoinAfterLeave NonVotingServer RedundancyZone
UpgradeVersion PlanApplyPipeline EnableEventBroker EventBufferSize RaftSnapshotThreshold RaftTrailingLogs JobDefaultPriority
JobMaxPriority JobMaxCount JobMaxSourceSize JobTrackedVersions OIDCIssuer LogFile NonProduction LicensePath"""
_SERVER_TIMES = """NodeGCThreshold JobGCInterval JobGCThreshold EvalGCThreshold BatchEvalGCThreshold DeploymentGCThreshold
CSIVolumeClaimGCInterval CSIVolumeClaimGCThreshold CSIPluginGCThreshold ACLTokenGCThreshold RootKeyGCInterval
RootKeyGCThreshold RootKeyRotationThreshold StartTimeout"""
_TELEMETRY = """PrometheusMetrics DisableHostname UseNodeName PublishAllocationMetrics PublishNodeMetrics
IncludeAllocMetadataInMetrics AllowedMetadataKeysInMetrics PrefixFilter FilterDefault DisableDispatchedJobSummaryMetrics
DisableQuotaUtilizationMetrics DisableRPCRateMetricsLabels DisableAllocationHookMetrics"""


def shown_config(config: Config, http: str, rpc: str) -> dict[str, Any]:
    """The effective configuration, its first key ACL as in Nomad; http, rpc: as advertised."""
    tls, telemetry, limits = config.tls, config.telemetry, config.limits
    return {
        "ACL": _acl(config),
        "Addresses": {
            name: getattr(config.addresses, name.lower()) or config.bind_addr
            for name in ("HTTP", "RPC", "Serf")
        },
        "AdvertiseAddrs": {
            "HTTP": http,
            "RPC": rpc,
            "Serf": with_port(split_host_port(rpc)[0], config.ports.serf),
        },
        "Autopilot": _pick(
            config.autopilot,
            "CleanupDeadServers LastContactThreshold MaxTrailingLogs MinQuorum ServerStabilizationTime "
            "DisableUpgradeMigration EnableCustomUpgrades EnableRedundancyZones",
        ),
        "BindAddr": config.bind_addr,
        "Client": _client(config),
        "ConfigPaths": _files(config),
        "DataDir": config.data_dir,
        "Datacenter": config.datacenter,
        "DevMode": config.dev_mode,
        "DisableAnonymousSignature": config.disable_anonymous_signature,
        "DisableUpdateCheck": config.disable_update_check,
        "EnableDebug": config.enable_debug,
        "EnableSyslog": config.enable_syslog,
        "Files": _files(config),
        "HTTPAPIResponseHeaders": without_secrets(config.http_api_response_headers),
        "LeaveOnInt": config.leave_on_interrupt,
        "LeaveOnTerm": config.leave_on_terminate,
        "Limits": {
            **_pick(limits, "HTTPMaxConnsPerClient RPCMaxConnsPerClient"),
            **_times(limits, "HTTPSHandshakeTimeout RPCHandshakeTimeout"),
        },
        "LogFile": config.log_file,
        "LogJson": config.log_json,
        "LogLevel": config.log_level,
        "NodeName": config.name,
        "PluginDir": config.plugin_dir,
        "Plugins": [
            {
                "Name": name,
                # A program's arguments have no names that would tell which of them are secret.
                "Args": [REDACTED for _ in plugin.args] or None,
                "Config": without_secrets(plugin.config),
            }
            for name, plugin in sorted(config.plugin.items())
        ],
        "Ports": _pick(config.ports, "HTTP RPC Serf"),
        "RPC": _pick(
            config.rpc,
            "AcceptBacklog KeepAliveInterval ConnectionWriteTimeout StreamOpenTimeout StreamCloseTimeout DialTimeout",
        ),
        "Region": config.region,
        "Server": _server(config),
        "SyslogFacility": config.syslog_facility,
        "TLSConfig": {
            "EnableHTTP": tls.http,
            "EnableRPC": tls.rpc,
            **_pick(
                tls,
                "VerifyServerHostname VerifyHTTPSClient RPCUpgradeMode TLSCipherSuites TLSMinVersion CAFile CertFile",
            ),
            "KeyFile": REDACTED if tls.key_file else "",
        },
        "Telemetry": {
            **_pick(telemetry, _TELEMETRY),
            **_times(
                telemetry, "CollectionInterval InMemoryCollectionInterval InMemoryRetentionPeriod"
            ),
        },
        "UI": {
            "Enabled": config.ui.enabled,
            "ShowCLIHints": config.ui.show_cli_hints,
            "Label": _pick(config.ui.label, "Text BackgroundColor TextColor"),
        },
        "Version": {
            "BuildDate": None,
            "Revision": "",
            "Version": NOMAD_COMPATIBLE,
            "VersionMetadata": f"nomadpy-{__version__}",
            "VersionPrerelease": "",
        },
    }


def without_secrets(value: Any, name: str = "") -> Any:
    """The same with REDACTED for every value whose name says that it is secret, and no user in a URL.

    What is empty, a number or a switch stays: whether there is a secret may be seen.
    """
    if isinstance(value, dict):
        if value and name and _SECRET_NAME.search(name):
            return REDACTED
        return {key: without_secrets(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner, name) for inner in value]
    if isinstance(value, str) and value:
        return REDACTED if _SECRET_NAME.search(name) else _URL_USER.sub(REDACTED + "@", value)
    return value


def _acl(config: Config) -> dict[str, Any]:
    acl = config.acl
    return {
        **_pick(acl, "Enabled TokenTTL PolicyTTL RoleTTL"),
        "ReplicationToken": REDACTED if acl.replication_token else "",
        # Nomad shows what was said here, not what holds.
        **{
            name: getattr(acl, field) if f"acl.{field}" in config.origins else 0
            for name, field in (
                ("TokenMinExpirationTTL", "token_min_expiration_ttl"),
                ("TokenMaxExpirationTTL", "token_max_expiration_ttl"),
            )
        },
    }


def _client(config: Config) -> dict[str, Any]:
    client = config.client
    return {
        **_pick(client, _CLIENT),
        "BridgeNetworkSubnetIPv6": client.bridge_network_subnet_ipv6,
        "CpuCompute": client.cpu_total_compute,
        "MemoryMB": client.memory_total_mb,
        "MaxKillTimeout": format_duration(client.max_kill_timeout),
        "Meta": without_secrets(client.meta),
        "Options": without_secrets(client.options),
        "ChrootEnv": client.chroot_env,
        "HostVolumes": [
            {"ID": "", "Name": name, **_pick(volume, "Path ReadOnly")}
            for name, volume in sorted(client.host_volume.items())
        ],
        "HostNetworks": [
            {"Name": name, **_pick(network, "CIDR Interface ReservedPorts")}
            for name, network in sorted(client.host_network.items())
        ],
        "Reserved": {
            "CPU": client.reserved.cpu,
            "MemoryMB": client.reserved.memory,
            "DiskMB": client.reserved.disk,
            **_pick(client.reserved, "ReservedPorts Cores"),
        },
        "ServerJoin": _join(client.server_join),
        "Users": {
            "MinDynamicUser": client.users.dynamic_user_min,
            "MaxDynamicUser": client.users.dynamic_user_max,
        },
    }


def _server(config: Config) -> dict[str, Any]:
    server = config.server
    tracker = server.plan_rejection_tracker
    return {
        **_pick(server, _SERVER),
        **_times(server, _SERVER_TIMES),
        "DeploymentQueryRateLimit": server.deploy_query_rate_limit,
        "PlanRejectionTracker": _pick(tracker, "Enabled NodeThreshold NodeWindow"),
        "Search": _pick(server.search, "FuzzyEnabled LimitQuery LimitResults MinTermLength"),
        "ServerJoin": _join(server.server_join),
        "RetryJoin": server.retry_join,
        "StartJoin": server.start_join,
    }


def _join(join: Any) -> dict[str, Any]:
    return {
        **_pick(join, "StartJoin RetryJoin RetryInterval"),
        "RetryMaxAttempts": join.retry_max,
    }


def _files(config: Config) -> list[str]:
    """The files that said anything, out of origins such as `client.hcl:3`."""
    places = (origin.rpartition(":") for origin in config.origins.values())
    return sorted({file for file, colon, line in places if colon and line.isdigit()})


def _pick(block: msgspec.Struct, names: str) -> dict[str, Any]:
    """The settings with these Go names."""
    return {name: getattr(block, _field(name)) for name in names.split()}


def _times(block: msgspec.Struct, names: str) -> dict[str, Any]:
    """The durations with these Go names, as Go's text."""
    return {name: format_duration(getattr(block, _field(name))) for name in names.split()}


def _field(name: str) -> str:
    """`GCMaxAllocs` to `gc_max_allocs`."""
    return "_".join(_GO_WORD.split(name)).lower()
