"""The heart that endpoints and duties share: the log to write to, the state to read from.

`propose` is the only way anything changes; `snapshot` is what everything is decided on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nomadpy import logs
from nomadpy.clock import Clock
from nomadpy.entropy import Entropy
from nomadpy.errors import LogFormatError, NomadError, NotLeaderError
from nomadpy.fsm import formats
from nomadpy.fsm.commands import (
    Applied,
    Command,
    Entry,
    EntryCodec,
    LogFormatSet,
    PackedPlans,
    PlanResults,
)
from nomadpy.metrics import Registry
from nomadpy.raft.config import PeerSpec
from nomadpy.server.settings import ServerSettings
from nomadpy.state.store import Snapshot, StateStore

log = logs.get(__name__)

PROPOSE_TIMEOUT_S = 10.0


class Peer(Protocol):
    """A raft server as raft names it."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...


class Replication(Protocol):
    """What the server uses of raft.RaftNode."""

    @property
    def initialized(self) -> bool: ...
    @property
    def is_leader(self) -> bool: ...
    @property
    def leader(self) -> Peer | None: ...
    @property
    def term(self) -> int: ...
    @property
    def applied_index(self) -> int: ...
    @property
    def commit_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def last_contact_s(self) -> float: ...
    async def propose(self, data: bytes, *, timeout_s: float = 10) -> tuple[int, object]: ...
    async def read_index(self, *, timeout_s: float = 5) -> int: ...
    async def wait_applied(self, index: int, *, timeout_s: float) -> None: ...
    def on_leadership(self, listener: Callable[[bool, int], None]) -> None: ...
    def stats(self) -> dict[str, str]: ...
    def peers(self) -> list[tuple[PeerSpec, bool]]: ...
    @property
    def removed(self) -> tuple[str, ...]: ...
    @property
    def configuration_index(self) -> int: ...
    def progress(self, server_id: str) -> tuple[int, float] | None: ...
    async def add_server(self, peer: PeerSpec, *, timeout_s: float = 10) -> None: ...
    async def add_learner(self, peer: PeerSpec, *, timeout_s: float = 10) -> None: ...
    async def remove_server(
        self, server_id: str, *, final: bool = True, timeout_s: float = 10
    ) -> None: ...
    async def transfer_leadership(self, to: str | None, *, timeout_s: float = 10) -> None: ...
    async def raise_log(self, index: int, *, timeout_s: float = 600) -> None: ...
    def require_format(self, version: int) -> None: ...


class Core:
    """One server's access to the replicated state."""

    def __init__(
        self,
        settings: ServerSettings,
        store: StateStore,
        raft: Replication,
        *,
        clock: Clock,
        entropy: Entropy,
        metrics: Registry | None = None,
        codec: EntryCodec | None = None,
    ) -> None:
        """codec: the state machine's, which then need not decode what is proposed here."""
        self.settings = settings
        self.store = store
        self.raft = raft
        self.clock = clock
        self.entropy = entropy
        self.metrics = metrics or Registry(clock)
        # Set by log_format.py, which knows the other servers.
        self.common_format: Callable[[], int] = lambda: settings.log_formats[1]
        self._codec = codec or EntryCodec()

    def snapshot(self) -> Snapshot:
        """The state as applied here, at this moment."""
        return self.store.snapshot()

    def log_format(self) -> int:
        """The format of the log; in a cluster that has just been formed, the one it is about to get."""
        snapshot = self.snapshot()
        return (
            self.common_format() if snapshot.cluster_metadata() is None else snapshot.log_format()
        )

    async def propose(
        self, command: Command, *, request_id: str = "", timeout_s: float = PROPOSE_TIMEOUT_S
    ) -> Applied:
        """Write one command to the log and return what applying it gave.

        request_id: a command with an id that was applied before returns that result and changes nothing.
        Raises the state machine's NomadError; NotLeaderError (definite); ProposalTimeoutError (indefinite); LogFormatError
        when not all servers can read such a command yet (definite).
        """
        needed = formats.format_of(type(command))
        if needed > formats.LOWEST and not isinstance(command, LogFormatSet):
            present = self.log_format()
            if needed > present:
                raise LogFormatError(
                    f"this waits until every server is upgraded: it needs log format {needed}, and the cluster's log is of "
                    f"format {present}"
                )
        entry = Entry(
            request_id=request_id or self.entropy.uuid(),
            now_ns=self.clock.now_ns(),
            command=command,
        )
        self.metrics.count("nomad.raft.apply")
        with self.metrics.timed("nomad.raft.commitTime"):
            index, result = await self.raft.propose(self._encoded(entry), timeout_s=timeout_s)
        if isinstance(result, NomadError):
            raise result
        if isinstance(result, Applied):
            return result
        return Applied(index=index, value=result)

    def _encoded(self, entry: Entry) -> bytes:
        plans = isinstance(entry.command, PlanResults)
        packed = plans and self.log_format() >= formats.format_of(PackedPlans)
        return self._codec.encode(entry, packed=packed)

    def require_leader(self) -> None:
        """Raise NotLeaderError unless this server leads; nothing has been done then."""
        if not self.raft.is_leader:
            leader = self.raft.leader
            raise NotLeaderError(
                "this server does not lead", leader_address=leader.address if leader else ""
            )
