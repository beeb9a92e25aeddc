"""One seed from start to verdict: form a cluster, use it, break it, heal it, and look whether every promise holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import NomadError
from nomadpy.fsm.formats import OWN
from nomadpy.simulator import loop as virtual
from nomadpy.simulator.cluster import SimCluster, SimServer
from nomadpy.simulator.crowded import (
    JOBS,
    CrowdedUser,
    configure,
    preempted,
    waits_for_nothing,
)
from nomadpy.simulator.faults import Faults
from nomadpy.simulator.invariants import (
    ViolationError,
    Watch,
    check_final,
    check_promises,
    unsettled,
)
from nomadpy.simulator.volumes import VolumeUser, check_volumes
from nomadpy.simulator.workload import Promise, User

FORM_S = 60.0
SETTLE_S = 240.0
LATE_S = 15.0
WOKEN_S = 5.0
OLD = (1, 1)


class Verdict(msgspec.Struct, kw_only=True):
    """What one seed showed. violation: "" when everything held. seconds are virtual."""

    seed: int
    violation: str = ""
    entries: int = 0
    acknowledged: int = 0
    faults: list[str] = []
    evicted: int = 0
    restores: int = 0
    seconds: float = 0.0


def run_seed(
    seed: int,
    *,
    servers: int = 3,
    clients: int = 5,
    trouble_s: float = 45.0,
    lying_disks: bool = False,
    crowded: bool = False,
    wire: Callable[[SimServer], None] | None = None,
) -> Verdict:
    """Run one seed to its verdict. The same arguments give the same verdict, always.

    crowded: jobs of all types and priorities that evict each other, see crowded.py. Every third seed begins with servers of an
    earlier version, which are upgraded one after another while all else goes on.
    """

    async def main() -> Verdict:
        return await _run(
            seed,
            servers=servers,
            clients=clients,
            trouble_s=trouble_s,
            lying_disks=lying_disks,
            crowded=crowded,
            wire=wire,
        )

    return virtual.run(main)


async def _run(
    seed: int,
    *,
    servers: int,
    clients: int,
    trouble_s: float,
    lying_disks: bool,
    crowded: bool,
    wire: Callable[[SimServer], None] | None,
) -> Verdict:
    watches: list[Watch] = []

    def attach(server: SimServer) -> None:
        watches[0].attach(server)
        if wire is not None:
            wire(server)

    cluster = SimCluster(
        seed,
        servers=servers,
        clients=clients,
        lying_disks=lying_disks,
        formats=OLD if seed % 3 == 0 else OWN,
        wire=attach,
    )
    watch = Watch(cluster)
    watches.append(watch)
    faults = Faults(cluster, SeededEntropy(f"{seed}-faults"))
    make, count = (CrowdedUser, len(JOBS)) if crowded else (User, 5)
    users = [make(cluster, n, SeededEntropy(f"{seed}-user-{n}")) for n in range(count)]
    volumes = VolumeUser(cluster, SeededEntropy(f"{seed}-volumes")) if crowded else None
    promises = [user.promise for user in users]
    verdict = Verdict(seed=seed)
    loop = asyncio.get_running_loop()
    try:
        await cluster.start()
        await _until(lambda: _formed(cluster), FORM_S, "the cluster to form")
        if crowded:
            await configure(cluster)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for user in users:
                group.create_task(user.run(stop), name=user.promise.job_id)
            group.create_task(faults.run(stop), name="faults")
            if volumes is not None:
                group.create_task(volumes.run(stop), name="volumes")
            await asyncio.sleep(trouble_s)
            stop.set()
        await faults.heal()
        await _until(
            lambda: "" if cluster.leader() else "no leader", FORM_S, "a leader after healing"
        )
        if faults.unanswered_restore:
            # It may still come true; no longer than this.
            await asyncio.sleep(LATE_S)
        await _kept(cluster, promises, watch)
        await _undrain(faults)
        if volumes is not None and not watch.restores:
            await volumes.settle()
        for user in users:
            await user.settle()
        await _until(lambda: unsettled(cluster, promises), SETTLE_S, "the cluster to settle")
        watch.raise_any()
        check_final(cluster, promises, watch.restores)
        process = cluster.live()[0].process
        assert process is not None
        verdict.evicted = preempted(process.store.snapshot())
        if crowded:
            check_volumes(cluster, process.store.snapshot(), restored=bool(watch.restores))
            core = process.server.core
            # What the end of the last allocation has woken may be on its way yet.
            await _until(
                lambda: waits_for_nothing(core.snapshot(), promises, core.clock.now_ns()),
                WOKEN_S,
                "who waits for room to be given what there is",
            )
    except (ViolationError, AssertionError) as error:
        verdict.violation = str(error) or type(error).__name__
    finally:
        verdict.seconds = loop.time()
        await cluster.close()
    first = [*watch.violations, *cluster.broken]
    if first:
        # What was broken on the way explains what did not come true at the end.
        verdict.violation = first[0]
    verdict.entries = watch.entries
    verdict.acknowledged = sum(p.acknowledged for p in promises)
    verdict.faults = faults.done
    verdict.restores = len(watch.restores)
    return verdict


def _formed(cluster: SimCluster) -> str:
    leader = cluster.leader()
    if leader is None or leader.process is None:
        return "no leader"
    ready = sum(n.status == "ready" for n in leader.process.store.snapshot().nodes())
    return "" if ready == len(cluster.clients) else f"{ready} nodes ready"


async def _kept(cluster: SimCluster, promises: list[Promise], watch: Watch) -> None:
    """Before anybody writes anew: what was acknowledged under faults is there."""

    async def look() -> str:
        leader = cluster.leader()
        if leader is None or leader.process is None:
            return "no leader"
        try:
            await leader.process.server.queries.consistent()
        except NomadError as error:
            return error.message
        check_promises(leader.process.store.snapshot(), promises, watch.restores)
        return ""

    deadline = asyncio.get_running_loop().time() + FORM_S
    while reason := await look():
        if asyncio.get_running_loop().time() > deadline:
            raise ViolationError(
                f"waited {FORM_S:g} virtual seconds for a consistent read: {reason}"
            )
        await asyncio.sleep(0.25)


async def _undrain(faults: Faults) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + FORM_S
    while reason := await faults.undrain():
        if loop.time() > deadline:
            raise ViolationError(f"waited {FORM_S:g} virtual seconds for drains to end: {reason}")
        await asyncio.sleep(0.25)


async def _until(look: Callable[[], str], seconds: float, what: str) -> None:
    """Wait until `look` has nothing to complain of. Raises ViolationError with its last complaint."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while reason := look():
        if loop.time() > deadline:
            raise ViolationError(f"waited {seconds:g} virtual seconds for {what}: {reason}")
        await asyncio.sleep(0.25)
