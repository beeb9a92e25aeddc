"""Deliberate faults of a server, so that the fault-injection kit can prove that it would find them.

Set by the environment variable NOMADPY_MUTATION, which nothing but the kit sets, and refused unless the node's CA is one
that the kit made for its own cluster: no server that anybody relies on can have one. Not here: any part of the product
that knows of this module; the daemon calls `apply` on a server that is built, and that is all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from nomadpy import logs
from nomadpy.errors import ConfigError
from nomadpy.fsm.commands import Applied, Command, VariableSet
from nomadpy.models.variable import Written
from nomadpy.server.server import Server

VARIABLE = "NOMADPY_MUTATION"
KIT_CA = "nomadpy fault-injection kit CA"

MUTATIONS = {
    "stale-reads": "answer every read from what is here, without asking the leader",
    "drop-acknowledged-write": "acknowledge every 40th write of a variable without making it",
    "ignore-check-and-set": "write variables whatever index was demanded",
}

_DROP_EVERY = 40

log = logs.get(__name__)


def apply(server: Server, environment: Mapping[str, str], ca_pem: str | None) -> None:
    """Put the fault that the environment names into a server. Raises ConfigError when that must not be."""
    name = environment.get(VARIABLE, "")
    if not name:
        return
    if name not in MUTATIONS:
        raise ConfigError(f"{VARIABLE}: there is no {name!r}, only {', '.join(MUTATIONS)}")
    if not _is_kits(ca_pem):
        raise ConfigError(
            f"{VARIABLE} is set, which breaks a server on purpose, and this node's CA is not the fault-injection "
            "kit's: unset it"
        )
    log.error("THIS SERVER IS BROKEN ON PURPOSE", mutation=name, effect=MUTATIONS[name])
    if name == "stale-reads":
        _replace(server.queries, "consistent", _nothing)
        return
    count = itertools.count(1)
    propose = server.core.propose

    async def broken(command: Command, **options: Any) -> Applied:
        if isinstance(command, VariableSet):
            if name == "ignore-check-and-set":
                command = msgspec.structs.replace(command, cas=None)
            elif next(count) % _DROP_EVERY == 0:
                index = server.raft.last_index + 1
                now_ns = server.core.clock.now_ns()
                value = Written(
                    create_index=index,
                    modify_index=index,
                    create_time=now_ns,
                    modify_time=now_ns,
                )
                return Applied(index=index, value=msgspec.to_builtins(value))
        return await propose(command, **options)

    _replace(server.core, "propose", broken)


def _replace(owner: object, method: str, by: object) -> None:
    setattr(owner, method, by)


async def _nothing() -> None:
    return


def _is_kits(ca_pem: str | None) -> bool:
    if ca_pem is None:
        return False
    authorities = x509.load_pem_x509_certificates(ca_pem.encode())
    names = [
        attribute.value
        for authority in authorities
        for attribute in authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    return names == [KIT_CA]
