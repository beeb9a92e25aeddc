"""Which servers count: the snapshot's configuration and the changes in the log after it.

A change is in force as soon as it is in the log, committed or not, and gone when its entry is cut off again.
"""

from __future__ import annotations

import hashlib

import msgspec

from nomadpy.raft.config import PeerSpec

REMEMBERED = 1024
"""So many removed servers are kept in mind; far more than ever come back."""


class Configuration(msgspec.Struct, frozen=True):
    """The voting servers. cluster: names the cluster, "" before the first configuration. learners: servers that get
    the log but count nowhere. removed: ids that were taken out for good, the newest last."""

    cluster: str = ""
    peers: tuple[PeerSpec, ...] = ()
    learners: tuple[PeerSpec, ...] = ()
    removed: tuple[str, ...] = ()

    def peer(self, server_id: str) -> PeerSpec | None:
        """The voting server with this id, or None."""
        return _find(self.peers, server_id)

    def learner(self, server_id: str) -> PeerSpec | None:
        """The learner with this id, or None."""
        return _find(self.learners, server_id)

    def server(self, server_id: str) -> PeerSpec | None:
        """The server with this id, voting or not, or None."""
        return self.peer(server_id) or self.learner(server_id)


def _find(servers: tuple[PeerSpec, ...], server_id: str) -> PeerSpec | None:
    for server in servers:
        if server.id == server_id:
            return server
    return None


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The first configuration."""

    cluster: str
    peers: tuple[PeerSpec, ...]


class Add(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A server joins, or moves to another address."""

    peer: PeerSpec


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A server leaves. final: for good, so that its id is remembered; else it may come back as the same."""

    id: str
    final: bool = True


class AddLearner(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A server gets the log from now on, without a vote."""

    peer: PeerSpec


class Replace(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The whole configuration anew: what a recovery from a lost majority put in force becomes part of the log."""

    configuration: Configuration


Change = Begin | Add | Remove | AddLearner | Replace

_decode = msgspec.msgpack.Decoder(Change).decode


def encode_change(change: Change) -> bytes:
    """The body of a log entry."""
    return msgspec.msgpack.encode(change)


def decode_change(body: bytes) -> Change:
    """Inverse of encode_change."""
    change: Change = _decode(body)
    return change


def begin(peers: list[PeerSpec]) -> Begin:
    """The first configuration. The cluster's name follows from the servers, so that two groups of servers that were
    started apart from each other refuse to mix their logs."""
    ordered = tuple(sorted(peers, key=lambda peer: peer.id))
    digest = hashlib.sha256("\n".join(peer.id for peer in ordered).encode())
    return Begin(digest.hexdigest()[:32], ordered)


def after(configuration: Configuration, change: Change) -> Configuration:
    """The configuration once `change` is in force."""
    if isinstance(change, Begin):
        return Configuration(change.cluster, change.peers)
    if isinstance(change, Replace):
        return change.configuration
    gone = change.id if isinstance(change, Remove) else change.peer.id
    peers = [peer for peer in configuration.peers if peer.id != gone]
    learners = [peer for peer in configuration.learners if peer.id != gone]
    removed = [server_id for server_id in configuration.removed if server_id != gone]
    if isinstance(change, Add):
        peers.append(change.peer)
    elif isinstance(change, AddLearner):
        learners.append(change.peer)
    elif change.final:
        removed.append(gone)
    return Configuration(
        configuration.cluster, _ordered(peers), _ordered(learners), tuple(removed[-REMEMBERED:])
    )


def _ordered(peers: list[PeerSpec]) -> tuple[PeerSpec, ...]:
    return tuple(sorted(peers, key=lambda peer: peer.id))


class Override(msgspec.Struct, frozen=True):
    """What an operator put in the place of every configuration that the log and its snapshots have up to `term`.

    source: digest of the file it was read from."""

    term: int
    configuration: Configuration
    source: str = ""


class ConfigurationHistory:
    """The base configuration at one index, and the changes after it."""

    def __init__(self, override: Override | None = None) -> None:
        self._override = override
        self._base = override.configuration if override is not None else Configuration()
        self._base_index = 0
        self._base_term = 0
        self._changes: list[tuple[int, int, Change]] = []
        self.current = self._base

    @property
    def last_change_index(self) -> int:
        """Index of the newest change; 0 when the base is all there is."""
        return self._changes[-1][0] if self._changes else 0

    @property
    def unstated(self) -> Configuration | None:
        """The configuration that rests on an override alone and that no entry of the log states; None else."""
        if self._override is None:
            return None
        newest = self._changes[-1][1] if self._changes else self._base_term
        return self._override.configuration if newest <= self._override.term else None

    def append(self, index: int, change: Change, term: int = 0) -> None:
        """A change entered the log at `index`, written in `term`."""
        if index > self._base_index and not self._is_overridden(term):
            self._changes.append((index, term, change))
            self.current = after(self.current, change)

    def truncate_from(self, index: int) -> bool:
        """The log was cut at `index`; tell whether that changed the configuration."""
        kept = [item for item in self._changes if item[0] < index]
        if len(kept) == len(self._changes):
            return False
        self._changes = kept
        self.current = self.at(kept[-1][0]) if kept else self._base
        return True

    def rebase(self, index: int, configuration: Configuration, term: int = 0) -> None:
        """A snapshot whose last entry is of `term` fixes the configuration at `index`; later changes stay."""
        if index < self._base_index:
            return
        if self._override is not None and self._is_overridden(term):
            configuration = self._override.configuration
        self._base, self._base_index, self._base_term = configuration, index, term
        self._changes = [item for item in self._changes if item[0] > index]
        self.current = self.at(self.last_change_index)

    def reset(self, index: int, configuration: Configuration, term: int = 0) -> None:
        """The log was replaced by a snapshot at `index`."""
        self._changes, self._base_index = [], 0
        self.rebase(index, configuration, term)

    def at(self, index: int) -> Configuration:
        """The configuration in force at `index`, which is not below the base."""
        configuration = self._base
        for changed_at, _, change in self._changes:
            if changed_at > index:
                break
            configuration = after(configuration, change)
        return configuration

    def _is_overridden(self, term: int) -> bool:
        return self._override is not None and term <= self._override.term
