"""Which operation of a disk fails, waits or lies: rules by operation, path and chance, and a limit of space."""

from __future__ import annotations

import errno
import os
import re
import threading

import msgspec

from nomadpy.entropy import Entropy

ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS}

OPERATIONS = (
    "open", "read", "write", "truncate", "fsync", "create", "rename", "unlink", "mkdir", "rmdir", "fsyncdir",
)  # fmt: skip


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """operations: which, "*" for all. pattern: a regular expression that the path holds. error: a name of ERRORS.

    lie: fsync and fsyncdir say yes and make nothing durable. delay_s: the operation waits first.
    """

    operations: list[str]
    pattern: str = ""
    probability: float = 1.0
    error: str = ""
    delay_s: float = 0.0
    lie: bool = False


class Rules:
    """The rules in force; for many threads at once."""

    def __init__(self, source: Entropy) -> None:
        self._source = source
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.counts: dict[str, int] = {}

    def add(self, rule: Rule) -> None:
        """Put a rule in force. Raises ValueError when it makes no sense."""
        unknown = [o for o in rule.operations if o not in (*OPERATIONS, "*")]
        if unknown or (rule.error and rule.error not in ERRORS):
            raise ValueError(f"no such operation or error: {unknown or rule.error}")
        re.compile(rule.pattern)
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> bool:
        """No rule any more; operations that wait go on. Returns whether one of the rules had been to lie."""
        with self._lock:
            lied = any(rule.lie for rule in self._rules)
            self._rules = []
            self._changed.notify_all()
        return lied

    def meet(self, operation: str, path: str) -> bool:
        """An operation is about to be done: wait, or raise OSError, as a rule says. Returns whether it shall only be said."""
        lie = False
        with self._lock:
            self.counts[operation] = self.counts.get(operation, 0) + 1
            for rule in list(self._rules):
                if operation not in rule.operations and "*" not in rule.operations:
                    continue
                if not re.search(rule.pattern, path):
                    continue
                if rule.probability < 1.0 and self._source.uniform(0, 1) >= rule.probability:
                    continue
                self.counts["faults"] = self.counts.get("faults", 0) + 1
                if rule.delay_s:
                    self._changed.wait_for(lambda rule=rule: rule not in self._rules, rule.delay_s)  # type: ignore[misc]
                if rule.error:
                    code = ERRORS[rule.error]
                    raise OSError(code, os.strerror(code), path)
                lie = lie or rule.lie
        return lie


class Space:
    """Bytes that are left on the disk; None for no limit but the real one."""

    def __init__(self) -> None:
        self.free: int | None = None

    def take(self, wanted: int) -> int:
        """Up to `wanted` bytes more. Raises OSError ENOSPC when there is none left and some are wanted."""
        if self.free is None or wanted <= 0:
            return wanted
        if self.free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        given = min(wanted, self.free)
        self.free -= given
        return given

    def give(self, count: int) -> None:
        """Bytes that are free again."""
        if self.free is not None:
            self.free += max(0, count)
