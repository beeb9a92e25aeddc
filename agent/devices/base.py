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


class Held(msgspec.Struct, frozen=True):
    """What a task has of one model: thousandths of each device, by id."""

    vendor: str
    type: str
    name: str
    milli: dict[str, int]

    @property
    def ids(self) -> str:
        """With commas between them."""
        return ",".join(self.milli)

    @property
    def share(self) -> str:
        """One number where it is the same of each device, else one for each, with commas between them."""
        amounts = list(self.milli.values())
        return ",".join(str(one) for one in (amounts[:1] if len(set(amounts)) == 1 else amounts))


def held(wanted: Sequence[AllocatedDeviceResource]) -> list[Held]:
    """What a task was given, model by model: it may have asked several times for the same."""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    for one in wanted:
        milli = found.setdefault((one.vendor, one.type, one.name), {})
        for device in one.device_ids or ():
            milli[device] = milli.get(device, 0) + (one.share or WHOLE)
    return [Held(*model, milli) for model, milli in found.items()]


def generic_env(wanted: Sequence[AllocatedDeviceResource]) -> dict[str, str]:
    """The variables that every task with devices has: NOMAD_DEVICE_VENDOR_TYPE_MODEL with the ids, and for shares
    the same name with _SHARE, in thousandths of each device."""
    env: dict[str, str] = {}
    shared = {(one.vendor, one.type, one.name) for one in wanted if one.share}
    for one in held(wanted):
        name = variable_name(one.vendor, one.type, one.name)
        env[name] = one.ids
        if (one.vendor, one.type, one.name) in shared:
            env[f"{name}_SHARE"] = one.share
    return env


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
