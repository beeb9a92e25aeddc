"""The formats of the log: which command came with which, and whether a server can read a log.

A cluster's log has one format, a number in the state that only rises (`LogFormatSet`). A server says which formats it reads;
the leader writes a command only when the log has its format, and raises the format only when every server reads the
next one. So a server never meets an entry that it cannot read, unless it is older than it was.

To release a new format: add to FIRST_TAGS the first tag that belongs to it, and raise HIGHEST. A change of what an existing
command does is a new format as well: the handler asks the state for it (`Reads.log_format`).
"""

from __future__ import annotations

import functools

from nomadpy.errors import LogFormatError
from nomadpy.fsm.commands import Command

LOWEST = 1
HIGHEST = 3

FIRST_TAGS = {1: 1, 2: 37, 3: 39}
"""Tags are given in order, so a command belongs to the newest format whose first tag is not above its own."""

Formats = tuple[int, int]
"""The lowest and the highest format that a server reads."""

OWN: Formats = (LOWEST, HIGHEST)


def format_of_tag(tag: int) -> int:
    """The format that a command's tag came with."""
    return max(version for version, first in FIRST_TAGS.items() if first <= tag)


@functools.cache
def format_of(kind: type[Command]) -> int:
    """The format that a command came with."""
    tag = kind.__struct_config__.tag
    assert isinstance(tag, int)
    return format_of_tag(tag)


def check_readable(version: int, reads: Formats, what: str) -> None:
    """Raise LogFormatError when `what`, of format `version`, is not within what a server reads."""
    lowest, highest = reads
    if not lowest <= version <= highest:
        raise LogFormatError(
            f"{what} is of log format {version}, and this server reads {lowest} to {highest}. Install the version that the "
            "other servers run; or, to go on with this one, empty the raft directories of all servers and restore a "
            "snapshot that was saved before the upgrade"
        )
