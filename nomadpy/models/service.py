"""Service and check definitions, and registrations of the built-in provider."""

from __future__ import annotations

from typing import Any

import msgspec

from nomadpy.models.base import Duration, Wire, always
from nomadpy.models.resources import Resources
from nomadpy.models.task_blocks import LogConfig, VolumeMount, WorkloadIdentity


class CheckRestart(Wire, frozen=True, kw_only=True):
    limit: int = 0
    grace: Duration | None = None
    ignore_warnings: bool = False


class ServiceCheck(Wire, frozen=True, kw_only=True, omit_defaults=True):
    name: str = always(lambda: "")
    type: str = always(lambda: "")
    command: str = always(lambda: "")
    args: list[str] | None = always(lambda: None)
    path: str = always(lambda: "")
    protocol: str = always(lambda: "")
    port_label: str = always(lambda: "")
    expose: bool = always(lambda: False)
    address_mode: str = always(lambda: "")
    advertise: str = ""
    interval: Duration = always(lambda: 0)
    timeout: Duration = always(lambda: 0)
    initial_status: str = always(lambda: "")
    notes: str = always(lambda: "")
    tls_server_name: str = always(lambda: "")
    tls_skip_verify: bool = always(lambda: False)
    header: dict[str, list[str] | None] | None = always(lambda: None)
    method: str = always(lambda: "")
    check_restart: CheckRestart | None = always(lambda: None)
    grpc_service: str = always(lambda: "")
    grpc_use_tls: bool = always(lambda: False)
    task_name: str = always(lambda: "")
    success_before_passing: int = always(lambda: 0)
    failures_before_critical: int = always(lambda: 0)
    failures_before_warning: int = always(lambda: 0)
    body: str = always(lambda: "")
    on_update: str = always(lambda: "")


class ConsulGatewayBindAddress(Wire, frozen=True, kw_only=True):
    name: str = ""
    address: str = ""
    port: int = 0


class ConsulGatewayProxy(Wire, frozen=True, kw_only=True):
    connect_timeout: Duration | None = None
    envoy_gateway_bind_tagged_addresses: bool = False
    envoy_gateway_bind_addresses: dict[str, ConsulGatewayBindAddress] | None = None
    envoy_gateway_no_default_bind: bool = False
    envoy_dns_discovery_type: str = ""
    config: dict[str, Any] | None = None


class ConsulGatewayTLSSDSConfig(Wire, frozen=True, kw_only=True):
    cluster_name: str = ""
    cert_resource: str = ""


class ConsulGatewayTLSConfig(Wire, frozen=True, kw_only=True):
    enabled: bool = False
    tls_min_version: str = ""
    tls_max_version: str = ""
    cipher_suites: list[str] | None = None
    sds: ConsulGatewayTLSSDSConfig | None = None


class ConsulHTTPHeaderModifiers(Wire, frozen=True, kw_only=True):
    add: dict[str, str] | None = None
    set: dict[str, str] | None = None
    remove: list[str] | None = None


class ConsulIngressService(Wire, frozen=True, kw_only=True):
    name: str = ""
    hosts: list[str] | None = None
    tls: ConsulGatewayTLSConfig | None = None
    request_headers: ConsulHTTPHeaderModifiers | None = None
    response_headers: ConsulHTTPHeaderModifiers | None = None
    max_connections: int | None = None
    max_pending_requests: int | None = None
    max_concurrent_requests: int | None = None


class ConsulIngressListener(Wire, frozen=True, kw_only=True):
    port: int = 0
    protocol: str = ""
    services: list[ConsulIngressService] | None = None


class ConsulIngressConfigEntry(Wire, frozen=True, kw_only=True):
    tls: ConsulGatewayTLSConfig | None = None
    listeners: list[ConsulIngressListener] | None = None


class ConsulLinkedService(Wire, frozen=True, kw_only=True):
    name: str = ""
    ca_file: str = msgspec.field(default="", name="CAFile")
    cert_file: str = ""
    key_file: str = ""
    sni: str = ""


class ConsulTerminatingConfigEntry(Wire, frozen=True, kw_only=True):
    services: list[ConsulLinkedService] | None = None


class ConsulGateway(Wire, frozen=True, kw_only=True):
    proxy: ConsulGatewayProxy | None = None
    ingress: ConsulIngressConfigEntry | None = None
    terminating: ConsulTerminatingConfigEntry | None = None
    mesh: dict[str, Any] | None = None


class ConsulExposePath(Wire, frozen=True, kw_only=True):
    path: str = ""
    protocol: str = ""
    local_path_port: int = 0
    listener_port: str = ""


class ConsulExposeConfig(Wire, frozen=True, kw_only=True):
    paths: list[ConsulExposePath] | None = None
    path: list[ConsulExposePath] | None = None


class ConsulMeshGateway(Wire, frozen=True, kw_only=True):
    mode: str = ""


class ConsulUpstream(Wire, frozen=True, kw_only=True):
    destination_name: str = ""
    destination_namespace: str = ""
    destination_peer: str = ""
    destination_partition: str = ""
    destination_type: str = ""
    local_bind_port: int = 0
    datacenter: str = ""
    local_bind_address: str = ""
    local_bind_socket_path: str = ""
    local_bind_socket_mode: str = ""
    mesh_gateway: ConsulMeshGateway | None = None
    config: dict[str, Any] | None = None


class ConsulTransparentProxy(Wire, frozen=True, kw_only=True):
    uid: str = msgspec.field(default="", name="UID")
    outbound_port: int = 0
    exclude_inbound_ports: list[str] | None = None
    exclude_outbound_ports: list[int] | None = None
    exclude_outbound_cid_rs: list[str] | None = msgspec.field(
        default=None, name="ExcludeOutboundCIDRs"
    )
    exclude_u_ids: list[str] | None = None
    no_dns: bool = False


class ConsulProxy(Wire, frozen=True, kw_only=True):
    local_service_address: str = ""
    local_service_port: int = 0
    expose: ConsulExposeConfig | None = None
    expose_config: ConsulExposeConfig | None = None
    upstreams: list[ConsulUpstream] | None = None
    transparent_proxy: ConsulTransparentProxy | None = None
    config: dict[str, Any] | None = None


class ConsulSidecarService(Wire, frozen=True, kw_only=True):
    tags: list[str] | None = None
    port: str = ""
    proxy: ConsulProxy | None = None
    disable_default_tcp_check: bool = msgspec.field(default=False, name="DisableDefaultTCPCheck")
    meta: dict[str, str] | None = None


class SidecarTask(Wire, frozen=True, kw_only=True):
    name: str = ""
    driver: str = ""
    user: str = ""
    config: dict[str, Any] | None = None
    env: dict[str, str] | None = None
    resources: Resources | None = None
    meta: dict[str, str] | None = None
    kill_timeout: Duration | None = None
    log_config: LogConfig | None = None
    shutdown_delay: Duration | None = None
    kill_signal: str = ""
    volume_mounts: list[VolumeMount] | None = None
    identities: list[WorkloadIdentity] | None = None


class ConsulConnect(Wire, frozen=True, kw_only=True):
    native: bool = False
    gateway: ConsulGateway | None = None
    sidecar_service: ConsulSidecarService | None = None
    sidecar_task: SidecarTask | None = None


class ServiceWeights(Wire, frozen=True, kw_only=True):
    passing: int = 0
    warning: int = 0


class Service(Wire, frozen=True, kw_only=True, omit_defaults=True):
    name: str = always(lambda: "")
    tags: list[str] | None = always(lambda: None)
    canary_tags: list[str] | None = always(lambda: None)
    enable_tag_override: bool = always(lambda: False)
    port_label: str = always(lambda: "")
    address_mode: str = always(lambda: "")
    address: str = always(lambda: "")
    checks: list[ServiceCheck] | None = always(lambda: None)
    check_restart: CheckRestart | None = None
    connect: ConsulConnect | None = always(lambda: None)
    meta: dict[str, str] | None = always(lambda: None)
    canary_meta: dict[str, str] | None = always(lambda: None)
    tagged_addresses: dict[str, str] | None = always(lambda: None)
    task_name: str = always(lambda: "")
    on_update: str = always(lambda: "")
    identity: WorkloadIdentity | None = always(lambda: None)
    weights: ServiceWeights | None = always(lambda: None)
    provider: str = always(lambda: "")
    cluster: str = always(lambda: "")
    kind: str = always(lambda: "")
    namespace: str = always(lambda: "")


class ServiceRegistration(Wire, frozen=True, kw_only=True):
    id: str = ""
    service_name: str = ""
    namespace: str = ""
    node_id: str = ""
    datacenter: str = ""
    job_id: str = ""
    alloc_id: str = ""
    tags: list[str] | None = None
    address: str = ""
    port: int = 0
    create_index: int = 0
    modify_index: int = 0


class ServiceRegistrationStub(Wire, frozen=True, kw_only=True):
    service_name: str = ""
    tags: list[str] | None = None


class ServiceRegistrationListStub(Wire, frozen=True, kw_only=True):
    namespace: str = ""
    services: list[ServiceRegistrationStub] | None = None


class AllocCheckStatus(Wire, frozen=True, kw_only=True):
    id: str = ""
    check: str = ""
    group: str = ""
    mode: str = ""
    output: str = ""
    service: str = ""
    task: str = ""
    status: str = ""
    status_code: int = 0
    timestamp: int = 0
