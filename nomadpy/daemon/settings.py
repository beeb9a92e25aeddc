"""From the operator's configuration to what each part wants to know. Pure."""

from __future__ import annotations

from typing import Any

from agent.agent import AgentConfig
from agent.fingerprint.parts import FingerprintConfig
from agent.garbage import GarbageLimits
from nomadpy.config.addresses import join_host_port, split_host_port
from nomadpy.config.model import Config
from nomadpy.models.node import (
    HostVolumeInfo,
    NodeReservedCpuResources,
    NodeReservedDiskResources,
    NodeReservedMemoryResources,
    NodeReservedNetworkResources,
    NodeReservedResources,
)
from nomadpy.models.operator import PreemptionConfig
from nomadpy.raft.config import RaftConfig
from nomadpy.server.settings import SCHEDULER_TYPES, ServerSettings, SnapshotSettings

NOMAD_COMPATIBLE = "2.0.0"
"""The version of Nomad whose wire this is; clients that read a version expect to parse one of Nomad's."""

DEV_MIN_HEARTBEAT_S = 10.0


def with_port(address: str, port: int) -> str:
    """`address` with `port` when it names none."""
    host, own_port = split_host_port(address)
    return join_host_port(host, own_port or port)


def server_settings(config: Config, server_id: str, rpc: str, http: str) -> ServerSettings:
    """What the server runs by."""
    server = config.server
    preemption = server.default_scheduler_config.preemption_config
    tracker = server.plan_rejection_tracker
    join = [*server.server_join.retry_join, *server.server_join.start_join]
    return ServerSettings(
        id=server_id,
        name=config.name,
        region=config.region,
        datacenter=config.datacenter,
        version=NOMAD_COMPATIBLE,
        rpc_address=rpc,
        http_address=http,
        bootstrap_expect=server.bootstrap_expect,
        retry_join=[with_port(address, config.ports.rpc) for address in join],
        schedulers=1,
        scheduler_types=tuple(server.enabled_schedulers) or SCHEDULER_TYPES,
        heartbeat_grace_s=server.heartbeat_grace / 1e9,
        heartbeat_min_ttl_s=server.min_heartbeat_ttl / 1e9,
        heartbeat_failover_ttl_s=server.failover_heartbeat_ttl / 1e9,
        heartbeats_per_second=server.max_heartbeats_per_second,
        gc_interval_s=server.job_gc_interval / 1e9,
        eval_gc_s=server.eval_gc_threshold / 1e9,
        batch_eval_gc_s=server.batch_eval_gc_threshold / 1e9,
        job_gc_s=server.job_gc_threshold / 1e9,
        node_gc_s=server.node_gc_threshold / 1e9,
        deployment_gc_s=server.deployment_gc_threshold / 1e9,
        root_key_gc_interval_s=server.root_key_gc_interval / 1e9,
        root_key_gc_s=server.root_key_gc_threshold / 1e9,
        root_key_rotation_s=server.root_key_rotation_threshold / 1e9,
        job_max_priority=server.job_max_priority,
        task_certificate_ttl_s=server.task_certificate_ttl / 1e9,
        state_check_interval_s=server.state_check_interval / 1e9,
        snapshots=_snapshots(config),
        scheduler_algorithm=server.default_scheduler_config.scheduler_algorithm or "binpack",
        preemption=PreemptionConfig(
            system_scheduler_enabled=preemption.system_scheduler_enabled,
            sys_batch_scheduler_enabled=preemption.sysbatch_scheduler_enabled,
            batch_scheduler_enabled=preemption.batch_scheduler_enabled,
            service_scheduler_enabled=preemption.service_scheduler_enabled,
        ),
        plan_rejection_threshold=tracker.node_threshold if tracker.enabled else 0,
        plan_rejection_window_s=tracker.node_window / 1e9,
        fair_share=server.fair_share.mode,
        namespace_weights={
            name: share.weight for name, share in server.fair_share.namespace.items()
        },
    )


def _snapshots(config: Config) -> SnapshotSettings | None:
    said = config.snapshot_agent
    if not said.local_storage.path:
        return None
    return SnapshotSettings(
        path=said.local_storage.path,
        interval_s=said.interval / 1e9,
        retain=said.retain,
        prefix=said.prefix,
    )


def raft_config(config: Config, server_id: str, rpc: str) -> RaftConfig:
    """What raft runs by. raft_multiplier stretches its timeouts, as in Nomad."""
    stretch = max(1, config.server.raft_multiplier)
    extra: dict[str, Any] = {}
    if config.server.raft_snapshot_threshold:
        extra["snapshot_entries"] = config.server.raft_snapshot_threshold
    if config.server.raft_trailing_logs:
        extra["trailing_entries"] = config.server.raft_trailing_logs
    return RaftConfig(
        server_id=server_id,
        name=config.name,
        address=rpc,
        region=config.region,
        data_dir=f"{config.server.data_dir}/raft",
        election_min_s=0.8 * stretch,
        election_max_s=1.6 * stretch,
        # A development agent's state is thrown away with it.
        fsync=not config.dev_mode,
        **extra,
    )


def agent_config(config: Config, http: str, servers: list[str]) -> AgentConfig:
    """What the client agent runs by."""
    client = config.client
    reserved = client.reserved
    return AgentConfig(
        name=config.name,
        region=config.region,
        datacenter=config.datacenter,
        data_dir=client.state_dir,
        alloc_dir=client.alloc_dir,
        node_class=client.node_class,
        node_pool=client.node_pool,
        meta=client.meta,
        servers=servers,
        http_addr=http,
        tls_enabled=config.tls.http,
        reserved=NodeReservedResources(
            cpu=NodeReservedCpuResources(cpu_shares=reserved.cpu),
            memory=NodeReservedMemoryResources(memory_mb=reserved.memory),
            disk=NodeReservedDiskResources(disk_mb=reserved.disk),
            networks=NodeReservedNetworkResources(reserved_host_ports=reserved.reserved_ports),
        ),
        host_volumes=_static_volumes(config),
        host_volumes_dir=client.host_volumes_dir,
        host_volume_plugin_dir=client.host_volume_plugin_dir,
        node_max_allocs=client.node_max_allocs,
        options=client.options,
        max_kill_timeout_s=client.max_kill_timeout / 1e9,
        garbage=GarbageLimits(
            interval_s=client.gc_interval / 1e9,
            max_allocs=client.gc_max_allocs,
            disk_percent=client.gc_disk_usage_threshold,
        ),
        destroy_on_exit=config.dev_mode,
        remote_exec=not client.disable_remote_exec,
    )


def fingerprint_config(config: Config, http: str) -> FingerprintConfig:
    """What the operator says about the host."""
    client = config.client
    reserved = client.reserved
    return FingerprintConfig(
        data_dir=client.alloc_dir,
        network_interface=client.network_interface,
        network_speed=client.network_speed,
        # Groups get a network of their own when CNI is here; until then no node offers one.
        bridge=False,
        cpu_total_compute=client.cpu_total_compute,
        memory_total_mb=client.memory_total_mb,
        disk_total_mb=client.disk_total_mb,
        reservable_cores=client.reservable_cores,
        reserved_cpu_mhz=reserved.cpu,
        reserved_memory_mb=reserved.memory,
        reserved_disk_mb=reserved.disk,
        reserved_cores=reserved.cores,
        reserved_ports=reserved.reserved_ports,
        min_dynamic_port=client.min_dynamic_port,
        max_dynamic_port=client.max_dynamic_port,
        host_volumes=_static_volumes(config),
        http_addr=http,
        version=NOMAD_COMPATIBLE,
    )


def _static_volumes(config: Config) -> dict[str, HostVolumeInfo]:
    return {
        name: HostVolumeInfo(name=name, path=volume.path, read_only=volume.read_only)
        for name, volume in config.client.host_volume.items()
    }
