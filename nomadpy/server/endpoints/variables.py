"""Variables.*: lists, reads in the clear, and writes that are encrypted before they enter the log.

Writes run on the leader: it encrypts with the active root key, proposes, and answers from what applying gave. A lock is
renewed without the log: the leader proves that it still leads after the request had come, and starts the TTL anew.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec

from nomadpy.errors import InvalidRequestError, NotFoundError, UnsupportedError
from nomadpy.fsm import commands
from nomadpy.hcl.durations import format_duration
from nomadpy.models import calls
from nomadpy.models.envelope import ALL_NAMESPACES, Answer
from nomadpy.models.root_key import RootKey
from nomadpy.models.variable import (
    HeldLock,
    Items,
    Sealed,
    StoredVariable,
    Variable,
    VariableLock,
    VariableMetadata,
    Written,
)
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server.endpoints.base import Services
from nomadpy.server.query import Found, page
from nomadpy.state.store import Snapshot
from nomadpy.state.variables import RetiredKeyError

MAX_BYTES = 64 * 1024
DEFAULT_TTL = DEFAULT_DELAY = 15 * 1_000_000_000
MIN_TTL = 10 * 1_000_000_000
MAX_TTL = MAX_DELAY = 24 * 3600 * 1_000_000_000
TRIES = 3
FIRST_KEY_S = 10.0
NO_KEY = "the cluster has no root key yet; try again"
OPERATIONS = ("set", "delete", "lock-acquire", "lock-renew", "lock-release")

_PATH = re.compile(r"[a-zA-Z0-9-_~/]{1,128}")
_encode = msgspec.json.Encoder().encode


class Variables:
    """Handlers."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._queries = services.queries
        self._keyring = services.keyring
        self._locks = services.duties.locks
        register = services.router.register
        register("Variables.List", self.list)
        register("Variables.Get", self.get)
        register("Variables.Apply", self.apply)

    # -- reads ----------------------------------------------------------------------------------------

    async def list(self, _: CallContext, request: calls.Read) -> Answer:
        """Metadata by namespace and path; never items, never a lock's id."""
        options = request.options

        def read(snapshot: Snapshot) -> Found:
            namespace = None if options.namespace == ALL_NAMESPACES else options.namespace
            rows = (_metadata(v) for v in snapshot.variables(namespace, options.prefix))
            found = page(rows, options, token=lambda row: (row.namespace, row.path))
            return Found(
                index=snapshot.table_index("variables"),
                value=found.items,
                next_token=found.next_token,
            )

        return await self._queries.answer(options, [("table", "variables")], read)

    async def get(self, _: CallContext, request: calls.Read) -> Answer:
        """One variable with its items."""
        options = request.options
        _check_namespace(options.namespace)

        def read(snapshot: Snapshot) -> Found:
            variable = snapshot.variable(options.namespace, request.id)
            if variable is None:
                index = snapshot.table_index("variables")
                return Found(index=index, missing="variable not found")
            value = self._in_the_clear(snapshot, variable, lock=_wire_lock(variable.lock))
            return Found(index=variable.modify_index, value=value)

        key = (options.namespace, request.id)
        return await self._queries.answer(options, [("table", "variables", key)], read)

    # -- writes -----------------------------------------------------------------------------------------

    async def apply(self, _: CallContext, request: calls.VariableApply) -> calls.VariableReply:
        """Write, delete, lock, renew or release."""
        check(request)
        if request.op == "lock-renew":
            return await self._renew(request)
        applied = await self._propose(request)
        written = msgspec.convert(applied.value, Written)
        if written.conflict:
            return self._conflict(request, written)
        body = b"" if request.op == "delete" else _encode(self._output(request, written))
        return calls.VariableReply(body=body, index=applied.index)

    async def _propose(self, request: calls.VariableApply) -> commands.Applied:
        request_id = request.options.request_id
        if request.op in ("set", "lock-acquire"):
            await self._first_key()
        for attempt in range(TRIES):
            try:
                return await self._core.propose(
                    self._command(request),
                    # A refusal is remembered under its id too, so each attempt has its own.
                    request_id=f"{request_id}/{attempt}" if attempt and request_id else request_id,
                )
            except RetiredKeyError:
                # A rotation came between encrypting and applying; nothing was written.
                if attempt == TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _command(self, request: calls.VariableApply) -> commands.Command:
        namespace, path = request.options.namespace, request.path
        if request.op == "delete":
            return commands.VariableDelete(namespace=namespace, path=path, cas=request.cas)
        if request.op == "lock-release":
            return commands.VariableUnlock(
                namespace=namespace, path=path, lock_id=request.lock_id, reason="released"
            )
        sealed = self._sealed(namespace, path, request.items or {})
        if request.op == "set":
            return commands.VariableSet(
                namespace=namespace,
                path=path,
                sealed=sealed,
                cas=request.cas,
                lock_id=request.lock_id,
            )
        return commands.VariableLock(
            namespace=namespace,
            path=path,
            sealed=sealed,
            lock_id=self._core.entropy.uuid(),
            ttl=request.ttl or DEFAULT_TTL,
            delay=request.delay or DEFAULT_DELAY,
            keep=not request.items,
            held_id=request.lock_id,
        )

    async def _renew(self, request: calls.VariableApply) -> calls.VariableReply:
        # A later leader cannot have begun before this request came: its full TTL ends after the one given here.
        await self._core.raft.read_index()
        namespace, path = request.options.namespace, request.path
        variable = self._core.snapshot().variable(namespace, path)
        if variable is None:
            raise _refused("variable doesn't exist", status=404)
        if not self._locks.renew(namespace, path, request.lock_id):
            return calls.VariableReply(body=_nothing(request), conflict=True)
        return calls.VariableReply(body=_encode(_metadata(variable, with_id=True)))

    # -- answers ----------------------------------------------------------------------------------------

    def _output(self, request: calls.VariableApply, written: Written) -> VariableMetadata:
        items: Items | None = request.items
        if request.op == "lock-acquire" and not items:
            snapshot = self._core.snapshot()
            stored = snapshot.variable(request.options.namespace, request.path)
            if stored is not None and stored.modify_index == written.modify_index:
                items = self._in_the_clear(snapshot, stored, lock=None).items
        return Variable(
            namespace=request.options.namespace,
            path=request.path,
            create_index=written.create_index,
            modify_index=written.modify_index,
            create_time=written.create_time,
            modify_time=written.modify_time,
            lock=_wire_lock(written.lock),
            items=items,
        )

    def _conflict(self, request: calls.VariableApply, written: Written) -> calls.VariableReply:
        """What is in the way: the variable for a check that did not hold, bare names for a lock."""
        namespace, path = request.options.namespace, request.path
        if written.conflict == "lock" or not written.modify_index:
            # The API names no index when the operation itself was about a lock.
            index = 0 if request.op in ("set", "delete") else -1
            return calls.VariableReply(body=_nothing(request), index=index, conflict=True)
        snapshot = self._core.snapshot()
        stored = snapshot.variable(namespace, path)
        shown: VariableMetadata
        if stored is None:
            # Removed since; what was in the way is known without its items.
            shown = VariableMetadata(
                namespace=namespace,
                path=path,
                create_index=written.create_index,
                modify_index=written.modify_index,
                create_time=written.create_time,
                modify_time=written.modify_time,
            )
        else:
            lock = _wire_lock(stored.lock, with_id=False)
            shown = self._in_the_clear(snapshot, stored, lock=lock)
        return calls.VariableReply(body=_encode(shown), index=shown.modify_index, conflict=True)

    # -- encryption -------------------------------------------------------------------------------------

    async def _first_key(self) -> None:
        """Wait for the root key of a new cluster, which takes its first leader a second to make."""
        core = self._core
        try:
            async with asyncio.timeout(FIRST_KEY_S):
                changed = asyncio.Event()
                while core.snapshot().active_root_key() is None:
                    changed.clear()
                    handle = core.store.watch([("table", "root_keys")], lambda _: changed.set())
                    try:
                        await changed.wait()
                    finally:
                        handle.cancel()
        except TimeoutError as cause:
            raise UnsupportedError(NO_KEY, status=500) from cause

    def _sealed(self, namespace: str, path: str, items: Items) -> Sealed:
        key = self._core.snapshot().active_root_key()
        if key is None:
            raise UnsupportedError(NO_KEY, status=500)
        opened = self._keyring.open(key)
        if not opened.data_key:
            raise UnsupportedError("the root key has no data key yet; try again", status=500)
        return self._keyring.encrypt(opened, namespace, path, items, self._core.entropy)

    def _in_the_clear(
        self, snapshot: Snapshot, variable: StoredVariable, *, lock: VariableLock | None
    ) -> Variable:
        key: RootKey | None = snapshot.root_key(variable.sealed.key_id)
        if key is None:
            raise NotFoundError(
                f"the root key {variable.sealed.key_id} of this variable was removed by force",
                status=500,
            )
        items = self._keyring.decrypt(
            self._keyring.open(key), variable.namespace, variable.path, variable.sealed
        )
        # An empty map is left out, as Go leaves it out.
        return Variable(**_shared(variable), lock=lock, items=items or None)


# -- rules ----------------------------------------------------------------------------------------------


def check(request: calls.VariableApply) -> None:
    """Raise the wire's error for a write that breaks a rule."""
    _check_namespace(request.options.namespace)
    if request.op == "delete":
        if not request.path:
            raise _refused("delete requires a Path")
        return
    if request.op in ("lock-release", "lock-renew"):
        if request.op == "lock-release" and request.items is not None:
            raise _refused("lock release operation doesn't take variable items")
        if not request.lock_id:
            raise _refused("missing lock information")
    elif request.op == "set":
        if not request.items:
            raise _refused("empty variables are invalid")
    elif request.op == "lock-acquire":
        _check_times(request.ttl or DEFAULT_TTL, request.delay or DEFAULT_DELAY)
    else:
        raise _refused(f"unknown operation {request.op!r}")
    size = sum(len(k.encode()) + len(v.encode()) for k, v in (request.items or {}).items())
    if size > MAX_BYTES:
        raise _refused("variables are limited to 64KiB in total size")
    fault = path_fault(request.path)
    if fault:
        raise _refused(fault)


def path_fault(path: str) -> str:
    """What is wrong with a path, "" for nothing. Below nomad/ only jobs and job templates have variables."""
    if not path:
        return "variable requires path"
    if not _PATH.fullmatch(path):
        return f'invalid path "{path}"'
    parts = path.split("/")
    if parts[0] != "nomad":
        return ""
    if len(parts) == 1:
        return (
            '"nomad" is a reserved top-level directory path, but you may write variables to '
            '"nomad/jobs", "nomad/job-templates", or below'
        )
    if parts[1] == "jobs":
        return ""
    if parts[1] == "job-templates":
        if len(parts) == 3:
            return ""
        return (
            '"nomad/job-templates" is a reserved directory path, but you may write variables at the level '
            'below it, for example, "nomad/job-templates/template-name"'
        )
    return (
        'only paths at "nomad/jobs" or "nomad/job-templates" and below are valid paths under the '
        'top-level "nomad" directory'
    )


def _check_namespace(namespace: str) -> None:
    if namespace == ALL_NAMESPACES:
        raise _refused('can not target wildcard ("*")namespace')


def _check_times(ttl: int, delay: int) -> None:
    if ttl < 0 or delay < 0:
        raise _refused("Lock delay and TTL must be positive")
    if not MIN_TTL <= ttl <= MAX_TTL:
        raise _refused("TTL must be between 10 seconds and 24 hours")
    if delay > MAX_DELAY:
        raise _refused("LockDelay must not be above 24 hours")


def _refused(reason: str, *, status: int = 400) -> InvalidRequestError:
    # The API shows the rpc's own coding of the error, and an index of 0.
    return InvalidRequestError(
        f"RPC Error:: {status},{reason}", status=status, index=0, last_contact_ms=-1
    )


# -- the wire -------------------------------------------------------------------------------------------


def _shared(variable: StoredVariable) -> dict[str, Any]:
    return {
        "namespace": variable.namespace,
        "path": variable.path,
        "create_index": variable.create_index,
        "modify_index": variable.modify_index,
        "create_time": variable.create_time,
        "modify_time": variable.modify_time,
    }


def _metadata(variable: StoredVariable, *, with_id: bool = False) -> VariableMetadata:
    return VariableMetadata(**_shared(variable), lock=_wire_lock(variable.lock, with_id=with_id))


def _nothing(request: calls.VariableApply) -> bytes:
    """A conflict that tells nothing but its place."""
    return _encode(VariableMetadata(namespace=request.options.namespace, path=request.path))


def _wire_lock(lock: HeldLock | None, *, with_id: bool = True) -> VariableLock | None:
    if lock is None:
        return None
    return VariableLock(
        id=lock.id if with_id else "",
        ttl=format_duration(lock.ttl),
        lock_delay=format_duration(lock.delay),
    )
