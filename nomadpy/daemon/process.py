"""The node's process: whatever the configuration turns on, started in order and ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.agent import Agent
from agent.drivers.registry import build
from agent.fingerprint.cpu import core_mhz
from agent.fingerprint.run import HostFingerprint
from agent.link import Attachments, ClientCaller, LocalLink, caller_of_servers, is_about
from agent.logs import RotatedLogs
from agent.server_list import ServerList
from agent.stats import HostSampler
from nomadpy import logs, mutations
from nomadpy.api.app import create_app
from nomadpy.api.context import ApiConfig
from nomadpy.api.server import ApiServer
from nomadpy.clock import SystemClock
from nomadpy.config.addresses import Service, advertise_address, listen_addresses
from nomadpy.config.check import check_tls
from nomadpy.config.keyring import keyring_settings
from nomadpy.config.load import network_interfaces
from nomadpy.config.model import Config
from nomadpy.daemon.devices import build_devices, driver_plugins
from nomadpy.daemon.gauges import ClientGauges, HostFigures, RuntimeGauges, ServerGauges
from nomadpy.daemon.local_node import LocalNode
from nomadpy.daemon.lock import lock_data_dir
from nomadpy.daemon.server_process import ServerProcess
from nomadpy.daemon.settings import (
    agent_config,
    fingerprint_config,
    raft_config,
    server_settings,
    with_port,
)
from nomadpy.entropy import SystemEntropy
from nomadpy.errors import ConfigError, NomadError
from nomadpy.metrics import Registry
from nomadpy.models.root_key import RootKey
from nomadpy.pki.keyring import Keyring, load_key_file
from nomadpy.pki.keys import create_root_key
from nomadpy.pki.tls import TLSMaterial, https_server_context, load_material, renew_https
from nomadpy.raft.files import RealFiles
from nomadpy.rpc.caller import Caller
from nomadpy.rpc.dispatch import Dispatcher
from nomadpy.rpc.pool import Pool
from nomadpy.rpc.tls_network import TLSNetwork

log = logs.get(__name__)

LEAVE_TIMEOUT_S = 15.0
SERVER_ID_FILE = "server-id"
_SERVER_ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SERVICES: tuple[Service, ...] = ("http", "rpc")


class Node:
    """Everything of one node. `run` serves until cancelled."""

    def __init__(self, config: Config) -> None:
        """Build the parts; nothing is started. Raises ConfigError and CorruptionError."""
        self._clock = SystemClock()
        self._runtime = RuntimeGauges(self._clock)
        self._entropy = SystemEntropy()
        self.config = config
        if config.acl.enabled:
            raise ConfigError(
                f"{config.origin('acl.enabled')}acl.enabled has no effect yet, and this node will not start without "
                "the protection that it asks for: remove it, and let tls { verify_https_client = true } say who may call"
            )
        for warning in check_tls(config):
            log.warning(warning)
        self._make_data_dir()
        self._lock = lock_data_dir(Path(config.data_dir))
        self._material = self._load_tls()
        self._https: ssl.SSLContext | None = None
        self.metrics = Registry(self._clock, _metric_labels(config))
        role = "server" if config.server.enabled else "client"
        self.network = TLSNetwork(
            self._material if config.tls.rpc else None, role=role, region=config.region
        )
        interfaces = network_interfaces()
        self._listen = {
            service: listen_addresses(config, service, interfaces) for service in SERVICES
        }
        self._rpc = advertise_address(config, "rpc", interfaces)
        self._http = advertise_address(config, "http", interfaces)
        self.server = self._build_server() if config.server.enabled else None
        self.servers: ServerList | None = None
        self._pool: Pool | None = None
        self._attachments: Attachments | None = None
        self._host: HostFigures | None = None
        # A call of this node's API that ends at its own agent is counted where it came in.
        self._agent_calls = Dispatcher(None if config.server.enabled else self.metrics)
        self.agent = self._build_agent() if config.client.enabled else None
        self.local = LocalNode(
            config,
            self.metrics,
            server=self.server,
            agent=self.agent,
            servers=self.servers,
            http=self._http,
            rpc=self._rpc,
        )
        self.api = ApiServer(create_app(self._api_caller(), self.local, self._api_config()))
        self._gauges()

    # -- building ---------------------------------------------------------------------------------------

    def _make_data_dir(self) -> None:
        home = Path(self.config.data_dir)
        try:
            RealFiles().make_directory(str(home))
        except OSError as cause:
            raise ConfigError(f"data_dir {home} cannot be made: {cause.strerror}") from cause

    def _load_tls(self) -> TLSMaterial | None:
        tls = self.config.tls
        if not (tls.rpc or tls.http):
            return None
        return load_material(
            Path(tls.ca_file),
            Path(tls.cert_file),
            Path(tls.key_file),
            now_ns=self._clock.now_ns(),
        )

    def _build_server(self) -> ServerProcess:
        config = self.config
        # The id lies beside the log: who loses the log loses the id, and cannot vote a second time as the same server.
        home = Path(config.server.data_dir) / "raft"
        RealFiles().make_directory(str(home))
        server_id = _persistent_id(home / SERVER_ID_FILE, self._entropy.uuid)
        process = ServerProcess(
            server_settings(config, server_id, self._rpc, self._http),
            raft_config(config, server_id, self._rpc),
            network=self.network,
            listen=self._listen["rpc"][0],
            files=RealFiles(),
            clock=self._clock,
            entropy=self._entropy,
            make_root_key=self._make_root_key,
            run_scheduler=asyncio.to_thread,
            metrics=self.metrics,
            keyring=self._keyring(),
        )
        mutations.apply(
            process.server, os.environ, self._material.ca_pem if self._material else None
        )
        return process

    def _keyring(self) -> Keyring:
        said = keyring_settings(self.config)
        if not said.file:
            return Keyring()
        return Keyring(load_key_file(Path(said.file)), wrap_with_file=said.active == "file")

    async def _make_root_key(self) -> RootKey:
        # An RSA key takes a tenth of a second or more, which the event loop does not have.
        return await asyncio.to_thread(
            create_root_key, self.config.region, self._entropy, self._clock
        )

    def _build_agent(self) -> Agent:
        config = self.config
        caller: Caller
        addresses: list[str] = []
        if self.server is not None:
            caller = self.server.server
        else:
            named = [*config.client.servers, *config.client.server_join.retry_join]
            addresses = [with_port(a, config.ports.rpc) for a in named]
            if not addresses:
                raise ConfigError(
                    "the client knows no servers: name at least one in client { servers = [...] }"
                )
            self.servers = ServerList(addresses, self._entropy)
            self._pool = Pool(self.network, self._agent_calls, self._entropy)
            caller = caller_of_servers(self._pool, self.servers)
        settings = agent_config(config, self._http, addresses)
        for folder in (settings.data_dir, settings.alloc_dir):
            Path(folder).mkdir(mode=0o711, parents=True, exist_ok=True)
        speed = core_mhz()
        drivers = build(
            driver_plugins(config.plugins),
            self._clock,
            core_mhz=speed,
            options=config.client.options,
            mock=config.dev_mode or "mock_driver" in config.plugin,
        )
        mutations.apply_to_agent(
            drivers, os.environ, self._material.ca_pem if self._material else None
        )
        self._host = HostFigures(
            HostSampler(self._clock, alloc_dir=settings.alloc_dir, core_mhz=speed), self._clock
        )
        agent = Agent(
            settings,
            caller=caller,
            drivers=drivers,
            fingerprint=HostFingerprint(
                fingerprint_config(config, self._http), drivers, self._clock
            ),
            host_stats=self._host.fresh,
            task_logs=RotatedLogs(),
            clock=self._clock,
            entropy=self._entropy,
            servers=self.servers,
            devices=build_devices(config, self._clock, self._entropy),
        )
        agent.register_endpoints(self._agent_calls)
        if self._pool is not None and self.servers is not None:
            self._attachments = Attachments(self._pool, self.servers, agent.credentials)
        return agent

    def _api_caller(self) -> Caller:
        if self.server is not None:
            return self.server.server
        agent = self.agent
        assert agent is not None
        assert self._pool is not None
        assert self.servers is not None
        return ClientCaller(
            caller_of_servers(self._pool, self.servers),
            self._agent_calls,
            lambda request: is_about(request, agent.node_id, agent.holds),
            region=self.config.region,
            entropy=self._entropy,
        )

    def _api_config(self) -> ApiConfig:
        config = self.config
        if config.tls.http:
            assert self._material is not None
            self._https = https_server_context(
                self._material,
                verify_client=config.tls.verify_https_client,
                minimum=config.tls.tls_min_version.lower(),
            )
        return ApiConfig(
            addresses=tuple(self._listen["http"]),
            tls=self._https,
            max_connections_per_client=config.limits.http_max_conns_per_client,
            prometheus=config.telemetry.prometheus_metrics,
            response_headers=tuple(config.http_api_response_headers.items()),
        )

    def _gauges(self) -> None:
        metrics = self.metrics
        metrics.collect_with(self._runtime.collect)
        metrics.collect_with(
            lambda registry: registry.gauge(
                "nomad.nomad.agent.http.connections", self.api.connections
            )
        )
        if self.server is not None:
            metrics.collect_with(ServerGauges(self.server).collect)
        if self.agent is not None:
            shown = self._host if self.config.telemetry.publish_node_metrics else None
            if shown is not None:
                metrics.refresh_with(shown.refresh)
            metrics.collect_with(ClientGauges(self.agent, shown).collect)

    # -- running ------------------------------------------------------------------------------------------

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled. `started` is called when every port is open."""
        self._runtime.open()
        try:
            if self.server is not None:
                await self.server.open()
            await self.api.start()
            started()
            async with asyncio.TaskGroup() as tasks:
                if self.server is not None:
                    tasks.create_task(self.server.run(), name="server")
                if self.agent is not None:
                    tasks.create_task(self.agent.run(), name="agent")
                    if self.server is not None:
                        tasks.create_task(self._attach_locally(), name="attach")
                if self._attachments is not None:
                    tasks.create_task(self._attachments.run(), name="attachments")
        finally:
            self._runtime.close()
            await self.api.stop()
            if self._pool is not None:
                await self._pool.close()
            self._lock.close()

    async def leave(self) -> None:
        """Take this node's server out of the configuration, before the process ends."""
        if self.server is None:
            return
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self.server.server.leave()
        except (NomadError, TimeoutError) as error:
            log.warning(
                "left without the others' consent, this server stays a member", error=str(error)
            )
        else:
            log.info("left the cluster")

    async def _attach_locally(self) -> None:
        """Let the server reach the agent in this process, as soon as the node has its id."""
        assert self.agent is not None
        assert self.server is not None
        while not self.agent.node_id:  # noqa: ASYNC110 - once, for a few milliseconds
            await asyncio.sleep(0.01)
        link = LocalLink(self._agent_calls, region=self.config.region)
        self.server.server.attach_local(self.agent.node_id, link)

    def listening(self, service: Service) -> list[str]:
        """Where `http` or `rpc` is served."""
        return self._listen[service]

    def reload(self) -> None:
        """SIGHUP: read the certificates again. New connections use them; those open stay."""
        if self._material is None:
            return
        try:
            material = self._material.read_again(now_ns=self._clock.now_ns())
            if self.config.tls.rpc:
                self.network.reload(material)
            if self._https is not None:
                renew_https(self._https, material)
            self._material = material
        except ConfigError as error:
            log.error("certificates not reloaded, the old ones stay", error=error.message)
        else:
            log.info("certificates reloaded")


def _metric_labels(config: Config) -> dict[str, str]:
    """What every series of this node is labelled with."""
    if config.telemetry.disable_hostname:
        return {}
    return {"host": config.name if config.telemetry.use_node_name else socket.gethostname()}


def _persistent_id(path: Path, make: Callable[[], str]) -> str:
    """The id in the file, made at the first start and durable before it is used."""
    with contextlib.suppress(FileNotFoundError):
        found = path.read_bytes().strip()
        if _SERVER_ID.fullmatch(found):
            return found.decode()
        raise ConfigError(
            f"{path} does not hold a server id; restore it, or empty the directory it is in, and the server joins as a "
            "new one"
        )
    identity = make()
    aside = path.with_suffix(".new")
    with aside.open("w", encoding="ascii") as file:
        file.write(identity + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    RealFiles().sync_directory(str(path.parent))
    return identity


def discard_temporary(config: Config) -> None:
    """Remove the directory that a development agent was given because it named none."""
    if config.dev_mode and "data_dir" not in config.origins:
        shutil.rmtree(config.data_dir, ignore_errors=True)


async def serve(node: Node, started: Callable[[], None]) -> int:
    """Run a node until SIGINT or SIGTERM. Returns the exit code."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    signals: list[int] = []

    leaves = {
        signal.SIGINT: node.config.leave_on_interrupt,
        signal.SIGTERM: node.config.leave_on_terminate,
    }
    leaving: list[asyncio.Task[None]] = []

    async def leave() -> None:
        try:
            await node.leave()
        finally:
            main.cancel()

    def stop(number: int) -> None:
        log.info("stopping", signal=signal.Signals(number).name)
        signals.append(number)
        if leaves[signal.Signals(number)] and not leaving:
            leaving.append(loop.create_task(leave(), name="leave"))
        else:
            # A second signal does not wait for the first one's goodbye.
            main.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, node.reload)
    try:
        await node.run(started)
    except asyncio.CancelledError:
        if not signals:
            raise
    return 0


def describe(node: Node) -> list[tuple[str, str]]:
    """What a start shows of the node."""
    config = node.config
    rows: list[tuple[str, Any]] = [
        ("Client", str(config.client.enabled).lower()),
        ("Log Level", config.log_level),
        ("HTTP", " ".join(node.listening("http"))),
        ("RPC", " ".join(node.listening("rpc")) if config.server.enabled else "none"),
        (
            "TLS",
            f"rpc {'on' if config.tls.rpc else 'off'}, http {'on' if config.tls.http else 'off'}",
        ),
        ("Region", f"{config.region} (DC: {config.datacenter})"),
        ("Server", str(config.server.enabled).lower()),
    ]
    return [(name, str(value)) for name, value in rows]
