"""Keyring.*: the root keys as operators see them, and the public keys of workload identities."""

from __future__ import annotations

import msgspec

from nomadpy.errors import InvalidRequestError
from nomadpy.fsm import commands
from nomadpy.models import calls
from nomadpy.models.envelope import Answer
from nomadpy.models.operator import RootKeyMeta
from nomadpy.models.root_key import RootKey
from nomadpy.pki.identity import jwks
from nomadpy.rpc.dispatch import CallContext
from nomadpy.server.endpoints.base import Services, done, written
from nomadpy.server.endpoints.job_reads import truth
from nomadpy.server.query import Found
from nomadpy.state.store import Snapshot

ALGORITHM = "aes256-gcm"


class RootKeys:
    """Handlers."""

    def __init__(self, services: Services) -> None:
        self._core = services.core
        self._queries = services.queries
        self._keyring = services.keyring
        self._keys = services.duties.keys
        register = services.router.register
        register("Keyring.JWKS", self.jwks)
        register("Keyring.List", self.list)
        register("Keyring.Rotate", self.rotate)
        register("Keyring.Delete", self.delete)

    async def jwks(self, _: CallContext, request: calls.Read) -> Answer:
        """The public keys that verify workload identities."""

        def read(snapshot: Snapshot) -> Found:
            opened = [self._keyring.open(key) for key in snapshot.root_keys()]
            return Found(index=snapshot.table_index("root_keys"), value=jwks(opened))

        options = msgspec.structs.replace(request.options, allow_stale=True)
        return await self._queries.answer(options, [("table", "root_keys")], read)

    async def list(self, _: CallContext, request: calls.Read) -> Answer:
        """What is to be told of the root keys."""

        def read(snapshot: Snapshot) -> Found:
            rows = [key_meta(key) for key in snapshot.root_keys()]
            return Found(index=snapshot.table_index("root_keys"), value=rows)

        return await self._queries.answer(request.options, [("table", "root_keys")], read)

    async def rotate(self, _: CallContext, request: calls.Write) -> Answer:
        """Make a new root key, active now or, with publish_time (nanoseconds since 1970), then.

        full: every variable is encrypted anew, in the background.
        """
        full = truth(request.flags, "full")
        publish_time = _publish_time(request.flags.get("publish_time", ""))
        if request.flags.get("algo", ALGORITHM) not in ("", ALGORITHM):
            raise InvalidRequestError(f'root keys have the algorithm "{ALGORITHM}"', status=500)
        if full and publish_time:
            raise InvalidRequestError(
                "keyring cannot be prepublished and full rotated at the same time", status=500
            )
        key = await self._keys.new_key(
            state="prepublished" if publish_time else "active", publish_time=publish_time
        )
        applied = await self._core.propose(
            commands.RootKeyUpsert(key=key, full=full), request_id=request.options.request_id
        )
        # A repeated rotation made its key the first time.
        stored = self._core.snapshot().root_keys()
        key = next((k for k in stored if k.create_index == applied.index), key)
        return written({"Key": key_meta(key), "Index": applied.index}, applied.index)

    async def delete(self, _: CallContext, request: calls.Write) -> Answer:
        """Remove a key that is not active; with force also one that variables are encrypted with."""
        if not request.id:
            raise InvalidRequestError("root key ID is required", status=500)
        await self._core.propose(
            commands.RootKeyDelete(key_id=request.id, force=truth(request.flags, "force")),
            request_id=request.options.request_id,
        )
        return done()


def key_meta(key: RootKey) -> RootKeyMeta:
    """A root key without its secrets."""
    return RootKeyMeta(
        key_id=key.key_id,
        algorithm=key.algorithm,
        state=key.state,
        create_time=key.create_time,
        create_index=key.create_index,
        modify_index=key.modify_index,
        publish_time=key.publish_time,
    )


def _publish_time(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InvalidRequestError(
            f"publish_time must be nanoseconds since 1970, not {text!r}", status=400
        )
    return int(text)
