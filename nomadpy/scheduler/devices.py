"""Devices of nodes: which a request accepts, which it is given, and who holds which.

A device is asked for by type, vendor/type or vendor/type/model, whole or, as this product's own addition, a share of
one in thousandths. Whole devices belong to one task; shares of one device never add up to more than the device.

In:      devices as the node tells them, and how many thousandths of each are taken.
Out:     whether a node has what is asked (`has`), and the ids that a task is given (`assign`).
Not here: adding up over allocations (fit.py, node_table.py); how good a choice is (fragmentation.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from nomadpy.models.constraint import Affinity, Constraint
from nomadpy.models.node import NodeDevice, NodeDeviceResource
from nomadpy.models.quantities import attribute_text
from nomadpy.models.resources import (
    AllocatedDeviceResource,
    AllocatedTaskResources,
    NUMAResource,
    RequestedDevice,
)
from nomadpy.models.task import Task
from nomadpy.scheduler.operators import DISTINCT_HOSTS, DISTINCT_PROPERTY, amounts_hold

WHOLE = 1000
"""A device in thousandths."""
MISSING = "missing devices"
EXHAUSTED = "devices: no devices match request"

DeviceKey = tuple[str, str, str, str]
"""Vendor, type, model and id: one device of a node."""
DeviceUse = tuple[tuple[DeviceKey, int], ...]
"""Devices with the thousandths that are taken of each."""
Assignment = dict[str, list[AllocatedDeviceResource]]
"""What each task is given."""


class DeviceGroup(msgspec.Struct, frozen=True):
    """Devices of one model on a node. keys: the healthy ones, in the node's order. nodes: the NUMA node of each, -1 where
    nobody knows it; empty where nobody asked."""

    vendor: str
    type: str
    name: str
    keys: tuple[DeviceKey, ...]
    facts: dict[str, str]
    nodes: tuple[int, ...] = ()


class DeviceRequest(msgspec.Struct, frozen=True):
    """What one task asks of one kind of device. milli: of each device, in thousandths. beside: prefer | require where
    they are to be on the NUMA node of the task's cores (numa.py), else ""."""

    task: str
    name: str
    count: int
    milli: int
    constraints: tuple[Constraint, ...] = ()
    affinities: tuple[Affinity, ...] = ()
    beside: str = ""


Chosen = list[tuple[DeviceRequest, DeviceGroup, list[DeviceKey]]]
"""Which devices each request is given."""


def requests(tasks: Iterable[Task]) -> tuple[DeviceRequest, ...]:
    """Return all that the tasks of a group ask for."""
    return tuple(
        _request(task.name, one, task.resources.numa)
        for task in tasks
        if task.resources is not None
        for one in task.resources.devices or ()
    )


def _request(task: str, asked: RequestedDevice, numa: NUMAResource | None) -> DeviceRequest:
    linked = numa is not None and numa.affinity != "none" and asked.name in (numa.devices or ())
    return DeviceRequest(
        task=task,
        beside=numa.affinity if numa is not None and linked else "",
        name=asked.name,
        count=1 if asked.count is None else asked.count,
        milli=asked.share or WHOLE,
        constraints=tuple(
            one
            for one in asked.constraints or ()
            if one.operand not in (DISTINCT_HOSTS, DISTINCT_PROPERTY)
        ),
        affinities=tuple(asked.affinities or ()),
    )


def device_groups(
    devices: Iterable[NodeDeviceResource] | None, buses: Mapping[str, int] | int | None = None
) -> tuple[DeviceGroup, ...]:
    """Return the devices of a node as they are asked for. buses: the NUMA node of each PCI bus, by `bus_key`, or of all."""
    return tuple(
        DeviceGroup(
            one.vendor,
            one.type,
            one.name,
            tuple(
                (one.vendor, one.type, one.name, instance.id)
                for instance in one.instances or ()
                if instance.healthy
            ),
            {name: attribute_text(value) for name, value in (one.attributes or {}).items()},
            ()
            if buses is None
            else tuple(
                _numa_node(instance, buses) for instance in one.instances or () if instance.healthy
            ),
        )
        for one in devices or ()
    )


def bus_key(bus_id: str) -> str:
    """A PCI bus id by which two spellings of one are equal: domains have four digits, eight, or none."""
    domain, colon, rest = bus_id.strip().lower().partition(":")
    if ":" not in rest:
        return f"0:{domain}{colon}{rest}"
    return f"{domain.lstrip('0') or '0'}:{rest}"


def _numa_node(device: NodeDevice, buses: Mapping[str, int] | int) -> int:
    if isinstance(buses, int):
        return buses
    return buses.get(bus_key(device.locality.pci_bus_id), -1) if device.locality else -1


def accepts(request: DeviceRequest, group: DeviceGroup) -> bool:
    """Whether devices of this model are what is asked for, whoever holds them."""
    wanted = request.name.split("/", 2)
    have = {
        1: [group.type],
        2: [group.vendor, group.type],
        3: [group.vendor, group.type, group.name],
    }[len(wanted)]
    return wanted == have and all(
        _holds(one.operand, one.l_target, one.r_target, group) for one in request.constraints
    )


def has(asked: Iterable[DeviceRequest], groups: tuple[DeviceGroup, ...]) -> bool:
    """Whether the node could meet all requests if nobody held anything."""
    return _choose(tuple(asked), groups, {}, {}) is not None


def assign(
    asked: tuple[DeviceRequest, ...],
    groups: tuple[DeviceGroup, ...],
    taken: Mapping[DeviceKey, int],
    pins: Mapping[str, int] | None = None,
) -> Chosen | None:
    """Return which devices each request is given, or None when not all can be met.

    pins: the NUMA node of tasks whose requests have `beside`; without them that means nothing. Of the models that will
    do, the one with the most affinity, then the one with which later requests get what they like most, then the one that
    the node names first. Of a model's devices the first free ones; for a share the device with the least left that
    suffices, so that others stay whole.
    """
    return _choose(asked, groups, taken, pins or {})


def _choose(
    asked: tuple[DeviceRequest, ...],
    groups: tuple[DeviceGroup, ...],
    taken: Mapping[DeviceKey, int],
    pins: Mapping[str, int],
) -> Chosen | None:
    """Meet the requests one after the other; one that cannot be met sends an earlier one to its next model."""
    if not asked:
        return []
    request, *rest = asked
    fitting = [group for group in groups if accepts(request, group)]
    if request.affinities and len(fitting) > 1:
        fitting.sort(key=lambda group: -_affinity(request, group))
    # Where nobody after it likes anything, the first way is as good as any.
    picky = any(one.affinities for one in rest)
    best: Chosen | None = None
    most: list[float] = []
    for group in fitting:
        if best is not None and _affinity(request, group) < most[0]:
            break
        keys = _pick(request, group, taken, pins.get(request.task) if request.beside else None)
        if keys is None:
            continue
        after = dict(taken)
        for key in keys:
            after[key] = after.get(key, 0) + request.milli
        others = _choose(tuple(rest), groups, after, pins)
        if others is None:
            continue
        found = [(request, group, keys), *others]
        if not picky:
            return found
        likes = [_affinity(one, given) for one, given, _ in found]
        if best is None or likes > most:
            best, most = found, likes
    return best


def _pick(
    request: DeviceRequest, group: DeviceGroup, taken: Mapping[DeviceKey, int], pin: int | None
) -> list[DeviceKey] | None:
    keys = group.keys
    if pin is not None:
        keys = tuple(key for key, node in zip(keys, group.nodes, strict=False) if node == pin)
    if request.milli == WHOLE:
        free = [key for key in keys if not taken.get(key)]
        return free[: request.count] if len(free) >= request.count else None
    left = [
        (WHOLE - taken.get(key, 0), place)
        for place, key in enumerate(keys)
        if WHOLE - taken.get(key, 0) >= request.milli
    ]
    if len(left) < request.count:
        return None
    return [keys[place] for _, place in sorted(left)[: request.count]]


def granted(
    chosen: Chosen,
) -> Assignment:
    """Return the choice as allocations carry it."""
    found: Assignment = {}
    for request, group, keys in chosen:
        found.setdefault(request.task, []).append(
            AllocatedDeviceResource(
                vendor=group.vendor,
                type=group.type,
                name=group.name,
                device_ids=[key[3] for key in keys],
                share=0 if request.milli == WHOLE else request.milli,
            )
        )
    return found


def affinity_score(
    chosen: Chosen,
) -> float:
    """Return the weighted share of device affinities that the chosen devices have, -1 to 1; 0 when none were named."""
    total = sum(abs(_weight(one)) for request, _, _ in chosen for one in request.affinities)
    if not total:
        return 0.0
    return sum(_affinity(request, group) for request, group, _ in chosen) / total


def held(tasks: Iterable[AllocatedTaskResources]) -> DeviceUse:
    """Return the devices that the tasks of an allocation hold."""
    return tuple(
        ((one.vendor, one.type, one.name, device_id), one.share or WHOLE)
        for task in tasks
        for one in task.devices or ()
        for device_id in one.device_ids or ()
    )


def devices_full(
    groups: tuple[DeviceGroup, ...], taken: Mapping[DeviceKey, int], milli: int
) -> float:
    """Return the share of a node's devices that is taken once `milli` more are, 0 to 1."""
    have = sum(len(group.keys) for group in groups) * WHOLE
    return min(1.0, (sum(taken.values()) + milli) / have) if have else 0.0


def count(taken: dict[DeviceKey, int], use: DeviceUse, by: int) -> None:
    """Add a use to what is taken (by 1), or take it away (-1)."""
    for key, milli in use:
        left = taken.get(key, 0) + by * milli
        if left:
            taken[key] = left
        else:
            taken.pop(key, None)


def _affinity(request: DeviceRequest, group: DeviceGroup) -> float:
    return sum(
        _weight(one)
        for one in request.affinities
        if _holds(one.operand, one.l_target, one.r_target, group)
    )


def _weight(affinity: Affinity) -> int:
    return 50 if affinity.weight is None else affinity.weight


def _holds(operator: str, left: str, right: str, group: DeviceGroup) -> bool:
    return amounts_hold(operator or "=", _resolve(left, group), _resolve(right, group))


def _resolve(target: str, group: DeviceGroup) -> str | None:
    """What a target stands for on a device: text is itself, `${device...}` is looked up, None is absent."""
    if not target.startswith("${"):
        return target
    name = target.removeprefix("${").removesuffix("}")
    if name.startswith("device.attr."):
        return group.facts.get(name.removeprefix("device.attr."))
    known = {
        "device.vendor": group.vendor,
        "device.type": group.type,
        "device.model": group.name,
        "device.ids": ",".join(key[3] for key in group.keys),
    }
    return known.get(name)
