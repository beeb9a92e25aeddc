"""Raft's rules around the consensus: log matching, replication, reads, proposals, snapshots, membership.

Numbered as everywhere that speaks of them:

 M1 a message of a wrong kind is dropped; answers count from members only. Requests are served whoever asks,
    for a server with an outdated configuration could otherwise never catch up.
 M2 the log is cut at a conflict only (Raft 5.3); a late or repeated message removes nothing.
 M3 an append of a lower term is answered with the term, so that a server with a higher one is not stuck.
 M4 answers carry their term (an old leadership's answers are dropped) and echo the leader's round (ReadIndex).
 M5 pre-vote; no vote while a leader is heard, except in a transfer; one vote counted per server.
 M6 cutting the log at or below the commit index stops the server.
 M7 a snapshot is installed only forward, and never over a log that holds its last entry.
 M8 one membership change at a time; a learner gets the log and counts nowhere until it is made a voter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.errors import IndefiniteError, LogFormatError
from nomadpy.raft import configuration as conf
from nomadpy.raft import messages as wire
from nomadpy.raft.config import PeerSpec, RaftConfig, StateMachine
from nomadpy.raft.journal import Journal, LogEntry, SafetyError
from nomadpy.raft.pysyncobj_seam import LEADER, MEMBERSHIP, NO_OP, REGULAR, Consensus
from nomadpy.raft.replication import Head, Outbox, Progress, ReadQueue, Replicator, Waiter
from nomadpy.raft.snapshots import Receiver, SnapshotHeader, SnapshotStore

_MAX_APPLIED_A_ROUND = 2000
_COMMIT_SPREAD_S = 0.002
"""After a commit the followers are told by the next append; without one, this much later."""

log = logs.get(__name__)


Completion = Callable[[int, object, str], None]
"""Called with (index, result, outcome); outcome: done | not-leader | denied | replaced | unknown."""


class RaftCore(Consensus):
    """The consensus of one server. Synchronous: `receive` and `tick` change memory and queue messages, nothing else."""

    def __init__(
        self,
        *,
        config: RaftConfig,
        journal: Journal,
        snapshots: SnapshotStore,
        outbox: Outbox,
        state_machine: StateMachine,
        clock: Clock,
        entropy: Entropy,
        override: conf.Override | None = None,
    ) -> None:
        """override: see recovery.py. Raises CorruptionError when snapshot and log do not fit together."""
        self.snapshots = snapshots
        self.outbox = outbox
        self.state_machine = state_machine
        self.history = conf.ConfigurationHistory(override)
        self.reads = ReadQueue()
        self.replicator = Replicator(config, journal, snapshots, outbox)
        self.progress = self.replicator.progress
        self.receiver: Receiver | None = None
        self.durable_index = journal.last_index
        self.leader_contact: float | None = None
        self.more_to_do = False
        self.holding_proposals = False
        self.role_changes: list[tuple[bool, int]] = []
        self.on_applied: Callable[[int], None] = lambda _index: None
        self._proposals: deque[tuple[bytes, Completion | None]] = deque()
        self._waiting: dict[int, list[tuple[int, Completion]]] = {}
        self._announced_term = 0
        self._echo_round = 0
        self._commit_before = 1
        self._spread_at: float | None = None
        self._heartbeat_due = False
        self._voters: set[tuple[int, str]] = set()
        self._pre_vote_attempt = 0
        self._pre_votes: set[str] | None = None
        self._pre_vote_won = False
        self._noop_index = 0
        self._bytes_then = 0
        self._campaign_by_transfer = False
        if len(journal.entries) == 0 and snapshots.latest is not None:
            journal.reset(snapshots.latest.index, snapshots.latest.term)
        super().__init__(config, journal, clock, entropy)
        self._restore_at_start()
        self._refresh_members()
        if self._alone():
            self.campaign_at_next_tick()

    # ---- what the node asks

    def is_ready_leader(self) -> bool:
        """Leader whose no-op is applied: its state holds all that was ever committed."""
        return self.is_leader() and self.applied_index() >= self._noop_index > 0

    def leader_peer(self) -> PeerSpec | None:
        """The leader, as far as known."""
        peer = self.known_leader()
        return None if peer is None else self.history.current.server(peer.id) or peer

    def members(self) -> list[PeerSpec]:
        """The other voting servers, in the order of their ids."""
        return [p for p in self.history.current.peers if p.id != self.me.peer.id]

    def followers(self) -> list[PeerSpec]:
        """The other servers that get the log, learners included, voters first."""
        return self.members() + [
            p for p in self.history.current.learners if p.id != self.me.peer.id
        ]

    def is_voter(self) -> bool:
        """Whether this server itself is in the configuration."""
        return self.history.current.peer(self.me.peer.id) is not None

    def next_deadline(self) -> float:
        """When `tick` has something to do, on the clock's monotonic scale."""
        if self.is_leader():
            if not self.followers():
                return self.clock.monotonic() + 1.0
            due = self.next_heartbeat_at()
            return due if self._spread_at is None else min(due, self._spread_at)
        return self.election_deadline()

    # ---- what the node does

    def note_durable(self) -> None:
        """All of the log is on disk now."""
        self.durable_index = self.journal.last_index

    def propose(self, command: bytes, completion: Completion) -> None:
        """Queue a command for the next tick."""
        self._proposals.append((bytes([REGULAR]) + command, completion))

    def propose_nothing(self, completion: Completion | None) -> None:
        """Queue an entry that only takes up an index."""
        self._proposals.append((bytes([NO_OP]), completion))

    def propose_change(self, change: conf.Change, completion: Completion) -> None:
        """Queue a membership change for the next tick."""
        self._proposals.append((bytes([MEMBERSHIP]) + conf.encode_change(change), completion))

    def bootstrap(self, begin: conf.Begin) -> None:
        """Write the first configuration as the log's second entry, the same on every server that is told the same."""
        assert self.journal.last_index == 1
        assert not self.history.current.peers
        self.enter()
        self._append(bytes([MEMBERSHIP]) + conf.encode_change(begin), 0)
        self._refresh_members()
        if self._alone():
            self.campaign_at_next_tick()

    def hand_over(self, server_id: str) -> bool:
        """Tell a follower that holds the whole log to take over; False when it does not, or is not connected."""
        self.enter()
        progress = self.progress.get(server_id)
        if not self.is_leader() or progress is None or not self.outbox.is_connected(server_id):
            return False
        if self.history.current.peer(server_id) is None:
            return False
        if progress.match != self.journal.last_index:
            return False
        self.outbox.send(server_id, wire.TimeoutNow(self.term()))
        return True

    def link_changed(self, peer: PeerSpec, connected: bool) -> None:
        """A stream to a peer came or went."""
        progress = self.progress.get(peer.id)
        if connected and progress is not None:
            progress.reconnected()
            self._heartbeat_due = True

    # ---- snapshots

    def snapshot_due(self) -> SnapshotHeader | None:
        """What a snapshot taken now would cover; None while it is too early."""
        latest = self.snapshots.latest
        applied = self.applied_index()
        entries = applied - (latest.index if latest else 0)
        size = self.journal.command_bytes - self._bytes_then
        if entries < self.settings.snapshot_entries and (
            entries < 1 or size < self.settings.snapshot_bytes
        ):
            return None
        term = self.journal.term_at(applied)
        assert term is not None
        return SnapshotHeader(applied, term, self.history.at(applied))

    def snapshot_written(self, header: SnapshotHeader) -> None:
        """A local snapshot is on disk: what it covers may leave the log, except the trailing entries."""
        self.snapshots.adopt(header)
        self.history.rebase(header.index, header.configuration, header.term)
        self._compact()

    def install(self, header: SnapshotHeader, leader: PeerSpec | None) -> bool:
        """Take a verified, staged snapshot over (M7); False when the log meanwhile holds what it covers."""
        self.enter()
        if self.is_leader() or self._holds(header.index, header.term):
            return False
        self.state_machine.restore(self.snapshots.chunks(header, staged=True))
        self.journal.reset(header.index, header.term)
        self.history.reset(header.index, header.configuration, header.term)
        self.set_applied(header.index)
        self.set_commit(header.index)
        self._commit_before = header.index
        self._abandon(header.index)
        self._refresh_members()
        if leader is not None:
            self._agree(leader, header.index)
        self.on_applied(header.index)
        log.info("snapshot installed", index=header.index, term=header.term)
        return True

    def _restore_at_start(self) -> None:
        header = self.snapshots.latest
        if header is not None:
            self.state_machine.restore(self.snapshots.chunks(header))
            self.history.reset(header.index, header.configuration, header.term)
            if self.journal.term_at(header.index) != header.term:
                # The log ends before the snapshot, or went another way: a snapshot holds committed entries only,
                # so what differs was never committed. (A received snapshot gets its name before the log follows.)
                self.journal.reset(header.index, header.term)
            self.set_applied(header.index)
            self.set_commit(header.index)
            self._compact()
        self._commit_before = self.commit_index()
        for command, index, term in self.journal.entries:
            self._note_change(command, index, term)

    def _compact(self) -> None:
        latest = self.snapshots.latest
        if latest is not None:
            oldest = self.snapshots.headers[0].index
            first = self.journal.trailing(
                min(latest.index, self.journal.last_index),
                self.settings.trailing_entries,
                self.settings.trailing_bytes,
            )
            self.journal.compact(first, min(first, oldest))
        self._bytes_then = self.journal.command_bytes

    # ---- configuration

    def _refresh_members(self) -> None:
        """Bring PySyncObj's set of nodes to the configuration in force."""
        others = self.followers()
        gone = self.replicator.set_members([peer.id for peer in others])
        for server_id in gone:
            self.outbox.drop_peer(server_id)
        voters = self.members()
        self.set_members(voters)
        for peer in others:
            self.outbox.add_peer(peer)
        if self.is_leader():
            for peer in voters:
                # What a learner has acknowledged counts from the moment it votes.
                self.note_match(peer, self.progress[peer.id].match)

    def _note_change(self, command: bytes, index: int, term: int) -> bool:
        if command[0] != MEMBERSHIP:
            return False
        self.history.append(index, conf.decode_change(command[1:]), term)
        return True

    def _append(self, command: bytes, term: int) -> int:
        index = self.journal.last_index + 1
        self.journal.append(command, index, term)
        self._note_change(command, index, term)
        return index

    def _alone(self) -> bool:
        return self.is_voter() and not self.members()

    def _quorum(self) -> int:
        return (len(self.members()) + 1) // 2 + 1

    # ---- elections

    def ask_for_vote(self, server_id: str, term: int, last_index: int, last_term: int) -> None:
        """Send a vote request."""
        self.outbox.send(
            server_id, wire.VoteRequest(term, last_index, last_term, self._campaign_by_transfer)
        )

    def grant_vote(self, server_id: str, term: int) -> None:
        """Send a vote."""
        self.outbox.send(server_id, wire.VoteReply(term))

    def on_state_changed(self, before: int, after: int) -> None:
        """Begin or end what only a leader does."""
        if after == LEADER:
            self._noop_index = self.journal.last_index + 1
            self.replicator.start()
        if before == LEADER:
            self._noop_index = 0
            self.holding_proposals = False
            self.reads.fail()
            if self._announced_term:
                self.role_changes.append((False, self._announced_term))
                self._announced_term = 0

    def may_campaign(self) -> bool:
        """The election deadline has passed; a campaign needs a transfer or won pre-votes (M5)."""
        self._voters = set()
        self._campaign_by_transfer = False
        if self.is_voter():
            if not self.members():
                return True
            if self.transfer_requested():
                self._campaign_by_transfer = True
                return True
            if self._pre_vote_won:
                self._pre_vote_won, self._pre_votes = False, None
                return True
            self._ask_for_pre_votes()
        self.forget_leader()
        self.postpone_election()
        return False

    def _ask_for_pre_votes(self) -> None:
        self._pre_vote_attempt += 1
        self._pre_votes = set()
        request = wire.PreVoteRequest(
            term=self.term() + 1,
            last_index=self.journal.last_index,
            last_term=self.journal.last_term,
            attempt=self._pre_vote_attempt,
        )
        for peer in self.members():
            self.outbox.send(peer.id, request)

    # ---- apply

    def apply_committed(self) -> None:
        """Apply what is committed, at most so much that the loop is free again soon."""
        if self.is_leader() and self.commit_index() > self.durable_index:
            # The leader counts itself, and its newest entry (the no-op of an election in this very round) is not
            # on disk before the round ends.
            self.set_commit(self._commit_before)
        commit, applied = self.commit_index(), self.applied_index()
        if commit > self._commit_before and self._spread_at is None:
            self._spread_at = self.clock.monotonic() + _COMMIT_SPREAD_S
        self._commit_before = commit
        if commit > applied:
            last = min(commit, applied + _MAX_APPLIED_A_ROUND)
            for entry in self.journal.slice(applied + 1, last):
                self._apply(entry)
            self.on_applied(last)
        self.more_to_do = commit > self.applied_index()
        if self.is_ready_leader() and self._announced_term != self.term():
            self._announced_term = self.term()
            self.role_changes.append((True, self._announced_term))
        self._finish_reads()

    def _apply(self, entry: LogEntry) -> None:
        command, index, term = entry
        if index != self.applied_index() + 1:
            raise SafetyError(f"entry {index} would be applied after {self.applied_index()}")
        result: object = None
        if command[0] == REGULAR:
            result = self.apply_command(index, term, command[1:])
        self.set_applied(index)
        for proposed_term, completion in self._waiting.pop(index, ()):
            completion(index, result, "done" if proposed_term == term else "replaced")

    def apply_command(self, index: int, term: int, data: bytes) -> object:
        """Apply one command. `term` is the entry's, for those who check logs against each other.

        Raises LogFormatError: others go on where this server cannot, so it must stop.
        """
        try:
            return self.state_machine.apply(index, data)
        except LogFormatError:
            raise
        except Exception as cause:
            # One bad command must not stop every server for ever.
            log.exception("the state machine raised", index=index, term=term)
            return IndefiniteError(f"applying entry {index} failed: {cause!r}")

    # ---- proposals and replication

    def finish_tick(self) -> None:
        """Take the waiting proposals into the log and send what the followers lack."""
        if not self.is_leader():
            while self._proposals:
                completion = self._proposals.popleft()[1]
                if completion is not None:
                    completion(0, None, "not-leader")
            self._heartbeat_due = False
            return
        if not self.holding_proposals:
            self._take_proposals()
        if self.reads.start_round(self.commit_index()):
            self._heartbeat_due = True
        now = self.clock.monotonic()
        if self._spread_at is not None and now >= self._spread_at:
            self._heartbeat_due = True
        self._replicate(now)
        self._finish_reads()

    def _take_proposals(self) -> None:
        count = size = 0
        term = self.term()
        unstated = self.history.unstated
        if unstated is not None:
            # Those who join later know nothing of the override: the log must say it, before anything else changes.
            change = conf.encode_change(conf.Replace(unstated))
            self._append(bytes([MEMBERSHIP]) + change, term)
            self._refresh_members()
        while (
            self._proposals
            and count < self.settings.max_batch
            and size < self.settings.max_batch_bytes
        ):
            command, completion = self._proposals.popleft()
            if command[0] == MEMBERSHIP and not self._may_change_members():
                if completion is not None:
                    completion(0, None, "denied")
                continue
            index = self._append(command, term)
            if command[0] == MEMBERSHIP:
                self._refresh_members()
            if completion is not None:
                self._waiting.setdefault(index, []).append((term, completion))
            count += 1
            size += len(command)
        if self._proposals:
            self.more_to_do = True

    def _may_change_members(self) -> bool:
        """M8; and a leader of a new term changes nothing before an entry of its own is committed."""
        return self.is_ready_leader() and self.history.last_change_index <= self.commit_index()

    def heartbeat_is_due(self) -> None:
        """It goes out at the end of the tick."""
        self._heartbeat_due = True

    def _replicate(self, now: float) -> None:
        heartbeat, self._heartbeat_due = self._heartbeat_due, False
        if heartbeat:
            # Nothing under way: four heartbeats in the shortest election timeout are enough, and the machine may rest.
            idle = self.commit_index() == self.journal.last_index and not self.reads.is_waiting
            rest_s = self.settings.election_min_s / 4 if idle else 0.0
            self.postpone_heartbeat(now + max(self.settings.heartbeat_s, rest_s))
        head = Head(self.term(), self.commit_index(), self.reads.round)
        all_told = self.replicator.replicate(head, heartbeat=heartbeat)
        if heartbeat or all_told:
            self._spread_at = None

    # ---- reads

    def read_index(self, waiter: Waiter) -> None:
        """Ask for an index that no acknowledged write is above; answered by a later tick."""
        if self.is_ready_leader():
            self.reads.add(waiter)
        else:
            waiter.refuse()

    def _finish_reads(self) -> None:
        if not self.is_leader():
            return
        rounds = sorted((self.progress[p.id].round for p in self.members()), reverse=True)
        needed = self._quorum() - 1
        confirmed = rounds[needed - 1] if needed else self.reads.round
        self.reads.finish(confirmed, self.applied_index())

    # ---- messages

    def can_wait(self, message: wire.Message) -> bool:
        """Whether a message may wait for the next round: a follower's answer to a heartbeat that changes nothing.

        Without this an idle leader would be woken by every answer.
        """
        return (
            type(message) is wire.AppendReply
            and message.ok
            and message.index == self.journal.last_index == self.commit_index()
            and self.is_leader()
            and message.term == self.term()
            and not self.reads.is_waiting
        )

    def receive(self, peer: PeerSpec, message: wire.Message) -> None:
        """Take one message of a server whose certificate was checked."""
        self.enter()
        handler = _HANDLERS.get(type(message))
        if handler is None:
            return
        if isinstance(message, wire.ANSWERS) and self.history.current.server(peer.id) is None:
            return
        handler(self, peer, message)

    def _leader_is_fresh(self) -> bool:
        """A leader speaks: votes are refused. Check-quorum bounds how long a leader believes in itself."""
        if self.is_leader():
            return True
        contact = self.leader_contact
        return (
            contact is not None and self.clock.monotonic() - contact < self.settings.election_min_s
        )

    def _hear_leader(self, peer: PeerSpec, term: int, leader_round: int) -> bool:
        """Bow to the sender of an append or a snapshot; False when its term is over (M3)."""
        if term < self.term():
            self.outbox.send(peer.id, wire.TermHint(self.term()))
            return False
        if term == self.term() and self.is_leader():
            raise SafetyError(f"two leaders in term {term}: {peer.id} and this server")
        self.leader_contact = self.clock.monotonic()
        self._pre_votes, self._pre_vote_won = None, False
        self._echo_round = leader_round
        self.hear_append(peer, term)
        return True

    def _on_append(self, peer: PeerSpec, message: wire.AppendEntries) -> None:
        if not self._hear_leader(peer, message.term, message.round):
            return
        journal = self.journal
        prev_index, prev_term = message.prev_index, message.prev_term
        entries = message.entries
        first = journal.first_index
        if prev_index < first:
            # The log begins later, behind a snapshot of committed entries: those the leader holds as well.
            skipped = first - prev_index
            if skipped > len(entries):
                self._agree(peer, first)
                return
            prev_index, prev_term = first, entries[skipped - 1][0]
            entries = entries[skipped:]
        known_term = journal.term_at(prev_index)
        if known_term is None:
            self._refuse(peer, journal.last_index + 1)
            return
        if known_term != prev_term:
            if prev_index <= self.commit_index():
                raise SafetyError(
                    f"entry {prev_index} is committed with term {known_term}, {peer.id} leads with {prev_term}"
                )
            self._refuse(peer, self._start_of_term(prev_index, known_term))
            return
        last = prev_index + len(entries)
        conflict = self._first_difference(prev_index, entries)
        if conflict is not None:
            self._cut(conflict)
            changed = False
            for offset in range(conflict - prev_index - 1, len(entries)):
                term, command = entries[offset]
                index = prev_index + 1 + offset
                journal.append(command, index, term)
                changed = self._note_change(command, index, term) or changed
            if changed:
                self._refresh_members()
        self._commit_to(min(message.commit, last))
        self._agree(peer, last)

    def _first_difference(self, prev_index: int, entries: list[tuple[int, bytes]]) -> int | None:
        """Index of the first entry that the log lacks or has of another term; None when it holds them all (M2)."""
        for offset, (term, _) in enumerate(entries, start=1):
            if self.journal.term_at(prev_index + offset) != term:
                return prev_index + offset
        return None

    def _cut(self, index: int) -> None:
        if index > self.journal.last_index:
            return
        if index <= self.commit_index():
            raise SafetyError(
                f"entry {index} would be cut off, but {self.commit_index()} entries are committed"
            )
        self.journal.truncate_from(index)
        self.durable_index = min(self.durable_index, index - 1)
        if self.history.truncate_from(index):
            self._refresh_members()

    def _start_of_term(self, index: int, term: int) -> int:
        """Where to try next after a conflict at `index`: skip all entries of the conflicting term."""
        low = max(self.commit_index(), self.journal.first_index) + 1
        while index > low and self.journal.term_at(index - 1) == term:
            index -= 1
        return max(index, low)

    def _commit_to(self, index: int) -> None:
        if index > self.commit_index():
            self.set_commit(index)

    def _agree(self, peer: PeerSpec, index: int) -> None:
        self.outbox.send(peer.id, wire.AppendReply(self.term(), self._echo_round, True, index))

    def _refuse(self, peer: PeerSpec, wanted: int) -> None:
        self.outbox.send(peer.id, wire.AppendReply(self.term(), self._echo_round, False, wanted))

    def _on_append_reply(self, peer: PeerSpec, message: wire.AppendReply) -> None:
        progress = self._answered(peer, message.term, message.round)
        if progress is None:
            return
        if not message.ok:
            progress.refused(message.index, self.journal.last_index)
        elif message.index <= self.journal.last_index:
            progress.agreed(message.index)
            if self._votes(peer):
                self.note_match(peer, progress.match)
        self._finish_reads()

    def _answered(self, peer: PeerSpec, term: int, answered_round: int) -> Progress | None:
        """Check an answer to the leader; None when it belongs to another leadership (M4)."""
        if term > self.term():
            self.adopt_term(term)
            return None
        progress = self.progress.get(peer.id)
        if not self.is_leader() or term != self.term() or progress is None:
            return None
        progress.round = max(progress.round, answered_round)
        progress.answered_at = self.clock.monotonic()
        if self._votes(peer):
            self.note_answer(peer)
        return progress

    def _on_snapshot_chunk(self, peer: PeerSpec, message: wire.SnapshotChunk) -> None:
        if not self._hear_leader(peer, message.term, message.round):
            return
        if self._holds(message.index, message.snapshot_term):
            self._agree(peer, message.index)
            return
        receiver = self.receiver
        wanted = (message.index, message.snapshot_term)
        if receiver is None or (receiver.index, receiver.term) != wanted:
            if receiver is not None:
                receiver.discard()
            receiver = self.receiver = self.snapshots.receiver(*wanted)
        taken = receiver.take(message.offset, message.data, last=message.last)
        self.outbox.send(
            peer.id,
            wire.SnapshotReply(
                term=self.term(),
                round=self._echo_round,
                index=receiver.index,
                attempt=message.attempt,
                ok=taken,
                offset=receiver.expected,
            ),
        )

    def _on_snapshot_reply(self, peer: PeerSpec, message: wire.SnapshotReply) -> None:
        progress = self._answered(peer, message.term, message.round)
        transfer = progress.transfer if progress is not None else None
        if transfer is None or (transfer.index, transfer.attempt) != (
            message.index,
            message.attempt,
        ):
            return
        if message.ok:
            transfer.acked = max(transfer.acked, message.offset)
        else:
            transfer.rewind(message.offset)

    def _holds(self, index: int, term: int) -> bool:
        return index <= self.commit_index() or self.journal.term_at(index) == term

    def _on_vote_request(self, peer: PeerSpec, message: wire.VoteRequest) -> None:
        if not message.transfer and self._leader_is_fresh():
            return
        self.hear_vote_request(peer, message.term, message.last_index, message.last_term)

    def _votes(self, peer: PeerSpec) -> bool:
        return self.history.current.peer(peer.id) is not None

    def _on_vote_reply(self, peer: PeerSpec, message: wire.VoteReply) -> None:
        key = (message.term, peer.id)
        if key not in self._voters and self._votes(peer):
            self._voters.add(key)
            self.hear_vote(peer, message.term)

    def _on_pre_vote_request(self, peer: PeerSpec, message: wire.PreVoteRequest) -> None:
        mine = (self.journal.last_term, self.journal.last_index)
        granted = (
            message.term > self.term()
            and (message.last_term, message.last_index) >= mine
            and not self._leader_is_fresh()
        )
        self.outbox.send(peer.id, wire.PreVoteReply(self.term(), granted, message.attempt))

    def _on_pre_vote_reply(self, peer: PeerSpec, message: wire.PreVoteReply) -> None:
        if self.is_leader():
            return
        if message.term > self.term():
            self.adopt_term(message.term)
            self._pre_votes = None
        elif (
            message.granted
            and self._pre_votes is not None
            and message.attempt == self._pre_vote_attempt
            and self._votes(peer)
        ):
            self._pre_votes.add(peer.id)
            if len(self._pre_votes) + 1 >= self._quorum():
                self._pre_vote_won = True
                self.campaign_at_next_tick()

    def _on_term_hint(self, _peer: PeerSpec, message: wire.TermHint) -> None:
        self.adopt_term(message.term)

    def _on_timeout_now(self, peer: PeerSpec, message: wire.TimeoutNow) -> None:
        if not self.is_leader() and self.is_voter():
            self.hear_timeout_now(peer, message.term)

    def _abandon(self, index: int) -> None:
        """A snapshot passed these proposals by: whether they are in it, nobody here can tell."""
        for passed in sorted(i for i in self._waiting if i <= index):
            for _, completion in self._waiting.pop(passed):
                completion(passed, None, "unknown")


_HANDLERS: dict[type, Callable[[RaftCore, PeerSpec, Any], None]] = {
    wire.AppendEntries: RaftCore._on_append,
    wire.AppendReply: RaftCore._on_append_reply,
    wire.SnapshotChunk: RaftCore._on_snapshot_chunk,
    wire.SnapshotReply: RaftCore._on_snapshot_reply,
    wire.VoteRequest: RaftCore._on_vote_request,
    wire.VoteReply: RaftCore._on_vote_reply,
    wire.PreVoteRequest: RaftCore._on_pre_vote_request,
    wire.PreVoteReply: RaftCore._on_pre_vote_reply,
    wire.TermHint: RaftCore._on_term_hint,
    wire.TimeoutNow: RaftCore._on_timeout_now,
}

__all__ = ["Completion", "Outbox", "RaftCore"]
