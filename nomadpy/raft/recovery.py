"""Recovery from a lost majority: an operator names the servers that remain, in `peers.json` in the raft directory.

The file is Nomad's: a list of {"id", "address", "non_voter"}; "name" may be added. It is read once at start, put in
force, and renamed to `peers.json.applied`, so that it never counts twice. Every server that it names must be started with the same file.

What it says becomes an override of each configuration in the log and its snapshots up to the newest term known here. The log
itself is left alone: what was committed but not known to be is still decided by an election among those that remain, and the
one with the longest log wins. The cluster gets another name, so a lost server that comes back cannot mix its log in.
"""

from __future__ import annotations

import hashlib
import os

import msgspec

from nomadpy import logs
from nomadpy.errors import ConfigError, CorruptionError
from nomadpy.raft import configuration as conf
from nomadpy.raft.config import PeerSpec, RaftConfig
from nomadpy.raft.files import Files, write_atomically
from nomadpy.raft.journal import Journal
from nomadpy.raft.pysyncobj_seam import MEMBERSHIP
from nomadpy.raft.snapshots import SnapshotStore

PEERS_FILE = "peers.json"
APPLIED_SUFFIX = ".applied"
OVERRIDE_FILE = "recovered-configuration"
TERM_LEAP = 1_000_000
"""Each recovered server leaves so many terms out: a leader of the lost majority may have led in those just above what
is known here, and two leaders of one term would be the end of it."""

log = logs.get(__name__)


class _Peer(msgspec.Struct):
    id: str
    address: str
    non_voter: bool = False
    name: str = ""


def recovered(
    config: RaftConfig, files: Files, journal: Journal, snapshots: SnapshotStore
) -> conf.Override | None:
    """The override in force, after applying `peers.json` when there is one.

    Raises ConfigError when the file is of no use, CorruptionError when an earlier override cannot be read.
    """
    known = _load(config, files)
    path = os.path.join(config.data_dir, PEERS_FILE)
    try:
        data = files.read(path)
    except FileNotFoundError:
        return known
    peers = _parse(path, data)
    history = _on_disk(journal, snapshots, known)
    before = history.current
    if before.server(config.server_id) is None and not before.peers:
        raise ConfigError(
            f"{path}: this server has no log to recover; remove the file, and let the server join the others"
        )
    if config.server_id not in {peer.id for peer in peers}:
        raise ConfigError(
            f"{path}: does not name this server, {config.server_id}; a server that is not named must not be started with it"
        )
    names = {peer.id: peer.name for peer in (*before.peers, *before.learners)}
    specs = {
        peer.id: PeerSpec(peer.id, peer.name or names.get(peer.id, peer.address), peer.address)
        for peer in peers
    }
    voters = tuple(specs[p.id] for p in sorted(peers, key=lambda p: p.id) if not p.non_voter)
    learners = tuple(specs[p.id] for p in sorted(peers, key=lambda p: p.id) if p.non_voter)
    source = hashlib.sha256(data).hexdigest()
    if known is not None and known.source == source and history.unstated is not None:
        # The same file again: the last start was cut short before it could rename it.
        cluster = known.configuration.cluster
    else:
        cluster = hashlib.sha256(f"{before.cluster} {source}".encode()).hexdigest()[:32]
    gone = [p.id for p in (*before.peers, *before.learners) if p.id not in specs]
    removed = (*(i for i in before.removed if i not in specs), *gone)
    override = conf.Override(
        journal.term,
        conf.Configuration(cluster, voters, learners, removed[-conf.REMEMBERED :]),
        source,
    )
    write_atomically(
        files,
        os.path.join(config.data_dir, OVERRIDE_FILE),
        msgspec.msgpack.encode(override),
        fsync=config.fsync,
    )
    journal.set_hard_state(journal.term + TERM_LEAP, None)
    journal.sync()
    files.rename(path, path + APPLIED_SUFFIX)
    if config.fsync:
        files.sync_directory(config.data_dir)
    log.warning(
        "configuration recovered from peers.json",
        servers=", ".join(f"{peer.id} {peer.address}" for peer in _sorted(peers)),
        last_index=journal.last_index,
    )
    return override


def _sorted(peers: list[_Peer]) -> list[_Peer]:
    return sorted(peers, key=lambda peer: peer.id)


def _parse(path: str, data: bytes) -> list[_Peer]:
    try:
        peers = msgspec.json.decode(data, type=list[_Peer])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'{path}: is not a list of {{"id": "...", "address": "host:port", "non_voter": false}}: {error}'
        ) from error
    if not any(not peer.non_voter for peer in peers):
        raise ConfigError(f"{path}: names no server that votes")
    if len({peer.id for peer in peers}) != len(peers):
        raise ConfigError(f"{path}: names a server twice")
    for peer in peers:
        host, colon, port = peer.address.rpartition(":")
        if not peer.id or not colon or not host or not port.isdecimal():
            raise ConfigError(
                f"{path}: {peer.id!r} at {peer.address!r} is not an id and a host:port"
            )
    return peers


def _load(config: RaftConfig, files: Files) -> conf.Override | None:
    path = os.path.join(config.data_dir, OVERRIDE_FILE)
    try:
        data = files.read(path)
    except FileNotFoundError:
        return None
    try:
        return msgspec.msgpack.decode(data, type=conf.Override)
    except msgspec.DecodeError as error:
        raise CorruptionError(f"{path}: cannot be read: {error}") from error


def _on_disk(
    journal: Journal, snapshots: SnapshotStore, known: conf.Override | None
) -> conf.ConfigurationHistory:
    """The configuration that this server would start with."""
    history = conf.ConfigurationHistory(known)
    latest = snapshots.latest
    if latest is not None:
        history.reset(latest.index, latest.configuration, latest.term)
    for command, index, term in journal.entries:
        if command[:1] == bytes([MEMBERSHIP]):
            history.append(index, conf.decode_change(command[1:]), term)
    return history
