"""PySyncObj's consensus core behind plain methods; the only module that knows its private names.

What stays PySyncObj's: when to campaign, what a vote needs, states and terms, the commit rule, check-quorum. Its journal,
serializer, transport, pickle, poller and clock are replaced here by objects that do nothing or refuse; its apply loop,
replication, compaction and membership by hooks that `core.py` fills.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import Any

import google_crc32c
import pysyncobj
import pysyncobj.journal
import pysyncobj.node
import pysyncobj.transport

from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.raft.config import PeerSpec, RaftConfig
from nomadpy.raft.journal import Journal, SafetyError

PYSYNCOBJ_VERSION = "0.3.17"
PYSYNCOBJ_SHA256 = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
REGULAR, NO_OP, MEMBERSHIP = 0, 1, 2
"""The first byte of a command says what it is."""

_core: Any = sys.modules["pysyncobj.syncobj"]


def check_pysyncobj(version: str, source: str) -> None:
    """Raise RuntimeError unless this is the very source that the seam was proved with."""
    digest = hashlib.sha256(source.encode()).hexdigest()
    if version != PYSYNCOBJ_VERSION or digest != PYSYNCOBJ_SHA256:
        raise RuntimeError(
            f"PySyncObj {version} (syncobj.py sha256 {digest}) is not what consensus was proved with: "
            f"{PYSYNCOBJ_VERSION} (sha256 {PYSYNCOBJ_SHA256}). Install it with `pip install "
            f"pysyncobj=={PYSYNCOBJ_VERSION}`. To move to another version, compare every private name used in "
            "nomadpy/raft/pysyncobj_seam.py with the new source, run the safety simulation and its controls, "
            "then change the two constants."
        )


check_pysyncobj(_core.VERSION, inspect.getsource(_core))


class _NoPickle:
    """Stands where PySyncObj keeps its pickle module: nothing of ours may pass through it."""

    @staticmethod
    def dumps(value: object, protocol: int | None = None) -> bytes:
        raise SafetyError(
            f"PySyncObj wanted to pickle {type(value).__name__} (protocol {protocol})"
        )

    @staticmethod
    def loads(data: bytes) -> object:
        raise SafetyError(f"PySyncObj wanted to unpickle {len(data)} bytes")


class _Time:
    """The clock PySyncObj reads. Its functions run on one thread and never wait, so the server that enters the core
    names its own clock first."""

    clock: Clock | None = None

    @classmethod
    def monotonic(cls) -> float:
        assert cls.clock is not None
        return cls.clock.monotonic()


class _NoPoller:
    """Sockets are not PySyncObj's business."""

    def poll(self, timeout: float) -> None:
        """Nothing to wait for."""


_core.pickle = _NoPickle
_core.monotonicTime = _Time.monotonic
_core.createJournal = lambda journal=None: journal
_core.createPoller = lambda _kind=None: _NoPoller()


class NodeRef(pysyncobj.node.Node):  # type: ignore[misc]
    """A server as PySyncObj holds it. PySyncObj iterates over sets of these: their order must not depend on the
    process, so the hash is a checksum of the id."""

    def __init__(self, peer: PeerSpec) -> None:
        super().__init__(peer.id)
        self.peer = peer
        self._hash = int(google_crc32c.value(peer.id.encode()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NodeRef) and self.peer.id == other.peer.id

    def __hash__(self) -> int:
        return self._hash


class _JournalSeam(pysyncobj.journal.Journal):  # type: ignore[misc]
    """Our journal in PySyncObj's clothes."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._journal.append(bytes(command), idx, term)

    def __getitem__(self, item: Any) -> Any:
        return self._journal.entries[item]

    def __len__(self) -> int:
        return len(self._journal.entries)

    def setCurrentTerm(self, term: int, vote: str | None) -> None:  # noqa: N802
        self._journal.set_hard_state(term, vote)

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._journal.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._journal.vote

    def setRaftCommitIndex(self, index: int) -> None:  # noqa: N802
        """The commit index is learned from the majority, never from disk."""

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return 1

    def _destroy(self) -> None:
        self._journal.close()


class _TransportSeam(pysyncobj.transport.Transport):  # type: ignore[misc]
    """Passes PySyncObj's own two messages on."""

    ready = True

    def __init__(self, consensus: Consensus) -> None:
        super().__init__(None, None, [])
        self._consensus = consensus

    def addNode(self, node: NodeRef) -> None:  # noqa: N802
        """The core tells the transport itself."""

    def dropNode(self, node: NodeRef) -> None:  # noqa: N802
        """The core tells the transport itself."""

    def send(self, node: NodeRef, message: dict[str, Any]) -> bool:
        kind = message["type"]
        if kind == "request_vote":
            self._consensus.ask_for_vote(
                node.peer.id,
                message["term"],
                message["last_log_index"],
                message["last_log_term"],
            )
        elif kind == "response_vote":
            self._consensus.grant_vote(node.peer.id, message["term"])
        else:
            raise SafetyError(f"PySyncObj wanted to send {kind}")
        return True

    def destroy(self) -> None:
        """The node ends its transport."""


class Consensus(pysyncobj.SyncObj):  # type: ignore[misc]
    """PySyncObj with its privates behind plain names. Everything is synchronous and on one thread."""

    def __init__(
        self, config: RaftConfig, journal: Journal, clock: Clock, entropy: Entropy
    ) -> None:
        self.settings = config
        self.journal = journal
        self.clock = clock
        self.entropy = entropy
        self.me = NodeRef(config.peer)
        self.enter()
        settings = pysyncobj.SyncObjConf(
            autoTick=False,
            journalFile=_JournalSeam(journal),
            dynamicMembershipChange=True,
            useFork=False,
            appendEntriesUseBatch=True,
            commandsWaitLeader=False,
            raftMinTimeout=config.election_min_s,
            raftMaxTimeout=config.election_max_s,
            connectionTimeout=config.election_max_s * 2,
            appendEntriesPeriod=config.heartbeat_s,
            leaderFallbackTimeout=config.election_max_s,
            onStateChanged=self.on_state_changed,
        )
        super().__init__(self.me, [], settings, nodeClass=NodeRef, transport=_TransportSeam(self))

    # ---- what core.py fills in

    def ask_for_vote(self, server_id: str, term: int, last_index: int, last_term: int) -> None:
        """Send a vote request."""
        raise NotImplementedError

    def grant_vote(self, server_id: str, term: int) -> None:
        """Send a vote."""
        raise NotImplementedError

    def on_state_changed(self, before: int, after: int) -> None:
        """FOLLOWER, CANDIDATE or LEADER changed into another."""
        raise NotImplementedError

    def may_campaign(self) -> bool:
        """The election deadline has passed: start an election in this tick?"""
        raise NotImplementedError

    def apply_committed(self) -> None:
        """Apply what is committed; called in every tick after the leader counted its followers."""
        raise NotImplementedError

    def heartbeat_is_due(self) -> None:
        """Called before `finish_tick` of the same tick."""
        raise NotImplementedError

    def finish_tick(self) -> None:
        """Last act of every tick: proposals and appends."""
        raise NotImplementedError

    # ---- driving

    def enter(self) -> None:
        """Before any call that runs PySyncObj's code: make its clock this server's."""
        _Time.clock = self.clock

    def tick(self) -> None:
        """Elections, commit, apply, proposals and appends that are due."""
        self.enter()
        self.doTick(0.0)

    def hear_append(self, leader: PeerSpec, term: int) -> None:
        """PySyncObj's part of any message of a leader: its term, its authority, the election deadline."""
        message = {"type": "append_entries", "term": term, "commit_index": self.commit_index()}
        self._SyncObj__onMessageReceived(NodeRef(leader), message)

    def hear_vote_request(
        self, candidate: PeerSpec, term: int, last_index: int, last_term: int
    ) -> None:
        """Vote or not, by PySyncObj's rules."""
        message = {
            "type": "request_vote",
            "term": term,
            "last_log_index": last_index,
            "last_log_term": last_term,
        }
        self._SyncObj__onMessageReceived(NodeRef(candidate), message)

    def hear_vote(self, voter: PeerSpec, term: int) -> None:
        """Count a vote; with a majority this server leads when the call returns."""
        self._SyncObj__onMessageReceived(NodeRef(voter), {"type": "response_vote", "term": term})

    def hear_timeout_now(self, leader: PeerSpec, term: int) -> None:
        """Campaign in the next tick if `leader` is the leader."""
        self._SyncObj__onMessageReceived(NodeRef(leader), {"type": "timeout_now", "term": term})

    # ---- what it knows

    def is_leader(self) -> bool:
        """Leader of its term, by its own knowledge."""
        return bool(self._SyncObj__raftState == LEADER)

    def term(self) -> int:
        """The current term."""
        return int(self._SyncObj__raftCurrentTerm)

    def applied_index(self) -> int:
        """The last entry applied to the state machine."""
        return int(self._SyncObj__raftLastApplied)

    def commit_index(self) -> int:
        """The last entry known to be committed."""
        return int(self._SyncObj__raftCommitIndex)

    def known_leader(self) -> PeerSpec | None:
        """Who leads, as far as known."""
        node = self._SyncObj__raftLeader
        return None if node is None else node.peer

    def transfer_requested(self) -> bool:
        """The leader asked this server to take over."""
        return bool(self._SyncObj__transferInProgress)

    def next_heartbeat_at(self) -> float:
        """On the clock's monotonic scale."""
        return float(self._SyncObj__newAppendEntriesTime)

    def election_deadline(self) -> float:
        """On the clock's monotonic scale."""
        return float(self._SyncObj__raftElectionDeadline)

    # ---- what it is told

    def set_applied(self, index: int) -> None:
        """Entries up to `index` are in the state machine."""
        self._SyncObj__raftLastApplied = index

    def set_commit(self, index: int) -> None:
        """Entries up to `index` are committed."""
        self._SyncObj__raftCommitIndex = index

    def adopt_term(self, term: int) -> None:
        """Follow in a higher term; nothing when it is not higher."""
        if term > self.term():
            self._SyncObj__setCurrentTerm(term, None)
            self._SyncObj__setState(FOLLOWER)
            self.forget_leader()

    def forget_leader(self) -> None:
        """Nobody is known to lead."""
        self._SyncObj__raftLeader = None

    def campaign_at_next_tick(self) -> None:
        """Let the election deadline be past."""
        self._SyncObj__raftElectionDeadline = float("-inf")

    def postpone_election(self) -> None:
        """Draw a new election deadline."""
        self._SyncObj__raftElectionDeadline = (
            self.clock.monotonic() + self._SyncObj__generateRaftTimeout()
        )

    def postpone_heartbeat(self, until: float) -> None:
        """The followers have heard of this leader just now."""
        self._SyncObj__newAppendEntriesTime = until

    def set_members(self, others: list[PeerSpec]) -> None:
        """The other servers whose votes and acknowledgements count."""
        nodes = [NodeRef(peer) for peer in others]
        before = self.otherNodes
        self._SyncObj__updateClusterConfiguration(nodes)
        for node in nodes:
            if node not in before:
                self._SyncObj__raftMatchIndex[node] = 0
                self._SyncObj__lastResponseTime[node] = self.clock.monotonic()

    def note_answer(self, peer: PeerSpec) -> None:
        """A follower answered (check-quorum counts those who did lately)."""
        self._SyncObj__lastResponseTime[NodeRef(peer)] = self.clock.monotonic()

    def note_match(self, peer: PeerSpec, index: int) -> None:
        """A follower holds the log up to `index` (the commit rule counts these)."""
        self._SyncObj__raftMatchIndex[NodeRef(peer)] = index

    # ---- PySyncObj's methods, replaced (a method looked up as self.__x finds these names first)

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        return self.entropy.uniform(self.settings.election_min_s, self.settings.election_max_s)

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802
        return self.may_campaign()

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        self.apply_committed()
        return False

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        self.heartbeat_is_due()

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        self.finish_tick()

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> None:  # noqa: N802
        """Membership is ours: PySyncObj sees no change in any command."""

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """Snapshots are ours."""
