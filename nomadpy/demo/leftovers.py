"""What a cluster on this machine can leave behind below its folder, and its end: processes, mounts, files."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from nomadpy.demo.client import until

END_S = 10.0


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line, environment or directory names `folder`; not this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            told = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            told += b"\0" + os.fsencode((entry / "cwd").readlink())
        except OSError:
            continue
        if os.fsencode(folder) in told and is_alive(int(entry.name)):
            found.append(int(entry.name))
    return sorted(found)


def end_processes_of(folder: Path) -> None:
    """SIGKILL what belongs to a folder, also what is born meanwhile. Raises TimeoutError when something stays."""

    def ended() -> bool:
        pids = processes_of(folder)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    until(ended, seconds=END_S, what=f"the processes of {folder} to end")


def remove_folder(folder: Path) -> None:
    """Remove a folder with all in it; what is mounted below, such as tasks' secrets, is unmounted first."""
    for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
        point = line.split(" ")[1]
        if point.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", point], check=True)
    shutil.rmtree(folder)
