"""What a leader sends: how far each follower is, what it lacks, how much may be under way, which reads wait."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec

from nomadpy.raft import messages as wire
from nomadpy.raft.config import PeerSpec, RaftConfig
from nomadpy.raft.configuration import Configuration
from nomadpy.raft.journal import Journal
from nomadpy.raft.snapshots import SnapshotHeader, SnapshotStore

_CHUNKS_UNDER_WAY = 8


class Outbox(Protocol):
    """What the core needs of the transport."""

    def send(self, server_id: str, message: wire.Message) -> None:
        """Queue a message; lost when the server is not connected."""
        ...

    def add_peer(self, peer: PeerSpec) -> None:
        """Keep a connection to this server."""
        ...

    def drop_peer(self, server_id: str) -> None:
        """End the connections to this server."""
        ...

    def is_connected(self, server_id: str) -> bool:
        """Whether requests to this server would be sent."""
        ...


class Head(msgspec.Struct, frozen=True):
    """What every message of a leader says of it."""

    term: int
    commit: int
    round: int


class Replicator:
    """Sends followers what they lack: heartbeats, entries, or a snapshot when the log no longer reaches back."""

    def __init__(
        self, config: RaftConfig, journal: Journal, snapshots: SnapshotStore, outbox: Outbox
    ) -> None:
        self.progress: dict[str, Progress] = {}
        self._config = config
        self._journal = journal
        self._snapshots = snapshots
        self._outbox = outbox
        self._shared: dict[tuple[int, int], wire.AppendEntries] = {}

    def set_members(self, server_ids: list[str]) -> list[str]:
        """The followers from now on; return those that are none any more."""
        gone = [server_id for server_id in self.progress if server_id not in server_ids]
        for server_id in gone:
            del self.progress[server_id]
        for server_id in server_ids:
            if server_id not in self.progress:
                self.progress[server_id] = Progress(self._journal.last_index + 1)
        return gone

    def start(self) -> None:
        """A leadership begins: nothing is known of anyone."""
        for server_id in self.progress:
            self.progress[server_id] = Progress(self._journal.last_index + 1)

    def replicate(self, head: Head, *, heartbeat: bool) -> bool:
        """Send what can be sent; with `heartbeat` every follower hears something. True when all got entries or are
        not connected, so that all who listen know the commit index."""
        self._shared = {}
        all_told = True
        for server_id, progress in self.progress.items():
            if not self._outbox.is_connected(server_id):
                progress.transfer = None
                continue
            if progress.next <= self._journal.first_index:
                sent = self._send_snapshot(server_id, progress, head)
            else:
                sent = self._send_entries(server_id, progress, head)
            if heartbeat and not sent:
                self._send_heartbeat(server_id, progress, head)
            all_told = all_told and sent
        return all_told

    def _send_heartbeat(self, server_id: str, progress: Progress, head: Head) -> None:
        if progress.transfer is not None:
            self._outbox.send(server_id, self._chunk(progress.transfer, head, b"", last=False))
            return
        journal = self._journal
        prev_index = max(min(progress.next - 1, journal.last_index), journal.first_index)
        progress.waiting = False
        self._outbox.send(server_id, self._append(prev_index, 0, head))

    def _send_entries(self, server_id: str, progress: Progress, head: Head) -> bool:
        progress.transfer = None
        sent = False
        while progress.next <= self._journal.last_index and progress.may_send(
            self._config.window_bytes
        ):
            size = count = 0
            last = progress.next + self._config.max_batch - 1
            for command, _, _ in self._journal.slice(progress.next, last):
                size += len(command)
                count += 1
                if size >= self._config.append_bytes:
                    break
            self._outbox.send(server_id, self._append(progress.next - 1, count, head))
            progress.sent(progress.next + count - 1, size)
            sent = True
        return sent

    def _append(self, prev_index: int, count: int, head: Head) -> wire.AppendEntries:
        """The message; followers that are equally far share one."""
        message = self._shared.get((prev_index, count))
        if message is None:
            prev_term = self._journal.term_at(prev_index)
            assert prev_term is not None
            entries = self._journal.slice(prev_index + 1, prev_index + count)
            message = self._shared[prev_index, count] = wire.AppendEntries(
                term=head.term,
                commit=head.commit,
                round=head.round,
                prev_index=prev_index,
                prev_term=prev_term,
                entries=[(term, command) for command, _, term in entries],
            )
        return message

    def _send_snapshot(self, server_id: str, progress: Progress, head: Head) -> bool:
        latest = self._snapshots.latest
        assert latest is not None
        transfer = progress.transfer
        if transfer is None or transfer.index < self._snapshots.headers[0].index:
            transfer = progress.transfer = Transfer(latest.index, latest.term)
        header = SnapshotHeader(transfer.index, transfer.term, Configuration())
        size = self._config.snapshot_chunk_bytes
        sent = False
        while transfer.sent - transfer.acked < size * _CHUNKS_UNDER_WAY:
            data = self._snapshots.read(header, transfer.sent, size + 1)
            if not data:
                break
            last = len(data) <= size
            self._outbox.send(server_id, self._chunk(transfer, head, data[:size], last=last))
            transfer.sent += min(len(data), size)
            sent = True
            if last:
                break
        return sent

    def _chunk(
        self, transfer: Transfer, head: Head, data: bytes, *, last: bool
    ) -> wire.SnapshotChunk:
        return wire.SnapshotChunk(
            term=head.term,
            commit=head.commit,
            round=head.round,
            index=transfer.index,
            snapshot_term=transfer.term,
            attempt=transfer.attempt,
            offset=transfer.sent,
            data=data,
            last=last,
        )


class Progress:
    """One follower, during one leadership.

    match: the follower holds the log up to here, on disk. next: the entry to send next. probing: one message at a
    time until the follower agreed once, so that a long search for the common point does not repeat itself.
    """

    __slots__ = (
        "answered_at",
        "in_flight",
        "in_flight_bytes",
        "match",
        "next",
        "probing",
        "round",
        "transfer",
        "waiting",
    )

    def __init__(self, next_index: int) -> None:
        self.match = 0
        self.next = next_index
        self.round = 0
        self.answered_at: float | None = None  # monotonic seconds of the last answer
        self.probing = True
        self.waiting = False
        self.in_flight: deque[tuple[int, int]] = deque()
        self.in_flight_bytes = 0
        self.transfer: Transfer | None = None

    def may_send(self, window_bytes: int) -> bool:
        """Whether more entries may go out now."""
        return not self.waiting and self.in_flight_bytes < window_bytes

    def sent(self, last_index: int, size: int) -> None:
        """Entries up to `last_index` are under way."""
        self.next = last_index + 1
        self.in_flight.append((last_index, size))
        self.in_flight_bytes += size
        self.waiting = self.probing

    def agreed(self, index: int) -> None:
        """The follower holds the log up to `index`."""
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        self.probing = self.waiting = False
        self.transfer = None
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight_bytes -= self.in_flight.popleft()[1]

    def refused(self, wanted: int, last_index: int) -> None:
        """The follower does not hold what the message built upon; it asks for `wanted`."""
        self.restart(max(2, min(wanted, last_index + 1)))

    def reconnected(self) -> None:
        """What was under way on the old stream may be lost."""
        self.restart(self.match + 1 if self.match else self.next)

    def restart(self, next_index: int) -> None:
        """Search for the common point again, from `next_index`."""
        self.next = next_index
        self.probing, self.waiting = True, False
        self.in_flight.clear()
        self.in_flight_bytes = 0
        self.transfer = None


class Transfer:
    """A snapshot on its way to one follower. acked: bytes the follower has staged; sent: bytes that went out.

    attempt: grows when the follower wants another piece than the one it was sent; what it says of pieces that were
    under way before is then of no interest.
    """

    __slots__ = ("acked", "attempt", "index", "sent", "term")

    def __init__(self, index: int, term: int) -> None:
        self.index = index
        self.term = term
        self.attempt = 0
        self.sent = 0
        self.acked = 0

    def rewind(self, offset: int) -> None:
        """Send again from `offset`."""
        self.attempt += 1
        self.sent = self.acked = offset


class ReadQueue:
    """Linearizable reads by ReadIndex: a read is safe once a majority has answered a round that began after it came.

    The leader numbers its rounds; every append carries the newest number and every answer echoes it.
    """

    def __init__(self) -> None:
        self.round = 0
        self._fresh: list[Waiter] = []
        self._open: deque[tuple[int, int, list[Waiter]]] = deque()

    @property
    def is_waiting(self) -> bool:
        """Whether anyone waits."""
        return bool(self._fresh or self._open)

    def add(self, waiter: Waiter) -> None:
        """A read arrived; it joins the next round."""
        self._fresh.append(waiter)

    def start_round(self, commit_index: int) -> bool:
        """Begin a round for the reads that arrived; tell whether there were any."""
        if not self._fresh:
            return False
        self.round += 1
        self._open.append((self.round, commit_index, self._fresh))
        self._fresh = []
        return True

    def finish(self, confirmed_round: int, applied_index: int) -> None:
        """Answer the reads whose round a majority has confirmed and whose index is applied here."""
        while self._open:
            number, index, waiters = self._open[0]
            if number > confirmed_round or applied_index < index:
                return
            self._open.popleft()
            for waiter in waiters:
                waiter.resolve(index)

    def fail(self) -> None:
        """Leadership is gone: nothing can be confirmed any more."""
        waiters = [*self._fresh, *(w for _, _, group in self._open for w in group)]
        self._fresh = []
        self._open.clear()
        for waiter in waiters:
            waiter.refuse()


class Waiter:
    """One who waits for a read index."""

    def resolve(self, index: int) -> None:
        """The read may be served from a state at `index` or later."""
        raise NotImplementedError

    def refuse(self) -> None:
        """This server does not lead (any more)."""
        raise NotImplementedError
