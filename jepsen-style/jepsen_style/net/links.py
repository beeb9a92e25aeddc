"""What becomes of a packet on its way from one host to another: lost, late, twice, changed, or all is well.

Pure: the time and the chance come in. A link has a direction; the way back is another link.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from jepsen_style.net.packets import with_bit_flipped, with_payload_forged
from nomadpy.entropy import Entropy

Pair = tuple[int, int]
"""(sender, receiver), numbers of hosts."""

QUEUE_S = 0.5
"""How long a packet may wait for a slow link before it is dropped instead."""


class Link(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The faults of one link.

    cut: nothing passes. loss, duplicate: shares of packets, 0 to 1. delay_ms, jitter_ms: each packet is late by the delay, more
    or less by up to the jitter, and keeps its place. reorder: the share that is held back for hold_ms, so that later packets
    pass it. corrupt: the share with a flipped bit that the checksum shows. forge: the share with a flipped bit of the payload
    and a checksum that fits. rate_kbit: kilobits a second, 0 for no limit.
    """

    cut: bool = False
    loss: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    reorder: float = 0.0
    hold_ms: float = 20.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    forge: float = 0.0
    rate_kbit: float = 0.0


def both(one: Link, other: Link) -> Link:
    """The faults of two links laid over each other: of each kind the worse."""
    rates = [r for r in (one.rate_kbit, other.rate_kbit) if r]
    return Link(
        cut=one.cut or other.cut,
        loss=max(one.loss, other.loss),
        delay_ms=max(one.delay_ms, other.delay_ms),
        jitter_ms=max(one.jitter_ms, other.jitter_ms),
        reorder=max(one.reorder, other.reorder),
        hold_ms=max(one.hold_ms, other.hold_ms),
        duplicate=max(one.duplicate, other.duplicate),
        corrupt=max(one.corrupt, other.corrupt),
        forge=max(one.forge, other.forge),
        rate_kbit=min(rates, default=0.0),
    )


def laid_over(layers: Iterable[dict[Pair, Link]]) -> dict[Pair, Link]:
    """All layers as one."""
    found: dict[Pair, Link] = {}
    for layer in layers:
        for pair, link in layer.items():
            found[pair] = both(found[pair], link) if pair in found else link
    return found


class Counters(msgspec.Struct):
    """What happened to packets so far. passed: handed to the receiver, copies included."""

    passed: int = 0
    dropped: int = 0
    delayed: int = 0
    reordered: int = 0
    duplicated: int = 0
    corrupted: int = 0
    forged: int = 0


class Line:
    """One faulty link with its memory: until when it is busy, and when the last packet in order arrives."""

    def __init__(self, link: Link, source: Entropy, counters: Counters) -> None:
        self.link = link
        self._source = source
        self._counters = counters
        self._busy_until = 0.0
        self._last = 0.0

    def arrivals(self, packet: bytes, now: float) -> list[tuple[float, bytes]]:
        """When which packet arrives, in seconds of the same clock as `now`; none for a lost one."""
        link, counters = self.link, self._counters
        if link.cut or self._happens(link.loss):
            counters.dropped += 1
            return []
        moment = now
        if link.rate_kbit:
            moment = max(self._busy_until, now)
            if moment - now > QUEUE_S:
                counters.dropped += 1
                return []
            moment += len(packet) * 8 / (link.rate_kbit * 1000)
            self._busy_until = moment
        if link.delay_ms or link.jitter_ms:
            counters.delayed += 1
            late_ms = link.delay_ms + self._source.uniform(-link.jitter_ms, link.jitter_ms)
            moment += max(0.0, late_ms) / 1000
        # Chance alone must not make a later packet the earlier one: that is another fault.
        moment = max(moment, self._last)
        if self._happens(link.reorder):
            counters.reordered += 1
            moment += link.hold_ms / 1000
        else:
            self._last = moment
        if self._happens(link.corrupt):
            counters.corrupted += 1
            packet = with_bit_flipped(packet, self._source)
        if self._happens(link.forge):
            forged = with_payload_forged(packet, self._source)
            counters.forged += forged != packet
            packet = forged
        if self._happens(link.duplicate):
            counters.duplicated += 1
            return [(moment, packet), (moment, packet)]
        return [(moment, packet)]

    def _happens(self, share: float) -> bool:
        return share > 0 and self._source.uniform(0, 1) < share
