"""Do the servers have the same state? Each sums up its tables at the same entries of the log and tells the others.

The leader writes a Checkpoint every `state_check_interval_s`. At it each server walks its state of that moment, a few rows at
a time between other work, and says the sums with its hellos. Who finds another sum at the same index shouts: in the log, in a
metric, in /v1/agent/self and in the autopilot's health. Nothing is repaired: a server that differs has to be looked at.

Of two sums the wrong one is told by the majority; where there is none, by the leader. Servers whose versions give rows another
shape are not compared.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Generator

import msgspec

from nomadpy import logs
from nomadpy.errors import NomadError
from nomadpy.fsm.commands import Checkpoint
from nomadpy.fsm.formats import format_of
from nomadpy.models.calls import StateSums
from nomadpy.server.core import Core
from nomadpy.server.members import Members
from nomadpy.state.checksum import Sums, shape

log = logs.get(__name__)

LOOK_S = 1.0
PAUSE_S = 0.005
"""Between two steps of a walk, each of which takes a few tenths of a millisecond."""
REMEMBERED = 4

Walk = Generator[None, None, Sums]


class Verdict(msgspec.Struct, frozen=True):
    """What the newest index showed at which others could be compared. odd: server id to the tables in which it differs."""

    index: int = 0
    compared: int = 0
    odd: dict[str, list[str]] = {}


class StateCheck:
    """One server's part of it. `run` lasts as long as the server."""

    def __init__(self, core: Core, members: Members) -> None:
        self._core = core
        self._members = members
        self._own: dict[int, StateSums] = {}
        self._due: tuple[int, Walk] | None = None
        self._wake = asyncio.Event()
        self._checkpoint_at = core.clock.monotonic()
        self.verdict = Verdict()
        self.on_difference: Callable[[Verdict], None] = lambda _verdict: None

    def checkpoint(self, index: int, walk: Walk) -> None:
        """The log has come to a checkpoint; an older one that still waits is passed over."""
        self._due = (index, walk)
        self._checkpoint_at = self._core.clock.monotonic()
        self._wake.set()

    @property
    def newest(self) -> StateSums | None:
        """The newest sums of this server."""
        return next(reversed(self._own.values()), None)

    def stats(self) -> dict[str, str]:
        """What /v1/agent/self shows."""
        newest, verdict = self.newest, self.verdict
        return {
            "interval": f"{self._core.settings.state_check_interval_s:g}s",
            "summed_index": str(newest.index if newest is not None else 0),
            "compared_index": str(verdict.index),
            "compared_servers": str(verdict.compared),
            "differing_servers": ",".join(
                f"{self._name(i)}:{'/'.join(tables)}" for i, tables in sorted(verdict.odd.items())
            ),
        }

    async def run(self) -> None:
        """Sum up and compare until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sum_up(), name="state-sums")
            tasks.create_task(self._look(), name="state-check")

    # -- summing up -----------------------------------------------------------------------------------

    async def _sum_up(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._due is None:
                continue
            (index, walk), self._due = self._due, None
            started_s = self._core.metrics.monotonic()
            sums = await _walked(walk)
            self._core.metrics.observe_since("nomad.nomad.state_check.walk", started_s)
            self._own[index] = StateSums(index=index, shape=shape(), sums=sums)
            for old in list(self._own)[:-REMEMBERED]:
                del self._own[old]
            self._members.checked = self.newest
            self.compare()

    async def _look(self) -> None:
        core = self._core
        interval_s = core.settings.state_check_interval_s
        while True:
            await asyncio.sleep(LOOK_S)
            self.compare()
            due = interval_s and core.clock.monotonic() - self._checkpoint_at >= interval_s
            if due and core.raft.is_leader and core.log_format() >= format_of(Checkpoint):
                self._checkpoint_at = core.clock.monotonic()
                try:
                    await core.propose(Checkpoint())
                except NomadError as error:
                    log.debug("no checkpoint", error=error.message)

    # -- comparing --------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Hold the newest sums of others against one's own of the same index."""
        told = {
            m.hello.id: m.hello.checked
            for m in self._members.all()
            if m.status == "alive" and m.hello.checked is not None
        }
        for index in sorted(self._own, reverse=True):
            mine = self._own[index]
            same = (index, mine.shape)
            group = {i: sums for i, sums in told.items() if (sums.index, sums.shape) == same}
            group[self._core.settings.id] = mine
            if len(group) > 1:
                self._judge(index, group)
                return

    def _judge(self, index: int, group: dict[str, StateSums]) -> None:
        if (index, len(group)) < (self.verdict.index, self.verdict.compared):
            return
        right = self._right(group)
        odd = {
            server_id: sorted(
                name
                for name in {*sums.sums, *right.sums}
                if sums.sums.get(name) != right.sums.get(name)
            )
            for server_id, sums in sorted(group.items())
            if sums.sums != right.sums
        }
        before, self.verdict = self.verdict, Verdict(index, len(group), odd)
        if odd and (before.index, before.odd) != (index, odd):
            self.on_difference(self.verdict)
            for server_id, tables in odd.items():
                log.error(
                    "the state of a server differs from the others': take it out, empty its raft directory and let it join "
                    "again; until then do not trust what it answers",
                    server=self._name(server_id),
                    tables=",".join(tables),
                    index=index,
                    sums=",".join(group[server_id].sums.get(name, "none") for name in tables),
                    others=",".join(right.sums.get(name, "none") for name in tables),
                )
        elif before.odd and not odd:
            log.info("the servers' states are equal again", index=index, servers=len(group))

    def _right(self, group: dict[str, StateSums]) -> StateSums:
        """The sums of most; of equally many those of the leader, or of this server."""
        counts = collections.Counter(_joined(sums) for sums in group.values())
        most = max(counts.values())
        leader = self._core.raft.leader
        first = [leader.id] if leader is not None else []
        for server_id in (*first, self._core.settings.id, *sorted(group)):
            sums = group.get(server_id)
            if sums is not None and counts[_joined(sums)] == most:
                return sums
        raise AssertionError("somebody is among the most")

    def _name(self, server_id: str) -> str:
        member = self._members.by_id(server_id)
        return server_id if member is None else member.hello.name


async def _walked(walk: Walk) -> Sums:
    while True:
        try:
            next(walk)
        except StopIteration as end:
            sums: Sums = end.value
            return sums
        await asyncio.sleep(PAUSE_S)


def _joined(sums: StateSums) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(sums.sums.items()))
