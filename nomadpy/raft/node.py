"""One raft server: the loop of rounds that owns the core, and what the rest of the server asks of it.

A round: deliver what arrived; tick; send appends; make the journal durable in a thread; send the promises. Nothing
that says "I have it" or "I vote for you" leaves before the sync of its round, and a leader counts its own entries
only in a later round. While the thread syncs nobody touches the core: messages and proposals queue up and become the
next round's batch. An exception in a round, or a sync that fails, is fatal: a retried sync proves nothing.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.errors import (
    ConflictError,
    CorruptionError,
    DeadlineError,
    DefiniteError,
    InvalidRequestError,
    NomadError,
    NotLeaderError,
    ProposalTimeoutError,
    TooLargeError,
    UnreachableError,
)
from nomadpy.raft import configuration as conf
from nomadpy.raft.config import PeerSpec, RaftConfig, StateMachine
from nomadpy.raft.core import RaftCore
from nomadpy.raft.files import Files
from nomadpy.raft.journal import Journal
from nomadpy.raft.messages import Message
from nomadpy.raft.recovery import recovered
from nomadpy.raft.replication import Waiter
from nomadpy.raft.snapshots import SnapshotHeader, SnapshotStore
from nomadpy.raft.transport import Link, RaftTransport
from nomadpy.rpc.network import ByteStream, Network

EXIT_CODE = 73

RunBlocking = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a function that blocks on the disk, and waits for it."""

log = logs.get(__name__)


def exit_process(reason: str) -> None:
    """The default end: stop at once, so that nothing more can be said on the ground of a broken state."""
    log.error("raft stops the process", reason=reason)
    os._exit(EXIT_CODE)


class RaftNode:
    """Replicates commands to a state machine. All methods belong to one event loop; `run` does the work."""

    def __init__(
        self,
        config: RaftConfig,
        state_machine: StateMachine,
        *,
        network: Network,
        files: Files,
        clock: Clock,
        entropy: Entropy,
        run_blocking: RunBlocking | None = None,
        fatal: Callable[[str], None] = exit_process,
    ) -> None:
        """Read journal and snapshots and restore the state machine. Raises CorruptionError when they are damaged."""
        config.check()
        self.config = config
        self._clock = clock
        self._fatal = fatal
        self._started_at = clock.monotonic()
        self._given_run_blocking = run_blocking
        self._disk: ThreadPoolExecutor | None = None
        self._snapshot_disk: ThreadPoolExecutor | None = None
        self.snapshots = SnapshotStore(
            files, os.path.join(config.data_dir, "snapshots"), fsync=config.fsync
        )
        damaged = self.snapshots.load()
        self.journal = Journal(
            files,
            os.path.join(config.data_dir, "log"),
            segment_bytes=config.segment_bytes,
            fsync=config.fsync,
        )
        self._check_fit(damaged)
        override = recovered(config, files, self.journal, self.snapshots)
        self.transport = RaftTransport(
            me=config.peer,
            region=config.region,
            network=network,
            entropy=entropy,
            cluster=lambda: self.core.history.current.cluster,
            deliver=self._deliver,
            on_link=self._on_link,
            formats=config.formats,
        )
        self.core = self.make_core(
            config=config,
            journal=self.journal,
            snapshots=self.snapshots,
            outbox=self.transport,
            state_machine=state_machine,
            clock=clock,
            entropy=entropy,
            override=override,
        )
        self.core.on_applied = self._on_applied
        self._state_machine = state_machine
        self._inbox: list[tuple[Link, int, Message]] = []
        self._actions: list[Callable[[], None]] = []
        self._after_sync: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._running = False
        self._syncing = False
        self._writing_snapshot = False
        self._snapshot_work: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._listeners: list[Callable[[bool, int], None]] = []
        self._applied_waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._in_flight = 0
        self._rounds = 0

    def make_core(
        self,
        *,
        config: RaftConfig,
        journal: Journal,
        snapshots: SnapshotStore,
        outbox: RaftTransport,
        state_machine: StateMachine,
        clock: Clock,
        entropy: Entropy,
        override: conf.Override | None,
    ) -> RaftCore:
        """Build the core; the simulation's mutants override this."""
        return RaftCore(
            config=config,
            journal=journal,
            snapshots=snapshots,
            outbox=outbox,
            state_machine=state_machine,
            clock=clock,
            entropy=entropy,
            override=override,
        )

    def _check_fit(self, damaged: list[str]) -> None:
        """A damaged snapshot may be done without only when an older one and the log reach beyond it."""
        latest = self.snapshots.latest
        reach = latest.index if latest is not None else 0
        if self.journal.entries and self.journal.first_index > reach + 1:
            raise CorruptionError(
                f"{self.config.data_dir}: the log begins at {self.journal.first_index}, but the newest usable snapshot "
                f"ends at {reach}. {' '.join(damaged)} Restore the snapshot files, or empty the raft directory and "
                "let this server join again."
            )
        if damaged and (latest is None and not self.journal.entries):
            raise CorruptionError(
                f"{' '.join(damaged)} There is nothing else to start from: empty the raft directory and let this "
                "server join again."
            )
        for message in damaged:
            log.error("snapshot is damaged, using an older one and the log", reason=message)

    # ---- what this server knows

    @property
    def initialized(self) -> bool:
        """Whether there is a configuration, from disk, from bootstrap or from a leader."""
        current = self.core.history.current
        return bool(current.peers or current.learners)

    @property
    def is_leader(self) -> bool:
        """Whether this server leads and its state holds everything ever committed."""
        return self.core.is_ready_leader()

    @property
    def leader(self) -> PeerSpec | None:
        """The leader, as far as this server knows."""
        if self.core.is_leader():
            return self.config.peer
        leader = self.core.leader_peer()
        return None if leader is None or leader.id == self.config.server_id else leader

    @property
    def term(self) -> int:
        """The current term."""
        return self.core.term()

    @property
    def applied_index(self) -> int:
        """The last log index that the state machine has seen."""
        return self.core.applied_index()

    @property
    def commit_index(self) -> int:
        """The last log index known to be committed."""
        return self.core.commit_index()

    @property
    def last_index(self) -> int:
        """The last index of this server's log."""
        return self.journal.last_index

    @property
    def last_contact_s(self) -> float:
        """Seconds since a leader was heard, or since the start when none ever was; 0 on the leader."""
        if self.core.is_leader():
            return 0.0
        contact = self.core.leader_contact
        return self._clock.monotonic() - (self._started_at if contact is None else contact)

    def peers(self) -> list[tuple[PeerSpec, bool]]:
        """The configuration in force: (server, whether it votes), in the order of ids."""
        current = self.core.history.current
        both = [(p, True) for p in current.peers] + [(p, False) for p in current.learners]
        return sorted(both, key=lambda item: item[0].id)

    @property
    def removed(self) -> tuple[str, ...]:
        """Ids of servers that were taken out for good, as far as remembered."""
        return self.core.history.current.removed

    @property
    def configuration_index(self) -> int:
        """Index of the newest change of the configuration; 0 when a snapshot or the first one is all there is."""
        return self.core.history.last_change_index

    def progress(self, server_id: str) -> tuple[int, float] | None:
        """On the leader: how far a follower holds the log, and seconds since it answered; None of others or before
        it ever answered."""
        progress = self.core.progress.get(server_id)
        if not self.core.is_leader() or progress is None or progress.answered_at is None:
            return None
        return progress.match, self._clock.monotonic() - progress.answered_at

    def stats(self) -> dict[str, str]:
        """What `agent-info` and `/v1/agent/self` show, with the names that tools know."""
        latest = self.snapshots.latest
        state = "Leader" if self.core.is_leader() else "Follower"
        never = self.core.leader_contact is None and not self.core.is_leader()
        return {
            "state": state,
            "term": str(self.term),
            "last_log_index": str(self.last_index),
            "last_log_term": str(self.journal.last_term),
            "commit_index": str(self.commit_index),
            "applied_index": str(self.applied_index),
            "fsm_pending": str(self.commit_index - self.applied_index),
            "last_snapshot_index": str(latest.index if latest else 0),
            "last_snapshot_term": str(latest.term if latest else 0),
            "num_peers": str(len(self.core.members())),
            "latest_configuration": ",".join(p.id for p in self.core.history.current.peers),
            "last_contact": "never" if never else f"{self.last_contact_s * 1000:.0f}ms",
            "rounds": str(self._rounds),
            "syncs": str(self.journal.syncs),
        }

    def on_leadership(self, listener: Callable[[bool, int], None]) -> None:
        """Call `listener(is_leader, term)` on every change; True only once the term's no-op is applied here."""
        self._listeners.append(listener)

    # ---- what the server asks

    async def bootstrap(self, peers: list[PeerSpec]) -> None:
        """Write the first configuration, durably. Every server must be given the same peers.

        Raises ConflictError when there is one already, InvalidRequestError when this server is not among the peers.
        """
        if self.initialized:
            raise ConflictError("raft: this server has a configuration already")
        if self.config.server_id not in {peer.id for peer in peers}:
            raise InvalidRequestError("raft: the first configuration must hold this server")
        if len({peer.id for peer in peers}) != len(peers):
            raise InvalidRequestError("raft: two servers of the first configuration have one id")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            if done.cancelled():
                return
            if self.initialized or self.journal.last_index != 1:
                done.set_exception(ConflictError("raft: this server has a configuration already"))
                return
            self.core.bootstrap(conf.begin(peers))
            self._after_sync.append(lambda: _finish(done))

        if self._running:
            self._post(begin)
            await done
            return
        # Before the first round, and without an await: nobody else may touch the journal meanwhile.
        begin()
        self._persist()
        self.core.note_durable()
        self._run_after_sync()
        await done

    async def propose(self, data: bytes, *, timeout_s: float = 10) -> tuple[int, object]:
        """Replicate a command; return its index and what the state machine answered.

        Raises NotLeaderError (definite; details leader_id and leader_address), ProposalTimeoutError (it may still
        commit), TooLargeError, DefiniteError when too many proposals wait.
        """
        if len(data) > self.config.max_command_bytes:
            raise TooLargeError(
                f"raft: a command of {len(data)} bytes is over the limit of {self.config.max_command_bytes}"
            )
        if self._in_flight >= self.config.max_pending:
            raise DefiniteError("raft: too many proposals wait, try again later", status=503)
        return await self._propose(
            lambda completion: self.core.propose(data, completion), timeout_s
        )

    async def read_index(self, *, timeout_s: float = 5) -> int:
        """On the leader: an index, already applied here, that no write acknowledged before this call is above.

        Raises NotLeaderError, DeadlineError.
        """
        waiter = _FutureWaiter(self)
        self.core.read_index(waiter)
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter.future
        except TimeoutError as cause:
            raise DeadlineError("raft: no majority confirmed the leadership in time") from cause

    async def wait_applied(self, index: int, *, timeout_s: float) -> None:
        """Wait until the state machine has seen `index`. Raises DeadlineError."""
        if self.applied_index >= index:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._applied_waiters, (index, next(self._order), future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError as cause:
            raise DeadlineError(
                f"raft: index {index} was not applied in time, this server is at {self.applied_index}"
            ) from cause

    def require_format(self, version: int) -> None:
        """From now on only with servers that read this format of the log."""
        self.transport.require_format(version)

    async def add_server(self, peer: PeerSpec, *, timeout_s: float = 10) -> None:
        """Make a server a voting member (or give a member another address); it must answer on its port.

        Raises NotLeaderError, UnreachableError, ConflictError while another change is not committed,
        ProposalTimeoutError.
        """
        self._require_leader()
        if self.core.history.current.peer(peer.id) == peer:
            return
        await self._probe(peer)
        await self._change(conf.Add(peer), timeout_s)

    async def add_learner(self, peer: PeerSpec, *, timeout_s: float = 10) -> None:
        """Give a server the log without a vote; `add_server` makes it a voter once it has caught up.

        Raises like `add_server`, InvalidRequestError for a voter.
        """
        self._require_leader()
        if self.core.history.current.learner(peer.id) == peer:
            return
        if self.core.history.current.peer(peer.id) is not None:
            raise InvalidRequestError(f"raft: {peer.id} votes already")
        await self._probe(peer)
        await self._change(conf.AddLearner(peer), timeout_s)

    async def _probe(self, peer: PeerSpec) -> None:
        if peer.id == self.config.server_id:
            return
        try:
            await self.transport.probe(peer)
        except (OSError, TimeoutError, ValueError, NomadError) as cause:
            raise UnreachableError(
                f"raft: {peer.name} does not answer at {peer.address}, so it cannot join: {cause}"
            ) from cause

    async def raise_log(self, index: int, *, timeout_s: float = 600) -> None:
        """Fill the log with empty entries until it ends at `index` or later, all of them committed.

        Raises as `propose` does.
        """

        def fill(completion: Callable[[int, object, str], None]) -> None:
            for _ in range(min(index - self.last_index, self.config.max_batch) - 1):
                self.core.propose_nothing(None)
            self.core.propose_nothing(completion)

        try:
            async with asyncio.timeout(timeout_s):
                while self.last_index < index:
                    await self._propose(fill, timeout_s)
        except TimeoutError as cause:
            raise DeadlineError(f"raft: the log did not reach {index} in time") from cause

    async def remove_server(
        self, server_id: str, *, final: bool = True, timeout_s: float = 10
    ) -> None:
        """Take a server out of the configuration; final: its id is remembered as removed. The leader hands leadership
        over instead of removing itself, and raises NotLeaderError so that the new one is asked.

        Raises NotLeaderError, ConflictError, InvalidRequestError for the last server, ProposalTimeoutError.
        """
        self._require_leader()
        if self.core.history.current.server(server_id) is None:
            return
        if server_id == self.config.server_id:
            if not self.core.members():
                raise InvalidRequestError("raft: the last server cannot be removed")
            await self.transfer_leadership(None)
            raise self._not_leader()
        await self._change(conf.Remove(server_id, final), timeout_s)

    async def transfer_leadership(self, to: str | None, *, timeout_s: float = 10) -> None:
        """Hand leadership to server `to`, or to the one whose log is longest; proposals wait meanwhile.

        Raises NotLeaderError, InvalidRequestError for an unknown server, DeadlineError when it did not happen in time.
        """
        self._require_leader()
        voters = {peer.id for peer in self.core.members()}
        if to is not None and to not in voters:
            raise InvalidRequestError(
                f"raft: {to} is not another voting server of the configuration"
            )
        if not voters:
            raise InvalidRequestError("raft: there is no other server")
        term = self.term
        self.core.holding_proposals = True
        try:
            async with asyncio.timeout(timeout_s):
                while self.core.is_leader() and self.term == term:
                    self._post(lambda: self._hand_over(to))
                    await asyncio.sleep(self.config.heartbeat_s)
        except TimeoutError as cause:
            raise DeadlineError("raft: the leadership was not taken over in time") from cause
        finally:
            self.core.holding_proposals = False
            self._wake.set()

    def _hand_over(self, to: str | None) -> None:
        progress = self.core.progress
        ready = [to] if to is not None else sorted(progress, key=lambda i: (-progress[i].match, i))
        for server_id in ready:
            if self.core.hand_over(server_id):
                return

    def _require_leader(self) -> None:
        if not self.is_leader:
            raise self._not_leader()

    def _not_leader(self) -> NotLeaderError:
        leader = self.leader
        if leader is not None and leader.id == self.config.server_id:
            leader = None
        return NotLeaderError(
            "raft: this server does not lead",
            leader_id=leader.id if leader else "",
            leader_address=leader.address if leader else "",
        )

    async def _change(self, change: conf.Change, timeout_s: float) -> None:
        await self._propose(
            lambda completion: self.core.propose_change(change, completion), timeout_s
        )

    async def _propose(
        self,
        submit: Callable[[Callable[[int, object, str], None]], None],
        timeout_s: float,
    ) -> tuple[int, object]:
        if not self.core.is_leader():
            raise self._not_leader()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[int, object]] = loop.create_future()

        def complete(index: int, result: object, outcome: str) -> None:
            if future.done():
                return
            if outcome == "done":
                future.set_result((index, result))
            elif outcome == "denied":
                future.set_exception(
                    ConflictError("raft: another membership change is not committed yet")
                )
            elif outcome == "unknown":
                future.set_exception(ProposalTimeoutError("raft: leadership was lost meanwhile"))
            else:
                future.set_exception(self._not_leader())

        submit(complete)
        self._wake.set()
        self._in_flight += 1
        deadline = loop.call_later(timeout_s, _time_out, future)
        try:
            return await future
        finally:
            deadline.cancel()
            self._in_flight -= 1

    # ---- the rounds

    async def run(self) -> None:
        """Work until cancelled. Raises what broke a round, after `fatal` has returned (it does in tests only)."""
        self._running = True
        if self._given_run_blocking is None:
            self._disk = ThreadPoolExecutor(1, "raft-disk")
            self._snapshot_disk = ThreadPoolExecutor(1, "raft-snapshot")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.transport.run(), name="raft-transport")
                tasks.create_task(self._run_rounds(), name="raft-rounds")
                tasks.create_task(self._run_snapshot_work(), name="raft-snapshots")
        finally:
            self._running = False
            if self._timer is not None:
                self._timer.cancel()
            for executor in (self._disk, self._snapshot_disk):
                if executor is not None:
                    executor.shutdown(wait=True)
            self.journal.close()

    async def serve(self, stream: ByteStream) -> None:
        """Serve a stream of another server, whose first byte (R) the listener has read. Returns when it ends."""
        await self.transport.serve(stream)

    async def _run_rounds(self) -> None:
        self._wake.set()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._round()
                self._rounds += 1
                self._set_timer()
                if self._wake.is_set():
                    # A long log to apply, and nothing to sync in between: let the others run.
                    await asyncio.sleep(0)
        except OSError as cause:
            log.error(
                "the disk failed, this server stops; nothing was acknowledged that it does not hold",
                server=self.config.name,
                data_dir=self.config.data_dir,
                error=str(cause),
                advice=_advice(cause),
            )
            self._fatal(f"{type(cause).__name__}: {cause}")
            raise
        except Exception as cause:
            log.exception("raft cannot go on, a round failed", server=self.config.name)
            self._fatal(f"{type(cause).__name__}: {cause}")
            raise

    async def _round(self) -> None:
        core = self.core
        inbox, self._inbox = self._inbox, []
        actions, self._actions = self._actions, []
        for act in actions:
            act()
        for link, size, message in inbox:
            self.transport.taken(size)
            if link.current:
                core.receive(link.peer, message)
        installed = self._install_received()
        core.tick()
        self.transport.flush_early()
        await self.persist_and_promise(installed)
        self._tell_roles()
        self._start_snapshot()
        if core.more_to_do or (not core.members() and core.commit_index() < core.durable_index):
            self._wake.set()

    async def persist_and_promise(self, installed: SnapshotHeader | None) -> None:
        """Second half of a round: make everything durable, then let the promises out."""
        receiver = self.core.receiver
        if installed is not None or self.journal.dirty or (receiver is not None and receiver.dirty):
            await self._blocking(lambda: self._persist(installed))
            if receiver is not None and receiver.complete:
                self._wake.set()
        if installed is not None:
            self.snapshots.adopt(installed)
        self.core.note_durable()
        self._run_after_sync()
        self.transport.flush_late()

    def _persist(self, installed: SnapshotHeader | None = None) -> None:
        """In a thread. A snapshot gets its name before the log is replaced by it; a start in between knows both."""
        if installed is not None:
            self.snapshots.install(installed)
        self.journal.sync()
        receiver = self.core.receiver
        if receiver is not None and receiver.dirty:
            try:
                self.snapshots.sync(receiver)
            except CorruptionError as cause:
                log.error("received snapshot is damaged, asking again", reason=cause.message)

    def _install_received(self) -> SnapshotHeader | None:
        receiver = self.core.receiver
        if receiver is None or not receiver.durable:
            return None
        self.core.receiver = None
        header = receiver.header
        if header is not None and self.core.install(header, self.core.leader_peer()):
            return header
        receiver.discard()
        return None

    def _run_after_sync(self) -> None:
        waiting, self._after_sync = self._after_sync, []
        for call in waiting:
            call()

    def _tell_roles(self) -> None:
        changes, self.core.role_changes = self.core.role_changes, []
        loop = asyncio.get_running_loop()
        for leads, term in changes:
            log.info(
                "leadership gained" if leads else "leadership lost",
                server=self.config.name,
                term=term,
            )
            for listener in self._listeners:
                loop.call_soon(listener, leads, term)

    def _set_timer(self) -> None:
        """Wake when the core next has something to do; an earlier timer that is still set will do as well."""
        loop = asyncio.get_running_loop()
        delay = max(0.0, self.core.next_deadline() - self._clock.monotonic()) + 0.0005
        when = loop.time() + delay
        if self._timer is not None and not self._timer.cancelled():
            if loop.time() < self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._wake.set)

    def _post(self, action: Callable[[], None]) -> None:
        self._actions.append(action)
        self._wake.set()

    def _deliver(self, link: Link, size: int, message: Message) -> None:
        self._inbox.append((link, size, message))
        if not self.core.can_wait(message):
            self._wake.set()

    def _on_link(self, peer: PeerSpec, connected: bool) -> None:
        self._post(lambda: self.core.link_changed(peer, connected))

    def _on_applied(self, index: int) -> None:
        waiters = self._applied_waiters
        while waiters and waiters[0][0] <= index:
            future = heapq.heappop(waiters)[2]
            if not future.done():
                future.set_result(None)

    async def _blocking(self, work: Callable[[], None], *, snapshot: bool = False) -> None:
        if self._given_run_blocking is not None:
            await self._given_run_blocking(work)
            return
        executor = self._snapshot_disk if snapshot else self._disk
        await asyncio.get_running_loop().run_in_executor(executor, work)

    # ---- snapshots

    def _start_snapshot(self) -> None:
        if self._writing_snapshot:
            return
        header = self.core.snapshot_due()
        if header is None:
            return
        self._writing_snapshot = True
        produce = self._state_machine.snapshot()

        async def work() -> None:
            try:
                await self._blocking(lambda: self.snapshots.write(header, produce), snapshot=True)
            except Exception as cause:
                # The log still holds everything; try again after a pause.
                if isinstance(cause, OSError):
                    log.error(
                        "snapshot could not be written, trying again",
                        index=header.index,
                        error=str(cause),
                    )
                else:
                    log.exception("snapshot could not be written", index=header.index)
                await asyncio.sleep(self.config.election_max_s)
                self._writing_snapshot = False
                return

            def adopt() -> None:
                self._writing_snapshot = False
                self.core.snapshot_written(header)
                log.info("snapshot written", index=header.index, term=header.term)

            self._post(adopt)

        self._snapshot_work.put_nowait(work)

    async def _run_snapshot_work(self) -> None:
        while True:
            work = await self._snapshot_work.get()
            await work()


class _FutureWaiter(Waiter):
    def __init__(self, node: RaftNode) -> None:
        self._node = node
        self.future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def resolve(self, index: int) -> None:
        if not self.future.done():
            self.future.set_result(index)

    def refuse(self) -> None:
        if not self.future.done():
            self.future.set_exception(self._node._not_leader())


def _advice(cause: OSError) -> str:
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the disk and start it again"
    return (
        "look at the disk; when it is sound again, start this server again, "
        "else give it an empty directory on another one, and it joins as a new server"
    )


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _time_out(future: asyncio.Future[tuple[int, object]]) -> None:
    if not future.done():
        future.set_exception(
            ProposalTimeoutError("raft: no majority confirmed the command in time")
        )
