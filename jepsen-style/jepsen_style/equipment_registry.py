"""All equipment by the need it serves, and what of it cannot be had here."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable

from jepsen_style.clock.clocks import Clocks
from jepsen_style.disk.mount import Disks
from jepsen_style.disk.often import OftenSnapshots
from jepsen_style.docker import PrivateDaemon
from jepsen_style.equipment import Equipment
from jepsen_style.net.wire import Wire
from jepsen_style.network import Hosts
from jepsen_style.res.groups import Groups

EQUIPMENT: dict[str, type[Equipment]] = {
    e.need: e for e in (Hosts, Wire, PrivateDaemon, Clocks, Groups, Disks, OftenSnapshots)
}

# Needs that are no equipment: the cluster itself has agents, and who may do it is no thing.
AGENTS = "agents"
ROOT = "root"


@functools.cache
def missing(need: str) -> str:
    """Why a need cannot be met here; "" when it can."""
    if need == AGENTS:
        return ""
    if need == ROOT:
        return "" if os.geteuid() == 0 else "needs root"
    if need not in EQUIPMENT:
        return f"there is no equipment {need!r}"
    return EQUIPMENT[need].missing()


def all_missing(needs: Iterable[str]) -> str:
    """Why some of the needs cannot be met here; "" when all can."""
    return "; ".join(dict.fromkeys(filter(None, (missing(n) for n in sorted(needs)))))


def equipment_for(needs: Iterable[str]) -> list[type[Equipment]]:
    """The kinds that together serve the needs, in the order of the registry."""
    wanted = set(needs)
    kinds = [kind for name, kind in EQUIPMENT.items() if name in wanted]
    return [k for k in kinds if not any(k.need in other.gives for other in kinds)]
