"""Python's collector of reference cycles, kept from walking through the whole state again and again.

Rows of the state live long and are freed by their reference counts; a full collection that looks at all of them holds up
the event loop for a third of a second at 30,000 allocations. So what survives a full collection is set aside, and the
next one looks only at what came since. Once in a while everything is looked at, for the cycles that lived long.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

from nomadpy.clock import Clock

NEW_OBJECTS = 10_000
"""After so many, the collector looks at them. With Python's own 700 it looks all the time while a large plan is applied."""
EVERYTHING_EVERY_S = 3600.0
_OLDEST = 2


def collect_what_is_new(clock: Clock) -> Callable[[], None]:
    """Begin, with all that lives now set aside; returns what ends it."""
    before = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS, *before[1:])
    looked_at_all = clock.monotonic()

    def on_collection(phase: str, info: Mapping[str, int]) -> None:
        nonlocal looked_at_all
        if info["generation"] != _OLDEST:
            return
        if phase == "stop":
            gc.freeze()
        elif clock.monotonic() - looked_at_all >= EVERYTHING_EVERY_S:
            looked_at_all = clock.monotonic()
            gc.unfreeze()

    def end() -> None:
        gc.callbacks.remove(on_collection)
        gc.set_threshold(*before)
        gc.unfreeze()

    gc.callbacks.append(on_collection)
    gc.collect()
    return end
