"""The client agent: owner of everything a node does for the cluster, in the order it starts and stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from agent.alloc_sync import AllocSync
from agent.devices.manager import Devices
from agent.drivers.base import Driver
from agent.endpoints import Endpoints, Registry, TaskLogs
from agent.garbage import GarbageCollector, GarbageLimits
from agent.host_volumes import HostVolumes
from agent.local_state import LocalState, NodeIdentity, SQLiteState
from agent.migrate import DiskMigration
from agent.registration import Fingerprint, Registration, load_identity
from agent.runner.context import RunnerContext, StartHook
from agent.runner.hooks import standard_hooks
from agent.server_list import ServerList
from agent.services.certificates import Credentials, NodeProof, ServerCredentials
from agent.task_dir import HostDirectories, TaskDirectories
from agent.volume_mounts import uses
from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.errors import InvalidRequestError
from nomadpy.hcl.durations import format_duration
from nomadpy.models.node import HostVolumeInfo, Node, NodeReservedResources
from nomadpy.models.stats import HostStats
from nomadpy.rpc.caller import Caller

log = logs.get(__name__)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator decides about a client agent.

    data_dir: for `client.db`; alloc_dir: for allocations. http_addr: host:port that the node's API answers at.
    host_volumes: the static ones, by name. host_volumes_dir: where dynamic ones are made, "" for none; host_volume_plugin_dir:
    executables that make them. reserved: what is kept from tasks. options: free settings for drivers and fingerprints. task_certificates: False in
    clusters without an authority. credentials_wait_s: how long a task's start may wait for servers to sign.
    destroy_on_exit: stop the workloads and remove their files when the agent ends (dev mode). remote_exec: whether
    users may run commands in tasks.
    """

    name: str
    region: str = "global"
    datacenter: str = "dc1"
    data_dir: str = ""
    alloc_dir: str = ""
    node_class: str = ""
    node_pool: str = "default"
    meta: dict[str, str] = {}
    servers: list[str] = []
    http_addr: str = ""
    tls_enabled: bool = False
    reserved: NodeReservedResources = NodeReservedResources()
    host_volumes: dict[str, HostVolumeInfo] = {}
    host_volumes_dir: str = ""
    host_volume_plugin_dir: str = ""
    node_max_allocs: int = 0
    options: dict[str, str] = {}
    max_kill_timeout_s: float = 30.0
    fingerprint_interval_s: float = 60.0
    garbage: GarbageLimits = GarbageLimits()
    task_certificates: bool = True
    credentials_wait_s: float = 300.0
    destroy_on_exit: bool = False
    remote_exec: bool = True


class Metadata:
    """Static metadata of the configuration under dynamic metadata that operators set."""

    def __init__(
        self, static: Mapping[str, str], state: LocalState, changed: Callable[[], None]
    ) -> None:
        self._static = dict(static)
        self._dynamic: dict[str, str | None] = {}
        self._state = state
        self._changed = changed

    async def load(self) -> None:
        """Take up what was stored."""
        self._dynamic = await self._state.meta()

    @property
    def static(self) -> Mapping[str, str]:
        """See NodeMetadata."""
        return self._static

    @property
    def dynamic(self) -> Mapping[str, str | None]:
        """See NodeMetadata."""
        return self._dynamic

    @property
    def merged(self) -> Mapping[str, str]:
        """See NodeMetadata."""
        both = {**self._static, **self._dynamic}
        return {key: value for key, value in both.items() if value is not None}

    async def apply(self, changes: Mapping[str, str | None]) -> None:
        """See NodeMetadata."""
        if not changes:
            raise InvalidRequestError("missing required Meta object")
        for key in changes:
            if not key or any(part == "" for part in key.split(".")):
                raise InvalidRequestError(f"invalid key {key!r}: a part between dots is empty")
        dynamic = {**self._dynamic, **changes}
        # None hides a static key; without one there is nothing to hide.
        kept = {k: v for k, v in dynamic.items() if v is not None or k in self._static}
        await self._state.put_meta(kept)
        self._dynamic = kept
        self._changed()


class Agent:
    """One node. `run` serves until cancelled; workloads outlive it unless the configuration says otherwise."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        caller: Caller,
        drivers: Mapping[str, Driver],
        fingerprint: Fingerprint,
        host_stats: Callable[[], Awaitable[HostStats]],
        task_logs: TaskLogs,
        clock: Clock,
        entropy: Entropy,
        servers: ServerList | None = None,
        state: LocalState | None = None,
        directories: TaskDirectories | None = None,
        credentials: Credentials | None = None,
        hooks: Sequence[StartHook] | None = None,
        devices: Devices | None = None,
    ) -> None:
        """state, directories, credentials: None takes the real ones on this host; the simulator has its own.

        caller: reaches the servers. servers: told of the addresses that heartbeats bring.
        fingerprint: looks at the host. Raises OSError when a directory cannot be used.
        """
        self.config = config
        self._drivers = drivers
        self._state = state or SQLiteState(Path(config.data_dir) / "client.db")
        self._directories = directories or HostDirectories(Path(config.alloc_dir))
        self._identity = NodeIdentity(id="", secret="")
        self.registration = Registration(
            caller,
            fingerprint,
            self._describe,
            clock,
            entropy,
            region=config.region,
            servers=servers,
            fingerprint_interval_s=config.fingerprint_interval_s,
        )
        self.metadata = Metadata(config.meta, self._state, self._changed)
        self.volumes = HostVolumes(
            self._state,
            volumes_dir=config.host_volumes_dir,
            plugin_dir=config.host_volume_plugin_dir,
            node_pool=config.node_pool,
            node_id=lambda: self._identity.id,
            static=config.host_volumes,
            changed=self._changed,
            users=self._users_of_volume,
        )
        self.devices = devices or Devices()
        context = RunnerContext(
            drivers=drivers,
            devices=self.devices,
            directories=self._directories,
            credentials=credentials
            or ServerCredentials(
                caller,
                self._proof,
                self._directories,
                clock,
                entropy,
                certificates=config.task_certificates,
                wait_s=config.credentials_wait_s,
            ),
            state=self._state,
            clock=clock,
            entropy=entropy,
            node=lambda: self.registration.node,
            region=config.region,
            max_kill_timeout_s=config.max_kill_timeout_s,
            hooks=standard_hooks(self._directories) if hooks is None else hooks,
            migration=DiskMigration(caller, self._directories, lambda: self._identity.id),
        )
        self._entropy = entropy
        self.sync = AllocSync(
            context,
            caller,
            self._proof,
            self.registration.silence_s,
            self.registration.registered,
            self.registration.anew,
        )
        self._garbage = GarbageCollector(self.sync, self._directories, clock, config.garbage)
        self._endpoints = Endpoints(
            self.sync,
            self._garbage,
            self.metadata,
            clock,
            host_stats=host_stats,
            alloc_root=self._directories.root,
            logs=task_logs,
            remote_exec=config.remote_exec,
            devices=self.devices,
        )

    # -- for those who wire it --------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        """The node's id; "" before `run` has loaded it."""
        return self._identity.id

    def credentials(self) -> tuple[str, str]:
        """The node's id and secret; ("", "") before `run` has loaded them."""
        return self._identity.id, self._identity.secret

    def holds(self, alloc_id: str) -> bool:
        """Whether the allocation is on this node."""
        return alloc_id in self.sync.runners

    def register_endpoints(self, registry: Registry) -> None:
        """Serve this node's methods."""
        self._endpoints.register(registry)
        self.volumes.serve(registry)

    def stats(self) -> dict[str, str]:
        """Figures for `/v1/agent/self`, durations in Go's text. Which servers are known, the caller knows better."""
        registration = self.registration
        return {
            "node_id": self.node_id,
            "num_allocations": str(len(self.sync.runners)),
            "heartbeat_ttl": format_duration(round(registration.heartbeat_ttl_s * 1e9)),
            "last_heartbeat": format_duration(round(registration.contact_age_s() * 1e9)),
        }

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take up what ran before, join the cluster, serve for ever. Cancel to stop."""
        try:
            await self._load()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.volumes.run(), name="host-volumes")
                group.create_task(self.devices.run(self._changed), name="devices")
                group.create_task(self.sync.run(), name="alloc-sync")
                # Servers must not hear of this node before it knows what it runs, and what it has.
                await self.sync.restored.wait()
                await self.volumes.until_restored()
                await self.devices.ready()
                group.create_task(self.registration.run(), name="registration")
                group.create_task(self._garbage.run(), name="garbage")
        finally:
            await self._close()

    async def _load(self) -> None:
        self._identity = await load_identity(self._state, self._entropy)
        await self.metadata.load()
        self.registration.identify(self._identity)
        await self.volumes.load()
        await self.registration.look()
        log.info("agent starts", node_id=self.node_id, name=self.config.name)

    async def _close(self) -> None:
        if self.config.destroy_on_exit:
            async with asyncio.TaskGroup() as group:
                for alloc_id, runner in self.sync.runners.items():
                    group.create_task(runner.kill_now(), name=f"destroy {alloc_id}")
        await self.devices.close()
        for driver in self._drivers.values():
            await driver.close()
        await self._state.close()
        log.info("agent stopped", node_id=self.node_id)

    # -- what the node is -------------------------------------------------------------------------

    def _describe(self, found: Node) -> Node:
        config = self.config
        # A fingerprint has looked which of the configured volumes are there.
        static = config.host_volumes if found.host_volumes is None else found.host_volumes
        return msgspec.structs.replace(
            found,
            id=self._identity.id,
            name=config.name,
            datacenter=config.datacenter,
            node_class=config.node_class,
            node_pool=config.node_pool,
            http_addr=config.http_addr,
            tls_enabled=config.tls_enabled,
            meta=dict(self.metadata.merged),
            reserved_resources=config.reserved,
            attributes={**(found.attributes or {}), **self.volumes.attributes()},
            host_volumes={**static, **self.volumes.offered()},
            node_max_allocs=config.node_max_allocs,
            links=found.links or {},
            node_resources=self.devices.on_node(found.node_resources),
        )

    def _changed(self) -> None:
        self.registration.refresh()

    def _users_of_volume(self, name: str) -> list[str]:
        runners = self.sync.runners.items()
        return [
            alloc_id
            for alloc_id, runner in runners
            if not runner.is_terminal and uses(runner.alloc, name)
        ]

    def _proof(self) -> NodeProof:
        return NodeProof(node_id=self._identity.id, secret_id=self._identity.secret)
