"""The dynamic volumes of this node: made, registered, kept over restarts, told to the servers, removed.

The one list of them is in the agent's local state; a volume is offered to jobs only while its directory is there. After a
restart every volume's plugin is asked for it again, because a mount may be gone with the host's last boot. What does not
come back stays known, is tried again, and is not offered meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from agent.endpoints import Registry
from agent.host_volume_plugins import (
    Made,
    VolumePlugin,
    VolumePluginError,
    find_plugins,
    leftovers,
    remove_leftovers,
)
from agent.local_state import LocalState, VolumeRecord
from nomadpy import logs
from nomadpy.errors import DefiniteError, InvalidRequestError, NomadError, NotFoundError
from nomadpy.models.calls import (
    ClientHostVolumeCreateReply,
    ClientHostVolumeCreateRequest,
    ClientHostVolumeDeleteReply,
    ClientHostVolumeDeleteRequest,
    ClientHostVolumeRegisterRequest,
    Empty,
)
from nomadpy.models.node import HostVolumeInfo

log = logs.get(__name__)

LOOK_INTERVAL_S = 60.0
RESTORE_WAIT_S = 5.0
LOOKS_AT_ONCE = 16

# A part of a path: what else a request might say must not lead out of the directory for volumes.
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")


class VolumeNameTakenError(DefiniteError):
    """Another volume of the node has the name."""

    code = "volume-name-taken"


class VolumeInUseError(DefiniteError):
    """An allocation of this node uses the volume."""

    code = "volume-in-use"


class HostVolumes:
    """The volumes of one node. Work on one name is done one after another, on different names side by side."""

    def __init__(
        self,
        state: LocalState,
        *,
        volumes_dir: str,
        plugin_dir: str,
        node_pool: str,
        node_id: Callable[[], str],
        static: Mapping[str, HostVolumeInfo],
        changed: Callable[[], None],
        users: Callable[[str], list[str]],
    ) -> None:
        """volumes_dir: "" for a node that makes none. static: the operator's, by name. changed: called whenever
        `offered` or `attributes` may have changed. users: ids of the allocations that use a volume, by its name."""
        self._state = state
        self._volumes_dir = Path(volumes_dir) if volumes_dir else None
        self._plugin_dir = Path(plugin_dir)
        self._node_pool = node_pool
        self._node_id = node_id
        self._static = static
        self._changed = changed
        self._users = users
        self._records: dict[str, VolumeRecord] = {}
        self._ready: set[str] = set()
        self._plugins: dict[str, VolumePlugin] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._few = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._leftovers: list[Path] = []
        self.restored = asyncio.Event()

    # -- what the node says -----------------------------------------------------------------------

    def offered(self) -> dict[str, HostVolumeInfo]:
        """The volumes that jobs may have now, by name."""
        ready = [self._records[volume_id] for volume_id in sorted(self._ready)]
        return {r.name: HostVolumeInfo(name=r.name, path=r.path, id=r.id) for r in ready}

    def attributes(self) -> dict[str, str]:
        """The node's attributes that tell which plugins it has."""
        return {
            f"plugins.host_volume.{name}.version": plugin.version
            for name, plugin in sorted(self._plugins.items())
        }

    # -- life -------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what is stored and find the plugins; nothing is offered before `run` has looked for it."""
        self._records = {record.id: record for record in await self._state.volumes()}
        for record in self._records.values():
            if record.name in self._static:
                log.warning("a dynamic volume hides a static one", name=record.name, id=record.id)
        if self._volumes_dir is not None:
            await asyncio.to_thread(_make_home, self._volumes_dir)
            self._leftovers = await asyncio.to_thread(leftovers, self._volumes_dir)
            await self._find_plugins()

    async def run(self) -> None:
        """Take up the stored volumes, then look after volumes and plugins, for ever."""
        while True:
            await self._look()
            self.restored.set()
            if self._leftovers:
                await asyncio.to_thread(remove_leftovers, self._leftovers)
                self._leftovers = []
            await asyncio.sleep(LOOK_INTERVAL_S)
            if self._volumes_dir is not None:
                await self._find_plugins()
                self._changed()

    async def until_restored(self) -> None:
        """Wait a while for `run` to have taken up what is stored: a plugin that hangs must not keep the node away."""
        try:
            async with asyncio.timeout(RESTORE_WAIT_S):
                await self.restored.wait()
        except TimeoutError:
            log.warning("host volumes are not ready yet; going on without them")

    async def _find_plugins(self) -> None:
        assert self._volumes_dir is not None
        self._plugins = await find_plugins(self._volumes_dir, self._plugin_dir, self._node_pool)

    async def _look(self) -> None:
        async with asyncio.TaskGroup() as group:
            for record in list(self._records.values()):
                group.create_task(self._look_at(record.id, record.name), name=f"volume {record.id}")

    async def _look_at(self, volume_id: str, name: str) -> None:
        """Offer the volume if it is there, and else try to have it made again."""
        async with self._alone(name), self._few:
            record = self._records.get(volume_id)
            if record is None or record.deleting:
                return
            was_ready = volume_id in self._ready
            try:
                if was_ready or not record.plugin_id:
                    await _must_be_directory(record.path)
                else:
                    made = await self._plugin(record.plugin_id).create(
                        record, self._node_id(), anew=False
                    )
                    await self._keep(_as_made(record, made))
            except (NomadError, OSError) as cause:
                self._ready.discard(volume_id)
                log.error("host volume is not there", name=name, id=volume_id, error=str(cause))
            else:
                self._ready.add(volume_id)
            if was_ready != (volume_id in self._ready):
                self._changed()

    def serve(self, registry: Registry) -> None:
        """Serve the methods of volumes."""
        registry.register("ClientHostVolume.Create", self.create)
        registry.register("ClientHostVolume.Register", self.register)
        registry.register("ClientHostVolume.Delete", self.delete)

    # -- what servers ask for ---------------------------------------------------------------------

    async def create(
        self, _context: object, request: ClientHostVolumeCreateRequest
    ) -> ClientHostVolumeCreateReply:
        """ClientHostVolume.Create. Asked again for a volume that is there, it is changed to what is asked now.

        Raises InvalidRequestError, NotFoundError for an unknown plugin, VolumeNameTakenError, VolumePluginError."""
        _check(request.id, request.name)
        plugin = self._plugin(request.plugin_id)
        async with self._alone(request.name):
            known = self._known(request.id, request.name)
            wanted = VolumeRecord(
                id=request.id,
                name=request.name,
                namespace=request.namespace,
                plugin_id=request.plugin_id,
                path=known.path if known is not None else "",
                capacity_bytes=known.capacity_bytes if known is not None else 0,
                capacity_min_bytes=request.requested_capacity_min_bytes,
                capacity_max_bytes=request.requested_capacity_max_bytes,
                parameters=request.parameters,
            )
            if known is not None and known.plugin_id != request.plugin_id:
                raise InvalidRequestError(f"volume {request.id} was made by {known.plugin_id!r}")
            if known != wanted or known.id not in self._ready:
                made = await plugin.create(wanted, self._node_id(), anew=True)
                wanted = _as_made(wanted, made)
                await self._keep_or_undo(wanted, plugin, was_new=known is None)
                log.info("host volume made", name=wanted.name, id=wanted.id, path=wanted.path)
            self._offer(wanted.id)
        return ClientHostVolumeCreateReply(
            volume_name=wanted.name,
            volume_id=wanted.id,
            host_path=wanted.path,
            capacity_bytes=wanted.capacity_bytes,
        )

    async def register(self, _context: object, request: ClientHostVolumeRegisterRequest) -> Empty:
        """ClientHostVolume.Register. Raises InvalidRequestError when the path is no directory, VolumeNameTakenError."""
        _check(request.id, request.name)
        if not os.path.isabs(request.host_path):
            raise InvalidRequestError(f"host_path {request.host_path!r} is not absolute")
        async with self._alone(request.name):
            known = self._known(request.id, request.name)
            if known is not None and known.plugin_id:
                raise InvalidRequestError(f"volume {request.id} was made by {known.plugin_id!r}")
            path = posixpath.normpath(request.host_path)
            await _must_be_directory(path)
            record = VolumeRecord(
                id=request.id,
                name=request.name,
                namespace=request.namespace,
                path=path,
                capacity_bytes=request.capacity_bytes,
                parameters=request.parameters,
            )
            await self._keep(record)
            log.info("host volume registered", name=record.name, id=record.id, path=record.path)
            self._offer(record.id)
        return Empty()

    async def delete(
        self, _context: object, request: ClientHostVolumeDeleteRequest
    ) -> ClientHostVolumeDeleteReply:
        """ClientHostVolume.Delete. Raises VolumeInUseError, NotFoundError for an unknown plugin, VolumePluginError.

        A volume that is not known here is still told to its plugin: this node may have lost its memory of it."""
        _check(request.id, request.name)
        async with self._alone(request.name):
            record = self._records.get(request.id)
            if record is None:
                await self._delete_unknown(request)
            else:
                users = self._users(record.name)
                if users:
                    raise VolumeInUseError(
                        f"volume {record.name!r} is in use by allocation {users[0]}"
                    )
                # From here on nobody may begin to use it, and nobody makes it again but who asks for it by its id.
                await self._keep(msgspec.structs.replace(record, deleting=True))
                self._ready.discard(record.id)
                self._changed()
                if record.plugin_id:
                    await self._plugin(record.plugin_id).delete(record, self._node_id())
                await self._state.delete_volume(record.id)
                self._records.pop(record.id, None)
                log.info("host volume deleted", name=record.name, id=record.id, path=record.path)
        return ClientHostVolumeDeleteReply(volume_name=request.name, volume_id=request.id)

    async def _delete_unknown(self, request: ClientHostVolumeDeleteRequest) -> None:
        plugin = self._plugins.get(request.plugin_id)
        if plugin is None:
            return
        record = VolumeRecord(
            id=request.id,
            name=request.name,
            namespace=request.namespace,
            plugin_id=request.plugin_id,
            path=request.host_path,
            parameters=request.parameters,
        )
        await plugin.delete(record, self._node_id())

    # -- helpers ----------------------------------------------------------------------------------

    def _plugin(self, plugin_id: str) -> VolumePlugin:
        plugin = self._plugins.get(plugin_id)
        if plugin is None:
            raise NotFoundError(f"no such host volume plugin on this node: {plugin_id!r}")
        return plugin

    def _known(self, volume_id: str, name: str) -> VolumeRecord | None:
        """The volume of this id, if it is here. Raises VolumeNameTakenError, InvalidRequestError."""
        known = self._records.get(volume_id)
        if known is not None and known.name != name:
            raise InvalidRequestError(f"volume {volume_id} has the name {known.name!r} on its node")
        for other in self._records.values():
            if other.name == name and other.id != volume_id:
                raise VolumeNameTakenError(
                    f"volume name already exists on this node: {name!r} is volume {other.id}"
                )
        if known is None and name in self._static:
            raise VolumeNameTakenError(
                f"volume name already exists on this node: {name!r} is in its configuration"
            )
        return known

    async def _keep_or_undo(
        self, record: VolumeRecord, plugin: VolumePlugin, *, was_new: bool
    ) -> None:
        try:
            await self._keep(record)
        except OSError as cause:
            if was_new:
                try:
                    await plugin.delete(record, self._node_id())
                except VolumePluginError as also:
                    log.error("host volume left behind", path=record.path, error=also.message)
            raise VolumePluginError(f"volume {record.id} not kept: {cause}") from cause

    async def _keep(self, record: VolumeRecord) -> None:
        if self._records.get(record.id) != record:
            await self._state.put_volume(record)
            self._records[record.id] = record

    def _offer(self, volume_id: str) -> None:
        self._ready.add(volume_id)
        self._changed()

    @asynccontextmanager
    async def _alone(self, name: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            yield


def _check(volume_id: str, name: str) -> None:
    if not _ID.fullmatch(volume_id):
        raise InvalidRequestError(f"{volume_id!r} is not a volume's id")
    if not name or "\0" in name:
        raise InvalidRequestError(f"{name!r} is not a volume's name")


def _make_home(volumes_dir: Path) -> None:
    try:
        # Tasks pass through it to their volumes, and cannot see whose others are there.
        volumes_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as cause:
        log.error("directory for host volumes not made", path=volumes_dir, error=str(cause))


def _as_made(record: VolumeRecord, made: Made) -> VolumeRecord:
    return msgspec.structs.replace(record, path=made.path, capacity_bytes=made.capacity_bytes)


async def _must_be_directory(path: str) -> None:
    if not await asyncio.to_thread(os.path.isdir, path):
        raise InvalidRequestError(f"{path} is not a directory on this node")
