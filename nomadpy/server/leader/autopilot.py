"""The leader's care for its quorum: let servers in, make them voters, and let go of those that are dead.

A server that says hello and is in nobody's list gets the log as a learner first. It becomes a voter once it has held the
newest of the log for `ServerStabilizationTime`. One whose id an operator removed is not let in again. At most one change a
step, and none that would leave the cluster without a majority of live voters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from nomadpy import logs
from nomadpy.errors import NomadError
from nomadpy.hcl.durations import parse_duration
from nomadpy.models.operator import AutopilotConfiguration
from nomadpy.raft.config import PeerSpec
from nomadpy.server.core import Core
from nomadpy.server.log_format import LogFormats
from nomadpy.server.members import Members

log = logs.get(__name__)

STEP_S = 1.0
DEAD_AFTER_S = 60.0
"""A server that is silent is given at least so long before it is cleaned up: a host that reboots must not lose its vote."""
ANSWER_S = 5.0
DEFAULT_STABLE_S = 10.0
DEFAULT_TRAILING = 250


class Autopilot:
    """One leadership's view of the servers. `run` lasts as long as the leadership."""

    def __init__(self, core: Core, members: Members, formats: LogFormats) -> None:
        self._core = core
        self._members = members
        self._formats = formats
        self._healthy_since: dict[str, float] = {}
        self._dead_since: dict[str, float] = {}
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        """Look after the servers until cancelled."""
        self._healthy_since.clear()
        self._dead_since.clear()
        while True:
            await asyncio.sleep(STEP_S)
            if self._core.raft.is_leader:
                await self.step()

    async def step(self) -> None:
        """Look once, and change at most one thing."""
        config = self._core.snapshot().autopilot_config()
        self._observe(config)
        if await self._formats.step():
            return
        for attempt in (self._move, self._promote, self._clean_up, self._admit):
            if await attempt(config):
                return

    def healthy_for(self, server_id: str) -> float | None:
        """Seconds for which a server has been well; None when it is not."""
        since = self._healthy_since.get(server_id)
        return None if since is None else self._core.clock.monotonic() - since

    # -- looking ------------------------------------------------------------------------------------------

    def _observe(self, config: AutopilotConfiguration) -> None:
        now = self._core.clock.monotonic()
        ids = {peer.id for peer, _ in self._core.raft.peers()}
        for server_id in ids:
            if self._is_healthy(server_id, config):
                self._healthy_since.setdefault(server_id, now)
            else:
                self._healthy_since.pop(server_id, None)
            if self._is_alive(server_id):
                self._dead_since.pop(server_id, None)
            else:
                self._dead_since.setdefault(server_id, now)
        for seen in (self._healthy_since, self._dead_since):
            for server_id in [i for i in seen if i not in ids]:
                del seen[server_id]

    def _is_alive(self, server_id: str) -> bool:
        member = self._members.by_id(server_id)
        return member is not None and member.status == "alive"

    def _is_healthy(self, server_id: str, config: AutopilotConfiguration) -> bool:
        raft = self._core.raft
        if server_id == self._core.settings.id:
            return True
        progress = raft.progress(server_id)
        if progress is None or not self._is_alive(server_id):
            return False
        match, silent_s = progress
        trailing = config.max_trailing_logs or DEFAULT_TRAILING
        return silent_s < ANSWER_S and raft.last_index - match <= trailing

    def majority_stays_without(self, server_id: str) -> bool:
        """Whether the voters that remain have a live majority among them."""
        voters = [p.id for p, votes in self._core.raft.peers() if votes and p.id != server_id]
        return sum(map(self._is_alive, voters)) > len(voters) // 2

    # -- changing -----------------------------------------------------------------------------------------

    async def _move(self, _config: AutopilotConfiguration) -> bool:
        """A server that advertises another address is followed there."""
        for peer, votes in self._core.raft.peers():
            member = self._members.by_id(peer.id)
            if member is None or member.status != "alive" or member.hello.rpc == peer.address:
                continue
            moved = PeerSpec(peer.id, member.hello.name, member.hello.rpc)
            raft = self._core.raft
            change = raft.add_server(moved) if votes else raft.add_learner(moved)
            return await self._try("server moved", moved, change)
        return False

    async def _promote(self, config: AutopilotConfiguration) -> bool:
        stable_s = _seconds(config.server_stabilization_time, DEFAULT_STABLE_S)
        for peer, votes in self._core.raft.peers():
            well_s = self.healthy_for(peer.id)
            if votes or well_s is None or well_s < stable_s:
                continue
            return await self._try(
                "server votes from now on", peer, self._core.raft.add_server(peer)
            )
        return False

    async def _clean_up(self, config: AutopilotConfiguration) -> bool:
        raft, now = self._core.raft, self._core.clock.monotonic()
        wait_s = max(_seconds(config.server_stabilization_time, DEFAULT_STABLE_S), DEAD_AFTER_S)
        peers = raft.peers()
        voters = sum(votes for _, votes in peers)
        taken = {m.hello.rpc: m.hello.id for m in self._members.all() if m.status == "alive"}
        for peer, votes in peers:
            since = self._dead_since.get(peer.id)
            if since is None or peer.id == self._core.settings.id:
                continue
            # Another server answers at its address: this one's data is gone, and it cannot come back.
            replaced = taken.get(peer.address, peer.id) != peer.id
            if not replaced and (not config.cleanup_dead_servers or now - since < wait_s):
                continue
            if votes and not self.majority_stays_without(peer.id):
                continue
            if votes and not replaced and voters - 1 < max(config.min_quorum, 1):
                continue
            text = "server was replaced, removed" if replaced else "dead server removed"
            return await self._try(text, peer, raft.remove_server(peer.id, final=replaced))
        return False

    async def _admit(self, _config: AutopilotConfiguration) -> bool:
        raft = self._core.raft
        known = {peer.id for peer, _ in raft.peers()} | set(raft.removed)
        addresses = {peer.address for peer, _ in raft.peers()}
        for member in self._members.all():
            hello = member.hello
            if hello.id in known or member.status != "alive" or hello.rpc in addresses:
                continue
            peer = PeerSpec(hello.id, hello.name, hello.rpc)
            too_old = self._formats.too_old(hello)
            if too_old:
                self._say(peer, too_old)
                continue
            if await self._try("server joined as a learner", peer, raft.add_learner(peer)):
                return True
        return False

    async def _try(self, text: str, peer: PeerSpec, change: Awaitable[None]) -> bool:
        try:
            await change
        except NomadError as error:
            self._say(peer, error.message)
            return False
        self._said.pop(peer.id, None)
        log.info(text, name=peer.name, id=peer.id, address=peer.address)
        return True

    def _say(self, peer: PeerSpec, reason: str) -> None:
        """Once for each reason."""
        if self._said.get(peer.id) != reason:
            self._said[peer.id] = reason
            log.warning("server not changed", name=peer.name, id=peer.id, error=reason)


def _seconds(text: str, default: float) -> float:
    try:
        return parse_duration(text) / 1e9
    except ValueError:
        return default
