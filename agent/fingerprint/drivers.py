"""The drivers' fingerprints as the node tells them: health and attributes."""

from __future__ import annotations

from collections.abc import Mapping

from agent.drivers.base import DriverFingerprint
from nomadpy.models import gotime
from nomadpy.models.node import DriverInfo


def infos(found: Mapping[str, DriverFingerprint], now_ns: int) -> dict[str, DriverInfo]:
    """Every driver, also those that are not there; their attributes are empty then."""
    return {name: _info(name, driver, now_ns) for name, driver in found.items()}


def attributes(found: Mapping[str, DriverFingerprint]) -> dict[str, str]:
    """What constraints see: `driver.NAME` is "1" for a healthy one (and "true" in its own attributes)."""
    result: dict[str, str] = {}
    for name, driver in found.items():
        if driver.detected and driver.healthy:
            result[f"driver.{name}"] = "1"
            result.update(driver.attributes)
    return result


def _info(name: str, driver: DriverFingerprint, now_ns: int) -> DriverInfo:
    own = {f"driver.{name}": "true", **driver.attributes} if driver.detected else {}
    return DriverInfo(
        attributes=own,
        detected=driver.detected,
        healthy=driver.healthy,
        health_description=driver.description,
        update_time=gotime.from_ns(now_ns),
    )
