"""The only source of chance; everything else takes an Entropy."""

from __future__ import annotations

import os
import random
from collections.abc import MutableSequence, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Entropy(Protocol):
    """Chance as an input, so that one seed replays a run."""

    def uuid(self) -> str:
        """A random UUID, 36 lower-case characters."""
        ...

    def token_bytes(self, count: int) -> bytes:
        """`count` random bytes; fit for secrets only from SystemEntropy."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high]."""
        ...

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`, which must not be empty."""
        ...

    def shuffle(self, items: MutableSequence[Any]) -> None:
        """Reorder in place."""
        ...


_UUIDS_AT_ONCE = 256
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def _uuid_of(drawn: bytes) -> str:
    """Version 4 (RFC 9562) of 16 random bytes; a plan takes thousands, and `uuid.UUID` is four times as slow."""
    digits = drawn.hex()
    variant = _VARIANT[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


class SystemEntropy:
    """Chance from the operating system."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()
        # Drawn in one go: each system call lets another thread have the interpreter, and a plan takes thousands.
        self._drawn: list[bytes] = []
        os.register_at_fork(after_in_child=self._drawn.clear)

    def uuid(self) -> str:
        """A random UUID, 36 lower-case characters."""
        try:
            drawn = self._drawn.pop()
        except IndexError:
            block = os.urandom(16 * _UUIDS_AT_ONCE)
            drawn = block[:16]
            self._drawn.extend(block[n : n + 16] for n in range(16, len(block), 16))
        return _uuid_of(drawn)

    def token_bytes(self, count: int) -> bytes:
        """`count` random bytes."""
        return os.urandom(count)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high]."""
        return self._random.uniform(low, high)

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return self._random.choice(items)

    def shuffle(self, items: MutableSequence[Any]) -> None:
        """Reorder in place."""
        self._random.shuffle(items)


class SeededEntropy:
    """Chance from a seed, for tests and the simulator; never for secrets."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - not for secrets

    def uuid(self) -> str:
        """A UUID that the seed decides."""
        return _uuid_of(self._random.getrandbits(128).to_bytes(16, "big"))

    def token_bytes(self, count: int) -> bytes:
        """`count` bytes that the seed decides."""
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high]."""
        return self._random.uniform(low, high)

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return self._random.choice(items)

    def shuffle(self, items: MutableSequence[Any]) -> None:
        """Reorder in place."""
        self._random.shuffle(items)
