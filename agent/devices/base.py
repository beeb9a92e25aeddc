"""What every device plugin offers, and the values it takes and gives.

A plugin finds devices and says what a task needs in order to use them. Who gets which device is the scheduler's
business, and nothing is given back: a reservation is only asked for, as often as a task starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from agent.drivers.base import TaskDevice, TaskMount
from nomadpy.errors import DefiniteError
from nomadpy.models.node import NodeDeviceResource
from nomadpy.models.resources import AllocatedDeviceResource
from nomadpy.models.stats import DeviceGroupStats

WHOLE = 1000
"""A device in thousandths."""

_UNFIT = re.compile(r"[^A-Za-z0-9]+")


class DeviceError(DefiniteError):
    """The plugin could not do it; `recoverable` says whether the restart policy may try again."""

    code = "device"

    def __init__(self, message: str, *, recoverable: bool = True, **details: Any) -> None:
        super().__init__(message, recoverable=recoverable, **details)
        self.recoverable = recoverable


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """What a task needs to use its devices. env: variables; mounts, devices: for tasks in containers."""

    env: dict[str, str] = {}
    mounts: list[TaskMount] = []
    devices: list[TaskDevice] = []


class DevicePlugin(Protocol):
    """A source of devices. Methods may be called at the same time."""

    @property
    def name(self) -> str:
        """What logs and health descriptions call it."""
        ...

    @property
    def interval_s(self) -> float:
        """How long after one look at the devices the next one comes."""
        ...

    async def fingerprint(self) -> list[NodeDeviceResource]:
        """The devices that are there, with their health; [] where there are none. Raises DeviceError."""
        ...

    async def reserve(self, wanted: Sequence[AllocatedDeviceResource]) -> Reservation:
        """What one task needs for these devices, all of this plugin; the same question has the same answer.

        Raises DeviceError, e.g. for a device that is gone.
        """
        ...

    async def stats(self) -> list[DeviceGroupStats]:
        """What the devices do now; [] when it cannot be told. Raises DeviceError."""
        ...

    async def close(self) -> None:
        """Release what this agent process holds; tasks go on."""
        ...


@runtime_checkable
class Supervised(Protocol):
    """A plugin with a life of its own beside the questions."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Live for ever; cancelled at the end. changed: asks for a fingerprint at once."""
        ...


def generic_env(wanted: Sequence[AllocatedDeviceResource]) -> dict[str, str]:
    """The variables that every task with devices has: NOMAD_DEVICE_VENDOR_TYPE_MODEL with the ids, and for shares
    the same name with _SHARE, in thousandths of each device."""
    ids: dict[str, list[str]] = {}
    shares: dict[str, int] = {}
    for one in wanted:
        name = variable_name(one.vendor, one.type, one.name)
        mine = ids.setdefault(name, [])
        mine += [device for device in one.device_ids or () if device not in mine]
        if one.share:
            shares[f"{name}_SHARE"] = one.share
    return {
        **{name: ",".join(mine) for name, mine in ids.items()},
        **{name: str(share) for name, share in shares.items()},
    }


def variable_name(*parts: str) -> str:
    """`nvidia`, `gpu`, `Tesla T4` as NOMAD_DEVICE_NVIDIA_GPU_TESLA_T4."""
    return "_".join(("NOMAD_DEVICE", *(_UNFIT.sub("_", part).strip("_") for part in parts))).upper()


def merged(parts: Sequence[Reservation]) -> Reservation:
    """Several reservations as one; what several ask for is there once."""
    mounts = [mount for part in parts for mount in part.mounts]
    devices = [device for part in parts for device in part.devices]
    return Reservation(
        env={name: value for part in parts for name, value in part.env.items()},
        mounts=list({mount.task_path: mount for mount in mounts}.values()),
        devices=list({device.task_path: device for device in devices}.values()),
    )
