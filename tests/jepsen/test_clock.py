"""Clocks of single processes that jump and run wrong while the machine's own goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jepsen_style.clock.skew import FaultyClock, build, compiler, environment

from nomadpy.clock import SystemClock

SHOW = """
import datetime, email.utils, sys, time
for line in sys.stdin:
    moments = [time.time_ns() / 1e9, time.clock_gettime(time.CLOCK_REALTIME),
        datetime.datetime.now(datetime.timezone.utc).timestamp(),
        email.utils.mktime_tz(email.utils.parsedate_tz(time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())))]
    print(*moments, time.monotonic(), flush=True)
"""

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(not compiler(), reason="needs a C compiler"),
]


class Shown:
    """A process that lives by a faulty clock and says what it sees."""

    def __init__(self, folder: Path) -> None:
        self.clock = FaultyClock(folder / "node.clock")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHOW],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment(build(folder), self.clock.file)},
        )

    def skews(self) -> list[float]:
        """How far each way of asking for the time is from the machine's clock, and then its monotonic clock from ours."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        clock = SystemClock()
        real, monotonic = clock.now_ns() / 1e9, clock.monotonic()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        *walls, steady = (float(word) for word in self.process.stdout.readline().split())
        return [*(wall - real for wall in walls), steady - monotonic]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()
        self.clock.close()


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Shown]:
    process = Shown(tmp_path)
    yield process
    process.close()


NEAR = pytest.approx(0.0, abs=5.0)


def test_every_way_to_ask_for_the_time_sees_the_jump_and_the_monotonic_clock_none(
    shown: Shown,
) -> None:
    assert shown.skews() == [NEAR] * 5
    for by_s in (3600.0, -7200.0):
        before = shown.skews()
        shown.clock.bump(by_s)
        after = shown.skews()
        assert [a - b for a, b in zip(after, before, strict=True)][:4] == [
            pytest.approx(by_s, abs=5.0)
        ] * 4
        assert after[4] == NEAR
    shown.clock.heal()
    assert shown.skews() == [NEAR] * 5


def test_a_clock_that_drifts_is_wrong_by_more_and_more(shown: Shown) -> None:
    shown.clock.run_at(1000.0)
    while shown.skews()[0] < 100.0:
        pass
    assert shown.clock.shown_ns() / 1e9 - SystemClock().now_ns() / 1e9 > 100.0
    shown.clock.run_at(0.001)
    fast = shown.skews()[0]
    while shown.skews()[0] > fast - 0.5:
        pass
    with pytest.raises(ValueError, match="a clock cannot run at 0"):
        shown.clock.run_at(0)


def test_a_process_that_starts_later_lives_by_the_same_clock(shown: Shown, tmp_path: Path) -> None:
    shown.clock.bump(600)
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment(tmp_path / "skew.so", shown.clock.file)},
    )
    assert float(told.stdout) - SystemClock().now_ns() / 1e9 == pytest.approx(600, abs=10)


class StillClock:
    """A machine's clock that stands."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def monotonic(self) -> float:
        return self.ns / 1e9


def test_bumps_and_rates_add_up_and_healing_is_exact(tmp_path: Path) -> None:
    real = StillClock()
    clock = FaultyClock(tmp_path / "clock", real)
    clock.bump(10)
    clock.bump(-4)
    assert clock.shown_ns() - real.ns == 6_000_000_000
    clock.run_at(2.0)
    real.ns += 3_000_000_000
    assert clock.shown_ns() - real.ns == 9_000_000_000
    clock.bump(1)
    real.ns += 1_000_000_000
    assert clock.shown_ns() - real.ns == 11_000_000_000
    clock.heal()
    real.ns += 5
    assert clock.shown_ns() == real.ns
    clock.close()
