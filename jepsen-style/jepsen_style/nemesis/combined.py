"""A schedule of faults carried out, one after another or overlapping: each begins, each is undone, whatever happens to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jepsen_style.generator import Step, chance
from jepsen_style.nemesis.base import Nemesis

COMBINED = "combined"

Tell = Callable[[str, Step, str, int], None]
"""Takes "start", "stop" or "missed", the step, in words what was done, and when, by the run's clock."""


class Strikes:
    """Begins and ends the faults of a schedule in the order of their times, in one thread."""

    def __init__(
        self, seed: int, make: Callable[[str], Nemesis], now_ns: Callable[[], int], tell: Tell
    ) -> None:
        """make: a new nemesis by its name. now_ns: the run's clock."""
        self._seed = seed
        self._now_ns = now_ns
        self._make = make
        self._tell = tell
        self._active: dict[str, tuple[Step, Nemesis]] = {}

    def run(self, steps: Sequence[Step], wait: Callable[[float], bool]) -> None:
        """Carry out all of them.

        wait: until a moment of the run; False when it is over. Whatever stops this, every fault that has begun is undone;
        what went wrong while undoing is raised when all have had their turn.
        """
        try:
            for moment, step, begins in _moments(steps):
                if not wait(moment):
                    return
                if begins:
                    self._begin(step)
                else:
                    self._end(step)
        finally:
            self._end_all()

    def _begin(self, step: Step) -> None:
        nemesis = self._make(step.nemesis)
        # First noted, then done: a beginning that fails half way is undone as well.
        self._active[step.seed] = (step, nemesis)
        began = self._now_ns()
        try:
            words = nemesis.begin(chance(self._seed, step.seed))
        except (RuntimeError, TimeoutError) as error:
            if len(self._active) == 1:
                raise
            # It wanted something that another fault, at work now, does not let it have.
            del self._active[step.seed]
            nemesis.end()
            self._tell("missed", step, str(error), began)
            return
        self._tell("start", step, words, began)

    def _end(self, step: Step) -> None:
        if step.seed not in self._active:
            return
        _, nemesis = self._active.pop(step.seed)
        nemesis.end()
        self._tell("stop", step, "", self._now_ns())

    def _end_all(self) -> None:
        failures: list[Exception] = []
        for step, _ in reversed(list(self._active.values())):
            try:
                self._end(step)
            except Exception as error:  # noqa: BLE001 - the others must be undone too; raised below
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("faults could not be undone", failures)


def _moments(steps: Sequence[Step]) -> Iterator[tuple[float, Step, bool]]:
    """(when, step, whether it begins); of one moment the ends first."""
    found = [(s.end_s, 0, n, s) for n, s in enumerate(steps)]
    found += [(s.start_s, 1, n, s) for n, s in enumerate(steps)]
    for when, begins, _, step in sorted(found, key=lambda f: f[:3]):
        yield when, step, bool(begins)
