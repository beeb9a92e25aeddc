"""One daemon to a data directory: two that write one log, or run one node's tasks twice, must not happen."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from nomadpy.errors import ConfigError

LOCK_FILE = "agent.lock"


def lock_data_dir(home: Path) -> IO[str]:
    """Take the directory for this process and return what holds it; closing that, or the process's end, gives it back.

    Raises ConfigError when another process holds it.
    """
    file = os.fdopen(os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        holder = file.read(20).strip()
        file.close()
        raise ConfigError(
            f"data_dir {home} is in use by another agent{f', process {holder}' if holder else ''}: "
            "stop that one, or give this one a data_dir of its own"
        ) from cause
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
