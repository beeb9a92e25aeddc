"""Which ended allocations go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.garbage import Ended, GarbageLimits, choose

SECOND = 1_000_000_000
NOW = 1_000_000 * SECOND


def ended(*ages_s: int) -> list[Ended]:
    return [Ended(alloc_id=str(n), finished_ns=NOW - age * SECOND) for n, age in enumerate(ages_s)]


def ask(found: list[Ended], limits: GarbageLimits, *, total: int, disk: float = 10.0) -> list[str]:
    return choose(found, limits, total=total, disk_percent=disk, now_ns=NOW)


def test_the_oldest_go_when_there_are_too_many() -> None:
    limits = GarbageLimits(max_allocs=3)
    assert ask(ended(10, 30, 20), limits, total=5) == ["1", "2"]
    assert ask(ended(10, 30, 20), limits, total=3) == []


def test_what_ended_long_ago_goes() -> None:
    limits = GarbageLimits(max_age_s=15.0)
    assert ask(ended(10, 30, 20), limits, total=3) == ["1", "2"]


def test_a_full_disk_costs_the_oldest_one_at_a_time() -> None:
    assert ask(ended(10, 30, 20), GarbageLimits(), total=3, disk=95.0) == ["1"]
    assert ask([], GarbageLimits(), total=3, disk=95.0) == []


@given(
    ages=st.lists(st.integers(0, 1000), max_size=20),
    live=st.integers(0, 20),
    most=st.integers(0, 20),
)
def test_no_more_go_than_are_too_many_and_no_older_one_stays(
    ages: list[int], live: int, most: int
) -> None:
    found = ended(*ages)
    gone = ask(found, GarbageLimits(max_allocs=most), total=len(found) + live)
    assert len(gone) == min(max(len(found) + live - most, 0), len(found))
    times = {e.alloc_id: e.finished_ns for e in found}
    kept = [t for i, t in times.items() if i not in gone]
    assert all(times[i] <= min(kept, default=NOW) for i in gone)
