"""A user who wants host volumes for the jobs, and makes and deletes others; and what must hold of them in the end."""

from __future__ import annotations

import asyncio

import msgspec

from nomadpy.entropy import SeededEntropy
from nomadpy.errors import DefiniteError, NomadError
from nomadpy.models.calls import (
    HostVolumeWrite,
    Write,
)
from nomadpy.models.envelope import Answer, WriteOptions
from nomadpy.models.host_volume import (
    FILE_SYSTEM,
    READY,
    SINGLE_WRITER,
    HostVolume,
    HostVolumeCapability,
    HostVolumeWritten,
)
from nomadpy.simulator.cluster import SimCluster
from nomadpy.simulator.invariants import ViolationError, is_live
from nomadpy.simulator.node_volumes import PLUGIN
from nomadpy.state.store import Snapshot

DATA, STATE = "data", "state"
WANTED = ((f"{DATA}[0]", 0), (f"{DATA}[1]", 1), (f"{DATA}[2]", 2), (STATE, 3), (STATE, 4))
"""Volumes that jobs use, and the numbers of the nodes that have them."""
CALL_TIMEOUT_S = 20.0
TAKEN_BACK = "earlier try of this request was taken back"


class VolumeUser:
    """Wants the volumes of WANTED, and makes and deletes others. A request without an answer is sent again as it was."""

    def __init__(self, cluster: SimCluster, entropy: SeededEntropy) -> None:
        self._cluster = cluster
        self._entropy = entropy
        self._requests: dict[tuple[str, int], str] = {}
        self._made: dict[tuple[str, int], str] = {}
        self._unsure: set[str] = set()  # requests of which some try had no certain answer
        self._scratch = 0
        self._last = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Ask at random moments until `stop` is set."""
        while not stop.is_set():
            missing = [one for one in WANTED if one not in self._made]
            if missing:
                await self._make(*missing[0])
            elif self._scratch % 2:
                await self._unmake((f"scratch-{self._scratch // 2}", self._scratch % 5))
            else:
                await self._make(f"scratch-{self._scratch // 2}", (self._scratch + 1) % 5)
            await asyncio.sleep(self._entropy.uniform(0.2, 3.0))

    async def settle(self) -> None:
        """With the world healed: whatever was asked and had no answer gets one."""
        for one in [*WANTED, *(key for key in self._requests if key not in WANTED)]:
            for _ in range(20):
                if one in self._made:
                    break
                await self._make(*one)
                await asyncio.sleep(0.5)
            else:
                raise ViolationError(f"volume {one[0]} cannot be made: {self._last}")

    async def _make(self, name: str, number: int) -> None:
        key = (name, number)
        request_id = self._requests.setdefault(key, self._entropy.uuid())
        clients = self._cluster.clients
        volume = HostVolume(
            name=name,
            plugin_id=PLUGIN,
            node_id=clients[number % len(clients)].node.id,
            requested_capabilities=[
                HostVolumeCapability(attachment_mode=FILE_SYSTEM, access_mode=SINGLE_WRITER)
            ],
        )
        answer = await self._call(
            "HostVolume.Create",
            HostVolumeWrite(volume=volume, options=WriteOptions(request_id=request_id)),
        )
        if isinstance(answer, NomadError):
            if not isinstance(answer, DefiniteError):
                self._unsure.add(request_id)
            elif request_id not in self._unsure or TAKEN_BACK in answer.message:
                # Nothing was made, so the next try is a new request.
                self._requests[key] = self._entropy.uuid()
        elif answer is None:
            self._unsure.add(request_id)
        else:
            made = msgspec.json.decode(answer.body, type=HostVolumeWritten)
            assert made.volume is not None
            self._made[key] = made.volume.id
            self._scratch += name.startswith("scratch")

    async def _unmake(self, key: tuple[str, int]) -> None:
        volume_id = next((v for (name, _), v in self._made.items() if name == key[0]), "")
        answer = await self._call("HostVolume.Delete", Write(id=volume_id, options=WriteOptions()))
        if answer is not None:
            self._scratch += 1

    async def _call(self, method: str, request: msgspec.Struct) -> Answer | NomadError | None:
        """The answer, the error, or None when there was neither."""
        live = self._cluster.live()
        if not live:
            return None
        process = self._entropy.choice(live).process
        assert process is not None
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await process.server.call(method, request)
        except TimeoutError:
            return None
        except NomadError as error:
            self._last = error.message
            return error
        assert isinstance(answer, Answer)
        return answer


def check_volumes(cluster: SimCluster, snapshot: Snapshot, *, restored: bool) -> None:
    """With the world settled: nodes have the volumes that servers know, and jobs have theirs.

    restored: an operator put an earlier state back, which knows nothing of what was made since.
    """
    for client in cluster.clients:
        node = snapshot.node(client.node.id)
        there = {one.id for one in client.volumes.offered.values()}
        told = {one.id for one in ((node.host_volumes if node else None) or {}).values()}
        known = {one.id for one in snapshot.host_volumes_by_node(client.node.id)}
        ready = {
            one.id for one in snapshot.host_volumes_by_node(client.node.id) if one.state == READY
        }
        if told != there:
            raise ViolationError(f"{client.name} has volumes {there}, and tells {told}")
        if not restored and (ready - there or there - known):
            raise ViolationError(
                f"{client.name} has volumes {there}; servers know {known}, ready {ready}"
            )
    for claim in snapshot.volume_claims():
        alloc = snapshot.alloc(claim.alloc_id)
        volume = snapshot.host_volume(claim.namespace, claim.volume_id)
        if alloc is not None and is_live(alloc) and volume and alloc.node_id != volume.node_id:
            raise ViolationError(f"{alloc.id} holds {volume.id} and is not on its node")
