"""One process to a data directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nomadpy.daemon.lock import LOCK_FILE, lock_data_dir
from nomadpy.errors import ConfigError


def test_the_holder_is_named_and_closing_gives_the_directory_back(tmp_path: Path) -> None:
    held = lock_data_dir(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    with pytest.raises(ConfigError, match=f"in use by another agent, process {os.getpid()}"):
        lock_data_dir(tmp_path)
    held.close()
    lock_data_dir(tmp_path).close()


def test_a_killed_holder_gives_the_directory_back(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib\n"
        "from nomadpy.daemon.lock import lock_data_dir\n"
        "held = lock_data_dir(pathlib.Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -9
    lock_data_dir(tmp_path).close()
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"


def test_the_lock_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    lock_data_dir(tmp_path).close()
    assert (tmp_path / LOCK_FILE).stat().st_mode & 0o777 == 0o600
