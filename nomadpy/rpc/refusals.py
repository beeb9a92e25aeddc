"""One log line for each refused connection, and not more than a trickle when someone floods us.

Each address may have a burst of lines, then one every few seconds that also says how many were left unsaid; all
addresses together have a limit too. Memory is bounded. Pure but for the log: time comes in.
"""

from __future__ import annotations

from collections import OrderedDict

from nomadpy import logs

log = logs.get(__name__)

BURST = 20
SECONDS_PER_LINE = 5.0
BURST_OF_ALL = 200
SECONDS_PER_LINE_OF_ALL = 0.2
ADDRESSES_KEPT = 1024


class _Bucket:
    """Tokens that come back with time."""

    __slots__ = ("at", "tokens", "unsaid")

    def __init__(self, tokens: float, now: float) -> None:
        self.tokens = tokens
        self.at = now
        self.unsaid = 0

    def take(self, now: float, burst: float, seconds_per_token: float) -> bool:
        self.tokens = min(burst, self.tokens + (now - self.at) / seconds_per_token)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Refusals:
    """Says that a connection was refused."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, _Bucket] = OrderedDict()
        self._all = _Bucket(BURST_OF_ALL, 0.0)
        self.count = 0

    def report(self, address: str, reason: str, now: float) -> None:
        """One line for the refusal of `address` (host:port), unless the host has had its share.

        now: monotonic seconds (the event loop's).
        """
        self.count += 1
        host = address.rpartition(":")[0] or address
        bucket = self._hosts.get(host)
        if bucket is None:
            bucket = self._hosts[host] = _Bucket(BURST, now)
            if len(self._hosts) > ADDRESSES_KEPT:
                self._hosts.popitem(last=False)
        self._hosts.move_to_end(host)
        if not (
            bucket.take(now, BURST, SECONDS_PER_LINE)
            and self._all.take(now, BURST_OF_ALL, SECONDS_PER_LINE_OF_ALL)
        ):
            bucket.unsaid += 1
            return
        unsaid = {"refused_silently_before": bucket.unsaid} if bucket.unsaid else {}
        bucket.unsaid = 0
        log.warning("connection refused", address=address, reason=reason, **unsaid)
