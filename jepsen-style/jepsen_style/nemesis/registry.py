"""All nemeses by name: fault-target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from jepsen_style.cluster import OwnCluster
from jepsen_style.nemesis.agents import KillAgent, PartitionAgents, PauseAgent, StopAgent
from jepsen_style.nemesis.base import TARGETS, Nemesis, Note, Target
from jepsen_style.nemesis.clock import Bump, Drift, Strobe
from jepsen_style.nemesis.corrupt import CorruptAgent, CorruptServer
from jepsen_style.nemesis.disk import FAULTS, DiskFault
from jepsen_style.nemesis.docker import (
    KillContainers,
    KillDaemon,
    RemoveContainers,
    RemoveImage,
    StopDaemon,
)
from jepsen_style.nemesis.membership import GrowShrink, RecoverPeers, Remove, Replace, Transfer
from jepsen_style.nemesis.packet import PACKETS, WHERE, Packets
from jepsen_style.nemesis.partition import GRUDGES, Partition
from jepsen_style.nemesis.power import LyingDisks, PowerCut
from jepsen_style.nemesis.process import Kill, Pause, RestartAll, RollingRestart
from jepsen_style.nemesis.resource import LittleCpu, NoMemoryYet, NoThreads, OutOfMemory

Make = Callable[[OwnCluster, Note], Nemesis]


class Kind(msgspec.Struct, frozen=True):
    """A nemesis that may be asked for. needs: what it cannot do without, see equipment_registry.py.

    family: of two faults of one family, the second waits for the end of the first; "" is the name's first word. Whatever
    ends processes, or needs them to stay ended, is of the family "processes". alone: it must not overlap with others,
    for it needs a cluster that works, or together they may do what no server survives. refuted: a run with it must be found invalid.
    """

    make: Make
    about: str
    needs: frozenset[str] = frozenset()
    family: str = ""
    alone: bool = False
    refuted: bool = False


AGENTS = frozenset({"agents"})
DISK = frozenset({"disk"})
LEADER_ONE_MAJORITY: tuple[Target, ...] = ("leader", "one", "majority")
LEADER_OR_ONE: tuple[Target, ...] = ("leader", "one")
EACH_OR_ALL: tuple[Target, ...] = ("leader", "one", "all")

NEMESES: dict[str, Kind] = {
    **{
        f"kill-{t}": Kind(
            partial(Kill, target=t), f"SIGKILL {t}, start again later", family="processes"
        )
        for t in TARGETS
    },
    **{
        f"pause-{t}": Kind(partial(Pause, target=t), f"SIGSTOP {t}, SIGCONT later") for t in TARGETS
    },
    "restart-all": Kind(RestartAll, "SIGKILL all, start all at once", family="processes"),
    "restart-rolling": Kind(
        RollingRestart, "stop and start one after another, as an upgrade does", family="processes"
    ),
    **{
        f"partition-{name}": Kind(
            partial(Partition, grudge=grudge),
            (grudge.__doc__ or "").split(".")[0].lower(),
            needs=frozenset({"hosts"}),
        )
        for name, grudge in GRUDGES.items()
    },
    **{
        f"packet-{fault}-{where}": Kind(
            partial(Packets, fault=fault, where=where),
            f"{(make.__doc__ or '').split('.')[0].lower()}: {'all links' if where == 'all' else 'the leader alone'}",
            needs=frozenset({"wire"}),
            family=f"packet-{fault}",
        )
        for fault, make in PACKETS.items()
        for where in WHERE
    },
    **{
        f"clock-{fault}-{t}": Kind(
            partial(clock, target=t), f"{about}: {t}", needs=frozenset({"skew"})
        )
        for fault, clock, about in (
            ("bump", Bump, "the wall clock jumps by seconds or hours"),
            ("strobe", Strobe, "the wall clock jumps forth and back all the time"),
            ("drift", Drift, "the wall clock runs at half to double speed"),
        )
        for t in EACH_OR_ALL
    },
    **{
        f"cgroup-{fault}-{t}": Kind(
            partial(starve, target=t),
            f"{about}: {t}",
            needs=frozenset({"cgroup"}),
            family=family,
        )
        for fault, starve, about, family, where in (
            ("cpu", LittleCpu, "a tenth of a processor", "cgroup-cpu", EACH_OR_ALL),
            ("memory", OutOfMemory, "killed for memory", "processes", LEADER_OR_ONE),
            ("hang", NoMemoryYet, "no memory for a while", "processes", LEADER_OR_ONE),
            ("pids", NoThreads, "no new threads", "processes", LEADER_OR_ONE),
        )
        for t in where
    },
    **{
        f"disk-{fault}-{t}": Kind(
            partial(DiskFault, target=t, fault=make),
            f"{(make.__doc__ or '').split('.')[0].lower()}: {t}",
            needs=DISK,
            family="disk-slow" if fault == "slow" else "processes",
        )
        for fault, make in FAULTS.items()
        for t in LEADER_ONE_MAJORITY
    },
    **{
        f"power-{t}": Kind(
            partial(PowerCut, target=t),
            f"kill {t} and take back what was not synced",
            needs=DISK,
            family="processes",
        )
        for t in TARGETS
    },
    "lying-disks": Kind(
        LyingDisks,
        "fsync does nothing, then a power cut of all: must be found invalid",
        needs=DISK,
        family="processes",
        alone=True,
        refuted=True,
    ),
    **{
        f"corrupt-{what}": Kind(
            partial(CorruptServer, files=files, damages=damages, target="one"),
            about,
            needs=frozenset({"snapshots"}),
            family="processes",
            alone=True,
        )
        for what, files, damages, about in (
            ("log", "log/segment-*.log", ("flip",), "one bit of a stopped server's log"),
            ("log-truncate", "log/segment-*.log", ("truncate",), "a stopped server's log cut off"),
            ("log-zero", "log/segment-*.log", ("zero",), "zeros in a stopped server's log"),
            ("vote", "log/hard-state", ("flip", "truncate", "zero"), "a stopped server's vote"),
            (
                "snapshot",
                "snapshots/*.snap",
                ("flip", "truncate", "zero"),
                "a stopped server's snapshot",
            ),
        )
    },
    "corrupt-agent-state": Kind(
        CorruptAgent, "a stopped agent's local state", AGENTS, family="agents"
    ),
    "membership-replace": Kind(
        Replace, "a server comes back with an empty disk", family="processes", alone=True
    ),
    "membership-remove": Kind(
        partial(Remove, leader=False),
        "a server is taken out and joins as a new one",
        family="processes",
        alone=True,
    ),
    "membership-remove-leader": Kind(
        partial(Remove, leader=True), "the leader is taken out", family="processes", alone=True
    ),
    "membership-grow-shrink": Kind(
        GrowShrink, "two more servers join and are taken out", family="processes", alone=True
    ),
    "membership-transfer": Kind(Transfer, "leadership is handed on all the time", alone=True),
    "membership-recover": Kind(
        RecoverPeers,
        "the majority is lost for good, the rest goes on by peers.json",
        family="processes",
        alone=True,
    ),
    "kill-agent": Kind(
        KillAgent, "SIGKILL an agent, start it again later", AGENTS, family="agents"
    ),
    "stop-agent": Kind(
        StopAgent, "SIGTERM an agent, start it again later", AGENTS, family="agents"
    ),
    "pause-agent": Kind(PauseAgent, "SIGSTOP an agent, SIGCONT later", AGENTS, family="agents"),
    "partition-agents": Kind(
        PartitionAgents, "one agent or all cut off from the servers", needs=AGENTS | {"hosts"}
    ),
    **{
        f"docker-{fault}": Kind(make, about, needs=AGENTS | {"docker"})
        for fault, make, about in (
            ("kill-daemon", KillDaemon, "SIGKILL the Docker daemon, start it again later"),
            ("stop-daemon", StopDaemon, "SIGSTOP the Docker daemon, SIGCONT later"),
            ("kill-container", KillContainers, "containers' first processes die"),
            ("remove-container", RemoveContainers, "containers vanish"),
            ("remove-image", RemoveImage, "the image vanishes, some of its containers die"),
        )
    },
}


def family_of(name: str) -> str:
    """A nemesis' family."""
    return NEMESES[name].family or name.partition("-")[0]


def may_overlap(name: str) -> bool:
    """Whether a nemesis may be at work together with others."""
    return not NEMESES[name].alone


def expand(names: list[str], *, agents: bool = False) -> list[str]:
    """Names of nemeses; a fault without a target means all of its targets, those of agents only where there are any.

    Raises ValueError for an unknown one.
    """
    found: list[str] = []
    for name in names:
        matches = [n for n in NEMESES if n == name] or [
            n for n in NEMESES if n.startswith(f"{name}-") and (agents or not of_agents(n))
        ]
        if not matches and name != "none":
            raise ValueError(f"there is no nemesis {name!r}; see --list")
        found += [m for m in matches if m not in found]
    return found


def of_agents(name: str) -> bool:
    """Whether a nemesis strikes agents, or what agents use."""
    return NEMESES[name].needs >= AGENTS
