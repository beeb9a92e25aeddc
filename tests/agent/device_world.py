"""A device plugin that says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agent.devices.base import Reservation
from agent.drivers.base import TaskDevice
from nomadpy.models.node import NodeDevice, NodeDeviceResource
from nomadpy.models.resources import AllocatedDeviceResource
from nomadpy.models.stats import DeviceGroupStats, DeviceStats


class Scripted:
    """A plugin that says what it is told to."""

    interval_s = 10.0

    def __init__(self, name: str, *ids: str) -> None:
        self.name = name
        self.found = [
            NodeDeviceResource(
                vendor="acme",
                type="gpu",
                name="T4",
                instances=[NodeDevice(id=one, healthy=True) for one in ids],
            )
        ]
        self.error: Exception | None = None
        self.slow_s = 0.0
        self.looks = self.measured = 0
        self.refusal: Exception | None = None
        self.reserved: list[list[str]] = []

    async def fingerprint(self) -> list[NodeDeviceResource]:
        self.looks += 1
        await asyncio.sleep(self.slow_s)
        if self.error is not None:
            raise self.error
        return self.found

    async def reserve(self, wanted: Sequence[AllocatedDeviceResource]) -> Reservation:
        self.reserved.append([one for part in wanted for one in part.device_ids or ()])
        if self.refusal is not None:
            raise self.refusal
        path = f"/dev/{self.name}"
        return Reservation(
            env={f"OF_{self.name}": "1"}, devices=[TaskDevice(host_path=path, task_path=path)]
        )

    async def stats(self) -> list[DeviceGroupStats]:
        self.measured += 1
        if self.error is not None:
            raise self.error
        ids = [one.id for one in self.found[0].instances or ()]
        return [
            DeviceGroupStats(
                vendor="acme",
                type="gpu",
                name="T4",
                instance_stats={one: DeviceStats() for one in ids},
            )
        ]

    async def close(self) -> None:
        self.name = "closed"


def given(*ids: str) -> AllocatedDeviceResource:
    return AllocatedDeviceResource(vendor="acme", type="gpu", name="T4", device_ids=list(ids))
