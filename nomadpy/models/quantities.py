"""Device attributes, which are typed and may have a unit: `11264 MiB`, `1.5 GHz`, `true`, `Turing`."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from nomadpy.models.resources import Attribute

_NUMBER = re.compile(r"^\s*([+-]?\d+(?:\.\d+)?)\s*([A-Za-z/]*)\s*$")
_PREFIXES = "kMGTPE"
_UNITS: dict[str, tuple[str, float]] = {
    "": ("", 1.0),
    "MHz": ("hertz", 1e6),
    "GHz": ("hertz", 1e9),
    "mW": ("watt", 1e-3),
    "W": ("watt", 1.0),
    "kW": ("watt", 1e3),
    "MW": ("watt", 1e6),
    "GW": ("watt", 1e9),
}
for _power, _prefix in enumerate(_PREFIXES, 1):
    for _rate, _measure in (("", "byte"), ("/s", "byte rate")):
        _UNITS[f"{_prefix}B{_rate}"] = (_measure, 1000.0**_power)
        _UNITS[f"{_prefix.upper()}iB{_rate}"] = (_measure, 1024.0**_power)


class Quantity(NamedTuple):
    """An amount in the base unit of what it measures."""

    measure: str
    amount: float


@lru_cache(maxsize=512)
def quantity(text: str) -> Quantity | None:
    """Return what a number with a known unit, or with none, stands for; None when the text is no such thing."""
    found = _NUMBER.match(text)
    known = _UNITS.get(found.group(2)) if found else None
    if found is None or known is None:
        return None
    measure, factor = known
    return Quantity(measure, float(found.group(1)) * factor)


def attribute_text(attribute: Attribute) -> str:
    """Return an attribute as a job would write it: `11264 MiB`, `1.5`, `true`, `Turing`."""
    value: object = attribute.string_val
    if attribute.bool_val is not None:
        value = "true" if attribute.bool_val else "false"
    elif attribute.int_val is not None:
        value = attribute.int_val
    elif attribute.float_val is not None:
        value = repr(attribute.float_val).removesuffix(".0")
    if value is None:
        return ""
    return f"{value} {attribute.unit}" if attribute.unit else str(value)


def parse_attribute(text: str) -> Attribute:
    """Return the typed attribute that a text stands for; the reverse of `attribute_text`."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return Attribute(bool_val=lowered == "true")
    found = _NUMBER.match(text)
    if found is None or found.group(2) not in _UNITS:
        return Attribute(string_val=text)
    number, unit = found.groups()
    if "." in number:
        return Attribute(float_val=float(number), unit=unit)
    return Attribute(int_val=int(number), unit=unit)
