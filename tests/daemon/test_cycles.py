"""The collector looks at what is new, and at everything only now and then."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from nomadpy.daemon.cycles import EVERYTHING_EVERY_S, collect_what_is_new


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def now_ns(self) -> int:
        return int(self.now_s * 1e9)


class Knot:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def clock() -> Iterator[Hands]:
    hands = Hands()
    end = collect_what_is_new(hands)
    yield hands
    end()
    gc.collect()


def test_what_survives_is_set_aside_and_new_cycles_are_collected(clock: Hands) -> None:
    kept = [Knot() for _ in range(1000)]
    before = gc.get_freeze_count()
    gc.collect()
    assert gc.get_freeze_count() >= before + len(kept)
    gone = weakref.ref(Knot())
    gc.collect()
    assert gone() is None


def test_a_cycle_that_lived_long_goes_when_everything_is_looked_at(clock: Hands) -> None:
    knot = Knot()
    gone = weakref.ref(knot)
    gc.collect()
    del knot
    gc.collect()
    assert gone() is not None
    clock.now_s += EVERYTHING_EVERY_S
    gc.collect()
    assert gone() is None
