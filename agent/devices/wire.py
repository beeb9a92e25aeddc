"""What goes over the line between the agent and a device plugin that is a program: protocol 1.

configure     params {"protocol": 1, "name", "config"}; once, first. Any result.
fingerprint   result {"devices": [{"vendor", "type", "name", "attributes": {"memory": "16 GiB"}, "instances": [{"id",
              "healthy", "health_description", "pci_bus_id"}]}]}
reserve       params {"devices": [{"vendor", "type", "name", "ids", "share"}]}, all of one task, share in thousandths of
              each; result {"env", "mounts": [{"host_path", "task_path", "read_only"}], "devices": [{"host_path",
              "task_path", "permissions"}]}
stats         result {"devices": [{"vendor", "type", "name", "instances": {ID: {"summary": FIGURE, "figures": {NAME:
              FIGURE}}}}]}, FIGURE {"value", "of", "unit", "desc"}

Attributes and figures may be numbers, truth values or text; a text like `16 GiB` is an amount.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from agent.devices.base import WHOLE, Reservation
from agent.drivers.base import TaskDevice, TaskMount
from nomadpy.models.node import NodeDevice, NodeDeviceLocality, NodeDeviceResource
from nomadpy.models.quantities import parse_attribute
from nomadpy.models.resources import AllocatedDeviceResource, Attribute
from nomadpy.models.stats import DeviceGroupStats, DeviceStats, StatObject, StatValue

PROTOCOL = 1

Whole = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
Value = bool | Whole | float | str


class Line(msgspec.Struct, frozen=True):
    """One line of the program. null is as good as nothing here, and everywhere in results."""

    id: int | None = None
    result: Any = None
    error: str | None = None
    event: str | None = None


class Instance(msgspec.Struct, frozen=True):
    """One device."""

    id: str
    healthy: bool = True
    health_description: str = ""
    pci_bus_id: str = ""


class Group(msgspec.Struct, frozen=True):
    """Devices of one model."""

    vendor: str
    type: str
    name: str
    instances: list[Instance]
    attributes: dict[str, Value] = {}


class Fingerprint(msgspec.Struct, frozen=True):
    """The answer to `fingerprint`."""

    devices: list[Group] = []


class Mount(msgspec.Struct, frozen=True):
    """A path of the host that tasks in containers see."""

    host_path: str
    task_path: str = ""
    read_only: bool = False


class Device(msgspec.Struct, frozen=True):
    """A device node of the host that tasks in containers may use."""

    host_path: str
    task_path: str = ""
    permissions: str = "rwm"


class Reserved(msgspec.Struct, frozen=True):
    """The answer to `reserve`."""

    env: dict[str, str] = {}
    mounts: list[Mount] = []
    devices: list[Device] = []


class Figure(msgspec.Struct, frozen=True):
    """One measured value, maybe out of a most."""

    value: Value
    of: Whole | float | None = None
    unit: str = ""
    desc: str = ""


class InstanceStats(msgspec.Struct, frozen=True):
    """What one device does."""

    summary: Figure | None = None
    figures: dict[str, Figure] = {}


class GroupStats(msgspec.Struct, frozen=True):
    """What the devices of one model do."""

    vendor: str
    type: str
    name: str
    instances: dict[str, InstanceStats] = {}


class Stats(msgspec.Struct, frozen=True):
    """The answer to `stats`."""

    devices: list[GroupStats] = []


def read(line: bytes) -> Line:
    """What the program wrote. Raises ValueError."""
    try:
        found = msgspec.json.decode(line, type=Line)
        return msgspec.structs.replace(found, result=without_nulls(found.result))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def without_nulls(value: Any) -> Any:
    """The same without what is null in objects."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def fault(found: Fingerprint) -> str:
    """What is wrong with devices that have the right shape, or ""."""
    seen: set[tuple[str, str, str, str]] = set()
    for group in found.devices:
        name = f"{group.vendor}/{group.type}/{group.name}"
        if not all((group.vendor, group.type, group.name)) or "/" in group.vendor + group.type:
            return f"{name!r} is not vendor, type and model"
        for one in group.instances:
            key = (group.vendor, group.type, group.name, one.id)
            if not one.id or "," in one.id or key in seen:
                return (
                    f"{name} has a device {one.id!r} without a name, with a comma in it, or twice"
                )
            seen.add(key)
    return ""


def asked(one: AllocatedDeviceResource) -> dict[str, Any]:
    """Devices of a task as `reserve` names them."""
    return {
        "vendor": one.vendor,
        "type": one.type,
        "name": one.name,
        "ids": list(one.device_ids or ()),
        "share": one.share or WHOLE,
    }


def node_device(group: Group) -> NodeDeviceResource:
    """The group as nodes tell it."""
    return NodeDeviceResource(
        vendor=group.vendor,
        type=group.type,
        name=group.name,
        instances=[
            NodeDevice(
                id=one.id,
                healthy=one.healthy,
                health_description=one.health_description,
                locality=NodeDeviceLocality(pci_bus_id=one.pci_bus_id) if one.pci_bus_id else None,
            )
            for one in group.instances
        ],
        attributes={name: _attribute(value) for name, value in group.attributes.items()} or None,
    )


def reservation(found: Reserved) -> Reservation:
    """The answer as the agent uses it; without a path for the task the host's counts."""
    return Reservation(
        env=found.env,
        mounts=[
            TaskMount(
                host_path=one.host_path,
                task_path=one.task_path or one.host_path,
                read_only=one.read_only,
            )
            for one in found.mounts
        ],
        devices=[
            TaskDevice(
                host_path=one.host_path,
                task_path=one.task_path or one.host_path,
                permissions=one.permissions,
            )
            for one in found.devices
        ],
    )


def group_stats(group: GroupStats, moment: str) -> DeviceGroupStats:
    """The figures as the API tells them; moment: when."""
    return DeviceGroupStats(
        vendor=group.vendor,
        type=group.type,
        name=group.name,
        instance_stats={
            device: DeviceStats(
                summary=_figure(one.summary) if one.summary is not None else None,
                stats=StatObject(attributes={n: _figure(f) for n, f in one.figures.items()}),
                timestamp=moment,
            )
            for device, one in group.instances.items()
        },
    )


def _attribute(value: Value) -> Attribute:
    if isinstance(value, bool):
        return Attribute(bool_val=value)
    if isinstance(value, int):
        return Attribute(int_val=value)
    if isinstance(value, float):
        return Attribute(float_val=value)
    return parse_attribute(value)


def _figure(figure: Figure) -> StatValue:
    value, most = figure.value, figure.of
    if isinstance(value, bool):
        return StatValue(bool_val=value, unit=figure.unit, desc=figure.desc)
    if isinstance(value, str):
        return StatValue(string_val=value, unit=figure.unit, desc=figure.desc)
    if isinstance(value, float) or isinstance(most, float):
        return StatValue(
            float_numerator_val=float(value),
            float_denominator_val=None if most is None else float(most),
            unit=figure.unit,
            desc=figure.desc,
        )
    return StatValue(
        int_numerator_val=value, int_denominator_val=most, unit=figure.unit, desc=figure.desc
    )
