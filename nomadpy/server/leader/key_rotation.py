"""The life of root keys: made, published, rotated by age, replaced under what they encrypted, removed when unused.

In:      the root keys of the state, and what uses them.
Out:     commands that make, activate and remove keys, and variables encrypted anew after a full rotation.
Not here: an operator's own rotation and removal (endpoints/keyring.py); ciphers (pki/keyring.py).

A key signs identities and task certificates besides encrypting variables, so it is removed only when it has been
retired for longer than any certificate it signed lives, no allocation is left from its time and no variable uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from nomadpy import logs
from nomadpy.errors import ConfigError, CorruptionError, NomadError
from nomadpy.fsm.commands import Resealed, RootKeyDelete, RootKeyUpsert, VariableReseal
from nomadpy.models.root_key import KeyState, RootKey
from nomadpy.pki.keyring import Keyring
from nomadpy.server.core import Core
from nomadpy.server.settings import ServerSettings
from nomadpy.state.schema import VariableKey, alloc_is_terminal
from nomadpy.state.store import Snapshot

log = logs.get(__name__)

RETRY_S = 5.0
BATCH = 100
BATCH_BYTES = 512 * 1024
_NS = 1_000_000_000
LEAD_S = 48 * 3600.0
"""How long before its rotation a key is published, so that all who check signatures know it when it is first used."""

MakeKey = Callable[[], Awaitable[RootKey]]


class KeyRotation:
    """Looks after the keys while this server leads."""

    def __init__(self, core: Core, keyring: Keyring, make_root_key: MakeKey) -> None:
        self._core = core
        self._keyring = keyring
        self._make_root_key = make_root_key
        self._changed = asyncio.Event()

    async def new_key(self, *, state: KeyState = "active", publish_time: int = 0) -> RootKey:
        """Make a root key and wrap it; nothing is stored."""
        key = msgspec.structs.replace(
            await self._make_root_key(),
            state=state,
            publish_time=publish_time,
            create_time=self._core.clock.now_ns(),
        )
        return self._keyring.wrap(key, self._core.entropy)

    def keys_changed(self) -> None:
        """Look at once: a root key came, changed or went."""
        self._changed.set()

    async def run(self) -> None:
        """Do what is due, whenever keys change and every gc interval; cancelling ends it."""
        while True:
            self._changed.clear()
            wait_s = max(1.0, self._core.settings.root_key_gc_interval_s)
            try:
                await self._look()
            except NomadError as error:
                log.warning("root keys not looked after", error=error.message)
                wait_s = RETRY_S
            wait_s = min(wait_s, self._until_publication())
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue
            # A refused look must not be repeated without a pause because of its own changes.
            await asyncio.sleep(0)

    async def _look(self) -> None:
        core = self._core
        await self._wrap_all()
        now_ns = core.clock.now_ns()
        for key in core.snapshot().root_keys():
            if key.state == "prepublished" and key.publish_time <= now_ns:
                log.info("published root key becomes active", key_id=key.key_id)
                await core.propose(RootKeyUpsert(key=msgspec.structs.replace(key, state="active")))
        await self._rotate_by_age(now_ns)
        await self._reseal()
        for key_id in unused_keys(core.snapshot(), core.settings, now_ns=core.clock.now_ns()):
            log.info("unused root key removed", key_id=key_id)
            await core.propose(RootKeyDelete(key_id=key_id))

    async def _wrap_all(self) -> None:
        """Wrap every key as the configuration of this leader says."""
        for key in self._core.snapshot().root_keys():
            if self._keyring.is_current(key):
                continue
            try:
                wrapped = self._keyring.wrap(self._keyring.open(key), self._core.entropy)
            except (ConfigError, CorruptionError) as error:
                # Not this server's to repair; requests that need the key say the same.
                log.error("root key cannot be opened", key_id=key.key_id, error=error.message)
                continue
            log.info("root key wrapped", key_id=key.key_id, provider=self._keyring.provider)
            await self._core.propose(RootKeyUpsert(key=wrapped))

    async def _rotate_by_age(self, now_ns: int) -> None:
        snapshot, settings = self._core.snapshot(), self._core.settings
        active = snapshot.active_root_key()
        threshold_s = settings.root_key_rotation_s
        if active is None or threshold_s <= 0:
            return
        if any(key.state == "prepublished" for key in snapshot.root_keys()):
            return
        lead_s = min(LEAD_S, threshold_s / 2)
        began_ns = max(active.create_time, active.publish_time)
        if now_ns < began_ns + int((threshold_s - lead_s) * _NS):
            return
        publish_ns = max(now_ns + int(lead_s * _NS), began_ns + int(threshold_s * _NS))
        key = await self.new_key(state="prepublished", publish_time=publish_ns)
        log.info("root key will be rotated", key_id=key.key_id, publish_time=publish_ns)
        await self._core.propose(RootKeyUpsert(key=key))

    def _until_publication(self) -> float:
        now_ns = self._core.clock.now_ns()
        times = [
            key.publish_time
            for key in self._core.snapshot().root_keys()
            if key.state == "prepublished"
        ]
        return max(RETRY_S, (min(times) - now_ns) / _NS) if times else float("inf")

    async def _reseal(self) -> None:
        """Encrypt with the active key all that rekeying keys encrypted, in batches, until nothing is left."""
        core = self._core
        done = 0
        damaged: set[VariableKey] = set()
        while True:
            snapshot = core.snapshot()
            active = snapshot.active_root_key()
            old = [key for key in snapshot.root_keys() if key.state == "rekeying"]
            if not old or active is None:
                return
            batch = self._batch(snapshot, old, active, damaged)
            # An empty one ends the state of keys that nothing uses any more.
            await core.propose(VariableReseal(variables=batch))
            done += len(batch)
            if not batch:
                log.info("variables encrypted anew", key_id=active.key_id, count=done)
                return

    def _batch(
        self, snapshot: Snapshot, old: list[RootKey], active: RootKey, damaged: set[VariableKey]
    ) -> list[Resealed]:
        keyring, target = self._keyring, self._keyring.open(active)
        batch: list[Resealed] = []
        size = 0
        for key in old:
            variables = snapshot.variables_by_root_key(key.key_id)
            source = keyring.open(key) if variables else key
            for variable in variables:
                if len(batch) == BATCH or size > BATCH_BYTES:
                    return batch
                name = (variable.namespace, variable.path)
                if name in damaged:
                    continue
                try:
                    items = keyring.decrypt(source, *name, variable.sealed)
                except CorruptionError as error:
                    # The others must not wait for it; its key stays, as it does for any variable.
                    log.error("variable not encrypted anew", path=name[1], error=error.message)
                    damaged.add(name)
                    continue
                sealed = keyring.encrypt(target, *name, items, self._core.entropy)
                batch.append(Resealed(*name, variable.sealed.nonce, sealed))
                size += len(sealed.data)
        return batch


def unused_keys(snapshot: Snapshot, settings: ServerSettings, *, now_ns: int) -> list[str]:
    """Ids of retired keys that nothing can need any more."""
    kept_s = max(settings.root_key_gc_s, settings.task_certificate_ttl_s)
    found: list[str] = []
    for key in snapshot.root_keys():
        if key.state != "inactive" or key.retired_time > now_ns - int(kept_s * _NS):
            continue
        if snapshot.variables_by_root_key(key.key_id):
            continue
        # Its identities live as long as the allocations they were made for.
        if any(
            a.create_index <= key.modify_index and not alloc_is_terminal(a)
            for a in snapshot.allocs()
        ):
            continue
        found.append(key.key_id)
    return found
