"""Faults of the network: who does not hear whom. In the words of the field, grudges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.base import Nemesis, Note
from nomadpy.entropy import Entropy

Grudge = Callable[[Sequence[int], int, Entropy], list[tuple[int, int]]]
"""From the hosts, the leader among them, and chance, to the pairs (sender, receiver) that are cut."""


def _apart(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    return sorted([(a, b) for a in one for b in other] + [(b, a) for a in one for b in other])


def _shuffled(hosts: Sequence[int], source: Entropy) -> list[int]:
    order = list(hosts)
    source.shuffle(order)
    return order


def leader(hosts: Sequence[int], leads: int, source: Entropy) -> list[tuple[int, int]]:  # noqa: ARG001
    """The leader alone."""
    return _apart([leads], [h for h in hosts if h != leads])


def one(hosts: Sequence[int], leads: int, source: Entropy) -> list[tuple[int, int]]:  # noqa: ARG001
    """Any one alone."""
    first, *others = _shuffled(hosts, source)
    return _apart([first], others)


def halves(hosts: Sequence[int], leads: int, source: Entropy) -> list[tuple[int, int]]:
    """A majority and a minority, the leader in the minority."""
    others = _shuffled([h for h in hosts if h != leads], source)
    minority = (len(hosts) - 1) // 2
    return _apart([leads, *others[: minority - 1]], others[minority - 1 :])


def bridge(hosts: Sequence[int], leads: int, source: Entropy) -> list[tuple[int, int]]:  # noqa: ARG001
    """Two halves that only one host joins."""
    order = _shuffled(hosts, source)
    middle = len(order) // 2
    return _apart(order[:middle], order[middle + 1 :])


def ring(hosts: Sequence[int], leads: int, source: Entropy) -> list[tuple[int, int]]:
    """Each hears a majority, and no two the same one: those next to it in a ring. With three it is the bridge."""
    order = _shuffled(hosts, source)
    count = len(order)
    near = (count + 2) // 4
    if 2 * near + 1 >= count:
        return bridge(hosts, leads, source)
    cut = []
    for place, receiver in enumerate(order):
        for other, sender in enumerate(order):
            if min((place - other) % count, (other - place) % count) > near:
                cut.append((sender, receiver))
    return sorted(cut)


def deaf_leader(hosts: Sequence[int], leads: int, source: Entropy) -> list[tuple[int, int]]:  # noqa: ARG001
    """The leader sends and hears nothing: packets towards it are dropped, one way."""
    return sorted((h, leads) for h in hosts if h != leads)


GRUDGES: dict[str, Grudge] = {
    "leader": leader,
    "one": one,
    "halves": halves,
    "bridge": bridge,
    "ring": ring,
    "deaf-leader": deaf_leader,
}


class Partition(Nemesis):
    """Packets between some hosts are dropped."""

    def __init__(self, cluster: OwnCluster, note: Note, grudge: Grudge) -> None:
        super().__init__(cluster, note)
        self._grudge = grudge

    def begin(self, source: Entropy) -> str:
        names = self.cluster.names
        hosts = range(1, len(names) + 1)
        leads = self.cluster.leader()
        number = names.index(leads) + 1 if leads else source.choice(hosts)
        pairs = self._grudge(hosts, number, source)
        self.cluster.network.cut((names[a - 1], names[b - 1]) for a, b in pairs)
        return "; ".join(f"{names[a - 1]} -/-> {names[b - 1]}" for a, b in pairs)

    def end(self) -> None:
        self.cluster.network.mend()
