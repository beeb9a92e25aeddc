"""The only reader of the operating system's clocks; everything else takes a Clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What time it is. The simulator has its own, with skew."""

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970 UTC; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never falls."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970 UTC."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never falls."""
        return time.monotonic()
