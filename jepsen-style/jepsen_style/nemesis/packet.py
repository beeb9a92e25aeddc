"""Faults of packets: late, lost, out of order, twice, changed, too slow a link."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note
from jepsen_style.net.links import Link
from jepsen_style.net.wire import Wire
from nomadpy.entropy import Entropy

Where = Literal["all", "leader"]
WHERE: tuple[Where, ...] = ("all", "leader")

Make = Callable[[Entropy], Link]


def _between(source: Entropy, low: float, high: float) -> float:
    """A number whose order of magnitude is by chance, with two digits that say something."""
    drawn = math.exp(source.uniform(math.log(low), math.log(high)))
    return float(f"{drawn:.2g}")


def slow(source: Entropy) -> Link:
    """Packets are 20 to 100 ms late, more or less."""
    delay_ms = _between(source, 20, 100)
    return Link(delay_ms=delay_ms, jitter_ms=delay_ms * 0.4)


def lossy(source: Entropy) -> Link:
    """5 to 20 packets of a hundred are lost."""
    return Link(loss=_between(source, 0.05, 0.2))


def reorder(source: Entropy) -> Link:
    """A tenth to a third of the packets is passed by later ones."""
    return Link(reorder=_between(source, 0.1, 0.33), hold_ms=_between(source, 5, 40))


def duplicate(source: Entropy) -> Link:
    """A tenth to a half of the packets comes twice, some of them late."""
    return Link(duplicate=_between(source, 0.1, 0.5), reorder=0.05)


def corrupt(source: Entropy) -> Link:
    """Bits flip: some that the checksum shows to TCP, some with a checksum that fits, for TLS to notice."""
    return Link(corrupt=_between(source, 0.01, 0.05), forge=_between(source, 0.002, 0.02))


def rate(source: Entropy) -> Link:
    """Links pass 64 to 1000 kilobits a second, and drop what would wait too long."""
    return Link(rate_kbit=_between(source, 64, 1000))


PACKETS: dict[str, Make] = {
    "slow": slow,
    "lossy": lossy,
    "reorder": reorder,
    "duplicate": duplicate,
    "corrupt": corrupt,
    "rate": rate,
}


class Packets(Nemesis):
    """Links between nodes have a fault, both ways; the kit's own do not."""

    def __init__(self, cluster: OwnCluster, note: Note, fault: str, where: Where) -> None:
        super().__init__(cluster, note)
        self._fault = fault
        self._where = where

    def begin(self, source: Entropy) -> str:
        names = self.cluster.all_names
        link = PACKETS[self._fault](source)
        pairs = [(a, b) for a in names for b in names if a != b]
        words = "all links"
        if self._where == "leader":
            leads = self.cluster.leader() or source.choice(self.cluster.names)
            pairs = [pair for pair in pairs if leads in pair]
            words = f"links of {leads}"
        self._wire.lay(self._layer, dict.fromkeys(pairs, link), seed=source.uuid())
        return f"{words}: {_words(link)}"

    def end(self) -> None:
        self._wire.lift(self._layer)

    @property
    def _layer(self) -> str:
        return f"{self._fault}-{self._where}"

    @property
    def _wire(self) -> Wire:
        wire = self.cluster.equipment[Wire.need]
        assert isinstance(wire, Wire)
        return wire


def _words(link: Link) -> str:
    plain = Link()
    changed = {f: getattr(link, f) for f in link.__struct_fields__}
    return ", ".join(f"{f} {v:g}" for f, v in changed.items() if v != getattr(plain, f))
