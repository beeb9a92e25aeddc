"""What a raft server is told: its peers, its limits and its state machine's interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from nomadpy.raft.messages import MAX_FRAME_BYTES


class PeerSpec(msgspec.Struct, frozen=True):
    """One server of the configuration. id: never reused, also not after the data was wiped; address: host:port of rpc."""

    id: str
    name: str
    address: str


class RaftConfig(msgspec.Struct, kw_only=True, frozen=True):
    """Settings of one server; times in seconds, sizes in bytes.

    snapshot_entries, snapshot_bytes: how much is applied between two snapshots. trailing_entries, trailing_bytes: how
    much of the log is kept behind a snapshot, so that a follower that is a little late needs none. fsync=False is for tests and throw-away
    development servers: a power cut then loses what was acknowledged. formats: the lowest and the highest format of the
    log that the state machine reads.
    """

    server_id: str
    name: str
    address: str
    data_dir: str
    region: str = "global"
    formats: tuple[int, int] = (1, 1)
    election_min_s: float = 1.0
    election_max_s: float = 2.0
    heartbeat_s: float = 0.1
    snapshot_entries: int = 8192
    snapshot_bytes: int = 128 << 20
    trailing_entries: int = 10240
    trailing_bytes: int = 64 << 20
    fsync: bool = True
    segment_bytes: int = 64 << 20
    max_command_bytes: int = 4 << 20
    max_batch: int = 2000
    max_batch_bytes: int = 4 << 20
    max_pending: int = 16384
    append_bytes: int = 1 << 20
    window_bytes: int = 16 << 20
    snapshot_chunk_bytes: int = 512 << 10

    @property
    def peer(self) -> PeerSpec:
        """This server as the others know it."""
        return PeerSpec(self.server_id, self.name, self.address)

    def check(self) -> None:
        """Raise ValueError when the settings contradict each other."""
        if not 0 < 3 * self.heartbeat_s < self.election_min_s < self.election_max_s:
            raise ValueError(
                "raft: an election timeout must be more than three heartbeats, and its minimum below its maximum; "
                f"heartbeat_s={self.heartbeat_s} election_min_s={self.election_min_s} "
                f"election_max_s={self.election_max_s}"
            )
        if self.append_bytes + self.max_command_bytes > MAX_FRAME_BYTES // 2:
            raise ValueError(
                f"raft: append_bytes and max_command_bytes together must stay below {MAX_FRAME_BYTES // 2}"
            )
        if min(self.snapshot_entries, self.trailing_entries, self.max_batch, self.max_pending) < 1:
            raise ValueError("raft: limits must be at least 1")


class StateMachine(Protocol):
    """What the log is applied to; called on the event loop only."""

    def apply(self, index: int, data: bytes) -> object:
        """Apply one command. Total and deterministic: an error is a returned value. LogFormatError stops the server."""
        ...

    def snapshot(self) -> Callable[[], Iterator[bytes]]:
        """Capture the present state in O(1); the iterator of chunks is consumed in a thread."""
        ...

    def restore(self, chunks: Iterator[bytes]) -> None:
        """Replace the whole state by a snapshot's chunks. An exception stops the server."""
        ...
