"""Servers of several versions in one cluster: which formats of the log they read, and the step to the next format.

The log's format is in the state (fsm/formats.py). The leader raises it as soon as every server of the configuration has said
that it reads the next one, and nobody is let in any more who does not. Until then a command of the next format is refused to
whoever asks for it.
"""

from __future__ import annotations

from nomadpy import logs
from nomadpy.errors import NomadError
from nomadpy.fsm.commands import LogFormatSet
from nomadpy.models.calls import ServerHello
from nomadpy.server.core import Core
from nomadpy.server.members import Members

log = logs.get(__name__)


class LogFormats:
    """What this server knows of the others' versions."""

    def __init__(self, core: Core, members: Members) -> None:
        self._core = core
        self._members = members
        self._tried = 0
        self._said: tuple[str, ...] = ()
        core.common_format = self.common
        members.too_old = self.too_old

    def common(self) -> int:
        """The highest format that every server of the configuration reads, as far as they have said."""
        settings = self._core.settings
        common = settings.log_formats[1]
        for peer, _votes in self._core.raft.peers():
            if peer.id != settings.id:
                member = self._members.by_id(peer.id)
                # Who was not heard of may be of the first version.
                common = min(common, 1 if member is None else member.hello.formats[1])
        return common

    def too_old(self, hello: ServerHello) -> str:
        """Why a server cannot take part, "" when it can. The other way round: a log that is too old for a new server."""
        core = self._core
        if core.snapshot().cluster_metadata() is None:
            return ""
        needed = max(core.snapshot().log_format(), self._tried)
        lowest, highest = hello.formats
        if lowest <= needed <= highest:
            return ""
        return (
            f"the cluster's log is of format {needed}, and version {hello.build} on {hello.name} reads {lowest} to {highest}: "
            f"install {core.settings.build}, or a version that reads it"
        )

    async def step(self) -> bool:
        """On the leader: raise the format when all can follow; whether anything was tried."""
        core = self._core
        snapshot = core.snapshot()
        common = self.common()
        if snapshot.cluster_metadata() is None or common <= snapshot.log_format():
            self._tell_who_is_behind()
            return False
        # Before the entry exists: nobody who went back to an older version meanwhile may get it from here.
        core.raft.require_format(common)
        self._tried = max(self._tried, common)
        try:
            await core.propose(LogFormatSet(version=common))
        except NomadError as error:
            log.warning("log format not raised yet", version=common, error=error.message)
        else:
            log.info("log format raised", version=common, was=snapshot.log_format())
        return True

    def _tell_who_is_behind(self) -> None:
        """Once for each set of servers: an upgrade that was left half done shows in the log."""
        core = self._core
        highest = core.settings.log_formats[1]
        behind: list[str] = []
        if core.snapshot().log_format() < highest:
            for peer, _votes in core.raft.peers():
                member = self._members.by_id(peer.id)
                if peer.id != core.settings.id and (
                    member is None or member.hello.formats[1] < highest
                ):
                    build = "unknown" if member is None else member.hello.build
                    behind.append(f"{peer.name} ({build})")
        if tuple(behind) != self._said:
            self._said = tuple(behind)
            if behind:
                log.info(
                    "log format stays until these servers are upgraded",
                    version=core.snapshot().log_format(),
                    next=highest,
                    servers=", ".join(behind),
                )
