"""How far each follower is, as its leader knows: what to send next and how much may be under way."""

from __future__ import annotations

from collections import deque


class Progress:
    """One follower, during one leadership.

    match: the follower holds the log up to here, on disk. next: the entry to send next. probing: one message at a
    time until the follower agreed once, so that a long search for the common point does not repeat itself.
    """

    __slots__ = (
        "in_flight",
        "in_flight_bytes",
        "match",
        "next",
        "probing",
        "round",
        "transfer",
        "waiting",
    )

    def __init__(self, next_index: int) -> None:
        self.match = 0
        self.next = next_index
        self.round = 0
        self.probing = True
        self.waiting = False
        self.in_flight: deque[tuple[int, int]] = deque()
        self.in_flight_bytes = 0
        self.transfer: Transfer | None = None

    def may_send(self, window_bytes: int) -> bool:
        """Whether more entries may go out now."""
        return not self.waiting and self.in_flight_bytes < window_bytes

    def sent(self, last_index: int, size: int) -> None:
        """Entries up to `last_index` are under way."""
        self.next = last_index + 1
        self.in_flight.append((last_index, size))
        self.in_flight_bytes += size
        self.waiting = self.probing

    def agreed(self, index: int) -> None:
        """The follower holds the log up to `index`."""
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        self.probing = self.waiting = False
        self.transfer = None
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight_bytes -= self.in_flight.popleft()[1]

    def refused(self, wanted: int, last_index: int) -> None:
        """The follower does not hold what the message built upon; it asks for `wanted`."""
        self.restart(max(2, min(wanted, last_index + 1)))

    def reconnected(self) -> None:
        """What was under way on the old stream may be lost."""
        self.restart(self.match + 1 if self.match else self.next)

    def restart(self, next_index: int) -> None:
        """Search for the common point again, from `next_index`."""
        self.next = next_index
        self.probing, self.waiting = True, False
        self.in_flight.clear()
        self.in_flight_bytes = 0
        self.transfer = None


class Transfer:
    """A snapshot on its way to one follower. acked: bytes the follower has staged; sent: bytes that went out.

    attempt: grows when the follower wants another piece than the one it was sent; what it says of pieces that were
    under way before is then of no interest.
    """

    __slots__ = ("acked", "attempt", "index", "sent", "term")

    def __init__(self, index: int, term: int) -> None:
        self.index = index
        self.term = term
        self.attempt = 0
        self.sent = 0
        self.acked = 0

    def rewind(self, offset: int) -> None:
        """Send again from `offset`."""
        self.attempt += 1
        self.sent = self.acked = offset


class ReadQueue:
    """Linearizable reads by ReadIndex: a read is safe once a majority has answered a round that began after it came.

    The leader numbers its rounds; every append carries the newest number and every answer echoes it.
    """

    def __init__(self) -> None:
        self.round = 0
        self._fresh: list[Waiter] = []
        self._open: deque[tuple[int, int, list[Waiter]]] = deque()

    def add(self, waiter: Waiter) -> None:
        """A read arrived; it joins the next round."""
        self._fresh.append(waiter)

    def start_round(self, commit_index: int) -> bool:
        """Begin a round for the reads that arrived; tell whether there were any."""
        if not self._fresh:
            return False
        self.round += 1
        self._open.append((self.round, commit_index, self._fresh))
        self._fresh = []
        return True

    def finish(self, confirmed_round: int, applied_index: int) -> None:
        """Answer the reads whose round a majority has confirmed and whose index is applied here."""
        while self._open:
            number, index, waiters = self._open[0]
            if number > confirmed_round or applied_index < index:
                return
            self._open.popleft()
            for waiter in waiters:
                waiter.resolve(index)

    def fail(self) -> None:
        """Leadership is gone: nothing can be confirmed any more."""
        waiters = [*self._fresh, *(w for _, _, group in self._open for w in group)]
        self._fresh = []
        self._open.clear()
        for waiter in waiters:
            waiter.refuse()


class Waiter:
    """One who waits for a read index."""

    def resolve(self, index: int) -> None:
        """The read may be served from a state at `index` or later."""
        raise NotImplementedError

    def refuse(self) -> None:
        """This server does not lead (any more)."""
        raise NotImplementedError
