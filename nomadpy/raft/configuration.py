"""Which servers count: the snapshot's configuration and the changes in the log after it.

A change is in force as soon as it is in the log, committed or not, and gone when its entry is cut off again.
"""

from __future__ import annotations

import hashlib

import msgspec

from nomadpy.raft.config import PeerSpec


class Configuration(msgspec.Struct, frozen=True):
    """The voting servers. cluster: names the cluster, "" before the first configuration."""

    cluster: str = ""
    peers: tuple[PeerSpec, ...] = ()

    def peer(self, server_id: str) -> PeerSpec | None:
        """The server with this id, or None."""
        for peer in self.peers:
            if peer.id == server_id:
                return peer
        return None


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The first configuration."""

    cluster: str
    peers: tuple[PeerSpec, ...]


class Add(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A server joins, or moves to another address."""

    peer: PeerSpec


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A server leaves."""

    id: str


Change = Begin | Add | Remove

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
    gone = change.peer.id if isinstance(change, Add) else change.id
    peers = [peer for peer in configuration.peers if peer.id != gone]
    if isinstance(change, Add):
        peers.append(change.peer)
    return Configuration(configuration.cluster, tuple(sorted(peers, key=lambda peer: peer.id)))


class ConfigurationHistory:
    """The base configuration at one index, and the changes after it."""

    def __init__(self) -> None:
        self._base = Configuration()
        self._base_index = 0
        self._changes: list[tuple[int, Change]] = []
        self.current = Configuration()

    @property
    def last_change_index(self) -> int:
        """Index of the newest change; 0 when the base is all there is."""
        return self._changes[-1][0] if self._changes else 0

    def append(self, index: int, change: Change) -> None:
        """A change entered the log at `index`."""
        if index > self._base_index:
            self._changes.append((index, change))
            self.current = after(self.current, change)

    def truncate_from(self, index: int) -> bool:
        """The log was cut at `index`; tell whether that changed the configuration."""
        kept = [item for item in self._changes if item[0] < index]
        if len(kept) == len(self._changes):
            return False
        self._changes = kept
        self.current = self.at(kept[-1][0]) if kept else self._base
        return True

    def rebase(self, index: int, configuration: Configuration) -> None:
        """A snapshot fixes the configuration at `index`; later changes stay."""
        if index < self._base_index:
            return
        self._base, self._base_index = configuration, index
        self._changes = [item for item in self._changes if item[0] > index]
        self.current = self.at(self.last_change_index)

    def reset(self, index: int, configuration: Configuration) -> None:
        """The log was replaced by a snapshot at `index`."""
        self._changes, self._base_index = [], 0
        self.rebase(index, configuration)

    def at(self, index: int) -> Configuration:
        """The configuration in force at `index`, which is not below the base."""
        configuration = self._base
        for changed_at, change in self._changes:
            if changed_at > index:
                break
            configuration = after(configuration, change)
        return configuration
