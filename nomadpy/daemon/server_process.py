"""One server put together: state, log, raft, calls, and the port they come in by.

Everything that touches the world comes in as an argument, so the daemon and the simulator build the same server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from nomadpy.clock import Clock
from nomadpy.daemon.gauges import MeasuredStateMachine
from nomadpy.entropy import Entropy
from nomadpy.fsm.apply import StateMachine
from nomadpy.fsm.commands import EntryCodec
from nomadpy.metrics import Registry
from nomadpy.models.calls import ServerAddress
from nomadpy.models.root_key import RootKey
from nomadpy.pki.keyring import Keyring
from nomadpy.raft.config import PeerSpec, RaftConfig
from nomadpy.raft.files import Files
from nomadpy.raft.node import RaftNode, RunBlocking, exit_process
from nomadpy.rpc.dispatch import Dispatcher
from nomadpy.rpc.listener import Listener
from nomadpy.rpc.network import Network
from nomadpy.rpc.pool import Pool
from nomadpy.server.server import Server
from nomadpy.server.settings import ServerSettings
from nomadpy.server.worker import RunBlocking as RunScheduler
from nomadpy.state.store import StateStore


class ServerProcess:
    """A server with its port. `open` binds the port, `run` serves until cancelled and closes everything."""

    def __init__(
        self,
        settings: ServerSettings,
        raft_config: RaftConfig,
        *,
        network: Network,
        listen: str,
        files: Files,
        clock: Clock,
        entropy: Entropy,
        make_root_key: Callable[[], Awaitable[RootKey]],
        run_scheduler: RunScheduler,
        run_disk: RunBlocking | None = None,
        fatal: Callable[[str], None] = exit_process,
        max_streams_per_address: int = 1000,
        metrics: Registry | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        """listen: host:port to bind. keyring: None keeps key-encryption keys in the state. metrics: None keeps figures that nobody reads. Raises CorruptionError when what is on disk is damaged."""
        metrics = metrics or Registry(clock)
        self.store = StateStore()
        codec = EntryCodec()
        self.state_machine = StateMachine(self.store, codec, reads=settings.log_formats)
        self.raft = RaftNode(
            msgspec.structs.replace(raft_config, formats=settings.log_formats),
            MeasuredStateMachine(self.state_machine, metrics),
            network=network,
            files=files,
            clock=clock,
            entropy=entropy,
            run_blocking=run_disk,
            fatal=fatal,
        )
        self.dispatcher = Dispatcher(metrics)
        self.pool = Pool(network, self.dispatcher, entropy)
        self.server = Server(
            settings,
            codec=codec,
            store=self.store,
            raft=self.raft,
            bootstrap=self._bootstrap,
            configuration=self.configuration,
            dispatcher=self.dispatcher,
            pool=self.pool,
            clock=clock,
            entropy=entropy,
            run_blocking=run_scheduler,
            make_root_key=make_root_key,
            metrics=metrics,
            keyring=keyring or Keyring(),
        )
        self.state_machine.on_checkpoint = self.server.state_check.checkpoint
        self._follow_format()
        self.store.subscribe(lambda _changes: self._follow_format())
        self.listener = Listener(
            network,
            self.dispatcher,
            raft=self.raft.serve,
            on_disconnect=self.server.connection_ended,
            max_streams_per_address=max_streams_per_address,
        )
        self._listen = listen

    def _follow_format(self) -> None:
        self.raft.require_format(self.store.snapshot().log_format())

    async def open(self) -> None:
        """Bind the port. Raises ConfigError when that cannot be."""
        await self.listener.start(self._listen)

    async def run(self) -> None:
        """Serve until cancelled; `open` must have been called."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.server.run(), name="server")
        finally:
            await self.listener.close()
            await self.pool.close()

    def configuration(self) -> list[ServerAddress]:
        """The servers of raft's present configuration."""
        if not self.raft.initialized:
            return []
        return [
            ServerAddress(id=peer.id, name=peer.name, rpc=peer.address)
            for peer, _voter in self.raft.peers()
        ]

    async def _bootstrap(self, servers: list[ServerAddress]) -> None:
        await self.raft.bootstrap([PeerSpec(s.id, s.name, s.rpc) for s in servers])
