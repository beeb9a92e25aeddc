"""HostVolume.* and TaskGroupHostVolumeClaim.*: dynamic host volumes, and the claims of sticky ones.

A volume is written before its node is called, so that no directory is made that nobody knows of; the node's answer completes
it. A deletion goes the other way round, and first takes the volume out of scheduling.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable

import msgspec

from nomadpy import logs
from nomadpy.errors import IndefiniteError, InvalidRequestError, NomadError, NotFoundError
from nomadpy.fsm import commands
from nomadpy.models import calls
from nomadpy.models.envelope import ALL_NAMESPACES, Answer
from nomadpy.models.host_volume import (
    PENDING,
    READY,
    UNAVAILABLE,
    HostVolume,
    HostVolumeStub,
    HostVolumeWritten,
)
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server.endpoints.base import Services, written
from nomadpy.server.endpoints.job_reads import truth
from nomadpy.server.endpoints.stubs import alloc_stub
from nomadpy.server.host_volume_rules import check, check_change, place
from nomadpy.server.query import Found, page
from nomadpy.state.host_volumes import in_use, users_of, uses
from nomadpy.state.schema import alloc_is_terminal
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

NODE_TIMEOUT_S = 75.0
"""A plugin may make a file system and has a minute for it; so its own word about that comes first."""

_NOT_WANTED = ("create_index", "modify_index", "create_time", "modify_time")


class HostVolumes:
    """Handlers."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._queries = services.queries
        self._router = services.router
        register = services.router.register
        register("HostVolume.List", self.list)
        register("HostVolume.Get", self.get)
        register("HostVolume.Create", self.create)
        register("HostVolume.Register", self.register)
        register("HostVolume.Delete", self.delete)
        register("TaskGroupHostVolumeClaim.List", self.claims)
        register("TaskGroupHostVolumeClaim.Delete", self.delete_claim)

    # -- reads ----------------------------------------------------------------------------------------

    async def list(self, _: CallContext, request: calls.Read) -> Answer:
        """Rows by namespace and id; flags: node_id, node_pool. `prefix` is of ids."""
        options, flags = request.options, request.flags

        def read(snapshot: Snapshot) -> Found:
            namespace = None if options.namespace == ALL_NAMESPACES else options.namespace
            volumes = (
                v
                for v in snapshot.host_volumes(namespace, options.prefix)
                if flags.get("node_id") in (None, "", v.node_id)
                and flags.get("node_pool") in (None, "", v.node_pool)
            )
            found = page(volumes, options, token=lambda v: (v.namespace, v.id))
            return Found(
                index=snapshot.table_index("host_volumes"),
                value=[volume_stub(v) for v in found.items],
                next_token=found.next_token,
            )

        return await self._queries.answer(options, [("table", "host_volumes")], read)

    async def get(self, _: CallContext, request: calls.Read) -> Answer:
        """One volume, with the allocations that use it."""
        key = (request.options.namespace, request.id)

        def read(snapshot: Snapshot) -> Found:
            volume = snapshot.host_volume(*key)
            if volume is None:
                return Found(index=snapshot.table_index("host_volumes"), missing="volume not found")
            users = [
                alloc_stub(alloc)
                for alloc in snapshot.allocs_by_node(volume.node_id)
                if alloc.namespace == volume.namespace
                and not alloc_is_terminal(alloc)
                and uses(alloc, volume)
            ]
            shown = msgspec.structs.replace(volume, allocations=users or None)
            return Found(index=volume.modify_index, value=shown)

        return await self._queries.answer(request.options, [("table", "host_volumes", key)], read)

    async def claims(self, _: CallContext, request: calls.Read) -> Answer:
        """Claims by id; flags: job_id, task_group, volume_name."""
        options, flags = request.options, request.flags
        job_id, group, name = (
            flags.get(word, "") for word in ("job_id", "task_group", "volume_name")
        )

        def read(snapshot: Snapshot) -> Found:
            claims = (
                c
                for c in snapshot.volume_claims()
                if options.namespace in (ALL_NAMESPACES, c.namespace)
                and c.id.startswith(options.prefix)
                and job_id in ("", c.job_id)
                and group in ("", c.task_group_name)
                and name in ("", c.volume_name)
            )
            found = page(claims, options, token=lambda c: c.id)
            return Found(
                index=snapshot.table_index("task_group_host_volume_claims"),
                value=found.items,
                next_token=found.next_token,
            )

        keys: list[tuple[str, str]] = [("table", "task_group_host_volume_claims")]
        return await self._queries.answer(options, [*keys], read)

    # -- writes ---------------------------------------------------------------------------------------

    async def create(self, _: CallContext, request: calls.HostVolumeWrite) -> Answer:
        """Make a volume on a node that will do; with the ID of one that exists, have its plugin change it."""
        return await self._make(request, self._create_there, registering=False)

    async def register(self, _: CallContext, request: calls.HostVolumeWrite) -> Answer:
        """Make a volume known that an operator has made on its node."""
        return await self._make(request, self._register_there, registering=True)

    async def delete(self, _: CallContext, request: calls.Write) -> Answer:
        """Have the node remove a volume, then forget it; flags: force forgets it though the node does not answer."""
        core, namespace = self._core, request.options.namespace
        volume = core.snapshot().host_volume(namespace, request.id)
        if volume is None:
            raise NotFoundError("volume not found")
        users = users_of(core.snapshot(), volume)
        if users:
            raise in_use(volume, users)
        # From here on no plan places anything on it; one that was applied meanwhile shows as a user.
        await self._write(msgspec.structs.replace(volume, state=UNAVAILABLE, deleting=True))
        users = users_of(core.snapshot(), volume)
        if users:
            await self._write(volume)
            raise in_use(volume, users)
        try:
            await self._router.call(
                "ClientHostVolume.Delete",
                calls.ClientHostVolumeDeleteRequest(
                    id=volume.id,
                    name=volume.name,
                    node_id=volume.node_id,
                    plugin_id=volume.plugin_id,
                    namespace=volume.namespace,
                    host_path=volume.host_path,
                    parameters=volume.parameters or {},
                ),
                timeout_s=NODE_TIMEOUT_S,
            )
        except NomadError as error:
            if not truth(request.flags, "force"):
                if not isinstance(error, IndefiniteError):
                    await self._write(msgspec.structs.replace(volume, deleting=False))
                raise _because(
                    error,
                    f"volume {volume.id} was not deleted: node {volume.node_id} said: {error.message}. "
                    "If the node is gone for good, delete with force",
                ) from error
            log.warning(
                "volume is forgotten and may still be on its node",
                volume_id=volume.id,
                node_id=volume.node_id,
                error=error.message,
            )
        try:
            applied = await core.propose(
                commands.HostVolumeDelete(namespace=namespace, ids=[volume.id])
            )
        except NomadError as error:
            raise IndefiniteError(
                f"volume {volume.id} is gone from its node, and servers could not forget it: {error.message}. "
                "Delete it again",
                status=error.status,
            ) from error
        return written({"Index": applied.index}, applied.index)

    async def delete_claim(self, _: CallContext, request: calls.Write) -> Answer:
        """Forget a claim."""
        applied = await self._core.propose(
            commands.VolumeClaimDelete(claim_id=request.id), request_id=request.options.request_id
        )
        return written({"Index": applied.index}, applied.index)

    # -- parts ----------------------------------------------------------------------------------------

    async def _make(
        self,
        request: calls.HostVolumeWrite,
        ask: Callable[[HostVolume], Awaitable[HostVolume]],
        *,
        registering: bool,
    ) -> Answer:
        """Write the volume, ask its node, write what the node has."""
        volume, tried = _asked(request), False
        check(volume, registering=registering)
        before = self._known(volume)
        if before is None:
            if not registering:
                # What it holds, its node will say.
                volume = msgspec.structs.replace(volume, capacity_bytes=0)
            volume, tried = await self._begin(volume, request, needs_plugin=not registering)
            if volume.state != PENDING:
                # An earlier try of this very request has done it.
                return self._answer(volume, volume.modify_index)
        else:
            check_change(before, volume)
            volume = _changed(before, volume, registering=registering)
        try:
            there = await ask(volume)
        except NomadError as error:
            raise await self._not_made(volume, error, new=before is None, tried=tried) from error
        return await self._complete(there)

    async def _create_there(self, volume: HostVolume) -> HostVolume:
        reply: calls.ClientHostVolumeCreateReply = await self._router.call(
            "ClientHostVolume.Create",
            calls.ClientHostVolumeCreateRequest(
                id=volume.id,
                name=volume.name,
                node_id=volume.node_id,
                plugin_id=volume.plugin_id,
                namespace=volume.namespace,
                requested_capacity_min_bytes=volume.requested_capacity_min_bytes,
                requested_capacity_max_bytes=volume.requested_capacity_max_bytes,
                parameters=volume.parameters or {},
            ),
            timeout_s=NODE_TIMEOUT_S,
        )
        return msgspec.structs.replace(
            volume, host_path=reply.host_path, capacity_bytes=reply.capacity_bytes
        )

    async def _register_there(self, volume: HostVolume) -> HostVolume:
        await self._router.call(
            "ClientHostVolume.Register",
            calls.ClientHostVolumeRegisterRequest(
                id=volume.id,
                name=volume.name,
                node_id=volume.node_id,
                host_path=volume.host_path,
                namespace=volume.namespace,
                capacity_bytes=volume.capacity_bytes,
                parameters=volume.parameters or {},
            ),
            timeout_s=NODE_TIMEOUT_S,
        )
        return volume

    def _known(self, volume: HostVolume) -> HostVolume | None:
        """The volume that a request names by ID. Raises InvalidRequestError when there is none: servers make the ids."""
        if not volume.id:
            return None
        before = self._core.snapshot().host_volume(volume.namespace, volume.id)
        if before is None:
            raise InvalidRequestError(
                f'no volume {volume.id} in namespace "{volume.namespace}": leave the ID out to make a new one'
            )
        return before

    async def _begin(
        self, volume: HostVolume, request: calls.HostVolumeWrite, *, needs_plugin: bool
    ) -> tuple[HostVolume, bool]:
        """Choose the node of a new volume and write it; a request that is sent again gets what it made the first time, and True."""
        core, request_id = self._core, request.options.request_id
        volume_id = _id_of(request_id) if request_id else core.entropy.uuid()
        known = core.snapshot().host_volume(volume.namespace, volume_id)
        if known is not None:
            return known, True
        node = place(core.snapshot(), volume, needs_plugin=needs_plugin)
        volume = msgspec.structs.replace(
            volume, id=volume_id, node_id=node.id, node_pool=node.node_pool, state=PENDING
        )
        applied = await core.propose(
            commands.HostVolumeUpsert(volumes=[volume]), request_id=request_id
        )
        await core.raft.wait_applied(applied.index, timeout_s=5)
        known = core.snapshot().host_volume(volume.namespace, volume_id)
        if known is None:
            raise InvalidRequestError(
                "the volume of an earlier try of this request was taken back: send a new request"
            )
        return known, False

    async def _not_made(
        self, volume: HostVolume, error: NomadError, *, new: bool, tried: bool
    ) -> NomadError:
        """Take back what was written for a volume that the node did not make; return what to tell.

        tried: the node had been asked before, so that it may have made the volume whatever it says now.
        """
        text = f'volume "{volume.name}" was not made: node {volume.node_id} said: {error.message}'
        if not new:
            return _because(error, f"{text}. The volume is as it was")
        if tried or isinstance(error, IndefiniteError):
            # Forgotten now and made after all, it would lie on the node with nobody knowing of it.
            return IndefiniteError(
                f'volume "{volume.name}" is not known to be made: node {volume.node_id} said: {error.message}. '
                f"It is ready once the node has it; if it stays pending, delete volume {volume.id}",
                status=error.status,
            )
        try:
            await self._core.propose(
                commands.HostVolumeDelete(namespace=volume.namespace, ids=[volume.id])
            )
        except NomadError as left:
            text += f". It is still listed ({left.message}); delete volume {volume.id}"
        return _because(error, text)

    async def _complete(self, volume: HostVolume) -> Answer:
        try:
            applied = await self._core.propose(
                commands.HostVolumeUpsert(
                    volumes=[msgspec.structs.replace(volume, state=READY, deleting=False)]
                )
            )
        except NomadError as error:
            # Not having been written now is definite; the volume is there all the same.
            raise IndefiniteError(
                f'volume "{volume.name}" is on node {volume.node_id}, and servers could not write that: {error.message}. '
                f"It is ready once the node has told them; see volume {volume.id}",
                status=error.status,
            ) from error
        await self._core.raft.wait_applied(applied.index, timeout_s=5)
        stored = self._core.snapshot().host_volume(volume.namespace, volume.id)
        return self._answer(stored or volume, applied.index)

    async def _write(self, volume: HostVolume) -> None:
        applied = await self._core.propose(commands.HostVolumeUpsert(volumes=[volume]))
        await self._core.raft.wait_applied(applied.index, timeout_s=5)

    def _answer(self, volume: HostVolume, index: int) -> Answer:
        return written(HostVolumeWritten(volume=volume, index=index), index)


def volume_stub(volume: HostVolume) -> HostVolumeStub:
    """A row of /v1/volumes?type=host."""
    return HostVolumeStub(
        namespace=volume.namespace,
        id=volume.id,
        name=volume.name,
        plugin_id=volume.plugin_id,
        node_pool=volume.node_pool,
        node_id=volume.node_id,
        capacity_bytes=volume.capacity_bytes,
        state=volume.state,
        create_index=volume.create_index,
        create_time=volume.create_time,
        modify_index=volume.modify_index,
        modify_time=volume.modify_time,
    )


def _asked(request: calls.HostVolumeWrite) -> HostVolume:
    """The volume as asked for, without what servers set."""
    return msgspec.structs.replace(
        request.volume,
        namespace=request.options.namespace,
        state="",
        allocations=None,
        deleting=False,
        **dict.fromkeys(_NOT_WANTED, 0),
    )


def _changed(before: HostVolume, asked: HostVolume, *, registering: bool) -> HostVolume:
    """A volume that exists, with what may change of it as asked."""
    path, capacity = (asked.host_path, asked.capacity_bytes) if registering else ("", 0)
    return msgspec.structs.replace(
        before,
        constraints=asked.constraints,
        requested_capacity_min_bytes=asked.requested_capacity_min_bytes,
        requested_capacity_max_bytes=asked.requested_capacity_max_bytes,
        requested_capabilities=asked.requested_capabilities,
        parameters=asked.parameters,
        host_path=path or before.host_path,
        capacity_bytes=capacity or before.capacity_bytes,
    )


def _id_of(request_id: str) -> str:
    """The id of the volume that a request makes: the same each time it is sent."""
    digest = hashlib.blake2b(f"host volume {request_id}".encode(), digest_size=16).digest()
    return str(uuid.UUID(bytes=digest))


def _because(error: NomadError, text: str) -> NomadError:
    """The error of a node with what it means here; whether anything happened stays as the error had it."""
    if isinstance(error, IndefiniteError):
        return IndefiniteError(text, status=error.status)
    return InvalidRequestError(text, status=error.status if error.status >= 500 else 400)
