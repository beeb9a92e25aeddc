"""How devices are shown: what a node has of them, what a task was given, and what they do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nomadpy.models.quantities import attribute_text
from nomadpy.models.resources import Attribute

Row = dict[str, Any]


def utilization(groups: Iterable[Row] | None) -> list[tuple[str, str]]:
    """`nvidia/gpu/T4[GPU-1]` and its summary, for each device that is measured."""
    return [
        (f"{name_of(group)}[{device}]", figure(stats.get("Summary")))
        for group in groups or ()
        for device, stats in sorted((group.get("InstanceStats") or {}).items())
    ]


def figures(groups: Iterable[Row] | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every device that is measured, with all its figures by name."""
    return [
        (f"{name_of(group)}[{device}]", _flat(stats.get("Stats") or {}, ""))
        for group in groups or ()
        for device, stats in sorted((group.get("InstanceStats") or {}).items())
    ]


def instances(groups: Iterable[Row] | None) -> list[list[object]]:
    """Model, id, health, its description and the PCI bus of each device of a node."""
    return [
        [
            name_of(group),
            one["ID"],
            one["Healthy"],
            one.get("HealthDescription") or "",
            (one.get("Locality") or {}).get("PciBusID", ""),
        ]
        for group in groups or ()
        for one in group.get("Instances") or ()
    ]


def attributes(group: Row) -> list[tuple[str, str]]:
    """The attributes of the devices of one model, as a job would write them."""
    return [
        (
            name,
            attribute_text(
                Attribute(
                    float_val=value.get("Float"),
                    int_val=value.get("Int"),
                    string_val=value.get("String"),
                    bool_val=value.get("Bool"),
                    unit=value.get("Unit") or "",
                )
            ),
        )
        for name, value in sorted((group.get("Attributes") or {}).items())
    ]


def assigned(groups: Iterable[Row] | None) -> list[list[object]]:
    """Model, ids and share of what a task was given."""
    return [
        [
            name_of(group),
            ",".join(group.get("DeviceIDs") or ()),
            f"{group['Share']}/1000" if group.get("Share") else "whole",
        ]
        for group in groups or ()
    ]


def name_of(group: Row) -> str:
    """`nvidia/gpu/T4`."""
    return f"{group['Vendor']}/{group['Type']}/{group['Name']}"


def figure(value: Row | None) -> str:
    """`300 / 16384 MiB`, `45 %`, `P0`; `<none>` without one."""
    if not value:
        return "<none>"
    if value.get("StringVal") is not None:
        return str(value["StringVal"])
    if value.get("BoolVal") is not None:
        return str(value["BoolVal"]).lower()
    for kind in ("Int", "Float"):
        amount = value.get(f"{kind}NumeratorVal")
        if amount is None:
            continue
        most = value.get(f"{kind}DenominatorVal")
        text = f"{amount:g}" if kind == "Float" else str(amount)
        if most is not None:
            text += f" / {most:g}" if kind == "Float" else f" / {most}"
        return f"{text} {value['Unit']}" if value.get("Unit") else text
    return "<none>"


def _flat(stats: Row, prefix: str) -> list[tuple[str, str]]:
    found = [
        (f"{prefix}{name}", figure(value))
        for name, value in sorted((stats.get("Attributes") or {}).items())
    ]
    for name, inner in sorted((stats.get("Nested") or {}).items()):
        found += _flat(inner, f"{prefix}{name}.")
    return found
