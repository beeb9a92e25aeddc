"""A wall clock for each node: a small library, built when needed and preloaded, and the file it reads the time's faults from.

Only the wall clock of the node's own process changes, at once and without a restart; the monotonic clock does not.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from nomadpy.clock import Clock, SystemClock

SOURCE = Path(__file__).with_name("skew.c")
VARIABLE = "NOMADPY_KIT_CLOCK"

_COMPILERS = ("cc", "gcc", "clang")
_CHOSEN = struct.Struct("=q")
_SETTING = struct.Struct("=qqd")
_SIZE = _CHOSEN.size + 2 * _SETTING.size


def compiler() -> str:
    """A C compiler of this machine, "" for none."""
    return next((c for c in _COMPILERS if shutil.which(c)), "")


def build(folder: Path) -> Path:
    """Build the library into a folder; return its path. Raises RuntimeError with the compiler's words."""
    library = folder / "skew.so"
    words = [compiler(), "-shared", "-fPIC", "-O2"]
    done = subprocess.run(
        [*words, "-o", str(library), str(SOURCE), "-ldl"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{SOURCE.name} cannot be built: {done.stderr.strip()}")
    return library


class FaultyClock:
    """What time one node sees; shared with its process through a file that stays the same over restarts."""

    def __init__(self, file: Path, clock: Clock | None = None) -> None:
        """The file is made anew: at first the clock is right."""
        self.file = file
        self._clock = clock or SystemClock()
        file.write_bytes(bytes(_SIZE))
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), _SIZE)
        self._setting = (0, 0, 1.0)
        self.heal()

    def shown_ns(self) -> int:
        """The time the node sees now, nanoseconds since 1970."""
        anchor_ns, base_ns, rate = self._setting
        passed_ns = self._clock.now_ns() - anchor_ns
        return base_ns + (passed_ns if rate == 1.0 else int(passed_ns * rate))

    def bump(self, by_s: float) -> None:
        """Let it jump, forth or back; it goes on as fast as before."""
        self._set(self.shown_ns() + int(by_s * 1e9), self._setting[2])

    def run_at(self, rate: float) -> None:
        """Let it run faster or slower from now on; 1 is right. The rate must be above 0."""
        if rate <= 0:
            raise ValueError(f"a clock cannot run at {rate}")
        self._set(self.shown_ns(), rate)

    def heal(self) -> None:
        """The right time, as fast as it should be."""
        self._set(self._clock.now_ns(), 1.0, exact=True)

    def close(self) -> None:
        """Let go of the file."""
        self._memory.close()

    def _set(self, shown_ns: int, rate: float, *, exact: bool = False) -> None:
        # Anchor and base equal: the machine's own clock, also when that is set anew.
        anchor_ns = shown_ns if exact else self._clock.now_ns()
        self._setting = (anchor_ns, shown_ns, rate)
        # The setting that nobody reads is written, then chosen: a reader never sees half of one.
        free = 1 - _CHOSEN.unpack_from(self._memory)[0]
        _SETTING.pack_into(self._memory, _CHOSEN.size + free * _SETTING.size, *self._setting)
        _CHOSEN.pack_into(self._memory, 0, free)


def environment(library: Path, file: Path) -> dict[str, str]:
    """What a process needs to live by a faulty clock."""
    return {"LD_PRELOAD": str(library), VARIABLE: str(file)}
